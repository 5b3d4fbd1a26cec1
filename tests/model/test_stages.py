"""The networks as lists of stages: the same numbers as the forward pass, and how far they look."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from wetok.config import ModelConfig
from wetok.model.decoder import sample_noise
from wetok.model.layers import EPSILON, AdaptiveGroupNorm, code_statistics, space_to_depth
from wetok.model.network import TokenizerNetwork
from wetok.model.stages import (
    Moments,
    Stage,
    decoder_stages,
    encoder_stages,
    normalized,
    reach,
    run,
)

SHAPES: list[dict[str, Any]] = [
    {"channels": 32, "mults": (1, 2), "blocks": 1, "patch": 2},
    {"channels": 8, "mults": (1, 2, 3), "blocks": 2, "decoder_mults": (1, 1, 2)},
    {"channels": 24, "mults": (1,), "blocks": 1, "patch": 4, "generative": True},
    {"channels": 40, "mults": (2, 1), "blocks": 1, "generative": True, "decoder_channels": 8},
]


def network(changes: dict[str, Any], seed: int = 0) -> TokenizerNetwork:
    torch.manual_seed(seed)
    both = TokenizerNetwork(ModelConfig(**{"bits": 8, "groups": 2, **changes}))
    with torch.no_grad():  # norms do something, so that one left out would show
        for name, parameter in both.named_parameters():
            if ".norm" in name or "norm_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return both.eval().requires_grad_(False)


def own_moments(stages: list[Stage]) -> Any:
    """Of each piece on its own, in float64 and written out."""

    def moments(index: int, x: Tensor) -> Moments:
        norm = stages[index].norm
        groups = (norm.gn if isinstance(norm, AdaptiveGroupNorm) else norm).num_groups
        flat = x.double().reshape(groups, -1)
        variance = flat.var(1, correction=0)
        return Moments(flat.mean(1).float(), (1 / (variance + EPSILON).sqrt()).float())

    return moments


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 7)])
def test_the_stages_are_the_forward_pass(changes: dict[str, Any], size: tuple[int, int]) -> None:
    both = network(changes)
    factor, patch = both.config.factor, both.config.patch
    image = torch.rand(1, 3, size[0] * factor, size[1] * factor) * 2 - 1
    stages = encoder_stages(both.encoder)
    stem = space_to_depth(image, patch)
    latent = both.encoder(image)
    torch.testing.assert_close(run(stages, stem, own_moments(stages)), latent, rtol=1e-4, atol=1e-4)
    code = torch.where(latent > 0, 1.0, -1.0)
    noise = sample_noise([1], code.shape[1:], code) if both.config.generative else None
    stages = decoder_stages(both.decoder)
    entry = code if noise is None else torch.cat([code, noise], 1)
    torch.testing.assert_close(
        run(stages, entry, own_moments(stages), code_statistics(code)),
        both.decoder(code, noise),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("changes", SHAPES)
def test_every_weight_is_in_a_stage_once(changes: dict[str, Any]) -> None:
    both = network(changes)
    for module, stages in (
        (both.encoder, encoder_stages(both.encoder)),
        (both.decoder, decoder_stages(both.decoder)),
    ):
        parts = [part for s in stages for part in (s.conv, s.norm, s.shortcut) if part is not None]
        held = [id(p) for part in parts for p in part.parameters()]
        assert sorted(held) == sorted(id(p) for p in module.parameters())


@pytest.mark.parametrize("changes", SHAPES)
def test_reach_is_as_far_as_a_change_shows(changes: dict[str, Any]) -> None:
    """With the norms' statistics given, one changed input alters what is within reach, no more."""
    both = network(changes)
    code = torch.where(torch.randn(1, 8, 40, 1) > 0, 1.0, -1.0)
    noise = torch.randn_like(code)
    stages = decoder_stages(both.decoder)
    fixed: dict[int, Moments] = {}
    own = own_moments(stages)

    def moments(index: int, x: Tensor) -> Moments:
        return fixed.setdefault(index, own(index, x))

    def decode(code: Tensor) -> Tensor:
        entry = torch.cat([code, noise], 1) if both.config.generative else code
        return run(stages, entry, moments, condition)

    condition = code_statistics(code)
    before = decode(code)
    changed = code.clone()
    changed[:, :, 20] *= -1
    rows = (decode(changed) != before).any(1).any(-1)[0].nonzero().flatten() / both.config.factor
    far = reach(stages, 1)
    assert 20 - far <= rows.min() and rows.max() < 21 + far
    assert rows.min() < 20 - far + 1, "a bound that nothing comes near"


def test_reach_of_the_shipped_shape_by_hand() -> None:
    both = network({"channels": 8, "mults": (1, 2, 2), "patch": 2, "blocks": 1})
    stages = encoder_stages(both.encoder)
    # conv_in, one block and the strided convolution at 2 pixels; the same at 4; two blocks at 8.
    assert reach(stages, both.config.patch) == 2 * (1 + 2 + 1) + 4 * (2 + 1) + 8 * (2 + 2)
    assert math.isclose(reach(stages, 1 / 4), 52 / 8)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_norm_with_given_moments(adaptive: bool) -> None:
    both = network(SHAPES[0])
    stages = decoder_stages(both.decoder) if adaptive else encoder_stages(both.encoder)
    stage = next(s for s in stages if s.norm and isinstance(s.norm, AdaptiveGroupNorm) == adaptive)
    norm = stage.norm
    groups = norm.gn.num_groups if adaptive else norm.num_groups
    channels = norm.gn.num_channels if adaptive else norm.num_channels
    x, moments = torch.randn(1, channels, 5, 3), Moments(torch.randn(groups), torch.rand(groups))
    condition = (torch.randn(1, 8), torch.rand(1, 8))
    wide = x.double().reshape(groups, -1)
    wide = (wide - moments.mean.double()[:, None]) * moments.inverse.double()[:, None]
    wide = wide.reshape(x.shape)
    if adaptive:
        scale = condition[1].double() @ norm.gamma.weight.double().T + norm.gamma.bias.double()
        shift = condition[0].double() @ norm.beta.weight.double().T + norm.beta.bias.double()
    else:
        scale, shift = norm.weight.double()[None], norm.bias.double()[None]
    expected = wide * scale[:, :, None, None] + shift[:, :, None, None]
    before = x.clone()
    got = normalized(stage, x, moments, condition)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)
