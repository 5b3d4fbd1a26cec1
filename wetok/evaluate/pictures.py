"""The best and the worst images of an evaluation, kept while it runs: a few, however many pass."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wetok.data.images import to_pil
from wetok.evaluate.evaluation import Scored, is_lower_better
from wetok.evaluate.processes import gathered

KEPT, LARGEST, SAMPLES = 6, 640, 4


@dataclass(frozen=True)
class Picture:
    """One image as the report shows it; everything as the bytes of image files."""

    place: int
    row: dict[str, Any] = field(hash=False)
    shown: tuple[int, int]
    """Width and height here; those of the image are in `row`."""
    original: bytes
    """WebP, without loss."""
    samples: list[bytes]
    """Reconstructions, at most `SAMPLES`."""
    difference: bytes
    """Grey PNG: absolute difference of the first sample, mean over RGB, in levels of 255."""
    spread: bytes | None
    """Grey PNG: standard deviation over all samples, in quarters of a level (up to 63.75)."""


class Gallery:
    """Keeps the `kept` best and worst images by one score.

    An `Evaluation` shows it every image (`watch=gallery.offer`). Pictures beyond 640 pixels are
    made smaller after the differences were taken.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self.score = ""
        """What images are ranked by: the first LPIPS, or PSNR where there is none."""
        self._best: list[tuple[float, Picture]] = []
        self._worst: list[tuple[float, Picture]] = []

    def offer(self, scored: Scored) -> None:
        """Takes the image in if it is among the best or the worst so far."""
        row = scored.row
        if not self.score:
            lpips = [name for name in row if name.startswith("lpips-") and ":" not in name]
            self.score = lpips[0] if lpips else "psnr"
        value = row[self.score]
        if value is None:
            return
        # Badness: the higher the worse; of equals, the earlier in the list comes first.
        bad = value if is_lower_better(self.score) else -value
        picture = None
        for found, sign in ((self._best, 1.0), (self._worst, -1.0)):
            if len(found) < self.kept or (sign * bad, scored.place) < _key(found[-1]):
                picture = picture or make_picture(scored)
                found.append((sign * bad, picture))
                found.sort(key=_key)
                del found[self.kept :]

    def gather(self) -> None:
        """Joins what all processes kept; every one must call it."""
        parts = gathered(self)
        self.score = next((part.score for part in parts if part.score), "")
        self._best = sorted((one for part in parts for one in part._best), key=_key)[: self.kept]
        self._worst = sorted((one for part in parts for one in part._worst), key=_key)[: self.kept]

    @property
    def worst(self) -> list[Picture]:
        """The worst first."""
        return [picture for _, picture in self._worst]

    @property
    def best(self) -> list[Picture]:
        """The best first, without those that are among the worst, too."""
        shown = {picture.place for picture in self.worst}
        return [picture for _, picture in self._best if picture.place not in shown]


def make_picture(scored: Scored) -> Picture:
    """What is kept of an image."""
    original, samples = scored.original[0].cpu(), [one[0].cpu() for one in scored.samples]
    difference = (samples[0].int() - original.int()).abs().float().mean(0)
    width, height = original.shape[-1], original.shape[-2]
    scale = min(1.0, LARGEST / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Picture(
        scored.place,
        scored.row,
        size,
        _webp(original, size),
        [_webp(one, size) for one in samples[:SAMPLES]],
        _grey(difference, size),
        _grey(4 * spread_of(samples), size) if len(samples) > 1 else None,
    )


def spread_of(samples: list[Tensor]) -> Tensor:
    """Standard deviation (n - 1) over uint8 images [3,H,W]: root of the mean variance of RGB."""
    mean = torch.zeros(samples[0].shape, dtype=torch.float64)
    squares = mean.clone()
    for count, sample in enumerate(samples, 1):  # Welford: one sample at a time
        delta = sample - mean
        mean += delta / count
        squares += delta * (sample - mean)
    return (squares / (len(samples) - 1)).mean(0).sqrt().float()


def values(grey: bytes) -> NDArray[np.float32]:
    """[H,W] of a grey PNG as `Picture` has it."""
    return np.asarray(Image.open(io.BytesIO(grey)), np.float32)


def _key(entry: tuple[float, Picture]) -> tuple[float, int]:
    return entry[0], entry[1].place


def _webp(pixels: Tensor, size: tuple[int, int]) -> bytes:
    (image,) = to_pil(pixels[None])
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", lossless=True, quality=60, method=4)
    return stream.getvalue()


def _grey(levels: Tensor, size: tuple[int, int]) -> bytes:
    image = Image.fromarray(levels.numpy().astype(np.float32))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BOX)
    rounded = np.asarray(image).round().clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(rounded).save(stream, "PNG", optimize=True)
    return stream.getvalue()
