"""`wetok export`: a model as programs that run without wetok."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wetok.commands import options

if TYPE_CHECKING:
    from wetok.export.programs import Shape


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", show_default=False, help="A shipped name, a model folder or a Hub id."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", show_default=False, help="Folder to write.")],
    format: Annotated[
        list[str] | None,
        typer.Option(
            help="onnx, torch (torch.export), aoti (compiled for this machine), or all; "
            "repeatable.  [default: onnx]"
        ),
    ] = None,
    part: Annotated[
        str, typer.Option(help="encoder (image to ids), decoder (ids to image), or both.")
    ] = "both",
    size: Annotated[
        str, typer.Option(help="dynamic, or H,W in pixels, multiples of the model's factor.")
    ] = "dynamic",
    batch: Annotated[str, typer.Option(help="dynamic, or a number of images.")] = "dynamic",
    allow_bits: Annotated[
        int, typer.Option(min=0, help="Bits of the ids that may differ by rounding.")
    ] = 0,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a model's encoder and decoder as programs that run without wetok.

    Each file is loaded again in its own runtime and run on the sample
    photographs: one whose ids differ from the model's is not written.

    Example: wetok export tiny-48x -o exported --format onnx
    """
    from wetok.commands.batch import progress
    from wetok.commands.tables import show, show_json
    from wetok.export.exporting import MANIFEST, export
    from wetok.export.formats import FORMATS

    wanted = list(FORMATS) if "all" in (format or []) else format or ["onnx"]
    parts = ["encoder", "decoder"] if part == "both" else [part]
    shape = _shape(size, batch)
    with progress(len(wanted) * len(parts), "exporting") as step:
        exports = export(
            options.load(model, "cpu"),
            out,
            wanted,  # type: ignore[arg-type]  # checked there
            parts,  # type: ignore[arg-type]
            shape,
            allow_bits=allow_bits,
            force=force,
            step=step,
        )
    if as_json:
        show_json(exports)
        return

    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("file", no_wrap=True)
    for heading in ("MB", "s", "images", "against the model"):
        table.add_column(heading, justify="left" if heading[0] == "a" else "right", no_wrap=True)
    for one in exports:
        table.add_row(
            str(out / one["file"]),
            f"{one['bytes'] / 1e6:.1f}",
            f"{one['seconds']:.0f}",
            str(sum(case["shape"][0] for case in one["checks"])),
            _told(one),
        )
    show(table)
    print(f"shapes, versions and checks: {out / MANIFEST}")


def _told(export: dict[str, Any]) -> str:
    checks = export["checks"]
    if export["part"] == "decoder":
        most = max(case["pixel_difference"] for case in checks)
        levels = max(case["levels"] for case in checks)
        return f"pixels within {most:.1g} of [-1,1], {levels} of 255 levels"
    bits = sum(case["bits"] for case in checks)
    differing = sum(case["bits_differing"] for case in checks)
    least = min(case["least_latent"] for case in checks)
    same = f"all {bits:,} bits equal" if not differing else f"{differing} of {bits:,} bits differ"
    return f"{same}, the nearest {least:.1g} from 0"


def _shape(size: str, batch: str) -> Shape:
    import re

    from wetok.config import WetokError
    from wetok.export.programs import Shape

    sides: tuple[int | None, int | None] = (None, None)
    if size != "dynamic":
        match = re.fullmatch(r"([1-9]\d{0,5})[,x]([1-9]\d{0,5})", size)
        if match is None:
            raise WetokError(f"--size {size} must be dynamic or H,W in pixels, such as 256,256")
        sides = int(match[1]), int(match[2])
    if batch != "dynamic" and not re.fullmatch(r"[1-9]\d{0,5}", batch):
        raise WetokError(f"--batch {batch} must be dynamic or a number of images from 1 on")
    return Shape(None if batch == "dynamic" else int(batch), *sides)
