"""Orders of samples: complete, shuffled, and the same from wherever they are entered."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetok.config import WetokError
from wetok.data.order import far_step, interleaved, mixed, seed_of, shuffled


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 200),
)
def test_shuffled(length: int, seed: int, start: int) -> None:
    epochs = [list(islice(shuffled(length, seed), length * n, length * (n + 1))) for n in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(length))
        assert all(type(index) is int for index in epoch)
    if length > 15:  # by chance equal once in 15!
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        assert epochs[0] != list(islice(shuffled(length, seed + 1), length))
    whole = list(islice(shuffled(length, seed), start + 50))
    assert list(islice(shuffled(length, seed, start), 50)) == whole[start:]


def test_nothing_to_shuffle() -> None:
    with pytest.raises(WetokError, match="no images"):
        next(shuffled(0, 1))


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


def lanes_by_hand(sizes: list[int], lanes: int, seed: int, epoch: int) -> list[list[int]]:
    """What the documentation of `interleaved` says of one epoch, done step by step."""
    firsts = [sum(sizes[:block]) for block in range(len(sizes))]
    filled = [block for block in range(len(sizes)) if sizes[block]]
    result: list[list[int]] = [[] for _ in range(min(lanes, len(filled)))]
    for block in np.random.default_rng((seed, 0, epoch)).permutation(filled):
        rows = np.random.default_rng((seed, 3, epoch, block)).permutation(sizes[block])
        shortest = min(range(len(result)), key=lambda lane: len(result[lane]))
        result[shortest] += [int(firsts[block] + row) for row in rows]
    return result


@settings(max_examples=50, deadline=None)
@given(sizes=SIZES, lanes=st.integers(1, 15), seed=st.integers(0, 2**40), start=st.integers(0, 250))
def test_interleaved(sizes: list[int], lanes: int, seed: int, start: int) -> None:
    total = sum(sizes)
    wanted = []
    for epoch in range(-(-(start + 30) // total)):
        columns = lanes_by_hand(sizes, lanes, seed, epoch)
        for depth in range(max(map(len, columns))):
            wanted += [column[depth] for column in columns if depth < len(column)]
    assert sorted(wanted[:total]) == list(range(total))
    got = list(islice(interleaved(sizes, lanes, seed, start), 30))
    assert got == wanted[start : start + 30]
    assert all(type(index) is int for index in got)


def test_interleaved_keeps_few_blocks_open_and_changes_with_epoch_and_seed() -> None:
    sizes, lanes = [10] * 60, 6
    epochs = [list(islice(interleaved(sizes, lanes, 1, 600 * n), 600)) for n in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(islice(interleaved(sizes, lanes, 2), 600))
    for first in range(0, 600, 60):
        assert len({index // 10 for index in epochs[0][first : first + 60]}) == lanes
    for world in (2, 3, 6, 12):  # a process needs its lanes' blocks only
        for rank in range(world):
            mine = epochs[0][rank::world]
            assert len({index // 10 for index in mine}) == 10 * max(1, lanes // world)


def test_interleaved_lanes_are_nearly_of_one_length() -> None:
    sizes = [int(size) for size in np.random.default_rng(0).integers(1, 50, 200)]
    lengths = [len(lane) for lane in lanes_by_hand(sizes, 7, 0, 0)]
    assert max(lengths) - min(lengths) < 50


def test_entering_a_huge_order_costs_little() -> None:
    sizes = [1000] * 10**4  # ten million
    whole = interleaved(sizes, 16, 0, 0)
    assert len(list(islice(whole, 20))) == 20
    entered = list(islice(interleaved(sizes, 16, 0, 9_999_990), 20))
    assert len({index // 1000 for index in entered[:10]}) == 10
    next_epoch = list(islice(interleaved(sizes, 16, 0, 10_000_000), 10))
    assert entered[10:] == next_epoch


WEIGHTS = st.lists(st.integers(1, 2**20), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, seed=st.integers(0, 2**40), start=st.integers(0, 3000))
def test_mixed(weights: list[int], seed: int, start: int) -> None:
    whole = list(islice(mixed(weights, seed), start + 300))
    assert list(islice(mixed(weights, seed, start), 300)) == whole[start:]
    counts: Counter[int] = Counter()
    for number, (source, position) in enumerate(whole):
        if number % 256 == 0:
            for one, weight in enumerate(weights):
                wanted = number * weight / sum(weights)
                assert abs(counts[one] - wanted) < len(weights)
        assert position == counts[source]  # each source goes on where it was
        counts[source] += 1


def test_mixed_is_in_random_order_and_exact_in_the_long_run() -> None:
    stream = [source for source, _ in islice(mixed([1, 1], 0), 10_240)]
    pairs = Counter(zip(stream, stream[1:], strict=False))
    assert min(pairs.values()) > 2300  # every order of neighbours is as likely
    assert stream != [source for source, _ in islice(mixed([1, 1], 1), 10_240)]
    far = next(mixed([1, 2, 5], 0, 8 * 256 * 10**9))[1]  # at once, however far
    assert far in (256 * 10**9, 2 * 256 * 10**9, 5 * 256 * 10**9)
    counts = Counter(source for source, _ in islice(mixed([1, 2, 5], 3), 8 * 256))
    assert counts == {0: 256, 1: 512, 2: 1280}


def test_sources_of_a_mixture_have_their_own_seeds() -> None:
    seeds = [seed_of(seed, source) for seed in range(20) for source in range(20)]
    assert len(set(seeds)) == 400 and seeds[0] == seed_of(0, 0)
    one, two = (list(islice(shuffled(50, seed_of(0, source)), 50)) for source in (0, 1))
    assert one != two


@pytest.mark.parametrize("length", [*range(1, 30), 100, 240, 997])
def test_far_steps_go_everywhere(length: int) -> None:
    step = far_step(length)
    assert sorted(number * step % length for number in range(length)) == list(range(length))


def test_nothing_to_interleave() -> None:
    with pytest.raises(WetokError, match="no images"):
        next(interleaved([0, 0], 2, 1))
