"""A network over an image of any size by overlapping tiles: the fast mode.

The norms ask for statistics of the whole image. They are estimated once, from windows spread over
the image, and then hold for every tile. With its norms fixed a network looks no further than
`stages.reach`, so tiles that overlap by twice that meet without a seam, and tiles that overlap by
less are blended.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wetok.model.layers import AdaptiveGroupNorm
from wetok.model.stages import Condition, Moments, Stage, advanced, entered, run
from wetok.model.strips import Plane


@dataclass(frozen=True)
class Grid:
    """Where tiles lie. Lengths are positions of the latent."""

    positions: tuple[int, int]
    """h, w."""
    tile: int
    overlap: int
    """At least, between neighbours; at most half a tile."""
    margin: int
    """Positions around a window that its values depend on."""


class Window(NamedTuple):
    """A rectangle of positions, with the part of its surroundings that the network sees."""

    core: tuple[int, int, int, int]  # top, bottom, left, right
    around: tuple[int, int, int, int]


def in_tiles(
    stages: Sequence[Stage],
    plane: Plane,
    grid: Grid,
    moments: Sequence[Moments | None],
    device: torch.device,
    condition: Condition | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The stages' output over all of `plane`, as bands (top row, [1,C,rows,W]) from top to bottom.

    Args:
        moments: of each stage's norm, as `estimate` gives them.
    """
    height, width = grid.positions
    scale = plane.shape[1] // height
    rows, columns = (spans(length, grid.tile, grid.overlap) for length in grid.positions)
    carried: Tensor | None = None
    for number, (top, bottom) in enumerate(rows):
        band, factor = torch.zeros(0), 1
        for place, (left, right) in enumerate(columns):
            piece = plane.read(top * scale, bottom * scale, left * scale, right * scale)
            y = run(stages, piece.to(device), lambda k, _: _given(moments[k]), condition).float()
            factor = y.shape[2] // (bottom - top)
            if not band.numel():
                band = y.new_zeros(1, y.shape[1], y.shape[2], width * factor)
            y *= _weights(columns, place, factor).to(y)
            y *= _weights(rows, number, factor).to(y)[:, None]
            band[..., left * factor : right * factor] += y
        if carried is not None:
            band[:, :, : carried.shape[2]] += carried
        done = rows[number + 1][0] if number + 1 < len(rows) else bottom
        yield top * factor, band[:, :, : (done - top) * factor]
        carried = band[:, :, (done - top) * factor :].clone()


def spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Stretches of `tile` that cover 0..length, spread evenly, neighbours sharing >= overlap."""
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [number * (length - tile) // (count - 1) for number in range(count)]
    return [(start, start + tile) for start in starts]


def _weights(stretches: Sequence[tuple[int, int]], number: int, factor: int) -> Tensor:
    """Of each row (or column) of a tile; with its neighbours' they sum to 1.

    A ramp over the middle quarter of what two tiles share. What lies further out is nearer to where
    the tile ends, and to the zeros that it is padded with, and counts for nothing.
    """
    start, end = stretches[number]
    weights = torch.ones((end - start) * factor)
    if number:
        ramp = _ramp((stretches[number - 1][1] - start) * factor)
        weights[: len(ramp)] *= ramp
    if number + 1 < len(stretches):
        ramp = _ramp((end - stretches[number + 1][0]) * factor)
        weights[len(weights) - len(ramp) :] *= 1 - ramp
    return weights


def _ramp(length: int) -> Tensor:
    middle = (torch.arange(length) + 0.5) / max(length, 1)
    return (4 * middle - 1.5).clamp(0, 1)


# --- statistics


def estimate(
    stages: Sequence[Stage],
    plane: Plane,
    grid: Grid,
    windows: Sequence[Window],
    device: torch.device,
    condition: Condition | None = None,
) -> list[Moments | None]:
    """The moments of every stage's norm over the windows' cores, None where a stage has none.

    The windows go through the network side by side, stage by stage, and share each norm's
    statistics: windows that cover the image give the image's own.
    """
    scale = plane.shape[1] // grid.positions[0]
    pieces = [
        entered(stages, plane.read(*(place * scale for place in window.around)).to(device))
        for window in windows
    ]
    kept: list[Tensor | None] = [None] * len(windows)
    found: list[Moments | None] = []
    for stage in stages[: _last_norm(stages) + 1]:
        gathered = None
        if stage.norm is not None:
            gathered = pooled([_core(x, w) for x, w in zip(pieces, windows, strict=True)], stage)
        found.append(gathered)
        for number, x in enumerate(pieces):
            kept[number] = x if stage.opens else kept[number]
            pieces[number] = advanced(stage, x, kept[number], gathered, condition)
            kept[number] = None if stage.closes else kept[number]
    return found + [None] * (len(stages) - len(found))


def sample(grid: Grid, side: int, count: int) -> list[Window]:
    """Windows of `side`: all that there are, or about `count` of them spread over the image.

    One in each cell of a coarse grid, at a place in it that is always the same for a size of
    image: evenly spaced windows might all meet the same part of a repeating pattern.
    """
    height, width = grid.positions
    rows, columns = -(-height // side), -(-width // side)
    if rows * columns <= count:
        cells = [(row, column) for row in range(rows) for column in range(columns)]
        return [_window(grid, side, row * side, column * side) for row, column in cells]
    rows = min(max(1, round(math.sqrt(count * height / width))), count, rows)
    columns = min(max(1, count // rows), columns)
    rng = random.Random(0)

    def place(number: int, cells: int, length: int) -> int:
        first, end = (length * cell // cells for cell in (number, number + 1))
        return min(rng.randint(first, max(first, end - side)), max(0, length - side))

    return [
        _window(grid, side, place(row, rows, height), place(column, columns, width))
        for row in range(rows)
        for column in range(columns)
    ]


def _window(grid: Grid, side: int, top: int, left: int) -> Window:
    height, width = grid.positions
    core = top, min(top + side, height), left, min(left + side, width)
    return Window(
        core,
        (
            max(0, core[0] - grid.margin),
            min(height, core[1] + grid.margin),
            max(0, core[2] - grid.margin),
            min(width, core[3] + grid.margin),
        ),
    )


def _core(x: Tensor, window: Window) -> Tensor:
    core, around = window
    scale = x.shape[2] // (around[1] - around[0])
    top, bottom = ((row - around[0]) * scale for row in core[:2])
    left, right = ((column - around[2]) * scale for column in core[2:])
    return x[:, :, top:bottom, left:right]


def _last_norm(stages: Sequence[Stage]) -> int:
    return max(index for index, stage in enumerate(stages) if stage.norm is not None)


def pooled(pieces: Sequence[Tensor], stage: Stage) -> Moments:
    """The moments of the stage's norm over several pieces [1,C,h,w] together.

    Merged in float64 (Chan, Golub and LeVeque 1979).
    """
    norm = stage.norm.gn if isinstance(stage.norm, AdaptiveGroupNorm) else stage.norm
    assert norm is not None
    groups = [piece.float().reshape(norm.num_groups, -1) for piece in pieces]
    own = [torch.var_mean(each, 1, correction=0) for each in groups]
    variances, means = (torch.stack([pair[k] for pair in own]).double() for k in (0, 1))
    sizes = torch.tensor([each.shape[1] for each in groups], dtype=torch.float64)
    shares = (sizes / sizes.sum()).to(means)[:, None]
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return Moments(mean.float(), (variance + norm.eps).rsqrt().float())


def _given(moments: Moments | None) -> Moments:
    assert moments is not None
    return moments
