"""Entropy coding of ids without learned tables: probabilities that adapt while a grid is coded.

The phases are those of `codec.context`. A bit's context is its channel and the bits of the same
channel next to it: photographs are smooth, and so are the signs of most latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from wetok.codec.context import Grid, Phase, phases, probabilities, whole
from wetok.codec.rangecoder import Decoder, Encoder

LEVELS = 3
CONTEXTS = 1 + 9 * 3
"""Of each channel: phase 0, then (sum of four nearest bits + 4) * 3 + sign of the next four's."""


@cache
def _start() -> list[int]:
    """Probabilities of a 1 that a channel starts with: neighbours are alike, a little."""
    near = np.arange(-4, 5)[:, None] * 45  # in 1/128
    far = np.arange(-1, 2)[None, :] * 40
    logits = np.concatenate([[0], (near + far).reshape(-1)]).astype(np.int32)
    return probabilities(logits)


class AdaptiveModel:
    """Codes a grid with adaptive probabilities, anew for each group of it."""

    def __init__(self, group_bits: int) -> None:
        self._bits = group_bits

    def encode(self, planes: NDArray[np.uint8]) -> list[bytes]:
        segments = []
        every = slice(None)
        for first in range(0, len(planes), self._bits):
            grid, coder, states, counts = self._begin(planes.shape[1:]), Encoder(), *self._fresh()
            own = planes[first : first + self._bits]
            grid.view(every, whole())[:] = own.astype(np.float32) * 2 - 1
            for phase in grid.present(phases(LEVELS)):
                contexts = self._contexts(grid, phase).reshape(-1)
                bits = grid.view(every, phase).reshape(-1) > 0
                coder.encode_adaptive(contexts.tolist(), bits.tolist(), states, counts)
            segments.append(coder.finish())
        return segments

    def decode(self, segments: list[bytes], size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
        every = slice(None)
        for segment in segments:
            grid, coder, states, counts = self._begin(size), Decoder(segment), *self._fresh()
            for phase in grid.present(phases(LEVELS)):
                contexts = self._contexts(grid, phase)
                found = coder.decode_adaptive(contexts.reshape(-1).tolist(), states, counts)
                target = grid.view(every, phase)
                target[:] = (np.array(found, np.float32) * 2 - 1).reshape(target.shape)
            coder.finish()
            yield (grid.view(every, whole()) > 0).astype(np.uint8)

    def _begin(self, size: tuple[int, int]) -> Grid:
        return Grid(self._bits, size, LEVELS)

    def _fresh(self) -> tuple[list[int], list[int]]:
        """Probability and count of every context."""
        return _start() * self._bits, [0] * self._bits * CONTEXTS

    def _contexts(self, grid: Grid, phase: Phase) -> NDArray[np.int64]:
        """The number of each bit's context, [d', rows, columns]."""
        every = slice(None)
        shape = grid.view(every, phase).shape
        channels = np.arange(shape[0])[:, None, None] * CONTEXTS
        if not phase.known:
            return np.broadcast_to(channels, shape)
        near, far = (
            sum(
                (grid.view(every, phase, offset) for offset in offsets),
                start=np.zeros(shape, np.float32),
            ).astype(np.int64)
            for offsets in (phase.known[:4], phase.known[4:8])
        )
        return channels + 1 + (near + 4) * 3 + np.sign(far) + 1
