"""Discriminators against the released ones and plain formulas; batch norm against PyTorch's.

Batch norm over several processes is in `test_adversarial.py`, with all that needs processes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wetok.config import WetokError
from wetok.losses.discriminator import (
    BlurDiscriminator,
    BlurPool,
    DistributedBatchNorm2d,
    PatchDiscriminator,
    _BatchNorm,
)

Discriminator = PatchDiscriminator | BlurDiscriminator
SMALL = {
    "patch": lambda: PatchDiscriminator(3, 4, 2),
    "blur": lambda: BlurDiscriminator(3, 4, 2),
}
few = settings(max_examples=25, deadline=None)


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


def small(kind: str, dtype: torch.dtype = torch.float32) -> Discriminator:
    torch.manual_seed(0)
    network = SMALL[kind]()
    with torch.no_grad():
        for parameter in network.parameters():  # PatchGAN starts too small to show a mistake
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.to(dtype)


@pytest.mark.parametrize(
    ("name", "network"),
    [("patchgan", PatchDiscriminator(3, 8, 3)), ("maskbit", BlurDiscriminator(3, 32, 2))],
)
def test_the_released_tensors_and_logits(
    name: str, network: Discriminator, fixtures_dir: Path
) -> None:
    folder = fixtures_dir / "released"
    tensors = torch.load(folder / f"disc_{name}.pt", weights_only=True)
    vectors = np.load(folder / "losses.npz")
    assert {k: (v.shape, v.dtype) for k, v in network.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in tensors.items()
    }
    network.load_state_dict(tensors)
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(vectors["disc_x"]))
    expected = vectors[f"{name}_out"]
    assert logits.shape == expected.shape
    assert np.abs(logits.numpy() - expected).max() < 1e-6  # the logits are about 0.3 and 2


def test_the_published_sizes() -> None:
    """The released settings' discriminators have as many parameters as counted by hand."""
    patch, blur = PatchDiscriminator(), BlurDiscriminator()
    widths = (64, 128, 256, 512)
    expected = 3 * 64 * 16 + 64 + 512 * 16 + 1
    expected += sum(16 * a * b + 2 * b for a, b in zip(widths, widths[1:], strict=False))
    assert sum(p.numel() for p in patch.parameters()) == expected == 2_765_633
    widths = (128, 128, 256, 512, 1024)
    expected = 3 * 128 * 25 + 128 + 1024 * 1024 + 1024 + 1024 * 25 + 1
    expected += sum(9 * a * b + 3 * b for a, b in zip(widths, widths[1:], strict=False))
    assert sum(p.numel() for p in blur.parameters()) == expected


def test_patch_widths_stop_at_eight_times() -> None:
    weights = [p for p in PatchDiscriminator(3, 2, 5).parameters() if p.ndim == 4]
    assert [len(weight) for weight in weights] == [2, 4, 8, 16, 16, 16, 1]
    assert [len(p) for p in PatchDiscriminator(1, 2, 1).parameters() if p.ndim == 4] == [2, 4, 1]


def test_patch_first_weights() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(3, 32, 3)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 4:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002, name
    norms = [part for part in network.main if isinstance(part, nn.BatchNorm2d)]
    scales = torch.cat([norm.weight for norm in norms])
    assert scales.mean().item() == pytest.approx(1, abs=0.005)
    assert scales.std().item() == pytest.approx(0.02, rel=0.15)
    assert all(not norm.bias.any() for norm in norms)


