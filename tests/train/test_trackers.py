"""What TensorBoard gets of a run, and how another tracker would be told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.train.test_run import Watcher, interrupt_at, train
from tests.train.tiny import Recipe, tiny_config
from wetok.config import WetokError
from wetok.train.loop import Run
from wetok.train.processes import Processes
from wetok.train.trackers import Trackers, _flat


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is absent"
    )
    events = accumulator.EventAccumulator(str(folder / "tensorboard" / "wetok"))
    events.Reload()
    if name == "pictures":
        return [(event.step, 0.0) for event in events.Images("samples")]
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_has_the_log_and_the_pictures(
    recipe: Recipe, pictures: Path, tmp_path: Path
) -> None:
    changes = {"run.trackers": ["tensorboard"], "run.sample_every": 2, "data.val": str(pictures)}
    train(recipe(changes), tmp_path, watcher := Watcher())
    losses = scalars(tmp_path, "loss")
    assert losses == [
        (record["step"], pytest.approx(record["loss"], rel=1e-5)) for record in watcher.records
    ]
    assert len(scalars(tmp_path, "usage.0")) == len(scalars(tmp_path, "usage.1")) == 6
    assert [step for step, _ in scalars(tmp_path, "validation.psnr")] == [6]
    assert [step for step, _ in scalars(tmp_path, "pictures")] == [2, 4, 6]


def test_a_resumed_run_repeats_nothing(recipe: Recipe, tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyboardInterrupt  # as nothing of ours catches, like a kill

    config = recipe({"run.trackers": ["tensorboard"], "run.checkpoint_every": 2})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, Watcher({5: fail}))
    # TensorBoard reads files by name: of the second, then of the process's count as text, where
    # 10 comes before 9. Another process would not begin within the second.
    (first,) = (tmp_path / "tensorboard" / "wetok").glob("events.out.tfevents.*")
    prefix, second, rest = re.fullmatch(r"(events\.out\.tfevents\.)(\d+)(.*)", first.name).groups()
    first.rename(first.with_name(f"{prefix}{int(second) - 60}{rest}"))
    train(config, tmp_path, resume=True)
    assert [step for step, _ in scalars(tmp_path, "loss")] == [1, 2, 3, 4, 5, 6]


def test_no_tracker_no_folder(recipe: Recipe, tmp_path: Path) -> None:
    Run(recipe(), tmp_path, interrupt_at(1)).train()
    assert not (tmp_path / "tensorboard").exists()


class Other:
    """A tracker that shows pictures in its own way, as W&B's does."""

    name = "other"

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.images: dict[str, Any] = {}

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log_images(self, values: dict[str, Any], step: int) -> None:
        self.images = {"step": step, **values}


def test_another_tracker_gets_settings_and_pictures(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pictures)
    processes = Processes(config.run, tmp_path)
    other = Other()
    monkeypatch.setattr(
        processes.accelerator,
        "init_trackers",
        lambda *_, **__: setattr(processes.accelerator, "trackers", [other]),
    )
    trackers = Trackers(processes, config, "mine", 0)
    assert other.settings["data.crop"] == 16 and other.settings["model.mults.1"] == 1
    assert other.settings["run.init"] == "None"
    trackers.picture("samples", Image.new("RGB", (5, 4), "red"), 3)
    assert other.images["step"] == 3 and other.images["samples"].shape == (1, 4, 5, 3)
    assert np.array_equal(other.images["samples"][0, 0, 0], [255, 0, 0])


def test_flat_names() -> None:
    assert _flat({"a": {"b": [1, None]}, "c": True}) == {"a.b.0": 1, "a.b.1": "None", "c": True}


def test_an_unknown_tracker_names_its_neighbour(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(WetokError, match="no tracker 'wandd'; did you mean 'wandb'"):
        Run(recipe({"run.trackers": ["wandd"]}), tmp_path, Watcher())
