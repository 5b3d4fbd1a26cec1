"""`wetok demo`: the sample photographs through a model, in numbers and in one picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from wetok.commands import options

PHOTOS = Path(__file__).parent.parent / "assets" / "photos"


def command(
    model: options.Model = options.DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for demo.png.")] = Path("out"),
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> None:
    """Send the sample photographs through a model; print numbers, write a picture.

    bpp: the tokens' bits for each pixel. ratio: 24-bit RGB against that.

    Example: wetok demo
    """
    from PIL import Image
    from rich.table import Table

    from wetok.commands.picture import Pair, save_png, side_by_side
    from wetok.commands.scores import score
    from wetok.commands.tables import show
    from wetok.config import WetokError
    from wetok.data.images import find_images, load_image

    if out.exists() and not out.is_dir():
        raise WetokError(f"--out {out}: a file; name a folder, demo.png is written into it")
    tokenizer = options.load(model, device)
    # The first call sets up memory and threads; it is not what encoding takes.
    tokenizer.decode(tokenizer.encode(Image.new("RGB", (64, 64))))

    table = Table(title=f"{tokenizer.name} on {tokenizer.device}", title_justify="left")
    table.add_column("photo", no_wrap=True)
    for heading in ("size", "bytes", "bpp", "ratio", "PSNR dB", "SSIM", "encode s", "decode s"):
        table.add_column(heading, justify="right", no_wrap=True)
    pairs = []
    for path in find_images(PHOTOS):
        photo = load_image(path)
        start = time.perf_counter()
        tokens = tokenizer.encode(photo)
        middle = time.perf_counter()
        (image,) = tokenizer.decode(tokens, seed=seed)
        end = time.perf_counter()

        told = score(photo, image)
        bits = tokens.ids.numel() * tokens.group_bits
        bpp = bits / (photo.width * photo.height)
        table.add_row(
            path.stem,
            f"{photo.width}x{photo.height}",
            f"{-(-bits // 8):,}",
            f"{bpp:.3f}",
            f"{24 / bpp:.1f}",
            f"{told.psnr:.2f}",
            "-" if told.ssim is None else f"{told.ssim:.3f}",
            f"{middle - start:.2f}",
            f"{end - middle:.2f}",
        )
        raw = photo.width * photo.height * 3
        pairs.append(
            Pair(
                photo,
                image,
                f"photograph: {raw:,} bytes of pixels",
                f"from {-(-bits // 8):,} bytes of tokens: {told}",
            )
        )
    show(table)
    config = tokenizer.config
    title = (
        f"wetok {tokenizer.name}: {config.bpp:g} bits a pixel, {config.ratio:.0f}x less than RGB"
    )
    save_png(side_by_side(pairs, title), out / "demo.png")
    print(f"picture: {out / 'demo.png'}")
    print("next:    wetok reconstruct YOUR_PHOTOS --side-by-side")
