"""The factored entropies against the brute force over all codes and against released numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model.dense_entropy import dense_entropies
from wetok.config import WetokError
from wetok.model import entropy as entropy_module
from wetok.model.entropy import MAX_BYTES, Entropies, check_settings, entropies, group_entropies

CASES = ["d10_g1_s0.05", "d12_g12_s0.05", "d16_g2_s0.05", "d32_g4_s0.02"]
CONVENTIONS = ["grouped", "pooled"]


def latents(*shape: int, scale: float = 0.02, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def with_slopes(function, latent: Tensor, *args, **kwargs) -> list[Tensor]:
    """Token and codebook entropies [g] and the gradient of each one's sum, all in float64."""
    leaf = latent.detach().clone().requires_grad_()
    token, codebook = function(leaf, *args, **kwargs)
    (token_grad,) = torch.autograd.grad(token.sum(), leaf, retain_graph=True)
    (codebook_grad,) = torch.autograd.grad(codebook.sum(), leaf)
    return [t.detach().double() for t in (token, codebook, token_grad, codebook_grad)]


def assert_near(ours: list[Tensor], truth: list[Tensor], relative: float) -> None:
    """Each tensor within `relative` of the largest entry of the true one."""
    for i, (mine, true) in enumerate(zip(ours, truth, strict=True)):
        error, scale = (mine - true).abs().max().item(), true.abs().max().item()
        assert error <= relative * max(scale, 1e-12), (i, error, scale)


# --- released vectors


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("case", CASES)
def test_released_vectors(fixtures_dir: Path, case: str, dtype: torch.dtype, limit: float) -> None:
    vectors = np.load(fixtures_dir / "released" / "entropy.npz")
    groups = int(case.split("_")[1][1:])
    latent = torch.from_numpy(vectors[f"{case}_x"]).to(dtype)

    def expected(*names: str) -> list[Tensor]:
        return [torch.from_numpy(np.atleast_1d(vectors[f"{case}_{name}"])) for name in names]

    pooled = with_slopes(group_entropies, latent, groups, "pooled")
    names = ("token_entropy", "codebook_entropy_pooled", "grad_token", "grad_codebook_pooled")
    assert_near(pooled, expected(*names), limit)
    grouped = with_slopes(group_entropies, latent, groups, "grouped")
    per_group = expected("token_entropy_per_group", "codebook_entropy_per_group")
    assert_near(grouped[:2], per_group, limit)
    # Token gradients of the two conventions differ by the mean over groups.
    (token_grad,) = expected("grad_token")
    torch.testing.assert_close(grouped[2], groups * token_grad, rtol=limit, atol=limit * 0.1)
    summed = entropies(latent, groups, "grouped")
    torch.testing.assert_close(
        torch.stack(summed).double(), torch.stack([t.sum() for t in per_group]), rtol=limit, atol=0
    )


# --- brute force


@settings(max_examples=60, deadline=None)
@given(
    group_bits=st.integers(1, 9),
    groups=st.integers(1, 4),
    batch=st.integers(1, 3),
    side=st.integers(1, 4),
    scale=st.sampled_from([0.001, 0.01, 0.05, 1.0]),
    temperature=st.sampled_from([0.01, 0.1, 1.0]),
    eps=st.sampled_from([0.0, 1e-5, 0.05]),
    convention=st.sampled_from(CONVENTIONS),
    seed=st.integers(0, 2**20),
)
def test_equals_brute_force(
    group_bits, groups, batch, side, scale, temperature, eps, convention, seed
) -> None:
    latent = latents(batch, groups * group_bits, side, side, scale=scale, seed=seed)
    arguments = (groups, convention)
    ours = with_slopes(group_entropies, latent, *arguments, temperature=temperature, eps=eps)
    dense = with_slopes(dense_entropies, latent, *arguments, temperature, eps)
    assert ours[0].shape == (groups if convention == "grouped" else 1,)
    for mine, true in zip(ours, dense, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("bits", "groups"), [(14, 1), (13, 1), (24, 2), (6, 6)])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3])
