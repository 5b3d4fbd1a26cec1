"""Adam and its learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from wetok.config import OptimizerConfig


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.AdamW:
    """Adam, with decoupled decay where `weight_decay` is set; `schedule` sets its rate."""
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over the weights instead of a dozen small ones
    )


def schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, steps: int
) -> float:
    """Makes `optimizer` follow `config` at `step`; returns the learning rate.

    Before every step, so that a phase or a resumed run with other settings takes effect.
    """
    rate = learning_rate(config, step, steps)
    for group in optimizer.param_groups:
        group.update(lr=rate, betas=config.betas, weight_decay=config.weight_decay)
    return rate


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of `step` (0 is the first) in a run of `steps`.

    Linear warm-up over `warmup` steps, then constant (the default, WeTok's finding) or a half
    cosine from lr to `final` x lr at the last step. Each of `drops` that `step` has reached
    multiplies all of it by `drop_factor`.
    """
    peak = config.lr * config.drop_factor ** sum(step >= drop for drop in config.drops)
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    if config.schedule == "constant":
        return peak
    progress = (step - config.warmup) / max(1, steps - 1 - config.warmup)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (config.final + (1 - config.final) * share)
