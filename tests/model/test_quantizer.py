"""The quantizer: signs, straight-through gradient, ids both ways, losses, refusals, usage."""

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
from wetok.model.quantizer import GroupedQuantizer, id_dtype
from wetok.model.usage import UsageCounter, code_usage


@st.composite
def shapes(draw, most: int = 62) -> tuple[int, int, tuple[int, int, int]]:
    group_bits, groups = draw(st.integers(1, most)), draw(st.integers(1, 5))
    return (
        group_bits,
        groups,
        (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))),
    )


def quantizer(bits: int, groups: int, **options) -> GroupedQuantizer:
    return GroupedQuantizer(bits, groups, entropy=options.pop("entropy", None), **options)


def slow_ids(latent: Tensor, groups: int) -> list:
    """ids by the definition: Python integers, channel k of a group is bit k."""
    batch, bits, height, width = latent.shape
    size = bits // groups
    return [
        [
            [
                [
                    sum(1 << k for k in range(size) if latent[b, g * size + k, y, x] > 0)
                    for x in range(width)
                ]
                for y in range(height)
            ]
            for g in range(groups)
        ]
        for b in range(batch)
    ]


# --- signs and ids


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**20))
def test_ids_and_codes_both_ways(shape, seed) -> None:
    group_bits, groups, (batch, height, width) = shape
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(batch, groups * group_bits, height, width, generator=generator)
    q = quantizer(groups * group_bits, groups).eval()
    out = q(latent)
    assert out.ids.dtype == id_dtype(group_bits)
    assert out.ids.tolist() == slow_ids(latent, groups)
    assert torch.equal(out.code, torch.where(latent > 0, 1.0, -1.0))
    code = q.ids_to_code(out.ids)
    assert code.dtype == torch.float32 and torch.equal(code, out.code)
    assert torch.equal(q.code_to_ids(code), out.ids)
    assert torch.equal(q.ids_to_code(out.ids.long()), code)


@pytest.mark.parametrize("group_bits", [1, 7, 8, 9, 15, 16, 31, 32, 62])
def test_extreme_ids(group_bits) -> None:
    q = quantizer(2 * group_bits, 2)
    top = 2**group_bits - 1
    ids = torch.tensor([0, top]).view(1, 2, 1, 1)
    code = q.ids_to_code(ids)
    assert code.flatten().tolist() == [-1.0] * group_bits + [1.0] * group_bits
    again = q.code_to_ids(code)
    assert again.flatten().tolist() == [0, top]
    assert top <= torch.iinfo(again.dtype).max
    smaller = {torch.int16: 255, torch.int32: 2**15 - 1, torch.int64: 2**31 - 1}
    assert top > smaller.get(again.dtype, 0), "a smaller type would have done"


def test_every_id_of_eight_bits() -> None:
    q = quantizer(8, 1)
    ids = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    code = q.ids_to_code(ids)
    assert torch.equal(q.code_to_ids(code), ids)
    assert code.movedim(1, -1).flatten(0, 2).unique(dim=0).shape == (256, 8)


def test_zero_is_minus_one() -> None:
    tiny = torch.finfo(torch.float32).smallest_normal
    latent = torch.tensor([0.0, -0.0, tiny, -tiny]).view(1, 4, 1, 1)
    out = quantizer(4, 1).eval()(latent)
    assert out.code.flatten().tolist() == [-1, -1, 1, -1] and out.ids.item() == 4


@pytest.mark.parametrize("case", ["tiny_gq", "tiny_gd", "tiny_lfq"])
def test_ids_of_the_released_code(fixtures_dir: Path, case: str) -> None:
    vectors = np.load(fixtures_dir / "released" / f"{case}.npz")
    for weights in ("raw", "ema"):
        latent = torch.from_numpy(vectors[f"latent_{weights}"])
        ids = torch.from_numpy(vectors[f"ids_{weights}"].astype(np.int64))
        out = quantizer(latent.shape[1], ids.shape[1]).eval()(latent)
        assert torch.equal(out.ids.long(), ids)


# --- gradients and losses


def test_straight_through() -> None:
    latent = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(1))
    out = quantizer(6, 2)(latent)
    assert set(out.code.unique().tolist()) == {-1.0, 1.0}, "exactly, not up to rounding"
    out.code.backward(upstream)
    assert torch.equal(latent.grad, upstream)
    assert not out.ids.requires_grad


