"""A generator's run on two processes, whole weights or cut up, against one process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generate import shards
from tests.two_processes import run_jobs
from wetok.config import ModelConfig, validate
from wetok.data.tokens import TokenShards
from wetok.generate.folder import build, load_generator
from wetok.generate.masked import MaskedGenerator
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer
from wetok.train import generator as module
from wetok.train.generator import GeneratorRun
from wetok.train.generator_config import GeneratorShape, GeneratorTrainConfig
from wetok.train.generator_step import generator_step
from wetok.train.sharding import everywhere
from wetok.train.state import checkpoints
from wetok.train.token_data import Classes, TokenStream

STEPS = 4
KINDS = ("autoregressive", "masked")


class Silent:
    def step(self, record: dict[str, Any]) -> None:
        pass

    def event(self, text: str) -> None:
        pass


def hide(self: MaskedGenerator, ids: Tensor) -> Tensor:
    """Five ids of each group, from a place on that an id says: drawn masks differ by process.

    Five, so that no code is as frequent as a fresh head says, to the last bit: of such a gradient
    of zero Adam makes a step by its rounding.
    """
    places = torch.arange(16).view(4, 4) + ids[:, :1, :1, :1]
    return (places % 16 < 5).expand(ids.shape)


def run_job(rank: int, place: str, name: str, kind: str, sharded: bool) -> list[dict[str, Tensor]]:
    """The gradients of every step, whole; the run leaves its folder besides."""
    folder = Path(place)
    config = validate(
        GeneratorTrainConfig,
        {
            "generator": {"kind": kind, "width": 16, "depth": 2, "heads": 2}
            | {"dropout": 0, "class_dropout": 0, "smoothing": 0.1},
            "tokens": {name: str(folder / name) for name in ("train", "val")}
            | {"tokenizer": str(folder / "small"), "batch": 6},
            "optimizer": {"lr": 3e-4, "clip": 0.5, "weight_decay": 0.05},
            "run": {"steps": STEPS, "ema": 0.9, "log_every": 1, "device": "cpu", "trackers": []}
            | {"validate_every": 2, "checkpoint_every": 2, "sharded": sharded},
        },
    )
    gradients = []

    def watched(state: Any, *arguments: Any) -> Any:
        result = generator_step(state, *arguments)
        gradients.append(
            {
                name: everywhere(parameter.grad).clone()
                for name, parameter in state.network.named_parameters()
                if parameter.grad is not None
            }
        )
        return result

    patch = pytest.MonkeyPatch()
    patch.setattr(MaskedGenerator, "hide", hide)
    patch.setattr(module, "generator_step", watched)
    try:
        assert GeneratorRun(config, folder / name, Silent()).train()
    finally:
        patch.undo()
    return gradients


CASES = [(kind, sharded) for kind in KINDS for sharded in (False, True)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("two processes")
    torch.manual_seed(0)
    shape = ModelConfig(bits=8, groups=2, channels=8, mults=(1, 1), blocks=1, patch=4)
    tokenizer = Tokenizer(TokenizerNetwork(shape).eval(), "small")
    tokenizer.save_pretrained(place / "small")
    for name, count in (("train", 20), ("val", 5)):
        shards.write(place / name, tokenizer, count, ["ant", "bee"], seed=count)
    return place


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, list[dict[str, Tensor]]]:
    return {kind: run_job(0, str(place), f"{kind}-one", kind, False) for kind in KINDS}


@pytest.fixture(scope="module")
def both(place: Path) -> dict[tuple[str, bool], Any]:
    jobs = [(run_job, str(place), f"{kind}-{sharded}", kind, sharded) for kind, sharded in CASES]
    return dict(zip(CASES, run_jobs(place, jobs), strict=True))


def length(tensors: Any) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_gradients_and_weights_are_those_of_one_process(
    place: Path,
    alone: dict[str, list[dict[str, Tensor]]],
    both: dict[tuple[str, bool], Any],
    case: tuple[str, bool],
) -> None:
    kind, sharded = case
    first, second = both[case]
    for step, (mine, other, expected) in enumerate(zip(first, second, alone[kind], strict=True)):
        assert mine.keys() == expected.keys() and len(mine) > 10
        assert all(torch.equal(mine[name], other[name]) for name in mine)
        errors = [mine[name] - expected[name] for name in expected]
        # What rounding changed in a step's weights shows in the gradients of those after it.
        limit = 1e-3 if step else 1e-5
        size = length(expected.values())
        assert size > 0 and length(errors) < limit * size
    folders = place / f"{kind}-{sharded}", place / f"{kind}-one"
    one, two = (
        torch.load(checkpoints(folder / "checkpoints")[-1] / "state.pt", weights_only=True)
        for folder in folders
    )
    for name, value in two["network"].items():
        torch.testing.assert_close(one["network"][name], value, rtol=0, atol=1e-5)
    for name, value in two["ema"]["average"].items():
        torch.testing.assert_close(one["ema"]["average"][name], value, rtol=0, atol=1e-5)
    own, theirs = (load_generator(folder / "model")[0].state_dict() for folder in folders)
    for name, value in theirs.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=1e-5)
    logs = []
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        logs.append([line.get("loss") or line["validation"]["score"] for line in lines])
    assert logs[0] == pytest.approx(logs[1], rel=1e-4) and len(logs[0]) == STEPS + 2


def test_half_a_batch_has_another_gradient(place: Path, both: dict[tuple[str, bool], Any]) -> None:
    """The test above would notice a process that goes by its own half."""
    (whole, *_), _ = both["autoregressive", False]
    data = TokenShards([str(place / "train")])
    classes = Classes(data, "label")
    shape = GeneratorShape(width=16, depth=2, heads=2, dropout=0, class_dropout=0)
    torch.manual_seed(0)
    generator = build(shape.of(data.about, classes.count, classes.names))
    batch = next(TokenStream(data, classes, 3, seed=0, rank=0, world=2))
    generator.loss(*batch).sum().backward()
    own = {name: p.grad for name, p in generator.named_parameters() if p.grad is not None}
    head = "heads.0.weight"
    assert (own[head] - whole[f"generator.{head}"]).norm() > 0.1 * own[head].norm()
