"""`wetok encode`: photographs to .wetok files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wetok.commands import options


def command(
    inputs: options.Images,
    model: options.Model = options.DEFAULT_MODEL,
    out: options.Out = Path("out"),
    coding: Annotated[
        str,
        typer.Option(help="auto, packed (fixed length) or entropy; auto takes the smallest."),
    ] = "auto",
    tiles: options.Tiles = "auto",
    precision: options.Precision = "auto",
    force: options.Force = False,
    device: options.Device = "auto",
) -> None:
    """Turn photographs into .wetok files.

    What can't be read is listed at the end, the others go on, and the
    exit code is then 1.

    Example: wetok encode photos/ cat.jpg -o tokens
    """
    from dataclasses import replace
    from typing import cast, get_args

    from wetok.codec.file import Coding
    from wetok.commands.batch import Job, plan
    from wetok.commands.picture import is_grey
    from wetok.config import WetokError
    from wetok.data.images import find_images
    from wetok.model.pixels import open_image
    from wetok.model.tiling import Mode, Tiling

    if coding not in get_args(Coding):
        raise WetokError(f"--coding {coding!r} must be one of {', '.join(get_args(Coding))}")
    batch = plan(inputs, out, ".wetok", find_images, force=force)
    tiling = Tiling.of(cast(Mode, tiles))
    tokenizer = options.load(model, device, precision, tiles=tiles)

    def work(job: Job) -> str:
        image = open_image(job.source, unlimited=tiling.mode in ("fast", "exact"))
        job.target.parent.mkdir(parents=True, exist_ok=True)
        tokens = replace(tokenizer.encode(image, tiles=tiling), grey=is_grey(image))
        tokens.save(job.target, cast(Coding, coding))
        size = job.target.stat().st_size
        bpp = 8 * size / (image.width * image.height)
        told = "" if tokens.uncertain is None else f", {tokens.uncertain:.2%} of bits uncertain"
        return (
            f"{job.source} -> {job.target}  "
            f"{image.width}x{image.height}, {size:,} bytes, {bpp:.3f} bits a pixel{told}"
        )

    batch.run(work, doing="encoding")
