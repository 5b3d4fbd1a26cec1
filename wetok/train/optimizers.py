"""Adam and its learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from wetok.config import OptimizerConfig


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Adam:
    """Adam with decoupled decay; its rate is set before each step by `learning_rate`."""
    return torch.optim.Adam(
        parameters,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        decoupled_weight_decay=True,
        fused=True,  # one pass over the weights instead of a dozen small ones
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of `step` (0 is the first) in a run of `steps`.

    Linear warm-up over `warmup` steps, then constant (the default, WeTok's finding) or a half
    cosine from lr to `final` x lr at the last step.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup) / max(1, steps - 1 - config.warmup)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final + (1 - config.final) * share)
