"""PSNR and SSIM against scikit-image and against recorded numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from wetok.config import WetokError
from wetok.evaluate.pixels import psnr, ssim


def batch(images: np.ndarray) -> torch.Tensor:
    """[B,H,W,C] to a torch [B,C,H,W]."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def test_recorded_numbers(shared: Path) -> None:
    recorded = np.load(shared / "fixtures" / "metrics" / "metrics.npz")
    a, b = batch(recorded["image_a"]), batch(recorded["image_b"])
    np.testing.assert_allclose(psnr(a, b).numpy(), recorded["psnr"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(ssim(a, b).numpy(), recorded["ssim"], rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 3),
    height=st.integers(7, 40),
    width=st.integers(7, 40),
    noise=st.sampled_from([0.6, 5.0, 60.0, 300.0]),
    contrast=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_same_as_scikit_image(
    seed: int, count: int, height: int, width: int, noise: float, contrast: float
) -> None:
    rng = np.random.default_rng(seed)
    a = 128 + contrast * rng.uniform(-127, 127, (count, height, width, 3))
    b = a + rng.normal(0, noise, a.shape)
    a, b = (np.clip(np.rint(x), 0, 255).astype(np.uint8) for x in (a, b))
    if not all((x != y).any() for x, y in zip(a, b, strict=True)):
        return  # scikit-image divides by zero there
    wanted_psnr = [peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b, strict=True)]
    wanted_ssim = [
        structural_similarity(x, y, data_range=255, channel_axis=-1)
        for x, y in zip(a, b, strict=True)
    ]
    result = psnr(batch(a), batch(b)), ssim(batch(a), batch(b))
    assert [x.dtype for x in result] == [torch.float64, torch.float64]
    np.testing.assert_allclose(result[0].numpy(), wanted_psnr, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result[1].numpy(), wanted_ssim, rtol=0, atol=1e-9)


def test_identical_images() -> None:
    image = torch.arange(3 * 8 * 9, dtype=torch.uint8).reshape(1, 3, 8, 9).repeat(2, 1, 1, 1)
    assert psnr(image, image).tolist() == [math.inf, math.inf]
    assert ssim(image, image).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_one_level_of_difference_both_ways() -> None:
    """Subtracting uint8 would wrap around to 255 one way."""
    zero, one = (
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.ones(1, 3, 8, 8, dtype=torch.uint8),
    )
    wanted = 20 * math.log10(255)
    assert psnr(zero, one).item() == pytest.approx(wanted, abs=1e-12)
    assert psnr(one, zero).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_wrong_inputs(metric: object) -> None:
    assert callable(metric)
    good = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(WetokError, match="b has type torch.float32"):
        metric(good, good.float())
    with pytest.raises(WetokError, match=r"a has shape \[3, 8, 8\]"):
        metric(good[0], good[0])
    with pytest.raises(WetokError, match="differ in shape"):
        metric(good, good[:1])
    with pytest.raises(WetokError, match="not empty"):
        metric(good[:0], good[:0])


def test_ssim_needs_a_window() -> None:
    small = torch.zeros(1, 3, 6, 20, dtype=torch.uint8)
    with pytest.raises(WetokError, match="at least 7 x 7"):
        ssim(small, small)
    assert psnr(small, small).tolist() == [math.inf]
