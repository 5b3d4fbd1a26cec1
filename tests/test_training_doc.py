"""docs/training.md says what is there: settings, the log's names, an example that loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from tests.train.tiny import tiny_tree, write_pictures
from wetok.config import TrainConfig, validate
from wetok.train.log import USAGE_STEPS
from wetok.train.loop import Run
from wetok.train.validate import MOST, SIDE

TEXT = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_settings_it_names_exist() -> None:
    names = set(re.findall(r"\b(data|loss|optimizer|gan|run|model)\.([a-z_]+)", TEXT))
    names -= {("data", "md")}
    assert len(names) > 15
    for block, name in names:
        annotation = TrainConfig.model_fields[block].annotation
        kinds = get_args(annotation) or (annotation,)  # a block that may be absent is a union
        assert name in kinds[0].model_fields, f"{block}.{name}"


def test_its_phases_load(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    tree = tiny_tree(tmp_path, {"run.steps": 40000}) | yaml.safe_load(block)
    stretches = validate(TrainConfig, tree).stretches()
    assert [(end, config.data.crop) for end, config in stretches] == [
        (14000, 16),
        (20000, 16),
        (40000, 128),
    ]


class Quiet:
    def step(self, record: dict[str, object]) -> None:
        self.record = record

    def event(self, text: str) -> None:
        pass


@pytest.mark.parametrize("difference", ["l1", "l2"])
def test_every_name_of_the_log_is_explained(tmp_path: Path, difference: str) -> None:
    gan = {"width": 8, "depth": 1}
    changes = {"run.steps": 1, "loss.reconstruction": difference, "gan": gan}
    pictures = write_pictures(tmp_path / "pictures", 2)
    watcher = Quiet()
    config = validate(TrainConfig, tiny_tree(pictures, changes))
    Run(config, tmp_path / "run", watcher).train()
    section = TEXT.split("## What the log says")[1].split("\n## ")[0]
    for name in watcher.record.keys() - {"step"}:
        assert f"`{name}`" in section, name


def test_its_numbers() -> None:
    assert f"{SIDE} x {SIDE} center crops of `data.val` (at most {MOST:,} of them" in TEXT
    assert f"last full window of {USAGE_STEPS} steps" in TEXT
