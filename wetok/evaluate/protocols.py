"""How an image is brought to the pixels that are compared. A score names its protocol.

Protocols differ in how a file is read, resized, cropped and made 8-bit, and each of these moves
scores by more than models differ. So a protocol also has a hash, which is taken from what it does
to known images, not from its text: whatever changes the pixels changes the hash, be it another
version of Pillow.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from functools import lru_cache
from typing import IO, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wetok.config import WetokError, near
from wetok.data.images import describe, load_image, to_tensor, to_uint8
from wetok.data.transforms import center_crop

File: TypeAlias = "str | os.PathLike[str] | IO[bytes]"
RELEASED_SIDE = 256


class Protocol(NamedTuple):
    """A named way from a photograph to the pixels that are compared.

    file -> load -> prepare -> to_float -> the model -> [-1,1]
    PSNR and SSIM compare to_8bit of both ends; LPIPS and Frechet distance see the same 8-bit
    values back in [-1,1], or, where `unrounded`, both ends as they are
    """

    name: str
    description: str
    prepare: Callable[[Image.Image], Image.Image]
    """RGB image of any size to the part that is scored."""
    load: Callable[[File], Image.Image] = load_image
    """File to RGB image."""
    to_float: Callable[[Image.Image], Tensor] = to_tensor
    """RGB image to float32 [3,H,W] in [-1,1]: what the model gets."""
    to_8bit: Callable[[Tensor], Tensor] = to_uint8
    """Float in [-1,1] of any shape to uint8."""
    unrounded: bool = False
    """LPIPS and Frechet distance see the model's output before it is made 8-bit."""

    def seen(self, image: Tensor) -> Tensor:
        """What LPIPS and Frechet distance see of float [B,3,H,W] in [-1,1]."""
        return image if self.unrounded else self.to_8bit(image).float() / 127.5 - 1


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def load_as_released(source: File) -> Image.Image:
    """RGB by Pillow's own conversion: no rotation by EXIF, no profile, transparency ignored.

    Raises:
        WetokError: as for `wetok.data.images.load_image`.
    """
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except Exception as error:
        if not isinstance(source, (str, os.PathLike)):
            source.seek(0)
        load_image(source)  # which words it better, where it fails too
        reason = " ".join(str(error).split())
        raise WetokError(f"{describe(source)} can't be read as RGB: {reason}") from None


def crop_as_released(image: Image.Image) -> Image.Image:
    """What torchvision's Resize(256) and CenterCrop(256) make of a PIL image.

    Bilinear (with Pillow: antialiased), the longer side rounded down, and the crop's corner
    rounded half to even.
    """
    side = RELEASED_SIDE
    shorter = min(image.size)
    width, height = (
        side if length == shorter else int(side * length / shorter) for length in image.size
    )
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def to_float_as_released(image: Image.Image) -> Tensor:
    """p / 127.5 - 1 in float64, then float32: [3,H,W] in [-1,1]."""
    values = (np.asarray(image) / 127.5 - 1.0).astype(np.float32)
    return torch.from_numpy(values).movedim(-1, 0).contiguous()


def to_8bit_as_released(image: Tensor) -> Tensor:
    """(x + 1) / 2 * 255 in float32, cut off: values of the original lose 1 where that rounds down.

    Raises:
        WetokError: the image holds NaN.
    """
    if torch.isnan(image).any():
        raise WetokError("image holds NaN: there is no pixel for it")
    return ((image.float().clamp(-1, 1) + 1) / 2).mul_(255).to(torch.uint8)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "modern-256",
            "shorter side to 256 (bicubic, antialiased), center crop 256 x 256; the "
            "reconstruction rounded to 8 bits",
            lambda image: center_crop(image, 256),
        ),
        Protocol(
            "original",
            "every image at its own size, padded inside the model; the reconstruction rounded "
            "to 8 bits",
            _as_it_is,
        ),
        Protocol(
            "paper-256",
            "as the released evaluation: shorter side to 256 (bilinear), center crop 256 x 256; "
            "PSNR and SSIM on both images cut off to 8 bits, LPIPS and Frechet distance unrounded",
            crop_as_released,
            load_as_released,
            to_float_as_released,
            to_8bit_as_released,
            unrounded=True,
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol called `name`.

    Raises:
        WetokError: there is none; the nearest names are given.
    """
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise WetokError(f"protocol={name!r} is not known{near(name, list(PROTOCOLS))}") from None


@lru_cache
def preprocessing_hash(known: Protocol) -> str:
    """16 hex digits of the SHA-256 of what the protocol makes of known files and values."""
    digest = hashlib.sha256()
    for file in _known_files():
        image = known.to_float(known.prepare(known.load(io.BytesIO(file))))
        digest.update(repr(tuple(image.shape)).encode())
        digest.update(image.numpy().astype("<f4").tobytes())
    ramp = (torch.arange(0, 1021) - 510) / 510  # all 8-bit values and three between each two
    for values in (known.to_8bit(ramp), (known.seen(ramp) * 2**20).round().int()):
        digest.update(values.numpy().astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def _known_files() -> list[bytes]:
    """PNG files of patterns: wide (turned and see-through), high, small, and of the very size."""
    files = []
    for number, (width, height) in enumerate([(401, 307), (259, 640), (90, 61), (256, 256)]):
        y, x, channel = np.ogrid[:height, :width, :3]
        pattern = (x * x // 7 + y * (5 + channel) + (x * y >> 4) * channel + 31 * number) % 256
        image = Image.fromarray(pattern.astype(np.uint8))
        options = {}
        if number == 0:
            image.putalpha(Image.fromarray((y[..., 0] + x[..., 0]).astype(np.uint8)))
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned by a quarter
            options = {"exif": exif}
        stream = io.BytesIO()
        image.save(stream, "PNG", **options)
        files.append(stream.getvalue())
    return files
