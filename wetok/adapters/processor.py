"""Photographs to `pixel_values` and back, called as the image processors of transformers are.

It needs neither transformers nor torchvision.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wetok.checkpoint import written_beside
from wetok.config import WetokError
from wetok.data.images import load_image, to_pil, to_tensor
from wetok.model.pixels import ImageLike
from wetok.model.tokenizer import Tokenizer, pad_to_multiple

FILE = "preprocessor_config.json"


class Batch(dict[str, Any]):
    """`batch["pixel_values"]` or `batch.pixel_values`; `to` moves the tensors."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Each float tensor by `Tensor.to`, others to the device only."""
        moved = Batch(self)
        for key, value in self.items():
            if isinstance(value, Tensor):
                to = value.to(*args, **kwargs)
                moved[key] = to if value.is_floating_point() else value.to(to.device)
        return moved


class WetokImageProcessor:
    """Images of any kind to a batch of floats in [-1,1] whose sides are multiples of f.

    Args:
        factor: f.
        size: shorter side after resizing (bicubic, antialiased), or None: as it is.
        crop_size: side of the square cut from the center after that, or None.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self, factor: int, size: int | None = None, crop_size: int | None = None, **_: Any
    ) -> None:
        for name, value in (("factor", factor), ("size", size), ("crop_size", crop_size)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise WetokError(f"{name}={value!r} must be a whole number of pixels from 1 on")
        self.factor, self.size, self.crop_size = factor, size, crop_size

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, **settings: Any) -> WetokImageProcessor:
        """With the factor of a tokenizer; `settings` are size and crop_size."""
        return cls(tokenizer.config.factor, **settings)

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], return_tensors: str | None = "pt", **_: Any
    ) -> Batch:
        """`preprocess`."""
        return self.preprocess(images, return_tensors)

    def preprocess(
        self, images: ImageLike | Sequence[ImageLike], return_tensors: str | None = "pt"
    ) -> Batch:
        """pixel_values [B,3,H,W], continued by reflection, and original_sizes [B,2] before that.

        Args:
            images: PIL images, paths, uint8 [H,W,3] or float [3,H,W] in [-1,1], one or several.
            return_tensors: "pt", "np" or None (a list of tensors, whose sizes may differ).

        Raises:
            WetokError: no image, or several of sizes that differ once resized and cropped.
        """
        if return_tensors not in ("pt", "np", None):
            raise WetokError(f"return_tensors={return_tensors!r} must be 'pt', 'np' or None")
        given = list(images) if isinstance(images, (list, tuple)) else _rows(images)
        rows = [self._prepared(image) for image in given]
        sizes = torch.tensor([row.shape[1:] for row in rows])
        padded = [pad_to_multiple(row, self.factor) for row in rows]
        if return_tensors is None:
            return Batch(pixel_values=padded, original_sizes=sizes)
        if not padded or len({row.shape for row in padded}) > 1:
            kinds = sorted({tuple(row.shape[1:]) for row in padded})
            raise WetokError(
                f"images: a batch takes images of one size, not {kinds}; set crop_size, or give "
                "return_tensors=None"
            )
        pixels = torch.stack(padded)
        if return_tensors == "np":
            return Batch(pixel_values=pixels.numpy(), original_sizes=sizes.numpy())
        return Batch(pixel_values=pixels, original_sizes=sizes)

    def post_process(
        self, images: Tensor, original_sizes: Tensor | Sequence[Sequence[int]] | None = None
    ) -> list[Image.Image]:
        """[B,3,H,W] in about [-1,1] -> PIL images, cut to the sizes before padding."""
        found = to_pil(images.detach().float().cpu().clamp(-1, 1))
        if original_sizes is None:
            return found
        return [
            image.crop((0, 0, int(width), int(height)))
            for image, (height, width) in zip(found, original_sizes, strict=True)
        ]

    postprocess = post_process

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds."""
        return {
            "image_processor_type": type(self).__name__,
            "factor": self.factor,
            "size": self.size,
            "crop_size": self.crop_size,
        }

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Writes preprocessor_config.json into a folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with written_beside(folder / FILE) as beside:
            beside.write_text(json.dumps(self.to_dict(), indent=2) + "\n", "utf-8")
        return [str(folder / FILE)]

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> WetokImageProcessor:
        """The processor that a folder's preprocessor_config.json describes.

        Raises:
            WetokError: there is none, or it describes another kind.
        """
        path = Path(folder) / FILE
        try:
            tree = json.loads(path.read_text("utf-8"))
            kind = tree.pop("image_processor_type")
            if kind != cls.__name__:
                raise ValueError(f"image_processor_type is {kind!r}, not {cls.__name__!r}")
            return cls(**tree)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WetokError(f"{path}: no image processor can be read: {error}") from None

    def _prepared(self, image: Any) -> Tensor:
        """[3,H,W] in [-1,1], resized and cropped."""
        if self.size is None and self.crop_size is None:
            return to_tensor(image if isinstance(image, (np.ndarray, Tensor)) else _pil(image))
        picture = _pil(image)
        if self.size is not None:
            scale = self.size / min(picture.size)
            sides = (
                max(self.size, round(picture.width * scale)),
                max(self.size, round(picture.height * scale)),
            )
            picture = picture.resize(sides, Image.Resampling.BICUBIC)
        if self.crop_size is not None:
            if min(picture.size) < self.crop_size:
                raise WetokError(
                    f"crop_size={self.crop_size} is more than an image of {picture.width}x"
                    f"{picture.height} has; set size, too"
                )
            left = (picture.width - self.crop_size) // 2
            top = (picture.height - self.crop_size) // 2
            picture = picture.crop((left, top, left + self.crop_size, top + self.crop_size))
        return to_tensor(picture)


def _pil(image: Any) -> Image.Image:
    if isinstance(image, (np.ndarray, Tensor)):
        return to_pil(to_tensor(image)[None])[0]
    return load_image(image)


def _rows(image: Any) -> list[Any]:
    """A batch's images, or the one image."""
    if isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4:
        return list(image)
    return [image]
