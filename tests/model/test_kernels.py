"""Parts of an image through the CPU's kernels, bit for bit as in the whole image."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wetok.model import kernels

avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="a CPU without AVX-512"
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Square powers of two, where oneDNN breaks sums up, and sizes where it does not.
CASES = [
    (128, 32, 64, 64),
    (192, 128, 64, 96),
    (256, 64, 32, 48),
    (64, 128, 97, 31),
    (112, 64, 20, 50),
    (24, 40, 60, 70),
    (512, 64, 16, 32),
]


@avx512
@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize(("inputs", "outputs", "height", "width"), CASES)
def test_a_strip_of_a_1x1_convolution(
    count: int, inputs: int, outputs: int, height: int, width: int
) -> None:
    torch.set_num_threads(count)
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 1).requires_grad_(False)
    x = torch.randn(1, inputs, height, width)
    whole = conv(x)
    for top, bottom in ((0, 7), (5, 16), (height - 1, height)):
        strip = x[:, :, top:bottom].contiguous()
        got = kernels.pointwise(conv, strip, (height, width))
        assert torch.equal(got, whole[:, :, top:bottom])


@avx512
def test_a_plain_convolution_of_the_strip_is_not_the_same() -> None:
    """Which is why there is `pointwise`."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 32, 1).requires_grad_(False)
    x = torch.randn(1, 128, 64, 64)
    assert kernels.sum_block(64, 64, 128, 32, 2) == 96
    assert not torch.equal(conv(x[:, :, :31].contiguous()), conv(x)[:, :, :31])


@avx512
@pytest.mark.parametrize("block", [96, 112])
def test_the_block_is_what_is_summed_in_one_go(block: int) -> None:
    """Against sums of single products, each rounded as a fused multiply-add rounds."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    height = {96: 64, 112: 32}[block]
    assert kernels.sum_block(height, 32, 128, 16, 2) == block
    conv = nn.Conv2d(128, 16, 1, bias=False).requires_grad_(False)
    x = torch.randn(1, 128, height, 32)
    total = torch.zeros(16, height * 32)
    for first in range(0, 128, block):
        part = torch.zeros(16, height * 32)
        for channel in range(first, min(first + block, 128)):
            product = conv.weight[:, channel, 0].double() * x[0, channel].reshape(1, -1).double()
            part = (part.double() + product).float()
        total = total + part
    assert torch.equal(conv(x).flatten(2)[0], total)


@avx512
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 33, 21), (8, 97, 131), (3, 401, 67), (32, 64, 64)])
def test_strips_of_silu(count: int, shape: tuple[int, int, int]) -> None:
    torch.set_num_threads(count)
    torch.manual_seed(0)
    x = torch.randn(1, *shape)
    whole = F.silu(x)
    for rows in (1, 7, 32):
        strips = [
            kernels.silu(x[:, :, top : top + rows].clone(), top, shape[1])
            for top in range(0, shape[1], rows)
        ]
        assert torch.equal(torch.cat(strips, 2), whole)


@avx512
def test_plain_silu_of_strips_is_not_the_same() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(1, 8, 97, 131)
    strips = torch.cat([F.silu(x[:, :, top : top + 1].clone()) for top in range(97)], 2)
    assert not torch.equal(strips, F.silu(x))


def test_other_types_take_the_plain_functions() -> None:
    x = torch.randn(1, 16, 9, 5, dtype=torch.float64)
    conv = nn.Conv2d(16, 8, 1, dtype=torch.float64).requires_grad_(False)
    assert not kernels.known(x)
    assert torch.equal(kernels.pointwise(conv, x, (90, 5)), conv(x))
    assert torch.equal(kernels.silu(x.clone(), 0, 90), F.silu(x))
