"""Runs that are killed at any moment and resumed end as if nothing had been; so do full disks.

WETOK_KILLS=20 kills so many times instead of three, and `python -m wetok` or torchrun themselves
instead of forks.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import wetok
from tests.train.launch import Forked, Real, wait_until
from tests.train.test_state import same
from tests.train.tiny import tiny_tree, write_pictures
from wetok.train.state import checkpoints

KILLS = int(os.environ.get("WETOK_KILLS", 0))
STEPS = 12 * (KILLS or 3)
Kind = type[Forked] | type[Real]
KIND: Kind = Real if KILLS else Forked


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and a recipe with all that a resume has to bring back."""
    place = tmp_path_factory.mktemp("killed")
    changes = {
        "gan": {"width": 8, "depth": 1, "warmup": 4, "start": 9, "ramp": 9},
        "data.val": str(write_pictures(place / "val", 1, seed=1)),
        **{"data.batch": 4, "data.workers": 2, "run.accumulate": 2, "run.steps": STEPS},
        **{"run.checkpoint_every": 3, "run.validate_every": 9, "run.sample_every": 6},
        **{"optimizer.warmup": 5, "optimizer.schedule": "cosine", "optimizer.clip": 1.0},
    }
    tree = tiny_tree(write_pictures(place / "pictures", 8), changes)
    (place / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return place


def start(place: Path, out: str, world: int, *more: str, kind: Kind = KIND, **options: Any) -> Any:
    """Starts a run, anew or from where it is."""
    begun = bool(checkpoints(place / out / "checkpoints"))
    words = [str(place / "tiny.yaml"), *more, "-o", str(place / out), "-q"]
    return kind([*words, *(["--resume"] if begun else [])], world, place / f"{out}.txt", **options)


def lines(folder: Path) -> list[dict[str, Any]]:
    try:
        text = (folder / "log.jsonl").read_text()
    except FileNotFoundError:
        return []
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]


def reached(folder: Path) -> int:
    """The last step that the log tells of."""
    return max((line["step"] for line in lines(folder)), default=0)


# Usage looks back on the steps since the resume, until these are a hundred.
NOT_EXACT = {"seconds", "images_per_second", "data_wait", "memory_mb"}
NOT_EXACT |= {"usage", "usage_steps", "dead_bits"}


LOSSES = {"loss", "l1", "commitment", "generator", "discriminator", "lecam", "gradient_norm"}


def told(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in NOT_EXACT} for line in lines(folder)]


def numbers(folder: Path) -> dict[str, Any]:
    newest = checkpoints(folder / "checkpoints")[-1]
    tree: dict[str, Any] = torch.load(newest / "state.pt", weights_only=True)
    del tree["seconds"]
    return tree


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(place: Path, world: int) -> None:
    """SIGKILL, to all processes or to one; to the bit in one process, losses to 1e-5 in two."""
    whole, parts = place / f"whole {world}", place / f"parts {world}"
    run = start(place, whole.name, world)
    codes = run.wait()
    assert codes == [0] * len(codes), run.output()
    rng = random.Random(world)
    kills, far, moments = 0, 0, []
    while kills < (KILLS or 3):
        run = start(place, parts.name, world)
        if rng.random() < 0.25:  # at its start, wherever that is, or in the first steps
            time.sleep(rng.uniform(0, 6 if KIND is Real else 0.6))
        else:
            goal = min(far + rng.randint(1, 10), STEPS - 6)
            wait_until(goal, run, lambda: reached(parts))
            time.sleep(rng.uniform(0, 0.05))
        assert run.running(), f"over before it was killed: {run.output()}"
        run.kill(rng.choice([None, 0, 1]) if world > 1 else None)
        kills, far = kills + 1, max(far, reached(parts))
        found = [path.name for path in checkpoints(parts / "checkpoints")]
        moments.append((reached(parts), found[-1] if found else None))
    run = start(place, parts.name, world)
    codes = run.wait()
    assert codes == [0] * len(codes), run.output()
    print(f"killed {kills} times; the log's last step and the newest checkpoint then: {moments}")

    mine, theirs = told(parts), told(whole)
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    if world == 1:
        assert mine == theirs
        assert same(numbers(parts), numbers(whole))
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        assert [one[name] for name in LOSSES & one.keys()] == [
            pytest.approx(other[name], rel=1e-5) for name in LOSSES & one.keys()
        ]
    own, other = (wetok.load(folder / "model").model for folder in (parts, whole))
    for one, two in zip(own.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two) if world == 1 else torch.allclose(one, two, atol=1e-5)
    assert [*parts.rglob(".wetok-*")] == [], "nothing half written is left"
    assert {path.name for path in checkpoints(parts / "checkpoints")} == {
        path.name for path in checkpoints(whole / "checkpoints")
    }


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["terminated", "Ctrl-C"])
def test_a_signal_saves_and_says_how_to_go_on(place: Path, world: int, number: int) -> None:
    out = f"signal {number} {world}"
    run = start(place, out, world, "run.steps=100000", kind=Forked)
    wait_until(2, run, lambda: reached(place / out))
    run.send(number)  # to one of them
    assert run.wait() == [0] * world, run.output()
    saved = checkpoints(place / out / "checkpoints")[-1]
    step = reached(place / out)
    assert saved.name == f"step-{step:08d}" and step >= 2
    *_, stopped, again = run.output().splitlines()
    assert stopped == f"stopped and saved at step {step}; go on with:"
    launcher = "wetok" if world == 1 else f"torchrun --nproc-per-node {world} -m wetok"
    assert again.startswith(f"  {launcher} train ") and again.endswith(" --resume")
    if world > 1:
        assert run.output(1) == "", "one speaks for both"


SELDOM = [f"run.{what}_every=1000" for what in ("checkpoint", "sample", "validate")]
FULL: dict[str, tuple[int, list[str]]] = {
    "config.json": (1_000, []),
    "log.jsonl": (4_000, SELDOM),
    "run.trackers": (4_000, [*SELDOM, "run.trackers=[tensorboard]"]),
    "the first step-": (60_000, []),
    "a later step-": (60_000, []),
}


@pytest.mark.parametrize(
    ("world", "file"), [*((1, file) for file in FULL), (2, "log.jsonl"), (2, "a later step-")]
)
def test_a_full_disk_ends_in_one_line(place: Path, world: int, file: str) -> None:
    """Files that can't grow beyond so many bytes, as on a disk that is full then."""
    if file == "run.trackers":
        pytest.importorskip("tensorboard", reason="tensorboard is absent")
    out, (largest, changes) = f"full {file} {world}", FULL[file]
    if "later" in file:
        run = start(place, out, world, "run.steps=4", kind=Forked)
        assert run.wait() == [0] * world, run.output()
    before = {p: (p / "state.pt").read_bytes() for p in checkpoints(place / out / "checkpoints")}
    run = start(place, out, world, *changes, kind=Forked, largest=largest)
    assert run.wait() == [2] * world, run.output()
    *events, line = run.output().splitlines()
    assert line.startswith("wetok: ") and "can't be written" in line
    assert file.split()[-1] in line.split(": ")[1]
    assert not any(event.startswith(("Traceback", "wetok: ")) for event in events)
    if world > 1:
        assert run.output(1) == "wetok: another process of the run ended: see what it says\n"
    assert checkpoints(place / out / "checkpoints") == sorted(before)
    for checkpoint, content in before.items():
        assert (checkpoint / "state.pt").read_bytes() == content
    run = start(place, out, world, "run.steps=6", kind=Forked)
    assert run.wait() == [0] * world, run.output()
