"""In which order images are gone through: endless, shuffled anew each epoch, from any sample on.

Every order is a pure function of (seed, start), so that a run goes on from a single number without
drawing, let alone reading, what came before.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np

from wetok.config import WetokError

# The second word of each generator's seed, so that no two uses draw the same numbers. The loader's
# crops have 1.
_ORDER, _MIXTURE, _BLOCK, _SOURCE = 0, 2, 3, 4


def shuffled(length: int, seed: int, start: int = 0) -> Iterator[int]:
    """Endless indices below `length`, each epoch in a new order, from sample `start` on.

    Memory: 8 bytes an index.
    """
    if length < 1:
        raise WetokError("nothing to shuffle: the source holds no images")
    epoch, offset = divmod(start, length)
    for number in count(epoch):
        permutation = np.random.default_rng((seed, _ORDER, number)).permutation(length)
        yield from map(int, permutation[offset:])
        offset = 0


def interleaved(sizes: Sequence[int], lanes: int, seed: int, start: int = 0) -> Iterator[int]:
    """Endless indices below sum(sizes), shuffled so that few blocks are in use at a time.

    Indices are numbered through the blocks: block b holds sizes[b] of them, which are cheap to read
    soon after one another. In each epoch the blocks are shuffled and dealt to `lanes`, which take
    turns: the k-th sample of an epoch comes from lane k mod lanes. A lane goes through its blocks
    one by one, each in a random order. Lanes differ by at most one block in length, and those that
    are left at the end of an epoch take turns among themselves.

        lane 0:  [block 7, shuffled] [block 2, shuffled] ...      samples 0, 3, 6, ...
        lane 1:  [block 0, shuffled] [block 5, shuffled] ...      samples 1, 4, 7, ...
        lane 2:  [block 4, shuffled] [block 9, shuffled] ...      samples 2, 5, 8, ...

    Of W processes that take every W-th sample, each needs only the blocks of its own lanes, where W
    divides the number of lanes or the other way round.

    Memory: that of the blocks' list and of the open blocks' orders.
    """
    filled = [block for block, size in enumerate(sizes) if size > 0]
    if not filled:
        raise WetokError("nothing to shuffle: the source holds no images")
    firsts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    epoch, offset = divmod(start, int(firsts[-1]))
    for number in count(epoch):
        permutation = np.random.default_rng((seed, _ORDER, number)).permutation(filled)
        dealt = _deal(permutation, sizes, min(lanes, len(filled)))
        totals = np.array([sum(sizes[block] for block in blocks) for blocks in dealt])

        def before(depth: int, totals: np.ndarray = totals) -> int:
            """How many samples come before the first one that is `depth` deep in its lane."""
            return int(np.minimum(totals, depth).sum())

        depth = bisect_right(range(int(totals.max()) + 1), offset, key=before) - 1
        done = offset - before(depth)  # of this depth
        active = [lane for lane, total in enumerate(totals) if total > depth]
        # Taking turns goes round, so it may start in the middle of a round.
        turns = [
            _lane(dealt[lane], sizes, firsts, depth + (turn < done), (seed, _BLOCK, number))
            for turn, lane in enumerate(active)
        ]
        yield from _take_turns(turns[done:] + turns[:done])
        offset = 0


def _deal(permutation: np.ndarray, sizes: Sequence[int], lanes: int) -> list[list[int]]:
    """Each block to the lane that is shortest so far (the first of several)."""
    dealt: list[list[int]] = [[] for _ in range(lanes)]
    lengths = [(0, lane) for lane in range(lanes)]
    for block in map(int, permutation):
        length, lane = lengths[0]
        dealt[lane].append(block)
        heapq.heapreplace(lengths, (length + sizes[block], lane))
    return dealt


def _lane(
    blocks: list[int],
    sizes: Sequence[int],
    firsts: np.ndarray,
    depth: int,
    entropy: tuple[int, ...],
) -> Iterator[int]:
    for block in blocks:
        if depth >= sizes[block]:
            depth -= sizes[block]
            continue
        permutation = np.random.default_rng((*entropy, block)).permutation(sizes[block])
        yield from map(int, firsts[block] + permutation[depth:])
        depth = 0


def _take_turns(iterators: list[Iterator[int]]) -> Iterator[int]:
    while iterators:
        ended = []
        for turn, iterator in enumerate(iterators):
            # Not `next(iterator, None)` and a second look: this is done for every sample.
            for index in iterator:
                yield index
                break
            else:
                ended.append(turn)
        for turn in reversed(ended):
            del iterators[turn]


def mixed(weights: Sequence[int], seed: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Endless (source, position in its own order) from sample `start` on, in exact proportions.

    Every 256 samples, source i has had its k * weights[i] / sum(weights) of the k samples so far,
    to within less than one image for each source there is. In between, the order is random.
    """
    window, offset = divmod(start, _WINDOW)
    for number in count(window):
        positions = _shares(weights, number * _WINDOW)
        then = _shares(weights, (number + 1) * _WINDOW)
        sources = np.repeat(np.arange(len(weights)), np.subtract(then, positions))
        np.random.default_rng((seed, _MIXTURE, number)).shuffle(sources)
        for turn, source in enumerate(map(int, sources)):
            if turn >= offset:
                yield source, positions[source]
            positions[source] += 1
        offset = 0


_WINDOW = 256


def _shares(weights: Sequence[int], samples: int) -> list[int]:
    """How many of the first `samples` each source has; none of them ever falls as samples grow."""
    shares, left = [], sum(weights)
    for weight in weights:
        # A floor of what the ones before have left over: both it and the rest grow with `samples`.
        share = samples * weight // left
        shares.append(share)
        samples, left = samples - share, left - weight
    return shares


def seed_of(seed: int, source: int) -> int:
    """The seed of one source in a mixture: sources of one length must not go in step."""
    entropy = np.random.SeedSequence((seed, _SOURCE, source))
    return int(entropy.generate_state(1, np.uint64)[0])


def far_step(length: int) -> int:
    """About 0.38 `length`, and such that steps of it visit every index below `length` once.

    Neighbours of an image that is broken are left in peace: where many in a row are (a copy that
    was cut off), few tries lead to one that is not.
    """
    step = max(1, round(length * 0.381966))
    while math.gcd(step, length) != 1:
        step += 1
    return step
