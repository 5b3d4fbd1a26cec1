"""`wetok reconstruct`: photographs to tokens and back, in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wetok.commands import options


def command(
    inputs: options.Images,
    model: options.Model = options.DEFAULT_MODEL,
    out: options.Out = Path("out"),
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Write the original beside the reconstruction.")
    ] = False,
    seed: options.Seed = 0,
    tiles: options.Tiles = "auto",
    precision: options.Precision = "auto",
    force: options.Force = False,
    device: options.Device = "auto",
) -> None:
    """Send photographs to tokens and back; write PNGs of exactly the same size.

    What can't be read is listed at the end, the others go on, and the
    exit code is then 1.

    Example: wetok reconstruct photos/ -o out --side-by-side
    """
    from typing import cast

    from wetok.commands.batch import Job, plan
    from wetok.commands.picture import Labelled, save_png
    from wetok.commands.picture import side_by_side as beside
    from wetok.commands.scores import score
    from wetok.data.images import find_images
    from wetok.model.pixels import open_image
    from wetok.model.tiling import Mode, Tiling

    batch = plan(inputs, out, ".png", find_images, force=force)
    tiling = Tiling.of(cast(Mode, tiles))
    tokenizer = options.load(model, device, precision, tiles=tiles)

    def work(job: Job) -> str:
        original = open_image(job.source, unlimited=tiling.mode in ("fast", "exact"))
        tokens = tokenizer.encode(original, tiles=tiling)
        (image,) = tokenizer.decode(tokens, seed=seed, tiles=tiling)
        told = score(original, image)
        if side_by_side:
            label = f"{tokenizer.name}: {told}"
            row = Labelled(original, job.source.name), Labelled(image, label)
            save_png(beside([row]), job.target)
        else:
            save_png(image, job.target)
        return f"{job.source} -> {job.target}  {original.width}x{original.height}, {told}"

    batch.run(work, doing="reconstructing")
