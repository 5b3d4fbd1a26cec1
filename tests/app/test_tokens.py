"""Tokens as pictures, and what is done to them: laws that hold for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wetok.app.damage import FLIP, RANDOM, SHUFFLE, SWAP, ZERO, Box, damaged
from wetok.app.groups import colours, group_pictures
from wetok.codec.tokens import ModelRef, Tokens
from wetok.config import WetokError

REF = ModelRef("toy", "0123456789abcdef")
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 9))
SHARES = st.floats(0, 1)


def tokens(shape: tuple[int, int, int], bits: int, seed: int = 0) -> Tokens:
    groups, height, width = shape
    ids = np.random.default_rng(seed).integers(0, 2**bits, (1, groups, height, width))
    return Tokens(torch.from_numpy(ids), (height * 4, width * 4), REF, bits)


@pytest.mark.parametrize("bits", range(1, 13))
def test_every_id_has_its_own_colour(bits: int) -> None:
    found = colours(np.arange(2**bits), bits)
    assert len({tuple(one) for one in found.tolist()}) == 2**bits
    assert found.min() == 0 and found.max() == 255


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**24 - 1), st.integers(0, 23), st.integers(24, 62))
def test_a_bit_moves_one_colour(value: int, bit: int, bits: int) -> None:
    one, other = colours(np.array([value, value ^ 1 << bit]), bits).astype(int)
    assert [a != b for a, b in zip(one, other, strict=True)] == [bit % 3 == c for c in range(3)]
    # Of eight bits a colour, the first counts 128, the last 1.
    assert abs(one - other).max() == 2 ** (7 - bit // 3)


def test_group_pictures_count() -> None:
    own = tokens((3, 5, 6), 4, 1)
    found = group_pictures(own)
    for group, one in enumerate(found):
        ids = own.ids[0, group].numpy()
        share = np.bincount(ids.ravel(), minlength=16) / ids.size
        share = share[share > 0]
        assert one.distinct == len(set(ids.ravel().tolist()))
        assert one.entropy == pytest.approx(-(share * np.log2(share)).sum())
        assert one.picture.size == (6, 5)
        assert np.array_equal(np.asarray(one.picture), colours(ids, 4))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 62), SHARES, st.integers(0, 99))
def test_so_many_tokens_are_others(
    shape: tuple[int, int, int], bits: int, share: float, seed: int
) -> None:
    own = tokens(shape, bits)
    before = own.ids.clone()
    found = damaged(own, RANDOM, share=share, seed=seed)
    changed = int((found.tokens.ids != own.ids).sum())
    assert changed == found.changed == round(share * own.ids.numel())
    assert torch.equal(own.ids, before)
    assert damaged(own, RANDOM, share=share, seed=seed).tokens == found.tokens


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 30), SHARES, st.integers(0, 99))
def test_so_many_bits_are_flipped(
    shape: tuple[int, int, int], bits: int, share: float, seed: int
) -> None:
    own = tokens(shape, bits)
    found = damaged(own, FLIP, share=share, seed=seed)
    differing = (own.ids.long() ^ found.tokens.ids.long()).flatten().tolist()
    count = sum(bin(one).count("1") for one in differing)
    assert count == found.flipped == round(share * own.ids.numel() * bits)


def test_any_other_id_is_as_likely() -> None:
    own = tokens((2, 50, 60), 2)
    found = damaged(own, RANDOM, share=1).tokens.ids.long()
    step = (found - own.ids.long()) % 4
    counts = torch.bincount(step.flatten(), minlength=4).tolist()
    assert counts[0] == 0 and min(counts[1:]) > 1800  # 2000 each, expected


@settings(max_examples=60, deadline=None)
@given(SHAPES, *[SHARES] * 4, st.integers(0, 9))
def test_a_rectangle_is_all_that_moves(
    shape: tuple[int, int, int], left: float, top: float, width: float, height: float, seed: int
) -> None:
    own, other, box = tokens(shape, 5), tokens(shape, 5, 1), Box(left, top, width, height)
    rows, columns = box.slices(*shape[1:])
    inside = np.zeros(shape[1:], bool)
    inside[rows, columns] = True
    assert inside.any()
    # A position is in if the rectangle reaches into it, or holds nothing but that corner.
    for y in range(shape[1]):
        overlap = min(top + height, (y + 1) / shape[1]) - max(top, y / shape[1])
        if overlap > 1e-6 and inside.any(0)[columns.start]:
            assert inside[y, columns.start]
        elif overlap < -1e-6 and rows.stop - rows.start > 1:
            assert not inside[y].any()
    swapped = damaged(own, SWAP, box=box, other=other).tokens.ids.numpy()
    expected = np.where(inside, other.ids.numpy(), own.ids.numpy())
    assert np.array_equal(swapped, expected)

    moved = damaged(own, SHUFFLE, box=box, seed=seed).tokens.ids.numpy()
    assert np.array_equal(moved[..., ~inside], own.ids.numpy()[..., ~inside])
    before, after = (sorted(map(tuple, one[0][:, inside].T)) for one in (own.ids.numpy(), moved))
    assert before == after  # all groups of a position together


def test_a_group_is_zeroed() -> None:
    own = tokens((3, 4, 5), 6)
    found = damaged(own, ZERO, group=1).tokens.ids
    assert (found[:, 1] == 0).all() and torch.equal(found[:, [0, 2]], own.ids[:, [0, 2]])
    for group in (-1, 3):
        with pytest.raises(WetokError, match="no group"):
            damaged(own, ZERO, group=group)


def test_what_does_not_fit() -> None:
    own = tokens((2, 4, 5), 6)
    for share in (-0.1, 1.1):
        with pytest.raises(WetokError, match="must lie in 0 to 1"):
            damaged(own, RANDOM, share=share)
    with pytest.raises(WetokError, match="shares from 0 to 1"):
        damaged(own, SHUFFLE, box=Box(0, 0, 1.2, 1))
    with pytest.raises(WetokError, match="another shape"):
        damaged(own, SWAP, other=tokens((2, 5, 5), 6))
