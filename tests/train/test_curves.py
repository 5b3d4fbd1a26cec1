"""The curves of a run, from a log as `RunLog` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wetok.config import WetokError
from wetok.train.curves import _smooth, plot_curves, read_log

TRAINING = {"loss": 1.0, "l1": 0.5, "token_entropy": 0.1, "codebook_entropy": 9.0}
RECORDS: list[dict[str, Any]] = [
    {"step": 1, **TRAINING, "gradient_norm": None, "usage": [0.5, 0.25]},
    {"step": 1, "skipped": "image 'x.png' is empty"},
    {"step": 2, **TRAINING, "lpips": 0.3, "usage": [0.5, 0.75]},
    {"step": 2, "validation": {"psnr": 20.0, "l1": 0.1, "score": 0.1}, "best": True},
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_log_has_training_and_validation_lines(tmp_path: Path) -> None:
    training, validation = read_log(write(tmp_path / "log.jsonl", RECORDS))
    assert training == [RECORDS[0], RECORDS[2]]
    assert validation == [{"step": 2, "psnr": 20.0, "l1": 0.1, "score": 0.1}]


def test_a_running_mean_over_the_lines_that_have_the_term() -> None:
    records = [{"step": s, "a": float(s)} if s % 2 else {"step": s} for s in range(1, 81)]
    steps, means = _smooth(records, "a")
    assert steps == list(range(1, 81, 2))
    assert means[:2] == [1, 2]
    assert means[-1] == pytest.approx(sum(range(41, 80, 2)) / 20)


GAN = {"generator": 0.7, "discriminator": 1.0, "logits_real": 0.1, "logits_fake": -0.1}
SECOND_STAGE = [
    {"step": 0, "validation": {"psnr": 20.0, "lpips": 0.5, "l1": 0.1, "score": 0.6}},
    {"step": 1, "loss": None, "usage": [0.5, 0.25]},
    {"step": 2, "loss": 0.5, "l1": 0.5, **GAN, "usage": [0.5, 0.25]},
]


def test_null_is_no_point() -> None:
    assert _smooth([{"step": 1, "a": None}, {"step": 2, "a": 3.0}], "a") == ([2], [3.0])


@pytest.mark.parametrize(
    "records",
    [RECORDS, RECORDS[:1], SECOND_STAGE, [SECOND_STAGE[1]]],
    ids=["whole", "one line", "second stage", "no step taken"],
)
def test_the_picture(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "images" / "curves.png"
    plot_curves(write(tmp_path / "log.jsonl", records), target)
    with Image.open(target) as picture:
        assert picture.width > 800 and picture.height > 300
        assert len(np.unique(np.array(picture))) > 10, "something is drawn"


def test_no_log_no_picture(tmp_path: Path) -> None:
    with pytest.raises(WetokError, match="not the log of a run"):
        read_log(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text("no json\n")
    with pytest.raises(WetokError, match="bad.jsonl: not the log of a run"):
        read_log(tmp_path / "bad.jsonl")
    pytest.importorskip("matplotlib")
    with pytest.raises(WetokError, match="no step has been logged yet"):
        plot_curves(write(tmp_path / "empty.jsonl", RECORDS[3:]), tmp_path / "x.png")
