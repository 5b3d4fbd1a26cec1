"""Two processes with half the batch each against one with all of it: gradients and whole runs."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
import signal
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wetok
from tests.train.test_run import Watcher
from tests.train.tiny import tiny_config, write_pictures
from tests.two_processes import run_jobs
from wetok.config import TrainConfig, WetokError
from wetok.distributed import all_reduce_mean
from wetok.losses.objective import ReconstructionObjective
from wetok.model.network import TokenizerNetwork
from wetok.model.quantizer import GroupedQuantizer
from wetok.train import course, loop
from wetok.train.adversary import Adversary
from wetok.train.loop import Run
from wetok.train.noise import training_noise
from wetok.train.processes import Processes
from wetok.train.sharding import everywhere
from wetok.train.state import TrainState, checkpoints
from wetok.train.step import Batch, train_step

# Gradients.

GAN = {"width": 8, "depth": 1, "lecam_decay": 0.7, "lecam_weight": 0.5, "weight": 0.5}
GRADIENTS: dict[str, dict[str, Any]] = {
    "patch, adaptive, pooled, clipped": {
        **{"gan": {**GAN, "adaptive": True}, "loss.entropy": "pooled"},
        **{"optimizer.clip": 0.3, "gan.optimizer.clip": 0.05},
    },
    "patch, vanilla, grouped, late": {
        "gan": {**GAN, "loss": "vanilla", "start": 1, "ramp": 2, "warmup": 1},
        "loss.entropy": "grouped",
    },
    "patch, adaptive, two parts": {"gan": {**GAN, "adaptive": True}, "run.accumulate": 2},
    "blur, non-saturating, two parts": {
        "gan": {**GAN, "discriminator": "blur", "loss": "non_saturating"},
        **{"run.accumulate": 2, "optimizer.clip": 0.3},
    },
    "generative, frozen encoder": {
        **{"gan": GAN, "model.generative": True, "run.freeze": "encoder"},
    },
    "recomputed": {"gan": GAN, "run.activation_checkpointing": True},
}
SHARDED = [name for name in GRADIENTS if "adaptive" not in name]
FLOAT32 = ("patch, vanilla, grouped, late", "blur, non-saturating, two parts")
STEPS = 3


def settings(pictures: Path, name: str, **changes: Any) -> TrainConfig:
    return tiny_config(pictures, {"loss.temperature": 1.0, **GRADIENTS[name], **changes})


def prepared(
    config: TrainConfig, dtype: torch.dtype, folder: Path | None = None
) -> tuple[TrainState, ReconstructionObjective]:
    """A state on the processes there are (alone where `folder` is None)."""
    torch.manual_seed(0)
    quantizer = GroupedQuantizer(8, 2, entropy=config.loss.entropy, temperature=1.0)
    network = TokenizerNetwork(config.model, quantizer).train().to(dtype)
    network.recompute(config.run.activation_checkpointing)
    assert config.gan is not None
    adversary = Adversary(config.gan, config.run.accumulate).train().to(dtype)
    with torch.no_grad():  # a fresh PatchGAN thinks too little of anything to show a mistake
        for parameter in adversary.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    processes = Processes(config.run, folder) if folder else None
    return TrainState(network, config, adversary, processes), ReconstructionObjective(
        config.loss, None
    )


def whole_batch(config: TrainConfig, step: int, dtype: torch.dtype) -> list[Batch]:
    parts = []
    for part in range(config.run.accumulate):
        number = 10 * step + part
        generator = torch.Generator().manual_seed(number)
        image = (torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1).to(dtype)
        noise = None
        if config.model.generative:
            numbers = range(4 * number, 4 * number + 4)
            noise = training_noise(0, numbers, (8, 4, 4), image).to(dtype)
        parts.append(Batch(image, noise))
    return parts


def taken(state: TrainState, result: Any) -> dict[str, Any]:
    """What a step leaves behind, whole tensors all of it."""
    assert state.adversary is not None
    return {
        "terms": {name: all_reduce_mean(term) for name, term in result.terms.items()},
        "broken": result.broken,
        **{
            f"{part} {what}": {name: everywhere(value).clone() for name, value in values}
            for part, module in (("network", state.network), ("adversary", state.adversary))
            for what, values in (
                ("gradients", _gradients(module)),
                ("weights", [(n, p.detach()) for n, p in module.named_parameters()]),
                ("buffers", list(module.named_buffers())),
            )
        },
    }


def _gradients(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, p.grad) for n, p in module.named_parameters() if p.grad is not None]


def gradient_job(
    rank: int, pictures: str, folder: str, name: str, dtype: torch.dtype, sharded: bool
) -> list[dict[str, Any]]:
    config = settings(Path(pictures), name, **{"run.sharded": sharded})
    state, objective = prepared(config, dtype, Path(folder))
    steps = []
    for step in range(STEPS):
        parts = [
            Batch(image[rank::2], None if noise is None else noise[rank::2])
            for image, noise in whole_batch(config, step, dtype)
        ]
        steps.append(taken(state, train_step(state, objective, config, parts)))
    return steps


def nan_job(rank: int, pictures: str, folder: str) -> list[dict[str, Any]]:
    """The second rank's pictures of the second step are not numbers."""
    config = settings(Path(pictures), NAN)
    state, objective = prepared(config, torch.float64, Path(folder))
    steps = []
    for step in range(STEPS):
        ((image, _),) = whole_batch(config, step, torch.float64)
        image = image[rank::2]
        if rank and step == 1:
            image = image * math.nan
        steps.append(taken(state, train_step(state, objective, config, [Batch(image)])))
    assert (state.skipped, state.skipped_in_a_row) == (1, 0)
    return steps