def test_commitment_is_the_mean_square_to_a_fixed_code() -> None:
    latent = torch.randn(2, 6, 3, 3, dtype=torch.float64).requires_grad_()
    out = quantizer(6, 2)(latent)
    sign = torch.where(latent.detach() > 0, 1.0, -1.0)
    assert out.commitment.item() == pytest.approx(((latent - sign) ** 2).mean().item(), rel=1e-12)
    out.commitment.backward()
    torch.testing.assert_close(latent.grad, 2 * (latent.detach() - sign) / latent.numel())


def test_commitment_of_the_released_code(fixtures_dir: Path) -> None:
    vectors = np.load(fixtures_dir / "released" / "entropy.npz")
    for name in [key[: -len("_x")] for key in vectors.files if key.endswith("_x")]:
        latent = torch.from_numpy(vectors[f"{name}_x"])
        out = quantizer(latent.shape[1], 1)(latent)
        assert out.commitment.item() == pytest.approx(float(vectors[f"{name}_commit"]), rel=1e-9)


@pytest.mark.parametrize("convention", ["grouped", "pooled"])
def test_entropies_are_those_of_the_latent(convention) -> None:
    latent = 0.05 * torch.randn(2, 12, 4, 4, dtype=torch.float64)
    q = GroupedQuantizer(12, 3, entropy=convention, temperature=0.1, eps=0.001)
    out = q(latent)
    token, codebook = dense_entropies(latent, 3, convention, 0.1, 0.001)
    assert out.token_entropy.item() == pytest.approx(token.sum().item(), rel=1e-10)
    assert out.codebook_entropy.item() == pytest.approx(codebook.sum().item(), rel=1e-10)


