"""An endless stream of training batches that can be stopped and resumed at any sample.

Sample number k of a run (counted over all processes) is a pure function of the seed and k: the
source's order gives the image, a generator seeded with (seed, k) gives the crop. Batches are dealt
to the processes sample by sample. So the position is one number, and neither the number of workers
nor a restart changes what a run sees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from wetok.config import WetokError
from wetok.data.images import to_tensor
from wetok.data.sources import Source
from wetok.data.transforms import Plan, RandomCrop, Size, Transform, needed_size

K = TypeVar("K", bound=Hashable)


class Sample(NamedTuple):
    pixels: np.ndarray  # uint8 [size,size,3]
    failed: list[tuple[str, str]]  # the images that had to be passed over: name, reason


class TrainLoader(Generic[K]):
    """Batches of random crops, float32 [B,3,crop,crop] in [-1, 1], without end.

    Args:
        source: images, see `wetok.data.sources`.
        batch_size: images a batch, on this process.
        crop: side of the crops in pixels.
        seed: decides order and crops; any integer from 0.
        transform: what to do with an image; by default `RandomCrop(crop)`.
        workers: threads that decode ahead; 0 decodes in the caller's. (Pillow decodes and resizes
            without holding Python's lock.)
        rank, world: this process, and how many there are. Each sees its own share of the stream.
        prefetch: batches to have ready or under way, beside the one being used.
        draft: let JPEGs decode at 1/2, 1/4 or 1/8 where that still covers the crop. Faster, and
            not quite the same pixels.

    An image that can't be decoded is replaced by another, the same one whenever the same seed is
    used, and listed once in `failures` (name -> reason), which begins with what the source left out
    when it was opened. Use as a context manager, or `close()`.
    To change crop or batch size during a run, build a new loader and hand it this one's state.
    """

    def __init__(
        self,
        source: Source[K],
        batch_size: int,
        crop: int,
        seed: int = 0,
        *,
        transform: Transform | None = None,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 2,
        draft: bool = False,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("crop", crop, 1),
            ("seed", seed, 0),
            ("workers", workers, 0),
            ("world", world, 1),
            ("prefetch", prefetch, 1),
        ):
            if value < least:
                raise WetokError(f"{name}={value} must be at least {least}")
        if not 0 <= rank < world:
            raise WetokError(f"rank={rank} must be in 0..{world - 1} (world={world})")
        if transform is not None and transform.size != crop:
            raise WetokError(f"transform gives {transform.size} pixels, but crop={crop}")
        self.source = source
        self.batch_size = batch_size
        self.transform = transform or RandomCrop(crop)
        self.seed = seed
        self.failures = dict(source.skipped)
        self._rank, self._world, self._draft = rank, world, draft
        self._ahead = (1 + prefetch) * batch_size
        self._pool = ThreadPoolExecutor(workers, "wetok-data") if workers else None
        self._broken: dict[K, str] = {}
        self._closed = False
        self._samples = 0
        self._pending: deque[Future[Sample]] = deque()
        self._start(0)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        if self._closed:
            raise WetokError("the loader is closed: build a new one and load its state")
        try:
            taken = [self._take() for _ in range(self.batch_size)]
        except BaseException:  # Ctrl-C as well: what was taken already is not lost
            self._start(self._samples)
            raise
        for sample in taken:
            for name, reason in sample.failed:
                self.failures.setdefault(name, reason)
        self._samples += self.batch_size * self._world
        return to_tensor(np.stack([sample.pixels for sample in taken]))

    def state_dict(self) -> dict[str, Any]:
        """The position: samples handed out so far, by all processes together."""
        return {"samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; works at any time, forwards and backwards."""
        samples = state.get("samples")
        if not isinstance(samples, int) or samples < 0:
            raise WetokError(f"loader state {state!r} must be {{'samples': n}} with n from 0")
        self._start(samples)

    def close(self) -> None:
        """Stop the workers. Calling it twice is fine."""
        self._closed = True
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> TrainLoader[K]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, samples: int) -> None:
        self._drop()
        self._samples = samples
        first = samples + self._rank
        keys = islice(self.source.order(self.seed, first), 0, None, self._world)
        self._numbered = zip(count(first, self._world), keys)  # noqa: B905 (both are endless)

    def _drop(self) -> None:
        for future in self._pending:
            future.cancel()
        self._pending.clear()

    def _take(self) -> Sample:
        if self._pool is None:
            return self._make(*next(self._numbered))
        while len(self._pending) < self._ahead:
            self._pending.append(self._pool.submit(self._make, *next(self._numbered)))
        return self._pending.popleft().result()

    def _make(self, number: int, key: K) -> Sample:
        failed: list[tuple[str, str]] = []
        first = key
        while not failed or key != first:
            reason = self._broken.get(key)
            if reason is None:
                try:
                    # The generator starts anew, so that the crop does not depend on how far an
                    # image that failed had got.
                    rng = np.random.default_rng((self.seed, 1, number))
                    return Sample(self._crop(key, rng), failed)
                except WetokError as error:
                    reason = self._broken[key] = str(error)
            failed.append((self.source.name(key), reason))
            key = self.source.substitute(key)
        raise WetokError(
            f"none of the {len(failed)} training images can be decoded: {failed[0][1]}"
        )

    def _crop(self, key: K, rng: np.random.Generator) -> np.ndarray:
        plan: Plan | None = None

        def least(size: Size) -> Size:
            nonlocal plan
            plan = self.transform.sample(size, rng)
            return needed_size(plan, self.transform.size)

        image = self.source.read(key, least if self._draft else None)
        if plan is None:
            plan = self.transform.sample(image.size, rng)
        return np.asarray(self.transform.apply(image, plan))
