"""One step of training, on one screen."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from wetok.config import TrainConfig, WetokError
from wetok.losses.objective import ReconstructionObjective, first_broken
from wetok.train.optimizers import schedule
from wetok.train.state import TrainState

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """What a step leaves for the log."""

    terms: dict[str, Tensor]
    """`loss`, the weighted sum; each term before its weight; `gradient_norm` before clipping."""
    ids: Tensor
    """[B,g,h,w] of the batch, for the usage count."""
    rate: float


def train_step(
    state: TrainState, objective: ReconstructionObjective, config: TrainConfig, image: Tensor
) -> StepResult:
    """image [B,3,H,W] in [-1,1], on the network's device.

    Raises:
        WetokError: a loss or a gradient is NaN or infinite; the weights stay as they were. (With
            fp16, a gradient that overflows is usual: the scaler skips the step and adapts.)
    """
    network, optimizer, scaler = state.network, state.optimizer, state.scaler
    dtype = DTYPES[config.run.precision]
    rate = schedule(optimizer, config.optimizer, state.step, config.run.steps)

    with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
        reconstruction, quantized = network(image)
        loss, terms = objective(
            image,
            reconstruction,
            quantized.commitment,
            quantized.token_entropy,
            quantized.codebook_entropy,
            state.step,
        )

    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = clip_grad_norm_(network.parameters(), config.optimizer.clip or math.inf)
    checked = {**terms, "loss": loss} | ({} if scaler.is_enabled() else {"gradient_norm": norm})
    if broken := first_broken(checked):
        raise WetokError(
            f"{broken} is NaN or infinite at step {state.step}, which was not taken: resume from "
            "the last checkpoint with a lower optimizer.lr, optimizer.clip=1 or run.precision=fp32"
        )
    scaler.step(optimizer)
    scaler.update()

    state.ema.update(network)
    state.step += 1
    terms = {"loss": loss.detach(), **terms, "gradient_norm": norm}
    return StepResult(terms, quantized.ids, rate)
