"""The fast mode: tiles that meet, statistics from windows, and what is left of a difference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model.test_stages import network, own_moments
from tests.model.test_strips import CPU, Held, joined
from wetok.model import tiles
from wetok.model.layers import code_statistics, space_to_depth
from wetok.model.stages import Moments, decoder_stages, encoder_stages, reach, run
from wetok.model.tiles import Grid, estimate, in_tiles, pooled, sample, spans

SMALL: dict[str, Any] = {"channels": 16, "mults": (1, 2), "patch": 2, "blocks": 1}


@settings(deadline=None)
@given(length=st.integers(1, 500), tile=st.integers(2, 80), share=st.floats(0, 1))
@example(50, 32, 1.0)  # three tiles over one place
def test_tiles_cover_a_line_and_overlap(length: int, tile: int, share: float) -> None:
    overlap = int(share * (tile // 2))
    stretches = spans(length, tile, overlap)
    assert stretches[0][0] == 0 and stretches[-1][1] == length
    assert all(end - start == min(tile, length) for start, end in stretches)
    for (_, end), (start, _) in zip(stretches, stretches[1:], strict=False):
        assert end - start >= overlap
    # As few as it takes.
    assert len(stretches) == 1 or (len(stretches) - 1) * (tile - overlap) + overlap < length
    for factor in (1, 3):
        total = torch.zeros(length * factor)
        for number, (start, end) in enumerate(stretches):
            total[start * factor : end * factor] += tiles._weights(stretches, number, factor)
        torch.testing.assert_close(total, torch.ones(length * factor))


@settings(deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    side=st.integers(1, 16),
    count=st.integers(1, 40),
)
def test_windows_are_all_or_spread(height: int, width: int, side: int, count: int) -> None:
    grid = Grid((height, width), 20, 4, margin=3)
    windows = sample(grid, side, count)
    seen = torch.zeros(height, width)
    for core, around in windows:
        assert 0 <= core[0] < core[1] <= height and 0 <= core[2] < core[3] <= width
        seen[core[0] : core[1], core[2] : core[3]] += 1
        expected = (core[0] - 3, core[1] + 3, core[2] - 3, core[3] + 3)
        clipped = [
            max(0, min(place, end))
            for place, end in zip(expected, (height,) * 2 + (width,) * 2, strict=True)
        ]
        assert list(around) == clipped
    cells = -(-height // side) * -(-width // side)
    if cells <= count:
        assert (seen == 1).all()
    else:
        assert 1 <= len(windows) <= count
        assert windows == sample(grid, side, count)


def test_pooled_moments_are_those_of_all_values() -> None:
    both = network(SMALL)
    stage = next(s for s in encoder_stages(both.encoder) if s.norm is not None)
    torch.manual_seed(0)
    pieces = [3 + k + torch.randn(1, 16, 2 + k, 5) for k in range(4)]
    got = pooled(pieces, stage)
    flat = torch.cat([piece.flatten(2) for piece in pieces], 2).double()
    groups = flat.reshape(stage.norm.num_groups, -1)
    torch.testing.assert_close(got.mean.double(), groups.mean(1), rtol=1e-6, atol=0)
    inverse = 1 / (groups.var(1, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(got.inverse.double(), inverse, rtol=1e-6, atol=0)


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("size", [(1, 70), (50, 4), (3, 20)])
def test_tiles_that_overlap_enough_leave_no_seam(size: tuple[int, int], decoder: bool) -> None:
    """Given the image's own statistics."""
    both = network({**SMALL, "mults": (1,), "patch": 4})
    code = torch.where(torch.randn(1, 8, *size) > 0, 1.0, -1.0)
    if decoder:
        stages, x = decoder_stages(both.decoder), code
    else:
        stages = encoder_stages(both.encoder)
        x = space_to_depth(torch.rand(1, 3, 4 * size[0], 4 * size[1]) * 2 - 1, 4)
    condition = code_statistics(code)
    fixed: list[Moments | None] = [None] * len(stages)
    own = own_moments(stages)

    def moments(index: int, y: Tensor) -> Moments:
        fixed[index] = own(index, y)
        return fixed[index]

    whole = run(stages, x, moments, condition)
    far = math.ceil(reach(stages, 1))  # rows of both inputs are positions
    overlap = math.ceil(8 / 3 * far)  # the ramp begins at three eighths of it
    grid = Grid(size, 2 * overlap, overlap, margin=far)
    assert max(size) < 2 * overlap or len(spans(max(size), grid.tile, overlap)) > 1
    got = joined(in_tiles(stages, Held(x), grid, fixed, CPU, condition))
    torch.testing.assert_close(got, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("decoder", [False, True])
def test_windows_over_all_of_an_image_give_its_statistics(decoder: bool) -> None:
    both = network(SMALL)
    size = (17, 14)
    code = torch.where(torch.randn(1, 8, *size) > 0, 1.0, -1.0)
    image = torch.rand(1, 3, 4 * size[0], 4 * size[1]) * 2 - 1
    stages = decoder_stages(both.decoder) if decoder else encoder_stages(both.encoder)
    x = code if decoder else space_to_depth(image, 2)
    condition = code_statistics(code)
    grid = Grid(size, 24, 0, margin=12)
    expected: list[Moments | None] = [None] * len(stages)
    own = own_moments(stages)

    def moments(index: int, y: Tensor) -> Moments:
        expected[index] = own(index, y)
        return expected[index]

    run(stages, x, moments, condition)
    for side in (5, 30):
        got = estimate(stages, Held(x), grid, sample(grid, side, 1000), CPU, condition)
        assert len(got) == len(stages)
        for one, other in zip(got, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one.mean, other.mean, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(one.inverse, other.inverse, rtol=1e-4, atol=1e-5)
    # A few windows come near, and a few others come near in another way.
    few = estimate(stages, Held(x), grid, sample(grid, 5, 4), CPU, condition)
    pairs = [(a, b) for a, b in zip(few, expected, strict=True) if a is not None]
    apart = torch.cat([(a.inverse / b.inverse).log() for a, b in pairs]).abs()
    assert 1e-4 < apart.median() < 0.3
