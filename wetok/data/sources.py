"""Where training images come from."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from itertools import count
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from wetok.config import WetokError
from wetok.data.images import Size, find_images, load_image

K = TypeVar("K", bound=Hashable)
Draft = Callable[[Size], Size]


class Source(Protocol[K]):
    """What a loader needs of a collection of images, be it a folder, shards or a mixture.

    A key stands for one image; only the source knows what is in it. Keys are handed out in one
    thread and looked up in several. `order` and `substitute` must be pure functions of their
    arguments: that is what makes a run resumable from a single number.
    """

    def order(self, seed: int, start: int) -> Iterator[K]:
        """The endless shuffled sequence of keys that `seed` gives, from sample `start` on."""
        ...

    def substitute(self, key: K) -> K:
        """The key tried instead of one that can't be decoded."""
        ...

    def __len__(self) -> int: ...

    def read(self, key: K, draft: Draft | None = None) -> Image.Image:
        """RGB image; `draft` as in `wetok.data.images.load_image`, or disregarded.

        Raises WetokError where it can't be decoded.
        """
        ...

    def name(self, key: K) -> str:
        """What a person finds the image by."""
        ...


class ImageFolder:
    """The images of a file, a folder or a list of either, decoded to RGB.

    Args:
        path: see `wetok.data.images.find_images`.
        cache: keep decoded images in memory, for sets that are small and gone through often.
        cache_bytes: keep no more than this; the images beyond it are decoded each time.

    The images of a cached folder are shared: don't write to them.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | list[str | os.PathLike[str]],
        cache: bool = False,
        cache_bytes: int = 2**31,
    ) -> None:
        self.paths = find_images(path)
        self.cached_bytes = 0
        self._cache_bytes = cache_bytes if cache else 0
        self._cached: dict[int, Image.Image] = {}
        self._lock = threading.Lock()
        # Steps of about 0.38 n visit every image once and leave the neighbours in peace: a folder
        # with many broken files in a row (a copy that was cut off) costs few tries.
        stride = max(1, round(len(self.paths) * 0.381966))
        while math.gcd(stride, len(self.paths)) != 1:
            stride += 1
        self._stride = stride

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.read(index % len(self))

    def read(self, key: int, draft: Draft | None = None) -> Image.Image:
        if not self._cache_bytes:
            return load_image(self.paths[key], draft=draft)
        image = self._cached.get(key)
        if image is None:
            image = load_image(self.paths[key])  # whole: the next crop may need all of it
            self._keep(key, image)
        return image

    def name(self, key: int) -> str:
        return str(self.paths[key])

    def order(self, seed: int, start: int) -> Iterator[int]:
        return shuffled(len(self), seed, start)

    def substitute(self, key: int) -> int:
        return (key + self._stride) % len(self)

    def _keep(self, key: int, image: Image.Image) -> None:
        cost = image.width * image.height * 4  # Pillow's own layout of RGB
        with self._lock:
            if key not in self._cached and self.cached_bytes + cost <= self._cache_bytes:
                self.cached_bytes += cost
                self._cached[key] = image


def shuffled(length: int, seed: int, start: int = 0) -> Iterator[int]:
    """Endless indices below `length`, each epoch in a new order, from sample `start` on."""
    if length < 1:
        raise WetokError("nothing to shuffle: the source holds no images")
    epoch, offset = divmod(start, length)
    for number in count(epoch):
        permutation = np.random.default_rng((seed, 0, number)).permutation(length)
        yield from map(int, permutation[offset:])
        offset = 0
