"""The estimate of a step's memory, against steps that were taken and against sums by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.train.tiny import Recipe, build
from wetok.config import TrainConfig, WetokError, assign, validate
from wetok.presets import preset
from wetok.train.memory import Memory, step_memory
from wetok.train.step import Batch, train_step

# Wide enough for tensors to outweigh the small change of a step.
SMALL = {"model.channels": 32, "data.crop": 64, "data.batch": 4}
GAN = {"gan.width": 16, "gan.depth": 2}


def parts(config: TrainConfig) -> list[Batch]:
    data, count = config.data, config.run.accumulate
    return [
        Batch(torch.rand(data.batch // count, 3, data.crop, data.crop) * 2 - 1)
        for _ in range(count)
    ]


def allocated(config: TrainConfig) -> int:
    """Bytes of the fullest moment of a third real step, as torch's allocator reports them."""
    state, objective = build(config)
    state.network.recompute(config.run.activation_checkpointing)
    batches = parts(config)
    for _ in range(2):
        train_step(state, objective, config, batches)
    modules = [state.network, *([state.adversary] if state.adversary else [])]
    before = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    before += [p.grad for p in before if p.grad is not None]
    before += list(state.ema.average.values())
    for optimizer in (state.optimizer, state.judge_optimizer):
        for values in optimizer.state.values() if optimizer else ():
            before += [v for v in values.values() if isinstance(v, torch.Tensor)]
    before += [batch.image for batch in batches]
    # Frees are told of what was allocated before, so the count starts from that.
    held = sum(t.numel() * t.element_size() for t in before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        train_step(state, objective, config, batches)
    events = watched.profiler.kineto_results.events()  # type: ignore[union-attr]
    steps = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = most = 0
    for _, size in steps:
        now += size
        most = max(most, now)
    return held + most


@pytest.mark.parametrize(
    "changes",
    [
        {**GAN, "gan.adaptive": True, "run.precision": "bf16"},
        {"run.activation_checkpointing": True, "data.batch": 8},
        {**GAN, "run.accumulate": 4, "data.batch": 8},
        {"run.freeze": "encoder"},
        {"model.bits": 28, "model.groups": 2, "data.batch": 2},
    ],
    ids=str,
)
def test_what_a_real_step_allocates(recipe: Recipe, changes: dict[str, Any]) -> None:
    config = recipe({**SMALL, **changes})
    estimate = step_memory(config)
    found = allocated(config)
    assert estimate.total - estimate.allocator == pytest.approx(found, rel=0.1)


def test_nothing_but_shapes_is_needed(recipe: Recipe) -> None:
    """Networks that no machine here could hold, exactly; and no random number is used up."""
    tree: dict[str, Any] = {
        "model": preset("general-768x").model_dump(),
        "data": {"train": "nowhere", "batch": 256},
        "gan": {},
        "run": {"steps": 1, "precision": "bf16"},
    }
    random = torch.get_rng_state()
    memory = step_memory(validate(TrainConfig, tree), processes=32, device="cuda")
    assert torch.equal(torch.get_rng_state(), random)
    tokenizer, lpips = 720_160_544 + 953_518_339, 14_714_688 + 1472
    judge = 2_765_633
    assert memory.averages == 4 * tokenizer
    # The noise half of the decoder's first layer is counted in its parameters.
    assert memory.weights == pytest.approx(4 * (tokenizer + lpips + judge), rel=1e-5)
    assert memory.moments == pytest.approx(8 * (tokenizer + judge), rel=1e-5)
    assert memory.exchange == 4 * (tokenizer + judge)
    assert memory.total == sum(memory) and memory.allocator == 0


def test_batch_and_crop_scale_activations_alone(recipe: Recipe) -> None:
    one, two = (step_memory(recipe({**SMALL, "data.batch": batch})) for batch in (8, 16))
    assert two.activations == pytest.approx(2 * one.activations, rel=0.03)
    assert two[:3] == one[:3]
    large = step_memory(recipe({**SMALL, "data.batch": 4, "data.crop": 128}))
    assert large.activations == pytest.approx(two.activations, rel=0.03)
    shared = step_memory(recipe({**SMALL, "data.batch": 16}), processes=2)
    assert shared._replace(exchange=0) == one
    assert shared.exchange == one.averages, "a bucket for every gradient"


def test_sharding_cuts_what_is_kept(recipe: Recipe) -> None:
    changes = {**SMALL, "data.batch": 16, **GAN}
    whole = step_memory(recipe(changes), processes=4)
    cut = step_memory(recipe({**changes, "run.sharded": True}), processes=4)
    assert cut.averages == pytest.approx(whole.averages / 4, rel=1e-3)
    judge = whole.weights - whole.averages
    assert cut.weights == pytest.approx(judge + whole.averages / 4, rel=1e-3)
    assert cut.moments < whole.moments and cut.activations == whole.activations
    alone = step_memory(recipe({**SMALL, "run.sharded": True}))
    assert alone == step_memory(recipe(SMALL)), "nothing to cut in a single process"


def test_accelerators_keep_norms_in_float32(recipe: Recipe) -> None:
    bf16 = recipe({**SMALL, "run.precision": "bf16"})
    cpu, cuda = step_memory(bf16), step_memory(bf16, device="cuda:0")
    assert 1.2 < cuda.activations / cpu.activations < 2
    assert step_memory(recipe(SMALL), device="cuda").activations == pytest.approx(
        step_memory(recipe(SMALL)).activations
    )
    assert (cpu.allocator, cuda.allocator) == (cpu.activations // 3, 0)


def test_a_crop_too_small_is_told(recipe: Recipe) -> None:
    with pytest.raises(WetokError, match="^data.crop=16: the discriminator needs at least 24"):
        step_memory(recipe({"gan": {}}))


_MEASURE = """
import json, sys
from pathlib import Path
import torch
from tests.train.test_memory import parts
from tests.train.tiny import build
from wetok.config import TrainConfig
from wetok.train.step import train_step

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

small, config = (TrainConfig.model_validate(tree) for tree in json.loads(sys.argv[1]))
state, objective = build(small)
train_step(state, objective, small, parts(small))
del state
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
state, objective = build(config)
batches = parts(config)
for _ in range(3):
    train_step(state, objective, config, batches)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_process_really_takes(recipe: Recipe, repo: Path) -> None:
    """The shipped model's training step, by the system's count, within a quarter."""
    small = recipe({"run.precision": "bf16", "gan": {"width": 8, "depth": 1}})
    tree = small.model_dump()
    tree["model"] = preset("tiny-48x").model_dump()
    tree["gan"]["width"] = tree["gan"]["depth"] = None
    for key, value in {"data.crop": 64, "data.batch": 8}.items():
        assign(tree, key, value)
    trees = json.dumps([small.model_dump(mode="json"), tree])
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, trees],
        capture_output=True,
        text=True,
        cwd=repo,
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(repo)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    estimate = step_memory(validate(TrainConfig, tree))
    assert isinstance(estimate, Memory)
    assert estimate.total == pytest.approx(int(done.stdout), rel=0.25)
