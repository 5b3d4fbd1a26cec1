"""Whole runs: what they write, how they stop, and that going on is as if they had not stopped."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import wetok
from tests.train.tiny import Recipe, write_pictures
from wetok import checkpoint
from wetok.config import TrainConfig, WetokError
from wetok.data.images import to_pil
from wetok.losses.perceptual import LPIPS
from wetok.model.network import TokenizerNetwork
from wetok.train import loop
from wetok.train.loop import Run
from wetok.train.processes import choose_device
from wetok.train.state import checkpoints
from wetok.train.step import Batch, train_step
from wetok.train.validate import ValidationSet


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validation folder; two pictures, as they are seen at 256 pixels."""
    return write_pictures(tmp_path_factory.mktemp("held out"), 2, seed=1)


class Watcher:
    """Keeps what it is told; `at` steps it does something."""

    def __init__(self, at: dict[int, Callable[[], object]] | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self.events: list[str] = []
        self.at = at or {}

    def step(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.at.get(record["step"], lambda: None)()

    def event(self, text: str) -> None:
        self.events.append(text)


def train(config: TrainConfig, folder: Path, watcher: Watcher | None = None, **options: Any) -> Run:
    run = Run(config, folder, watcher or Watcher(), **options)
    run.train()
    return run


def interrupt_at(step: int, number: int = signal.SIGINT) -> Watcher:
    return Watcher({step: lambda: signal.raise_signal(number)})


def everything(run: Run) -> dict[str, torch.Tensor]:
    """All numbers of a run's state, by name."""
    flat: dict[str, torch.Tensor] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}.{key}", inner)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(f"{name}.{index}", inner)
        elif isinstance(value, torch.Tensor):
            flat[name] = value.detach().clone()

    tree = run.state.tree()
    walk("state", {**tree, "samples": torch.tensor(run.state.samples)})
    return flat


def assert_same(one: Run, other: Run) -> None:
    mine, theirs = everything(one), everything(other)
    assert mine.keys() == theirs.keys() and len(mine) > 100
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_a_run_from_a_recipe_to_a_model(
    recipe: Recipe, pictures: Path, held_out: Path, tmp_path: Path
) -> None:
    changes = {"data.val": str(held_out), "run.validate_every": 3, "run.sample_every": 2}
    config = recipe({**changes, "run.checkpoint_every": 2, "run.keep": 2, "loss.entropy": "pooled"})
    watcher = Watcher()
    folder = tmp_path / "runs" / "mine"
    run = Run(config, folder, watcher)
    assert run.train()

    assert {path.name for path in folder.iterdir()} == {
        *(".lock", "config.json", "log.jsonl", "checkpoints", "samples", "model")
    }
    settings = json.loads((folder / "config.json").read_text())
    assert TrainConfig.model_validate(settings) == config

    records = lines(folder)
    training = [record for record in records if "loss" in record]
    assert [record["step"] for record in training] == [1, 2, 3, 4, 5, 6]
    assert training == watcher.records
    names = {"step", "loss", "l1", "commitment", "token_entropy", "codebook_entropy"}
    names |= {"gradient_norm", "lr", "images_per_second", "data_wait", "skipped", "memory_mb"}
    assert training[0].keys() == names | {"usage", "dead_bits", "usage_steps", "seconds"}
    assert len(training[0]["usage"]) == 2
    scored = [record for record in records if "validation" in record]
    assert [record["step"] for record in scored] == [3, 6]
    assert scored[0]["validation"].keys() == {"psnr", "l1", "score"}
    assert scored[0]["best"] is True

    kept = {int(path.name[5:]) for path in checkpoints(folder / "checkpoints")}
    best = max(record["step"] for record in scored if record["best"])
    assert kept == {4, 6, best}
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        f"step-{step:08d}.png" for step in (2, 4, 6)
    ]
    # A row of two pairs of pictures of 256 pixels, with a gap of 4.
    assert pixels_of(folder / "samples" / "step-00000006.png").shape == (256, 2 * 512 + 4, 3)
    assert any("psnr" in event for event in watcher.events)

    tok = wetok.load(folder / "model")
    assert tok.name == "mine" and tok.config == config.model
    (image,) = tok.decode(tok.encode(pictures / "3.png"))
    with Image.open(pictures / "3.png") as original:
        assert image.size == original.size


