"""The log of a run: one line of JSON every few steps and at every validation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wetok.checkpoint import written_beside
from wetok.config import WetokError
from wetok.distributed import all_reduce_mean, rank
from wetok.model.usage import UsageCounter
from wetok.train.step import StepResult

USAGE_STEPS = 100
"""Steps that a figure of code usage looks back on."""


class RunLog:
    """log.jsonl, which a resumed run goes on with.

    Lines after `step` are removed first: what a run did after the checkpoint that it resumes from
    happens again. With `validated` False so are validations at that very step.

    Args:
        codes: groups and bits a group of the ids whose usage is told; None for none.
    """

    def __init__(
        self, path: Path, codes: tuple[int, int] | None, step: int = 0, validated: bool = True
    ) -> None:
        self._writes = rank() == 0
        if self._writes:
            _trim(path, step, validated)
        self.path = path
        self._counter = UsageCounter(*codes) if codes else None
        self._counted = 0
        self._window: dict[str, Any] | None = None
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._images, self._seconds, self._waited = 0, 0.0, 0.0

    def add(self, result: StepResult, images: int, seconds: float, waited: float) -> None:
        """Counts a step of so many `images` that took `seconds`, `waited` of them for data.

        Of one that was not taken, its time only.
        """
        self._images += images
        self._seconds += seconds
        self._waited += waited
        self._rate = result.rate
        if result.broken:
            return
        for name, term in result.terms.items():
            before, count = self._sums.get(name, (0, 0))
            self._sums[name] = (term + before, count + 1)
        if self._counter is None:
            return
        self._counter.update(result.ids)
        self._counted += 1
        if self._counted == USAGE_STEPS:
            self._window = self._usage()
            self._counter.reset()
            self._counted = 0

    def line(self, step: int, seconds: float, skipped: int = 0) -> dict[str, Any]:
        """Writes and returns the line of `step`, `seconds` into the run; every rank must call it.

        Losses are means over all processes and the steps since the line before (LPIPS: over those
        that had it), null where one is infinite or no step was taken; usage is of the last full
        window of 100 steps, or of the steps so far until there is one; `skipped` counts the steps
        not taken in the whole run.
        """
        record: dict[str, Any] = {"step": step, "loss": None}
        if self._sums:
            means = torch.stack([total / count for total, count in self._sums.values()])
            for name, mean in zip(self._sums, all_reduce_mean(means).tolist(), strict=True):
                record[name] = float(f"{mean:.6g}") if abs(mean) < float("inf") else None
        record |= {
            "lr": self._rate,
            "skipped": skipped,
            "images_per_second": round(self._images / self._seconds, 2),
            "data_wait": round(self._waited / self._seconds, 4),
            "memory_mb": round(peak_memory() / 2**20),
            **(self._window or self._usage()),
            "seconds": round(seconds, 1),
        }
        self._clear()
        self.append(record)
        return record

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line of its own; with a `step`, by which a resumed run knows what to remove.

        Raises:
            WetokError: the disk is full, or the file can't be written.
        """
        if not self._writes:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise WetokError(
                f"{self.path}: the log can't be written ({error.strerror}); checkpoints are "
                "intact: make room and go on with --resume"
            ) from None

    def _usage(self) -> dict[str, Any]:
        if self._counter is None:
            return {}
        total = self._counter.total()
        return {
            "usage": [round(share, 4) for share in total.usage()],
            "dead_bits": total.dead_bits(),
            "usage_steps": self._counted,
        }


def peak_memory() -> int:
    """Bytes that this process had at most: on an accelerator, else in main memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":  # which has no such count
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _trim(path: Path, step: int, validated: bool) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _stays(line, step, validated)]
    if kept != lines:
        with written_beside(path) as beside:
            beside.write_text("".join(kept), encoding="utf-8")


def _stays(line: str, step: int, validated: bool) -> bool:
    try:
        record = json.loads(line)
        at = record["step"]
    except (ValueError, KeyError, TypeError):  # cut off by whatever ended the run
        return False
    return bool(at < step or (at == step and (validated or "validation" not in record)))
