"""Several sources as one, in given proportions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from PIL import Image

from wetok.config import WetokError
from wetok.data.order import mixed, seed_of
from wetok.data.sources import Draft, Source

_PARTS = 2**40  # weights are rounded to whole numbers of these


class Mixture:
    """Images of several sources, interleaved at random in exact proportions.

    Each source is gone through in its own order and begins anew when it is through, however long
    the others are: see `wetok.data.order.mixed`. A key is (source, the source's own key).

    Args:
        sources: any sources, mixtures too.
        weights: each source's share of the images, as positive numbers of any sum; by default the
            numbers of images, so that all are seen equally often.

    Raises:
        WetokError: no source, or weights that don't fit.
    """

    def __init__(
        self, sources: Sequence[Source[Any]], weights: Sequence[float] | None = None
    ) -> None:
        if not sources:
            raise WetokError("a mixture needs at least one source")
        shares = [float(len(source)) for source in sources] if weights is None else list(weights)
        if len(shares) != len(sources):
            raise WetokError(f"weights has {len(shares)} numbers for {len(sources)} sources")
        for share in shares:
            if not 0 < share < math.inf:
                raise WetokError(f"weight={share} must be a positive number; leave the source out")
        self.sources = list(sources)
        # Whole numbers, because sums of fractions drift in a long run.
        self._weights = [max(1, round(share / math.fsum(shares) * _PARTS)) for share in shares]
        self.skipped = {
            name: reason for source in sources for name, reason in source.skipped.items()
        }

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    @property
    def shares(self) -> list[float]:
        """Each source's share of the images, of 1."""
        return [weight / sum(self._weights) for weight in self._weights]

    def order(self, seed: int, start: int) -> Iterator[tuple[int, Hashable]]:
        orders: dict[int, Iterator[Hashable]] = {}
        for source, position in mixed(self._weights, seed, start):
            if source not in orders:
                own = self.sources[source].order(seed_of(seed, source), position)
                orders[source] = iter(own)
            yield source, next(orders[source])

    def substitute(self, key: tuple[int, Hashable]) -> tuple[int, Hashable]:
        source, own = key
        return source, self.sources[source].substitute(own)

    def name(self, key: tuple[int, Hashable]) -> str:
        source, own = key
        return self.sources[source].name(own)

    def read(self, key: tuple[int, Hashable], draft: Draft | None = None) -> Image.Image:
        source, own = key
        return self.sources[source].read(own, draft)
