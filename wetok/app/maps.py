"""Where two pictures differ, and what a generative decoder made up, as maps with a scale."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wetok.app.seen import Seen, pixels_of
from wetok.config import WetokError
from wetok.evaluate.colours import coloured
from wetok.evaluate.pictures import spread_of
from wetok.model.tokenizer import Tokenizer

_TOPS = (4, 8, 16, 32, 64, 128, 255)
MOST_SEEDS = 8


class Map(NamedTuple):
    """Values [H,W] in colour."""

    picture: Image.Image
    top: int
    """The level, of 255, that the brightest colour and all beyond stand for."""
    mean: float
    most: float


def difference(original: Image.Image, again: Image.Image) -> Map:
    """|original - again| of 8-bit values, mean over red, green and blue."""
    a, b = (np.asarray(image, np.int16) for image in (original, again))
    return mapped(np.abs(a - b).mean(-1, dtype=np.float32))


def invented(tokenizer: Tokenizer, seen: Seen, count: int) -> Map:
    """Standard deviation of 8-bit values over `count` seeds, from `seen.seed` on.

    Raises:
        WetokError: a deterministic decoder, or not 2 to `MOST_SEEDS` seeds.
    """
    if not tokenizer.config.generative:
        raise WetokError(
            f"{seen.label} is deterministic: its tokens always give the same picture, and nothing "
            "in it is invented."
        )
    if not 2 <= count <= MOST_SEEDS:
        raise WetokError(f"The number of seeds must lie in 2 to {MOST_SEEDS}.")
    samples = [pixels_of(seen.again)]
    for seed in range(seen.seed + 1, seen.seed + count):
        samples.append(pixels_of(tokenizer.decode(seen.tokens, seed=seed)[0]))
    return mapped(spread_of(samples).numpy())


def mapped(values: NDArray[np.float32]) -> Map:
    """On the least scale that 98% of the values lie within."""
    needed = min(float(np.percentile(values, 98)), 255)
    top = next(one for one in _TOPS if one >= needed)
    picture = Image.open(io.BytesIO(coloured(values, top)))
    return Map(picture.convert("RGB"), top, float(values.mean()), float(values.max()))
