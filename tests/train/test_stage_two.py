"""The second stage: it starts as the first one's end, to the bit, and trains the decoder alone."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import wetok
from tests.train.test_run import Watcher, assert_same, interrupt_at, train
from tests.train.tiny import Recipe, write_pictures
from wetok.config import TrainConfig
from wetok.model.network import TokenizerNetwork
from wetok.train import loop
from wetok.train.loop import Run
from wetok.train.noise import training_noise
from wetok.train.step import DTYPES, Batch, train_step

GAN = {"width": 8, "depth": 1}


@pytest.fixture(scope="session")
def first_stage(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run of the first stage."""
    folder = tmp_path_factory.mktemp("first stage")
    train(recipe({"gan": GAN}), folder)
    return folder / "model"


@pytest.fixture
def second(recipe: Recipe, first_stage: Path) -> Recipe:
    """second({"run.steps": 3}): settings of a second stage that starts from it."""

    def make(changes: dict[str, Any] | None = None) -> TrainConfig:
        own = {"model.generative": True, "run.init": str(first_stage), "run.freeze": "encoder"}
        return recipe({**own, "gan": GAN, "data.batch": 4, **(changes or {})})

    return make


class Spy:
    """Keeps what each step was given, and what the network made of it before its update."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "train_step", self)
        self.parts: list[list[Batch]] = []
        self.before: list[Tensor] = []

    def __call__(self, state: Any, objective: Any, config: TrainConfig, parts: list[Batch]) -> Any:
        self.parts.append(parts)
        self.before.append(output(state.network, config, *parts[0]))
        return train_step(state, objective, config, parts)


@torch.no_grad()
def output(
    network: TokenizerNetwork, config: TrainConfig, image: Tensor, noise: Tensor | None = None
) -> Tensor:
    dtype = DTYPES[config.run.precision]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return network(image, noise).image


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_start_is_the_first_stages_end(
    second: Recipe,
    first_stage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    channels_last: bool,
) -> None:
    """To the bit, on the very batch of the first step, with its noise; and not after it."""
    spy = Spy(monkeypatch)
    config = second({"run.precision": precision, "run.channels_last": channels_last})
    train(config, tmp_path / "run")
    (part,) = spy.parts[0]
    assert part.noise is not None and part.noise.std() > 0.5
    stage_one = wetok.load(first_stage).model.train()
    if channels_last:
        stage_one = stage_one.to(memory_format=torch.channels_last)
    assert torch.equal(spy.before[0], output(stage_one, config, part.image))
    ((later, _),) = spy.parts[1]
    assert not torch.equal(spy.before[1], output(stage_one, config, later))


def test_the_encoder_stays_and_the_noise_is_learnt(
    second: Recipe, first_stage: Path, pictures: Path, tmp_path: Path
) -> None:
    run = train(second(), tmp_path / "run", watcher := Watcher())
    start = wetok.load(first_stage).model
    told = watcher.records[-1]
    assert "generator" in told and "l1" in told
    assert not told.keys() & {"commitment", "token_entropy", "codebook_entropy"}

    own = dict(start.named_parameters())
    exported = wetok.load(tmp_path / "run" / "model")
    for network in (run.state.network, exported.model):
        for name, parameter in network.named_parameters():
            if name.startswith("encoder"):
                assert torch.equal(parameter, own[name]), name
                assert name not in run.state.ema.average
            elif name != "decoder.conv_in.weight":
                assert not torch.equal(parameter, own[name]), name
        code, noise = network.decoder.conv_in.weight.chunk(2, dim=1)
        assert not torch.equal(code, own["decoder.conv_in.weight"])
        assert (noise != 0).all(), "each of them has learnt"

    # What is left is a generative model: its tokens are the first stage's, its pixels are many.
    assert exported.config.generative and exported.config.bits == start.config.bits
    tokens = exported.encode(pictures / "3.png")
    assert torch.equal(tokens.ids, wetok.load(first_stage).encode(pictures / "3.png").ids)
    same, again, other = (
        exported.decode(tokens, seed=seed, output="float")[0] for seed in (1, 1, 2)
    )
    assert torch.equal(same, again) and not torch.equal(same, other)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_second_stage_resumes_to_the_bit(second: Recipe, tmp_path: Path, precision: str) -> None:
    config = second({"run.precision": precision, "data.val": str(_held_out(tmp_path))})
    whole = train(config, tmp_path / "whole")
    first = Run(config, tmp_path / "parts", interrupt_at(4, signal.SIGTERM))
    assert first.train() is False and first.state.step == 4
    assert_same(train(config, tmp_path / "parts", resume=True), whole)
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def _held_out(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "val", 1, seed=1)


# The noise.


def noise_of_samples(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> list[tuple[Tensor, Tensor]]:
    """Image and noise of each sample of a run, in their order."""
    spy = Spy(monkeypatch)
    train(recipe(changes), folder)
    parts = [part for step in spy.parts for part in step]
    assert all(part.noise is not None for part in parts)
    return [pair for part in parts for pair in zip(part.image, part.noise, strict=True)]  # type: ignore[arg-type]


def test_each_sample_has_its_own_noise(
    second: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number of a run, one noise: with any batch, in parts, and after a resume."""
    whole = noise_of_samples(second, tmp_path / "whole", monkeypatch, {"run.seed": 7})
    assert len(whole) == 24 and whole[0][1].shape == (8, 4, 4)
    drawn = torch.stack([noise for _, noise in whole])
    assert len({row.numpy().tobytes() for row in drawn}) == 24
    assert abs(drawn.mean()) < 0.1 and abs(drawn.std() - 1) < 0.1
    assert abs(torch.corrcoef(drawn.flatten(1)).triu(1)).max() < 0.4, "not one moved along"
    for index, (image, noise) in enumerate(whole):
        assert torch.equal(noise, training_noise(7, [index], (8, 4, 4), image)[0])

    changes = {"run.seed": 7, "data.batch": 6, "run.accumulate": 3, "run.steps": 4}
    parted = noise_of_samples(second, tmp_path / "parted", monkeypatch, changes)
    spy = Spy(monkeypatch)
    changes = {"run.seed": 7}
    assert not Run(second(changes), tmp_path / "resumed", interrupt_at(2)).train()
    train(second(changes), tmp_path / "resumed", resume=True)
    resumed = [pair for ((image, noise),) in spy.parts for pair in zip(image, noise, strict=True)]
    for other in (parted, resumed):
        assert len(other) == 24
        for (image, noise), (same_image, same_noise) in zip(whole, other, strict=True):
            assert torch.equal(image, same_image) and torch.equal(noise, same_noise)

    other = noise_of_samples(second, tmp_path / "other", monkeypatch, {"run.seed": 8})
    drawn_then = {noise.numpy().tobytes() for _, noise in other}
    assert not drawn_then & {noise.numpy().tobytes() for _, noise in whole}


# The other half.


def test_a_frozen_decoder_stays(recipe: Recipe, first_stage: Path, tmp_path: Path) -> None:
    changes = {"run.init": str(first_stage), "run.freeze": "decoder", "gan": GAN}
    config = recipe(changes)
    run = train(config, tmp_path / "run", watcher := Watcher())
    assert {"commitment", "token_entropy", "generator"} <= watcher.records[-1].keys()
    start = dict(wetok.load(first_stage).model.named_parameters())
    for network in (run.state.network, wetok.load(tmp_path / "run" / "model").model):
        for name, parameter in network.named_parameters():
            frozen = name.startswith("decoder")
            assert torch.equal(parameter, start[name]) == frozen, name
            assert (name in run.state.ema.average) != frozen
    assert not Run(config, tmp_path / "parts", interrupt_at(2)).train()
    assert_same(train(config, tmp_path / "parts", resume=True), run)
