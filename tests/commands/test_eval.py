"""`wetok eval` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wetok.checkpoint import save_folder
from wetok.cli import main
from wetok.config import ModelConfig
from wetok.model.network import TokenizerNetwork

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Runs a command in a folder with `model` and `photos`; no pretrained parts at first."""
    torch.manual_seed(0)
    config = ModelConfig(bits=8, groups=2, channels=8, mults=(1, 1), blocks=1, patch=2)
    save_folder(tmp_path / "model", TokenizerNetwork(config), "toy")
    (tmp_path / "photos").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)
        photo = Image.fromarray(pixels).resize((60, 44), Image.Resampling.BICUBIC)
        photo.save(tmp_path / "photos" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WETOK_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["eval", "-m", "model", "--device", "cpu", *arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_json_for_programs(call: Call) -> None:
    code, out, err = call("--data", "photos", "--json", "--protocol", "original")
    summary: dict[str, Any] = json.loads(out)
    assert code == 0
    assert (summary["images"], summary["failed"], summary["protocol"]) == (2, 0, "original")
    assert summary["model"] == "toy" and len(summary["fingerprint"]) == 16
    assert summary["bpp"] == 0.5 and 3 < summary["psnr"] < 40 and len(summary["usage"]) == 2
    assert summary["lpips_weights"] == {} and not any(key.startswith("lpips-") for key in summary)
    assert "LPIPS is left out" in err, "and the output stays JSON"


def test_a_table_with_lpips_where_it_is_imported(
    call: Call, weights_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    name = "lpips_alex.safetensors"
    (tmp_path / "cache" / "weights" / name).symlink_to(weights_dir / name)
    code, out, err = call("-d", "photos", "--protocol", "original")
    assert (code, err) == (0, "")
    for part in ("toy on 2 images", "PSNR (dB)", "SSIM", "LPIPS-alex", "least group usage"):
        assert part in out
    assert "protocol original: every image at its own size" in out
    assert "LPIPS alex 652ec5212221313c, seed 0" in out
    code, out, _ = call("-d", "photos", "--json", "--lpips", "alex", "--protocol", "original")
    assert code == 0 and json.loads(out)["lpips-alex"] > 0


def test_the_seed_and_the_protocol_count(call: Call) -> None:
    plain = json.loads(call("-d", "photos", "--json")[1])
    assert plain["protocol"] == "modern-256" and plain["bpp"] == 0.5
    again = json.loads(call("-d", "photos/0.png", "-d", "photos/1.png", "--json", "--seed", "4")[1])
    assert again["seed"] == 4 and again["psnr"] == plain["psnr"], "this decoder has no noise"


def test_a_bad_photograph_is_told_and_the_others_go_on(call: Call) -> None:
    Path("photos/bad.png").write_bytes(b"no image")
    code, out, err = call("-d", "photos", "--json", "--protocol", "original")
    summary = json.loads(out)
    assert code == 1 and (summary["images"], summary["failed"]) == (2, 1)
    assert [line for line in err.splitlines() if "bad.png" in line] == [
        "wetok: image 'photos/bad.png' is not an image of a known format: convert it to PNG or JPEG"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "photos", "--protocol", "original-ish"], "did you mean 'original'?"),
        (["-d", "photos", "--lpips", "squeeze"], "lpips='squeeze' must be 'alex' or 'vgg'"),
        (["-d", "photos", "--lpips", "vgg"], "wetok weights import"),
        (["-d", "nowhere"], "'nowhere' does not exist"),
        ([], "--data"),
    ],
)
def test_mistakes_end_in_one_line(call: Call, arguments: list[str], message: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("wetok: ") and err.count("\n") == 1


def test_all_bad_is_a_mistake(call: Call) -> None:
    Path("photos/0.png").write_bytes(b"")
    Path("photos/1.png").write_bytes(b"")
    code, out, err = call("-d", "photos")
    assert (code, out) == (2, "") and "no image could be scored" in err
