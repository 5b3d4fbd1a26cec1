"""Weights cut over the processes (FSDP), and whole again for checkpoints.

A sharded tensor is a `DTensor`. Checkpoints hold whole tensors only, so that a run can go on with
another number of processes, or unsharded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from wetok.generate.layers import Block
from wetok.model.layers import ResidualBlock, Upsample


def shard(network: nn.Module, device: torch.device) -> None:
    """Cuts every parameter of `network` over all processes, in place.

    Residual blocks, upsamplings and transformer blocks are gathered one at a time when they run,
    everything else for the whole pass. Forward passes must go through `network` itself.

    Source: PyTorch's `fully_shard` (FSDP2), Zhao et al., "PyTorch FSDP", VLDB 2023.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in network.modules():
        if isinstance(module, (ResidualBlock, Upsample, Block)):
            fully_shard(module, mesh=mesh)
    # Also after a pass that no backward pass follows, so that averages meet parts at all times.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tree: Any) -> Any:
    """`tree` (of dicts and lists) with sharded tensors gathered; every rank must call it.

    One after the other, to the first rank's memory; the others are left with empty tensors.
    """
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value) for value in tree]
    if not isinstance(tree, DTensor):
        return tree
    gathered = tree.full_tensor()
    return gathered.new_empty(0) if dist.get_rank() else gathered.cpu()


def everywhere(tensor: Tensor) -> Tensor:
    """A small sharded or partial tensor, whole on every rank; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, rank 0's, cut up as `like` is; every rank must call it."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def placed_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state dict with its moments cut up as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {
            name: placed(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}
