"""Winograd's convolution gives what a plain one gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wetok.evaluate import winograd
from wetok.evaluate.networks import Networks
from wetok.evaluate.winograd import WinogradConv2d, fits
from wetok.losses.perceptual import LPIPS


def convolution(channels: int, width: int, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(channels, width, 3, padding=1)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.tuples(st.integers(1, 41), st.integers(1, 41)),
    last=st.booleans(),
)
def test_any_size_in_float64(
    batch: int, channels: int, width: int, size: tuple[int, int], last: bool
) -> None:
    plain = convolution(channels, width).double()
    x = torch.randn(batch, channels, *size, dtype=torch.float64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    wanted = F.conv2d(x, plain.weight, plain.bias, padding=1)
    torch.testing.assert_close(WinogradConv2d(plain)(x), wanted, rtol=0, atol=1e-12)


def test_bands_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = convolution(5, 7).double()
    x = torch.randn(2, 5, 67, 30, dtype=torch.float64)
    for tiles in (1, 8, 9, 16, 10_000):
        monkeypatch.setattr(winograd, "_TILES", tiles)
        torch.testing.assert_close(WinogradConv2d(plain)(x), plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "width"), [(64, 64), (256, 512)])
def test_rounding_of_float32(channels: int, width: int) -> None:
    plain = convolution(channels, width)
    x = torch.randn(1, channels, 32, 32).relu()
    wanted = F.conv2d(x.double(), plain.weight.double(), plain.bias.double(), padding=1)
    far = (WinogradConv2d(plain)(x) - wanted).abs().max() / wanted.abs().max()
    assert far < 2e-5


def test_it_keeps_the_weights_it_was_made_of() -> None:
    plain = convolution(3, 4)
    x = torch.randn(1, 3, 8, 8)
    wanted, quick = plain(x), WinogradConv2d(plain)
    with torch.no_grad():
        plain.bias.add_(1)
        plain.weight.zero_()
    torch.testing.assert_close(quick(x), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Identity(),
    ],
)
def test_what_it_does_not_fit(other: nn.Module) -> None:
    assert fits(convolution(4, 4)) and not fits(other)


def test_scores_through_it_leave_the_network_alone() -> None:
    torch.manual_seed(1)
    vgg = LPIPS("vgg")
    for head in vgg.lin.parameters():
        head.abs_()
    before = {name: value.clone() for name, value in vgg.state_dict().items()}
    x, y = (torch.rand(2, 3, 45, 38) * 2 - 1 for _ in range(2))
    networks = Networks([vgg], vgg=vgg)
    seen, other = networks.look(x), networks.look(y)
    exact = LPIPS("vgg").double()
    exact.load_state_dict(before)
    wanted = exact(x.double(), y.double())
    torch.testing.assert_close(
        networks.distances(seen, other)["lpips-vgg"].double(), wanted, rtol=1e-5, atol=0
    )
    assert not any(isinstance(one, WinogradConv2d) for one in vgg.modules())
    assert all(torch.equal(value, before[name]) for name, value in vgg.state_dict().items())
    torch.testing.assert_close(vgg(x, y).double(), wanted, rtol=1e-5, atol=0)
