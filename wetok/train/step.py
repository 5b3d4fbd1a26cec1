"""One step of training, on one screen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wetok.config import TrainConfig, WetokError
from wetok.losses.objective import ReconstructionObjective, first_broken
from wetok.train.optimizers import learning_rate
from wetok.train.state import TrainState

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """What a step leaves for the log."""

    terms: dict[str, Tensor]
    """Each loss before its weight, and `loss`, their weighted sum."""
    ids: Tensor
    """[B,g,h,w] of the batch, for the usage count."""
    rate: float


def train_step(
    state: TrainState, objective: ReconstructionObjective, config: TrainConfig, image: Tensor
) -> StepResult:
    """image [B,3,H,W] in [-1,1], on the network's device.

    Raises:
        WetokError: a loss is NaN or infinite; the weights are as they were before the step.
    """
    network, optimizer, scaler = state.network, state.optimizer, state.scaler
    dtype = DTYPES[config.run.precision]
    rate = learning_rate(config.optimizer, state.step, config.run.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate

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
    if broken := first_broken({**terms, "loss": loss}):
        raise WetokError(
            f"{broken} is NaN or infinite at step {state.step}; the weights before it are intact: "
            "resume with a lower optimizer.lr, with optimizer.clip=1, or with run.precision=fp32"
        )

    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    if config.optimizer.clip is not None:
        terms["gradient_norm"] = torch.nn.utils.clip_grad_norm_(
            network.parameters(), config.optimizer.clip
        )
    scaler.step(optimizer)
    scaler.update()
    state.ema.update(network)
    state.step += 1
    return StepResult({"loss": loss.detach(), **terms}, quantized.ids, rate)
