"""A colour map whose lightness rises evenly, so that equal steps look equal; and legends for it."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Chroma and hue (degrees) in OKLCH, evenly spaced: black, violet, red, orange, cream.
_STOPS = np.array([[0.0, 290.0], [0.13, 295.0], [0.185, 355.0], [0.165, 415.0], [0.07, 460.0]])
_LIGHTEST = 95.0  # CIE L* of the last colour
_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@lru_cache
def palette() -> bytes:
    """256 colours, 768 bytes of sRGB: even steps of CIE L*, hues by OKLab (Ottosson 2020)."""
    at = np.linspace(0, len(_STOPS) - 1, 256)
    chroma, hue = (np.interp(at, np.arange(len(_STOPS)), _STOPS[:, column]) for column in range(2))
    star = np.linspace(0, _LIGHTEST, 256)
    # A grey of that L*; OKLab's lightness is the cube root of its luminance.
    lightness = np.where(star > 8, (star + 16) / 116, np.cbrt(star / 903.3))
    angle = np.deg2rad(hue)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], 1)
    linear = ((lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (srgb * 255).round().astype(np.uint8).tobytes()


def coloured(values: NDArray[Any], top: float) -> bytes:
    """A PNG of values [H,W]: 0 is black, `top` and more the brightest colour."""
    index = (values * (255 / top)).round().clip(0, 255).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette(palette())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def legend() -> bytes:
    """A PNG of all colours, from 0 at the left."""
    return coloured(np.tile(np.arange(256, dtype=np.float32), (8, 1)), 255)
