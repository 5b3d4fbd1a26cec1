"""The adapter against vector-quantize-pytorch's own LFQ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wetok.adapters.lfq import LFQ
from wetok.config import WetokError

theirs = pytest.importorskip("vector_quantize_pytorch", reason="needs vector-quantize-pytorch")


def pair(seed: int = 0, **settings: Any) -> tuple[LFQ, Any]:
    """Ours with their weights, both training."""
    torch.manual_seed(seed)
    wanted = theirs.LFQ(**settings)
    ours = LFQ(**settings)
    ours.load_state_dict(wanted.state_dict())
    return ours, wanted


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 7),
    books=st.integers(1, 3),
    sides=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    first=st.sampled_from([None, True, False]),
    seed=st.integers(0, 2**20),
)
def test_values_and_gradients(
    bits: int, books: int, sides: list[int], first: bool | None, seed: int
) -> None:
    if not sides:
        sides, first = [3], False
    ours, wanted = pair(
        codebook_size=2**bits,
        num_codebooks=books,
        commitment_loss_weight=0.25,
        diversity_gamma=0.7,
        channel_first=first,
    )
    channels = bits * books
    second = len(sides) >= 2 if first is None else first
    shape = (2, channels, *sides) if second else (2, *sides, channels)
    if not second and len(sides) > 1:  # theirs takes three sides then
        shape = (2, sides[0], channels)
    generator = torch.Generator().manual_seed(seed)
    # Soft and sure assignments; at 0.01 and inverse temperature 100 a bit has p ~ sigmoid(4 x).
    x = torch.randn(shape, generator=generator) * 0.02
    x.view(-1)[0] = 0.0
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, parts = ours(a, return_loss_breakdown=True)
    want, their_parts = wanted(b, return_loss_breakdown=True)
    torch.testing.assert_close(got.quantized, want.quantized)
    assert torch.equal(got.indices, want.indices) and got.indices.dtype == want.indices.dtype
    # Their logarithm is cut at 1e-5, ours is exact.
    for mine, other in zip(parts, their_parts, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(got.entropy_aux_loss, want.entropy_aux_loss, atol=3e-4, rtol=1e-4)
    weight = torch.randn(shape, generator=generator)
    ((got.quantized * weight).sum() + got.entropy_aux_loss).backward()
    ((want.quantized * weight).sum() + want.entropy_aux_loss).backward()
    assert a.grad is not None and b.grad is not None
    torch.testing.assert_close(a.grad, b.grad, atol=2e-3, rtol=1e-3)
    assert torch.equal(ours.indices_to_codes(got.indices), wanted.indices_to_codes(want.indices))


def test_losses_are_theirs_without_their_cut() -> None:
    """In float64 and with the cut far away, to the last digits."""
    ours, wanted = pair(codebook_size=64, num_codebooks=2)
    x = torch.randn(4, 50, 12, dtype=torch.float64) * 0.02
    wanted.force_quantization_f32 = False
    wanted.double()
    from vector_quantize_pytorch import lookup_free_quantization as module

    original = module.log
    module.log = lambda t, eps=0: original(t, 1e-300)
    try:
        (_, parts), (_, want) = (one(x, return_loss_breakdown=True) for one in (ours, wanted))
    finally:
        module.log = original
    for mine, other in zip(parts, want, strict=True):
        torch.testing.assert_close(mine.double(), other.double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_projections_and_masks(bias: bool) -> None:
    ours, wanted = pair(
        dim=10, codebook_size=16, num_codebooks=2, projection_has_bias=bias, entropy_loss_weight=0.3
    )
    x = torch.randn(2, 9, 10) * 0.05
    mask = torch.rand(2, 9) > 0.4
    got, want = ours(x, mask=mask), wanted(x)
    torch.testing.assert_close(got.quantized, want.quantized)
    torch.testing.assert_close(ours(x)[2], want.entropy_aux_loss, atol=1e-3, rtol=1e-4)
    # Theirs, given a mask, takes no mean over positions, so that its two entropies are one and the
    # same; the losses of the positions that the mask leaves are these.
    left = wanted(x[mask][None]).entropy_aux_loss
    torch.testing.assert_close(got.entropy_aux_loss, left, atol=1e-3, rtol=1e-4)
    assert wanted(x, mask=mask).entropy_aux_loss == 0
    codes = ours.indices_to_codes(got.indices)
    torch.testing.assert_close(codes, wanted.indices_to_codes(want.indices))


def test_eval_mode() -> None:
    ours, wanted = pair(codebook_size=2**9)
    x = torch.randn(2, 9, 4, 4)
    got, want = ours.eval()(x), wanted.eval()(x)
    assert torch.equal(got.quantized, want.quantized) and torch.equal(got.indices, want.indices)
    assert got.entropy_aux_loss == want.entropy_aux_loss == 0
    assert got.indices.shape == (2, 4, 4)


def test_codebooks_that_no_table_holds() -> None:
    ours = LFQ(codebook_size=2**20)
    loss = ours(torch.randn(1, 64, 20) * 0.05)[2]
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "give dim, codebook_size or both"),
        ({"codebook_size": 100}, "codebook_size=100 must be a power of 2"),
        ({"codebook_size": 1}, "from 2 on"),
        ({"dim": 4, "codebook_size": 2**5, "has_projections": False}, "needs projections to 5"),
        ({"codebook_size": 4, "num_codebooks": 2, "keep_num_codebooks_dim": False}, "need their"),
        ({"codebook_size": 2**40}, "use more codebooks"),
    ],
)
def test_mistakes(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(WetokError, match=told):
        LFQ(**settings)
    with pytest.raises(WetokError, match="its last side must be 5"):
        LFQ(dim=5)(torch.zeros(2, 3, 4))
