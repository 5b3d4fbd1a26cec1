"""Time and memory of the entropy terms, forward and backward, to be measured in a fresh process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wetok.config import WetokError
from wetok.evaluate.dense_entropy import dense_entropies
from wetok.model.entropy import group_entropies

Method = Literal["ours", "dense"]
SCALE = 0.05
"""Standard deviation of the normal latents that are measured on: logits of +-20."""


class Footprint(NamedTuple):
    """Of one pass forward and back."""

    wall: list[float]
    """Seconds of each repeat."""
    processor: list[float]
    """The same in processor time, of all threads."""
    bytes: int
    """Growth of memory in the first pass: resident on a CPU, allocated on a GPU."""


def footprint(
    method: Method,
    bits: int,
    groups: int,
    positions: int,
    *,
    eps: float = 1e-5,
    device: str = "cpu",
    repeats: int = 5,
) -> Footprint:
    """Measures token and codebook entropy of so many positions, `ours` or the `dense` definition.

    On a CPU it must run in a process that has done nothing else: memory that was used and given
    back before would not show.

    Raises:
        WetokError: no way to tell a peak of memory here (a CPU needs Linux).
    """
    if device == "cpu" and not sys.platform.startswith("linux"):
        raise WetokError(f"device='cpu' on {sys.platform}: only Linux tells the peak of memory")
    function: Callable[..., tuple[Tensor, Tensor]]
    function = dense_entropies if method == "dense" else group_entropies

    def step(latent: Tensor) -> None:
        latent.grad = None
        token, codebook = function(latent, groups, eps=eps)
        (token.sum() - codebook.sum()).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    generator = torch.Generator().manual_seed(0)

    def latents(images: int, channels: int, count: int) -> Tensor:
        shape = (images, channels, count // images, 1)
        return (SCALE * torch.randn(shape, generator=generator)).to(device).requires_grad_()

    few = min(4, bits // groups) * groups
    for _ in range(3):
        step(latents(1, few, 16))
    latent = latents(max(1, positions // 1024), bits, positions)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(latent)
        peak = torch.cuda.max_memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the start-up
        before = _resident("VmRSS")
        step(latent)
        peak = _resident("VmHWM")
    wall, processor = [], []
    for _ in range(repeats):
        clocks = time.perf_counter(), time.process_time()
        step(latent)
        wall.append(time.perf_counter() - clocks[0])
        processor.append(time.process_time() - clocks[1])
    return Footprint(wall, processor, peak - before)


def dense_table(bits: int, groups: int, positions: int) -> int:
    """Bytes of one float32 table of all positions by all codes; dense needs several of them."""
    return 4 * positions * groups * 2 ** (bits // groups)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise WetokError(f"/proc/self/status has no {field}: the peak of memory can't be told here")
