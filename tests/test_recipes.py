"""Every recipe loads, and the tiny ones take steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wetok.config import load_train_config
from wetok.train.loop import Run

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted(RECIPES.rglob("*.yaml"))


class _Silent:
    def step(self, record: dict[str, Any]) -> None: ...

    def event(self, text: str) -> None: ...


def test_there_are_recipes() -> None:
    assert ALL


@pytest.mark.parametrize("recipe", ALL, ids=lambda path: path.stem)
def test_recipe_loads_and_its_header_tells_how_to_run_it(recipe: Path) -> None:
    config = load_train_config(recipe)
    assert config.run.steps > 0
    header = recipe.read_text().split("model:")[0]
    for word in (f"wetok train recipes/{recipe.relative_to(RECIPES)}", "Hardware", "Duration"):
        assert word in header, f"{recipe.name}: its header does not say {word!r}"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("tiny/*.yaml")), ids=lambda path: path.stem)
def test_tiny_recipe_takes_two_steps(recipe: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 256, (150, 170, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")
    overrides = [
        f"data.train={photos}",
        "data.val=null",
        "data.batch=2",
        "loss.perceptual_weight=0",
        "phases=[]",
        "run.steps=2",
        "run.device=cpu",
    ]
    run = Run(load_train_config(recipe, overrides), tmp_path / "run", _Silent())
    before = {name: p.detach().clone() for name, p in run.state.network.named_parameters()}
    assert run.train()
    assert run.state.step == 2
    changed = [n for n, p in run.state.network.named_parameters() if not p.equal(before[n])]
    assert len(changed) == len(before)
    assert (tmp_path / "run" / "model" / "config.json").is_file()
