"""Several processes that score one list of images together, started by `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from wetok.config import WetokError
from wetok.distributed import all_reduce_sum_, is_distributed, world_size

Value = TypeVar("Value")


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Joins the processes that `torchrun` started, if any, and leaves them at the end.

    Args:
        device: what the user asked for: "auto", "cpu", "cuda", ...

    Yields:
        The device of this process: with several of them, "cuda" (and "auto" where there is a GPU)
        becomes this one's own GPU.

    Raises:
        WetokError: more processes on this machine than GPUs.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    gpus = torch.cuda.device_count()
    if device == "cuda" or (device == "auto" and gpus):
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= gpus:
            raise WetokError(
                f"process {local} of this machine has no GPU of its own, of {gpus}: start as many "
                "processes as there are GPUs, or give --device cpu"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def summed(tensor: Tensor) -> Tensor:
    """The sum of `tensor`, on a CPU, over the processes; `tensor` itself is left as it is."""
    if not is_distributed():
        return tensor.clone()
    if dist.get_backend() == "nccl":  # a process group of another's making, for GPUs only
        return all_reduce_sum_(tensor.to("cuda")).cpu()
    return all_reduce_sum_(tensor.clone())


def gathered(value: Value) -> list[Value]:
    """The `value` of every process, in the order of their ranks."""
    if not is_distributed():
        return [value]
    values: list[Value | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]
