"""The work on a part: keys to records. Pure: nothing but the part, the model and the plan counts.

    item -> decode -> views, uint8 [H,W,3]   or why there are none       (any process, any order)
    views -> PartWork.add -> ids             PartWork.result -> Result   (where the model is)

Images pass the network one by one, so that ids depend on nothing but the image; or, with a batch,
in places that are fixed by the part: view v of item i is number i * views + v of its part, batches
are cut from that row, and the place of an image that can't be decoded stays empty.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from wetok.config import WetokError
from wetok.data.images import to_tensor
from wetok.data.tokens import About, Record
from wetok.model.tokenizer import pad_to_multiple
from wetok.model.usage import EXACT_BITS, UsageCounter
from wetok.tokenize.inputs import Item, Reader
from wetok.tokenize.plan import Part, Plan
from wetok.tokenize.views import Preprocessing

if TYPE_CHECKING:
    from wetok.model.tokenizer import Tokenizer


_SMALL = 2**20  # pixels that pass as a whole wherever a model runs


class Decoded(NamedTuple):
    """One item's pixels."""

    views: list[np.ndarray]
    """uint8 [H,W,3], in the order of `Preprocessing.names`."""
    extras: Mapping[str, Any]


class Failed(NamedTuple):
    """An item that can't be decoded."""

    reason: str


class Failure(NamedTuple):
    """An input that has no tokens."""

    number: int
    """Its number within its part."""
    key: str
    reason: str


def decode(item: Item, reader: Reader, preprocessing: Preprocessing) -> Decoded | Failed:
    """The views of one item; whatever is wrong with it is a reason, and no error."""
    try:
        image, extras = reader.read(item)
        return Decoded(preprocessing(image), extras)
    except WetokError as error:
        return Failed(" ".join(str(error).split()))
    except MemoryError:
        return Failed(f"image {item.key!r} does not fit in memory")
    except Exception as error:  # of a reader's library: one image is no reason to stop
        return Failed(f"image {item.key!r} can't be read: {' '.join(repr(error).split())[:200]}")


@dataclass(eq=False)
class Usage:
    """How often each code of each group was seen (beyond 16 bits: each of 2^16 buckets)."""

    counts: np.ndarray
    """int64 [g, 2^d']."""
    ones: np.ndarray
    """int64 [g, d'], how often each bit was 1."""
    positions: int = 0

    @classmethod
    def none(cls, about: About) -> Usage:
        size = 2 ** min(about.group_bits, EXACT_BITS)
        ones = np.zeros((about.groups, about.group_bits), np.int64)
        return cls(np.zeros((about.groups, size), np.int64), ones)

    def add_ids(self, ids: np.ndarray, about: About) -> None:
        """Counts ids [g,...]."""
        codes = torch.from_numpy(ids.astype(np.int64).reshape(1, about.groups, 1, -1))
        counter = UsageCounter(about.groups, about.group_bits)
        counter.update(codes)
        self.counts += counter.counts.numpy()
        for bit in range(about.group_bits):
            self.ones[:, bit] += ((codes[0, :, 0] >> bit) & 1).sum(-1).numpy()
        self.positions += codes.shape[-1]

    def add(self, other: Usage) -> None:
        self.counts += other.counts
        self.ones += other.ones
        self.positions += other.positions

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Usage)
            and np.array_equal(self.counts, other.counts)
            and np.array_equal(self.ones, other.ones)
            and self.positions == other.positions
        )

    def share(self) -> list[float]:
        """Share of the codes (beyond 16 bits: buckets) of each group that were seen, in [0,1]."""
        shares: list[float] = (self.counts > 0).mean(1).tolist()
        return shares

    def entropy(self) -> list[float]:
        """Entropy in bits of each group's codes as they were counted, in [0,d']."""
        p = self.counts / np.maximum(1, self.counts.sum(1, keepdims=True))
        logs = np.log2(p, out=np.zeros_like(p), where=p > 0)
        return [abs(float(bits)) for bits in -(p * logs).sum(1)]

    def dead_bits(self) -> int:
        """Bits, of d in all, that had one value throughout."""
        return int(((self.ones == 0) | (self.ones == self.positions)).sum())

    def to_json(self) -> dict[str, Any]:
        packed = zlib.compress(self.counts.astype("<i8").tobytes(), 6)
        return {
            "counts": base64.b64encode(packed).decode(),
            "ones": self.ones.tolist(),
            "positions": self.positions,
        }

    @classmethod
    def from_json(cls, tree: dict[str, Any], about: About) -> Usage:
        """Raises ValueError, KeyError or TypeError for what `to_json` does not give."""
        usage = cls.none(about)
        try:
            data = zlib.decompress(base64.b64decode(tree["counts"]))
        except zlib.error as error:
            raise ValueError(str(error)) from None
        usage.counts = np.frombuffer(data, "<i8").reshape(usage.counts.shape).astype(np.int64)
        usage.ones = np.array(tree["ones"], np.int64).reshape(usage.ones.shape)
        usage.positions = int(tree["positions"])
        return usage


