"""`wetok decode`: .wetok files to PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wetok.commands import options


def command(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", show_default=False, help=".wetok files, or folders of them."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model; by default the one that the file names."),
    ] = None,
    out: options.Out = Path("out"),
    seed: options.Seed = 0,
    groups: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=False, help="Decode the first so many groups only: a coarse look."
        ),
    ] = None,
    tiles: options.Tiles = "auto",
    precision: options.Precision = "auto",
    force: options.Force = False,
    device: options.Device = "auto",
) -> None:
    """Turn .wetok files back into photographs.

    A file says which model made it, and another is refused.
    A file of several images gives NAME.png, NAME.1.png and so on;
    greyscale photographs come back as greyscale PNGs.

    Example: wetok decode tokens/cat.wetok -o out
    """
    from typing import cast

    from wetok.codec.file import opened
    from wetok.codec.tokens import ModelRef, Tokens
    from wetok.commands.batch import Job, files_in, plan
    from wetok.commands.picture import save_png
    from wetok.config import WetokError
    from wetok.model.tiling import Mode, Tiling
    from wetok.model.tokenizer import Tokenizer

    batch = plan(inputs, out, ".png", lambda path: files_in(path, ".wetok"), force=force)
    tiling = Tiling.of(cast(Mode, tiles))
    loaded: dict[str, Tokenizer] = {}
    written: set[Path] = set()

    def tokenizer_for(name: str) -> Tokenizer:
        if name not in loaded:
            try:
                loaded[name] = options.load(name, device, precision, tiles=tiles)
            except WetokError as error:
                if model is not None:
                    raise
                told = f" ({error})" if "/" in name else ""  # what the Hub said is worth knowing
                raise WetokError(
                    f"made by model {name!r}, which is not at hand{told}: give its folder with -m"
                ) from None
        return loaded[name]

    if model is not None:
        tokenizer_for(model)  # a wrong --model is one mistake, not one for each file

    def work(job: Job) -> str:
        with opened(job.source) as file:
            header = file.headers[0]
        tokenizer = tokenizer_for(model or header.name)
        tokenizer.check_model(ModelRef(header.name, header.fingerprint))
        every = Tokens.load_all(job.source, tokenizer.tables, groups)
        targets = [
            job.target.with_suffix(f".{number}.png") if number else job.target
            for number in range(sum(len(tokens) for tokens in every))
        ]
        for target in targets:
            if target in written or (target.exists() and not force):
                raise WetokError(f"{job.source}: {target} exists; give another --out")
        images = [
            image.convert("L") if tokens.grey else image
            for tokens in every
            for image in tokenizer.decode(tokens, seed=seed, tiles=tiling)
        ]
        for image, target in zip(images, targets, strict=True):
            save_png(image, target)
            written.add(target)
        height, width = header.size
        more = f" (and {len(images) - 1} more)" if len(images) > 1 else ""
        return f"{job.source} -> {job.target}{more}  {width}x{height}"

    batch.run(work, doing="decoding")
