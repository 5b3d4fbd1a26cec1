"""Quantizers of another package behind our interface: values, gradients, what a network makes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wetok.config import ModelConfig, WetokError
from wetok.model.network import TokenizerNetwork
from wetok.model.outside import FiniteScalarQuantizer, VectorQuantizer

pytest.importorskip("vector_quantize_pytorch")

LEVELS = (8, 5, 5)


def latent(count: int = 2, channels: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, 6, 5, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def vq() -> VectorQuantizer:
    """Four bits in each of two groups; one step of training has placed the vectors."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 2, 4)
    quantizer(latent())
    return quantizer.eval()


def test_vq_takes_the_nearest_vector_of_each_group(vq: VectorQuantizer) -> None:
    z = latent(seed=1)
    out = vq(z)
    books = vq.inner.codebook  # [g, 16, d/g]
    assert books.shape == (2, 16, 4) and out.ids.shape == (2, 2, 6, 5)
    for sample, row, column in itertools.product(range(2), range(6), range(5)):
        for group in range(2):
            part = z[sample, 4 * group : 4 * group + 4, row, column]
            distances = (books[group] - part).square().sum(-1)
            chosen = out.ids[sample, group, row, column]
            assert chosen == distances.argmin()
            got = out.code[sample, 4 * group : 4 * group + 4, row, column]
            assert torch.allclose(got, books[group][chosen])
    assert out[2:] == (None, None, None), "no losses outside training"


def test_vq_with_one_group_has_ids_of_one_group() -> None:
    torch.manual_seed(0)
    out = VectorQuantizer(8, 1, 4)(latent())
    assert out.ids.shape == (2, 1, 6, 5) and out.code.shape == (2, 8, 6, 5)


def test_vqs_commitment_is_the_squared_distance() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 2, 4)
    z = latent().requires_grad_()
    for _ in range(2):  # the second time, nothing is placed anew
        out = quantizer(z)
    assert out.commitment is not None and out.token_entropy is None
    (slope,) = torch.autograd.grad(out.commitment, z)
    # The vectors themselves move after the distance is taken, so it is told by its gradient.
    wanted = 2 * (z - out.code).detach() / z.numel()
    assert torch.allclose(slope, wanted, atol=1e-6)
    assert out.commitment.item() == pytest.approx((wanted * z.numel() / 2).square().mean().item())


def test_vq_passes_gradients_on_and_its_vectors_move() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 2, 4)
    quantizer(latent())
    before = quantizer.inner.codebook.clone()
    z = latent(seed=2).requires_grad_()
    quantizer(z).code.square().sum().backward()
    assert z.grad is not None and bool((z.grad != 0).any(1).all())
    assert not quantizer.inner.codebook.equal(before)
    assert not list(quantizer.parameters()), "they are averages, not learned by a gradient"


def test_vq_needs_groups_that_divide() -> None:
    with pytest.raises(WetokError, match="groups=3 must divide channels=8"):
        VectorQuantizer(8, 3, 4)


def test_fsq_rounds_to_its_levels() -> None:
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(8, LEVELS).eval()
    out = quantizer(3 * latent(8, seed=1))
    assert (quantizer.groups, quantizer.group_bits) == (1, 8)  # 200 codes
    assert out.ids.shape == (8, 1, 6, 5) and int(out.ids.max()) < 200
    assert out.commitment is None and out.token_entropy is None
    # An id's digits, in a number system with as many of them as levels, tell the rounded values.
    values, rest = [], out.ids[:, 0]
    for levels in LEVELS:
        values.append((rest % levels - levels // 2) / (levels // 2))
        rest = rest // levels
    code = quantizer.inner.project_out(torch.stack(values, -1)).movedim(-1, 1)
    assert torch.allclose(code, out.code, atol=1e-6)
    assert all(len(one.unique()) == levels for one, levels in zip(values, LEVELS, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_they_work_in_float32_and_give_back_what_they_got(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    quantizer: nn.Module = (
        VectorQuantizer(8, 2, 4) if kind == "vq" else FiniteScalarQuantizer(8, LEVELS)
    )
    quantizer(latent())
    quantizer.eval()
    z = latent(seed=3).to(dtype)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = quantizer(z)
    assert plain.code.dtype == mixed.code.dtype == dtype
    assert mixed.code.equal(plain.code) and mixed.ids.equal(plain.ids)


def shape(**changes: Any) -> ModelConfig:
    given = {"bits": 8, "groups": 2, "channels": 8, "mults": (1, 1), "blocks": 1, "patch": 2}
    return ModelConfig.model_validate({**given, **changes})


def test_a_network_holds_one_and_begins_as_beside_ours() -> None:
    torch.manual_seed(0)
    ours = TokenizerNetwork(shape())
    quantizer = FiniteScalarQuantizer(8, LEVELS)
    torch.manual_seed(0)
    network = TokenizerNetwork(shape(), quantizer)
    mine, theirs = ours.state_dict(), network.state_dict()
    assert {name: value for name, value in theirs.items() if "quantizer" not in name}.keys() == {
        *mine
    }
    assert all(theirs[name].equal(value) for name, value in mine.items())
    image = torch.rand(1, 3, 16, 16)
    again, quantized = network(image)
    assert again.equal(network.decoder(quantizer(network.encoder(image)).code))
    again.sum().backward()
    assert quantizer.inner.project_in.weight.grad is not None
