"""`wetok train` in processes of its own, to be killed: forks ready for use, or the real thing."""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import socket
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil

import wetok

_CONTEXT = mp.get_context("forkserver")
# Imported once: a process of its own then takes a hundredth of the time.
_CONTEXT.set_forkserver_preload(["wetok.commands.train", "wetok.train.loop", "accelerate"])


class Forked:
    """Each rank is a fork of a process that has imported all it needs."""

    def __init__(self, words: list[str], world: int, told: Path, largest: int = 0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.told = [told.with_suffix(f".{rank}") for rank in range(world)]
        self.ranks: list[ForkServerProcess] = []
        for rank in range(world):
            place = {"OMP_NUM_THREADS": "1"}
            if world > 1:
                place |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
                place |= {"LOCAL_WORLD_SIZE": str(world)}
                place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            arguments = words, place, str(self.told[rank]), largest
            self.ranks.append(_CONTEXT.Process(target=_run, args=arguments, daemon=True))
            self.ranks[-1].start()

    def kill(self, rank: int | None = None) -> None:
        """Kills all, or one and waits for the others to notice."""
        for number, process in enumerate(self.ranks):
            if rank in (None, number):
                process.kill()
        self.wait()

    def send(self, number: int) -> None:
        pid = self.ranks[0].pid
        assert pid is not None
        os.kill(pid, number)

    def running(self) -> bool:
        return all(process.is_alive() for process in self.ranks)

    def wait(self) -> list[int]:
        """Exit codes, by rank."""
        for process in self.ranks:
            process.join(120)
            process.kill()
            process.join()
        return [process.exitcode or 0 for process in self.ranks]

    def output(self, rank: int = 0) -> str:
        return self.told[rank].read_text()


def _run(words: list[str], place: dict[str, str], told: str, largest: int) -> None:
    os.setsid()
    os.environ |= place
    with open(told, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # curves take a second
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    import torch

    from wetok.cli import main

    torch.set_num_threads(1)
    main(["train", *words])


class Real:
    """`python -m wetok`, by torchrun where there are several."""

    def __init__(self, words: list[str], world: int, told: Path, largest: int = 0) -> None:
        assert not largest
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={world}", "--standalone"]
        root = str(Path(wetok.__file__).parent.parent)
        self.told = told
        with open(told, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *(launcher if world > 1 else []), "-m", "wetok", "train", *words],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.world = world

    def kill(self, rank: int | None = None) -> None:
        """Kills all, or one of torchrun's and waits for it to notice."""
        try:
            if rank is not None and self.world > 1:
                workers = psutil.Process(self.process.pid).children()
                if len(workers) == self.world:
                    workers[rank].kill()
                    self.process.wait(120)
                    return
            # torchrun gives each of its own a session; stopped first, it starts no more of them.
            launcher = psutil.Process(self.process.pid)
            launcher.suspend()
            for process in [*launcher.children(recursive=True), launcher]:
                process.kill()
        except psutil.NoSuchProcess:
            pass  # it was done
        self.process.wait()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> list[int]:
        return [self.process.wait(600)]

    def output(self, rank: int = 0) -> str:
        return self.told.read_text()


def wait_until(seen: float, run: Forked | Real, what: object) -> None:
    """Looks until `what()` is at least `seen`, or the run is over."""
    while run.running() and what() < seen:  # type: ignore[operator]
        time.sleep(0.001)
