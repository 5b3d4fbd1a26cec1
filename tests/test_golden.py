"""The first steps of the recipes that ran on a CPU give the losses that are committed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tools import golden
from wetok import checkpoint

STEPS = 200 if os.environ.get("WETOK_GOLDEN") else golden.FIRST
"""WETOK_GOLDEN=1 for all of them: half an hour."""


def committed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((golden.GOLDEN / f"{name}.json").read_text("utf-8"))
    return found


def test_every_recipe_has_its_losses() -> None:
    assert {path.stem for path in golden.GOLDEN.glob("*.json")} == set(golden.RECIPES)
    for name in golden.RECIPES:
        told = committed(name)
        assert told["steps"] == 200 and told["starts_from"] == golden.STARTS.get(name)
        assert (golden.ROOT / told["recipe"]) == golden.RECIPES[name]
        assert len(told["losses"]["loss"]) == 200
        start = told["starts_from"]
        assert start in (None, "quick", *checkpoint.shipped())


@pytest.mark.parametrize("name", sorted(golden.RECIPES))
def test_the_first_steps_are_as_they_were(name: str, photos_dir: Path, weights_dir: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = golden.losses(name, photos_dir, weights_dir, STEPS)
    finally:
        torch.set_num_threads(threads)
    assert list(golden.differences(found, committed(name)["losses"])) == []
    assert len(found["loss"]) == STEPS


def test_other_losses_are_told_apart() -> None:
    wanted = {"loss": [1.0] * 40, "l1": [0.5] * 40}
    assert list(golden.differences(wanted, wanted)) == []
    first = {"loss": [1.0, 1.02, *[1.0] * 38], "l1": [0.5] * 40}
    assert [line.split(":")[0] for line in golden.differences(first, wanted)] == ["loss, step 2"]
    later = {"loss": [1.0] * 20 + [1.2] * 20, "l1": [0.5] * 40}
    (line,) = golden.differences(later, wanted)
    assert line == "loss, steps 21 to 40: 1.2 instead of 1"
    assert list(golden.differences({"loss": [1.0]}, wanted)) == ["no l1"]
