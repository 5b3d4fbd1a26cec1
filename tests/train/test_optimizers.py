"""Adam by hand, and the learning rate at the steps that matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wetok.config import OptimizerConfig, WetokError, validate
from wetok.train.optimizers import build_optimizer, learning_rate, schedule


def config(**changes: Any) -> OptimizerConfig:
    return validate(OptimizerConfig, changes)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_by_hand(decay: float) -> None:
    """Kingma and Ba's algorithm 1 with betas (0.5, 0.9); decay apart from it (AdamW)."""
    settings = config(lr=0.01, weight_decay=decay)
    assert settings.betas == (0.5, 0.9)
    start = np.array([[1.0, -2.0, 0.5]])
    parameter = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = build_optimizer(settings, [parameter])
    x, m, v = start.copy(), np.zeros((1, 3)), np.zeros((1, 3))
    rng = np.random.default_rng(0)
    for t in range(1, 8):
        gradient = rng.standard_normal((1, 3))
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        x *= 1 - 0.01 * decay
        m = 0.5 * m + 0.5 * gradient
        v = 0.9 * v + 0.1 * gradient**2
        x -= 0.01 * (m / (1 - 0.5**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        assert parameter.detach().numpy() == pytest.approx(x, rel=1e-12)


def test_vectors_do_not_decay() -> None:
    """Biases and scales of norms: Adam's step alone, whatever the schedule sets."""
    settings = config(lr=0.01, weight_decay=0.5)
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(settings, [matrix, vector])
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    rate = schedule(optimizer, settings, 0, 10)
    optimizer.step()
    assert torch.equal(vector, torch.ones(2))
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - rate * 0.5))


def test_constant_is_the_default() -> None:
    assert {learning_rate(config(), step, 1000) for step in (0, 1, 500, 999)} == {1e-4}


def test_linear_warm_up() -> None:
    settings = config(lr=1.0, warmup=4)
    rates = [learning_rate(settings, step, 100) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_from_lr_to_its_share(warmup: int) -> None:
    settings = config(lr=2.0, schedule="cosine", final=0.1, warmup=warmup)
    steps = 111 + warmup
    assert learning_rate(settings, warmup, steps) == 2.0
    assert learning_rate(settings, steps - 1, steps) == pytest.approx(0.2)
    middle = warmup + (steps - 1 - warmup) // 2
    assert learning_rate(settings, middle, steps) == pytest.approx(1.1)
    quarter = 0.2 + 1.8 * (1 + math.cos(math.pi * 0.1)) / 2
    assert learning_rate(settings, warmup + 11, steps) == pytest.approx(quarter)
    rates = [learning_rate(settings, step, steps) for step in range(warmup, steps)]
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(settings, steps + 50, steps) == pytest.approx(0.2), "a run made longer"


def test_a_run_of_one_step_has_a_rate() -> None:
    assert learning_rate(config(lr=1.0, schedule="cosine"), 0, 1) == 1.0


def test_the_optimizer_follows_the_settings_in_force() -> None:
    """As a phase or a resumed run may change them; a checkpoint brings its own."""
    optimizer = build_optimizer(config(), [nn.Parameter(torch.zeros(1))])
    other = config(lr=0.5, betas=[0.8, 0.99], weight_decay=0.25, warmup=2)
    assert schedule(optimizer, other, 0, 10) == 0.25
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.25, (0.8, 0.99), 0.25)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0}, {"lr": math.inf}, {"betas": [0.5, 1.0]}, {"betas": [-0.1, 0.9]}, {"final": 2}],
)
def test_settings_that_can_not_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(WetokError, match=next(iter(wrong))):
        config(**wrong)
