"""Crops for training and for measuring, on PIL images.

A random transform has two halves: `sample(size, rng)` decides from the image's size alone, and
`apply(image, plan)` does it. So the decision is a pure function of the generator, and a source may
decode a JPEG at a lower resolution once it is known how much of it is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageEnhance

from wetok.config import WetokError

Size = tuple[int, int]
Box = tuple[float, float, float, float]


class Plan(NamedTuple):
    """What is to be done with one image. Lengths are in pixels of the full-size image."""

    size: Size  # (width, height) the box refers to
    box: Box  # left, top, right, bottom; fractions of a pixel are allowed
    flip: bool
    jitter: tuple[float, float, float]  # brightness, contrast, saturation; 1 leaves as it is


class Transform(Protocol):
    """What a loader needs to know of a random transform."""

    @property
    def size(self) -> int: ...

    def sample(self, size: Size, rng: np.random.Generator) -> Plan: ...

    def apply(self, image: Image.Image, plan: Plan) -> Image.Image: ...


@dataclass(frozen=True)
class RandomCrop:
    """A random part of the image, resized to `size` x `size`, antialiased.

    Args:
        size: side of the result in pixels.
        scale: range of the part's area as a share of the image's, drawn uniformly. None takes
            `size` x `size` pixels as they are, without resampling (an image that is smaller is
            enlarged just enough).
        ratio: range of the part's width / height, drawn log-uniformly; the result is square, so
            anything but 1 stretches.
        flip: probability of a left-right mirror image.
        jitter: brightness, contrast and saturation are each multiplied by a factor drawn from
            [1 - jitter, 1 + jitter]; 0 is off.
        enlarge: allow parts smaller than `size`, which are then enlarged. Off by default: a blurry
            picture teaches a tokenizer to blur. (Images smaller than `size` are enlarged anyway.)

    The area is drawn first and the ratio within what fits the image, so each sample costs the
    same few draws. Where no allowed ratio fits, the area gives way.
    """

    size: int
    scale: tuple[float, float] | None = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.0
    enlarge: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise WetokError(f"size={self.size} must be at least 1 pixel")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise WetokError(f"scale={self.scale} must be a rising range within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise WetokError(f"ratio={self.ratio} must be a rising range above 0")
        if not 0 <= self.flip <= 1:
            raise WetokError(f"flip={self.flip} must be a probability in [0, 1]")
        if not 0 <= self.jitter < 1:
            raise WetokError(f"jitter={self.jitter} must be in [0, 1)")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """RGB image of any size to `size` x `size`; the input is not changed."""
        return self.apply(image, self.sample(image.size, rng))

    def sample(self, size: Size, rng: np.random.Generator) -> Plan:
        """Decide for an image of `size` (width, height)."""
        # Always the same number of draws, so that one setting does not change another's luck.
        area, ratio, left, top, flip, *jitter = (float(draw) for draw in rng.random(8))
        width, height = size
        if self.scale is None:
            side = min(self.size, width, height)
            box_width, box_height = float(side), float(side)
        else:
            box_width, box_height = self._part(width, height, area, ratio)
        x, y = left * (width - box_width), top * (height - box_height)
        if self.scale is None:  # whole pixels, each position as likely, so nothing is resampled
            x = float(math.floor(left * (width - box_width + 1)))
            y = float(math.floor(top * (height - box_height + 1)))
        # The far edges are clipped because a rounding error beyond the image is refused by Pillow.
        box = (x, y, min(x + box_width, width), min(y + box_height, height))
        factors = tuple(1 + self.jitter * (2 * draw - 1) for draw in jitter)
        return Plan(size, box, flip < self.flip, (factors[0], factors[1], factors[2]))

    def apply(self, image: Image.Image, plan: Plan) -> Image.Image:
        """Carry out `plan` on the image it was made for, or on a smaller decode of it."""
        box = plan.box
        if image.size != plan.size:
            across, down = _reduction(plan.size, image.size)
            box = (box[0] / across, box[1] / down, box[2] / across, box[3] / down)
            box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
        whole = (round(box[0]), round(box[1]), round(box[0]) + self.size, round(box[1]) + self.size)
        if all(edge == cut for edge, cut in zip(box, whole, strict=True)):
            result = image.crop(whole)
        else:
            result = image.resize(
                (self.size, self.size),
                Image.Resampling.BICUBIC,
                box=box,
                # A box filter first where the part is more than twice too large: up to 4 times
                # faster, and 49 dB or more from one bicubic pass on photographs.
                reducing_gap=2.0,
            )
        if plan.flip:
            result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.jitter:
            for enhance, factor in zip(
                (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color),
                plan.jitter,
                strict=True,
            ):
                result = enhance(result).enhance(factor)
        return result

    def _part(self, width: int, height: int, area: float, ratio: float) -> tuple[float, float]:
        assert self.scale is not None
        low, high = self.scale
        pixels = width * height * (low + (high - low) * area)
        if not self.enlarge:
            pixels = max(pixels, float(self.size**2))
        pixels = min(pixels, width * height)
        # box_width = sqrt(pixels * r) <= width and box_height = sqrt(pixels / r) <= height
        least, most = pixels / height**2, width**2 / pixels
        low, high = max(self.ratio[0], least), min(self.ratio[1], most)
        if low > high:  # none fits with this area: the nearest allowed ratio, as large as it goes
            chosen = self.ratio[0] if most < self.ratio[0] else self.ratio[1]
            box_width = min(width, height * chosen)
            return box_width, min(box_width / chosen, float(height))
        chosen = low * (high / low) ** ratio
        box_width, box_height = math.sqrt(pixels * chosen), math.sqrt(pixels / chosen)
        if not self.enlarge:  # the stretch alone may push one side below the crop
            box_width, box_height = max(box_width, self.size), max(box_height, self.size)
        return min(box_width, width), min(box_height, height)


def needed_size(plan: Plan, size: int) -> Size:
    """The least (width, height) of the whole image to decode at for `plan`'s part of it.

    That leaves 1.5 times `size` for the part, or its own resolution where it has less: with a
    decode that is just large enough, crops of photographs are 36 to 40 dB from those of a full
    decode; with this one, more than 42.
    """
    left, top, right, bottom = plan.box
    return (
        math.ceil(plan.size[0] * min(1.0, 1.5 * size / (right - left))),
        math.ceil(plan.size[1] * min(1.0, 1.5 * size / (bottom - top))),
    )


def _reduction(full: Size, small: Size) -> tuple[float, float]:
    """How many pixels across and down of the `full` image are one of the `small`."""
    for times in (2, 4, 8):
        # A JPEG decoder's pixels are exactly this large; the last ones may reach over the edge.
        if small == (-(-full[0] // times), -(-full[1] // times)):
            return times, times
    return full[0] / small[0], full[1] / small[1]


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to `size` (bicubic, antialiased), then the middle `size` x `size`.

    An image that is smaller is enlarged; one whose shorter side is `size` already is only cut.
    The longer side is rounded to the nearest pixel, and an odd rest leaves the extra pixel right
    or below.
    """
    if size < 1:
        raise WetokError(f"size={size} must be at least 1 pixel")
    shorter = min(image.size)
    width, height = (max(size, round(side * size / shorter)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
