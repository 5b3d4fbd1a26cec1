"""One step of a generator's training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wetok.generate.folder import Generator
from wetok.losses.objective import first_broken
from wetok.train.generator_config import GeneratorTrainConfig
from wetok.train.optimizers import schedule
from wetok.train.processes import gradients_meet
from wetok.train.state import TrainState
from wetok.train.step import StepResult, Terms, autocast, clip
from wetok.train.token_data import TokenBatch


class Learner(nn.Module):
    """A generator whose forward pass is its loss: what wrappers for many processes need."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Nats of each group's ids, [g]."""
        return self.generator.loss(ids, labels)


def generator_step(
    state: TrainState[Learner], config: GeneratorTrainConfig, parts: Sequence[TokenBatch]
) -> StepResult:
    """Takes a step on the micro-batches `parts`, of equal size; gradients are their mean.

    The loss is the sum of the groups' cross-entropies. As with tokenizers, a loss or gradient
    that is NaN or infinite on any process skips the step on all of them.

    Raises:
        WetokError: `run.max_skipped` steps in a row were skipped.
    """
    rate = schedule(state.optimizer, config.optimizer, state.step, config.run.steps)
    state.optimizer.zero_grad(set_to_none=True)
    terms = Terms()
    for index, (ids, labels) in enumerate(parts):
        last = index + 1 == len(parts)
        with gradients_meet(state.called, last), autocast(config.run.precision, ids):
            nats = state.called(ids, labels)
            loss = nats.sum()
            state.scaler.scale(loss / len(parts)).backward()
        terms.add(loss=loss, **{f"group_{k}": one for k, one in enumerate(nats)})
    state.scaler.unscale_(state.optimizer)
    terms.add(gradient_norm=clip(state.network, config.optimizer.clip))
    means = terms.means()
    telling = {
        name: value
        for name, value in means.items()
        if not (state.scaler.is_enabled() and "gradient" in name)
    }
    broken = first_broken(telling)
    if broken:
        state.skip(broken, config.run.max_skipped)
    else:
        state.skipped_in_a_row = 0
        state.scaler.step(state.optimizer)
        state.ema.update(state.network)
    state.scaler.update()
    state.step += 1
    return StepResult(means, torch.cat([part.ids for part in parts]), rate, broken)
