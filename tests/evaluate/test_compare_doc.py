"""What docs/compare.md says is what the code does, and its table what the command gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import wetok
from tests.documents import run
from wetok.data.images import find_images
from wetok.evaluate.codecs import CODECS, codec
from wetok.evaluate.comparison import Comparison
from wetok.evaluate.protocols import preprocessing_hash, protocol

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "compare.md").read_text("utf-8")
(FILE,) = (ROOT / "benchmarks" / "results").glob("compare-tiny-48x-*.json")
RESULTS: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
(CONTEST,) = RESULTS["contests"]
MODEL = CONTEST["model"]


def test_the_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "wetok/assets/photos/cat.jpg", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    run("docs/compare.md")
    size, own, webp = (float(word) for word in capsys.readouterr().out.split())
    assert 2000 < size < 4096 and 20 < own < webp


def row(one: dict[str, Any]) -> str:
    """A line of the page's table."""
    cells = [one.get("title", f"`{one['model']}`") + (" *" if one.get("too_large") else "")]
    cells += [f"{one['bytes']:,.0f}", f"{one['coded_bpp']:.3f}", f"{one['payload_bpp']:.3f}"]
    scores = (("psnr", 2), ("ssim", 3), ("lpips-alex", 3), ("lpips-vgg", 3), ("fd-vgg", 1))
    cells += [f"{one[name]:.{digits}f}" for name, digits in scores]
    return f"| {' | '.join(cells)} |"


def test_the_table_is_what_the_command_gave() -> None:
    for one in (MODEL, *CONTEST["codecs"]):
        assert row(one) in TEXT, row(one)
    for one in CONTEST["codecs"]:
        told = (
            f"its smallest file was larger for {one['too_large']} of {one['images']} images; in "
            f"all {one['bytes_ratio']:.2f} times the model's bytes"
        )
        assert (told in TEXT) == bool(one["too_large"])
    assert f"{MODEL['images']} photographs" in TEXT


def test_the_table_is_of_this_model_and_these_settings() -> None:
    assert wetok.load("tiny-48x").fingerprint == MODEL["fingerprint"]
    assert preprocessing_hash(protocol("modern-256")) == MODEL["preprocessing_hash"]
    for one in CONTEST["codecs"]:
        assert one["settings"] == json.loads(json.dumps(CODECS[one["model"]].variants))
    assert {name: [p["quality"] for p in points] for name, points in RESULTS["curves"].items()} == {
        one["model"]: list(CODECS[one["model"]].curve) for one in CONTEST["codecs"]
    }


def test_the_table_comes_again(photos_dir: Path) -> None:
    """The model and the quickest codec, without the networks."""
    comparison = Comparison([wetok.load("tiny-48x")], [codec("webp")], protocol("modern-256"))
    comparison.add_all(find_images(photos_dir / "val"))
    again = comparison.results()["contests"][0]
    (webp,) = [one for one in CONTEST["codecs"] if one["model"] == "webp"]
    for now, before in ((again["model"], MODEL), (again["codecs"][0], webp)):
        assert now["image_list_hash"] == before["image_list_hash"]
        assert now["psnr"] == pytest.approx(before["psnr"], abs=0.01)
        assert now["bytes"] == pytest.approx(before["bytes"], rel=2e-3)
        assert now["payload_bpp"] == pytest.approx(before["payload_bpp"], rel=2e-3)


def test_codecs_and_their_settings_are_told() -> None:
    for name, known in CODECS.items():
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |")]
        for settings in known.variants:
            for setting in ("method", "speed", "effort", "mct"):
                if setting in settings:
                    assert f"{setting}={settings[setting]}" in line
            assert str(settings.get("subsampling", "")) in line
        if name != "jpeg2000":
            assert f"| {known.qualities[0]} to {known.qualities[-1]} |" in line
        else:
            assert (known.qualities[0], known.qualities[-1]) == (
                150,
                600,
            ) and "15.0 to 60.0" in line
    assert "tune=ssim" in TEXT and CODECS["avif"].variants[0]["advanced"] == {"tune": "ssim"}


def test_the_size_of_the_shipped_model() -> None:
    folder = ROOT / "wetok/assets/models/tiny-48x"
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert f"weights and coding tables (for `tiny-48x` {total / 1e6:.1f} MB)" in TEXT
