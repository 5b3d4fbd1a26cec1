"""The encoder, the decoder and both as one network: sizes, noise, stage two, single positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from wetok.config import ModelConfig, WetokError
from wetok.data.images import to_uint8
from wetok.model.decoder import Decoder, sample_noise
from wetok.model.encoder import Encoder
from wetok.model.network import TokenizerNetwork, parameter_count
from wetok.presets import PRESETS

# Of the published models: parameters of encoder and decoder.
COUNTS = {
    "general-24x": (193_655_360, 254_750_467),
    "general-48x": (193_622_560, 254_258_947),
    "general-192x": (198_935_328, 261_358_851),
    "general-768x": (720_160_544, 953_518_339),
    "imagenet-f8": (193_622_560, 254_258_947),
    "imagenet-f16": (198_935_328, 261_358_851),
    "open-magvit2-f16": (49_751_442, 65_376_387),
}

PATCHED = ModelConfig(bits=8, groups=2, channels=32, mults=(1, 2), blocks=1, patch=2)
UNEVEN = ModelConfig(
    bits=6,
    groups=3,
    channels=16,
    mults=(1, 2, 2),
    blocks=1,
    decoder_channels=24,
    decoder_mults=(1, 1, 2),
    decoder_blocks=2,
)
PLAIN = ModelConfig(bits=8, groups=2, channels=32, mults=(1, 2), blocks=1)
GENERATIVE = PLAIN.model_copy(update={"generative": True})


def network(config: ModelConfig, seed: int = 0) -> TokenizerNetwork:
    torch.manual_seed(seed)
    return TokenizerNetwork(config).eval()


def random_code(config: ModelConfig, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = shape
    bits = torch.randint(0, 2, (batch, config.bits, height, width), generator=generator)
    return bits.float() * 2 - 1


@pytest.mark.parametrize("name", COUNTS)
def test_published_models_have_exactly_their_parameters(name):
    with torch.device("meta"):
        counts = (
            parameter_count(Encoder(PRESETS[name])),
            parameter_count(Decoder(PRESETS[name])),
        )
    assert counts == COUNTS[name]


def test_every_published_preset_is_counted():
    assert set(COUNTS) == {name for name in PRESETS if not name.startswith("tiny-")}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_maps_to_its_latent_and_back(name):
    config = PRESETS[name]
    side = 2 * config.factor
    with torch.device("meta"):
        both = TokenizerNetwork(config)
        image = torch.empty(2, 3, side, 3 * config.factor)
        latent = both.encoder(image)
        noise = torch.empty_like(latent) if config.generative else None
        assert latent.shape == (2, config.bits, 2, 3)
        assert both.decoder(latent, noise).shape == image.shape


@pytest.mark.parametrize("config", [PLAIN, PATCHED, UNEVEN, GENERATIVE])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 2)])
def test_any_latent_size_gives_finite_images_and_gradients(config, shape):
    both = network(config).train()
    height, width = (side * config.factor for side in shape)
    image = torch.rand(2, 3, height, width).mul(2).sub(1).requires_grad_()
    noise = torch.randn(2, config.bits, *shape) if config.generative else None
    out = both(image, noise)
    assert out.image.shape == image.shape
    assert out.quantized.ids.shape == (2, config.groups, *shape)
    (out.image.square().mean() + out.quantized.commitment).backward()
    assert image.grad.isfinite().all()
    for name, parameter in both.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_forward_is_encoder_quantizer_decoder():
    both = network(GENERATIVE)
    image = torch.rand(2, 3, 8, 12).mul(2).sub(1)
    noise = sample_noise([1, 2], (8, 4, 6), image)
    with torch.no_grad():
        out = both(image, noise)
        latent = both.encoder(image)
        code = torch.where(latent > 0, 1.0, -1.0)
        assert torch.equal(out.quantized.code, code)
        assert torch.equal(out.image, both.decoder(code, noise))
    bits = (latent.unflatten(1, (2, 4)) > 0).long()
    powers = torch.tensor([1, 2, 4, 8])[:, None, None]
    assert torch.equal(out.quantized.ids.long(), (bits * powers).sum(2))


def test_groups_too_large_for_entropies_still_quantize():
    both = network(PLAIN.model_copy(update={"bits": 40, "groups": 1}))
    with torch.no_grad():
        quantized = both.quantizer(both.encoder(torch.rand(1, 3, 8, 8)))
    assert quantized.ids.dtype == torch.int64
    assert torch.equal(both.quantizer.ids_to_code(quantized.ids), quantized.code)


# Noise


def test_generative_decoder_asks_for_its_noise():
    with pytest.raises(WetokError, match="noise=None: this decoder needs noise"):
        network(GENERATIVE).decoder(random_code(GENERATIVE, 1, 2, 2))


def test_deterministic_decoder_refuses_noise():
    code = random_code(PLAIN, 1, 2, 2)
    with pytest.raises(WetokError, match="noise=given: this decoder takes no noise"):
        network(PLAIN).decoder(code, torch.zeros_like(code))


def test_generative_decoder_is_a_convolution_of_code_then_noise():
    decoder = network(GENERATIVE).double().decoder
    code, noise = random_code(GENERATIVE, 2, 3, 4).double(), torch.randn(2, 8, 3, 4).double()
    with torch.no_grad():
        expected = decoder.conv_in(torch.cat([code, noise], dim=1))
        torch.testing.assert_close(decoder._enter(code, noise), expected, rtol=0, atol=1e-12)
        assert not torch.equal(decoder(code, noise), decoder(code, -noise))


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5),
    shape=st.tuples(st.integers(1, 8), st.integers(1, 5), st.integers(1, 5)),
)
def test_noise_of_a_sample_is_its_seeds_alone(seeds, shape):
    before = torch.get_rng_state()
    noise = sample_noise(seeds, shape, torch.empty(0))
    assert noise.shape == (len(seeds), *shape) and noise.dtype == torch.float32
    for seed, row in zip(seeds, noise, strict=True):
        assert torch.equal(row, sample_noise([seed], shape, torch.empty(0))[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal_and_differs_between_seeds():
    noise = sample_noise(range(64), (8, 16, 16), torch.empty(0)).double()
    assert abs(noise.mean().item()) < 5 / noise.numel() ** 0.5
    assert abs(noise.square().mean().item() - 1) < 5 * (2 / noise.numel()) ** 0.5
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(64)
    assert correlation.abs().max() < 6 / noise[0].numel() ** 0.5


# One sample's pixels are its own


@pytest.mark.parametrize("config", [PRESETS["tiny-48x"], GENERATIVE, UNEVEN])
def test_a_sample_decodes_alike_alone_and_in_any_batch(config):
    both = network(config)
    noise = None
    for shape in [(5, 1, 1), (4, 4, 6), (3, 8, 8)]:
        code = random_code(config, *shape)
        if config.generative:
            noise = sample_noise(range(shape[0]), code.shape[1:], code)
        together = both.decode(code, noise)
        order = torch.randperm(shape[0])
        shuffled = both.decode(code[order], None if noise is None else noise[order])
        assert torch.equal(shuffled, together[order])
        for index in range(shape[0]):
            row = None if noise is None else noise[index : index + 1].clone()
            alone = both.decode(code[index : index + 1].clone(), row)
            assert torch.equal(to_uint8(alone)[0], to_uint8(together)[index])
            assert torch.equal(alone[0], together[index])
        # The same thing as the decoder's, up to the order of summing.
        with torch.no_grad():
            torch.testing.assert_close(together, both.decoder(code, noise), rtol=0, atol=1e-4)


def test_decode_asks_for_noise_as_the_decoder_does():
    with pytest.raises(WetokError, match="needs noise"):
        network(GENERATIVE).decode(random_code(GENERATIVE, 2, 2, 2))


# Stage two


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    bits=st.sampled_from([1, 2, 9, 33]),
    channels=st.sampled_from([8, 24, 32, 48]),
    mults=st.sampled_from([(1,), (2, 3), (1, 2, 2)]),
    precision=st.sampled_from(["float32", "bfloat16 autocast", "bfloat16", "float64"]),
    format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    size=st.sampled_from([(1, 1), (3, 2), (8, 8)]),
    spread=st.sampled_from([1.0, 1e3]),
)
@example(0, 2, 24, (2, 3), "float32", torch.channels_last, (1, 1), 1.0)  # where strides mattered
def test_to_generative_changes_no_bit_for_any_noise(
    seed, bits, channels, mults, precision, format, size, spread
):
    config = ModelConfig(bits=bits, groups=1, channels=channels, mults=mults, blocks=1)
    plain = network(config, seed).to(memory_format=format)
    if precision in ("bfloat16", "float64"):
        plain = plain.to(getattr(torch, precision))
    wide = plain.to_generative()
    dtype = next(plain.parameters()).dtype
    code = random_code(config, 2, *size, seed=seed).to(dtype)
    noise = spread * sample_noise([seed, seed + 1], code.shape[1:], code)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16 autocast")
    with torch.no_grad(), autocast:
        before, after = plain.decoder(code), wide.decoder(code, noise)
    assert before.dtype == after.dtype
    assert torch.equal(before, after)


def test_to_generative_copies_everything_and_shares_nothing():
    plain = network(PATCHED).requires_grad_(False)
    random_state = torch.get_rng_state()
    wide = plain.to_generative()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert wide.config == PATCHED.model_copy(update={"generative": True})
    assert not wide.training and wide.train().quantizer.training and not plain.quantizer.training
    state = dict(wide.named_parameters())
    for name, parameter in plain.named_parameters():
        copied = state.pop(name)
        assert copied.requires_grad and copied.data_ptr() != parameter.data_ptr()
        if name == "decoder.conv_in.weight":
            assert torch.equal(copied[:, :8], parameter)
            assert torch.equal(copied[:, 8:], torch.zeros_like(parameter))
        else:
            assert torch.equal(copied, parameter)
    assert not state


def test_to_generative_starts_to_use_its_noise_when_trained():
    wide = network(PLAIN).to_generative().train()
    code, noise = random_code(PLAIN, 2, 4, 4), torch.randn(2, 8, 4, 4)
    wide.decoder(code, noise).square().mean().backward()
    assert wide.decoder.conv_in.weight.grad[:, 8:].abs().max() > 0


def test_to_generative_twice_is_an_error():
    with pytest.raises(WetokError, match="takes noise already"):
        network(GENERATIVE).to_generative()
