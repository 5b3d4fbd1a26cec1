"""Batches of ids and labels from token shards."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wetok.config import WetokError, near
from wetok.data.tokens import TokenShards


class TokenBatch(NamedTuple):
    """What a generator learns from."""

    ids: Tensor
    """int64 [B,g,h,w]."""
    labels: Tensor
    """int64 [B] in [0, classes]."""


class Classes:
    """The labels in a column of shards as numbers from 0 on.

    Whole numbers stand for themselves; texts are numbered in their order.

    Args:
        column: None for no classes at all.
        count: of classes, for labels that are numbers; None: one more than the largest.

    Raises:
        WetokError: no such column, labels of another kind, or out of range.
    """

    def __init__(self, shards: TokenShards, column: str | None, count: int | None = None) -> None:
        self.column = column
        self.names: tuple[str, ...] = ()
        self.count = 0
        if column is None:
            return
        values = shards.values(column)
        if not values:
            raise WetokError(f"tokens.label={column!r}: all its cells are empty")
        if all(isinstance(value, str) for value in values):
            self.names = tuple(sorted(values))
            self.count = len(self.names)
        elif all(isinstance(value, int) and value >= 0 for value in values):
            self.count = count or max(values) + 1
            if max(values) >= self.count:
                raise WetokError(
                    f"tokens.classes={count}: label {max(values)} must lie in [0, {count})"
                )
        else:
            strange = next(v for v in values if not (isinstance(v, (int, str)) and v != ""))
            raise WetokError(
                f"tokens.label={column!r}: {strange!r} is no class; labels must be whole numbers "
                "from 0 on, or texts"
            )
        self._number = {name: number for number, name in enumerate(self.names)}

    def number(self, extras: Any) -> int:
        """Of a record; an empty cell has no class.

        Raises:
            WetokError: a class that the training shards don't have.
        """
        value = None if self.column is None else extras.get(self.column)
        if value is None:
            return self.count
        if isinstance(value, str):
            if value not in self._number:
                raise WetokError(
                    f"label {value!r} is not in tokens.train{near(value, list(self.names))}"
                )
            return self._number[value]
        if not 0 <= value < self.count:
            raise WetokError(f"label {value} must lie in [0, {self.count})")
        return int(value)


class TokenStream:
    """Endless batches in a shuffled order that goes on from any sample.

    Args:
        batch: images a batch, on this process.
        start: samples taken before, by all processes.
        rank, world: this process, and how many there are; each takes every world-th sample.
    """

    def __init__(
        self,
        shards: TokenShards,
        classes: Classes,
        batch: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._shards, self._classes, self._batch = shards, classes, batch
        self._order: Iterator[int] = islice(shards.order(seed, start), rank, None, world)

    def __next__(self) -> TokenBatch:
        return batch_of(self._shards, self._classes, list(islice(self._order, self._batch)))


def batch_of(shards: TokenShards, classes: Classes, numbers: list[int]) -> TokenBatch:
    """The records of these numbers, together."""
    records = [shards[number] for number in numbers]
    ids = np.stack([record.ids for record in records]).astype(np.int64)
    labels = [classes.number(record.extras) for record in records]
    return TokenBatch(torch.from_numpy(ids), torch.tensor(labels))
