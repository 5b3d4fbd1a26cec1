"""Which parts of an image become tokens: one in the middle, with its mirror image, or ten."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from wetok.config import WetokError
from wetok.data.transforms import center_crop

Views: TypeAlias = Literal["center", "flip", "ten-crop"]

CROP_RANGE = 1.1
_CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right", "center")


@dataclass(frozen=True)
class Preprocessing:
    """From an image of any size to the pixels that are encoded.

    size        of the square views in pixels; None takes images whole, at their own sizes
    views       center: the shorter side resized to `size` (bicubic, antialiased), and the middle
                flip: that and its mirror image
                ten-crop: as the generators of the LlamaGen kind are trained with: the same for
                `int(size * crop_range)` pixels, of that the four corners and the middle of `size`
                pixels, and the mirror images of these
    crop_range  of ten-crop, from 1 on
    """

    size: int | None = 256
    views: Views = "center"
    crop_range: float = CROP_RANGE

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise WetokError(f"size={self.size} must be at least 1 pixel")
        if self.views not in get_args(Views):
            raise WetokError(f"views={self.views!r} must be one of {', '.join(get_args(Views))}")
        if not 1 <= self.crop_range <= 4:
            raise WetokError(f"crop_range={self.crop_range} must lie in 1..4")
        if self.views == "ten-crop" and self.size is None:
            raise WetokError("views='ten-crop' takes parts of one size: give size, e.g. 256")

    @property
    def names(self) -> tuple[str, ...]:
        """The views of an image, in order."""
        once = _CORNERS if self.views == "ten-crop" else ("center",)
        return once if self.views == "center" else (*once, *(f"{name}-flip" for name in once))

    def __call__(self, image: Image.Image) -> list[np.ndarray]:
        """The views of an RGB image, uint8 [H,W,3] each, in the order of `names`."""
        size = self.size
        if size is None:
            once = [np.asarray(image)]
        elif self.views != "ten-crop":
            once = [np.asarray(center_crop(image, size))]
        else:
            whole = np.asarray(center_crop(image, int(size * self.crop_range)))
            far = len(whole) - size
            middle = far // 2
            places = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
            once = [whole[top : top + size, left : left + size] for top, left in places]
        if self.views != "center":
            once += [view[:, ::-1] for view in once]
        return [np.ascontiguousarray(view) for view in once]

    def __str__(self) -> str:
        if self.size is None:
            return "whole images" + ("" if self.views == "center" else " and mirror images")
        if self.views == "ten-crop":
            wide = int(self.size * self.crop_range)
            return (
                f"shorter side to {wide} (bicubic, antialiased), center crop {wide} x {wide}, of "
                f"that corners and middle of {self.size} x {self.size}, and mirror images"
            )
        return (
            f"shorter side to {self.size} (bicubic, antialiased), center crop {self.size} x "
            f"{self.size}" + ("" if self.views == "center" else ", and its mirror image")
        )

    @property
    def hash(self) -> str:
        """16 hex digits of the SHA-256 of what this makes of known pixels.

        Whatever changes pixels changes it, be it another version of Pillow.
        """
        digest = hashlib.sha256()
        for width, height in ((401, 307), (90, 161), (256, 256)):
            y, x, channel = np.ogrid[:height, :width, :3]
            pattern = (x * x // 7 + y * (5 + channel) + (x * y >> 4) * channel) % 256
            for view in self(Image.fromarray(pattern.astype(np.uint8))):
                digest.update(repr(view.shape).encode() + view.tobytes())
        return digest.hexdigest()[:16]
