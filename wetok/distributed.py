"""Rank, world size and reductions over processes. Every function also works in a single process.

Gradient convention, made for `DistributedDataParallel`, which averages parameter gradients over
ranks: a quantity shared by all ranks, such as a mean over the positions of every process, hands
each rank `world_size` times its true partial derivative. After the averaging, parameters have
exactly the gradient that one process would get from the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from wetok.config import WetokError


def is_distributed() -> bool:
    """True when a process group of more than one process is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Index of this process; 0 in a single process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 in a single process."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum_(tensor: Tensor) -> Tensor:
    """Sums a tensor over the ranks in place, outside autograd, and returns it."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def position_share(count: int, like: Tensor) -> Tensor:
    """This rank's share of everything counted by all ranks: 0-d, of `like`'s type and device."""
    own = torch.full((), float(count), device=like.device, dtype=like.dtype)
    return own / all_reduce_sum_(own.clone())


class _AllReduceMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(share)
        return all_reduce_sum_(local * share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (share,) = ctx.saved_tensors
        return grad * share * world_size(), None


def all_reduce_mean(local: Tensor, count: int = 1) -> Tensor:
    """Mean of `local` over the ranks, each rank weighted by its `count` (positions, samples).

    Differentiable, with the gradient convention of this module. Every rank must call it, with the
    same shape and dtype. In a single process it returns `local` itself.

    Raises:
        WetokError: `count` is negative, or `local` is not of a floating type.
    """
    if count < 0:
        raise WetokError(f"count={count} must not be negative: give this rank's number of items")
    if not local.is_floating_point():
        raise WetokError(f"local has dtype {local.dtype}: a mean needs a floating type")
    if not is_distributed():
        return local
    share = position_share(count, local)
    mean: Tensor = _AllReduceMean.apply(local, share)
    return mean
