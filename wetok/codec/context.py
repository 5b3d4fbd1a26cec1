"""Entropy coding of ids: each bit with a probability that its neighbours' bits give.

The positions of a grid are visited in phases, from coarse to fine; within a group of bits:

    phase 0      every 2^L-th row and column            o . . . o     knows no neighbour
    D, half s    the centres of the squares between     . . D . .     knows the corners
    B, half s    between two known ones in a row        o . B . o     knows four sides
    C, half s    between two known ones in a column     . . . . .     knows all round

with s = 2^(L-1), ..., 2, 1. Beside these, a bit knows all earlier groups, at and around its own
position, and the earlier bits of its own id. So a whole phase of one bit is coded at once, and the
first k groups of a file can be read without the rest.

A small network with integer weights (`Net`) turns what is known into probabilities. Its sums stay
below 2^24, where float32 is exact in whatever order a machine adds: a file made on one machine
reads on every other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wetok.codec.packing import id_dtype
from wetok.codec.rangecoder import LEAST, ONE, Decoder, Encoder

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]

LOGIT = 128
"""Logits are whole numbers of 1/128."""
HIDDEN = 1023
"""Hidden values lie in [0, HIDDEN]."""
SHIFT = 5
"""The sum over hidden values is divided by 2^SHIFT."""

_CROSS = ((0, -1), (0, 1), (-1, 0), (1, 0))
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_KNIGHT_ROW = ((-1, -2), (-1, 2), (1, -2), (1, 2))
_KNIGHT_COLUMN = ((-2, -1), (-2, 1), (2, -1), (2, 1))
_WIDE = ((-1, -3), (-1, 3), (1, -3), (1, 3), (-3, -1), (-3, 1), (3, -1), (3, 1))
AROUND = ((0, 0), *_CROSS, *_DIAGONAL)
"""Where a bit knows the earlier groups: (rows down, columns right)."""

# round(65536 / (1 + exp(-x / 2))) for x = 0, 1, ..., 16
_SIGMOID = (
    *(32768, 40793, 47911, 53581, 57724, 60569, 62428, 63609, 64347),
    *(64802, 65081, 65252, 65357, 65420, 65459, 65483, 65497),
)  # fmt: skip


class Phase(NamedTuple):
    """Positions (start + i * step) of a grid, and where their own group is known already."""

    step: int
    start: tuple[int, int]
    known: tuple[tuple[int, int], ...]


class Net(NamedTuple):
    """What is known -> logits of one group's bits in one phase. Whole numbers in float32.

    With x the n inputs, -1 or +1 for a known bit and 0 for one outside the grid:
    logits = direct x + bias + (second clip(first x + first_bias, 0, HIDDEN) >> SHIFT), then for
    each bit c in turn + within[c, :c] (earlier bits of the id).
    """

    first: Floats
    """[hidden, n]"""
    first_bias: Floats
    """[hidden]"""
    second: Floats
    """[d', hidden]"""
    direct: Floats
    """[d', n]"""
    bias: Floats
    """[d']"""
    within: Floats
    """[d', d'], zero on and above the diagonal"""


class Model(Protocol):
    """What codes the segments of one grid: `LearnedModel` here, `codec.adaptive`."""

    def encode(self, planes: NDArray[np.uint8]) -> list[bytes]:
        """Planes [d, h, w] of bits -> the segment of each group."""

    def decode(self, segments: list[bytes], size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
        """The first segments -> planes [d', h, w] of each group in turn.

        Raises:
            WetokError: segments that no encoder makes.
        """


@cache
def phases(levels: int) -> tuple[Phase, ...]:
    """All phases, in coding order: 1 + 3 * levels."""
    found = [Phase(2**levels, (0, 0), ())]
    for half in (2**level for level in range(levels - 1, -1, -1)):
        for start, known in (
            ((1, 1), _DIAGONAL + _WIDE),
            ((0, 1), _CROSS + _KNIGHT_COLUMN + _KNIGHT_ROW),
            ((1, 0), _CROSS + _DIAGONAL + _KNIGHT_COLUMN),
        ):
            offsets = tuple((half * down, half * right) for down, right in known)
            found.append(Phase(2 * half, (half * start[0], half * start[1]), offsets))
    return tuple(found)


def whole() -> Phase:
    """Every position."""
    return Phase(1, (0, 0), ())


def reach(levels: int) -> int:
    """How far from a position its inputs lie."""
    return max(1, 3 * 2 ** (levels - 1)) if levels else 1


def inputs_of(group: int, group_bits: int, phase: Phase) -> int:
    """n: how many bits a `Net` takes."""
    return group_bits * (len(AROUND) * group + len(phase.known))


def to_planes(ids: NDArray[np.integer], group_bits: int) -> NDArray[np.uint8]:
    """Ids [g, h, w] -> bits [g * d', h, w], the least significant of each id first."""
    groups, height, width = ids.shape
    shifts = np.arange(group_bits, dtype=ids.dtype)[:, None, None]
    bits = (ids[:, None] >> shifts) & ids.dtype.type(1)
    return bits.astype(np.uint8).reshape(groups * group_bits, height, width)


def to_ids(planes: NDArray[np.uint8], group_bits: int) -> NDArray[np.integer]:
    """Bits [g * d', h, w] -> ids [g, h, w] in the smallest type that holds them."""
    dtype = id_dtype(group_bits)
    bits = planes.reshape(-1, group_bits, *planes.shape[1:])
    ids = np.zeros((bits.shape[0], *planes.shape[1:]), dtype)
    for bit in range(group_bits):
        ids |= bits[:, bit].astype(dtype) << dtype.type(bit)
    return ids


@cache
def _probabilities() -> NDArray[np.int64]:
    """Probability of a 1, in 1/65536, at logits -1024, ..., 1024 (in 1/128)."""
    logits = np.arange(8 * LOGIT + 1)
    knots = np.array([*_SIGMOID, _SIGMOID[-1]])
    place, part = logits >> 6, logits & 63
    positive = knots[place] + ((knots[place + 1] - knots[place]) * part >> 6)
    return np.clip(np.concatenate([ONE - positive[:0:-1], positive]), LEAST, ONE - LEAST)


def probabilities(logits: Integers) -> list[int]:
    """Probability of a 1 in 1/65536 for each logit in 1/128."""
    table = _probabilities()
    found: list[int] = table[np.clip(logits, -8 * LOGIT, 8 * LOGIT) + 8 * LOGIT].tolist()
    return found


class Grid:
    """The bits of one grid as +1 and -1, with 0 outside it and where nothing is known yet."""

    def __init__(self, channels: int, size: tuple[int, int], levels: int) -> None:
        self.size = size
        self.margin = reach(levels)
        height, width = (side + 2 * self.margin for side in size)
        self.signs = np.zeros((channels, height, width), np.float32)

    def view(
        self, channels: slice, phase: Phase, offset: tuple[int, int] = (0, 0)
    ) -> NDArray[np.float32]:
        """A view [channels, rows, columns] of a phase's positions, seen from `offset`."""
        spans = []
        for side, start, move in zip(self.size, phase.start, offset, strict=True):
            count = max(0, -(-(side - start) // phase.step))
            first = self.margin + start + move
            spans.append(slice(first, first + count * phase.step, phase.step))
            if not count:
                spans[-1] = slice(0, 0)
        return self.signs[channels, spans[0], spans[1]]

    def present(self, every: tuple[Phase, ...]) -> list[Phase]:
        """The phases that have a position in this grid."""
        return [
            phase
            for phase in every
            if all(side > start for side, start in zip(self.size, phase.start, strict=True))
        ]

    def inputs(self, group: int, group_bits: int, phase: Phase) -> Floats:
        """What is known in a phase of a group: [n, positions]."""
        earlier = slice(0, group * group_bits)
        own = slice(group * group_bits, (group + 1) * group_bits)
        rows, columns = self.view(own, phase).shape[1:]
        found = np.empty((inputs_of(group, group_bits, phase), rows, columns), np.float32)
        place = 0
        for channels, offsets in ((earlier, AROUND if group else ()), (own, phase.known)):
            for offset in offsets:
                values = self.view(channels, phase, offset)
                found[place : place + len(values)] = values
                place += len(values)
        return found.reshape(place, rows * columns)


class LearnedModel:
    """Codes a grid with learned networks, one for each group and phase."""

    def __init__(self, nets: list[list[Net]], group_bits: int) -> None:
        self._nets = nets
        self._bits = group_bits
        self._levels = (len(nets[0]) - 1) // 3
        self._phases = phases(self._levels)
        # Both layers that see the inputs, in one product.
        self._both = [[np.concatenate([net.first, net.direct]) for net in row] for row in nets]

    def encode(self, planes: NDArray[np.uint8]) -> list[bytes]:
        bits = self._bits
        grid = Grid(len(planes), planes.shape[1:], self._levels)
        grid.view(slice(None), whole())[:] = planes.astype(np.float32) * 2 - 1
        segments = []
        for group in range(len(planes) // bits):
            coder = Encoder()
            own = slice(group * bits, (group + 1) * bits)
            for phase in grid.present(self._phases):
                number = self._phases.index(phase)
                target = grid.view(own, phase).reshape(bits, -1)
                # Bits of the own group that a decoder would not know yet are never looked at:
                # a phase's known offsets lead to earlier phases only.
                logits = self._logits(grid, group, number, phase)
                logits += (self._nets[group][number].within @ target).astype(np.int32)
                coder.encode(probabilities(logits.reshape(-1)), (target.reshape(-1) > 0).tolist())
            segments.append(coder.finish())
        return segments

    def decode(self, segments: list[bytes], size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
        bits = self._bits
        grid = Grid(len(segments) * bits, size, self._levels)
        for group, segment in enumerate(segments):
            coder = Decoder(segment)
            for phase in grid.present(self._phases):
                number = self._phases.index(phase)
                logits = self._logits(grid, group, number, phase)
                within = self._nets[group][number].within.astype(np.int32)
                for bit in range(bits):
                    found = coder.decode(probabilities(logits[bit]))
                    signs = np.array(found, np.int32) * 2 - 1
                    logits[bit + 1 :] += within[bit + 1 :, bit, None] * signs
                    target = grid.view(slice(group * bits + bit, group * bits + bit + 1), phase)
                    target[:] = signs.reshape(target.shape)
            coder.finish()
            own = slice(group * bits, (group + 1) * bits)
            yield (grid.view(own, whole()) > 0).astype(np.uint8)

    def _logits(self, grid: Grid, group: int, number: int, phase: Phase) -> Integers:
        """Logits [d', positions] without the part of the id's own earlier bits."""
        net = self._nets[group][number]
        sums = self._both[group][number] @ grid.inputs(group, self._bits, phase)
        hidden = np.clip(sums[: len(net.first)] + net.first_bias[:, None], 0, HIDDEN)
        logits = (sums[len(net.first) :] + net.bias[:, None]).astype(np.int32)
        logits += (net.second @ hidden).astype(np.int32) >> SHIFT
        return logits
