"""What the tests of training share: small pictures, a small network, a short run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wetok.config import TrainConfig, assign, validate
from wetok.losses.objective import ReconstructionObjective
from wetok.model.network import TokenizerNetwork
from wetok.model.quantizer import GroupedQuantizer
from wetok.train.adversary import Adversary
from wetok.train.state import TrainState
from wetok.train.step import Batch

Recipe = Callable[..., TrainConfig]

SHAPE = {"bits": 8, "groups": 2, "channels": 8, "mults": [1, 1], "blocks": 1, "patch": 2}


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """Smooth ones of different sizes, each PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
        size = (40 + 3 * index, 48 - 2 * index)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def tiny_tree(pictures: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A recipe's settings: six steps of two crops of 16 pixels, float32, no LPIPS."""
    tree: dict[str, Any] = {
        "model": dict(SHAPE),
        "data": {"train": str(pictures), "crop": 16, "batch": 2, "workers": 0},
        "loss": {"perceptual_weight": 0},
        "optimizer": {"lr": 1e-3},
        "run": {"steps": 6, "log_every": 1, "device": "cpu", "ema": 0.9, "trackers": []},
    }
    for key, value in (changes or {}).items():
        assign(tree, key, value)
    return tree


def tiny_config(pictures: Path, changes: dict[str, Any] | None = None) -> TrainConfig:
    return validate(TrainConfig, tiny_tree(pictures, changes))


def build(config: TrainConfig, seed: int = 0) -> tuple[TrainState, ReconstructionObjective]:
    """A fresh state with random weights, and its objective."""
    torch.manual_seed(seed)
    quantizer = GroupedQuantizer(
        config.model.bits,
        config.model.groups,
        entropy=config.loss.entropy if config.loss.entropy_weight else None,
        temperature=config.loss.temperature,
        eps=config.loss.epsilon,
    )
    network = TokenizerNetwork(config.model, quantizer).train()
    adversary = Adversary(config.gan, config.run.accumulate).train() if config.gan else None
    state = TrainState(network, config, adversary)
    return state, ReconstructionObjective(config.loss, None)


def batch(step: int, size: int = 16) -> list[Batch]:
    """One part: images [2,3,size,size] in [-1,1], the same for the same step."""
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(step)) * 2 - 1
    return [Batch(image)]