NAN = "patch, adaptive, pooled, clipped"

# Whole runs.

RUN = {
    **{"gan": {"width": 8, "depth": 1}, "data.batch": 4, "run.steps": 4, "loss.temperature": 1.0},
    **{"run.validate_every": 2, "run.checkpoint_every": 2, "run.keep": 9},
}


def run_job(
    rank: int, pictures: str, folder: str, changes: dict[str, Any], resume: bool = False
) -> dict[str, Any]:
    config = tiny_config(Path(pictures), {**RUN, **changes})
    run = Run(config, Path(folder), watcher := Watcher(), resume=resume)
    finished = run.train()
    return {"finished": finished, "step": run.state.step, "events": watcher.events}


def noise_job(rank: int, pictures: str, folder: str, changes: dict[str, Any]) -> list[list[Tensor]]:
    """Image and noise of every sample that this rank saw."""
    seen: list[list[Tensor]] = []

    def spy(state: Any, objective: Any, config: TrainConfig, parts: list[Batch]) -> Any:
        for image, noise in parts:
            assert noise is not None
            seen.extend([*map(list, zip(image, noise, strict=True))])
        return train_step(state, objective, config, parts)

    _with_step(spy, lambda: run_job(rank, pictures, folder, changes))
    return seen


def signal_job(rank: int, pictures: str, folder: str, receiver: int) -> dict[str, Any]:
    def spy(state: Any, *arguments: Any) -> Any:
        if rank == receiver and state.step == 1:
            signal.raise_signal(signal.SIGTERM)
        return train_step(state, *arguments)

    return _with_step(spy, lambda: run_job(rank, pictures, folder, {}))


def _with_step(step: Any, job: Any) -> Any:
    loop.train_step = step
    try:
        return job()
    finally:
        loop.train_step = train_step


