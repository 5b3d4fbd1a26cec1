"""The processes of a run: which device is this one's, and how gradients meet."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wetok.config import RunConfig, WetokError, near
from wetok.distributed import all_reduce_sum_, is_distributed, rank, world_size
from wetok.train.sharding import shard

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """What `torchrun`, `accelerate launch` or nobody started, by Hugging Face Accelerate.

    Accelerate joins the process group, chooses this process's device and wraps networks for
    `DistributedDataParallel`; precision is the training step's business, whatever `accelerate
    config` says. `accelerate launch --use_fsdp` counts as `run.sharded`.

    Raises:
        WetokError: Accelerate is not installed, no such device, or a process group that it does
            not know.
    """

    def __init__(self, run: RunConfig, folder: Path) -> None:
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
            from accelerate.utils import DistributedType, ProjectConfiguration
        except ImportError:
            raise WetokError(
                "training needs the package accelerate: pip install 'wetok[train]'"
            ) from None
        chosen = choose_device(run.device)
        self.accelerator: Accelerator = Accelerator(
            cpu=chosen.type == "cpu",
            mixed_precision="no",
            # Batch norm is our own, with equal statistics everywhere: nothing to broadcast.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            log_with=_trackers(run.trackers) or None,
            project_config=ProjectConfiguration(str(folder), str(folder / "tensorboard")),
        )
        self.rank, self.world = rank(), world_size()
        if self.accelerator.num_processes != self.world:
            raise WetokError(
                f"there are {self.world} processes, but Accelerate knows of "
                f"{self.accelerator.num_processes}: start them with torchrun or accelerate launch"
            )
        fsdp = self.accelerator.distributed_type == DistributedType.FSDP
        self.sharded = (run.sharded or fsdp) and self.world > 1
        self.device = self.accelerator.device if self.world > 1 else chosen
        self.is_main = self.rank == 0

    def wrap(self, module: nn.Module, sharded: bool = False) -> nn.Module:
        """What to call for a forward pass whose gradients are to be those of all processes."""
        if sharded and self.sharded:
            shard(module, self.device)
            return module
        if self.world == 1:
            return module
        with warnings.catch_warnings():
            # Newer versions of torch have another name for it, which older ones don't know.
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            if self.sharded:  # for which Accelerate wants all networks at once
                return DistributedDataParallel(module, broadcast_buffers=False)
            wrapped: nn.Module = self.accelerator.prepare_model(module, device_placement=False)
            return wrapped

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any process; every one must call it."""
        if self.world == 1:
            return flag
        return bool(all_reduce_sum_(torch.tensor(float(flag), device=self.device)).item())

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error in the block, of one process, is an error of all; every one must enter it.

        Else the others would wait for it forever.
        """
        error: WetokError | None = None
        try:
            yield
        except WetokError as own:
            error = own
        if self.any(error is not None):
            raise error or WetokError("another process of the run ended: see what it says")

    def gathered(self, value: Any) -> list[Any]:
        """`value` of every process, by rank; every one must call it."""
        if not is_distributed():
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values


@contextmanager
def gradients_meet(module: nn.Module, now: bool) -> Iterator[None]:
    """Whether a backward pass started in the block averages gradients over the processes.

    Of several micro-batches only the last need do so, for gradients add up.
    """
    if isinstance(module, DistributedDataParallel) and not now:
        with module.no_sync():
            yield
        return
    sharded: Any = getattr(module, "set_requires_gradient_sync", None)
    if sharded is not None:
        sharded(now)
    yield


def choose_device(name: str) -> torch.device:
    """`auto` is the accelerator if there is one, else the CPU.

    Raises:
        WetokError: no such device here.
    """
    if name == "auto":
        accelerator = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise WetokError(f"run.device={name!r} can't be used: {reason}; try 'auto'") from None


def _trackers(names: tuple[str, ...]) -> list[str]:
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = [kind.value for kind in LoggerType if kind != LoggerType.ALL]
    available = [str(kind) for kind in get_available_trackers()]
    for name in names:
        if name not in known:
            raise WetokError(f"run.trackers: no tracker {name!r}{near(name, known)}")
        if name not in available:
            raise WetokError(
                f"run.trackers: {name!r} is not installed: pip install {name}, or leave it out "
                "(run.trackers=[])"
            )
    return list(names)
