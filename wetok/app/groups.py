"""The tokens of a picture as pictures: one a group, a pixel a token, a colour an id."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wetok.codec.tokens import Tokens

_SHOWN = 24  # bits that a colour can tell apart


class Group(NamedTuple):
    """One group's ids."""

    picture: Image.Image
    """RGB, w x h: a pixel for each position."""
    distinct: int
    """How many ids of 2^d' occur."""
    entropy: float
    """Bits an id, of how often each occurs in this picture."""


def group_pictures(tokens: Tokens, image: int = 0) -> list[Group]:
    """Every group of one image of `tokens`."""
    found = []
    for ids in tokens.ids[image].cpu().numpy():
        counts = np.unique(ids, return_counts=True)[1]
        share = counts / counts.sum()
        entropy = float(-(share * np.log2(share)).sum())
        picture = Image.fromarray(colours(ids, tokens.group_bits))
        found.append(Group(picture, len(counts), abs(entropy)))
    return found


def colours(ids: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """[...] ids in [0, 2^bits) to [...,3] RGB; different up to 24 bits, and alike where bits are.

    Bit k belongs to red, green or blue in turn, and the first bits of a colour count most. Of more
    than 24 bits the first 24 are shown.
    """
    wide = ids.astype(np.int64)
    shown = min(bits, _SHOWN)
    channels: list[NDArray[np.int64]] = []
    for channel in range(3):
        own = range(channel, shown, 3)
        if not own:  # fewer than three bits: the same as red
            channels.append(channels[0])
            continue
        value = np.zeros(wide.shape, np.int64)
        for bit in own:
            value = 2 * value + (wide >> bit & 1)
        channels.append(value * 255 // (2 ** len(own) - 1))
    return np.stack(channels, -1).astype(np.uint8)