def test_what_each_mode_computes() -> None:
    latent = torch.randn(1, 8, 2, 2)
    q = GroupedQuantizer(8, 2)
    trained, evaluated = q.train()(latent), q.eval()(latent)
    assert torch.equal(trained.code, evaluated.code) and torch.equal(trained.ids, evaluated.ids)
    assert None not in trained
    assert evaluated[2:] == (None, None, None)
    skipped = GroupedQuantizer(8, 2, entropy=None)(latent)
    assert skipped[2:4] == (None, None) and skipped.commitment is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype) -> None:
    latent = (0.1 * torch.randn(2, 8, 4, 4)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = GroupedQuantizer(8, 2)(latent)
    assert out.code.dtype == dtype and set(out.code.unique().tolist()) == {-1.0, 1.0}
    wide = GroupedQuantizer(8, 2)(latent.detach().double())
    assert torch.equal(out.ids, wide.ids)
    for mine, true in zip(out[2:], wide[2:], strict=True):
        assert mine.dtype == torch.float32
        assert mine.item() == pytest.approx(true.item(), rel=1e-5)
    (out.code.float().sum() + out.commitment + out.token_entropy - out.codebook_entropy).backward()
    assert latent.grad.dtype == dtype and latent.grad.isfinite().all()


# --- refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_and_inf_are_refused(bad, dtype) -> None:
    latent = torch.randn(2, 8, 4, 4).to(dtype)
    latent[1, 3, 2, 2] = bad
    with pytest.raises(WetokError, match=r"^latent holds NaN or Inf in 1 of 256 values.*$"):
        GroupedQuantizer(8, 2).eval()(latent)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_in_training_nan_and_inf_show_in_the_losses(bad) -> None:
    latent = torch.randn(2, 8, 4, 4)
    latent[1, 3, 2, 2] = bad
    out = GroupedQuantizer(8, 2)(latent)
    assert not out.commitment.isfinite()


def test_opposite_infinities_are_refused() -> None:
    latent = torch.tensor([math.inf, -math.inf]).view(1, 2, 1, 1)
    with pytest.raises(WetokError, match="2 of 2"):
        GroupedQuantizer(2, 1).eval()(latent)


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, 6e4), (torch.float32, 3e38), (torch.float64, 1e300)]
)
def test_huge_finite_latents_pass(dtype, value) -> None:
    out = GroupedQuantizer(8, 2).eval()(torch.full((4, 8, 8, 8), value, dtype=dtype))
    assert (out.ids == 15).all()


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((8, 3), {}, ["groups=3", "bits=8"]),
        ((0, 1), {}, ["bits=0"]),
        ((8, -1), {}, ["groups=-1"]),
        ((63, 1), {"entropy": None}, ["bits/groups=63", "62", "more groups"]),
        ((62, 2), {}, ["31 bits per group", f"{2**33:,} bytes", "more groups"]),
        ((8, 2), {"entropy": "both"}, ["entropy='both'", "grouped, pooled"]),
        ((8, 2), {"temperature": -1}, ["temperature=-1"]),
        ((8, 2), {"eps": 2}, ["eps=2"]),
    ],
)
def test_wrong_settings_are_one_line(arguments, options, words) -> None:
    with pytest.raises(WetokError) as caught:
        GroupedQuantizer(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_wrong_tensors_are_one_line() -> None:
    q = quantizer(8, 2)
    calls = [
        (lambda: q(torch.zeros(1, 7, 2, 2)), "[B, 8, h, w]"),
        (lambda: q(torch.zeros(1, 8, 2)), "(1, 8, 2)"),
        (lambda: q(torch.zeros(1, 8, 2, 2).long()), "int64"),
        (lambda: q.code_to_ids(torch.zeros(1, 8, 2, 2)), "-1 and +1"),
        (lambda: q.code_to_ids(torch.full((1, 8, 2, 2), math.nan)), "-1 and +1"),
        (lambda: q.code_to_ids(torch.ones(1, 4, 2, 2)), "[B, 8, h, w]"),
        (lambda: q.ids_to_code(torch.zeros(1, 3, 2, 2).long()), "[B, 2, h, w]"),
        (lambda: q.ids_to_code(torch.zeros(2, 2).long()), "(2, 2)"),
        (lambda: q.ids_to_code(torch.zeros(1, 2, 2, 2)), "float32"),
        (lambda: q.ids_to_code(torch.zeros(1, 2, 2, 2).bool()), "bool"),
        (lambda: q.ids_to_code(torch.full((1, 2, 2, 2), 16)), "[16, 16]"),
        (lambda: q.ids_to_code(torch.full((1, 2, 2, 2), -1)), "[-1, -1]"),
    ]
    for call, words in calls:
        with pytest.raises(WetokError) as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_empty_batches_pass() -> None:
    q = quantizer(8, 2).eval()
    assert q.ids_to_code(torch.zeros(0, 2, 3, 3).long()).shape == (0, 8, 3, 3)
    assert q(torch.zeros(0, 8, 3, 3)).ids.shape == (0, 2, 3, 3)


# --- usage


@settings(max_examples=40, deadline=None)
@given(shape=shapes(most=18), batches=st.integers(1, 3), seed=st.integers(0, 2**20))
def test_usage_counts_what_sets_count(shape, batches, seed) -> None:
    group_bits, groups, (batch, height, width) = shape
    generator = torch.Generator().manual_seed(seed)
    counter = UsageCounter(groups, group_bits)
    seen: list[list[int]] = [[] for _ in range(groups)]
    for _ in range(batches):
        # Few different ids, so that some bits never change.
        choice = torch.randint(0, 2**group_bits, (3,), generator=generator)
        ids = choice[torch.randint(0, 3, (batch, groups, height, width), generator=generator)]
        counter.update(ids.to(id_dtype(group_bits)))
        for g in range(groups):
            seen[g] += ids[:, g].flatten().tolist()
    dead = [[len({i >> k & 1 for i in codes}) == 1 for k in range(group_bits)] for codes in seen]
    assert counter.dead().tolist() == dead and counter.dead_bits() == sum(map(sum, dead))
    assert counter.counts.sum(1).tolist() == [len(codes) for codes in seen]
    if group_bits <= 16:
        shares = [len(set(codes)) / 2**group_bits for codes in seen]
        assert counter.usage() == pytest.approx(shares, rel=1e-12)
        for g, codes in enumerate(seen):
            assert counter.counts[g, codes[0]] == codes.count(codes[0])


def test_usage_of_full_and_single_codes() -> None:
    everything = torch.arange(256).view(1, 1, 16, 16)
    single = torch.full((1, 1, 16, 16), 7)
    usage = code_usage(torch.cat([everything, single], 1), 8)
    assert usage.share == [1.0, 1 / 256] and usage.dead_bits == 8


def test_large_groups_are_hashed_evenly() -> None:
    """m different codes fill 1 - e^(-m / 2^16) of the buckets, whichever bits they differ in."""
    for shift in (0, 3, 8):
        ids = (torch.arange(2**16) << shift).view(1, 1, 256, 256)
        share = code_usage(ids, 24).share[0]
        assert 0.5 < share <= 1.0
    assert code_usage(torch.zeros(1, 1, 4, 4).int(), 24) == ([1 / 2**16], 24)
    counter = UsageCounter(1, 24)
    generator = torch.Generator().manual_seed(0)
    counter.update(torch.randint(0, 2**24, (1, 1, 512, 512), generator=generator))
    assert counter.usage()[0] == pytest.approx(1 - math.exp(-4), abs=0.01)
    assert counter.dead_bits() == 0


def test_usage_starts_anew_and_refuses() -> None:
    counter = UsageCounter(2, 4)
    assert counter.usage() == [0.0, 0.0] and counter.dead_bits() == 8
    counter.update(torch.randint(0, 16, (4, 2, 8, 8)))
    counter.update(torch.zeros(0, 2, 8, 8).int())
    assert counter.dead_bits() == 0
    counter.reset()
    assert counter.usage() == [0.0, 0.0] and counter.dead_bits() == 8
    for bad in (torch.zeros(1, 3, 2, 2).int(), torch.zeros(1, 2, 2), torch.full((1, 2, 1, 1), 16)):
        with pytest.raises(WetokError):
            counter.update(bad)
    with pytest.raises(WetokError):
        UsageCounter(0, 4)
    with pytest.raises(WetokError):
        code_usage(torch.zeros(3, 3).int(), 4)


# --- channels last, and more sides than two ------------------------------------------------------


@settings(deadline=None)
@given(
    sides=st.lists(st.integers(1, 4), max_size=4),
    convention=st.sampled_from(["grouped", "pooled", None]),
    seed=st.integers(0, 2**20),
)
def test_channels_last_are_channels_first_moved(sides, convention, seed) -> None:
    torch.manual_seed(seed)
    rows = torch.randn(*sides, 6, requires_grad=True)
    positions = rows.detach().reshape(-1, 6).T[None, :, :, None].clone().requires_grad_()
    last = GroupedQuantizer(6, 2, entropy=convention, channel_dim=-1)
    first = GroupedQuantizer(6, 2, entropy=convention)
    got, want = last(rows), first(positions)
    assert got.code.shape == rows.shape and got.ids.shape == (*sides, 2)
    assert torch.equal(got.code.reshape(-1, 6), want.code[0, :, :, 0].T)
    assert torch.equal(got.ids.reshape(-1, 2), want.ids[0, :, :, 0].T)
    for mine, other in zip(got[2:], want[2:], strict=True):
        assert (mine is None) is (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other)
    (got.code.square().sum() + sum(x for x in got[2:] if x is not None)).backward()
    (want.code.square().sum() + sum(x for x in want[2:] if x is not None)).backward()
    torch.testing.assert_close(rows.grad.reshape(-1, 6), positions.grad[0, :, :, 0].T)
    assert torch.equal(last.ids_to_code(got.ids), got.code.detach())
    assert torch.equal(last.code_to_ids(got.code.detach()), got.ids)


def test_video_has_channels_first_and_three_sides() -> None:
    quantizer = GroupedQuantizer(6, 3).eval()
    video = torch.randn(2, 6, 3, 4, 5)
    out = quantizer(video)
    for index in range(3):
        frame = quantizer(video[:, :, index])
        assert torch.equal(out.ids[:, :, index], frame.ids)
        assert torch.equal(out.code[:, :, index], frame.code)
    assert torch.equal(quantizer.ids_to_code(out.ids), out.code)
    assert torch.equal(quantizer.code_to_ids(out.code), out.ids)


def test_where_channels_may_be() -> None:
    with pytest.raises(WetokError, match="channel_dim=2 must be 1"):
        GroupedQuantizer(6, 2, channel_dim=2)  # type: ignore[arg-type]
    with pytest.raises(WetokError, match=r"must be \[\.\.\., 6\]"):
        GroupedQuantizer(6, 2, channel_dim=-1)(torch.zeros(2, 6, 3, 3))
    with pytest.raises(WetokError, match=r"\(2, 5, 6\).*channel_dim=-1 takes channels last"):
        GroupedQuantizer(6, 2)(torch.zeros(2, 5, 6))
    assert "channel_dim=-1" in repr(GroupedQuantizer(6, 2, channel_dim=-1))
