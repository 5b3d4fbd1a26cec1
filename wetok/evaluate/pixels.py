"""Pixel metrics on uint8 images, as scikit-image 0.26 defines them, in float64.

PSNR: 10 log10(255^2 / MSE), the mean over all pixels and channels. SSIM: Wang, Bovik, Sheikh and
Simoncelli, "Image quality assessment", 2004, equation 13, with scikit-image's defaults: a uniform
7 x 7 window, sample covariance (divided by 48), K1 = 0.01, K2 = 0.03, each channel by itself, the
mean over the windows that lie within the image.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from wetok.config import WetokError

WINDOW = 7
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each pair: uint8 [B,C,H,W] twice, to float64 [B].

    Identical images give infinity.

    Raises:
        WetokError: not uint8, not [B,C,H,W], empty, or two different shapes.
    """
    _check(a, b)
    pairs = zip(a, b, strict=True)
    error = torch.stack([(x.double() - y.double()).square().mean() for x, y in pairs])
    return 10 * torch.log10(255.0**2 / error)


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each pair: uint8 [B,C,H,W] twice, to float64 [B] in [-1, 1].

    Raises:
        WetokError: as for `psnr`; or a side is shorter than the window's 7 pixels.
    """
    _check(a, b)
    if min(a.shape[-2:]) < WINDOW:
        height, width = a.shape[-2:]
        raise WetokError(f"images are {height} x {width} pixels: ssim needs at least 7 x 7")
    # One pair at a time bounds the memory: five float64 maps of one image.
    return torch.stack([_ssim(x.double(), y.double()) for x, y in zip(a, b, strict=True)])


def _ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """float64 [C,H,W] twice, to a scalar."""
    maps = torch.stack((x, y, x * x, y * y, x * y))
    # The uniform window, rows then columns.
    means = functional.avg_pool2d(functional.avg_pool2d(maps, (WINDOW, 1), 1), (1, WINDOW), 1)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = means
    sample = WINDOW**2 / (WINDOW**2 - 1)
    var_x = sample * (mean_xx - mean_x * mean_x)
    var_y = sample * (mean_yy - mean_y * mean_y)
    cov = sample * (mean_xy - mean_x * mean_y)
    over = (2 * mean_x * mean_y + _C1) * (2 * cov + _C2)
    under = (mean_x.square() + mean_y.square() + _C1) * (var_x + var_y + _C2)
    return (over / under).mean()


def _check(a: torch.Tensor, b: torch.Tensor) -> None:
    for name, image in (("a", a), ("b", b)):
        if image.dtype != torch.uint8:
            raise WetokError(f"{name} has type {image.dtype}: expected uint8 (see to_uint8)")
        if image.ndim != 4 or 0 in image.shape:
            raise WetokError(f"{name} has shape {list(image.shape)}: expected [B,C,H,W], not empty")
    if a.shape != b.shape:
        raise WetokError(f"a and b differ in shape: {list(a.shape)} and {list(b.shape)}")
