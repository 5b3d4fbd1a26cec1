"""`wetok shapes`: a small class-labelled set to try generators on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Argument(show_default=False, help="Folder to write to.")],
    count: Annotated[int, typer.Option(min=12, help="Images, classes in turns.")] = 2400,
    side: Annotated[int, typer.Option(min=16, help="Pixels a side.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Another one gives other images.")] = 0,
) -> None:
    """Draw images of twelve classes, a folder each.

    Circles, crosses, squares and triangles in blue, green and red: a
    data set that anyone can make, for trying generators.

    Example: wetok shapes data/shapes --count 2400
    """
    from wetok.commands.batch import progress
    from wetok.config import WetokError
    from wetok.data.drawn import CLASSES, write_drawn

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WetokError(f"{out} is there and not empty: name another folder")
    with progress(count, "drawing") as step:
        for _ in write_drawn(out, count, side, seed):
            step()
    typer.echo(f"{count:,} images of {len(CLASSES)} classes in {out}")