def test_larger_groups_equal_brute_force(bits, groups, convention, eps) -> None:
    latent = latents(2, bits, 4, 4, scale=0.004)
    ours = with_slopes(group_entropies, latent, groups, convention, eps=eps)
    assert_near(ours, with_slopes(dense_entropies, latent, groups, convention, eps=eps), 1e-11)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("bits", "groups"), [(2, 2), (6, 2), (5, 1)])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_gradcheck(bits, groups, convention, eps) -> None:
    latent = latents(2, bits, 3, scale=0.5).requires_grad_()

    def function(x: Tensor) -> Entropies:
        return group_entropies(x, groups, convention, temperature=1.0, eps=eps)

    assert torch.autograd.gradcheck(function, latent, eps=1e-6, atol=1e-8, rtol=1e-6)


def test_one_group_alone_has_its_own_gradient() -> None:
    latent = latents(3, 12, 2, 2).requires_grad_()
    codebook = group_entropies(latent, 3).codebook
    (grad,) = torch.autograd.grad(codebook[1], latent)
    assert grad[:, :4].abs().max() == 0 and grad[:, 8:].abs().max() == 0
    alone = latents(3, 12, 2, 2)[:, 4:8].requires_grad_()
    (expected,) = torch.autograd.grad(group_entropies(alone, 1).codebook.sum(), alone)
    torch.testing.assert_close(grad[:, 4:8], expected, rtol=1e-12, atol=1e-14)


def test_losses_combine_and_backpropagate_further() -> None:
    """Weights on both terms and a layer below, as in training."""
    inner = latents(2, 6, 3, 3).requires_grad_()
    twin = inner.detach().clone().requires_grad_()
    token, codebook = entropies(torch.tanh(inner), 2)
    (0.3 * token - 0.7 * codebook).backward()
    token, codebook = (t.sum() for t in dense_entropies(torch.tanh(twin), 2))
    (0.3 * token - 0.7 * codebook).backward()
    torch.testing.assert_close(inner.grad, twin.grad, rtol=1e-10, atol=1e-12)


# --- layouts


def test_layouts_agree() -> None:
    image = latents(2, 8, 3, 5)
    flat = image.permute(0, 2, 3, 1).reshape(30, 8)
    expected = torch.stack(entropies(image, 2))
    for other in (
        flat,
        image.flatten(2),
        image.unsqueeze(-1),
        image.contiguous(memory_format=torch.channels_last),
    ):
        torch.testing.assert_close(torch.stack(entropies(other, 2)), expected, rtol=1e-13, atol=0)
    strided = latents(2, 8, 3, 10)[..., ::2]
    ours = with_slopes(group_entropies, strided, 2)
    assert_near(ours, with_slopes(dense_entropies, strided.contiguous(), 2), 1e-11)