def test_the_model_is_the_averaged_one(recipe: Recipe, tmp_path: Path) -> None:
    run = train(recipe(), tmp_path / "run")
    saved = dict(wetok.load(tmp_path / "run" / "model").model.named_parameters())
    own = dict(run.state.network.named_parameters())
    assert saved.keys() == run.state.ema.average.keys()
    for name, average in run.state.ema.average.items():
        assert torch.equal(saved[name], average), name
    assert any(not torch.equal(saved[name], own[name]) for name in own)


def test_the_model_is_the_best_of_the_validations(
    recipe: Recipe, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.2, 0.3])
    monkeypatch.setattr(ValidationSet, "score", lambda *_: {"l1": 0.1, "score": next(scores)})
    seen: dict[int, list[torch.Tensor]] = {}
    run = Run(
        recipe({"data.val": str(held_out), "run.validate_every": 2, "run.keep": 1}),
        tmp_path,
        watcher := Watcher(),
    )
    for step in (2, 4, 6):
        watcher.at[step] = lambda: seen.update(
            {run.state.step: [average.clone() for average in run.state.ema.average.values()]}
        )
    run.train()
    model = wetok.load(tmp_path / "model").model
    assert all(map(torch.equal, model.parameters(), seen[4]))
    assert not all(map(torch.equal, model.parameters(), seen[6]))
    assert [int(path.name[5:]) for path in checkpoints(tmp_path / "checkpoints")] == [4, 6]
    assert run.state.best == 0.2
    assert [event for event in watcher.events if event.endswith("(best so far)")] == [
        "step 2: l1 0.1, score 0.5 (best so far)",
        "step 4: l1 0.1, score 0.2 (best so far)",
    ]


def test_samples_without_a_validation_folder(recipe: Recipe, tmp_path: Path) -> None:
    """Crops of training pictures, each time the same, beside what the average makes of them."""
    run = train(recipe({"run.sample_every": 3}), tmp_path)
    early, late = (pixels_of(tmp_path / "samples" / f"step-{step:08d}.png") for step in (3, 6))
    assert late.shape == (2 * 20 - 4, 4 * 36 - 4, 3)
    assert np.array_equal(early[:16, :16], late[:16, :16]), "the original"
    assert np.array_equal(late[:16, :16], np.array(to_pil(run._shown)[0]))
    tok = wetok.load(tmp_path / "model")
    expected = tok.decode(tok.encode(to_pil(run._shown)[0]), precision="float32")[0]
    assert np.abs(late[:16, 16:32].astype(int) - np.array(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    recipe: Recipe, held_out: Path, tmp_path: Path, number: int
) -> None:
    """Equal to the bit: weights, average, optimizer, position in the data, generator."""
    config = recipe({"data.val": str(held_out), "run.steps": 7, "run.validate_every": 4})
    whole = Run(config, tmp_path / "whole", Watcher())
    assert whole.train() is True

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    first = Run(config, tmp_path / "parts", interrupt_at(3, number))
    assert first.train() is False and first.state.step == 3
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [p.name for p in checkpoints(tmp_path / "parts" / "checkpoints")] == ["step-00000003"]
    torch.manual_seed(12345)
    second = Run(config, tmp_path / "parts", Watcher(), resume=True)
    assert second.state.step == 3 and second.train() is True
    assert_same(second, whole)
    for name in ("model/model.safetensors", "samples/step-00000007.png", "model/config.json"):
        one, other = (tmp_path / which / name for which in ("whole", "parts"))
        expected = one.read_bytes().replace(b'"whole"', b'"parts"')
        assert other.read_bytes() == expected, name


def test_a_run_that_was_killed_repeats_no_line_of_the_log(
    recipe: Recipe, held_out: Path, tmp_path: Path
) -> None:
    def fail() -> None:
        raise KeyboardInterrupt  # as nothing of ours catches, like a kill

    changes = {"data.val": str(held_out), "run.checkpoint_every": 2, "run.validate_every": 3}
    config = recipe(changes)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, Watcher({5: fail}))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    assert [record["step"] for record in lines_until_damage(tmp_path)] == [1, 2, 3, 3, 4, 5]
    resumed = train(config, tmp_path, resume=True)
    assert [record["step"] for record in lines(tmp_path)] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert_same(resumed, train(config, tmp_path / "whole"))


def lines_until_damage(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()[:-1]]


