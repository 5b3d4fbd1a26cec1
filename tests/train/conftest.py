"""A folder of small pictures, and a recipe for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny import Recipe, tiny_config, write_pictures
from wetok.config import TrainConfig


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight pictures."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), 8)


@pytest.fixture(scope="session")
def recipe(pictures: Path) -> Recipe:
    """recipe({"run.steps": 3}): settings of a tiny run on `pictures`, without LPIPS."""

    def make(changes: dict[str, Any] | None = None) -> TrainConfig:
        return tiny_config(pictures, changes)

    return make
