"""The picture that is drawn from a run's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from wetok.config import WetokError
from wetok.train.curves import _smooth, plot_curves, read_log

pytest.importorskip("matplotlib", reason="matplotlib (extra 'train') is not installed")


def _log(folder: Path, steps: int = 40) -> Path:
    lines: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "loss": 1 / step, "l1": 2 / step, "usage": [0.5, 1.0]})
        if step % 10 == 0:
            lines.append({"step": step, "validation": {"psnr": 20 + step}, "best": True})
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_log_is_split_into_steps_and_validations(tmp_path: Path) -> None:
    training, validation = read_log(_log(tmp_path))
    assert [row["step"] for row in training] == list(range(1, 41))
    assert [(row["step"], row["psnr"]) for row in validation] == [
        (s, 20 + s) for s in (10, 20, 30, 40)
    ]


def test_smoothing_is_a_running_mean_over_the_lines_that_have_the_term(tmp_path: Path) -> None:
    records = [{"step": s, "a": float(s)} if s % 2 else {"step": s} for s in range(1, 81)]
    steps, means = _smooth(records, "a")
    assert steps == list(range(1, 81, 2))
    assert means[0] == 1 and means[1] == 2
    assert means[-1] == pytest.approx(sum(range(41, 80, 2)) / 20)


def test_picture_is_written_and_not_blank(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "curves.png"
    plot_curves(_log(tmp_path), target)
    with Image.open(target) as image:
        assert min(image.size) > 500
        assert len(image.convert("RGB").getcolors(2**20) or []) > 10


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(WetokError, match="nothing to draw"):
        plot_curves(tmp_path / "log.jsonl", tmp_path / "c.png")
    with pytest.raises(WetokError, match="not the log of a run"):
        read_log(tmp_path / "none.jsonl")