def full_disk_job(rank: int, pictures: str, folder: str, what: str) -> str:
    """The error of a run whose first rank can't write its second checkpoint, or the log."""
    patch = pytest.MonkeyPatch()

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if rank == 0 and what == "checkpoint":
        save, written = torch.save, []

        def once(*arguments: Any) -> None:
            written.append(1)
            (save if len(written) == 1 else full)(*arguments)

        patch.setattr(torch, "save", once)
    if rank == 0 and what == "log":
        log, lines = course.RunLog.append, []

        def some(self: Any, record: dict[str, Any]) -> None:
            lines.append(1)
            if len(lines) == 3:
                self.path.unlink()
                self.path.symlink_to("/dev/full")
            log(self, record)

        patch.setattr(course.RunLog, "append", some)
    try:
        run_job(rank, pictures, folder, {})
    except WetokError as error:
        return str(error)
    finally:
        patch.undo()
    return "no error"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to train and validate on, and what one process makes of them, whole and in part."""
    place = tmp_path_factory.mktemp("two processes")
    write_pictures(place / "pictures", 8)
    write_pictures(place / "val", 3, seed=1)
    val = {"data.val": str(place / "val")}
    run_job(0, str(place / "pictures"), str(place / "one"), val)
    run_job(0, str(place / "pictures"), str(place / "start"), {**val, "run.steps": 2})
    return place


GRADIENT_CASES = [
    (name, dtype, sharded)
    for sharded in (False, True)
    for name in (SHARDED if sharded else GRADIENTS)
    for dtype in (torch.float64, torch.float32)[: 2 if name in FLOAT32 else 1]
]


@pytest.fixture(scope="module")
def both(place: Path) -> dict[Any, tuple[Any, Any]]:
    """What both ranks made of each job, by its name."""
    pictures, val = str(place / "pictures"), {"data.val": str(place / "val")}
    sharded = {**val, "run.sharded": True}
    short = {"run.steps": 2}
    for name in ("one, then two", "one, then sharded"):
        shutil.copytree(place / "start", place / name)
    jobs: dict[Any, tuple[Any, ...]] = {
        case: (gradient_job, pictures, str(place / "unused"), *case) for case in GRADIENT_CASES
    }
    jobs["nan"] = nan_job, pictures, str(place / "unused")
    for name, changes, resume in (
        ("two", val, False),
        ("sharded", sharded, False),
        ("two, then one", {**val, **short}, False),
        ("sharded, then one", {**sharded, **short}, False),
        ("one, then two", val, True),
        ("one, then sharded", sharded, True),
        ("sharded, channels last", {**sharded, **short, "run.channels_last": True}, False),
    ):
        jobs[name] = run_job, pictures, str(place / name), changes, resume
    jobs["noise"] = noise_job, pictures, str(place / "noise"), GENERATIVE
    for rank in range(2):
        jobs[f"signal {rank}"] = signal_job, pictures, str(place / f"signal {rank}"), rank
    for what in ("checkpoint", "log"):
        jobs[f"full {what}"] = full_disk_job, pictures, str(place / f"full {what}"), what
    return dict(zip(jobs, run_jobs(place, list(jobs.values())), strict=True))


GENERATIVE = {"model.generative": True, "run.seed": 3}


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}")
def test_gradients_are_those_of_one_process(
    place: Path, both: dict[Any, Any], case: tuple[str, torch.dtype, bool]
) -> None:
    """Of both networks, in each of three steps from the same weights; and all that they leave."""
    name, dtype, _ = case
    config = settings(place / "pictures", name)
    state, objective = prepared(config, dtype)
    assert state.adversary is not None
    # The adaptive weight is float32 at all times; and a network of one channel a norm's group
    # rounds more than others.
    limit = 1e-6 if dtype == torch.float64 else 3e-5
    for step, (mine, other) in enumerate(zip(*both[case], strict=True)):
        parts = whole_batch(config, step, dtype)
        expected = taken(state, train_step(state, objective, config, parts))
        for what in mine.keys() - {"terms", "broken"}:
            assert all(torch.equal(mine[what][key], other[what][key]) for key in mine[what]), what
        assert mine["broken"] is None and expected["broken"] is None
        told = {key: float(value) for key, value in mine["terms"].items()}
        assert told == {
            key: pytest.approx(float(value), rel=1e-5, abs=1e-6)
            for key, value in expected["terms"].items()
        }
        for what in ("network gradients", "adversary gradients"):
            assert mine[what].keys() == expected[what].keys()
            if not mine[what]:
                assert what == "adversary gradients" and "late" in name
                continue
            errors = [mine[what][key] - value for key, value in expected[what].items()]
            assert length(errors) <= limit * length(expected[what].values()), what
        for what in ("network", "adversary"):
            if dtype == torch.float64:
                for kind in (f"{what} weights", f"{what} buffers"):
                    for key, value in expected[kind].items():
                        torch.testing.assert_close(mine[kind][key], value, rtol=1e-6, atol=1e-8)
            getattr(state, what).load_state_dict(mine[f"{what} weights"] | mine[f"{what} buffers"])
    assert state.adversary.lecam.real != 0


def length(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def test_halves_alone_would_differ(place: Path) -> None:
    """The gradient of half a batch is another one: the test above tests something."""
    config = settings(place / "pictures", NAN)
    found = []
    for rows in (slice(None), slice(0, None, 2)):
        state, objective = prepared(config, torch.float64)
        ((image, _),) = whole_batch(config, 0, torch.float64)
        train_step(state, objective, config, [Batch(image[rows])])
        found.append(state.network.decoder.conv_out.weight.grad)
    assert (found[0] - found[1]).norm() > 0.1 * found[0].norm()


def test_nan_on_one_rank_skips_the_step_on_both(both: dict[Any, Any]) -> None:
    for steps in both["nan"]:
        first, broken, third = steps
        assert (first["broken"], third["broken"]) == (None, None)
        assert broken["broken"] == "commitment", "the first that the latent reaches"
        for part in ("network", "adversary"):
            for kind in (f"{part} weights", f"{part} buffers"):
                for key, value in broken[kind].items():
                    assert torch.equal(value, first[kind][key]), key
                    assert value.isfinite().all()
            moved = f"{part} weights"
            assert not all(torch.equal(third[moved][k], v) for k, v in first[moved].items())


TIMES = {"seconds", "images_per_second", "data_wait", "memory_mb"}


USAGE = {"usage", "usage_steps", "dead_bits"}
"""These look back on the steps since a resume, until they are a hundred."""


def log_of(folder: Path, without: AbstractSet[str] = frozenset()) -> list[dict[str, Any]]:
    """Lines of the log without what a clock or a scale told."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES | without} for line in lines]


