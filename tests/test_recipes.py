"""Every recipe in `recipes/` loads, tells what it takes, and (the tiny ones) runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import wetok
from tests.train.tiny import write_pictures
from wetok.config import WetokError, load_train_config
from wetok.losses.perceptual import LPIPS
from wetok.train.loop import Run
from wetok.train.state import checkpoints

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
TINY = [path for path in RECIPES if path.parent.name == "tiny"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def test_there_are_recipes() -> None:
    assert RECIPES and TINY
    assert not list((ROOT / "recipes").rglob("*.yml")), "one suffix for all: .yaml"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_loads(path: Path) -> None:
    config = load_train_config(path, ["data.train=photos", "data.val=photos"])
    ends = [end for end, _ in config.stretches()]
    assert ends[-1] == config.run.steps
    for end, stretch in config.stretches():
        assert stretch == config.at(end - 1)
    with pytest.raises(WetokError, match="did you mean 'train'"):
        load_train_config(path, ["data.trian=photos"])


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipes_header_tells_what_it_takes(path: Path) -> None:
    text = header(path)
    assert f"wetok train {name_of(path)}" in text, "its own command"
    for part in ("Hardware:", "Duration:", "Score:"):
        assert re.search(rf"{part} *\S", text), f"{part} is missing"


class Quiet:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def step(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def event(self, text: str) -> None:
        pass


@pytest.mark.parametrize("path", TINY, ids=name_of)
def test_a_tiny_recipe_runs_two_steps_of_every_phase(path: Path, tmp_path: Path) -> None:
    """On small crops of made-up pictures, with an LPIPS network of random weights."""
    pictures = write_pictures(tmp_path / "pictures", 2)
    config = load_train_config(path)
    torch.manual_seed(0)
    save_file(LPIPS(config.loss.perceptual).state_dict(), tmp_path / "lpips.safetensors")
    small = {"data.crop": 4 * config.model.factor, "data.batch": 2}
    phases = [
        {"until": 2 * index, "set": {**phase.set, **small}}
        for index, phase in enumerate(config.phases, 1)
    ]
    config = load_train_config(
        path,
        [
            f"data.train={pictures}",
            f"data.val={pictures}",
            f"loss.perceptual_weights={tmp_path / 'lpips.safetensors'}",
            "run.device=cpu",
            "run.log_every=1",
            f"run.steps={2 * max(1, len(phases))}",
            f"phases={phases}",
            *(f"{key}={value}" for key, value in small.items()),
        ],
    )
    watcher = Quiet()
    run = Run(config, tmp_path / "run", watcher)
    before = {name: p.detach().clone() for name, p in run.state.network.named_parameters()}
    assert run.train()
    still = [name for name, p in run.state.network.named_parameters() if p.equal(before[name])]
    assert still == [], "every parameter learns"
    assert [record["step"] for record in watcher.records] == list(range(1, config.run.steps + 1))
    assert len(checkpoints(tmp_path / "run" / "checkpoints")) == 1
    assert wetok.load(tmp_path / "run" / "model").config == config.model
