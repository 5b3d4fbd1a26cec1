"""Generators' runs killed at any moment and resumed end as if nothing had been.

WETOK_KILLS=20 kills so many times instead of twice, and `python -m wetok` itself instead of forks.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.generate import shards
from tests.train.launch import wait_until
from tests.train.test_kill import KILLS, KIND, Real, numbers, reached, told
from tests.train.test_state import same
from wetok.config import ModelConfig
from wetok.generate.folder import load_generator
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer
from wetok.train.state import checkpoints

TIMES = KILLS or 2
STEPS = 12 * TIMES


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, and a recipe of each kind with all that a resume has to bring back."""
    place = tmp_path_factory.mktemp("killed")
    torch.manual_seed(0)
    shape = ModelConfig(bits=8, groups=2, channels=8, mults=(1, 1), blocks=1, patch=4)
    tokenizer = Tokenizer(TokenizerNetwork(shape).eval(), "small")
    tokenizer.save_pretrained(place / "small")
    for name, count in (("train", 20), ("val", 4)):
        shards.write(place / name, tokenizer, count, ["ant", "bee"], seed=count)
    for kind in ("autoregressive", "masked"):
        tree = {
            "generator": {"kind": kind, "width": 16, "depth": 2, "heads": 2, "dropout": 0.1},
            "tokens": {name: str(place / name) for name in ("train", "val")}
            | {"tokenizer": str(place / "small"), "batch": 6},
            "optimizer": {"lr": 3e-3, "schedule": "cosine", "warmup": 5, "clip": 1.0},
            "run": {"steps": STEPS, "ema": 0.9, "accumulate": 2, "log_every": 1, "device": "cpu"}
            | {"checkpoint_every": 3, "validate_every": 9, "sample_every": 6, "trackers": []},
        }
        (place / f"{kind}.yaml").write_text(yaml.safe_dump(tree))
    return place


def start(place: Path, kind: str, out: Path) -> Any:
    """Starts a run, anew or from where it is."""
    more = ["--resume"] if checkpoints(out / "checkpoints") else []
    words = [str(place / f"{kind}.yaml"), "-o", str(out), "-q", *more]
    return KIND(words, 1, out.with_suffix(".txt"))


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_a_generators_run_killed_at_any_moment(place: Path, kind: str) -> None:
    """SIGKILL as it starts, takes steps or writes; checkpoint, log and model agree to the bit."""
    whole, parts = place / f"{kind}-whole", place / f"{kind}-parts"
    run = start(place, kind, whole)
    assert run.wait() == [0], run.output()
    rng = random.Random(kind)
    far, moments = 0, []
    for _ in range(TIMES):
        run = start(place, kind, parts)
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, 6 if KIND is Real else 0.6))
        else:
            goal = min(far + rng.randint(1, 10), STEPS - 6)
            wait_until(goal, run, lambda: reached(parts))
            time.sleep(rng.uniform(0, 0.05))
        assert run.running(), f"over before it was killed: {run.output()}"
        run.kill()
        far = max(far, reached(parts))
        found = [path.name for path in checkpoints(parts / "checkpoints")]
        moments.append((reached(parts), found[-1] if found else None))
    run = start(place, kind, parts)
    assert run.wait() == [0], run.output()
    print(f"killed {TIMES} times; the log's last step and the newest checkpoint then: {moments}")

    assert far > 0 and told(parts) == told(whole)
    assert same(numbers(parts), numbers(whole))
    own, other = (load_generator(folder / "model")[0] for folder in (parts, whole))
    assert same(own.state_dict(), other.state_dict())
    assert [*parts.rglob(".wetok-*")] == [], "nothing half written is left"
    assert [*(parts / "samples").iterdir()]
    for picture in (whole / "samples").iterdir():
        assert picture.read_bytes() == (parts / "samples" / picture.name).read_bytes()
