"""What the tests over two processes share: the process group around their jobs."""

from __future__ import annotations

import traceback
from datetime import timedelta

import torch
import torch.distributed as dist


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
    try:
        results = [job(rank, *arguments) for job, *arguments in jobs]
    except Exception:
        results = traceback.format_exc()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
