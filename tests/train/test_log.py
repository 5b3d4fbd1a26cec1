"""The log: means since the last line, usage over a full window, no step twice after a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from wetok.train.log import USAGE_STEPS, RunLog
from wetok.train.step import StepResult


def result(ids: int = 0, rate: float = 1e-3, **terms: float) -> StepResult:
    """Both groups use the code `ids` only."""
    tensors = {name: torch.tensor(value) for name, value in terms.items()}
    return StepResult(tensors, torch.full((1, 2, 2, 2), ids, dtype=torch.uint8), rate)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_means_since_the_line_before(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", (2, 3))
    log.add(result(loss=1.0, lpips=0.5, ids=1), images=4, seconds=1.0, waited=0.5)
    log.add(result(loss=2.0), images=4, seconds=3.0, waited=0.5)
    log.add(result(loss=6.0, lpips=0.25, rate=2e-3), images=2, seconds=1.0, waited=0.0)
    broken = result(loss=math.nan, ids=7, rate=2e-3)._replace(broken="loss")
    log.add(broken, images=0, seconds=0.0, waited=0.0)  # of which nothing counts but its time
    record = log.line(3, seconds=77.04, skipped=1)
    assert 10 < record["memory_mb"] < 100_000
    assert record == {
        "step": 3,
        "loss": 3.0,
        "lpips": 0.375,  # of the two steps that had it
        "lr": 2e-3,
        "skipped": 1,
        "memory_mb": record["memory_mb"],
        "images_per_second": 2.0,
        "data_wait": 0.2,
        "usage": [0.25, 0.25],  # 2 of 8 codes
        "dead_bits": 4,
        "usage_steps": 3,
        "seconds": 77.0,
    }
    log.add(result(loss=10.0), images=1, seconds=0.5, waited=0.0)
    assert log.line(4, 78.0)["loss"] == 10.0
    assert [line["step"] for line in lines(log.path)] == [3, 4]
    assert lines(log.path)[0] == record


def test_infinity_is_null(tmp_path: Path) -> None:
    """A gradient that overflows fp16 is usual, and JSON has no infinity."""
    log = RunLog(tmp_path / "log.jsonl", (2, 3))
    log.add(result(loss=1.0, gradient_norm=float("inf")), 1, 1.0, 0.0)
    log.line(1, 1.0)
    text = (tmp_path / "log.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["gradient_norm"] is None


def test_usage_is_of_a_full_window(tmp_path: Path) -> None:
    """Never of a counter that was just emptied: one step says little of 2^d' codes."""
    log = RunLog(tmp_path / "log.jsonl", (2, 3))
    told = {}
    for step in range(1, 2 * USAGE_STEPS + 2):
        # All eight codes in the first window, two in the second.
        log.add(result(ids=step % 8 if step <= USAGE_STEPS else step % 2, loss=0.0), 1, 1.0, 0.0)
        told[step] = log.line(step, 0.0)
    seen = [(told[n]["usage"], told[n]["dead_bits"], told[n]["usage_steps"]) for n in sorted(told)]
    assert seen[1] == ([0.25, 0.25], 2, 2)  # until there is one: codes 1 and 2, bit 2 is dead
    assert seen[USAGE_STEPS - 1] == ([1.0, 1.0], 0, USAGE_STEPS)
    assert seen[USAGE_STEPS : 2 * USAGE_STEPS - 1] == [([1.0, 1.0], 0, USAGE_STEPS)] * (
        USAGE_STEPS - 1
    )
    assert seen[2 * USAGE_STEPS - 1 :] == [([0.25, 0.25], 4, USAGE_STEPS)] * 2


def test_what_comes_after_the_checkpoint_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept = [{"step": 2, "loss": 1}, {"step": 3, "skipped": "x"}, {"step": 3, "validation": {}}]
    gone = [{"step": 4, "loss": 1}, {"step": 5, "validation": {}}]
    text = "".join(json.dumps(line) + "\n" for line in [*kept, *gone])
    path.write_text(text + '{"step": 1, "lo')  # the last one cut off by a kill
    log = RunLog(path, (2, 3), step=3)
    assert lines(path) == kept
    log.append({"step": 4, "loss": 2})
    assert lines(path) == [*kept, {"step": 4, "loss": 2}]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_validation_that_is_done_again_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 3, "loss": 1}\n{"step": 3, "validation": {}}\n')
    RunLog(path, (2, 3), step=3, validated=False)
    assert lines(path) == [{"step": 3, "loss": 1}]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    """What is there is of a run that ended before its first checkpoint."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 1}\nno json\n[1]\n')
    RunLog(path, (2, 3))
    assert path.read_text() == ""
