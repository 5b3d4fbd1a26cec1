"""The blocks of the networks, against plain computations in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wetok.model.layers import (
    EPSILON,
    AdaptiveGroupNorm,
    GroupNorm,
    ResidualBlock,
    Upsample,
    code_statistics,
    depth_to_space,
    norm_groups,
    space_to_depth,
)

SIDES = st.integers(1, 4)
few = settings(max_examples=25, deadline=None)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module in float64 with every parameter drawn anew, biases and norms' too."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def normalised(x: np.ndarray, groups: int) -> np.ndarray:
    """Group norm without affine, image by image and group by group."""
    out = np.empty_like(x)
    per_group = x.shape[1] // groups
    for b in range(x.shape[0]):
        for g in range(groups):
            part = slice(g * per_group, (g + 1) * per_group)
            values = x[b, part]
            mean = values.sum() / values.size
            variance = ((values - mean) ** 2).sum() / values.size
            out[b, part] = (values - mean) / math.sqrt(variance + 1e-6)
    return out


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@few
@given(b=SIDES, c=SIDES, h=SIDES, w=SIDES, side=st.integers(1, 4))
def test_depth_to_space_puts_each_channel_where_the_released_order_says(b, c, h, w, side):
    x = random(b, side * side * c, h, w)
    expected = torch.empty(b, c, h * side, w * side, dtype=x.dtype)
    for row in range(side):
        for column in range(side):
            for k in range(c):
                channel = (row * side + column) * c + k
                expected[:, k, row::side, column::side] = x[:, channel]
    assert torch.equal(depth_to_space(x, side), expected)


@few
@given(b=SIDES, c=SIDES, h=SIDES, w=SIDES, side=st.integers(1, 4))
def test_depth_to_space_is_pixel_shuffle_with_reordered_channels(b, c, h, w, side):
    x = random(b, side * side * c, h, w)
    shuffled = x.unflatten(1, (side * side, c)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(depth_to_space(x, side), F.pixel_shuffle(shuffled, side))


@few
@given(b=SIDES, c=SIDES, h=SIDES, w=SIDES, side=st.integers(1, 4))
def test_space_to_depth_and_depth_to_space_are_inverse(b, c, h, w, side):
    deep, wide = random(b, side * side * c, h, w), random(b, c, side * h, side * w)
    assert torch.equal(space_to_depth(depth_to_space(deep, side), side), deep)
    assert torch.equal(depth_to_space(space_to_depth(wide, side), side), wide)
    assert space_to_depth(wide, side).shape == deep.shape


def test_space_to_depth_takes_memory_in_any_format():
    x = random(2, 3, 4, 6).to(memory_format=torch.channels_last)
    assert torch.equal(space_to_depth(x, 2), space_to_depth(x.contiguous(), 2))
    deep = random(2, 12, 4, 6).to(memory_format=torch.channels_last)
    assert torch.equal(depth_to_space(deep, 2), depth_to_space(deep.contiguous(), 2))


@given(channels=st.integers(1, 2048))
def test_norm_groups_is_the_largest_divisor_up_to_32(channels):
    groups = norm_groups(channels)
    assert groups == max(g for g in range(1, 33) if channels % g == 0)


@pytest.mark.parametrize("channels", [32, 40, 128, 7])
def test_group_norm_against_a_plain_computation(channels):
    x = random(2, channels, 3, 5)
    norm = randomised(GroupNorm(channels))
    weight, bias = (p.detach().numpy()[None, :, None, None] for p in (norm.weight, norm.bias))
    expected = normalised(x.numpy(), norm_groups(channels)) * weight + bias
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, atol=1e-12)


def test_group_norm_of_one_value_a_group_is_its_bias():
    norm = randomised(GroupNorm(32))
    x = random(2, 32, 1, 1).requires_grad_()
    with pytest.raises(ValueError, match="more than 1 value"):
        F.group_norm(x[:1], 32)  # what torch's own layer calls
    out = norm(x)
    torch.testing.assert_close(out, norm.bias[None, :, None, None].expand(2, -1, -1, -1))
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@few
@given(b=SIDES, d=SIDES, h=SIDES, w=SIDES)
def test_code_statistics_against_numpy(b, d, h, w):
    code = random(b, d, h, w).sign()
    mean, deviation = code_statistics(code)
    flat = code.numpy().reshape(b, d, -1)
    np.testing.assert_allclose(mean.numpy(), flat.mean(-1), atol=1e-12)
    variance = flat.var(-1, ddof=1) if h * w > 1 else np.zeros((b, d))
    np.testing.assert_allclose(deviation.numpy(), np.sqrt(variance + 1e-6), atol=1e-12)


def test_statistics_of_a_single_position_have_finite_gradients():
    code = random(2, 3, 1, 1).requires_grad_()
    mean, deviation = code_statistics(code)
    assert torch.equal(mean, code[..., 0, 0])
    assert torch.equal(deviation, torch.full((2, 3), math.sqrt(EPSILON), dtype=torch.float64))
    (mean.sum() + deviation.sum()).backward()
    assert torch.equal(code.grad, torch.ones_like(code))


def test_adaptive_norm_against_a_plain_computation():
    adaptive = randomised(AdaptiveGroupNorm(code_channels=5, channels=64))
    x, code = random(2, 64, 3, 4, seed=1), random(2, 5, 2, 3, seed=2).sign()
    flat = code.numpy().reshape(2, 5, -1)
    gamma, beta = adaptive.gamma, adaptive.beta
    deviation = np.sqrt(flat.var(-1, ddof=1) + 1e-6)
    scale = deviation @ gamma.weight.detach().numpy().T + gamma.bias.detach().numpy()
    shift = flat.mean(-1) @ beta.weight.detach().numpy().T + beta.bias.detach().numpy()
    expected = scale[..., None, None] * normalised(x.numpy(), 32) + shift[..., None, None]
    out = adaptive(x, *code_statistics(code))
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-12)
    with torch.no_grad():  # an image by itself takes one pass
        for number in range(2):
            one = adaptive(x[number, None], *code_statistics(code[number, None]))
            np.testing.assert_allclose(one[0].numpy(), expected[number], atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_adaptive_norm_in_one_pass_is_as_near_to_float64_as_in_three(offset):
    adaptive = randomised(AdaptiveGroupNorm(code_channels=8, channels=64))
    x, mean, deviation = offset + random(1, 64, 31, 17, seed=1), random(1, 8), random(1, 8).abs()
    true = adaptive(x, mean, deviation)
    adaptive = adaptive.float()
    given = x.float(), mean.float(), deviation.float()
    three = (adaptive(*given) - true).abs().max()
    with torch.no_grad():
        one = (adaptive(*given) - true).abs().max()
    assert one < max(2 * three, 1e-5) < 1e-3


def convolved(x: np.ndarray, weight: Tensor, bias: Tensor | None = None) -> np.ndarray:
    """A convolution with zeros around, as a loop over the taps."""
    kernel = weight.detach().numpy()
    side = kernel.shape[-1]
    around = side // 2
    padded = np.pad(x, ((0, 0), (0, 0), (around, around), (around, around)))
    height, width = x.shape[-2:]
    out = sum(
        np.einsum("oi,bihw->bohw", kernel[..., r, c], padded[..., r : r + height, c : c + width])
        for r in range(side)
        for c in range(side)
    )
    return out if bias is None else out + bias.detach().numpy()[:, None, None]


@pytest.mark.parametrize(("before", "after"), [(32, 32), (32, 64)])
def test_residual_block_against_a_plain_computation(before, after):
    block = randomised(ResidualBlock(before, after))
    x = random(2, before, 4, 5)

    def norm(y: np.ndarray, layer: GroupNorm) -> np.ndarray:
        weight, bias = (p.detach().numpy()[:, None, None] for p in (layer.weight, layer.bias))
        return normalised(y, 32) * weight + bias

    y = convolved(silu(norm(x.numpy(), block.norm1)), block.conv1.weight)
    y = convolved(silu(norm(y, block.norm2)), block.conv2.weight)
    skipped = x.numpy() if before == after else convolved(x.numpy(), block.nin_shortcut.weight)
    np.testing.assert_allclose(block(x).detach().numpy(), y + skipped, rtol=1e-9, atol=1e-9)
    assert hasattr(block, "nin_shortcut") == (before != after)


def test_upsample_against_a_plain_computation():
    upsample = randomised(Upsample(4))
    x = random(2, 4, 3, 5)
    deep = convolved(x.numpy(), upsample.conv1.weight, upsample.conv1.bias)
    expected = np.zeros((2, 4, 6, 10))
    for row in range(2):
        for column in range(2):
            part = deep[:, (row * 2 + column) * 4 : (row * 2 + column + 1) * 4]
            expected[..., row::2, column::2] = part
    np.testing.assert_allclose(upsample(x).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("positions", [1, 6])
def test_gradients_of_the_adaptive_norm(positions):
    adaptive = randomised(AdaptiveGroupNorm(code_channels=2, channels=4))
    x, code = random(2, 4, 2, 2), random(2, 2, 1, positions)

    def run(x: Tensor, code: Tensor) -> Tensor:
        return adaptive(x, *code_statistics(code))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), code.requires_grad_()))


def _norm_and_input(
    dtype: torch.dtype, channels_last: bool = False
) -> tuple[GroupNorm, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    norm = GroupNorm(64)
    with torch.no_grad():
        norm.weight.normal_(1, 0.3, generator=generator)
        norm.bias.normal_(0, 0.3, generator=generator)
    x = torch.randn(2, 64, 9, 6, generator=generator).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return norm, x.requires_grad_()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_silu_in_one_are_the_two_to_the_last_bit(
    dtype: torch.dtype, channels_last: bool
) -> None:
    norm, x = _norm_and_input(dtype, channels_last)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    values = []
    for function in (norm.silu, lambda given: F.silu(norm(given))):
        result = function(x)
        gradients = torch.autograd.grad((result * weight).sum(), [x, *norm.parameters()])
        values.append([result, *gradients])
        assert result.is_contiguous(memory_format=torch.channels_last) is channels_last
    for one, other in zip(*values, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_norm_and_silu_in_one_have_the_right_gradient() -> None:
    norm, x = _norm_and_input(torch.float64)
    norm, x = norm.double(), x[:, :, :3, :2].detach().requires_grad_()
    assert torch.autograd.gradcheck(norm.silu, (x,), fast_mode=True)
    for wide in (norm.widens, True):
        norm.widens = wide  # float64 stays float64
        assert norm.silu(x).dtype == torch.float64


def test_norm_and_silu_in_one_keep_their_input_alone() -> None:
    norm, x = _norm_and_input(torch.float32)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm.silu(x)
    large = [tensor for tensor in kept if tensor.numel() == x.numel()]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]


def test_norm_and_silu_in_one_without_gradients_for_the_weights() -> None:
    norm, x = _norm_and_input(torch.float32)
    expected = torch.autograd.grad(norm.silu(x).square().sum(), x)[0]
    norm.requires_grad_(False)
    result = norm.silu(x)
    result.square().sum().backward()
    assert x.grad is not None and torch.equal(x.grad, expected)
    assert norm.weight.grad is None
    assert not norm.silu(x.detach()).requires_grad


def test_norm_and_silu_in_one_widen_as_autocast_does_on_accelerators() -> None:
    norm, x = _norm_and_input(torch.bfloat16)
    wide = x.detach().float().requires_grad_()
    expected = F.silu(norm(wide))
    gradients = torch.autograd.grad(expected.square().sum(), [wide, *norm.parameters()])
    norm.widens = True
    result = norm.silu(x)
    found = torch.autograd.grad(result.square().sum(), [x, *norm.parameters()])
    assert torch.equal(result, expected) and result.dtype == torch.float32
    assert torch.equal(found[0], gradients[0].bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(found[1:], gradients[1:], strict=True))
