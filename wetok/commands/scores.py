"""How near a reconstruction is to its photograph, for the commands that show pictures."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image

WINDOW = 7  # side of SSIM's window; a smaller image has no SSIM


class Score(NamedTuple):
    """PSNR in dB (infinite for equal images), and SSIM where the image is large enough for it."""

    psnr: float
    ssim: float | None

    def __str__(self) -> str:
        text = f"{self.psnr:.2f} dB PSNR"
        return text if self.ssim is None else f"{text}, {self.ssim:.3f} SSIM"


def score(original: Image.Image, reconstruction: Image.Image) -> Score:
    """The scores of two RGB images of one size."""
    from wetok.data.images import to_tensor, to_uint8
    from wetok.evaluate.pixels import psnr, ssim

    a, b = (to_uint8(to_tensor(image))[None] for image in (original, reconstruction))
    large = min(original.size) >= WINDOW
    return Score(psnr(a, b).item(), ssim(a, b).item() if large else None)
