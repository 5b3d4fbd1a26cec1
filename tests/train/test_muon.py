"""Muon by hand in float64; its other half against torch's AdamW; what it is offered for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wetok.config import OptimizerConfig, WetokError, validate
from wetok.presets import preset
from wetok.train.muon import Muon, orthogonal
from wetok.train.optimizers import build_optimizer
from wetok.train.state import outer


def config(**changes: Any) -> OptimizerConfig:
    return validate(OptimizerConfig, {"kind": "muon", **changes})


def by_hand(matrix: np.ndarray) -> np.ndarray:
    """The quintic on the singular values: what five steps do to a matrix, by its definition."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ v


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 99))
def test_orthogonal_is_the_polynomial_of_singular_values(
    rows: int, columns: int, seed: int
) -> None:
    matrices = np.random.default_rng(seed).standard_normal((2, rows, columns))
    found = orthogonal(torch.tensor(matrices)).numpy()
    for one, wanted in zip(found, map(by_hand, matrices), strict=True):
        np.testing.assert_allclose(one, wanted, atol=1e-5)


def test_singular_values_come_near_one() -> None:
    """Also in the precision that networks are trained with."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(4, 32, 288, generator=generator)
    values = torch.linalg.svdvals(orthogonal(matrices).float())
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3, 3), (8, 2, 3, 3)])
def test_steps_by_hand(shape: tuple[int, ...], decay: float) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape)
    parameter = nn.Parameter(torch.tensor(x))
    optimizer = Muon([parameter], [], lr=0.01, betas=(0.9, 0.99), weight_decay=decay)
    momentum = np.zeros(shape)
    parts = 4 if shape[0] == 4 * shape[1] else 1
    assert (parts == 4) == (shape[0] == 8)
    for _ in range(4):
        gradient = rng.standard_normal(shape)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        momentum = 0.95 * momentum + gradient
        ahead = (gradient + 0.95 * momentum).reshape(parts, shape[0] // parts, -1)
        size = 0.2 * math.sqrt(max(ahead.shape[1:]))
        step = np.stack([by_hand(one) for one in ahead]).reshape(shape)
        x = (1 - 0.01 * decay) * x - 0.01 * size * step
        np.testing.assert_allclose(parameter.detach().numpy(), x, atol=1e-6)


def test_everything_else_is_adams() -> None:
    start = torch.randn(3, 4, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}
    mine = Muon([], [ours], **settings)  # type: ignore[arg-type]
    reference = torch.optim.AdamW([theirs], **settings)  # type: ignore[arg-type]
    for seed in range(5):
        gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)).double()
        ours.grad, theirs.grad = gradient, gradient.clone()
        mine.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_which_layers_it_takes() -> None:
    """Hidden kernels; not those that meet pixels, nor vectors, which don't decay either."""
    from wetok.model.network import TokenizerNetwork

    network = TokenizerNetwork(preset("tiny-48x"))
    optimizer = build_optimizer(config(weight_decay=0.1), network.parameters(), outer(network))
    groups = optimizer.param_groups
    names = {p: name for name, p in network.named_parameters()}
    taken = {names[p] for g in groups if g["orthogonal"] for p in g["params"]}
    assert "decoder.up.1.upsample.conv1.weight" in taken and "encoder.conv_out.weight" in taken
    assert not taken & {"encoder.conv_in.weight", "decoder.conv_out.weight"}
    assert all(network.get_parameter(name).ndim >= 2 for name in taken)
    assert sorted(names.values()) == sorted(names[p] for g in groups for p in g["params"])


def test_what_it_is_not_for(tmp_path: Path) -> None:
    from wetok.config import GanConfig, TrainConfig
    from wetok.train.generator_config import GeneratorTrainConfig

    muon = {"kind": "muon"}
    with pytest.raises(WetokError, match="must be adam for the gan"):
        validate(GanConfig, {"optimizer": muon})
    tree = {"model": "tiny-48x", "data": {"train": "x"}, "optimizer": muon}
    tree["model"] = preset("tiny-48x").model_dump()
    with pytest.raises(WetokError, match="run.sharded=True"):
        validate(TrainConfig, tree | {"run": {"steps": 1, "sharded": True}})
    phases = [{"until": 1, "set": {"optimizer.kind": "adam"}}]
    with pytest.raises(WetokError, match="optimizer.kind is of the whole run"):
        validate(TrainConfig, tree | {"run": {"steps": 1}, "phases": phases})
    generator = {"width": 8, "depth": 1, "heads": 1}
    with pytest.raises(WetokError, match="must be adam for a generator"):
        validate(
            GeneratorTrainConfig,
            {
                "generator": generator,
                "tokens": {"train": "x"},
                "optimizer": muon,
                "run": {"steps": 1},
            },
        )
