"""Photographs from strangers: how large they may be, and how they are read without harm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from wetok.config import WetokError
from wetok.data.images import load_image

_JPEG_TIMES, _OTHER_TIMES = 16, 8
"""A larger image is read and made smaller up to so many times the pixels; beyond it is refused.
JPEGs are decoded at a fraction of their size."""


@dataclass(frozen=True)
class Limits:
    """What the page takes from its visitors."""

    max_bytes: int = 20_000_000
    """Of an uploaded file."""
    max_pixels: int = 4_000_000
    """Of what the models see; larger photographs are made smaller."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise WetokError(f"max_bytes={self.max_bytes} must be at least 1")
        if self.max_pixels < 1:
            raise WetokError(f"max_pixels={self.max_pixels} must be at least 1")


class Photo(NamedTuple):
    """A photograph as the models get it."""

    image: Image.Image
    """RGB, upright, of at most `Limits.max_pixels`."""
    name: str
    """Of the file, without its folder."""
    file_bytes: int
    note: str
    """What the visitor should know of it; mostly nothing."""


def open_photo(path: str | Path, limits: Limits) -> Photo:
    """The photograph in a file. Its header is looked at before a pixel is decoded.

    Raises:
        WetokError: not an image, damaged, or far too large in bytes or pixels.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError:
        raise WetokError("The photo is no longer here: please choose it again.") from None
    if size > limits.max_bytes:
        raise WetokError(
            f"{path.name} has {megas(size)} MB; this page takes {megas(limits.max_bytes)}."
        )
    try:
        image = _load(path, limits)
    except WetokError as error:
        raise WetokError(str(error).replace(str(path), path.name)) from None
    smaller = within(image.size, limits.max_pixels)
    if smaller == image.size:
        return Photo(image, path.name, size, "")
    whole = _header_size(path) or image.size
    note = (
        f"{_sides(whole)} pixels are more than this page takes at a time "
        f"({megas(limits.max_pixels)} megapixels): made smaller, to {_sides(smaller)}."
    )
    return Photo(image.resize(smaller, Image.Resampling.LANCZOS), path.name, size, note)


def within(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Width and height in the same proportion with at most `max_pixels`, never 0."""
    width, height = size
    if width * height <= max_pixels:
        return size
    scale = math.sqrt(max_pixels / (width * height))
    if width * scale < 1:
        return 1, min(height, max_pixels)
    if height * scale < 1:
        return min(width, max_pixels), 1
    return int(width * scale + 1e-9), int(height * scale + 1e-9)


def megas(number: int) -> str:
    """Millions, in few digits."""
    return f"{number / 1e6:.3g}"


def _load(path: Path, limits: Limits) -> Image.Image:
    jpeg = _format(path) in ("JPEG", "MPO")
    most = limits.max_pixels * (_JPEG_TIMES if jpeg else _OTHER_TIMES)
    header = _header_size(path)
    if header is not None and header[0] * header[1] > most:
        raise WetokError(
            f"{path.name} has {_sides(header)} pixels; this page takes {megas(most)} megapixels "
            "of that format: please make it smaller."
        )
    return load_image(path, max_pixels=most, draft=lambda one: within(one, limits.max_pixels))


def _format(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            return image.format
    except Exception:  # `load_image` says what is wrong
        return None


def _header_size(path: Path) -> tuple[int, int] | None:
    """Width and height as stored, before any turning."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:
        return None


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
