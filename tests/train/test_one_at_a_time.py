"""A run's folder has one process at a time, and none overtakes another unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.test_run import Watcher, interrupt_at, train
from tests.train.tiny import Recipe
from wetok.config import WetokError
from wetok.locking import locked
from wetok.train.loop import Run


def test_a_folder_in_use(recipe: Recipe, tmp_path: Path) -> None:
    with (
        locked(tmp_path, tmp_path / ".lock"),
        pytest.raises(WetokError, match="is in use by another process"),
    ):
        train(recipe(), tmp_path)
    assert train(recipe(), tmp_path).state.step == 6, "it is free again"


def test_a_run_that_another_process_went_on_with(recipe: Recipe, tmp_path: Path) -> None:
    """Opened while the other was still saving: its last steps are not taken twice."""
    train(recipe(), tmp_path, interrupt_at(2))
    early = Run(recipe(), tmp_path, Watcher(), resume=True)
    train(recipe(), tmp_path, interrupt_at(4), resume=True)
    with pytest.raises(WetokError, match="went on with this run to step-00000004.*--resume"):
        early.train()
    assert train(recipe(), tmp_path, resume=True).state.step == 6
