"""The adapter in the hands of diffusers' own classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.export.small import small
from wetok.config import WetokError
from wetok.model.tokenizer import Tokenizer

diffusers = pytest.importorskip("diffusers", reason="needs diffusers")

from wetok.adapters.diffusers import WetokAutoencoder  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small(bits=8, generative=False)


@pytest.fixture
def vae(tokenizer: Tokenizer) -> WetokAutoencoder:
    return WetokAutoencoder.from_tokenizer(tokenizer)


def test_codes_and_pixels_are_the_tokenizers(vae: WetokAutoencoder, tokenizer: Tokenizer) -> None:
    image = torch.rand(3, 3, 16, 24) * 2 - 1
    tokens = tokenizer.encode(image)
    posterior = vae.encode(image).latent_dist
    code = tokenizer.model.quantizer.ids_to_code(tokens.ids)
    assert torch.equal(posterior.mode(), code) and torch.equal(posterior.sample(), code)
    wanted = tokenizer.decode(tokens, output="float", precision="float32")
    for scale in (1.0, 0.3):  # signs are what counts
        pixels = vae.decode(code * scale).sample
        torch.testing.assert_close(pixels.clamp(-1, 1), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(vae(image).sample.clamp(-1, 1), wanted, atol=1e-5, rtol=0)
    assert posterior.kl().tolist() == [0, 0, 0]
    (one,) = vae.encode(image, return_dict=False)
    assert torch.equal(vae.decode(one.mode(), return_dict=False)[0], vae.decode(code).sample)


def test_what_pipelines_read(vae: WetokAutoencoder) -> None:
    assert vae.config.scaling_factor == 1.0 and vae.config.latent_channels == 8
    assert 2 ** (len(vae.config.block_out_channels) - 1) == 4
    assert vae.dtype == torch.float32 and not any(p.requires_grad for p in vae.parameters())


def test_slicing_and_tiling(vae: WetokAutoencoder) -> None:
    image = torch.rand(2, 3, 32, 16) * 2 - 1
    code = vae.encode(image).latent_dist.mode()
    pixels = vae.decode(code).sample.clamp(-1, 1)
    vae.enable_slicing()
    assert torch.equal(vae.encode(image).latent_dist.mode(), code)
    torch.testing.assert_close(vae.decode(code).sample.clamp(-1, 1), pixels, atol=1e-5, rtol=0)
    vae.disable_slicing()
    vae.enable_tiling()
    assert torch.equal(vae.encode(image).latent_dist.mode(), code)
    torch.testing.assert_close(vae.decode(code).sample, pixels, atol=1e-4, rtol=0)
    vae.disable_tiling()
    assert vae.tiles == "off"
    with pytest.raises(WetokError, match="float32, not torch.bfloat16"):
        vae.to(torch.bfloat16).enable_tiling()


def test_half_precision_and_gradients(vae: WetokAutoencoder) -> None:
    half = vae.to(torch.bfloat16)
    image = (torch.rand(1, 3, 16, 16) * 2 - 1).to(torch.bfloat16)
    latent = half.encode(image).latent_dist.mode()
    assert latent.dtype == torch.bfloat16 and latent.unique().tolist() == [-1, 1]
    assert half.decode(latent).sample.dtype == torch.bfloat16
    z = torch.randn(1, 8, 4, 4, requires_grad=True)
    vae.to(torch.float32).decode(z).sample.square().sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


def test_generative_decoders_take_a_generator() -> None:
    tokenizer = small(4, generative=True)
    vae = WetokAutoencoder.from_tokenizer(tokenizer)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    tokens = tokenizer.encode(image)
    code = vae.encode(image).latent_dist.mode()
    wanted = tokenizer.decode(tokens, seed=0, output="float", precision="float32")
    torch.testing.assert_close(vae.decode(code).sample.clamp(-1, 1), wanted, atol=1e-5, rtol=0)
    a, b, c = (
        vae.decode(code, generator=torch.Generator().manual_seed(seed)).sample for seed in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_training_step_of_a_unet(vae: WetokAutoencoder) -> None:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=10)
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-2)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(image).latent_dist.sample() * vae.config.scaling_factor
    noise, steps = torch.randn_like(latents), torch.tensor([2, 7])
    losses = []
    for _ in range(4):
        predicted = unet(scheduler.add_noise(latents, noise, steps), steps).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_pipeline_there_and_on_disk(vae: WetokAutoencoder, tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=8,
        out_channels=8,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    pipeline = diffusers.DiTPipeline(
        transformer=transformer, vae=vae, scheduler=diffusers.DDIMScheduler()
    )
    pipeline.set_progress_bar_config(disable=True)

    def images(made: diffusers.DiTPipeline) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        found = made([1, 2], num_inference_steps=2, generator=generator, output_type="pt")
        return torch.as_tensor(found.images)

    found = images(pipeline)
    assert found.shape == (2, 3, 16, 16) and found.min() >= 0 and found.max() <= 1
    assert found.std() > 0.01
    pipeline.save_pretrained(tmp_path)
    again = diffusers.DiTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.vae) is WetokAutoencoder
    assert torch.equal(images(again), found)


def test_saved_and_loaded_alone(vae: WetokAutoencoder, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    again = WetokAutoencoder.from_pretrained(tmp_path)
    assert dict(again.config)["network"] == dict(vae.config)["network"]
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(again(image).sample, vae(image).sample)


def test_mistakes(vae: WetokAutoencoder) -> None:
    with pytest.raises(WetokError, match="multiples of 4"):
        vae.encode(torch.zeros(1, 3, 18, 16))
    with pytest.raises(WetokError, match=r"must be \[B, 8, h, w\]"):
        vae.decode(torch.zeros(1, 4, 4, 4))
    with pytest.raises(WetokError, match="factor=3"):
        WetokAutoencoder.from_tokenizer(small(patch=3, mults=(1,)))
    with pytest.raises(WetokError, match="no model"):
        WetokAutoencoder.from_tokenizer("tiny-1x")
