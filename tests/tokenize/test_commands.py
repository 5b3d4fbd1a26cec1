"""`wetok tokenize` and `wetok detokenize` as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wetok
from tests.tokenize.job import files, model_folder, pixels, png, write_pictures
from wetok.cli import main
from wetok.data.tokens import TokenShards
from wetok.tokenize.back import seed_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "model")

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


SMALL = ("-m", "model", "--size", 32, "--shard-size", 4, "--workers", 0)


def test_a_job_and_what_it_tells(run: Run) -> None:
    broken = write_pictures(Path("photos"), 10, broken=2)
    code, out, err = run("tokenize", "photos", *SMALL, "--labels", "folder")
    assert code == 1 and err == ""
    first, speed, codes, *_, where = out.splitlines()
    assert re.fullmatch(
        r"10 images -> tokens  8 records in 3 shards, [\d,]+ bytes; 2 failed", first
    )
    assert "images/s" in speed and codes.startswith("codes in use, by group: ")
    assert where == "what failed, and why: tokens/failed.jsonl"
    before = files(Path("tokens"))
    code, out, _ = run("tokenize", "photos", *SMALL, "--labels", "folder", "--json")
    told = json.loads(out)
    assert code == 1 and told["done"] and told["failed"] == 2 and told["run"]["images"] == 0
    assert files(Path("tokens")) == before
    code, out, _ = run("tokenize", "--verify", "tokens", "photos")
    assert code == 0 and out.endswith("compared with the source's keys: all is well\n")
    assert {TokenShards("tokens")[n].extras["label"] for n in range(8)} == {"a", "b"}
    for key in broken:
        (Path("photos") / key).unlink()
    code, out, _ = run("tokenize", "--verify", "tokens", "photos", "--json")
    assert code == 1 and not json.loads(out)["ok"]
    code, out, err = run("tokenize", "photos", *SMALL, "--labels", "folder")
    assert code == 2 and "begun with 10 inputs, and now there are 8" in err
    assert run("tokenize", "photos", *SMALL, "-o", "good")[0] == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "SOURCE is missing"),
        (("photos", "--size", "big"), "'big' is neither a number of pixels nor none"),
        (("photos", "--size", "0"), "size=0"),
        (("photos", "--views", "nine"), "views='nine'"),
        (("photos", "--format", "zip"), "format='zip'"),
        (("photos", "-o", "photos/tokens"), "lies within the source"),
        (("nowhere",), "'nowhere' does not exist"),
        (("photos", "--column", "x"), "column='x' means nothing"),
        (("photos", "--size", "none", "--batch", "2"), "batch=2 takes images of one size"),
        (("--verify", "photos"), "no folder of wetok tokenize"),
    ],
)
def test_mistakes_end_in_one_line(run: Run, words: tuple[str, ...], reason: str) -> None:
    write_pictures(Path("photos"), 2)
    code, out, err = run("tokenize", *words, "-m", "model")
    assert (code, out) == (2, "") and err.count("\n") == 1 and reason in err


def test_there_and_back(run: Run) -> None:
    write_pictures(Path("photos"), 5)
    Path("photos/a/00000.webp").write_bytes(png(9))  # differs from another in its suffix only
    assert run("tokenize", "photos", *SMALL, "--views", "flip")[0] == 0
    code, out, err = run("detokenize", "tokens", "-o", "back", "-m", "model")
    assert (code, err) == (0, "") and out == "12 images -> back\n"
    made = sorted(str(path.relative_to("back")) for path in Path("back").rglob("*.png"))
    stems = ["a/00000.png", "a/00000.webp", "a/00002", "a/00004", "b/00001", "b/00003"]
    assert made == sorted(f"{stem}{view}.png" for stem in stems for view in ("", ".center-flip"))
    tokenizer = wetok.load("model")
    for stem, number, view in (("a/00002", 2, 1), ("a/00000.webp", 9, -1)):
        (wanted,) = tokenizer.decode(tokenizer.encode(pixels(number)[:, ::view].copy()))
        name = f"{stem}{'' if view == 1 else '.center-flip'}.png"
        assert np.array_equal(np.asarray(Image.open(Path("back") / name)), np.asarray(wanted))
    before = {path: path.stat().st_mtime_ns for path in Path("back").rglob("*.png")}
    Path("back/b/00001.png").unlink()
    code, out, _ = run("detokenize", "tokens", "-o", "back", "-m", "model")
    assert code == 0 and out == "1 images -> back; 11 files were there\n"
    assert sum(path.stat().st_mtime_ns != then for path, then in before.items()) == 1


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "webdataset"])
@pytest.mark.parametrize("shards", ["parquet", "webdataset"])
def test_formats(run: Run, kind: str, shards: str) -> None:
    write_pictures(Path("photos"), 5)
    assert run("tokenize", "photos", *SMALL, "--format", shards)[0] == 0
    assert run("detokenize", "tokens", "-o", "back", "-m", "model", "--format", kind)[0] == 0
    tokenizer = wetok.load("model")
    (wanted,) = tokenizer.decode(tokenizer.encode(pixels(0)))
    if kind == "webdataset":
        with tarfile.open("back/tokens-00000.tar") as tar:
            assert tar.getnames()[:2] == ["000000000.json", "000000000.png"]
            about, image = (tar.extractfile(name) for name in tar.getnames()[:2])
            assert about and json.load(about) == {"key": "a/00000.png", "view": "center"}
            assert np.array_equal(np.asarray(Image.open(image)), np.asarray(wanted))  # type: ignore[arg-type]
        assert run("detokenize", "tokens", "-o", "back", "-m", "model", "--format", kind)[1] == (
            "0 images -> back; 2 shards were there\n"
        )
        return
    image = Image.open(f"back/a/00000.{kind}")
    assert image.format == {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[kind]
    near = np.abs(np.asarray(image, np.int32) - np.asarray(wanted, np.int32)).mean()
    assert near == 0 if kind == "png" else near < 30


def test_noise_comes_from_seed_and_key(run: Run, tmp_path: Path) -> None:
    model_folder(tmp_path / "gd", generative=True)
    write_pictures(Path("photos"), 4)
    words = ("-m", "gd", "--size", 32, "--workers", 0)
    for size in (1, 4):  # the shard that a record lies in means nothing
        out = f"t{size}"
        assert run("tokenize", "photos", *words, "-o", out, "--shard-size", size)[0] == 0
        assert run("detokenize", out, "-o", f"b{size}", "-m", "gd", "--seed", 3)[0] == 0
    one, other = ({k: v for k, v in files(Path(f"b{size}")).items()} for size in (1, 4))
    assert one == other and len(one) == 4
    assert run("detokenize", "t4", "-o", "b", "-m", "gd", "--seed", 4)[0] == 0
    assert all(files(Path("b"))[name] != data for name, data in one.items())
    record = TokenShards("t4")[0]
    seeds = {seed_of(3, record), seed_of(4, record), seed_of(3, record._replace(key="b"))}
    assert len(seeds | {seed_of(3, record._replace(view="x"))}) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_keys_never_lead_out_of_the_folder(run: Run) -> None:
    with tarfile.open("x.tar", "w") as tar:
        for name in ("../../up.png", "/root.png"):
            Path("one.png").write_bytes(png(len(name)))
            tar.add("one.png", name, filter=lambda member, name=name: _named(member, name))
    assert run("tokenize", "x.tar", *SMALL)[0] == 0
    assert run("detokenize", "tokens", "-o", "in/side/back", "-m", "model")[0] == 0
    made = {str(path) for path in Path().rglob("*.png")} - {"one.png"}
    assert made == {"in/side/back/x.tar/__/__/up.png", "in/side/back/x.tar/root.png"}


def _named(member: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    member.name = name
    return member


def test_what_can_not_be_decoded_is_told(run: Run, tmp_path: Path) -> None:
    write_pictures(Path("photos"), 8)
    run("tokenize", "photos", *SMALL)
    model_folder(tmp_path / "other", seed=1)
    code, _, err = run("detokenize", "tokens", "-o", "back", "-m", "other")
    assert code == 2 and "load the model they were made with" in err
    Path("model").rename("hidden")
    code, _, err = run("detokenize", "tokens", "-o", "back")
    assert code == 2 and "made by model 'model', which is not at hand" in err
    shutil.move("hidden", "model")
    code, _, err = run("detokenize", "tokens", "-o", "tokens", "-m", "model")
    assert code == 2 and "holds the shards" in err
    code, _, err = run("detokenize", "tokens", "-o", "back", "-m", "model", "--format", "gif")
    assert code == 2 and "format='gif'" in err
    Path("tokens/tokens-00000.parquet").write_bytes(b"damaged")
    code, out, err = run("detokenize", "tokens", "-o", "back", "-m", "model")
    assert code == 1 and out == "4 images -> back\n" and "tokens-00000.parquet" in err
