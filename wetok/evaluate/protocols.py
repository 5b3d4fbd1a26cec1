"""How an image is brought to the size at which it is scored. A score names its protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

from wetok.config import WetokError, near
from wetok.data.transforms import center_crop


class Protocol(NamedTuple):
    """A named way from a photograph to the pixels that are compared."""

    name: str
    description: str
    prepare: Callable[[Image.Image], Image.Image]


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "modern-256",
            "shorter side to 256 (bicubic, antialiased), center crop 256 x 256; the "
            "reconstruction rounded to 8 bits",
            lambda image: center_crop(image, 256),
        ),
        Protocol(
            "original",
            "every image at its own size, padded inside the model; the reconstruction rounded "
            "to 8 bits",
            _as_it_is,
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol called `name`.

    Raises:
        WetokError: there is none; the nearest names are given.
    """
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise WetokError(f"protocol={name!r} is not known{near(name, list(PROTOCOLS))}") from None
