"""Starting from a model of another shape: what fits is taken, and the start does what it did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.tiny import SHAPE, Recipe
from wetok.checkpoint import save_folder
from wetok.config import ModelConfig, WetokError
from wetok.model.network import TokenizerNetwork
from wetok.train.start import take_over, tokenizer_network


def network(**changes: object) -> TokenizerNetwork:
    return TokenizerNetwork(ModelConfig.model_validate({**SHAPE, **changes})).eval()


def test_the_same_shape_is_the_same_network() -> None:
    one, other = network(), network()
    take_over(other, one)
    for name, tensor in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


@torch.no_grad()
def test_more_bits_begin_as_the_narrower_model() -> None:
    """The old bits are the old ones, and the decoder doesn't hear the new ones yet."""
    small, large = network(), network(bits=12, groups=3)
    take_over(large, small)
    image = torch.rand(2, 3, 24, 16) * 2 - 1
    latent = large.encoder(image)
    torch.testing.assert_close(latent[:, :8], small.encoder(image))
    assert latent[:, 8:].abs().min() > 0
    code = torch.where(latent > 0, 1.0, -1.0)
    torch.testing.assert_close(large.decoder(code), small.decoder(code[:, :8]))


def test_new_bits_are_learnt() -> None:
    small, large = network(), network(bits=12, groups=3)
    take_over(large, small)
    large.train()
    again, quantized = large(torch.rand(1, 3, 16, 16) * 2 - 1)
    (again.square().mean() + quantized.commitment).backward()
    assert large.decoder.conv_in.weight.grad is not None
    assert large.decoder.conv_in.weight.grad[:, 8:].abs().max() > 0
    assert large.encoder.conv_out.weight.grad is not None
    assert large.encoder.conv_out.weight.grad[8:].abs().max() > 0


@torch.no_grad()
def test_a_level_more_keeps_the_others() -> None:
    """f = 4 to f = 8: the levels of the smaller network compute what they did."""
    small, large = network(), network(mults=[1, 1, 1])
    take_over(large, small)
    x = large.encoder.conv_in(torch.rand(1, 12, 16, 16))
    for index in range(2):
        mine, theirs = large.encoder.down[index].block[0], small.encoder.down[index].block[0]
        torch.testing.assert_close(mine(x), theirs(x))


def test_a_recipe_takes_what_fits(recipe: Recipe, tmp_path: Path) -> None:
    save_folder(tmp_path / "small", network(), "small")
    changes = {"model.bits": 12, "model.groups": 3, "run.init": str(tmp_path / "small")}
    with pytest.raises(WetokError, match="bits=8 there, 12 here.*run.init_partial=true"):
        tokenizer_network(recipe(changes), begins=True)
    made = tokenizer_network(recipe({**changes, "run.init_partial": True}), begins=True)
    assert made.config.bits == 12
    with pytest.raises(WetokError, match="name that model"):
        recipe({"run.init_partial": True})


def test_too_different() -> None:
    with pytest.raises(WetokError, match="run.init is too different: .* weights have a place"):
        take_over(network(channels=8), network(channels=64))
