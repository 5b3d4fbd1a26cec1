"""Where training images come from."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Protocol, TypeVar

from PIL import Image

from wetok.data.images import Size, find_images, load_image
from wetok.data.order import far_step, shuffled

K = TypeVar("K", bound=Hashable)
Draft = Callable[[Size], Size]


class Source(Protocol[K]):
    """What a loader needs of a collection of images, be it a folder, shards or a mixture.

    A key stands for one image; only the source knows what is in it. Keys are handed out in one
    thread and looked up in several. `order` and `substitute` must be pure functions of their
    arguments: that is what makes a run resumable from a single number.
    """

    @property
    def skipped(self) -> Mapping[str, str]:
        """What was left out when the source was opened, e.g. a file cut off: name -> reason."""
        ...

    def order(self, seed: int, start: int) -> Iterator[K]:
        """The endless shuffled sequence of keys that `seed` gives, from sample `start` on."""
        ...

    def substitute(self, key: K) -> K:
        """The key tried instead of one that can't be decoded. Repeated, it leads back to `key`."""
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


class NamedBytes(io.BytesIO):
    """The bytes of one image out of many in a file, which errors are to call `name`."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


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
        self.skipped: dict[str, str] = {}
        self._step = far_step(len(self.paths))

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
        return (key + self._step) % len(self)

    def _keep(self, key: int, image: Image.Image) -> None:
        cost = image.width * image.height * 4  # Pillow's own layout of RGB
        with self._lock:
            if key not in self._cached and self.cached_bytes + cost <= self._cache_bytes:
                self.cached_bytes += cost
                self._cached[key] = image
