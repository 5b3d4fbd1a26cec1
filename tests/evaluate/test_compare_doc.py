"""What docs/compare.md says is what the code does, and its table what the command gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import wetok
from tests.documents import run
from tools.publish import newest, row, tables, too_large
from wetok import checkpoint
from wetok.data.images import find_images
from wetok.evaluate.codecs import CODECS, codec
from wetok.evaluate.comparison import Comparison
from wetok.evaluate.protocols import preprocessing_hash, protocol

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "compare.md").read_text("utf-8")
TABLES = (ROOT / "docs" / "results.md").read_text("utf-8")
RESULTS: dict[str, Any] = json.loads(newest().read_text("utf-8"))
CONTESTS = {contest["model"]["model"]: contest for contest in RESULTS["contests"]}


def test_the_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "wetok/assets/photos/cat.jpg", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    run("docs/compare.md")
    size, own, webp = (float(word) for word in capsys.readouterr().out.split())
    assert 2000 < size < 4096 and 20 < own < webp


def test_the_tables_are_what_the_command_gave() -> None:
    told = TABLES.split("<!-- compare-tiny: begin -->\n")[1].split("\n<!-- compare-tiny: end")[0]
    assert told == tables(RESULTS)
    for contest in RESULTS["contests"]:
        for one in contest["codecs"]:
            assert row(one) in told
            assert (too_large(one) in told) == bool(one["too_large"])
        assert row(contest["model"]) in told


def test_the_whole_family_is_compared() -> None:
    assert CONTESTS.keys() == set(checkpoint.shipped())
    matched = {name for name, contest in CONTESTS.items() if contest["codecs"]}
    assert matched == {name for name in checkpoint.shipped() if not name.endswith("-gd")}


def test_the_tables_are_of_these_models_and_settings() -> None:
    for contest in RESULTS["contests"]:
        model = contest["model"]
        assert wetok.load(model["model"]).fingerprint == model["fingerprint"]
        assert preprocessing_hash(protocol("modern-256")) == model["preprocessing_hash"]
        for one in contest["codecs"]:
            assert one["settings"] == json.loads(json.dumps(CODECS[one["model"]].variants))


def test_the_curves_are_of_the_qualities_that_are_told() -> None:
    curves = RESULTS["curves"]
    assert {name: [p["quality"] for p in points] for name, points in curves.items()} == {
        one["model"]: list(CODECS[one["model"]].curve) for one in CONTESTS["tiny-48x"]["codecs"]
    }


def test_a_table_comes_again(photos_dir: Path) -> None:
    """One model and the quickest codec, without the networks."""
    comparison = Comparison([wetok.load("tiny-48x")], [codec("webp")], protocol("modern-256"))
    comparison.add_all(find_images(photos_dir / "val"))
    again = comparison.results()["contests"][0]
    before = CONTESTS["tiny-48x"]
    (webp,) = [one for one in before["codecs"] if one["model"] == "webp"]
    for now, then in ((again["model"], before["model"]), (again["codecs"][0], webp)):
        assert now["image_list_hash"] == then["image_list_hash"]
        assert now["psnr"] == pytest.approx(then["psnr"], abs=0.01)
        assert now["bytes"] == pytest.approx(then["bytes"], rel=2e-3)
        assert now["payload_bpp"] == pytest.approx(then["payload_bpp"], rel=2e-3)


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
