"""`wetok shapes`: a small class-labelled set to try generators on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    out: Annotated[Path, typer.Argument(show_default=False, help="Folder to write to.")],
    kind: Annotated[
        Literal["drawn", "digits"],
        typer.Option(help="drawn: as many as you like; digits: scikit-learn's, 1,797 in all."),
    ] = "drawn",
    count: Annotated[
        int | None,
        typer.Option(min=12, help="Drawn images, classes in turns.  [default: 2400]"),
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(min=16, help="Pixels a side.  [default: 64; of digits 32]"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Another one draws other images.  [default: 0]"),
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Of digits every fifth, instead of the others.")
    ] = False,
) -> None:
    """Write images of a few classes, a folder each.

    Circles, crosses, squares and triangles in blue, green and red: a
    data set that anyone can make, for trying generators. Or digits
    that people wrote (needs scikit-learn).

    Example: wetok shapes data/shapes --count 2400
    """
    from wetok.commands.batch import progress
    from wetok.config import WetokError
    from wetok.data.digits import DIGITS, write_digits
    from wetok.data.drawn import CLASSES, write_drawn

    if kind == "digits":
        for name, value in (("count", count), ("seed", seed)):
            if value is not None:
                raise WetokError(f"--{name} {value} is for drawn shapes; digits are what they are")
    elif held_out:
        raise WetokError("--held-out is for digits; of drawn shapes take another --seed")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WetokError(f"{out} is there and not empty: name another folder")
    if kind == "digits":
        written, classes = sum(1 for _ in write_digits(out, side or 32, held_out)), len(DIGITS)
    else:
        written, classes = 2400 if count is None else count, len(CLASSES)
        with progress(written, "drawing") as step:
            for _ in write_drawn(out, written, side or 64, seed or 0):
                step()
    typer.echo(f"{written:,} images of {classes} classes in {out}")
