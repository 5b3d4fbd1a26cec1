"""`wetok detokenize`: token shards back to images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wetok.commands import options

if TYPE_CHECKING:
    from wetok.model.tokenizer import Tokenizer
    from wetok.tokenize.back import Shard


def command(
    shards: Annotated[
        list[Path],
        typer.Argument(
            metavar="SHARDS",
            show_default=False,
            help="Token shards (.parquet or .tar), or folders of them.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("out"),
    file_format: Annotated[
        str, typer.Option("--format", help="png, jpg, webp, or webdataset (PNGs in tars).")
    ] = "png",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model; by default the one that the shards name."),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Turn token shards back into images.

    Files are called as their keys. What is there already is left, so
    that the same command goes on where it was ended. The shards say
    which model made them, and another is refused.

    Example: wetok detokenize tokens -o back --format png
    """
    from wetok.commands.batch import ALL_FAILED, SOME_FAILED, progress
    from wetok.config import WetokError
    from wetok.tokenize.back import Names, Shard, check_format, shard_files, write_files, write_tar

    chosen = check_format(file_format)
    files = shard_files(shards)
    if out.resolve() in {file.resolve().parent for file in files}:
        raise WetokError(f"--out {out} holds the shards: name another folder")
    opened: list[Shard] = []
    problems: list[str] = []
    for file in files:
        try:
            opened.append(Shard.open(file))
        except WetokError as error:
            problems.append(str(error))
    if not opened:
        raise WetokError(problems[0])
    tokenizer = _tokenizer(opened, model, device, precision)
    made = left = 0
    names = None if chosen == "webdataset" else Names(opened)
    with progress(len(opened), "decoding") as advance:
        for shard in opened:
            try:
                work = (
                    write_tar(shard, tokenizer, out, seed)
                    if names is None
                    else write_files(shard, names, tokenizer, out, chosen, seed)
                )
                for new in work:
                    made, left = made + new, left + (not new)
            except WetokError as error:
                problems.append(str(error))
            advance()
    kept = f"; {left:,} {'shards' if names is None else 'files'} were there" if left else ""
    print(f"{made:,} images -> {out}{kept}")
    if problems:
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        raise typer.Exit(SOME_FAILED if made or left else ALL_FAILED)


def _tokenizer(opened: list[Shard], model: str | None, device: str, precision: str) -> Tokenizer:
    from wetok.config import WetokError

    made_by = opened[0].model
    for shard in opened:
        if shard.model.fingerprint != made_by.fingerprint:
            raise WetokError(
                f"{shard.path} was made by {shard.model.name!r}, {opened[0].path} by "
                f"{made_by.name!r}: take them one by one"
            )
    try:
        tokenizer = options.load(model or made_by.name, device, precision)
    except WetokError as error:
        if model is not None:
            raise
        raise WetokError(
            f"made by model {made_by.name!r}, which is not at hand ({error}): give it with -m"
        ) from None
    tokenizer.check_model(made_by)
    return tokenizer
