"""One step of training, on one screen: the tokenizer's update, then the discriminator's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from wetok.config import GanConfig, TrainConfig
from wetok.losses.adversarial import (
    DISCRIMINATOR_LOSSES,
    adaptive_weight,
    frozen,
    non_saturating_generator_loss,
    warmup_factor,
)
from wetok.losses.objective import Objective, ReconstructionObjective, first_broken
from wetok.model.network import TokenizerNetwork
from wetok.train.optimizers import schedule
from wetok.train.processes import gradients_meet
from wetok.train.sharding import everywhere
from wetok.train.state import TrainState

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Batch(NamedTuple):
    """What a step, or one of its parts, learns from, on the network's device."""

    image: Tensor
    """[B,3,H,W] in [-1,1]."""
    noise: Tensor | None = None
    """[B,d,h,w], for a generative decoder."""


class StepResult(NamedTuple):
    """What a step leaves for the log."""

    terms: dict[str, Tensor]
    """Means over this process's crops: `loss`, the weighted sum; each term before its weight;
    gradient norms (of all processes' gradients) before clipping. See docs/training.md."""
    ids: Tensor
    """[B,g,h,w] of this process's crops, for the usage count."""
    rate: float
    broken: str | None = None
    """The first term that was NaN or infinite, for which the step was not taken."""


def train_step(
    state: TrainState[TokenizerNetwork],
    objective: ReconstructionObjective,
    config: TrainConfig,
    parts: Sequence[Batch],
) -> StepResult:
    """Takes a step on the micro-batches `parts`, of equal size; gradients are their mean.

    A loss or a gradient that is NaN or infinite on any process skips the step on all of them:
    weights, averages, optimizers and buffers stay as they were. (With fp16 a gradient that
    overflows is usual: the scaler skips that network's update and adapts.)

    Raises:
        WetokError: `run.max_skipped` steps in a row were skipped.
    """
    gan, adversary, step = config.gan, state.adversary, state.step
    before = adversary.remembered() if adversary else []
    terms = Terms()
    ids: list[Tensor] = []
    reconstructions: list[Tensor] = []

    # The tokenizer: near the image, and judged real.
    rate = schedule(state.optimizer, config.optimizer, step, config.run.steps)
    state.optimizer.zero_grad(set_to_none=True)
    for image, noise in parts:
        with (
            gradients_meet(state.called, len(ids) + 1 == len(parts)),
            autocast(config.run.precision, image),
        ):
            again, quantized = state.called(image, noise)
            _, codes, token_entropy, codebook_entropy, commitment = quantized
            judged = objective(image, again, commitment, token_entropy, codebook_entropy, step)
            terms.add(**judged.terms)
            loss = judged.total
            if gan and adversary and step >= gan.start:
                with frozen(adversary.discriminator):
                    generator = non_saturating_generator_loss(adversary.discriminator(again))
                weight = _generator_weight(state, gan, judged, generator)
                loss = loss + weight * generator
                terms.add(generator=generator, gan_weight=weight)
            state.scaler.scale(loss / len(parts)).backward()
        terms.add(loss=loss)
        ids.append(codes)
        reconstructions.append(again.detach())
    state.scaler.unscale_(state.optimizer)
    terms.add(gradient_norm=clip(state.network, config.optimizer.clip))

    # The discriminator: images real, the same reconstructions not.
    judging = gan is not None and step >= gan.start - gan.warmup
    if gan and adversary and state.judge and state.judge_optimizer and judging:
        schedule(state.judge_optimizer, gan.optimizer, step, config.run.steps)
        state.judge_optimizer.zero_grad(set_to_none=True)
        for index, ((image, _), again) in enumerate(zip(parts, reconstructions, strict=True)):
            with (
                gradients_meet(state.judge, index + 1 == len(parts)),
                autocast(config.run.precision, image),
            ):
                real, fake = state.judge(image), state.judge(again)
                adversary.lecam.update(real, fake)
                told = DISCRIMINATOR_LOSSES[gan.loss](real, fake)
                lecam = adversary.lecam(real, fake)
                loss = told + gan.lecam_weight * lecam
                state.judge_scaler.scale(loss / len(parts)).backward()
            terms.add(discriminator=told, lecam=lecam)
            terms.add(logits_real=real.float().mean(), logits_fake=fake.float().mean())
        state.judge_scaler.unscale_(state.judge_optimizer)
        terms.add(discriminator_gradient_norm=clip(adversary, gan.optimizer.clip))

    means = terms.means()
    broken = first_broken(_telling(means, overflows=state.scaler.is_enabled()))
    if broken:
        if adversary:
            adversary.recall(before)
        state.skip(broken, config.run.max_skipped)
    else:
        state.skipped_in_a_row = 0
        state.scaler.step(state.optimizer)
        if state.judge_optimizer and judging:
            state.judge_scaler.step(state.judge_optimizer)
        state.ema.update(state.network)
    state.scaler.update()
    if judging:
        state.judge_scaler.update()
    state.step += 1
    return StepResult({"loss": means["loss"], **means}, torch.cat(ids), rate, broken)


class Terms:
    """Scalars of every micro-batch, by name."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, **terms: Tensor) -> None:
        for name, term in terms.items():
            self._parts.setdefault(name, []).append(term.detach().float())

    def means(self) -> dict[str, Tensor]:
        return {name: torch.stack(parts).mean() for name, parts in self._parts.items()}


def _telling(means: dict[str, Tensor], overflows: bool) -> dict[str, Tensor]:
    """`means` so ordered that the first broken one is where it began."""
    # A broken latent also breaks the reconstruction made from it.
    latent = ("commitment", "token_entropy", "codebook_entropy")
    ordered = {name: means[name] for name in latent if name in means} | means
    return {name: v for name, v in ordered.items() if not (overflows and "gradient" in name)}


def _generator_weight(
    state: TrainState[TokenizerNetwork], gan: GanConfig, judged: Objective, generator: Tensor
) -> Tensor:
    """What the adversarial term counts by: scalar."""
    factor = warmup_factor(state.step, gan.start, gan.ramp)
    if not gan.adaptive:
        return generator.new_tensor(factor * gan.weight)
    last = state.network.decoder.conv_out.weight
    scale = state.scaler.get_scale()
    return factor * adaptive_weight(judged.reconstruction, generator, last, gan.weight, scale)


def clip(module: nn.Module, limit: float | None) -> Tensor:
    """Bounds the length of the gradient of `module`; returns what it was."""
    return everywhere(clip_grad_norm_(module.parameters(), limit or math.inf))


def autocast(precision: str, like: Tensor) -> torch.autocast:
    """Mixed precision for a forward pass on the device of `like`."""
    dtype = DTYPES[precision]
    return torch.autocast(like.device.type, dtype, enabled=dtype != torch.float32)
