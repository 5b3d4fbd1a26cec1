"""`wetok coding`: learns how to write a model's tokens in fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wetok.commands import options


def command(
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="INPUT", help="Photographs or folders; repeat for more."),
    ],
    model: options.Model = options.DEFAULT_MODEL,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Model folder to put the tables in; default: the model."),
    ] = None,
    hidden: Annotated[
        int, typer.Option(min=0, max=256, help="Size of the networks; larger is slower, smaller.")
    ] = 48,
    steps: Annotated[int, typer.Option(min=20, help="Batches for each network.")] = 1000,
    side: Annotated[int, typer.Option(min=64, help="Larger photographs are cropped to this.")] = (
        1024
    ),
    force: options.Force = False,
    device: options.Device = "auto",
) -> None:
    """Learn tables by which a model's .wetok files get smaller.

    They are written to the model's folder as coding.safetensors, and `encode`
    uses them from then on. Files written with them are read with the same
    tables only, so they travel with the model.

    Example: wetok coding -m models/mine --data photos
    """
    from wetok import checkpoint
    from wetok.codec.context import phases
    from wetok.codec.learn import LEVELS, learn
    from wetok.commands.batch import progress
    from wetok.config import WetokError
    from wetok.data.images import find_images, load_image

    folder = out if out is not None else checkpoint.find_folder(model)
    if not (folder / checkpoint.CONFIG).is_file():
        raise WetokError(f"--out {folder}: not a model folder: it has no {checkpoint.CONFIG}")
    target = folder / checkpoint.TABLES
    if target.exists() and not force:
        raise WetokError(
            f"{target} exists, and files may have been written with it: give --force to replace it"
        )
    tokenizer = options.load(model, device)
    photographs = [path for given in data for path in find_images(given)]
    samples = []
    with progress(len(photographs), "encoding") as advance:
        for path in photographs:
            image = load_image(path)
            left, top = (max(0, (length - side) // 2) for length in image.size)
            box = (left, top, min(left + side, image.width), min(top + side, image.height))
            samples.append(tokenizer.encode(image.crop(box)).ids[0].numpy())
            advance()
    config = tokenizer.config
    with progress(config.groups * len(phases(LEVELS)), "learning") as advance:
        tables = learn(
            samples, config.group_bits, hidden=hidden, steps=steps, progress=lambda _: advance()
        )
    with checkpoint.written_beside(target) as beside:
        beside.write_bytes(tables.data)
    bits = sum(sample.size for sample in samples) * config.group_bits
    print(f"{target}  {len(tables.data):,} bytes, learned from {bits:,} bits of tokens")
