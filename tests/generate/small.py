"""Generators small enough for tests, with weights that make every part count."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from wetok.config import validate
from wetok.generate.autoregressive import AutoregressiveGenerator
from wetok.generate.config import GeneratorConfig
from wetok.generate.masked import MaskedGenerator


def config(**changes: Any) -> GeneratorConfig:
    settings: dict[str, Any] = {
        "groups": 3,
        "group_bits": 4,
        "grid": (3, 4),
        "classes": 5,
        "width": 32,
        "depth": 2,
        "group_depth": 2,
        "heads": 4,
        **changes,
    }
    if settings.get("kind") == "masked":
        settings["group_depth"] = 0
    return validate(GeneratorConfig, settings)


def lively(module: nn.Module, seed: int = 0) -> None:
    """Weights large enough that a wrong one shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
            if parameter.ndim == 1:
                parameter.add_(1)


def autoregressive(**changes: Any) -> AutoregressiveGenerator:
    generator = AutoregressiveGenerator(config(**changes))
    lively(generator)
    return generator.eval()


def masked(**changes: Any) -> MaskedGenerator:
    generator = MaskedGenerator(config(kind="masked", **changes))
    lively(generator)
    return generator.eval()


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def some_ids(shape: GeneratorConfig, batch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape.codes, (batch, shape.groups, *shape.grid), generator=generator)