def test_resuming_a_finished_run_changes_nothing(
    recipe: Recipe, held_out: Path, tmp_path: Path
) -> None:
    config = recipe({"data.val": str(held_out)})
    whole = train(config, tmp_path)
    before = lines(tmp_path)
    shutil.rmtree(tmp_path / "samples")
    again = Run(config, tmp_path, Watcher(), resume=True)
    assert again.train() is True
    assert_same(again, whole)
    assert [{**line, "best": 0} for line in lines(tmp_path)] == [
        {**line, "best": 0} for line in before
    ]
    longer = train(recipe({"data.val": str(held_out), "run.steps": 8}), tmp_path, resume=True)
    assert longer.state.step == 8
    steps = [line["step"] for line in lines(tmp_path) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_signal_in_the_last_step_does_not_spoil_the_end(recipe: Recipe, tmp_path: Path) -> None:
    run = Run(recipe({"run.steps": 2}), tmp_path, interrupt_at(2))
    assert run.train() is True
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_second_signal_ends_at_once(recipe: Recipe, tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    assert Run(recipe(), tmp_path, Watcher({2: twice})).train() is False


def test_a_run_in_another_thread(recipe: Recipe, tmp_path: Path) -> None:
    """Python takes signal handlers from the main thread only."""
    results: list[bool] = []
    run = Run(recipe({"run.steps": 1}), tmp_path, Watcher())
    thread = threading.Thread(target=lambda: results.append(run.train()))
    thread.start()
    thread.join(60)
    assert results == [True]


class Spy:
    """Notes, in place of `train_step`, what each step was taken with."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, state: Any, objective: Any, config: TrainConfig, parts: Any) -> Any:
        result = train_step(state, objective, config, parts)
        ((image, _),) = parts
        (group,) = state.optimizer.param_groups
        quantizer = state.network.quantizer
        self.seen.append(
            (
                state.step,
                tuple(image.shape),
                objective.config.commitment_weight,
                (quantizer.entropy, quantizer.temperature, quantizer.eps),
                (result.rate, group["lr"], group["betas"]),
            )
        )
        return result


PHASES = {
    "loss.entropy": "grouped",
    "phases": [
        {"until": 2},
        {
            "until": 5,
            "set": {
                "data.crop": 24,
                "data": {"batch": 3},
                "loss.commitment_weight": 0.5,
                "loss.entropy": "pooled",
                "loss.temperature": 0.02,
                "loss.epsilon": 0,
                "optimizer.lr": 0.01,
                "optimizer.betas": [0.9, 0.99],
            },
        },
        {"until": 9, "set": {"loss.entropy_weight": 0, "optimizer.warmup": 100}},
    ],
}
FIRST = ((2, 3, 16, 16), 0.25, ("grouped", 0.01, 1e-5), (1e-3, 1e-3, (0.5, 0.9)))
SECOND = ((3, 3, 24, 24), 0.5, ("pooled", 0.02, 0), (0.01, 0.01, (0.9, 0.99)))


def third(step: int) -> tuple[Any, ...]:
    rate = 1e-3 * step / 100  # the schedule counts the steps of the whole run
    return ((2, 3, 16, 16), 0.25, (None, 0.01, 1e-5), (rate, rate, (0.5, 0.9)))


def test_phases_change_what_they_say_when_they_say(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_step", spy := Spy())
    config = recipe({**PHASES, "run.steps": 7})
    whole = train(config, tmp_path / "whole")
    expected = [FIRST] * 2 + [SECOND] * 3 + [third(6), third(7)]
    assert spy.seen == [(step, *what) for step, what in enumerate(expected, 1)]
    assert whole.state.samples == 2 * 2 + 3 * 3 + 2 * 2

    # And when it is resumed in the middle of a phase, and at an end of one.
    for stop in (3, 5):
        folder = tmp_path / f"from {stop}"
        assert not Run(config, folder, interrupt_at(stop)).train()
        spy.seen.clear()
        resumed = train(config, folder, resume=True)
        assert spy.seen == [(step, *what) for step, what in enumerate(expected, 1)][stop:]
        assert_same(resumed, whole)


def test_a_phase_reaches_the_log(recipe: Recipe, tmp_path: Path) -> None:
    watcher = Watcher()
    train(recipe({**PHASES, "run.steps": 7, "run.log_every": 100}), tmp_path, watcher)
    assert [record["step"] for record in watcher.records] == [2, 5, 7], "a line at each end"
    assert "token_entropy" in watcher.records[1] and "token_entropy" not in watcher.records[2]


def test_lpips_in_a_phase(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    save_file(LPIPS("alex").state_dict(), tmp_path / "alex.safetensors")
    changes = {
        "loss.perceptual": "alex",
        "loss.perceptual_weights": str(tmp_path / "alex.safetensors"),
        "data.crop": 32,
        "phases": [
            {"until": 2},
            {"until": 6, "set": {"loss.perceptual_weight": 0.5, "loss.perceptual_every": 2}},
        ],
    }
    watcher = Watcher()
    train(recipe(changes), tmp_path / "run", watcher)
    told = {record["step"]: "lpips" in record for record in watcher.records}
    assert told == {1: False, 2: False, 3: True, 4: False, 5: True, 6: False}
    # Lines over several steps tell it though it has its turn in every second step only.
    train(recipe({**changes, "run.log_every": 2}), tmp_path / "other", watcher := Watcher())
    assert ["lpips" in record for record in watcher.records] == [False, True, True]

    with pytest.raises(WetokError, match="data.crop=16: LPIPS alex needs at least 31"):
        Run(recipe({**changes, "data.crop": 16}), tmp_path / "small", Watcher())
    monkeypatch.setenv("WETOK_CACHE", str(tmp_path / "empty"))
    absent = {**changes, "loss.perceptual_weights": None, "loss.perceptual": "vgg"}
    with pytest.raises(WetokError, match="lpips-vgg is not on this machine"):
        Run(recipe(absent), tmp_path / "none", Watcher())
    unused = [{"until": 6}, {"until": 9, "set": {"loss.perceptual_weight": 1}}]
    Run(recipe({"phases": unused}), tmp_path / "unused", Watcher())  # a phase beyond the end


def test_unreadable_images_are_skipped_and_told(
    recipe: Recipe, pictures: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "2.png").write_bytes(b"")
    (data / "5.png").write_bytes((pictures / "5.png").read_bytes()[:90])
    watcher = Watcher()
    train(recipe({"data.train": str(data), "run.steps": 20}), tmp_path / "run", watcher)
    skipped = [event for event in watcher.events if event.startswith("skipped: ")]
    assert len(skipped) == 2, "each once, however often its turn comes"
    assert any("2.png" in event for event in skipped) and any("5.png" in e for e in skipped)
    logged = [record for record in lines(tmp_path / "run") if "skipped_image" in record]
    assert {"skipped: " + record["skipped_image"] for record in logged} == set(skipped)
    assert logged[0]["step"] < 20, "told when it happens, not at the end"


def test_an_unreadable_validation_image_is_an_error(
    recipe: Recipe, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "val")
    (tmp_path / "val" / "2.png").write_bytes(b"")
    with pytest.raises(WetokError, match="2.png"):
        Run(recipe({"data.val": str(tmp_path / "val")}), tmp_path / "run", Watcher())


def test_resume_needs_a_run_and_a_run_needs_resume(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(WetokError, match="holds no run to --resume"):
        Run(recipe(), tmp_path, Watcher(), resume=True)
    train(recipe(), tmp_path)
    with pytest.raises(WetokError, match=r"holds a run \(step-00000006\): .*--resume"):
        Run(recipe(), tmp_path, Watcher())


def test_another_recipes_run_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe(), tmp_path)
    other = recipe({"model.bits": 12, "model.blocks": 2})
    with pytest.raises(WetokError, match="bits=8 there, 12 here, blocks=1 there, 2 here"):
        Run(other, tmp_path, Watcher(), resume=True)
    for text in ("", "{}", "[]", '{"model": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(WetokError, match="not a checkpoint of this run"):
            Run(other, tmp_path, Watcher(), resume=True)


def test_a_damaged_checkpoint_names_the_way_out(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe({"run.checkpoint_every": 2})
    whole = train(config, tmp_path)
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    (newest / "state.pt").write_bytes(b"gone")
    with pytest.raises(WetokError, match="delete the folder to resume from the one before"):
        Run(config, tmp_path, Watcher(), resume=True)
    shutil.rmtree(newest)
    run = Run(config, tmp_path, Watcher(), resume=True)
    assert run.state.step == 4
    run.train()
    assert_same(run, whole)


def test_nan_in_a_row_ends_the_run_and_leaves_the_last_checkpoint(
    recipe: Recipe, tmp_path: Path
) -> None:
    changes = {"run.checkpoint_every": 2, "run.steps": 9, "run.max_skipped": 3}
    run = Run(recipe(changes), tmp_path, watcher := Watcher())
    weight = run.state.network.decoder.conv_out.weight
    watcher.at[3] = lambda: weight.data.fill_(float("nan"))
    with pytest.raises(WetokError, match="^l1 is NaN or infinite at step 5, .* last 3 steps"):
        run.train()
    (path,) = checkpoints(tmp_path / "checkpoints")
    assert path.name == "step-00000002"
    told = [event for event in watcher.events if "not taken" in event]
    assert len(told) == 2 and told[0].startswith("step 4 not taken: l1 is NaN or infinite (1 so")
    assert [line["step"] for line in lines(tmp_path) if line.get("not_taken") == "l1"] == [4, 5]
    assert train(recipe(), tmp_path, resume=True).state.step == 6


def test_a_run_goes_on_after_a_broken_step(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil_one(state: Any, objective: Any, config: TrainConfig, parts: Any) -> Any:
        if state.step == 2:
            parts = [Batch(part.image * float("nan")) for part in parts]
        return train_step(state, objective, config, parts)

    monkeypatch.setattr(loop, "train_step", spoil_one)
    run = train(recipe({"gan": {"width": 8, "depth": 1}}), tmp_path, watcher := Watcher())
    assert run.state.step == 6 and run.state.skipped == 1 and run.state.skipped_in_a_row == 0
    assert [record["skipped"] for record in watcher.records] == [0, 0, 1, 1, 1, 1]
    assert [record["loss"] is None for record in watcher.records] == [n == 2 for n in range(6)]
    assert all(tensor.isfinite().all() for tensor in everything(run).values())


def test_a_run_may_start_from_a_model(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe()
    torch.manual_seed(77)
    start = TokenizerNetwork(config.model)
    checkpoint.save_folder(tmp_path / "start", start, "start")
    config = recipe({"run.init": str(tmp_path / "start"), "run.seed": 5})
    run = Run(config, tmp_path / "run", interrupt_at(2))
    expected = dict(start.named_parameters())
    for name, parameter in run.state.network.named_parameters():
        assert torch.equal(parameter, expected[name])
        assert torch.equal(run.state.ema.average[name], expected[name])
    assert run.state.network.training
    assert all(parameter.requires_grad for parameter in run.state.network.parameters())
    run.train()
    moved = run.state.network.decoder.conv_out.weight
    assert not torch.equal(moved, start.decoder.conv_out.weight)

    shutil.rmtree(tmp_path / "start")  # a resumed run does not need it
    assert train(config, tmp_path / "run", resume=True).state.step == 6
    with pytest.raises(WetokError, match="no model"):
        Run(config, tmp_path / "other", Watcher())


def test_a_start_of_another_shape_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    other = TokenizerNetwork(recipe({"model.groups": 4}).model)
    checkpoint.save_folder(tmp_path / "start", other, "start")
    with pytest.raises(WetokError, match="run.init=.*groups=4 there, 2 here"):
        Run(recipe({"run.init": str(tmp_path / "start")}), tmp_path / "run", Watcher())


def test_the_seed_decides(recipe: Recipe, tmp_path: Path) -> None:
    one, two, other = (
        train(recipe({"run.seed": seed, "run.steps": 2}), tmp_path / name)
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert_same(one, two)
    mine, theirs = everything(one), everything(other)
    assert not torch.equal(
        mine["state.network.encoder.conv_in.weight"], theirs["state.network.encoder.conv_in.weight"]
    )


def test_workers_do_not_change_a_run(recipe: Recipe, tmp_path: Path) -> None:
    plain = train(recipe({"run.steps": 4}), tmp_path / "plain")
    threads = train(recipe({"run.steps": 4, "data.workers": 3}), tmp_path / "threads")
    assert_same(plain, threads)


def test_wrong_devices() -> None:
    for name in ("cuda:99", "tpu9", "nothing"):
        with pytest.raises(WetokError, match=f"run.device='{name}' can't be used") as caught:
            choose_device(name)
        assert "\n" not in str(caught.value)
    assert choose_device("cpu") == torch.device("cpu")
    assert isinstance(choose_device("auto"), torch.device)


def test_a_folder_of_broken_images_only(recipe: Recipe, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 2)
    for path in (tmp_path / "data").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(WetokError, match="none of the 2 training images can be decoded"):
        Run(recipe({"data.train": str(tmp_path / "data")}), tmp_path / "run", Watcher())


def test_the_folder_here(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--out .` has a name too."""
    (tmp_path / "named").mkdir()
    monkeypatch.chdir(tmp_path / "named")
    train(recipe({"run.steps": 1}), Path("."))
    assert wetok.load(Path("model")).name == "named"
