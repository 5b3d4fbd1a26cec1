"""The command line as a user meets it: what is printed, what is written, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tests.command_lines import check, command_lines
from wetok import checkpoint
from wetok.checkpoint import save_folder
from wetok.cli import _MODULES, COMMANDS, main
from wetok.codec.tokens import Tokens
from wetok.config import ModelConfig
from wetok.data.images import find_images, load_image
from wetok.model.network import TokenizerNetwork

NAMES = sorted(COMMANDS)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return call


def make_model(folder: Path, seed: int = 0, **changes: object) -> Path:
    shape = {"bits": 8, "groups": 2, "channels": 32, "mults": (1, 1), "blocks": 1, "patch": 2}
    torch.manual_seed(seed)
    network = TokenizerNetwork(ModelConfig.model_validate(shape | changes))
    save_folder(folder, network, folder.name)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights."""
    return make_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, generative."""
    return make_model(tmp_path_factory.mktemp("models") / "other", seed=1, generative=True)


def photo(path: Path, width: int = 20, height: int = 14, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mistake(result: Result, *parts: str) -> None:
    """The result is one line on stderr that holds `parts`, and exit code 2."""
    assert result.code == 2, result
    assert result.out == ""
    assert result.err.startswith("wetok: ") and result.err.count("\n") == 1, result.err
    for part in parts:
        assert part in result.err


# --- the table of commands --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_an_example_that_works(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.code == 0
    assert f"Example: wetok {name}" in result.out
    (words,) = command_lines(result.out.replace("│", " "))
    check(words)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_its_module(name: str) -> None:
    module = import_module(f"wetok.commands.{_MODULES.get(name, name)}")
    assert hasattr(module, "app") or callable(module.command)


def test_help_lists_every_command(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    for name in NAMES:
        assert f" {name} " in result.out
    assert run() == result


def test_version(run: Run) -> None:
    assert run("--version") == (0, "wetok 0.1.0\n", "")


def test_unknown_command_names_the_near_one(run: Run) -> None:
    mistake(run("reconstuct", "a.jpg"), "'reconstuct'", "'reconstruct'", "wetok --help")


def test_unknown_option(run: Run) -> None:
    mistake(run("encode", "--frob", "a.jpg"), "--frob", "wetok encode --help")


def test_missing_argument(run: Run) -> None:
    mistake(run("encode"), "INPUT", "wetok encode --help")


def test_group_without_command(run: Run) -> None:
    mistake(run("weights"), "wetok weights --help")


def test_debug_shows_the_traceback(run: Run) -> None:
    for arguments in (["--debug", "info", "nothing-here"], ["info", "nothing-here", "--debug"]):
        result = run(*arguments)
        assert result.code == 2
        assert "Traceback" in result.err and "WetokError" in result.err
        assert result.err.splitlines()[-1].startswith("wetok: no model 'nothing-here'")


def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'gradio.blocks'", name="gradio.blocks")

    monkeypatch.setattr(checkpoint, "shipped", fail)
    mistake(run("models"), "'gradio'", "pip install 'wetok[app]'")


@pytest.mark.parametrize("error", [KeyError("bug"), ModuleNotFoundError("m", name="wetok.gone")])
def test_a_bug_is_not_called_a_mistake(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(checkpoint, "shipped", fail)
    with pytest.raises(type(error)):
        main(["models"])


# --- models, info, weights, demo --------------------------------------------------------------


def test_models(run: Run) -> None:
    result = run("models")
    assert result.code == 0
    (row,) = (line for line in result.out.splitlines() if line.startswith("general-768x"))
    assert row.split() == [
        *("general-768x", "32", "32", "4", "0.0312", "768x", "1,674", "M"),
        *("generative", "wetok", "import"),
    ]
    assert max(map(len, result.out.splitlines())) <= 80
    rows = {row["name"]: row for row in json.loads(run("models", "--json").out)}
    assert rows["general-48x"]["encoder_parameters"] == 193_622_560
    assert rows["general-48x"]["decoder_parameters"] == 254_258_947
    assert rows["open-magvit2-f16"]["ratio"] == pytest.approx(24 / (18 / 256))


def test_shipped_models_are_marked(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "box" / "mini")
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "box")
    rows = {row["name"]: row for row in json.loads(run("models", "--json").out)}
    assert rows["mini"]["shipped"] and rows["mini"]["bits"] == 8
    assert not rows["general-48x"]["shipped"]
    assert run("info", "mini").code == 0


def test_info_of_a_model(run: Run, model: Path) -> None:
    facts = json.loads(run("info", model, "--json").out)
    tokenizer = checkpoint.load(model)
    assert facts["name"] == "toy" and facts["fingerprint"] == tokenizer.fingerprint
    counted = sum(weight.numel() for weight in tokenizer.model.parameters())
    assert facts["encoder_parameters"] + facts["decoder_parameters"] == counted
    assert (facts["factor"], facts["bpp"], facts["ratio"]) == (4, 0.5, 48)
    text = run("info", model)
    assert text.code == 0 and tokenizer.fingerprint in text.out


def test_info_of_files(run: Run, model: Path) -> None:
    source = photo(Path("cat.png"))
    assert run("encode", source, "-m", model).code == 0
    facts = json.loads(run("info", "out/cat.wetok", "--json").out)
    assert (facts["model"], facts["width"], facts["height"]) == ("toy", 20, 14)
    assert facts["bytes"] == Path("out/cat.wetok").stat().st_size
    assert facts["bpp"] == pytest.approx(8 * facts["bytes"] / (20 * 14))
    seen = json.loads(run("info", source, "--json").out)
    assert (seen["width"], seen["height"], seen["bytes"]) == (20, 14, source.stat().st_size)


def test_info_of_nothing(run: Run) -> None:
    mistake(run("info", "general-48"), "general-48x")
    assert run("info", "tiny-48").err.count("'tiny-48x'") == 1
    mistake(run("info", "absent.wetok"), "absent.wetok: no such file")
    Path("notes.txt").write_text("no image")
    mistake(run("info", "notes.txt"), "notes.txt")


def test_weights(run: Run, weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WETOK_CACHE", "cache")
    mistake(run("weights", "path", "lpips-vgg"), "wetok weights import")
    mistake(run("weights", "path", "lpips-alx"), "'lpips-alex'")
    mistake(run("weights", "import", "nowhere"), "nowhere")
    assert "wetok weights import" in run("weights", "list").out
    result = run("weights", "import", weights_dir / "lpips_alex.safetensors")
    assert result.code == 0 and "checksum as expected" in result.out
    path = Path(run("weights", "path", "lpips-alex").out.strip())
    assert path.read_bytes() == (weights_dir / "lpips_alex.safetensors").read_bytes()
    rows = {row["name"]: row for row in json.loads(run("weights", "list", "--json").out)}
    assert rows["lpips-alex"]["path"] == str(path) and rows["lpips-vgg"]["path"] is None


def test_demo(run: Run, model: Path) -> None:
    result = run("demo", "-m", model, "-o", "somewhere/new")
    assert result.code == 0, result.err
    picture = Image.open("somewhere/new/demo.png").convert("RGB")
    photos = [load_image(path) for path in find_images(Path(checkpoint.__file__).parent / "assets")]
    assert len(photos) == 3
    assert picture.height > sum(image.height for image in photos)
    assert picture.width > 2 * max(image.width for image in photos)
    # The photographs are in it, pixel for pixel, left of something else.
    sheet = np.asarray(picture)
    cat = np.asarray(photos[0])
    y = next(y for y in range(picture.height) if (sheet[y, 16] == cat[0, 0]).all())
    assert (sheet[y : y + 300, 16 : 16 + 451] == cat).all()
    for word in ("cat", "coffee", "rocket", "451x300", "PSNR", "SSIM", "bpp", "somewhere/new"):
        assert word in result.out
    assert run("demo", "-m", model, "-o", "somewhere/new").code == 0  # a second time


def test_demo_of_several_models(run: Run, model: Path) -> None:
    """A line for each with the means, and a column of the picture."""
    one, several = run("demo", "-m", model), run("demo", "-m", "tiny-48x", "-m", model)
    assert one.code == several.code == 0, several.err
    sheet = np.asarray(Image.open("out/demo.png").convert("RGB"))
    rocket = load_image(Path(checkpoint.__file__).parent / "assets" / "photos" / "rocket.jpg")
    assert sheet.shape[1] > 3 * rocket.width

    def cells(text: str, name: str) -> list[str]:
        (line,) = [line for line in text.splitlines() if line.startswith(f"│ {name}")]
        return [cell.strip() for cell in line.strip("│").split("│")]

    each = [cells(one.out, name) for name in ("cat", "coffee", "rocket")]
    mean = cells(several.out, model.name)
    twice = run("demo", "-m", model, "-m", model)  # of one name, and still a line each
    assert sum(line.startswith(f"│ {model.name}") for line in twice.out.splitlines()) == 2
    assert float(mean[4]) == pytest.approx(sum(float(row[4]) for row in each) / 3, abs=0.011)
    assert int(mean[1].replace(",", "")) == pytest.approx(
        sum(int(row[1].replace(",", "")) for row in each) / 3, abs=1
    )


def test_demo_into_a_file(run: Run, model: Path) -> None:
    Path("taken").write_text("")
    mistake(run("demo", "-m", model, "-o", "taken"), "taken")


# --- reconstruct, encode, decode --------------------------------------------------------------

ODD_SIZES = [(1, 1), (1, 9), (7, 1), (2, 3), (5, 5), (13, 7), (16, 16), (17, 33), (31, 8), (40, 3)]


def test_reconstruct_keeps_odd_sizes(run: Run, model: Path) -> None:
    for index, (width, height) in enumerate(ODD_SIZES):
        photo(Path(f"in/{index}.png"), width, height, seed=index)
    result = run("reconstruct", "in", "-m", model, "-o", "rec")
    assert result.code == 0 and result.err == ""
    sizes = [Image.open(f"rec/{index}.png").size for index in range(len(ODD_SIZES))]
    assert sizes == ODD_SIZES
    assert len(list(Path("rec").iterdir())) == len(ODD_SIZES)  # nothing temporary stays


def test_reconstruct_is_decode_of_encode(run: Run, model: Path) -> None:
    source = photo(Path("cat.png"), 19, 23)
    tokenizer = checkpoint.load(model)
    (expected,) = tokenizer.decode(tokenizer.encode(source))
    assert run("reconstruct", source, "-m", model, "-o", "direct").code == 0
    assert run("encode", source, "-m", model, "-o", "tokens").code == 0
    assert run("decode", "tokens", "-m", model, "-o", "back").code == 0
    for folder in ("direct", "back"):
        assert (np.asarray(Image.open(f"{folder}/cat.png")) == np.asarray(expected)).all()


def test_file_names_of_any_bytes(run: Run, model: Path) -> None:
    names = [
        os.fsdecode(name) for name in (b"[bold]x.png", b"a b.png", b"\xc3\xa9.png", b"\xff.png")
    ]
    for name in names:
        photo(Path("in", name))
    result = run("reconstruct", "in", "-m", model)
    assert result.code == 0 and result.err == ""
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(names)


def test_side_by_side(run: Run, model: Path) -> None:
    source = photo(Path("cat.png"), 30, 24)
    assert run("reconstruct", source, "-m", model, "-o", "both.png", "--side-by-side").code == 0
    assert run("reconstruct", source, "-m", model, "-o", "one.png").code == 0
    sheet = np.asarray(Image.open("both.png").convert("RGB"))

    def holds(image: np.ndarray) -> bool:
        height, width, _ = image.shape
        windows = np.lib.stride_tricks.sliding_window_view(sheet, (height, width, 3))[:, :, 0]
        return bool((windows == image).all(axis=(-3, -2, -1)).any())

    assert holds(np.asarray(Image.open(source))) and holds(np.asarray(Image.open("one.png")))


def test_a_corrupt_file_does_not_stop_the_rest(run: Run, model: Path) -> None:
    good = photo(Path("in/good.png"))
    Path("in/empty.jpg").write_bytes(b"")
    Path("in/half.png").write_bytes(good.read_bytes()[:200])
    Path("in/notes.jpg").write_text("not an image")
    result = run("reconstruct", "in", "-m", model, "-o", "rec")
    assert result.code == 1
    assert [path.name for path in Path("rec").iterdir()] == ["good.png"]
    assert result.out.startswith("in/good.png -> rec/good.png")
    summary, *lines = result.err.splitlines()
    assert summary == "wetok: 3 of 4 inputs failed:"
    assert len(lines) == 3
    for line, name in zip(lines, ("empty.jpg", "half.png", "notes.jpg"), strict=True):
        assert name in line


def test_a_missing_input_does_not_stop_the_rest(run: Run, model: Path) -> None:
    photo(Path("good.png"))
    result = run("encode", "gone.png", "good.png", "-m", model)
    assert result.code == 1 and Path("out/good.wetok").exists()
    assert "1 of 2 inputs failed" in result.err and "gone.png" in result.err


def test_all_inputs_bad(run: Run, model: Path) -> None:
    mistake(run("encode", "gone.png", "-m", model), "gone.png")
    Path("bad.png").write_text("")
    mistake(run("encode", "bad.png", "-m", model), "bad.png")
    result = run("encode", "gone.png", "bad.png", "-m", model)
    assert result.code == 2 and "2 of 2 inputs failed" in result.err
    Path("empty").mkdir()
    mistake(run("reconstruct", "empty", "-m", model), "empty", "no images")
    mistake(run("decode", "empty", "-m", model), "empty", ".wetok")


def test_same_stems_get_names_of_their_own(run: Run, model: Path) -> None:
    inputs = [Path("a/cat.png"), Path("b/cat.png"), Path("b/CAT.bmp"), Path("c/cat-2.png")]
    for index, path in enumerate(inputs):
        photo(path, 8 + index, 8)
    result = run("reconstruct", *inputs, "-m", model, "-o", "rec")
    assert result.code == 0
    widths = {path.name: Image.open(path).width for path in Path("rec").iterdir()}
    assert widths == {"cat.png": 8, "cat-2.png": 9, "CAT-3.png": 10, "cat-2-2.png": 11}
    for line, source in zip(result.out.splitlines(), inputs, strict=True):
        assert line.startswith(f"{source} -> rec/")


def test_folders_keep_their_subfolders_and_files_named_twice_count_once(
    run: Run, model: Path
) -> None:
    photo(Path("in/cat.png"))
    photo(Path("in/deep/cat.png"))
    assert run("encode", "in", "in/cat.png", "in", "-m", model).code == 0
    found = sorted(str(path) for path in Path("out").rglob("*.wetok"))
    assert found == ["out/cat.wetok", "out/deep/cat.wetok"]


def test_results_inside_the_input_folder_are_no_inputs(run: Run, model: Path) -> None:
    photo(Path("in/cat.png"))
    for _ in range(2):
        result = run("reconstruct", "in", "-m", model, "-o", "in/out", "--force")
        assert result.code == 0 and result.out.count("\n") == 1
    assert sorted(path.name for path in Path("in").rglob("*.png")) == ["cat.png", "cat.png"]
    Path("in/cat.png").unlink()
    mistake(run("reconstruct", "in", "-m", model, "-o", "in/out", "--force"), "in/out")


def test_inputs_inside_the_output_folder(run: Run, model: Path) -> None:
    photo(Path("in/cat.png"))
    assert run("reconstruct", "in", "-m", model, "-o", ".").code == 0
    assert Path("cat.png").exists()


def test_nothing_is_overwritten_unasked(run: Run, model: Path) -> None:
    photo(Path("cat.png"))
    photo(Path("dog.png"))
    assert run("reconstruct", "cat.png", "-m", model).code == 0
    before = Path("out/cat.png").stat()
    mistake(run("reconstruct", "dog.png", "cat.png", "-m", model), "out/cat.png", "--force")
    assert not Path("out/dog.png").exists()
    assert Path("out/cat.png").stat().st_mtime_ns == before.st_mtime_ns
    assert run("reconstruct", "dog.png", "cat.png", "-m", model, "--force").code == 0


def test_an_input_is_never_overwritten(run: Run, model: Path) -> None:
    source = photo(Path("cat.png"))
    before = source.read_bytes()
    mistake(run("reconstruct", "cat.png", "-m", model, "-o", ".", "--force"), "cat.png")
    mistake(run("reconstruct", "cat.png", "-m", model, "-o", "cat.png", "--force"), "cat.png")
    assert source.read_bytes() == before


def test_out_may_name_one_file(run: Run, model: Path) -> None:
    photo(Path("cat.png"))
    photo(Path("dog.png"))
    assert run("encode", "cat.png", "-m", model, "-o", "deep/a.wetok").code == 0
    assert Tokens.load("deep/a.wetok").size == (14, 20)
    mistake(run("encode", "cat.png", "dog.png", "-m", model, "-o", "b.wetok"), "b.wetok", "folder")
    mistake(run("encode", "cat.png", "-m", model, "-o", "dog.png"), "--out dog.png")


def test_unwritable_out(run: Run, model: Path) -> None:
    photo(Path("cat.png"))
    Path("file").write_text("")
    mistake(run("encode", "cat.png", "-m", model, "-o", "file/sub"), "file")


def test_unknown_model_and_device(run: Run, model: Path) -> None:
    photo(Path("cat.png"))
    mistake(run("encode", "cat.png", "-m", "tiny-48"), "tiny-48", "tiny-48x")
    mistake(run("encode", "cat.png", "-m", "nowhere/"), "nowhere")
    mistake(run("encode", "cat.png", "-m", model, "--device", "warp"), "warp")
    mistake(run("reconstruct", "cat.png", "-m", model, "--seed", "-1"), "-1", "reconstruct --help")
    assert not Path("out").exists()


# --- decode refuses -----------------------------------------------------------------------------


def test_decode_refuses_another_model(run: Run, model: Path, other: Path) -> None:
    photo(Path("cat.png"))
    assert run("encode", "cat.png", "-m", model).code == 0
    mistake(run("decode", "out/cat.wetok", "-m", other), "toy", "other")
    assert not Path("out/cat.png").exists()


def test_decode_finds_the_model_by_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "box" / "mini")
    photo(Path("cat.png"))
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "box")
    assert run("encode", "cat.png", "-m", "mini").code == 0
    assert run("decode", "out/cat.wetok").code == 0
    assert Image.open("out/cat.png").size == (20, 14)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    mistake(run("decode", "out/cat.wetok", "--force"), "'mini'", "-m")


def test_decode_refuses_altered_and_cut_files(run: Run, model: Path) -> None:
    photo(Path("cat.png"))
    assert run("encode", "cat.png", "-m", model, "-o", "good.wetok").code == 0
    data = bytearray(Path("good.wetok").read_bytes())
    Path("cut.wetok").write_bytes(data[:-3])
    data[len(data) // 2] ^= 1
    Path("altered.wetok").write_bytes(data)
    Path("photo.wetok").write_bytes(Path("cat.png").read_bytes())
    for name in ("cut.wetok", "altered.wetok", "photo.wetok"):
        mistake(run("decode", name, "-m", model), name)
    result = run("decode", ".", "-m", model)
    assert result.code == 1 and "3 of 4 inputs failed" in result.err
    assert [path.name for path in Path("out").iterdir()] == ["good.png"]


def test_seed_of_a_generative_decoder(run: Run, other: Path) -> None:
    photo(Path("cat.png"))
    assert run("encode", "cat.png", "-m", other).code == 0
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run("decode", "out", "-m", other, "-o", folder, "--seed", seed).code == 0
    a, b, c = (Path(folder, "cat.png").read_bytes() for folder in "abc")
    assert a == b != c


def test_a_file_of_several_images(run: Run, model: Path) -> None:
    tokenizer = checkpoint.load(model)
    photos = [Image.open(photo(Path(f"{i}.png"), seed=i)) for i in range(3)]
    tokens = tokenizer.encode(photos)
    tokens.save("batch.wetok")
    assert run("decode", "batch.wetok", "-m", model).code == 0
    for name, expected in zip(
        ("batch.png", "batch.1.png", "batch.2.png"), tokenizer.decode(tokens), strict=True
    ):
        assert (np.asarray(Image.open(Path("out", name))) == np.asarray(expected)).all()
    Path("out/batch.png").unlink()
    mistake(run("decode", "batch.wetok", "-m", model), "batch.1.png")


# --- a real process ------------------------------------------------------------------------------


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "wetok", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )


def test_ctrl_c(tmp_path: Path, model: Path) -> None:
    for index in range(80):
        photo(tmp_path / f"in/{index}.png", 64, 64)
    process = start("reconstruct", "in", "-m", model, cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.readline()  # the first is done
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "wetok: stopped\n"
    done = list((tmp_path / "out").iterdir())
    assert 0 < len(done) < 80 and all(path.suffix == ".png" for path in done)


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    process = start("models", cwd=tmp_path)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=30)


def test_python_m_wetok(tmp_path: Path) -> None:
    process = start("--version", cwd=tmp_path)
    assert process.communicate(timeout=30) == ("wetok 0.1.0\n", "")