class Result(NamedTuple):
    """What comes of a part: every item is in one of the two, none in both."""

    part: int
    keys_hash: str
    inputs: int
    records: list[Record]
    failures: list[Failure]
    usage: Usage


class PartWork:
    """Encodes a part as its items come, in any order.

    Args:
        part: what is to be worked on.
        plan: of the job.
        tokenizer: the model.
    """

    def __init__(self, part: Part, plan: Plan, tokenizer: Tokenizer) -> None:
        self.part, self._plan, self._tokenizer = part, plan, tokenizer
        self._names = plan.preprocessing.names
        self._waiting: dict[int, list[np.ndarray]] = {}  # with a batch: pixels by item
        self._ids: dict[int, np.ndarray] = {}  # by place: item * views + view
        self._extras: dict[int, Mapping[str, Any]] = {}
        self._sizes: dict[int, list[tuple[int, int]]] = {}
        self._failures: dict[int, Failure] = {}
        self._batches_done: set[int] = set()

    def add(self, index: int, outcome: Decoded | Failed) -> None:
        """Item `index` of the part; a second time is passed over."""
        if index in self._extras or index in self._failures:
            return
        if isinstance(outcome, Failed):
            self._failures[index] = Failure(index, self.part.items[index].key, outcome.reason)
        else:
            self._extras[index] = outcome.extras
            self._sizes[index] = [(len(view), view.shape[1]) for view in outcome.views]
            if self._plan.batch == 1:
                for view, pixels in enumerate(outcome.views):
                    self._ids[index * len(self._names) + view] = self._one(pixels)
                return
            self._waiting[index] = outcome.views
        if self._plan.batch > 1:
            self._fill(index)

    @property
    def done(self) -> bool:
        """Whether all items have come."""
        return len(self._extras) + len(self._failures) == len(self.part.items)

    def result(self) -> Result:
        """What came of the part, in its own order; only when it is `done`."""
        assert self.done
        about, records = self._plan.about, []
        usage = Usage.none(about)
        for index, item in enumerate(self.part.items):
            if index in self._failures:
                continue
            for view, name in enumerate(self._names):
                ids = self._ids[index * len(self._names) + view]
                size, extras = self._sizes[index][view], self._extras[index]
                records.append(Record(item.key, name, ids, size, extras))
        if records:
            flat = [record.ids.reshape(about.groups, -1) for record in records]
            usage.add_ids(np.concatenate(flat, 1), about)
        failures = [self._failures[index] for index in sorted(self._failures)]
        inputs = len(self.part.items)
        return Result(self.part.number, self.part.keys_hash, inputs, records, failures, usage)

    def _one(self, pixels: np.ndarray) -> np.ndarray:
        # "auto" looks how much memory there is, which takes a twentieth of a small image's time.
        small = pixels.shape[0] * pixels.shape[1] <= _SMALL
        ids = self._tokenizer.encode(pixels, tiles="off" if small else "auto").ids[0].numpy()
        return ids.astype(self._plan.about.dtype)

    def _fill(self, index: int) -> None:
        """Encodes the batches that item `index` was the last one to be missing of."""
        views, batch = len(self._names), self._plan.batch
        last = len(self.part.items) * views
        first = index * views // batch
        for number in range(first, ((index + 1) * views - 1) // batch + 1):
            places = range(number * batch, min(last, (number + 1) * batch))
            items = {place // views for place in places}
            if number in self._batches_done or not all(self._has(item) for item in items):
                continue
            self._batches_done.add(number)
            full = {
                p: self._waiting[p // views][p % views]
                for p in places
                if p // views in self._waiting
            }
            if full:
                self._encode(places.start, full)
        # Pixels go as soon as all batches that they are in are done.
        for item in list(self._waiting):
            own = range(item * views // batch, ((item + 1) * views - 1) // batch + 1)
            if self._batches_done.issuperset(own):
                del self._waiting[item]

    def _has(self, item: int) -> bool:
        return item in self._extras or item in self._failures

    @torch.no_grad()
    def _encode(self, start: int, pixels: dict[int, np.ndarray]) -> None:
        """A batch of always the same size; `pixels` by place, the other places are black."""
        shape = next(iter(pixels.values())).shape
        stacked = np.zeros((self._plan.batch, *shape), np.uint8)
        for place, view in pixels.items():
            stacked[place - start] = view
        network = self._tokenizer.model
        image = to_tensor(torch.from_numpy(stacked).to(self._tokenizer.device))
        latent = network.encoder(pad_to_multiple(image, self._plan.about.factor))
        ids = network.quantizer(latent).ids.cpu().numpy().astype(self._plan.about.dtype)
        for place in pixels:
            self._ids[place] = ids[place - start]