def assert_near(mine: Any, expected: Any) -> None:
    """Tensors to 1e-5; logged numbers, of six digits and summed by any threads, to 1e-4."""
    if isinstance(expected, dict):
        assert mine.keys() == expected.keys()
        for key, value in expected.items():
            assert_near(mine[key], value)
    elif isinstance(expected, list):
        assert len(mine) == len(expected)
        for one, other in zip(mine, expected, strict=True):
            assert_near(one, other)
    elif isinstance(expected, Tensor):
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
    elif isinstance(expected, float):
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-5)
    else:
        assert mine == expected


def assert_same_state(mine: Path, other: Path, step: int) -> None:
    """Two runs' checkpoints hold the same numbers, to 1e-5.

    A few weights have no gradient but rounding, as the next norm takes away what they do: Adam
    makes steps of it, and of them only the moments are compared.
    """
    file = Path("checkpoints") / f"step-{step:08d}" / "state.pt"
    one, two = (torch.load(folder / file, weights_only=True) for folder in (mine, other))
    assert one.keys() == two.keys()
    squares = two["optimizer"]["state"]
    names = [name for name in two["network"] if name in two["ema"]["average"]]
    sizes = {name: float(squares[i]["exp_avg_sq"].max()) ** 0.5 for i, name in enumerate(names)}
    idle = {name for name, size in sizes.items() if size < 1e-5 * max(sizes.values())}
    assert len(idle) <= 4 and len(sizes) > 40
    for tree in (one, two):
        del tree["seconds"], tree["rng"]
        for name in idle:
            del tree["network"][name], tree["ema"]["average"][name]
    assert_near(one, two)


@pytest.mark.parametrize("name", ["two", "sharded", "one, then two", "one, then sharded"])
def test_a_run_is_that_of_one_process(place: Path, both: dict[Any, Any], name: str) -> None:
    """Losses, usage, scores; checkpoint and model at the end, and the pictures."""
    assert [result["finished"] for result in both[name]] == [True, True]
    assert both[name][1]["events"] == [], "the first one speaks for both"
    without = USAGE if "then" in name else set()
    assert_near(log_of(place / name, without), log_of(place / "one", without))
    assert_same_state(place / name, place / "one", 4)
    own, theirs = (wetok.load(place / folder / "model") for folder in (name, "one"))
    assert own.config == theirs.config
    picture = place / "val" / "0.png"
    pixels = (
        tok.decode(tok.encode(picture), output="float", precision="float32")[0]
        for tok in (own, theirs)
    )
    torch.testing.assert_close(*pixels, rtol=0, atol=1e-5)
    assert (place / name / "samples" / "step-00000004.png").is_file()


def test_a_sharded_run_takes_images_channels_last(both: dict[Any, Any]) -> None:
    """FSDP refuses weights of that format, so that these must keep their own."""
    assert [result["finished"] for result in both["sharded, channels last"]] == [True, True]


@pytest.mark.parametrize("name", ["two, then one", "sharded, then one"])
def test_a_run_of_two_goes_on_as_one(place: Path, both: dict[Any, Any], name: str) -> None:
    assert both[name][0]["step"] == 2
    assert_same_state(place / name, place / "start", 2)
    changes = {"data.val": str(place / "val")}
    run_job(0, str(place / "pictures"), str(place / name), changes, resume=True)
    assert_near(log_of(place / name, USAGE), log_of(place / "one", USAGE))
    assert_same_state(place / name, place / "one", 4)


def test_noise_does_not_depend_on_the_processes(place: Path, both: dict[Any, Any]) -> None:
    changes = {**GENERATIVE, "run.accumulate": 2}
    alone = noise_job(0, str(place / "pictures"), str(place / "noise alone"), changes)
    noise = {image.numpy().tobytes(): noise for image, noise in alone}
    one, other = both["noise"]
    assert len(alone) == len(noise) == len(one) + len(other) == 16
    for image, own in [*one, *other]:
        assert torch.equal(own, noise[image.numpy().tobytes()])


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_signal_to_one_stops_both_after_the_same_step(
    place: Path, both: dict[Any, Any], receiver: int
) -> None:
    folder = place / f"signal {receiver}"
    for result in both[f"signal {receiver}"]:
        assert (result["finished"], result["step"]) == (False, 2)
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step-00000002"]
    changes: dict[str, Any] = {}
    run_job(0, str(place / "pictures"), str(folder), changes, resume=True)
    assert log_of(folder)[-1]["step"] == 4


@pytest.mark.parametrize(
    ("what", "told"), [("checkpoint", r"step-00000004: .*make room"), ("log", r"log\.jsonl: .*")]
)
def test_an_error_of_one_rank_ends_both(
    place: Path, both: dict[Any, Any], what: str, told: str
) -> None:
    first, second = both[f"full {what}"]
    assert second == "another process of the run ended: see what it says"
    assert re.search(told, first) and "\n" not in first
    (left,) = checkpoints(place / f"full {what}" / "checkpoints")
    assert left.name == "step-00000002"
