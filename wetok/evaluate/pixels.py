"""Pixel metrics on uint8 images, as scikit-image 0.26 defines them, in float64.

PSNR: 10 log10(255^2 / MSE), the mean over all pixels and channels. SSIM: Wang, Bovik, Sheikh and
Simoncelli, "Image quality assessment", 2004, equation 13, with scikit-image's defaults: a uniform
7 x 7 window, sample covariance (divided by 48), K1 = 0.01, K2 = 0.03, each channel by itself, the
mean over the windows that lie within the image.
"""

from __future__ import annotations

import torch

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
    # One pair at a time bounds the memory: the maps of one image.
    return torch.stack([_ssim(x.float(), y.float()) for x, y in zip(a, b, strict=True)])


def _ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """float32 [C,H,W] of whole numbers twice, to a float64 scalar."""
    # Sums over a window stay below 2^24, so that float32 holds them exactly. The two variances are
    # only ever added, which leaves four maps.
    maps = torch.stack((x, y, x * x + y * y, x * y))
    sum_x, sum_y, sum_squares, sum_xy = _window_sums(_window_sums(maps, -1), -2).double()
    count = WINDOW**2
    # Numerator and denominator of equation 13, multiplied by powers of the count.
    product, squares = sum_x * sum_y, sum_x.square().addcmul_(sum_y, sum_y)
    sample = count / (count - 1)
    over = (2 * product + _C1 * count**2) * (
        (sum_xy * count - product).mul_(2 * sample).add_(_C2 * count**2)
    )
    under = (squares + _C1 * count**2) * (
        (sum_squares * count - squares).mul_(sample).add_(_C2 * count**2)
    )
    return (over / under).mean()


def _window_sums(maps: torch.Tensor, axis: int) -> torch.Tensor:
    """Sums of 7 neighbours along `axis`, as 4 + 2 + 1."""
    length = maps.shape[axis]
    two = maps.narrow(axis, 0, length - 1) + maps.narrow(axis, 1, length - 1)
    four = two.narrow(axis, 0, length - 3) + two.narrow(axis, 2, length - 3)
    result = four.narrow(axis, 0, length - 6) + two.narrow(axis, 4, length - 6)
    return result.add_(maps.narrow(axis, 6, length - 6))


def _check(a: torch.Tensor, b: torch.Tensor) -> None:
    for name, image in (("a", a), ("b", b)):
        if image.dtype != torch.uint8:
            raise WetokError(f"{name} has type {image.dtype}: expected uint8 (see to_uint8)")
        if image.ndim != 4 or 0 in image.shape:
            raise WetokError(f"{name} has shape {list(image.shape)}: expected [B,C,H,W], not empty")
    if a.shape != b.shape:
        raise WetokError(f"a and b differ in shape: {list(a.shape)} and {list(b.shape)}")
