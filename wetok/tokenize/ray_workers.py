"""What runs on a cluster's nodes: decoding tasks, and actors that encode.

    row (task) -> decode_rows -> row (task, outcomes) -> Encoding -> row (answer)

Cells are pickles: Arrow would copy arrays of many shapes one by one. What is wrong with an image is
part of the outcome; what is wrong with a node, or with the model, is a row with a `problem`.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import socket
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import wetok
from wetok.data.cells import scale_package
from wetok.tokenize.chunks import Chunk, Encoded, encode
from wetok.tokenize.inputs import Reader
from wetok.tokenize.plan import Plan
from wetok.tokenize.pool import SECONDS, DecodePool
from wetok.tokenize.work import Decoded, Failed, decode


class Task(NamedTuple):
    """A chunk to work on."""

    chunk: Chunk
    careful: bool
    """Decodes in a process of its own: an image that ends it is told, and costs nothing else."""


class Answer(NamedTuple):
    """What came of a task."""

    encoded: Encoded | None
    problem: str
    """Why there is nothing; empty where there is something."""
    seconds: float
    """Spent in the encoder."""
    worker: tuple[str, int]
    """Host and process."""


@dataclass(frozen=True)
class Job:
    """What all tasks share."""

    plan: Plan
    reader: Reader
    folder: str
    """Where the driver runs: paths may be relative to it."""
    paths: tuple[str, ...]
    """Sources that must be there on every node."""

    def problem(self) -> str:
        """Why this node can't work on the job; empty where it can."""
        host = socket.gethostname()
        if wetok.__version__ != self.plan.about.wetok:
            return f"node {host} has wetok {wetok.__version__}, not {self.plan.about.wetok}"
        for path in (self.folder, *self.paths):
            if not os.path.exists(path):
                return f"node {host} has no {path}: sources must be at the same place on every node"
        if self.plan.preprocessing.hash != self.plan.about.preprocessing_hash:
            return f"node {host} makes other pixels: install the same version of Pillow there"
        os.chdir(self.folder)
        return ""


_READY: dict[Any, tuple[Job, str]] = {}  # of this process: readers keep what they have opened


def _job(reference: Any) -> tuple[Job, str]:
    import ray

    if reference not in _READY:
        job: Job = ray.get(reference)
        _READY.clear()
        _READY[reference] = (job, job.problem())
    return _READY[reference]


def decode_rows(rows: Any, reference: list[Any]) -> Any:
    """Table of one row (task) to one of (task, outcomes, problem); a Ray task.

    Args:
        reference: of a `Job`, in a list, so that Ray leaves it a reference.
    """
    job, problem = _job(reference[0])
    task: Task = pickle.loads(rows["task"][0].as_py())
    outcomes: list[Decoded | Failed] = []
    if not problem:
        outcomes = (_carefully if task.careful else _quickly)(task.chunk, job)
    return table(task=task, outcomes=outcomes, problem=problem)


def _quickly(chunk: Chunk, job: Job) -> list[Decoded | Failed]:
    """In this process. If it dies of an image, the driver sees to the chunk once more, carefully.

    So it does when an image takes too long.
    """
    outcomes = []
    with open(os.devnull, "w") as nowhere:
        for item in chunk.items:
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=nowhere)
            try:
                outcomes.append(decode(item, job.reader, job.plan.preprocessing))
            finally:
                faulthandler.cancel_dump_traceback_later()
    return outcomes


def _carefully(chunk: Chunk, job: Job) -> list[Decoded | Failed]:
    found: dict[int, Decoded | Failed] = {}
    with DecodePool(job.reader, job.plan.preprocessing, 1, ahead=len(chunk.items)) as pool:
        for index, outcome in pool.run(enumerate(chunk.items)):
            found[index] = outcome
    return [found[index] for index in range(len(chunk.items))]


class Encoding:
    """Table of one row (task, outcomes, problem) to one of (answer); a Ray actor with the model.

    Args:
        job: reference to a `Job`.
        tokenizer: reference to a `wetok.Tokenizer` on the CPU.
        device: where to compute.
    """

    def __init__(self, job: Any, tokenizer: Any, device: str) -> None:
        import ray
        import torch

        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(cpus)))
        self._plan = ray.get(job).plan
        self._problem = ""
        try:
            self._tokenizer = ray.get(tokenizer).to(device)
        except Exception as error:
            self._problem = f"node {socket.gethostname()} can't run the model: {_line(error)}"

    def __call__(self, rows: Any) -> Any:
        begun = time.perf_counter()
        problem = self._problem or pickle.loads(rows["problem"][0].as_py())
        encoded = None
        if not problem:
            task: Task = pickle.loads(rows["task"][0].as_py())
            outcomes = pickle.loads(rows["outcomes"][0].as_buffer())
            try:
                encoded = encode(task.chunk, outcomes, self._plan, self._tokenizer)
            except Exception as error:
                problem = f"node {socket.gethostname()} can't encode: {_line(error)}"
        seconds = time.perf_counter() - begun
        worker = (socket.gethostname(), os.getpid())
        return table(answer=Answer(encoded, problem, seconds, worker))


def table(**cells: Any) -> Any:
    """One row of pickles."""
    pa = scale_package("pyarrow", "--engine ray")
    return pa.table(
        {name: pa.array([pickle.dumps(cell, 5)], pa.large_binary()) for name, cell in cells.items()}
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
