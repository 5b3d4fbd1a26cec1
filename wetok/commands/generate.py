"""`wetok generate`: new images from a generator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wetok.commands import options

if TYPE_CHECKING:
    from wetok.generate.config import GeneratorConfig
    from wetok.generate.sampling import Sampling
    from wetok.model.tokenizer import Tokenizer


def command(
    generator: Annotated[
        Path, typer.Argument(show_default=False, help="Folder of a generator: runs/NAME/model.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write to; or a .npz or .png file.")
    ] = Path("out"),
    count: Annotated[
        int,
        typer.Option("--count", "-n", min=1, help="Images of each class; without classes, in all."),
    ] = 4,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Numbers or names, with commas; 3-7 for several.  [default: all, at most 10]"
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Model to decode with, where the generator's note does not lead to it."),
    ] = None,
    file_format: Annotated[
        str, typer.Option("--format", help="png, or wetok: files of tokens.")
    ] = "png",
    temperature: Annotated[
        str, typer.Option(help="Below 1: likelier images; one for all groups, or one each.")
    ] = "1",
    top_k: Annotated[str, typer.Option(help="Draw from so many codes only; 0: all.")] = "0",
    top_p: Annotated[
        str, typer.Option(help="Draw from the likeliest codes of this probability; 1: all.")
    ] = "1",
    guidance: Annotated[
        str, typer.Option(help="Beyond 1: nearer to the class, less varied.")
    ] = "1",
    schedule: Annotated[
        str, typer.Option(help="Of guidance: constant, linear or cosine (rising from 1).")
    ] = "constant",
    rounds: Annotated[int, typer.Option(min=1, help="Of a masked generator.")] = 16,
    noise: Annotated[
        float, typer.Option(min=0, help="Of a masked generator: how freely it settles ids.")
    ] = 4.5,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the first image; the others follow from it.")
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    device: options.Device = "auto",
) -> None:
    """Make new images with a generator.

    A folder gets CLASS-SEED.png (or .wetok) for each; one .png file gets
    a sheet, a row a class; one .npz file gets all images as evaluators
    take them: arr_0, uint8 [N,H,W,3], and their labels as arr_1.
    The same seed gives the same image, whatever the batch.

    Example: wetok generate runs/shapes/model --guidance 2 -o sheet.png
    """
    import numpy as np
    import torch
    from PIL import Image

    from wetok.checkpoint import written_beside
    from wetok.commands.batch import progress
    from wetok.config import WetokError
    from wetok.data.images import to_uint8
    from wetok.generate.folder import load_generator
    from wetok.generate.pictures import as_tokens, decode_ids, sheet
    from wetok.generate.sampling import sample

    if file_format not in ("png", "wetok"):
        raise WetokError(f"--format {file_format!r} must be png or wetok")
    single = out.suffix.lower() in (".png", ".npz")
    if single and file_format == "wetok":
        raise WetokError(f"--format wetok writes a folder, and --out {out} is one file")
    loaded, name = load_generator(generator)
    config = loaded.config
    labels = _labels(classes, config)
    sampling = _sampling(
        temperature, top_k, top_p, guidance, schedule=schedule, rounds=rounds, noise=noise
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded.to(device)
    decoder = _tokenizer(tokenizer, config, device)
    jobs = [
        (label, seed + count * number + index)
        for number, label in enumerate(labels)
        for index in range(count)
    ]
    if not single:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WetokError(f"--out {out}: can't be made: {error.strerror}") from None
    elif not out.absolute().parent.is_dir():
        raise WetokError(f"--out {out}: there is no folder {str(out.parent)!r}; make it")
    images: list[Any] = []
    with progress(len(jobs), "generating") as step:
        for first in range(0, len(jobs), batch):
            part = jobs[first : first + batch]
            seeds = [one for _, one in part]
            wanted = [label for label, _ in part] if config.classes else None
            ids = sample(loaded, seeds, wanted, sampling).cpu()
            if file_format == "wetok":
                for one, (label, own) in zip(ids.split(1), part, strict=True):
                    as_tokens(decoder, one).save(out / f"{_name(label, own, config)}.wetok")
                    step()
                continue
            pixels = to_uint8(decode_ids(decoder, ids, None, seeds)).permute(0, 2, 3, 1).numpy()
            for array, (label, own) in zip(pixels, part, strict=True):
                if single:
                    images.append(array)
                else:
                    target = out / f"{_name(label, own, config)}.png"
                    with written_beside(target) as beside:
                        Image.fromarray(array).save(beside, format="PNG")
                step()
    if single:
        with written_beside(out) as beside, open(beside, "wb") as file:
            if out.suffix.lower() == ".npz":
                own_labels = np.array([label for label, _ in jobs])
                np.savez(file, np.stack(images), own_labels)
            else:
                columns = count if config.classes else None
                sheet([Image.fromarray(one) for one in images], columns).save(file, format="PNG")
    typer.echo(f"{len(jobs):,} images by {name} -> {out}")


def _labels(text: str | None, config: GeneratorConfig) -> list[int]:
    """The classes asked for, by number; of an unconditional generator its only one."""
    from wetok.config import WetokError, near

    if not config.classes:
        if text is not None:
            raise WetokError(f"--classes {text}: this generator is unconditional; leave it out")
        return [0]
    if text is None:
        most = min(10, config.classes) if config.classes > 12 else config.classes
        return [number * config.classes // most for number in range(most)]
    labels: list[int] = []
    for word in filter(None, (one.strip() for one in text.split(","))):
        first, dash, last = word.partition("-")
        if word in config.class_names:
            labels.append(config.class_names.index(word))
        elif word.isdecimal():
            labels.append(int(word))
        elif dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last):
            labels += range(int(first), min(int(last), config.classes) + 1)
        else:
            known = list(config.class_names)
            told = near(word, known) if known else f"; give numbers below {config.classes}"
            raise WetokError(f"--classes: no class {word!r}{told}")
    wrong = [label for label in labels if label >= config.classes]
    if wrong or not labels:
        raise WetokError(
            f"--classes {text}: must be in 0-{config.classes - 1}"
            + (f", {wrong[0]} is not" if wrong else "; none is given")
        )
    return labels


def _sampling(temperature: str, top_k: str, top_p: str, guidance: str, **rest: Any) -> Sampling:
    from wetok.generate.sampling import Sampling

    return Sampling(
        temperature=_numbers("temperature", temperature, float),
        top_k=_numbers("top-k", top_k, int),
        top_p=_numbers("top-p", top_p, float),
        guidance=_numbers("guidance", guidance, float),
        **rest,
    )


def _numbers(name: str, text: str, kind: type) -> Any:
    """One number, or one a group, with commas."""
    from wetok.config import WetokError

    try:
        values = tuple(kind(word) for word in text.split(","))
    except ValueError:
        raise WetokError(f"--{name} {text!r} must be a number, or one a group: 1,0.9,...") from None
    return values if len(values) > 1 else values[0]


def _tokenizer(given: str | None, config: GeneratorConfig, device: str) -> Tokenizer:
    """The model that made the tokens this generator learned from.

    Raises:
        WetokError: it can't be had, or is another one.
    """
    from wetok.config import WetokError

    name = given or config.tokenizer
    if name is None:
        raise WetokError("--tokenizer is missing: this generator does not note its tokenizer")
    try:
        found = options.load(name, device)
    except WetokError as error:
        raise WetokError(f"{error}; name the tokenizer with --tokenizer") from None
    if config.fingerprint not in (None, found.fingerprint, *found.model.decodes):
        raise WetokError(
            f"--tokenizer {name} has the fingerprint {found.fingerprint}; this generator learned "
            f"from tokens of {config.tokenizer} ({config.fingerprint})"
        )
    own = found.config
    if (own.groups, own.group_bits) != (config.groups, config.group_bits):
        raise WetokError(
            f"--tokenizer {name} has {own.groups} groups of {own.group_bits} bits; this generator "
            f"makes {config.groups} of {config.group_bits}"
        )
    return found


def _name(label: int, seed: int, config: GeneratorConfig) -> str:
    """CLASS-SEED, or SEED without classes; safe as a file's name."""
    if not config.classes:
        return f"{seed:06}"
    name = config.class_names[label] if config.class_names else f"{label:03}"
    safe = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in name)
    return f"{safe}-{seed:06}"
