"""`wetok demo`: the sample photographs through models, in numbers and in one picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from wetok.commands import options

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    from wetok.commands.scores import Score
    from wetok.model.tokenizer import Tokenizer

PHOTOS = Path(__file__).parent.parent / "assets" / "photos"


def command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A shipped name, a model folder or a Hub id; repeatable.  "
            "[default: all in the package]",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for demo.png.")] = Path("out"),
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> None:
    """Send the sample photographs through models; print numbers, write a picture.

    One model: a line for each photograph. Several: a line for each model, means.

    bpp: the tokens' bits for each pixel. ratio: 24-bit RGB against that.

    Example: wetok demo
    """
    from PIL import Image

    from wetok import checkpoint
    from wetok.commands.picture import Labelled, save_png, side_by_side
    from wetok.commands.tables import show
    from wetok.config import WetokError
    from wetok.data.images import find_images, load_image

    if out.exists() and not out.is_dir():
        raise WetokError(f"--out {out}: a file; name a folder, demo.png is written into it")
    photos = {path.stem: load_image(path) for path in find_images(PHOTOS)}
    rows = [[Labelled(photo, name)] for name, photo in photos.items()]
    models: list[list[Pass]] = []
    for name in model or checkpoint.shipped():
        tokenizer = options.load(name, device)
        # The first call sets up memory and threads; it is not what encoding takes.
        tokenizer.decode(tokenizer.encode(Image.new("RGB", (64, 64))))
        passes = [there_and_back(tokenizer, stem, photo, seed) for stem, photo in photos.items()]
        models.append(passes)
        for row, done in zip(rows, passes, strict=True):
            label = f"{tokenizer.name}, {done.size:,} bytes, {done.score.psnr:.2f} dB"
            row.append(Labelled(done.image, label))
    if len(models) == 1:
        show(table(passes, f"{tokenizer.name} on {tokenizer.device}"))
    else:
        means = [_mean(passes) for passes in models]
        show(table(means, f"means of {len(photos)} photographs on {tokenizer.device}", "model"))
    save_png(side_by_side(rows, "Photographs, and what comes back"), out / "demo.png")
    print(f"picture: {out / 'demo.png'}")
    print("next:    wetok reconstruct YOUR_PHOTOS --side-by-side")


class Pass(NamedTuple):
    """A photograph through a model, or the mean of several."""

    model: str
    photo: str
    pixels: float
    bits: int
    score: Score
    encode_seconds: float
    decode_seconds: float
    image: Image.Image

    @property
    def size(self) -> int:
        """Bytes that the bits take."""
        return -(-self.bits // 8)


def there_and_back(tokenizer: Tokenizer, name: str, photo: Image.Image, seed: int) -> Pass:
    """The photograph through the model, with what it took."""
    from wetok.commands.scores import score

    start = time.perf_counter()
    tokens = tokenizer.encode(photo)
    middle = time.perf_counter()
    (image,) = tokenizer.decode(tokens, seed=seed)
    end = time.perf_counter()
    bits = tokens.ids.numel() * tokens.group_bits
    pixels = photo.width * photo.height
    told = score(photo, image)
    return Pass(tokenizer.name, name, pixels, bits, told, middle - start, end - middle, image)


def table(passes: list[Pass], title: str, first: str = "photo") -> Table:
    """A line for each pass, named by its model or its photograph."""
    from rich.table import Table

    found = Table(title=title, title_justify="left")
    found.add_column(first, no_wrap=True)
    for heading in ("bytes", "bpp", "ratio", "PSNR dB", "SSIM", "encode s", "decode s"):
        found.add_column(heading, justify="right", no_wrap=True)
    for one in passes:
        bpp = one.bits / one.pixels
        photo = f"{one.photo} {one.image.width}x{one.image.height}"
        found.add_row(
            photo if first == "photo" else one.model,
            f"{one.size:,}",
            f"{bpp:.3f}",
            f"{24 / bpp:.1f}",
            f"{one.score.psnr:.2f}",
            "-" if one.score.ssim is None else f"{one.score.ssim:.3f}",
            f"{one.encode_seconds:.2f}",
            f"{one.decode_seconds:.2f}",
        )
    return found


def _mean(passes: list[Pass]) -> Pass:
    """Of one model's."""
    from statistics import mean

    from wetok.commands.scores import Score

    ssim = [one.score.ssim for one in passes if one.score.ssim is not None]
    return passes[0]._replace(
        pixels=mean(one.pixels for one in passes),
        bits=round(mean(one.bits for one in passes)),
        score=Score(mean(one.score.psnr for one in passes), mean(ssim) if ssim else None),
        encode_seconds=mean(one.encode_seconds for one in passes),
        decode_seconds=mean(one.decode_seconds for one in passes),
    )
