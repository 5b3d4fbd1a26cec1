"""Classical codecs through Pillow, at their best reasonable settings, and the search for a size.

Settings were chosen on photographs of 256 x 256 (`docs/compare.md` has the numbers); metadata is
never written. A codec may have several variants of its settings, such as JPEG with and without
reduced colour; of those the one with the highest PSNR at a size is taken.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image, features

from wetok.config import WetokError, near

# What Pillow raises where a format, a size or a setting is not to its liking.
_PILLOWS = (OSError, ValueError, KeyError, RuntimeError, TypeError)


@dataclass(frozen=True)
class Codec:
    """One way to write an image to a file, and its scale of qualities."""

    name: str
    title: str
    format: str
    """Pillow's name for it."""
    qualities: range
    """From the smallest files to the largest."""
    curve: tuple[int, ...]
    """Some of them, that make a rate-distortion curve from about 0.1 to 2 bits a pixel."""
    variants: tuple[Mapping[str, Any], ...]
    """Settings for Pillow's `save`."""
    needs: str
    """What to install where Pillow can't write it."""
    library: str | None = None
    """Of `PIL.features`, whose version is told; None for a plugin."""
    plugin: str | None = None
    """Module that teaches Pillow the format when it is imported."""
    package: str = ""
    """What the plugin is called on PyPI."""
    as_settings: Callable[[int], dict[str, Any]] = field(
        default=lambda quality: {"quality": quality}
    )
    """A quality as settings for `save`."""
    ahead: int = 1
    """Sizes now and then fall by some bytes from a quality to the next. The search also tries so
    many qualities above the first that is too large."""

    @property
    def version(self) -> str:
        """Of Pillow and the library that does the work."""
        if self.plugin is not None:
            return f"Pillow {PIL.__version__}, {self.package} {metadata.version(self.package)}"
        turbo = features.version_feature("libjpeg_turbo") if self.library == "jpg" else None
        library = (
            f"libjpeg-turbo {turbo}"
            if turbo
            else f"{self.library} {features.version(str(self.library))}"
        )
        return f"Pillow {PIL.__version__}, {library}"

    @property
    def fingerprint(self) -> str:
        """16 hex digits over format, settings and versions."""
        scale = [self.as_settings(quality) for quality in (self.qualities[0], self.qualities[-1])]
        known = [self.format, [dict(one) for one in self.variants], scale, self.version]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def encode(self, image: Image.Image, quality: int, variant: int = 0) -> bytes:
        """The file of an RGB image.

        Raises:
            WetokError: Pillow can't write it, or not an image of this size; a quality or variant
                that the codec does not have.
        """
        if quality not in self.qualities:
            raise WetokError(
                f"quality={quality} of {self.name} must lie in {self.qualities[0]}.."
                f"{self.qualities[-1]}"
            )
        _import(self.plugin)
        # A copy without what the image brought along, such as a colour profile.
        plain = Image.frombytes("RGB", image.size, image.tobytes())
        stream = io.BytesIO()
        with self._errors(f"write {image.width} x {image.height} pixels"):
            plain.save(stream, self.format, **self.variants[variant], **self.as_settings(quality))
        return stream.getvalue()

    def decode(self, file: bytes) -> Image.Image:
        """The RGB image in a file of this codec.

        Raises:
            WetokError: there is none.
        """
        _import(self.plugin)
        with (
            self._errors("read its own file"),
            Image.open(io.BytesIO(file), formats=[self.format]) as image,
        ):
            return image.convert("RGB")

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (*_PILLOWS, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise WetokError(f"codec {self.name!r} can't {doing}: {reason}") from None


_KEPT = 4  # files of an image


class Coded(NamedTuple):
    """An image as a codec made it."""

    file: bytes
    image: Image.Image
    """Decoded: RGB."""
    quality: int
    variant: int
    fits: bool
    """Whether the file is no larger than was asked for; if not, it is the codec's smallest."""
    encode_seconds: float
    """Of this file alone, without the search for it."""
    decode_seconds: float


class Encodings:
    """One image's files by one codec. Sizes are remembered, so that a second search is short."""

    def __init__(self, codec: Codec, image: Image.Image) -> None:
        self.codec, self.image = codec, image
        self._sizes: dict[tuple[int, int], int] = {}
        # The latest with the seconds they took, for one of them is wanted.
        self._files: dict[tuple[int, int], tuple[bytes, float]] = {}

    def at_bytes(self, budget: int) -> Coded:
        """The highest quality in at most `budget` bytes; the smallest file where none is so small.

        Of several variants: the one with the highest PSNR.
        """
        return self._best(budget, [None] * len(self.codec.variants))

    def at_quality(self, quality: int) -> Coded:
        """The first variant's file at `quality`, or a better one of another's in its size."""
        budget = self.size(quality, 0)
        return self._best(budget, [quality] + [None] * (len(self.codec.variants) - 1))

    def size(self, quality: int, variant: int = 0) -> int:
        """Bytes of the file."""
        if (quality, variant) not in self._sizes:
            self._sizes[quality, variant] = len(self.file(quality, variant)[0])
        return self._sizes[quality, variant]

    def file(self, quality: int, variant: int = 0) -> tuple[bytes, float]:
        """The file itself, and the seconds it took to make."""
        key = quality, variant
        if key not in self._files:
            if len(self._files) == _KEPT:
                del self._files[next(iter(self._files))]
            began = time.perf_counter()
            file = self.codec.encode(self.image, *key)
            self._files[key] = file, time.perf_counter() - began
        return self._files[key]

    def _best(self, budget: int, qualities: list[int | None]) -> Coded:
        codec, found = self.codec, []
        for variant, given in enumerate(qualities):

            def size(quality: int, variant: int = variant) -> int:
                return self.size(quality, variant)

            quality = given
            if quality is None:
                quality = highest_within(size, codec.qualities, budget, codec.ahead)
            fits = quality is not None
            found.append((fits, codec.qualities[0] if quality is None else quality, variant))
        fitting = [one for one in found if one[0]]
        if not fitting:
            fitting = [min(found, key=lambda one: self.size(one[1], one[2]))]
        return max((self._coded(*one) for one in fitting), key=self._likeness)

    def _coded(self, fits: bool, quality: int, variant: int) -> Coded:
        file, seconds = self.file(quality, variant)
        began = time.perf_counter()
        image = self.codec.decode(file)
        return Coded(file, image, quality, variant, fits, seconds, time.perf_counter() - began)

    def _likeness(self, coded: Coded) -> float:
        """The less the squared error, the more."""
        pair = (np.asarray(image, np.int32) for image in (self.image, coded.image))
        return -float(np.square(np.subtract(*pair)).sum(dtype=np.int64))


def highest_within(
    size: Callable[[int], int], qualities: range, budget: int, ahead: int = 0
) -> int | None:
    """The highest quality whose size is at most `budget`, by bisection; None where there is none.

    Args:
        size: bytes at a quality; grows with it, but for falls that `ahead` qualities make up for.
        ahead: how many qualities above the first that is too large are tried too.
    """
    low, high = -1, len(qualities)  # places known to fit, and not to
    while high - low > 1:
        middle = (low + high) // 2
        if size(qualities[middle]) <= budget:
            low = middle
        else:
            high = middle
    for place in range(min(high + ahead, len(qualities) - 1), high, -1):
        if size(qualities[place]) <= budget:
            return qualities[place]
    return qualities[low] if low >= 0 else None


# `tune=ssim`: at up to 0.5 bits a pixel better in PSNR and LPIPS than what libavif chooses itself.
_AVIF = {"speed": 2, "max_threads": 1, "autotiling": False, "codec": "aom"}
# `mct`: without it Pillow leaves RGB as it is, which takes half as many bytes again.
_JPEG_2000 = {"irreversible": True, "mct": 1, "no_jp2": True, "quality_mode": "dB"}

CODECS = {
    codec.name: codec
    for codec in (
        Codec(
            "jpeg",
            "JPEG",
            "JPEG",
            range(1, 101),
            (1, 5, 10, 20, 35, 50, 70, 85),
            tuple(
                {"optimize": True, "progressive": True, "subsampling": subsampling}
                for subsampling in ("4:2:0", "4:4:4")
            ),
            "install Pillow with libjpeg",
            "jpg",
        ),
        Codec(
            "webp",
            "WebP",
            "WEBP",
            range(0, 101),
            (0, 5, 12, 25, 45, 65, 80, 90),
            ({"method": 6},),
            "install Pillow with libwebp",
            "webp",
            ahead=3,
        ),
        Codec(
            "avif",
            "AVIF",
            "AVIF",
            range(0, 101),
            (5, 12, 22, 34, 46, 58, 70),
            ({**_AVIF, "subsampling": "4:4:4", "advanced": {"tune": "ssim"}},),
            "install Pillow 11.3 or newer, whose wheels have libavif with its AOM encoder",
            "avif",
        ),
        Codec(
            "jpeg2000",
            "JPEG 2000",
            "JPEG2000",
            range(150, 601),
            (230, 250, 270, 290, 310, 340, 380),
            (_JPEG_2000,),
            "install Pillow with OpenJPEG",
            "jpg_2000",
            as_settings=lambda tenths: {"quality_layers": [tenths / 10]},
        ),
        Codec(
            "jxl",
            "JPEG XL",
            "JXL",
            range(0, 101),
            (0, 10, 25, 40, 55, 70, 85),
            ({"effort": 9},),
            "pip install pillow-jxl-plugin (GPL)",
            plugin="pillow_jxl",
            package="pillow-jxl-plugin",
        ),
    )
}
"""Those known; `codec` says which can be used here."""


def codec(name: str) -> Codec:
    """The codec called `name`.

    Raises:
        WetokError: there is none, or Pillow can't write it here; the remedy is named.
    """
    if name not in CODECS:
        raise WetokError(f"codec={name!r} is not known{near(name, list(CODECS))}")
    reason = why_not(name)
    if reason is not None:
        raise WetokError(f"codec={name!r} can't be used here: {reason}; {CODECS[name].needs}")
    return CODECS[name]


def codecs_here() -> list[str]:
    """The names of those that can be used here."""
    return [name for name in CODECS if why_not(name) is None]


@lru_cache
def why_not(name: str) -> str | None:
    """Why a codec can't be used here, known from an attempt; None where it can be."""
    known = CODECS[name]
    if known.plugin is not None and importlib.util.find_spec(known.plugin) is None:
        return f"there is no module {known.plugin!r}"
    try:
        grey = Image.new("RGB", (16, 16), (128, 128, 128))
        for variant in range(len(known.variants)):
            if known.decode(known.encode(grey, known.qualities[0], variant)).size != grey.size:
                return "it gave back an image of another size"
    except (WetokError, ImportError) as error:
        return str(error)
    return None


def _import(plugin: str | None) -> None:
    if plugin is not None:
        importlib.import_module(plugin)
