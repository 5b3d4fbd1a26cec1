"""`wetok eval`: the scores of a model on photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wetok.commands import options


def command(
    data: Annotated[
        list[Path], typer.Option("--data", "-d", help="Photographs or a folder; repeatable.")
    ],
    model: options.Model = options.DEFAULT_MODEL,
    protocol: Annotated[
        str, typer.Option(help="modern-256 (256 x 256 center crops) or original (whole images).")
    ] = "modern-256",
    lpips: Annotated[
        list[str] | None,
        typer.Option(help="LPIPS network, alex or vgg; repeatable.  [default: those imported]"),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Score a model on photographs.

    PSNR, SSIM, LPIPS, how much of each group's codes is in use, and
    bits that never change. LPIPS needs `wetok weights import`.

    Example: wetok eval -m tiny-48x --data photos/val
    """
    from wetok.commands.batch import progress
    from wetok.config import WetokError
    from wetok.data.images import find_images
    from wetok.evaluate.evaluation import Evaluation
    from wetok.evaluate.protocols import protocol as find_protocol
    from wetok.losses.perceptual import LPIPS
    from wetok.weights import cached, find

    chosen = find_protocol(protocol)
    for net in lpips or []:
        if net not in ("alex", "vgg"):
            raise WetokError(f"lpips={net!r} must be 'alex' or 'vgg'")
    nets = lpips or [net for net in ("alex", "vgg") if cached(f"lpips-{net}")]
    networks = [LPIPS.from_file(find(f"lpips-{net}"), net) for net in nets]  # type: ignore[arg-type]
    paths = find_images(data)
    evaluation = Evaluation(options.load(model, device), chosen, networks, seed)
    with progress(len(paths), "scoring") as step:
        evaluation.add_all(paths, step)
    if not nets:
        typer.echo("wetok: LPIPS is left out; `wetok weights import` brings its weights", err=True)
    for line in evaluation.failures:
        typer.echo(f"wetok: {line}", err=True)
    _show(evaluation.summary(), as_json)
    if evaluation.failures:
        raise typer.Exit(1)


def _show(summary: dict[str, Any], as_json: bool) -> None:
    from rich.table import Table

    from wetok.commands.tables import show, show_json

    if as_json:
        show_json(summary)
        return
    table = Table(title=f"{summary['model']} on {summary['images']} images", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    rows = {
        "bits a pixel": f"{summary['bpp']:.3f}",
        "PSNR (dB)": f"{summary['psnr']:.2f}",
        "SSIM": f"{summary['ssim']:.4f}",
        **{
            name.replace("lpips", "LPIPS"): f"{value:.4f}"
            for name, value in summary.items()
            if name.startswith("lpips-")
        },
        "least group usage": f"{min(summary['usage']):.1%}",
        "dead bits": str(summary["dead_bits"]),
        "encode (s an image)": f"{summary['encode_seconds']:.3f}",
        "decode (s an image)": f"{summary['decode_seconds']:.3f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    show(table)
    typer.echo(f"protocol {summary['protocol']}: {summary['protocol_description']}")
    hashes = [f"LPIPS {net} {digest}" for net, digest in summary["lpips_weights"].items()]
    typer.echo(", ".join([f"model {summary['fingerprint']}", *hashes, f"seed {summary['seed']}"]))
