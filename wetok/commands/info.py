"""`wetok info`: what a model, a .wetok file or a photograph is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wetok.commands import options


def command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE", show_default=False, help="A model, a .wetok file or a photograph."
        ),
    ],
    as_json: options.Json = False,
) -> None:
    """Show what is in a model, a .wetok file or a photograph.

    Example: wetok info tiny-48x
    """
    from wetok.commands.tables import show_json
    from wetok.config import WetokError
    from wetok.data.images import SUFFIXES

    path = Path(what)
    if not path.exists() and path.suffix.lower() in {".wetok", *SUFFIXES}:
        raise WetokError(f"{what}: no such file")
    if not path.is_file():
        facts = _model(what)
    elif path.suffix.lower() == ".wetok":
        facts = _tokens(path)
    else:
        facts = _photograph(path)
    if as_json:
        show_json(facts)
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        text = f"{value:.4g}" if isinstance(value, float) else text
        print(f"{key.replace('_', ' '):<{width}}  {text}")


def _model(name: str) -> dict[str, Any]:
    from wetok import checkpoint
    from wetok.commands.models import count_parameters

    tokenizer = checkpoint.load(name)
    config = tokenizer.config
    encoder, decoder = count_parameters(config)
    shape = config.model_dump(mode="json", exclude_none=True)
    return {
        "name": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "factor": config.factor,
        "bpp": config.bpp,
        "ratio": config.ratio,
        "encoder_parameters": encoder,
        "decoder_parameters": decoder,
        "encodes": f"on {tokenizer.device}: {tokenizer.way('encode')}",
        "decodes": f"on {tokenizer.device}: {tokenizer.way('decode')}",
        **shape,
    }


def _tokens(path: Path) -> dict[str, Any]:
    from wetok.codec.file import opened
    from wetok.codec.header import CODINGS

    with opened(path) as file:
        headers, metadata = file.headers, file.metadata
    header = headers[0]
    size = path.stat().st_size
    height, width = header.size
    pixels = sum(one.images * one.size[0] * one.size[1] for one in headers)
    packed = sum(one.payload_size for one in headers)
    return {
        "file": str(path),
        "bytes": size,
        "model": header.name,
        "fingerprint": header.fingerprint,
        "images": sum(one.images for one in headers),
        "sizes": len(headers),
        "width": width,
        "height": height,
        "groups": header.groups,
        "group_bits": header.group_bits,
        "coding": CODINGS[header.coding],
        "packed_bytes": packed,
        "positions": f"{header.latent[1]}x{header.latent[0]}",
        "bpp": 8 * size / pixels,
        "ratio": 24 * pixels / (8 * size),
        **({"tables": header.tables} if header.tables else {}),
        **({"metadata": metadata} if metadata else {}),
    }


def _photograph(path: Path) -> dict[str, Any]:
    from wetok.data.images import load_image

    image = load_image(path)
    size = path.stat().st_size
    pixels = image.width * image.height
    return {
        "file": str(path),
        "bytes": size,
        "width": image.width,
        "height": image.height,
        "bpp": 8 * size / pixels,
        "ratio": 24 * pixels / (8 * size),
    }
