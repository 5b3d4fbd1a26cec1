"""`wetok eval` as a user meets it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluate.inception_weights import drawn_weights, published_layout
from wetok.checkpoint import save_folder
from wetok.cli import main
from wetok.config import ModelConfig
from wetok.evaluate.inception import Inception
from wetok.model.network import TokenizerNetwork
from wetok.weights import PARTS, find

ROOT = Path(__file__).resolve().parent.parent.parent
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Runs a command in a folder with `model`, `generative` and `photos`; nothing is imported."""
    torch.manual_seed(0)
    config = ModelConfig(bits=8, groups=2, channels=8, mults=(1, 1), blocks=1, patch=2)
    save_folder(tmp_path / "model", TokenizerNetwork(config), "toy")
    other = config.model_copy(update={"generative": True})
    save_folder(tmp_path / "generative", TokenizerNetwork(other), "toy-gd")
    (tmp_path / "photos").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)
        photo = Image.fromarray(pixels).resize((60, 44), Image.Resampling.BICUBIC)
        photo.save(tmp_path / "photos" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WETOK_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            chosen = [] if {"-m", "--verify"} & {*arguments} else ["-m", "model"]
            main(["eval", *chosen, "--device", "cpu", *arguments])
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
    shipped = hashlib.sha256(find("lpips-alex").read_bytes()).hexdigest()[:16]
    assert summary["lpips_weights"] == {"alex": shipped} and summary["lpips-alex"] > 0
    assert summary["frechet_weights"] == {} and "lpips-vgg" not in summary and err == ""
    assert summary["versions"]["torch"] == torch.__version__ and summary["device"] == "cpu"
    assert len(summary["image_list_hash"]) == len(summary["preprocessing_hash"]) == 16


def test_networks_can_be_left_out(call: Call) -> None:
    summary = json.loads(call("-d", "photos", "--lpips", "none", "--frechet", "none", "--json")[1])
    assert summary["lpips_weights"] == {} and not any(key.startswith("lpips-") for key in summary)


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
        (["-d", "photos", "--frechet", "fd-vgg"], "wetok weights import"),
        (["-d", "photos", "--frechet", "fid"], "frechet='fid' is not known"),
        (["-d", "photos", "--frechet", "rfid", "--fid-weights", "no"], "give --frechet fd-vgg"),
        (["-d", "photos", "--samples", "2"], "'toy' is deterministic"),
        (["-d", "photos", "--samples", "0"], "--samples"),
        (["-d", "photos", "--seed", "-1"], "--seed"),
        (["-d", "photos", "--reference", "no.npz"], "no.npz: not statistics of features"),
        (["-d", "photos", "--save-reference", "x.npz"], "give --frechet"),
        (["-d", "photos", "--receipt", "no/r.json"], "--receipt no/r.json: there is no folder"),
        (["-d", "photos", "--verify", "no.json"], "receipt 'no.json' can't be read"),
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


def test_the_fid_network_decides_the_name(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights in it give no rFID, and what they give is called otherwise."""
    with torch.device("meta"):
        network = Inception()
    state = published_layout(drawn_weights(network))
    torch.save(state, tmp_path / "fid.pth")
    options = ("-d", "photos", "--fid-weights", "fid.pth", "--lpips", "none")
    code, out, _ = call(*options, "--json")
    drawn = json.loads(out)
    assert code == 0 and drawn["fd-inception"] > 0
    assert not any("rfid" in key for key in (*drawn, *drawn["frechet_weights"]))

    digest = hashlib.sha256((tmp_path / "fid.pth").read_bytes()).hexdigest()
    known = dataclasses.replace(PARTS["inception-fid"], sha256=digest)
    monkeypatch.setitem(PARTS, "inception-fid", known)
    both = ("--frechet", "rfid", "--frechet", "rfid-torch-fidelity")
    published = json.loads(call(*options, *both, "--json")[1])
    assert published["rfid"] == pytest.approx(drawn["fd-inception"])
    assert published["rfid-torch-fidelity"] != pytest.approx(published["rfid"], rel=1e-3)
    assert published["frechet_weights"]["rfid"] == digest[:16]


def test_where_the_fid_network_can_not_be_had(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = dataclasses.replace(PARTS["inception-fid"], url="http://127.0.0.1:1/x.pth")
    monkeypatch.setitem(PARTS, "inception-fid", nowhere)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    code, out, err = call("-d", "photos", "--frechet", "rfid")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "download of inception-fid" in err and "--frechet fd-vgg, which is another number" in err
    assert "rFID is left out" in call("-d", "photos")[1]
    assert "rFID" not in call("-d", "photos", "--frechet", "none")[1]


def test_references_are_saved_and_compared_with(
    call: Call, tmp_path: Path, weights_dir: Path
) -> None:
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    name = "lpips_vgg.safetensors"
    (tmp_path / "cache" / "weights" / name).symlink_to(weights_dir / name)
    options = ("-d", "photos", "--json", "--lpips", "none", "--protocol", "original")
    first = json.loads(call(*options, "--save-reference", "stats.npz")[1])
    second = json.loads(call(*options, "--reference", "stats.npz")[1])
    assert first["fd-vgg"] > 0 and "fd-vgg" not in second
    assert second["fd-vgg-to-reference"] == pytest.approx(first["fd-vgg"], rel=1e-6)
    assert list(second["reference"]) == ["stats.npz"]
    code, _, err = call("-d", "photos", "--reference", "stats.npz")  # of another protocol
    assert code == 2 and "preprocessing_hash" in err
    assert "FD-vgg-to-reference" in call(*options[:2], *options[3:], "--reference", "stats.npz")[1]


def test_samples_of_a_generative_decoder(call: Call) -> None:
    options = ("-m", "generative", "-d", "photos", "--protocol", "original", "--seed", "2")
    three = json.loads(call(*options, "--samples", "3", "--json")[1])
    single = [json.loads(call(*options[:-1], str(seed), "--json")[1]) for seed in (2, 3, 4)]
    assert three["psnr"] == single[0]["psnr"] and three["samples"] == 3
    of = three["of_samples"]
    assert of["psnr"]["mean"] == pytest.approx(np.mean([one["psnr"] for one in single]))
    assert of["psnr"]["best"] >= max(one["psnr"] for one in single)
    assert of["lpips-alex"]["best"] <= min(one["lpips-alex"] for one in single)
    assert of["psnr"]["spread"] > 0
    out = call(*options, "--samples", "3")[1]
    for part in ("mean of 3", "best of 3", "spread", f"{of['psnr']['best']:.2f}"):
        assert part in out


def test_a_receipt_is_verified(call: Call) -> None:
    options = ("-d", "photos", "--protocol", "original", "--seed", "3", "--receipt", "r.json")
    first = json.loads(call(*options, "--json")[1])
    written = json.loads(Path("r.json").read_text("utf-8"))
    assert written["arguments"]["model"] == "model" and written["arguments"]["data"] == ["photos"]
    assert {**first, **written} == written, "it holds all that --json shows"
    code, out, err = call("--verify", "r.json", "--json")
    again = json.loads(out)
    assert code == 0 and "the scores agree with r.json" in err
    assert again["psnr"] == first["psnr"] and again["seed"] == 3

    Image.open("photos/0.png").transpose(Image.Transpose.ROTATE_180).save("photos/0.png")
    code, _, err = call("--verify", "r.json")
    assert code == 1 and "wetok: differs: images: " in err and "wetok: differs: psnr: " in err
    assert "fingerprint" not in err and "preprocessing" not in err
    code, _, err = call("--verify", "r.json", "-m", "generative")
    assert code == 1 and f"differs: model: {first['fingerprint']} on the receipt" in err
    code, out, err = call("--verify", "r.json", "--protocol", "modern-256")
    assert (code, out) == (2, "") and "--protocol can't be given with --verify" in err


def test_a_receipt_names_the_networks_that_were_used(
    call: Call, tmp_path: Path, weights_dir: Path
) -> None:
    """What is imported later must not change what is verified."""
    call("-d", "photos", "--receipt", "r.json")
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    name = "lpips_vgg.safetensors"
    (tmp_path / "cache" / "weights" / name).symlink_to(weights_dir / name)
    code, out, err = call("--verify", "r.json", "--json")
    assert code == 0 and "lpips-vgg" not in json.loads(out), err


def test_torchrun_spreads_the_images(call: Call, tmp_path: Path) -> None:
    """Two real processes: one table, the numbers of one process, the exit code of a failure."""
    Path("photos/bad.png").write_bytes(b"no image")
    options = ("-d", "photos", "--protocol", "original", "--json")
    alone = json.loads(call(*options)[1])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "wetok", "eval", "-m", "model", "--device", "cpu", *options),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    together = json.loads(done.stdout)
    assert done.returncode == 1 and done.stderr.count("bad.png") == 1, done.stderr
    assert together["image_list_hash"] == alone["image_list_hash"]
    for key in ("psnr", "ssim", "lpips-alex", "token_entropy", "images", "failed"):
        assert together[key] == pytest.approx(alone[key], rel=1e-6), key
