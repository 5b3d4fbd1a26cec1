"""Usage, entropy and balance of the codes against counting in plain Python."""

from __future__ import annotations

from collections import Counter
from math import log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wetok.evaluate.codes import CodeStatistics


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 4),
    bits=st.integers(1, 9),
    batches=st.integers(1, 3),
    fixed=st.booleans(),
)
def test_by_counting(seed: int, groups: int, bits: int, batches: int, fixed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = [
        torch.randint(0, 2**bits, (2, groups, 3, 4), generator=generator) for _ in range(batches)
    ]
    if fixed:  # one bit that never changes
        batch = [ids | 1 for ids in batch]
    counted = CodeStatistics(groups, bits)
    for ids in batch:
        counted.update(ids.to(torch.int16))
    dead = 0
    for group in range(groups):
        codes = [int(code) for ids in batch for code in ids[:, group].flatten()]
        shares = [count / len(codes) for count in Counter(codes).values()]
        assert counted.usage()[group] == pytest.approx(len(shares) / 2**bits)
        assert counted.entropy()[group] == pytest.approx(-sum(p * log2(p) for p in shares))
        for bit in range(bits):
            ones = sum(code >> bit & 1 for code in codes)
            assert counted.bit_ones()[group][bit] == pytest.approx(ones / len(codes))
            dead += ones in (0, len(codes))
    assert counted.dead_bits() == dead
    assert counted.positions == 24 * batches and counted.exact


def test_known_entropies() -> None:
    counted = CodeStatistics(2, 3)
    everything = torch.arange(8).view(1, 1, 2, 4)
    counted.update(torch.cat([everything, torch.full_like(everything, 5)], 1))
    assert counted.entropy() == pytest.approx([3, 0])
    assert counted.usage() == [1, 1 / 8] and counted.dead_bits() == 3
    assert counted.bit_ones() == [[0.5] * 3, [1, 0, 1]]


def test_beyond_16_bits_bits_stay_exact() -> None:
    counted = CodeStatistics(1, 40)
    ids = torch.tensor([0, 1, 2**39, 2**39 + 1]).view(1, 1, 2, 2)
    counted.update(ids)
    assert not counted.exact
    assert counted.dead_bits() == 38
    assert counted.bit_ones()[0][0] == counted.bit_ones()[0][39] == 0.5
    assert 0 < counted.entropy()[0] <= 2


def test_nothing_seen() -> None:
    counted = CodeStatistics(2, 4)
    assert counted.entropy() == [0, 0] and counted.usage() == [0, 0]
    assert counted.dead_bits() == 8
