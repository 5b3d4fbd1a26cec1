"""`wetok compare`: models and classical codecs at equal bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wetok.commands import options
from wetok.commands.measures import digits_of, networks_for, networks_used, number, title_of

if TYPE_CHECKING:
    from wetok.evaluate.codecs import Codec
    from wetok.evaluate.comparison import Comparison

RESULTS, PLOT = "compare.json", "rate-distortion.png"


def command(
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", "-d", show_default=False, help="Photographs or a folder; repeatable."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A shipped name, a model folder, a Hub id, or another's system (see "
            f"docs/other-tokenizers.md); repeatable.  [default: {options.DEFAULT_MODEL}]",
        ),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(
            help="jpeg, webp, avif, jpeg2000, jxl or none; repeatable.  [default: those here]"
        ),
    ] = None,
    budget_of: Annotated[
        list[str] | None,
        typer.Option(
            help="Model whose bytes the codecs get, by the name in the table; repeatable.  "
            "[default: each model's]"
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="modern-256, original or paper-256; as eval has them.")
    ] = "modern-256",
    lpips: options.Lpips = None,
    frechet: options.Frechet = None,
    fid_weights: options.FidWeights = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for plots, crops and all numbers as JSON."),
    ] = None,
    curves: Annotated[
        bool,
        typer.Option(help="With --out: score codecs at several qualities too, for the plots."),
    ] = True,
    crops: Annotated[
        int,
        typer.Option(
            min=0, help="With --out: images shown where a model is better, and where worse."
        ),
    ] = 3,
    force: options.Force = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Compare models with one another, and with JPEG, WebP, AVIF, ... at equal bytes.

    For each image a codec takes its highest quality in as many bytes as the
    model's file for that image. torchrun spreads the images over several
    processes.

    Example: wetok compare -m tiny-48x --codec webp --data photos/val -o out
    """
    from wetok.commands.batch import progress
    from wetok.config import WetokError
    from wetok.data.images import find_images
    from wetok.distributed import rank
    from wetok.evaluate.comparison import Comparison
    from wetok.evaluate.others import open_system
    from wetok.evaluate.processes import joined
    from wetok.evaluate.protocols import protocol as find_protocol
    from wetok.memory import keep_freed_memory

    keep_freed_memory()
    if not data:
        raise WetokError(
            "--data is missing: name a folder of photographs (see wetok compare --help)"
        )
    names = model or [options.DEFAULT_MODEL]
    asked: dict[str, Any] = {
        "data": [str(path) for path in data],
        "models": names,
        "protocol": protocol,
        "seed": seed,
        "budget_of": budget_of,
    }
    with joined(device) as own_device:
        chosen, known = find_protocol(protocol), _codecs(codec)
        if out is not None:
            _check_out(out, force)
        networks = networks_for(lpips, frechet, fid_weights)
        paths = find_images(data)
        comparison = Comparison(
            [open_system(name, own_device) for name in names],
            known,
            chosen,
            networks,
            seed,
            budget_of,
            curves=curves and out is not None,
            crops=crops if out is not None else 0,
        )
        with progress(len(paths), "comparing") as step:
            comparison.add_all(paths, step)
        comparison.gather()
        if rank():
            raise typer.Exit(0)
        for line in comparison.failures:
            typer.echo(f"wetok: {line}", err=True)
        asked = {**asked, "codecs": [one.name for one in known], **networks_used(networks)}
        results = {"arguments": asked, **comparison.results()}
        if out is not None:
            _write(comparison, results, out)
        _show(results, as_json)
        if out is not None:
            typer.echo(f"plots, crops and numbers: {out}", err=True)
        if comparison.failures:
            raise typer.Exit(1)


def _codecs(names: list[str] | None) -> list[Codec]:
    """Those asked for, each once; by default all that Pillow has here.

    Raises:
        WetokError: an unknown one, or one that is not here.
    """
    from wetok.evaluate.codecs import codec, codecs_here

    wanted = codecs_here() if names is None else [name for name in names if name != "none"]
    return [codec(name) for name in dict.fromkeys(wanted)]


