"""The drawn set: a class shows in what is drawn, and a seed gives one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wetok.cli import main
from wetok.config import WetokError
from wetok.data.drawn import CLASSES, COLOURS, drawn


@pytest.mark.parametrize("label", range(12))
def test_the_colour_is_the_classes(label: int) -> None:
    strong = {"red": 0, "green": 1, "blue": 2}[CLASSES[label].split("-")[0]]
    for seed in range(5):
        pixels = np.asarray(drawn(label, seed), np.int32)
        colourful = np.ptp(pixels, axis=2) > 80
        assert 0.02 < colourful.mean() < 0.5
        assert (pixels[colourful].mean(0).argmax()) == strong


def test_seeds() -> None:
    assert drawn(3, 5).tobytes() == drawn(3, 5).tobytes() != drawn(3, 6).tobytes()
    assert drawn(0, 0, side=32).size == (32, 32)
    assert len(set(CLASSES)) == 12 and list(CLASSES) == sorted(CLASSES) and len(COLOURS) == 3
    with pytest.raises(WetokError, match=r"label=12 must lie in \[0, 12\)"):
        drawn(12, 0)
    with pytest.raises(WetokError, match="side=8 must be at least 16"):
        drawn(0, 0, 8)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["shapes", str(tmp_path / "set"), "--count", "25", "--side", "16"])
    assert not ended.value.code and "25 images of 12 classes" in capsys.readouterr().out
    found = sorted((tmp_path / "set").rglob("*.png"))
    assert len(found) == 25 and sorted({one.parent.name for one in found}) == list(CLASSES)
    with pytest.raises(SystemExit) as ended:
        main(["shapes", str(tmp_path / "set")])
    assert ended.value.code == 2 and "not empty" in capsys.readouterr().err