# --- blocks


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("bits", "groups"), [(16, 2), (18, 2), (30, 3)])
def test_blocks_change_nothing(monkeypatch, bits, groups, convention) -> None:
    latent = latents(5, bits, 7, 3)
    whole = with_slopes(group_entropies, latent, groups, convention)
    monkeypatch.setattr(entropy_module, "MIN_POSITIONS", 1)
    monkeypatch.setattr(entropy_module, "SMALL_JOINT", 0)
    plans, size = set(), 30_000 if bits == 16 else 60_000
    for max_bytes in (size // 2, size, 2 * size, 8 * size):
        plan = entropy_module._make_plan(latent.reshape(5, groups, bits // groups, 21), max_bytes)
        plans.add(plan)
        again = with_slopes(group_entropies, latent, groups, convention, max_bytes=max_bytes)
        assert_near(again, whole, 1e-12)
    smallest = min(plans)
    assert smallest.groups == 1 and smallest.rows < 2 ** (bits // groups // 2)
    assert smallest.positions < 105


@given(
    group_bits=st.integers(1, 30),
    groups=st.integers(1, 64),
    count=st.integers(1, 10**6),
    max_bytes=st.integers(2**26, 2**31),
)
def test_plans_keep_to_their_memory(group_bits, groups, count, max_bytes) -> None:
    latent = torch.empty(1, groups, group_bits, count, device="meta")
    plan = entropy_module._make_plan(latent, max_bytes)
    assert entropy_module._work_bytes(group_bits, plan, 4) <= max_bytes
    assert 2 ** (group_bits // 2) % plan.rows == 0
    fewer = entropy_module._make_plan(latent[..., : count // 2 + 1], max_bytes)
    assert fewer[:2] == plan[:2], "ranks with fewer positions must meet in the same reductions"


def test_many_positions_keep_their_digits() -> None:
    """100,000 positions of nearly uniform bits: long float32 sums would blur the histogram."""
    latent = latents(4, 8, 25_000, scale=0.01).float()
    truth = with_slopes(dense_entropies, latent.double(), 4, "pooled")
    ours = with_slopes(group_entropies, latent, 4, "pooled")
    for mine, true in zip(ours, truth, strict=True):
        assert (mine - true).abs().max() <= 1e-5 * true.abs().max()


def test_eighteen_bits_in_bounded_memory() -> None:
    """The dense table of 18 bits and 4096 positions has 4 GB; here its joint alone has 1 MB."""
    latent = latents(1, 18, 64, 64, scale=0.05).float().requires_grad_()
    token, codebook = entropies(latent, 1, eps=0.0, max_bytes=16 * 2**20)
    codebook.backward()
    few = latents(1, 18, 64, 64, scale=0.05)[..., :2, :2].float()
    assert 0 < token < codebook < 18 * math.log(2)
    assert latent.grad is not None and latent.grad.isfinite().all()
    # Four positions leave at most four codes' worth beyond their own uncertainty.
    token, codebook = entropies(few, 1, eps=0.0)
    assert token - 1e-6 <= codebook <= token + math.log(4) + 1e-6


# --- precision


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("bits", "groups"), [(32, 4), (10, 1), (8, 8)])
@pytest.mark.parametrize("size", [0.01, 0.05, 1.0, 5.0])
@pytest.mark.parametrize("drawn", ["normal", "signs"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_float32_is_near_float64(bits, groups, convention, size, drawn, autocast) -> None:
    latent = latents(4, bits, 8, 8, scale=1.0)
    latent = (size * (latent if drawn == "normal" else latent.sign())).float()
    truth = with_slopes(dense_entropies, latent.double(), groups, convention)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        ours = with_slopes(group_entropies, latent, groups, convention)
    assert_near(ours, truth, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("size", [0.01, 0.05, 1.0, 5.0])
@pytest.mark.parametrize("drawn", ["normal", "signs"])
def test_half_precision_latents_are_widened(dtype, autocast, size, drawn) -> None:
    latent = latents(4, 16, 4, 4, scale=1.0)
    latent = (size * (latent if drawn == "normal" else latent.sign())).to(dtype)
    truth = with_slopes(dense_entropies, latent.double(), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        token, codebook = group_entropies(latent, 2)
        ours = with_slopes(group_entropies, latent, 2)
    assert token.dtype == codebook.dtype == torch.float32
    assert_near(ours[:2], truth[:2], 1e-6)
    # The gradient is rounded once, to the latent's type.
    for mine, true in zip(ours[2:], truth[2:], strict=True):
        torch.testing.assert_close(mine, true, rtol=torch.finfo(dtype).eps, atol=1e-7)
    # Before that rounding it is the float32 gradient.
    wide = latent.float()
    assert_near(with_slopes(group_entropies, wide, 2), truth, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("size", [0.0, 1e-30, 0.3, 50.0, 1e30])
def test_any_logit_is_finite(dtype, eps, size) -> None:
    """Latents of +-50 at temperature 0.01 are logits of +-20,000."""
    latent = size * latents(4, 12, 3, 3).sign().to(dtype)
    results = with_slopes(group_entropies, latent, 2, eps=eps)
    assert all(t.isfinite().all() for t in results)
    if size >= 50:
        codes = latent[:, :6].sign().movedim(1, -1).flatten(0, -2)
        counts = codes.unique(dim=0, return_counts=True)[1]
        p = counts.double() / counts.sum()
        assert results[0].abs().max() == 0
        expected = -(p * (p + eps).log()).sum().item()
        assert results[1][0].item() == pytest.approx(expected, rel=1e-5)
        assert results[2].abs().max() == results[3].abs().max() == 0
    if size == 0:
        assert results[0].tolist() == pytest.approx([6 * math.log(2)] * 2)
        assert results[1].tolist() == pytest.approx([-math.log(2**-6 + eps)] * 2, rel=1e-6)


@pytest.mark.parametrize("x", [-0.3, -0.1, -0.02, -1e-3, 1e-3, 0.02, 0.1, 0.2])
def test_small_token_gradients_keep_their_digits(x) -> None:
    """Where the obvious softplus(b) - b p cancels: -b p q down to e^-80, to float32's digits."""
    latent = torch.full((1, 1, 1, 1), x, dtype=torch.float32)
    (grad,) = with_slopes(group_entropies, latent, 1)[2:3]
    b = 4 * latent.double().item() / 0.01
    p, q = 1 / (1 + math.exp(-b)), 1 / (1 + math.exp(b))
    rounding = 1e-6 + 2e-7 * abs(b)  # e^-b of a logit known to 24 bits
    if abs(b) < 87:
        assert grad.item() == pytest.approx(-b * p * q * 4 / 0.01, rel=rounding)
    else:
        assert abs(grad.item()) < 1e-30


def test_collapse_and_full_use() -> None:
    """Known extremes: one code only gives 0, all codes alike give d' log 2."""
    everything = torch.tensor([[1.0 if i >> k & 1 else -1.0 for k in range(4)] for i in range(16)])
    token, codebook = entropies(everything, 1, eps=0.0)
    assert token == 0 and codebook.item() == pytest.approx(4 * math.log(2), rel=1e-6)
    one = everything[:1].expand(16, 4)
    assert entropies(one, 1, eps=0.0).codebook.abs() < 1e-6


def test_large_eps_caps_the_codebook_entropy() -> None:
    """Why eps = 0 is advised for large groups: uniform over 2^20 codes is worth 13.86 nats."""
    latent = torch.zeros(1, 20)
    assert entropies(latent, 1, eps=0.0).codebook.item() == pytest.approx(20 * math.log(2))
    assert entropies(latent, 1).codebook.item() == pytest.approx(-math.log(2**-20 + 1e-5))


# --- no gradient, twice, errors


def test_without_gradient() -> None:
    latent = latents(2, 8, 3, 3)
    expected = torch.stack(entropies(latent.clone().requires_grad_(), 2)).detach()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            result = entropies(latent.clone(), 2)
        assert not result.token.requires_grad
        assert torch.equal(torch.stack(result), expected)


def test_input_is_left_alone() -> None:
    latent = latents(1, 8, 3, 3).float().requires_grad_()
    before = latent.detach().clone()
    entropies(latent, 2).codebook.backward()
    assert torch.equal(latent, before)


def test_second_derivative_is_refused() -> None:
    latent = latents(2, 4, 2, 2).requires_grad_()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = weight * entropies(latent, 1).codebook
    (grad,) = torch.autograd.grad(loss, latent, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("latent", "groups", "options", "words"),
    [
        (torch.zeros(2, 8), 3, {}, ["groups=3", "8 channels"]),
        (torch.zeros(2, 8), 0, {}, ["groups=0"]),
        (torch.zeros(2, 8), 2, {"convention": "summed"}, ["'summed'", "grouped, pooled"]),
        (torch.zeros(2, 8), 2, {"temperature": 0.0}, ["temperature=0.0", "positive"]),
        (torch.zeros(2, 8), 2, {"temperature": math.nan}, ["temperature=nan", "positive"]),
        (torch.zeros(2, 8), 2, {"eps": -1e-5}, ["eps=-1e-05", "[0, 1)"]),
        (torch.zeros(2, 8), 2, {"eps": math.nan}, ["eps=nan"]),
        (torch.zeros(2, 8, 0), 2, {}, ["(2, 8, 0)", "no positions"]),
        (torch.zeros(2, 8).long(), 2, {}, ["int64", "floating"]),
        (torch.zeros(8), 2, {}, ["(8,)", "[B, d, *]"]),
        (torch.zeros(2, 8), 1, {"max_bytes": 100}, ["max_bytes=100", "at least", "more groups"]),
        # the 2^40 table of float32 would take 4,398,046,511,104 bytes
        (torch.zeros(2, 40), 1, {}, ["40 bits", f"{2**42:,} bytes", "more groups"]),
    ],
)
def test_errors_are_one_line(latent, groups, options, words) -> None:
    with pytest.raises(WetokError) as caught:
        entropies(latent, groups, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_every_supported_size_fits_the_default() -> None:
    for group_bits in range(1, 31):
        check_settings(group_bits, "grouped", 0.01, 1e-5, MAX_BYTES)
