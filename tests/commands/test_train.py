"""`wetok train` as a user meets it: what is printed, exit codes, signals, the bar."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

import wetok
from tests.train.tiny import SHAPE, tiny_tree, write_pictures
from wetok.cli import main
from wetok.commands import train as command
from wetok.config import ModelConfig
from wetok.losses.discriminator import PatchDiscriminator
from wetok.model.network import TokenizerNetwork, parameter_count
from wetok.train.state import checkpoints

Call = Callable[..., tuple[int, str, str]]

DRAW = command._draw


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Runs a command in a folder with `photos` and `tiny.yaml`, a recipe of six steps.

    Curves are not drawn, as that takes longer than all the rest.
    """
    monkeypatch.setattr(command, "_draw", lambda folder: None)
    write_pictures(tmp_path / "photos", 8)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_tree(Path("photos"))))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["train", *arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def weights(folder: Path) -> dict[str, Any]:
    """All that a run's newest checkpoint holds, but for the clock."""
    newest = checkpoints(folder / "checkpoints")[-1]
    tree: dict[str, Any] = torch.load(newest / "state.pt", weights_only=True)
    del tree["seconds"]
    return tree


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_a_run_says_what_to_try_next(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_draw", DRAW)
    code, out, err = call("tiny.yaml")
    assert code == 0
    assert out == (
        "done: runs/tiny/model is ready; try: wetok reconstruct PHOTO -m runs/tiny/model\n"
    )
    # Standard error is no terminal here: no bar, but the events.
    told = ["training on 8 images from photos", "checkpoint runs/tiny/checkpoints/step-00000006"]
    assert err.splitlines() == told
    assert wetok.load(Path("runs/tiny/model")).name == "tiny"
    if importlib.util.find_spec("matplotlib"):
        assert Path("runs/tiny/curves.png").is_file()


def test_overrides_and_out(call: Call) -> None:
    changes = ["run.steps=2", "optimizer.lr=5e-4", "model.blocks=2", "loss.entropy=pooled"]
    code, _, _ = call("tiny.yaml", *changes, "--out", "here/there", "--quiet")
    assert code == 0
    settings = json.loads(Path("here/there/config.json").read_text())
    assert settings["run"]["steps"] == 2 and settings["optimizer"]["lr"] == 5e-4
    assert settings["model"]["blocks"] == 2 and settings["loss"]["entropy"] == "pooled"
    assert wetok.load(Path("here/there/model")).config.blocks == 2
    lines = [json.loads(line) for line in Path("here/there/log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["lr"]) for line in lines] == [(1, 5e-4), (2, 5e-4)]


def test_a_recipe_extends_another(call: Call) -> None:
    Path("longer.yaml").write_text("extends: tiny.yaml\nrun: {steps: 7}\n")
    assert call("longer.yaml")[0] == 0
    assert checkpoints(Path("runs/longer/checkpoints"))[0].name == "step-00000007"


def test_a_run_in_the_way_and_resume(call: Call) -> None:
    assert call("tiny.yaml", "-o", "run")[0] == 0
    code, out, err = call("tiny.yaml", "-o", "run")
    assert (code, out) == (2, "")
    assert "out=run holds a run (step-00000006): go on with --resume, or name another" in err
    code, out, err = call("tiny.yaml", "-o", "run", "--resume", "run.steps=8")
    assert code == 0 and "done: run/model is ready" in out
    assert "resumed from run/checkpoints/step-00000006" in err
    assert call("tiny.yaml", "-o", "whole", "run.steps=8")[0] == 0
    assert same(weights(Path("run")), weights(Path("whole")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml: no such recipe"),
        (["tiny.yaml", "--resume"], "holds no run to --resume: start without it"),
        (["tiny.yaml", "data.cropp=32"], "unknown setting 'data.cropp'; did you mean 'crop'?"),
        (["tiny.yaml", "dta.crop=32"], "unknown setting 'dta'; did you mean 'data'?"),
        (["tiny.yaml", "run.step=3"], "unknown setting 'run.step'; did you mean 'steps'"),
        (["tiny.yaml", "data.crop=18"], "data.crop=18 must be a multiple of the model's factor 4"),
        (["tiny.yaml", "data.crop"], "'data.crop' is no recipe (a YAML file), and a setting must"),
        (["tiny.yaml", "run.precision=fp8"], "setting run.precision='fp8'"),
        (["tiny.yaml", "run.device=tpu9"], "run.device='tpu9' can't be used"),
        (["tiny.yaml", "data.train=nowhere"], "data.train: path 'nowhere' does not exist"),
        (["tiny.yaml", "data.val=nowhere"], "data.val: path 'nowhere' does not exist"),
        (["tiny.yaml", "run.init=nothing"], "no model 'nothing'"),
        (["tiny.yaml", "model=tiny-48"], "no preset is called 'tiny-48'; did you mean 'tiny-48x'"),
        (["tiny.yaml", "loss.perceptual_weight=1", "data.crop=32"], "wetok weights import"),
        (["tiny.yaml", "phases=[{until: 3}]"], "ends at step 3, before run.steps=6"),
        (["tiny.yaml", "phases=[{until: 9, set: {data.cropp: 8}}]"], "did you mean 'crop'?"),
        (["tiny.yaml", "phases=[{until: 9, set: {run.seed: 8}}]"], "not 'run.seed'"),
        (["tiny.yaml", "phases=[{until: 9, set: {data.val: x}}]"], "data.val is of the whole run"),
        (["tiny.yaml", "run.trackers=[tensorbored]"], "no tracker 'tensorbored'; did you mean"),
        (["tiny.yaml", "run.trackers=[clearml]"], "'clearml' is not installed: pip install"),
        (["tiny.yaml", "gan.depth=4"], "data.crop=16: the discriminator needs at least 48"),
        (["tiny.yaml", "data.train={path: x, wieght: 2}"], "data.train: unknown setting 'wieght'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line(
    call: Call, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("WETOK_CACHE", "empty")
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("wetok: ") and err.count("\n") == 1
    assert not Path("runs").exists(), "nothing is begun"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_a_signal_saves_and_tells_how_to_go_on(call: Call, number: int) -> None:
    arguments = ["train", "tiny.yaml", "run.steps=100000", "data.scale=[0.5, 1]", "-o", "a run"]
    log = Path("a run/log.jsonl")
    with subprocess.Popen(
        [sys.executable, "-m", "wetok", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(wetok.__file__).parent.parent)},
    ) as process:
        for _ in range(2400):
            if process.poll() is not None or (log.exists() and log.read_text().count("\n") > 2):
                break
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    first, again = out.splitlines()
    (saved,) = checkpoints(Path("a run/checkpoints"))
    step = int(saved.name.removeprefix("step-"))
    assert step > 2 and first == f"stopped and saved at step {step}; go on with:"
    words = shlex.split(again)
    assert words == ["wetok", *arguments, "--resume"]

    # The printed command goes on, and it is as if there had been no break.
    last = f"run.steps={step + 3}"
    assert call(*words[2:], last)[0] == 0
    assert call("tiny.yaml", "data.scale=[0.5, 1]", last, "-o", "whole")[0] == 0
    assert same(weights(Path("a run")), weights(Path("whole")))
    lines = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert lines == list(range(1, step + 4))


STAGE_TWO = {
    "extends": "tiny.yaml",
    "model": {"generative": True},
    "run": {"freeze": "encoder", "steps": 4, "export": "newest"},
}


def validations(folder: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    return [record for record in records if "validation" in record]


def test_two_recipes_are_two_stages(call: Call) -> None:
    """The second starts from the first's model, and its scores from the first's."""
    Path("second.yaml").write_text(yaml.safe_dump(STAGE_TWO))
    arguments = ("tiny.yaml", "second.yaml", "gan={width: 8, depth: 1}", "data.val=photos")
    code, out, _ = call(*arguments, "-o", "both")
    assert code == 0 and out.startswith("done: both/second/model is ready")
    first, second = (wetok.load(f"both/{name}/model") for name in ("tiny", "second"))
    assert not first.config.generative and second.config.generative
    tokens = [tok.encode("photos/3.png") for tok in (first, second)]
    assert torch.equal(tokens[0].ids, tokens[1].ids), "the encoder was frozen"
    (end,), (start, *_) = validations("both/tiny"), validations("both/second")
    assert end["step"] == 6 and start["step"] == 0
    assert start["validation"] == end["validation"], "to the bit"

    assert call(*arguments, "-o", "both")[0] == 2, "there is a run already"
    shutil.rmtree("both/second")
    code, out, _ = call(*arguments, "-o", "both", "--resume")
    assert code == 0 and out.splitlines()[0].startswith("tiny: done already")
    again = wetok.load("both/second/model")
    assert again.fingerprint == second.fingerprint
    code, out, _ = call(*arguments, "-o", "both", "--resume")
    assert code == 0 and wetok.load("both/second/model").fingerprint == second.fingerprint


def test_stages_default_to_folders_of_their_own(call: Call) -> None:
    Path("second.yaml").write_text(yaml.safe_dump(STAGE_TWO))
    assert call("tiny.yaml", "second.yaml", "run.steps=1")[0] == 0
    assert wetok.load("runs/tiny/model").name == "tiny"
    assert wetok.load("runs/second/model").name == "second"
    settings = json.loads(Path("runs/second/config.json").read_text())
    assert settings["run"]["init"] == "runs/tiny/model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.steps=3"], "recipe is missing: run.steps=3 are settings"),
        (["tiny.yaml", "sub/tiny.yaml"], "two of one name would share a folder"),
        (["tiny.yaml", "second.yaml", "data.crop=18"], "must be a multiple"),
        (["tiny.yaml", "nothing.yaml"], "nothing.yaml: no such recipe"),
    ],
)
def test_mistakes_in_stages_end_in_one_line(call: Call, arguments: list[str], message: str) -> None:
    Path("second.yaml").write_text(yaml.safe_dump(STAGE_TWO))
    code, out, err = call(*arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert not Path("runs").exists(), "nothing is begun"


def test_a_dry_run_tells_all_and_begins_nothing(call: Call) -> None:
    Path("second.yaml").write_text(yaml.safe_dump(STAGE_TWO))
    code, out, err = call("tiny.yaml", "second.yaml", "gan={width: 8, depth: 1}", "--dry-run")
    assert code == 0 and err == "" and not Path("runs").exists()
    first, second = out.split("second -> runs/second")
    assert first.startswith("tiny -> runs/tiny")
    network = TokenizerNetwork(ModelConfig(**SHAPE))
    judge = parameter_count(PatchDiscriminator(3, 8, 1))
    assert f"{parameter_count(network) + judge:,} are trained" in first
    assert f"encoder {parameter_count(network.encoder):,}" in first
    assert "memory" in first and "6 with 12 crops in all" in first
    assert "8 images found; each is seen 1.5 times" in first
    noise = 8 * SHAPE["channels"] * SHAPE["mults"][-1] * 9  # conv_in's half for it
    assert f"{parameter_count(network.decoder) + noise + judge:,} are trained" in second
    assert "4 with 8 crops in all" in second
    code, out, err = call("tiny.yaml", "data.train=nowhere", "--dry-run")
    assert code == 2 and err.startswith("wetok: data.train: path 'nowhere' does not exist")


RECORD = {"loss": -0.1921, "images_per_second": 1234.5, "usage": [1.0, 0.998], "dead_bits": 12}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 80 columns is sent."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda stderr: console)
    return file


def test_the_bar_fits_80_columns(terminal: io.StringIO) -> None:
    with command._bar(quiet=False) as progress:
        screen = command._Screen(progress, 250000)
        screen.step({"step": 123450, **RECORD})
        (line,) = progress.console.render_lines(progress.get_renderable())
    text = "".join(segment.text for segment in line)
    assert "123450/250000" in text
    assert text.rstrip().endswith("loss -0.192  1234 img/s  usage 100%  12 dead bits")


def test_the_time_left_of_a_resumed_run_counts_from_its_resumption(terminal: io.StringIO) -> None:
    with command._bar(quiet=False) as progress:
        screen = command._Screen(progress, 1000)
        (task,) = progress.tasks
        now = 0.0
        progress.get_time = lambda: now
        task._get_time = progress.get_time
        for step in (900, 910, 920):  # one step a second
            now += 10
            screen.step({"step": step, **RECORD})
        assert task.completed == 920 and task.speed == pytest.approx(1)
        assert task.time_remaining == pytest.approx(80)


def test_events_are_shown_as_they_are(terminal: io.StringIO) -> None:
    text = "skipped: image '[red]a/b[/red].png' is " + "x" * 80
    with command._bar(quiet=True) as progress:
        command._Screen(progress, 10).event(text)
    assert terminal.getvalue() == text + "\n", "no markup, no wrapping, no bar"
