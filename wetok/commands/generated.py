"""`wetok eval --generated`: samples against real images, as sets."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer


def score_generated(
    samples: Path,
    data: list[str],
    reference: list[Path],
    protocol: str,
    frechet: list[str] | None,
    fid_weights: Path | None,
    receipt: Path | None,
    as_json: bool,
) -> None:
    """Prints the scores of `samples` against `data`, or against statistics in `reference`.

    Raises:
        WetokError: neither or both given, no distance that can be measured, images that can't be
            read.
    """
    from wetok.commands.batch import progress
    from wetok.commands.measures import networks_for
    from wetok.config import WetokError
    from wetok.evaluate import receipt as receipts
    from wetok.evaluate.frechet import Moments
    from wetok.evaluate.generated import Images, Seen, compare
    from wetok.evaluate.protocols import protocol as find_protocol
    from wetok.weights import here

    if bool(data) == bool(reference):
        raise WetokError("--generated needs --data (real images) or --reference, one of the two")
    if len(data) > 1:
        raise WetokError("--generated takes one --data folder (or .npz file)")
    if receipt is not None and not receipt.absolute().parent.is_dir():
        raise WetokError(f"--receipt {receipt}: there is no such folder; make it")
    made = Images(samples)
    real = Images(data[0]) if data else None
    if frechet is None and (fid_weights is not None or here("inception-fid")):
        frechet = ["rfid", "rfid-torch-fidelity"]  # the second is the Inception score's
    networks = networks_for(["none"], frechet, fid_weights)
    if not networks.dims:
        raise WetokError(
            "--generated needs a feature network: wetok weights import FOLDER brings LPIPS-vgg "
            "(for fd-vgg) or the FID network"
        )
    chosen = find_protocol(protocol)
    moments = {str(one.about.get("features", "rfid")): one for one in map(Moments.load, reference)}
    with ExitStack() as stack:
        total = len(made) + (len(real) if real else 0)
        step = stack.enter_context(progress(total, "looking"))
        seen = Seen(networks, chosen, keep=real is not None, classes=True).add(made, step)
        against = Seen(networks, chosen, keep=True).add(real, step) if real else moments
    summary = compare(seen, against)
    if receipt is not None:
        names = [str(one) for one in reference]
        arguments: dict[str, Any] = {
            "generated": str(samples),
            "data": data,
            "reference": names,
            "protocol": protocol,
        }
        receipts.write(receipt, summary, arguments)
    _show(receipts.finite(summary), as_json)


def _show(summary: dict[str, Any], as_json: bool) -> None:
    from rich.table import Table

    from wetok.commands.tables import show, show_json

    if as_json:
        show_json(summary)
        return
    against = f"{summary['real']:,} images" if "real" in summary else "statistics from a file"
    table = Table(title=f"{summary['samples']:,} samples against {against}", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in summary.items():
        if name.startswith(("fid", "fd-")):
            table.add_row(name.replace("fid", "FID").replace("fd-", "FD-"), f"{value:.3f}")
        elif name.startswith(("precision", "recall")):
            table.add_row(name, f"{value:.3f}")
        elif name.endswith("inception_score_mean"):
            spread = summary[name.replace("_mean", "_std")]
            title = "Inception score" if name.startswith("i") else "Inception score, other weights"
            table.add_row(title, f"{value:.3f} +- {spread:.3f}")
    show(table)
    if "inception_score_missing" in summary:
        typer.echo(f"no Inception score: {summary['inception_score_missing']}")
    typer.echo(f"protocol {summary['protocol']}: {summary['protocol_description']}")
    hashes = [f"{name} {digest}" for name, digest in summary["frechet_weights"].items()]
    typer.echo(", ".join(hashes))
