"""Images that are read window by window and written band by band, one byte a value in between."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wetok.config import WetokError
from wetok.data.images import MAX_PIXELS, load_image, to_pil, to_tensor, to_uint8
from wetok.model.layers import space_to_depth

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | Tensor"
Output: TypeAlias = Literal["pil", "uint8", "float"]

_AT_ONCE = 1 << 20
"""Pixels that a `Picture` converts at a time."""

TILED_MAX_PIXELS = 2**31
"""Of a file that is tiled on request; Pillow holds it in four bytes a pixel."""
_ORIENTATION = 0x0112
_LIMIT = threading.Lock()


class Pixels:
    """One image behind the encoder's stem, read by windows, continued as the facade continues it.

    Args:
        image: RGB PIL image, uint8 [H,W,3] or float [3,H,W] in [-1,1] (numpy, also a memory map,
            or torch).
        factor: f of the model: the image goes on by reflection to multiples of it.
        patch: p of the stem, a divisor of f.
    """

    def __init__(self, image: Image.Image | np.ndarray | Tensor, factor: int, patch: int) -> None:
        self._image, self._patch = image, patch
        height, width = self.size = _size(image)
        whole = -(-height // factor) * factor, -(-width // factor) * factor
        self._rows, self._columns = reflected(height, whole[0]), reflected(width, whole[1])
        self.shape = (3 * patch**2, whole[0] // patch, whole[1] // patch)
        """[3p^2, H'/p, W'/p], of which `read` gives a part."""

    def read(self, top: int, bottom: int, left: int = 0, right: int | None = None) -> Tensor:
        """The window [1, 3p^2, bottom - top, right - left] in [-1,1]."""
        p, end = self._patch, self.shape[2] if right is None else right
        rows, columns = self._rows[top * p : bottom * p], self._columns[left * p : end * p]
        (y0, y1), (x0, x1) = (map(int, line.aminmax()) for line in (rows, columns))
        window = self._window(y0, y1 + 1, x0, x1 + 1)
        if not (_runs(rows) and _runs(columns)):
            window = window[:, (rows - y0)[:, None], columns - x0]
        return space_to_depth(window[None], p) if p > 1 else window[None]

    def _window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        image = self._image
        if isinstance(image, Image.Image):
            return to_tensor(image.crop((left, top, right, bottom)))
        if image.dtype in (np.uint8, torch.uint8):
            return to_tensor(image[top:bottom, left:right])
        return to_tensor(image[:, top:bottom, left:right])


class Picture:
    """An image of the true size (H, W), filled band by band."""

    def __init__(self, size: tuple[int, int], output: Output, device: torch.device) -> None:
        self._size, self._output = size, output
        height, width = size
        self._pil = Image.new("RGB", (width, height)) if output == "pil" else None
        dtype = torch.uint8 if output == "uint8" else torch.float32
        shape = (0,) if self._pil is not None else (3, height, width)
        self._tensor = torch.empty(shape, dtype=dtype, device=device)

    def put(self, top: int, band: Tensor) -> None:
        """Rows from `top` on; band [1,3,rows,W'], which may reach beyond the true size."""
        height, width = self._size
        band = band[0, :, : max(0, height - top), :width]
        # A few rows at a time, for what stands between floats and pixels is as large as they are.
        for rows in band.split(max(1, _AT_ONCE // width), dim=1) if band.numel() else ():
            part = rows.clamp(-1, 1)
            if self._pil is not None:
                self._pil.paste(to_pil(part)[0], (0, top))
            else:
                pixels = to_uint8(part) if self._output == "uint8" else part
                self._tensor[:, top : top + part.shape[1]] = pixels
            top += part.shape[1]

    def result(self) -> Any:
        """A PIL image, or a tensor [3,H,W]."""
        return self._tensor if self._pil is None else self._pil


def reflected(length: int, target: int) -> Tensor:
    """Indices 0, 1, ..., n-1, n-2, ..., 1, 0, 1, ... of a line of n, `target` of them."""
    period = max(1, 2 * (length - 1))
    index = torch.arange(target) % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


def _runs(index: Tensor) -> bool:
    """Whether it counts up one by one."""
    return bool((index.diff() == 1).all())


def singles(image: ImageLike | Sequence[ImageLike], *, unlimited: bool) -> list[Any]:
    """The images of a batch, opened, each PIL, [H,W,3] or [3,H,W]; none is converted to float.

    Args:
        unlimited: take files of up to `TILED_MAX_PIXELS`, not just `MAX_PIXELS`.

    Raises:
        WetokError: no image, several sizes, or not an image.
    """
    images = list(_opened(image, unlimited))
    if not images:
        raise WetokError("image=[]: give at least one image")
    sizes = sorted({_size(one) for one in images})
    if len(sizes) > 1:
        raise WetokError(
            f"image: a batch takes images of one size, not {len(sizes)} (from "
            f"{sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]}); encode them singly"
        )
    return images


def open_image(path: str | os.PathLike[str], *, unlimited: bool) -> Image.Image:
    """The file as an upright RGB image, as `load_image` gives it.

    Args:
        unlimited: take up to `TILED_MAX_PIXELS`, not just `MAX_PIXELS`; a large image that is RGB
            already is then not copied, which would take its memory twice.

    Raises:
        WetokError: as `load_image`.
    """
    if not unlimited:
        try:
            return load_image(path)
        except WetokError as error:
            if "too large" not in str(error):
                raise
            raise WetokError(
                f"{error}; or ask for fast or exact tiles, which take up to {TILED_MAX_PIXELS:,}"
            ) from None
    with _larger_images():
        try:
            image = Image.open(path)
        except Exception:
            return load_image(path)  # raises, and says what is wrong
        try:
            if MAX_PIXELS // 8 < image.width * image.height <= TILED_MAX_PIXELS:
                image.load()
                if _is_plain(image):
                    return image
        except Exception:
            pass  # load_image says what is wrong
        image.close()
        return load_image(path, max_pixels=TILED_MAX_PIXELS)


def _is_plain(image: Image.Image) -> bool:
    """Whether its pixels, as decoded, are what `load_image` would give."""
    return (
        image.mode == "RGB"
        and image.format != "EPS"
        and getattr(image, "n_frames", 1) == 1
        and not image.info.keys() & {"icc_profile", "transparency"}
        and image.getexif().get(_ORIENTATION, 1) == 1
    )


def largest(image: Any) -> tuple[int, int]:
    """Height and width of the largest image in what `singles` takes, from headers and shapes;
    (0, 0) where that can't be told."""
    if isinstance(image, (list, tuple)):
        return max(map(largest, image), key=lambda size: size[0] * size[1], default=(0, 0))
    if isinstance(image, (np.ndarray, Tensor)) and image.ndim in (3, 4):
        height, width = _size(image)
        return height, width
    if isinstance(image, Image.Image):
        return image.height, image.width
    if isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as opened:
                return opened.height, opened.width
        except Exception:  # whoever reads it says what is wrong
            pass
    return 0, 0


def _size(image: Any) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.height, image.width
    sides = image.shape[-3:-1] if image.dtype in (np.uint8, torch.uint8) else image.shape[-2:]
    return int(sides[0]), int(sides[1])


def _opened(image: Any, unlimited: bool) -> Iterator[Any]:
    if isinstance(image, (list, tuple)):
        for item in image:
            yield from _opened(item, unlimited)
    elif isinstance(image, (str, os.PathLike)):
        yield open_image(image, unlimited=unlimited)
    elif isinstance(image, Image.Image):
        yield image if _is_plain(image) else load_image(image, max_pixels=TILED_MAX_PIXELS)
    elif isinstance(image, (np.ndarray, Tensor)):
        channel = -1 if image.dtype in (np.uint8, torch.uint8) else -3
        if image.ndim not in (3, 4) or image.shape[channel] != 3 or 0 in image.shape:
            to_tensor(image)  # raises, and says what is wrong
        yield from image if image.ndim == 4 else [image]
    else:
        raise WetokError(
            f"image of type {type(image).__name__}: give a PIL image, a path, a uint8 array "
            "[H,W,3] or a float tensor [3,H,W] in [-1,1]"
        )


@contextmanager
def _larger_images() -> Iterator[None]:
    """Pillow's own limit lifted, which is one for the whole process."""
    with _LIMIT:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
