"""Parts in pieces: what a cluster's processes are handed, and how parts are put together again.

    Part -> chunks -> decoded and encoded anywhere, in any order, twice if need be -> Gathering
         -> Result, the same as `wetok.tokenize.work.PartWork` gives for the whole part

A chunk begins where a batch of its part begins, so that each image passes the network in the
company, and in the place, that it has when one process works on the whole part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import gcd
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wetok.data.tokens import Record
from wetok.tokenize.inputs import Item
from wetok.tokenize.plan import Part, Plan
from wetok.tokenize.work import Decoded, Failed, Failure, PartWork, Result, Usage

if TYPE_CHECKING:
    from wetok.model.tokenizer import Tokenizer

IMAGES = 128
"""Most images in a chunk."""
BYTES = 2**25
"""Most bytes of pixels in a chunk, unless one batch has more."""


class Chunk(NamedTuple):
    """Items of a part that follow one another."""

    part: int
    start: int
    """Number of the first within the part."""
    items: list[Item]


class Encoded(NamedTuple):
    """What came of a chunk."""

    part: int
    start: int
    inputs: int
    records: list[Record]
    """Of the items that did not fail, in order, each with all of its views."""
    failures: list[Failure]
    """`Failure.number` counts within the part."""


def smallest_chunk(plan: Plan) -> int:
    """How many items fill whole batches."""
    return plan.batch // gcd(plan.batch, len(plan.preprocessing.names))


def largest_chunk(plan: Plan) -> int:
    """How many items a chunk has, but for a part's last one. Whole images go one by one."""
    size, views = plan.preprocessing.size, len(plan.preprocessing.names)
    most = 1 if size is None else min(IMAGES, BYTES // (3 * views * size * size))
    step = smallest_chunk(plan)
    return max(step, most // step * step)


def chunks(part: Part, length: int, only: Iterable[int] | None = None) -> Iterator[Chunk]:
    """`part` in chunks of `length` items.

    Args:
        only: leaves out chunks that have none of these items.
    """
    wanted = None if only is None else set(only)
    for start in range(0, len(part.items), length):
        items = part.items[start : start + length]
        if wanted is None or not wanted.isdisjoint(range(start, start + len(items))):
            yield Chunk(part.number, start, items)


def encode(
    chunk: Chunk, outcomes: list[Decoded | Failed], plan: Plan, tokenizer: Tokenizer
) -> Encoded:
    """Tokens of a chunk; `outcomes` are of its items, in order."""
    work = PartWork(Part(chunk.part, chunk.items), plan, tokenizer)
    for index, outcome in enumerate(outcomes):
        work.add(index, outcome)
    done = work.result()
    failures = [one._replace(number=chunk.start + one.number) for one in done.failures]
    return Encoded(chunk.part, chunk.start, len(chunk.items), done.records, failures)


class Gathering:
    """A part as its chunks come, in any order; what is there already is passed over."""

    def __init__(self, part: Part, plan: Plan) -> None:
        self.number, self._plan = part.number, plan
        self._keys_hash, self._inputs = part.keys_hash, len(part.items)
        self._records: dict[int, list[Record]] = {}
        self._failures: dict[int, Failure] = {}

    def add(self, encoded: Encoded) -> tuple[int, int]:
        """How many inputs are new by it, and how many of them failed."""
        failures = {one.number: one for one in encoded.failures}
        views = len(self._plan.preprocessing.names)
        new = failed = at = 0
        for number in range(encoded.start, encoded.start + encoded.inputs):
            own = [] if number in failures else encoded.records[at : at + views]
            at += len(own)
            if number in self._records or number in self._failures:
                continue
            new += 1
            if number in failures:
                self._failures[number] = failures[number]
                failed += 1
            else:
                self._records[number] = own
        return new, failed

    def missing(self) -> list[int]:
        """Numbers of the items that have not come."""
        there = self._records.keys() | self._failures.keys()
        return [number for number in range(self._inputs) if number not in there]

    @property
    def done(self) -> bool:
        return len(self._records) + len(self._failures) == self._inputs

    def result(self) -> Result:
        """What came of the part, in its own order; only when it is `done`."""
        assert self.done
        about = self._plan.about
        records = [record for number in sorted(self._records) for record in self._records[number]]
        failures = [self._failures[number] for number in sorted(self._failures)]
        usage = Usage.none(about)
        if records:
            flat = [record.ids.reshape(about.groups, -1) for record in records]
            usage.add_ids(np.concatenate(flat, 1), about)
        return Result(self.number, self._keys_hash, self._inputs, records, failures, usage)
