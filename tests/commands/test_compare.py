"""`wetok compare` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wetok.checkpoint import save_folder
from wetok.cli import main
from wetok.config import ModelConfig
from wetok.evaluate import codecs
from wetok.evaluate.codecs import codec
from wetok.model.network import TokenizerNetwork

ROOT = Path(__file__).resolve().parent.parent.parent
Call = Callable[..., tuple[int, str, str]]
TWO = ("--codec", "webp", "--codec", "jpeg")
QUICK = ("-d", "photos", "--protocol", "original", *TWO)


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Runs the command in a folder with models `toy` and `more`, and `photos`."""
    for name, bits in (("toy", 64), ("more", 96)):
        torch.manual_seed(0)
        config = ModelConfig(bits=bits, groups=8, channels=8, mults=(1, 1), blocks=1, patch=2)
        save_folder(tmp_path / name, TokenizerNetwork(config), name)
    (tmp_path / "photos").mkdir()
    for index in range(3):
        coarse = np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)
        photo = Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC)
        photo.save(tmp_path / "photos" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WETOK_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            chosen = [] if "-m" in arguments else ["-m", "toy"]
            main(["compare", *chosen, "--device", "cpu", *arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_json_for_programs(call: Call) -> None:
    code, out, err = call(*QUICK, "-m", "toy", "-m", "more", "--json", "--seed", "4")
    results = json.loads(out)
    assert (code, err) == (0, "") and not any(Path().glob("*.png")) and results["curves"] == {}
    first, second = results["contests"]
    assert first["model"]["model"] == "toy" and second["model"]["model"] == "more"
    for contest in (first, second):
        budget = contest["model"]["bytes"]
        assert [one["model"] for one in contest["codecs"]] == ["webp", "jpeg"]
        for one in contest["codecs"]:
            assert one["budget"] == budget and one["images"] == 3
            assert one["bytes"] <= budget or one["too_large"]
            assert one["fingerprint"] and one["preprocessing_hash"] and one["versions"]["pillow"]
    assert second["model"]["bytes"] > first["model"]["bytes"]
    assert second["codecs"][0]["psnr"] > first["codecs"][0]["psnr"]
    arguments = results["arguments"]
    assert arguments["codecs"] == ["webp", "jpeg"] and arguments["lpips"] == ["alex"]
    assert arguments["models"] == ["toy", "more"] and arguments["seed"] == 4


def test_a_table_a_model(call: Call) -> None:
    code, out, err = call(*QUICK, "-m", "toy", "-m", "more")
    summary = json.loads(call(*QUICK, "-m", "toy", "-m", "more", "--json")[1])["contests"][0]
    assert (code, err) == (0, "")
    for part in ("toy on 3 images, codecs at its bytes", "more on 3 images", "JPEG", "LPIPS-alex"):
        assert part in out
    lines = [line for line in out.splitlines() if "WebP" in line and "*" not in line]
    webp = summary["codecs"][0]
    wanted = f"{webp['bytes']:,.0f} {webp['coded_bpp']:.3f} {webp['payload_bpp']:.3f}"
    told = lines[0].replace("│", " ").split()
    assert " ".join(told[1:4]) == wanted and told[4] == f"{webp['psnr']:.2f}"
    assert "protocol original: every image at its own size" in out


def test_files_that_can_not_be_so_small_are_marked(call: Call) -> None:
    torch.manual_seed(0)
    config = ModelConfig(bits=4, groups=1, channels=8, mults=(1, 1), blocks=1, patch=2)
    save_folder(Path("few"), TokenizerNetwork(config), "few")
    out = call(*QUICK, "-m", "few")[1]
    row = json.loads(call(*QUICK, "-m", "few", "--json")[1])["contests"][0]["codecs"][1]
    assert row["too_large"] == 3 and row["bytes_ratio"] > 1
    assert "JPEG *" in out and (
        "* JPEG: its smallest file was still larger than the model's for 3 of 3 images; in all "
        f"{row['bytes_ratio']:.2f} times the model's bytes" in out
    )


def test_models_alone(call: Call) -> None:
    options = ("-d", "photos", "--protocol", "original", "--codec", "none")
    code, out, _ = call(*options, "-m", "toy", "-m", "more")
    assert code == 0 and out.count("PSNR") == 1 and "toy, more on 3 images" in out
    lines = out.splitlines()
    assert any("│ toy " in line for line in lines) and any("│ more " in line for line in lines)


def test_a_folder_of_reconstructions_takes_part(call: Call) -> None:
    Path("theirs").mkdir()
    for path in Path("photos").iterdir():
        Image.open(path).resize((24, 18)).resize((96, 72)).save(Path("theirs") / path.name)
    models = ("-m", "toy", "-m", "folder:theirs")
    results = json.loads(call(*QUICK, *models, "--json", "--budget-of", "toy")[1])
    own, theirs = results["contests"]
    assert len(own["codecs"]) == 2 and theirs["codecs"] == [] and theirs["model"]["psnr"] > 15
    code, out, err = call(*QUICK, *models)
    assert (code, err) == (0, "") and "has no size in bytes: no codec at its bytes" in out


def test_out(call: Call) -> None:
    code, out, err = call(*QUICK, "-o", "out", "--crops", "1")
    assert code == 0 and err == "plots, crops and numbers: out\n" and "PSNR" in out
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == ["compare.json", "crops-toy.png", "rate-distortion.png"]
    results = json.loads(Path("out/compare.json").read_text("utf-8"))
    assert {name: len(points) for name, points in results["curves"].items()} == {
        name: len(codec(name).curve) for name in ("webp", "jpeg")
    }
    (contest,) = results["contests"]
    assert contest["sheet"] == "crops-toy.png" and len(contest["crops"]) == 2
    assert contest["crops"][0]["difference"] < contest["crops"][1]["difference"]
    with Image.open("out/crops-toy.png") as sheet:
        assert sheet.width > 4 * 96 and sheet.height > 2 * 72

    before = Path("out/crops-toy.png").read_bytes()
    code, out, err = call(*QUICK, "-o", "out")
    assert (code, out) == (2, "") and "compare.json exists: give --force" in err
    code, _, _ = call(*QUICK, "-o", "out", "--crops", "1", "--force", "--no-curves")
    again = json.loads(Path("out/compare.json").read_text("utf-8"))
    assert code == 0 and again["curves"] == {}
    assert Path("out/crops-toy.png").read_bytes() == before, "the same scores, the same picture"


def test_a_bad_photograph_is_told_once_and_the_others_go_on(call: Call) -> None:
    Path("photos/bad.png").write_bytes(b"no image")
    code, out, err = call(*QUICK, "--json")
    assert code == 1 and err.count("bad.png") == 1
    assert json.loads(out)["contests"][0]["codecs"][1]["images"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is missing"),
        (["-d", "nowhere"], "'nowhere' does not exist"),
        (["-d", "photos", "--codec", "jpg"], "codec='jpg' is not known"),
        (["-d", "photos", "--protocol", "modern"], "protocol='modern' is not known"),
        (["-d", "photos", "--lpips", "squeeze"], "must be 'alex' or 'vgg'"),
        (["-d", "photos", "--budget-of", "toi"], "budget_of='toi' is none of the models"),
        (["-d", "photos", "-m", "toy", "-m", "toy"], "model 'toy' is given twice"),
        (["-d", "photos", "-o", "photos/0.png"], "--out photos/0.png: a file; name a folder"),
        (["-d", "photos", "-m", "tiny-48"], "tiny-48x"),
        (["-d", "photos", "--crops", "-1"], "--crops"),
    ],
)
def test_mistakes_end_in_one_line(call: Call, arguments: list[str], message: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("wetok: ") and err.count("\n") == 1


def test_codecs_that_are_not_here(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default those here; one asked for by name is refused with its remedy."""
    Image.init()
    for name in ("WEBP", "AVIF", "JPEG2000"):
        monkeypatch.delitem(Image.SAVE, name, raising=False)
    codecs.why_not.cache_clear()
    try:
        code, out, err = call("-d", "photos", "--codec", "avif")
        assert (code, out) == (2, "") and "codec='avif' can't be used here" in err
        assert "install Pillow 11.3 or newer" in err and err.count("\n") == 1
        default = json.loads(call("-d", "photos", "--json", "--lpips", "none")[1])
        names = [one["model"] for one in default["contests"][0]["codecs"]]
        assert names == [name for name in ("jpeg", "jxl") if codecs.why_not(name) is None]
    finally:
        codecs.why_not.cache_clear()


def test_plots_need_matplotlib(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the scoring, not after hours of it."""
    from importlib import util

    find_spec = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find_spec(name)
    )
    code, out, err = call("-d", "photos", "-o", "out")
    assert (code, out) == (2, "") and "pip install 'wetok[eval]'" in err
    assert not Path("out").exists()


def test_torchrun_spreads_the_images(call: Call) -> None:
    """Two real processes: the numbers, the crops and the exit code of one."""
    Path("photos/bad.png").write_bytes(b"no image")
    options = (*QUICK, "--crops", "1", "--no-curves")
    call(*options, "-o", "alone")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "wetok", "compare", "-m", "toy", "--device", "cpu", *options, "-o", "two"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1 and done.stderr.count("'photos/bad.png'") == 1, done.stderr
    alone, two = (
        json.loads(Path(folder, "compare.json").read_text("utf-8"))["contests"][0]
        for folder in ("alone", "two")
    )
    pairs = zip((alone["model"], *alone["codecs"]), (two["model"], *two["codecs"]), strict=True)
    for one, other in pairs:
        assert other["image_list_hash"] == one["image_list_hash"]
        for key in ("psnr", "lpips-alex", "bytes", "images", "coded_bpp"):
            assert other[key] == pytest.approx(one[key], rel=1e-6), key
    assert [crop["image"] for crop in two["crops"]] == [crop["image"] for crop in alone["crops"]]
