"""A decoder trained behind a frozen encoder reads the tokens of the model it started from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import wetok
from tests.train.test_run import interrupt_at, train
from tests.train.tiny import Recipe
from wetok.checkpoint import load_network, read_config, save_folder
from wetok.config import WetokError
from wetok.model.network import TokenizerNetwork


@pytest.fixture
def first(recipe: Recipe, tmp_path: Path) -> Path:
    train(recipe(), tmp_path / "first")
    return tmp_path / "first" / "model"


def image() -> Tensor:
    return torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("generative", [False, True])
def test_it_reads_them(recipe: Recipe, first: Path, tmp_path: Path, generative: bool) -> None:
    changes: dict[str, Any] = {"run.init": str(first), "run.freeze": "encoder"}
    train(recipe({**changes, "model.generative": generative}), tmp_path / "second")
    start, tuned = wetok.load(first), wetok.load(tmp_path / "second" / "model")
    assert tuned.fingerprint != start.fingerprint
    tokens = start.encode(image())
    assert torch.equal(tuned.encode(image()).ids, tokens.ids)
    tokens.save(tmp_path / "a.wetok")
    (again,) = tuned.decode(wetok.Tokens.load(tmp_path / "a.wetok"), seed=0)
    assert again.size == (24, 20)
    with pytest.raises(WetokError, match="load the model they were made with"):
        start.decode(tuned.encode(image()))  # nobody told the first one of the second


def test_generations_of_them(recipe: Recipe, first: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"run.init": str(first), "run.freeze": "encoder"}
    train(recipe(changes), tmp_path / "second")
    changes["run.init"] = str(tmp_path / "second" / "model")
    train(recipe({**changes, "run.seed": 1}), tmp_path / "third")
    known = read_config(tmp_path / "third" / "model").decodes
    assert known == tuple(wetok.load(tmp_path / n / "model").fingerprint for n in ("second",)) + (
        wetok.load(first).fingerprint,
    )


def test_a_whole_run_does_not(recipe: Recipe, first: Path, tmp_path: Path) -> None:
    train(recipe({"run.init": str(first)}), tmp_path / "second")
    assert read_config(tmp_path / "second" / "model").decodes == ()


def test_a_resumed_run_knows_it_too(recipe: Recipe, first: Path, tmp_path: Path) -> None:
    config = recipe({"run.init": str(first), "run.freeze": "encoder"})
    stopped = train(config, tmp_path / "second", interrupt_at(3))
    assert stopped.state.step == 3
    train(config, tmp_path / "second", resume=True)
    assert read_config(tmp_path / "second" / "model").decodes == (wetok.load(first).fingerprint,)


def test_rounding_makes_it_another_encoder(first: Path, tmp_path: Path) -> None:
    network: TokenizerNetwork
    network, _ = load_network(first)
    network.decodes = ("0" * 16,)
    save_folder(tmp_path / "same", network, "same")
    save_folder(tmp_path / "rounded", network, "rounded", precision="bfloat16")
    assert read_config(tmp_path / "same").decodes == network.decodes
    assert read_config(tmp_path / "rounded").decodes == ()
