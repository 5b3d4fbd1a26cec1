"""Learns the tables of entropy coding from a model's ids of some photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wetok.codec.context import (
    AROUND,
    HIDDEN,
    LOGIT,
    SHIFT,
    Net,
    Phase,
    inputs_of,
    phases,
    reach,
    to_planes,
)
from wetok.codec.tables import CodingTables
from wetok.config import WetokError

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 2
_FIRST = 64  # `first` holds weights in 1/64, so hidden values are in 1/64 too
_SECOND = LOGIT * 2**SHIFT // _FIRST  # `second` times a hidden value, shifted, is in 1/128
_POSITIONS = 400_000  # sampled for each phase of a group
_BATCH = 1024


def learn(
    samples: Sequence[NDArray[np.integer]],
    group_bits: int,
    *,
    hidden: int = 48,
    levels: int = LEVELS,
    steps: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> CodingTables:
    """Tables for ids like `samples`, each [g, h, w].

    A network for each group and phase is fitted to positions drawn from all samples (Adam, one
    cycle of the rate), then rounded to whole numbers.

    Args:
        hidden: hidden values of each network; more are slower and code a little better.
        levels: L, how many times the grid of the first phase is halved.
        steps: batches of 1,024 positions for each network, at least 20.
        progress: is told what was done.

    Raises:
        WetokError: no samples, samples of different numbers of groups, or fewer steps.
    """
    import torch

    if not samples or len({sample.shape[0] for sample in samples}) != 1:
        raise WetokError("samples: give ids [g,h,w] of at least one image, all with one g")
    if steps < 20:
        raise WetokError(f"steps={steps} must be at least 20")
    groups = samples[0].shape[0]
    margin = reach(levels)
    padded = []
    for sample in samples:
        signs = to_planes(sample, group_bits).astype(np.int8) * 2 - 1
        padded.append(np.pad(signs, ((0, 0), (margin, margin), (margin, margin))))
    generator = np.random.default_rng(seed)
    nets = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for group in range(groups):
            row = []
            for number, phase in enumerate(phases(levels)):
                known, bits = _draw(padded, margin, group, group_bits, phase, generator)
                net, cost = _fit(torch.from_numpy(known), torch.from_numpy(bits), hidden, steps)
                progress(
                    f"group {group + 1} of {groups}, phase {number + 1} of {3 * levels + 1}: "
                    f"{cost:.3f} bits a bit"
                )
                row.append(net)
            nets.append(row)
    return CodingTables.of_nets(nets)


def _draw(
    padded: Sequence[NDArray[np.int8]],
    margin: int,
    group: int,
    group_bits: int,
    phase: Phase,
    generator: np.random.Generator,
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """What is known at drawn positions [N, n], and the bits there [N, d'].

    Any position serves, on the phase's own lattice or not: photographs look alike everywhere.
    """
    areas = [(p.shape[1] - 2 * margin) * (p.shape[2] - 2 * margin) for p in padded]
    share = min(1.0, _POSITIONS / sum(areas))
    earlier = slice(0, group * group_bits)
    own = slice(group * group_bits, (group + 1) * group_bits)
    inputs, targets = [], []
    for signs, area in zip(padded, areas, strict=True):
        width = signs.shape[2] - 2 * margin
        chosen = generator.choice(area, max(1, round(share * area)), replace=False)
        rows, columns = chosen // width + margin, chosen % width + margin
        parts = [signs[earlier, rows + y, columns + x] for y, x in (AROUND if group else ())]
        parts += [signs[own, rows + y, columns + x] for y, x in phase.known]
        inputs.append(np.concatenate([np.empty((0, len(chosen)), np.int8), *parts]).T)
        targets.append(signs[own, rows, columns].T)
    known = np.ascontiguousarray(np.concatenate(inputs))
    assert known.shape[1] == inputs_of(group, group_bits, phase)
    return known, np.ascontiguousarray(np.concatenate(targets))


def _fit(known: Tensor, bits: Tensor, hidden: int, steps: int) -> tuple[Net, float]:
    """A rounded network and its mean cost in bits over the last tenth of the steps."""
    import torch
    from torch.nn import functional

    inputs, width = known.shape[1], bits.shape[1]
    hidden = hidden if inputs else 0
    below = torch.tril(torch.ones(width, width), -1)
    weights = {
        "first": torch.randn(hidden, inputs) / max(1, inputs) ** 0.5,
        "first_bias": torch.zeros(hidden),
        "second": torch.randn(width, hidden) / max(1, hidden) ** 0.5 / 4,
        "direct": torch.zeros(width, inputs),
        "bias": torch.zeros(width),
        "within": torch.zeros(width, width),
    }
    # What int8 can hold of each, in the units of the finished network.
    unit = {"first": _FIRST, "second": _SECOND, "direct": LOGIT, "within": LOGIT}
    parameters = [weight.requires_grad_() for weight in weights.values() if weight.numel()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.1)
    costs = []
    for _ in range(steps):
        drawn = torch.randint(0, len(known), (_BATCH,))
        x, t = known[drawn].float(), bits[drawn].float()
        z = (x @ weights["first"].T + weights["first_bias"]).clamp(0, HIDDEN / _FIRST)
        logits = x @ weights["direct"].T + weights["bias"] + z @ weights["second"].T
        logits = logits + t @ (weights["within"] * below).T
        loss = functional.softplus(-logits * t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for name, scale in unit.items():
                weights[name].clamp_(-127 / scale, 127 / scale)
        costs.append(loss.item())
    scales = {**unit, "first_bias": _FIRST, "bias": LOGIT}
    weights["within"] = weights["within"] * below
    rounded: dict[str, Any] = {
        name: (weights[name].detach() * scales[name]).round().numpy() for name in weights
    }
    last = costs[-max(1, steps // 10) :]
    return Net(**rounded), float(np.mean(last) / np.log(2))