def plain_patch(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """PatchGAN with two strided layers in training, batch norm written out."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        deviation = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True).add(1e-5).sqrt()
        weight, bias = (state[f"main.{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return (x - mean) / deviation * weight + bias

    def leaky(x: Tensor) -> Tensor:
        return torch.maximum(x, 0.2 * x)

    x = leaky(F.conv2d(x, state["main.0.weight"], state["main.0.bias"], 2, 1))
    x = leaky(norm(F.conv2d(x, state["main.2.weight"], None, 2, 1), "3"))
    x = leaky(norm(F.conv2d(x, state["main.5.weight"], None, 1, 1), "6"))
    return F.conv2d(x, state["main.8.weight"], state["main.8.bias"], 1, 1)


def plain_blur(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The blur-pooled discriminator with two stages, blur and norm written out."""

    def convolve(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding="same")

    def norm(x: Tensor, name: str, groups: int) -> Tensor:
        parts = x.unflatten(1, (groups, -1))
        centred = parts - parts.mean((2, 3, 4), keepdim=True)
        deviation = centred.square().mean((2, 3, 4), keepdim=True).add(1e-5).sqrt()
        weight, bias = (state[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return (centred / deviation).flatten(1, 2) * weight + bias

    def leaky(x: Tensor) -> Tensor:
        return torch.maximum(x, 0.1 * x)

    x = leaky(convolve(x, "block_in.0"))
    for stage, groups in enumerate((4, 8)):
        x = brute_blur(convolve(x, f"blocks.{stage}.0"))
        x = leaky(norm(x, f"blocks.{stage}.2", groups))
    return convolve(leaky(convolve(x, "to_logits.0")), "to_logits.2")


def brute_blur(x: Tensor) -> Tensor:
    """Sum over the 4 x 4 neighbours of every second position, those outside left out."""
    height, width = x.shape[-2:]
    weights = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    out = x.new_zeros(*x.shape[:2], -(-height // 2), -(-width // 2))
    for row in range(out.shape[-2]):
        for column in range(out.shape[-1]):
            for i, down in enumerate(weights):
                for j, right in enumerate(weights):
                    y, z = 2 * row + i - 1, 2 * column + j - 1
                    if 0 <= y < height and 0 <= z < width:
                        out[:, :, row, column] += down * right * x[:, :, y, z]
    return out


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_training_against_plain_formulas(kind: str, size: tuple[int, int]) -> None:
    network = small(kind, torch.float64)
    x = images(3, 3, *size, dtype=torch.float64)
    plain = plain_patch if kind == "patch" else plain_blur
    with torch.no_grad():
        expected = plain(dict(network.state_dict()), x)
        torch.testing.assert_close(network.train()(x), expected, rtol=0, atol=1e-12)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("kind", SMALL)
def test_gradient_by_finite_differences(kind: str) -> None:
    network = small(kind, torch.float64)
    x = images(2, 3, 14, 15, dtype=torch.float64).requires_grad_()
    weights = torch.randn(network(x).shape, dtype=torch.float64)
    inputs = [x, *network.parameters()]

    def loss() -> Tensor:
        return (network(x) * weights).sum()

    gradients = torch.autograd.grad(loss(), inputs)
    for variable, gradient in zip(inputs, gradients, strict=True):
        direction = torch.randn_like(variable)
        with torch.no_grad():
            variable.add_(1e-6 * direction)
            above = loss()
            variable.sub_(2e-6 * direction)
            below = loss()
            variable.add_(1e-6 * direction)
        slope = ((above - below) / 2e-6).item()
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


@few
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3))
def test_blur_pool_against_a_loop(height: int, width: int, channels: int) -> None:
    x = images(2, channels, height, width, dtype=torch.float64)
    pooled = BlurPool().double()(x)
    torch.testing.assert_close(pooled, brute_blur(x), rtol=0, atol=1e-14)


def test_blur_pool_keeps_a_flat_image() -> None:
    pooled = BlurPool()(torch.ones(1, 2, 12, 9))
    assert (pooled[:, :, 1:-1, 1:-1] == 1).all()


@few
@given(
    st.sampled_from(["patch", "blur"]), st.integers(1, 4), st.integers(0, 19), st.integers(0, 19)
)
@example("patch", 3, 0, 0)
@example("blur", 1, 0, 0)
@example("blur", 4, 0, 0)
def test_any_size_from_the_smallest(kind: str, depth: int, more: int, wide: int) -> None:
    network = PatchDiscriminator(3, 2, depth) if kind == "patch" else BlurDiscriminator(3, 2, depth)
    height, width = network.smallest + more, network.smallest + wide
    logits = network.train()(images(1, 3, height, width))
    step = 2**depth
    if kind == "patch":
        assert logits.shape == (1, 1, height // step - 2, width // step - 2)
    else:
        assert logits.shape == (1, 1, -(-height // step), -(-width // step))
    assert logits.isfinite().all()
    for shape in ((1, 3, network.smallest - 1, width), (1, 3, height, network.smallest - 1)):
        with pytest.raises(WetokError, match=f"at least {network.smallest} pixels") as error:
            network(torch.zeros(shape))
        assert "\n" not in str(error.value)
        assert f"image {shape[2]}x{shape[3]}" in str(error.value)


@pytest.mark.parametrize("kind", SMALL)
def test_other_images_are_refused(kind: str) -> None:
    network = SMALL[kind]()
    for shape in ((2, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(WetokError, match=r"\[B,3,H,W\]"):
            network(torch.zeros(shape))


@pytest.mark.parametrize(
    "sizes", [{"channels": 0}, {"filters": 0}, {"layers": 0}, {"hidden": -1}, {"stages": 0}]
)
def test_sizes_are_positive(sizes: dict[str, int]) -> None:
    kind = BlurDiscriminator if {"hidden", "stages"} & set(sizes) else PatchDiscriminator
    (name,) = sizes
    with pytest.raises(WetokError, match=f"{name}={sizes[name]}: .* at least 1"):
        kind(**sizes)


@pytest.mark.parametrize(("hidden", "groups"), [(128, 32), (48, 24), (16, 16), (37, 1)])
def test_blur_norm_groups(hidden: int, groups: int) -> None:
    network = BlurDiscriminator(3, hidden, 1)
    norms = [part for part in network.modules() if isinstance(part, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [groups]


def test_blur_images_do_not_meet() -> None:
    network = small("blur")
    x = images(4, 3, 16, 16)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SMALL)
def test_under_bf16_autocast(kind: str) -> None:
    network = small(kind).train()
    x = images(4, 3, 24, 24).requires_grad_()
    with torch.no_grad():
        exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()
    logits.float().sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in network.parameters())]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert all(p.dtype == torch.float32 for p in network.parameters())


# Batch norm over processes: the path of several ranks, run by a single one.


def batch_norms(dtype: torch.dtype, channels: int) -> tuple[DistributedBatchNorm2d, nn.BatchNorm2d]:
    ours, torchs = DistributedBatchNorm2d(channels).to(dtype), nn.BatchNorm2d(channels).to(dtype)
    with torch.no_grad():
        ours.weight.copy_(images(channels))
        ours.bias.copy_(images(channels, seed=1))
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def test_a_single_process_has_the_usual_batch_norm() -> None:
    ours, torchs = batch_norms(torch.float32, 5)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for seed in range(3):
        x = 3 * images(4, 5, 6, 7, seed=seed) + 1
        assert torch.equal(ours(x), torchs(x))
    assert torch.equal(ours.eval()(x), torchs.eval()(x))
    for name, tensor in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@few
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(2, 5)),
    st.floats(0.01, 100),
    st.floats(-100, 100),
)
def test_shared_path_equals_the_usual_one(
    shape: tuple[int, int, int, int], spread: float, centre: float
) -> None:
    ours, torchs = batch_norms(torch.float64, shape[1])
    weights = images(*shape, seed=2, dtype=torch.float64)
    results = []
    for norm in (ours._normalise, torchs):
        x = (spread * images(*shape, dtype=torch.float64) + centre).requires_grad_()
        y = norm(x)
        (y * weights).sum().backward()
        results.append((y.detach(), x.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
    for mine, theirs in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-7, atol=1e-9)
    for name, tensor in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-10, atol=1e-12)


def test_shared_path_gradient_by_finite_differences() -> None:
    x, weight, bias = images(2, 3, 3, 2), images(3, seed=1), images(3, seed=2)
    inputs = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: _BatchNorm.apply(*t, 1e-5)[0], inputs)


def test_shared_path_far_from_zero() -> None:
    """A mean a thousand deviations away: E[x^2] - E[x]^2 would have lost the variance."""
    x = images(8, 2, 16, 16, dtype=torch.float64) + 1000
    norm = DistributedBatchNorm2d(2)
    exact = nn.BatchNorm2d(2).double()(x)
    y = norm._normalise(x.float())
    assert (y - exact).abs().max() < 1e-3  # x itself is rounded by 6e-5, a spread of 0.6
    unbiased = x.var((0, 2, 3))
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * unbiased, rtol=1e-5, atol=0)


def test_shared_path_in_half_precision() -> None:
    x = (images(4, 3, 9, 9) + 2).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    slope = images(4, 3, 9, 9, seed=3).bfloat16()
    ours, torchs = batch_norms(torch.float32, 3)
    mine, theirs = ours._normalise(x), torchs(wide)
    mine.backward(slope)
    theirs.backward(slope.float())
    assert mine.dtype == x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(mine.float(), theirs, rtol=0.01, atol=0.01)
    torch.testing.assert_close(x.grad.float(), wide.grad, rtol=0.01, atol=0.01)
    # What is summed up is summed in float32.
    for one, other in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.running_var, torchs.running_var, rtol=1e-5, atol=1e-7)


def test_shared_path_in_place_after_it() -> None:
    """LeakyReLU works in place on what the norm gives, and the norm's gradient survives it."""
    ours, torchs = batch_norms(torch.float64, 3)
    gradients = []
    for norm in (ours._normalise, torchs):
        x = images(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
        F.leaky_relu(norm(x), 0.2, inplace=True).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