def _check_out(out: Path, force: bool) -> None:
    """Before the scoring: that what it finds can be written.

    Raises:
        WetokError: a file, or results that are there already; no matplotlib.
    """
    from wetok.config import WetokError
    from wetok.evaluate.plots import check_matplotlib

    if out.exists() and not out.is_dir():
        raise WetokError(f"--out {out}: a file; name a folder")
    if (out / RESULTS).exists() and not force:
        raise WetokError(f"{out / RESULTS} exists: give --force to overwrite, or another --out")
    check_matplotlib()


def _write(comparison: Comparison, results: dict[str, Any], out: Path) -> None:
    """Plots, a sheet of crops a model, and the numbers last: where they are, all is."""
    from wetok.checkpoint import written_beside
    from wetok.commands.picture import save_png
    from wetok.evaluate.plots import draw_rate_distortion

    out.mkdir(parents=True, exist_ok=True)
    draw_rate_distortion(results, out / PLOT)
    for contest, crops in zip(results["contests"], comparison.crops, strict=False):
        if any(crops.strips()):
            contest["crops"] = crops.about()
            contest["sheet"] = f"crops-{_file_name(contest['model']['model'])}.png"
            save_png(crops.sheet(), out / contest["sheet"])
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    with written_beside(out / RESULTS) as beside:
        beside.write_text(text + "\n", "utf-8")


def _file_name(model: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in model)


def _show(results: dict[str, Any], as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from wetok.commands.tables import show, show_json

    if as_json:
        show_json(results)
        return
    models = [contest["model"] for contest in results["contests"]]
    together = all(not contest["codecs"] for contest in results["contests"])
    groups = (
        [(models, [])] if together else [([c["model"]], c["codecs"]) for c in results["contests"]]
    )
    for own, codecs in groups:
        rows = [*own, *codecs]
        scores = [name for name in rows[0] if digits_of(name) is not None]
        names = ", ".join(one["model"] for one in own)
        title = f"{escape(names)} on {own[0]['images']} images"
        title += ", codecs at its bytes" if codecs else ""
        table = Table(title=title, title_justify="left")
        for heading in ("", "bytes an image", "bpp", "of that payload", *map(title_of, scores)):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for row in rows:
            table.add_row(*_row(row, rows, scores))
        show(table)
        for note in _notes(own, codecs):
            typer.echo(note)
    for contest in results["contests"]:
        if contest["no_size"]:
            typer.echo(f"{contest['model']['model']} has no size in bytes: no codec at its bytes")
    about = models[0]
    typer.echo(f"protocol {about['protocol']}: {about['protocol_description']}")


def _row(row: dict[str, Any], rows: list[dict[str, Any]], scores: list[str]) -> list[str]:
    """One line of a table; what is best of all lines is bold."""
    from rich.markup import escape

    rate = row["bpp"] if row["coded_bpp"] is None else row["coded_bpp"]
    over = row.get("too_large", 0)
    cells = [
        escape(row.get("title", row["model"])) + (" *" if over else ""),
        "-" if row["bytes"] is None else f"{row['bytes']:,.0f}",
        number(rate, 3),
        number(row["payload_bpp"], 3),
    ]
    for name in scores:
        text = number(row.get(name), digits_of(name) or 0)
        cells.append(f"[bold]{text}[/bold]" if _is_best(row, rows, name) else text)
    return cells


def _is_best(row: dict[str, Any], rows: list[dict[str, Any]], name: str) -> bool:
    from wetok.evaluate.evaluation import is_lower_better

    values = [float(one[name]) for one in rows if one.get(name) is not None]
    if len(values) < 2 or row.get(name) is None:
        return False
    return float(row[name]) == (min(values) if is_lower_better(name) else max(values))


def _notes(own: list[dict[str, Any]], codecs: list[dict[str, Any]]) -> list[str]:
    notes = []
    for row in codecs:
        if row["too_large"]:
            notes.append(
                f"* {row['title']}: its smallest file was still larger than the model's for "
                f"{row['too_large']} of {row['images']} images; in all {row['bytes_ratio']:.2f} "
                "times the model's bytes"
            )
    for row in [*own[1:], *codecs]:
        if row["image_list_hash"] != own[0]["image_list_hash"]:
            name = row.get("title", row["model"])
            notes.append(
                f"{name} was scored on other images ({row['images']}; {own[0]['model']} on "
                f"{own[0]['images']}): not comparable"
            )
    return notes
