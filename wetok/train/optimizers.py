"""The optimizer and its learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from wetok.config import OptimizerConfig
from wetok.train.muon import Muon

_UNDECAYED = "undecayed"


def build_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[nn.Parameter],
    outer: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Adam, with decoupled decay where `weight_decay` is set, or Muon; `schedule` sets its rate.

    Decay is for matrices and kernels: not for biases and the scales of norms, as is usual.

    Args:
        outer: those of `parameters` that belong to the first and the last layer: these stay with
            Adam where hidden layers go with Muon.
    """
    every = list(parameters)
    matrices = [p for p in every if p.ndim >= 2]
    vectors = [p for p in every if p.ndim < 2]
    if config.kind == "muon":
        apart = set(outer)
        hidden = [p for p in matrices if p not in apart]
        others = [p for p in matrices if p in apart]
        muon = Muon(hidden, others, config.lr, config.betas, config.weight_decay)
        muon.add_param_group({"params": vectors, "orthogonal": False, _UNDECAYED: True})
        return muon
    groups: list[dict[str, Any]] = [{"params": every}]
    if config.weight_decay:
        groups = [{"params": matrices}, {"params": vectors, _UNDECAYED: True}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
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
        decay = 0.0 if group.get(_UNDECAYED) else config.weight_decay
        group.update(lr=rate, betas=config.betas, weight_decay=decay)
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
