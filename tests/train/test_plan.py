"""What `wetok train --dry-run` tells: counts by hand, phases, data, and the table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny import Recipe, build
from wetok.config import TrainConfig, WetokError, validate
from wetok.data.opening import open_source
from wetok.presets import preset
from wetok.train.memory import step_memory
from wetok.train.plan import lines, plan, size_text, table

PHASES: list[dict[str, Any]] = [
    {"until": 4},
    {"until": 7, "set": {"data.batch": 4}},
    {"until": 20, "set": {"data.batch": 4, "data.crop": 32, "gan.start": 8}},
]


def test_parameters_of_a_published_model() -> None:
    tree = {
        "model": preset("open-magvit2-f16").model_dump(),
        "data": {"train": "nowhere", "batch": 8, "crop": 64},
        "gan": {"start": 5},
        "run": {"steps": 10, "freeze": "encoder", "precision": "bf16", "device": "cuda:3"},
    }
    told = plan(validate(TrainConfig, tree), processes=2)
    # The first two from the paper's code, PatchGAN and VGG's layers by hand.
    patch = (3 * 64 * 16 + 64) + 16 * (64 * 128 + 128 * 256 + 256 * 512) + 2 * 896 + 512 * 16 + 1
    assert told.parameters == {
        "encoder": 49_751_442,
        "decoder": 65_376_387,
        "discriminator": patch,
        "lpips": 14_714_688 + 64 + 128 + 256 + 512 + 512,
    }
    assert told.trained == 65_376_387 + patch
    assert told.memory.averages == 4 * 65_376_387
    assert (told.device, told.processes, told.precision) == ("cuda:3", 2, "bf16")
    assert (told.images, told.epochs, told.adversarial) == (None, None, 5)


def test_it_counts_what_a_run_has(recipe: Recipe) -> None:
    config = recipe({"gan.depth": 1, "run.freeze": "decoder"})
    state, _ = build(config)
    told = plan(config)
    assert state.adversary is not None and state.judge_optimizer is not None
    optimizers = (state.optimizer, state.judge_optimizer)
    trained = [p for o in optimizers for p in o.param_groups[0]["params"] if p.requires_grad]
    assert told.trained == sum(p.numel() for p in trained)
    assert sum(told.parameters.values()) == sum(
        p.numel() for m in (state.network, state.adversary) for p in m.parameters()
    )
    assert told.memory.averages == sum(4 * a.numel() for a in state.ema.average.values())


def test_phases_and_data(recipe: Recipe, pictures: Path) -> None:
    config = recipe({"run.steps": 18, "phases": PHASES, "gan.depth": 1, "gan.start": 8})
    told = plan(config, open_source(str(pictures)))
    assert [tuple(stretch) for stretch in told.stretches] == [
        (0, 4, 2, 16),
        (4, 7, 4, 16),
        (7, 18, 4, 32),
    ]
    assert told.steps == 18 and told.samples == 4 * 2 + 3 * 4 + 11 * 4
    assert told.images == 8 and told.epochs == told.samples / 8
    assert told.adversarial == 8
    # The last stretch is the fullest: as a run of its own, judged from the start.
    last = recipe({"data.batch": 4, "data.crop": 32, "gan.depth": 1})
    assert told.memory == step_memory(last)
    text = "\n".join(lines(told))
    assert "0 to 4: 2 crops of 16 x 16 a step" in text
    assert "adversarial from step 8 on" in text
    assert "8 images found; each is seen 8 times" in text


def test_terms_that_have_their_turn_late(recipe: Recipe) -> None:
    """A discriminator that only ever trains costs less than one that judges, more than none."""
    sizes = [
        plan(recipe({"gan": {"start": start, "depth": 1}, "data.crop": 64})).memory.total
        for start in (0, 5, 6, 100)
    ]
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3]
    warming = recipe({"gan": {"start": 100, "warmup": 95, "depth": 1}, "data.crop": 64})
    assert sizes[2] <= plan(warming).memory.total <= sizes[0]
    every = {"loss.perceptual_weight": 1, "data.crop": 32}
    often, rare = (plan(recipe({**every, "loss.perceptual_every": n})) for n in (1, 100))
    assert often.memory == rare.memory


def test_a_batch_that_can_not_be_shared_out(recipe: Recipe) -> None:
    with pytest.raises(WetokError, match=r"^data.batch=2 can't be shared out to 3 processes"):
        plan(recipe(), processes=3)


def test_the_table_names_everything(recipe: Recipe) -> None:
    told = plan(recipe({"loss.perceptual_weight": 1, "data.batch": 8}), processes=2)
    assert [name for name, _ in table(told) if name] == ["parameters", "memory", "steps"]
    text = " ".join(value for _, value in table(told))
    for name in told.parameters:
        assert re.search(rf"\b{name} [\d,.]+", text)
    parts = {k: v for k, v in told.memory._asdict().items() if v > 0.01 * told.memory.total}
    for name, size in parts.items():
        assert f"{name} {size_text(size)}" in text
    assert f"about {size_text(told.memory.total)} (each of 2 processes, cpu, fp32)" in text
    assert "6 with 48 crops in all 8 crops of 16 x 16 a step" in text
    assert "0 to 6" not in text, "a run without phases has none to tell"
    shown = zip(lines(told), table(told), strict=True)
    assert {line.index(value) for line, (_, value) in shown} == {len("parameters") + 2}


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0.0 MB"),
        (9_940_000, "9.9 MB"),
        (347_000_000, "347 MB"),
        (999_400_000, "999 MB"),
        (999_600_000, "1.0 GB"),
        (1_196_699_000_000, "1,197 GB"),
    ],
)
def test_sizes_read_well(size: int, text: str) -> None:
    assert size_text(size) == text
