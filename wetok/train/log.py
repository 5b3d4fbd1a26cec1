"""The log of a run: one line of JSON every few steps and at every validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from wetok.checkpoint import written_beside
from wetok.model.usage import UsageCounter
from wetok.train.step import StepResult

USAGE_STEPS = 100
"""Steps that a figure of code usage looks back on."""


class RunLog:
    """log.jsonl, which a resumed run goes on with.

    Lines after `step` are removed first: what a run did after the checkpoint that it resumes from
    happens again. With `validated` False so are validations at that very step.
    """

    def __init__(
        self, path: Path, groups: int, group_bits: int, step: int = 0, validated: bool = True
    ) -> None:
        _trim(path, step, validated)
        self.path = path
        self._counter = UsageCounter(groups, group_bits)
        self._counted = 0
        self._window: dict[str, Any] | None = None
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._images, self._seconds, self._waited = 0, 0.0, 0.0

    def add(self, result: StepResult, images: int, seconds: float, waited: float) -> None:
        """Counts a step of so many `images` that took `seconds`, `waited` of them for data."""
        for name, term in result.terms.items():
            before, count = self._sums.get(name, (0, 0))
            self._sums[name] = (term + before, count + 1)
        self._images += images
        self._seconds += seconds
        self._waited += waited
        self._rate = result.rate
        self._counter.update(result.ids)
        self._counted += 1
        if self._counted == USAGE_STEPS:
            self._window = self._usage()
            self._counter.reset()
            self._counted = 0

    def line(self, step: int, seconds: float) -> dict[str, Any]:
        """Writes and returns the line of `step`, `seconds` into the run.

        Losses are means over the steps since the line before (LPIPS: over those that had it),
        null where one is infinite; usage is of the last full window of 100 steps, or of the steps
        so far until there is one.
        """
        record: dict[str, Any] = {"step": step}
        for name, (total, count) in self._sums.items():
            mean = float(total) / count
            record[name] = float(f"{mean:.6g}") if abs(mean) < float("inf") else None
        record |= {
            "lr": self._rate,
            "images_per_second": round(self._images / self._seconds, 2),
            "data_wait": round(self._waited / self._seconds, 4),
            **(self._window or self._usage()),
            "seconds": round(seconds, 1),
        }
        self._clear()
        self.append(record)
        return record

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line of its own; with a `step`, by which a resumed run knows what to remove."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _usage(self) -> dict[str, Any]:
        return {
            "usage": [round(share, 4) for share in self._counter.usage()],
            "dead_bits": self._counter.dead_bits(),
            "usage_steps": self._counted,
        }


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
