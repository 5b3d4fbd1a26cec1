"""The exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wetok.train.sharding import local, placed


class EMA:
    """A slow copy of a network's trained parameters: average += (1 - decay) (parameter - average).

    Frozen parameters are their own average and have none here. Sharded ones are averaged shard by
    shard. The decay grows with the updates made, min(decay, (1 + n) / (10 + n)), so that the first
    random weights are soon forgotten (as the released code does).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {
            name: parameter.detach().clone().float()
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the average towards the network's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = dict(network.named_parameters())
        torch._foreach_lerp_(
            [local(average) for average in self.average.values()],
            [local(parameters[name].detach()).float() for name in self.average],
            1 - decay,
        )

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Within the block `network` has the averaged weights; after it, its own again."""
        parameters = dict(network.named_parameters())
        own = {name: parameters[name].detach().clone() for name in self.average}
        try:
            _assign(network, self.average)
            yield
        finally:
            _assign(network, own)

    def state_dict(self) -> dict[str, object]:
        """Averages and the count of updates, for a checkpoint."""
        return {"average": {**self.average}, "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            ValueError: the averages are not this network's.
        """
        average, updates = state["average"], state["updates"]
        if not (isinstance(average, dict) and isinstance(updates, int)):
            raise ValueError("these are no averaged weights")
        shapes = {name: tensor.shape for name, tensor in average.items()}
        if shapes != {name: tensor.shape for name, tensor in self.average.items()}:
            raise ValueError("the averaged weights are another network's")
        for name, tensor in average.items():
            self.average[name].copy_(placed(tensor, self.average[name]))
        self.updates = updates


@torch.no_grad()
def _assign(network: nn.Module, values: dict[str, Tensor]) -> None:
    parameters = dict(network.named_parameters())
    for name, value in values.items():
        parameters[name].copy_(value)
