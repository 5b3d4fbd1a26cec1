"""The small sets: a class shows in what is drawn, a seed gives one image; digits are themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wetok.cli import main
from wetok.config import WetokError
from wetok.data.digits import digits
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


def test_digits_are_enlarged_and_parted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pytest.importorskip("sklearn.datasets", reason="scikit-learn is absent").load_digits()
    folders = {"used": [], "held": ["--held-out"]}
    found: dict[str, dict[int, tuple[str, np.ndarray]]] = {}
    for name, more in folders.items():
        with pytest.raises(SystemExit) as ended:
            main(["shapes", str(tmp_path / name), "--kind", "digits", "--side", "16", *more])
        assert not ended.value.code and "images of 10 classes" in capsys.readouterr().out
        found[name] = {
            int(path.stem): (path.parent.name, np.asarray(Image.open(path)))
            for path in (tmp_path / name).rglob("*.png")
        }
    assert not found["used"].keys() & found["held"].keys()
    whole = {**found["used"], **found["held"]}
    assert sorted(whole) == list(range(1797)) and len(found["held"]) == 1797 // 5
    for number in (0, 4, 900, 1796):
        name, pixels = whole[number]
        assert name == str(source.target[number]) and pixels.shape == (16, 16, 3)
        # A block of 2 x 2 pixels is about the shade it was made of.
        blocks = pixels[..., 0].reshape(8, 2, 8, 2).mean((1, 3))
        shades = source.images[number] * 255 / 16
        assert np.corrcoef(blocks.ravel(), shades.ravel())[0, 1] > 0.97
        assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "digits", "--count", "50"], "--count 50 is for drawn shapes"),
        (["--kind", "digits", "--seed", "1"], "--seed 1 is for drawn shapes"),
        (["--held-out"], "--held-out is for digits"),
    ],
)
def test_what_does_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["shapes", str(tmp_path / "set"), *words])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(WetokError, match="scikit-learn, which is absent: pip install"):
        next(digits())
