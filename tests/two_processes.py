"""What the tests over two processes share: the process group around their jobs."""

from __future__ import annotations

import faulthandler
import os
import socket
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_rank(rank: int, folder: str, jobs: list) -> None:
    """Runs all jobs in one process group, for starting processes is what takes long here."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    _run(rank, folder, jobs)


def run_jobs(folder: Path, jobs: list[tuple[Any, ...]]) -> list[tuple[Any, Any]]:
    """What both ranks made of each job (function, *arguments), called as function(rank, ...).

    The processes are told what `torchrun` would tell them, and no more: the first job that needs
    a process group joins it. Results must be of tensors and plain values.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_run_as_torchrun, args=(str(folder), port, jobs), nprocs=2)
    one, other = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    assert isinstance(one, list) and isinstance(other, list), f"{one}\n{other}"
    return list(zip(one, other, strict=True))


def _run_as_torchrun(rank: int, folder: str, port: int, jobs: list) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ |= {name: str(value) for name, value in (place | address).items()}
    faulthandler.dump_traceback_later(150, exit=True)  # rather than wait for ever
    _run(rank, folder, jobs)
    faulthandler.cancel_dump_traceback_later()


def _run(rank: int, folder: str, jobs: list) -> None:
    try:
        results: Any = [job(rank, *arguments) for job, *arguments in jobs]
    except Exception:
        results = traceback.format_exc()
        print(results, flush=True)  # the other process may wait for this one until it is ended
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
