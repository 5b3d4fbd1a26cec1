"""How near a reconstruction is to its photograph, for the commands that show pictures."""

from __future__ import annotations

import math
from typing import NamedTuple

from PIL import Image

WINDOW = 7  # side of SSIM's window; a smaller image has no SSIM
LARGE = 1 << 25  # pixels; SSIM takes some 200 bytes a pixel, so a larger image has none either


class Score(NamedTuple):
    """PSNR in dB (infinite for equal images), and SSIM where the image's size allows it."""

    psnr: float
    ssim: float | None

    def __str__(self) -> str:
        text = f"{self.psnr:.2f} dB PSNR"
        return text if self.ssim is None else f"{text}, {self.ssim:.3f} SSIM"


def score(original: Image.Image, reconstruction: Image.Image) -> Score:
    """The scores of two RGB images of one size."""
    if original.width * original.height > LARGE:
        return Score(_psnr_in_bands(original, reconstruction), None)
    from wetok.data.images import to_tensor, to_uint8
    from wetok.evaluate.pixels import psnr, ssim

    a, b = (to_uint8(to_tensor(image))[None] for image in (original, reconstruction))
    large = min(original.size) >= WINDOW
    return Score(psnr(a, b).item(), ssim(a, b).item() if large else None)


def _psnr_in_bands(original: Image.Image, reconstruction: Image.Image) -> float:
    import numpy as np

    total = 0
    for top in range(0, original.height, 512):
        box = (0, top, original.width, min(top + 512, original.height))
        a, b = (np.asarray(image.crop(box), np.int32) for image in (original, reconstruction))
        total += int(np.square(a - b).sum(dtype=np.int64))
    mean = total / (3 * original.width * original.height)
    return 10 * math.log10(255**2 / mean) if mean else math.inf
