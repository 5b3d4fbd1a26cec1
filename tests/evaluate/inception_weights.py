"""Weights for the FID Inception that anyone can draw again, as the reference vectors had them."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from wetok.evaluate.inception import Inception


def drawn_weights(network: Inception) -> dict[str, Tensor]:
    """A value for every entry of the state dict, from the entry's name alone."""
    state = {}
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tuple(tensor.shape), dtype=tensor.dtype, device="cpu")
            continue
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        draw = generator.standard_normal(tuple(tensor.shape)).astype(np.float32)
        if name.endswith("running_var"):
            draw = 1 + 0.1 * np.abs(draw)
        elif name.endswith(("running_mean", "bias")):
            draw = 0.1 * draw
        elif tensor.ndim == 1:
            draw = 1 + 0.1 * draw
        else:
            draw = draw * np.sqrt(2 / np.prod(tensor.shape[1:]))
        state[name] = torch.from_numpy(draw.astype(np.float32))
    return state


def published_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the published file has it: without batch norm's counters, with the classifier."""
    kept = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    return {**kept, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
