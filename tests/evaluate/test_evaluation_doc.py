"""What docs/evaluation.md says is what the code does: its snippet, tables, names and numbers."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.documents import run
from wetok.evaluate.networks import FRECHET_NAMES, Networks
from wetok.evaluate.protocols import PROTOCOLS
from wetok.evaluate.receipt import TOLERANCES
from wetok.weights import PARTS, find

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "evaluation.md").read_text("utf-8")


def test_the_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "wetok/assets/photos/cat.jpg", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    run("docs/evaluation.md")
    printed = capsys.readouterr().out
    assert float(printed.split()[0]) > 20 and "'image': 'cat.jpg'" in printed


def test_all_names_are_told() -> None:
    for name in (*PROTOCOLS, *FRECHET_NAMES):
        assert f"`{name}`" in TEXT
    assert f"`{PARTS['inception-fid'].filename}`" in TEXT
    assert "before their scaling to unit length" in TEXT and "fd-vgg" in (Networks.__doc__ or "")


def test_hashes_of_lpips_alex() -> None:
    shipped = hashlib.sha256(find("lpips-alex").read_bytes()).hexdigest()[:16]
    assert f"`{shipped}` is the package's" in TEXT
    assert f"`{PARTS['lpips-alex'].sha256[:16]}` the published one" in TEXT


def test_tolerances() -> None:
    (told,) = re.findall(r"moved by more than (.*?): exit code 1", TEXT)
    assert told == (
        "0.001 dB, 1e-5 (SSIM), 1e-4 (LPIPS), 0.1% (Fréchet distances), 0.001 (usage, entropy)"
    )
    assert TOLERANCES["psnr"] == (1e-3, "abs") and TOLERANCES["ssim"] == (1e-5, "abs")
    assert TOLERANCES["lpips-"] == (1e-4, "abs")
    assert TOLERANCES["rfid"] == TOLERANCES["fid"] == TOLERANCES["fd-"] == (1e-3, "rel")
    assert TOLERANCES["usage"] == TOLERANCES["token_entropy"] == (1e-3, "abs")


def test_the_speed_is_the_benchmarks() -> None:
    (file,) = (ROOT / "benchmarks" / "results").glob("evaluation-speed-*.json")
    result = json.loads(file.read_text("utf-8"))
    each, end = result["seconds_an_image"], result["seconds_at_the_end"]
    assert (
        f"| an image | {each['released']:.2f} | {each['ours']:.2f} | {each['together']:.2f} |"
        in (TEXT)
    )
    told = (
        f"| {end['released']:.1f} | {end['ours']:.1f} ({end['ours_beyond_2048_images']:.1f} beyond"
    )
    assert told in TEXT
    for ratio, words in (
        (result["ratio"], "{:.1f} times as fast on these 31 images"),
        (result["ratio_an_image"], "{:.1f} times in a long evaluation"),
        (result["ratio_an_image_together"], "{:.1f} times where several systems are compared"),
    ):
        assert words.format(ratio) in TEXT
    for name, one in result["scores"].items():
        tolerance = 1e-4 if name == "fd" else 1e-7
        assert one["ours"] == pytest.approx(one["released"], rel=tolerance), name
