"""What every training run is: steps between checkpoints, a log, signals; whatever is trained."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol

from wetok.checkpoint import Precision, written_beside
from wetok.config import RunSettings, WetokError
from wetok.locking import locked
from wetok.train.log import RunLog
from wetok.train.processes import Processes
from wetok.train.signals import StopSignal
from wetok.train.state import Trained, TrainState, checkpoints
from wetok.train.step import StepResult
from wetok.train.trackers import Trackers


class Watcher(Protocol):
    """Who shows a run to a person; the loop itself prints nothing."""

    def step(self, record: dict[str, Any]) -> None:
        """A line of the log, every `run.log_every` steps."""

    def event(self, text: str) -> None:
        """Something worth a line: a checkpoint, a validation score, a skipped file."""


class Stretch(NamedTuple):
    """Steps between two changes of the settings."""

    end: int
    """The step at which it is over."""
    batch: int
    """Samples a step, over all processes."""
    step: Callable[[], tuple[StepResult, float]]
    """Takes a step; tells its result and the seconds spent waiting for data."""
    failures: Mapping[str, str]
    """What could not be read so far: name -> reason."""


class Course(ABC, Generic[Trained]):
    """A training run in a folder of its own, over one process or many.

    folder/config.json         the settings it was last started with
    folder/log.jsonl           one line a log step and a validation
    folder/checkpoints/step-N  all that a resume needs
    folder/samples/            pictures of what it has learned
    folder/tensorboard/        what TensorBoard shows
    folder/model/              averaged weights with the best validation score so far (without
                               validation, or with run.export=newest: the newest)

    Only the first process writes and watches. What is trained, on what, and how it is scored is a
    subclass's; it sets `state` before `train`.
    """

    state: TrainState[Trained]

    def __init__(self, config: RunSettings, folder: Path, watcher: Watcher) -> None:
        self.config, self.folder = config, folder
        self.processes = Processes(config.run, folder)
        self.watcher = watcher if self.processes.is_main else _Nobody()
        self.device = self.processes.device
        self.exports = True
        """Whether there is to be a model/."""
        self.saved: int | None = None
        """Step of the newest checkpoint."""
        self._skipped: set[str] = set()
        self._signal = StopSignal()
        self._stop = False

    @abstractmethod
    def _about(self) -> str:
        """What it trains on, for a person."""

    @abstractmethod
    def _codes(self) -> tuple[int, int] | None:
        """Groups and bits a group of the ids whose usage is logged; None for no usage."""

    @abstractmethod
    def _next_stretch(self) -> AbstractContextManager[Stretch]:
        """The stretch that the next step lies in, for as long as it is used."""

    @property
    @abstractmethod
    def _validates(self) -> bool:
        """Whether there is anything to validate on."""

    @abstractmethod
    def _scores(self) -> dict[str, float]:
        """Of the averaged weights; `score` chooses the best, lower is better."""

    @abstractmethod
    def _sample(self) -> None:
        """Writes a picture of what the averaged weights can do."""

    @abstractmethod
    def export(self, folder: Path, precision: Precision = "float32") -> None:
        """Writes the averaged weights as a model folder; every process must call it."""

    def _goes_on(self, newest: Path | None) -> None:
        """Loads the checkpoint to resume from, if there is one."""
        if newest is not None:
            self.state.load(newest)
            self.watcher.event(f"resumed from {newest}")
            self.saved = self.state.step

    def train(self) -> bool:
        """Runs to the last step; False when a signal ended it early (after a checkpoint)."""
        with ExitStack() as held:
            with self.processes.together():
                if self.processes.is_main:
                    self._begin_folder()
                    held.enter_context(locked(self.folder, self.folder / ".lock"))
                    self._check_newest()
            return self._train()

    def _train(self) -> bool:
        state, steps = self.state, self.config.run.steps
        with self.processes.together():
            self.log = RunLog(
                self.folder / "log.jsonl",
                self._codes(),
                state.step,
                validated=0 < state.step < steps,  # at both ends it happens again
            )
        self.watcher.event(f"training on {self._about()}")
        with self.processes.together():
            self.trackers = Trackers(self.processes, self.config, self.folder.name, state.step)
        with self._signal.watched():
            if state.step == 0 and self.config.run.init and self._validates:
                self._validate()  # what it starts from
            while state.step < steps and not self._stop:
                self._take_stretch()
            finished = state.step >= steps
            if finished:
                self._sample()
            if finished or (state.step != self.saved and not state.skipped_in_a_row):
                self._checkpoint(validate=finished)
        with self.processes.together():
            self.trackers.close()
        return finished

    def _begin_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WetokError(
                f"out={self.folder}: can't be made ({error.strerror}); name another --out"
            ) from None
        for left in [*self.folder.rglob(".wetok-*.tmp")]:  # half written by a run that was killed
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)
        with written_beside(self.folder / "config.json") as beside:
            beside.write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def _check_newest(self) -> None:
        """Raises WetokError where another process went on with the run after this one opened it."""
        newest = checkpoints(self.folder / "checkpoints")
        if newest and int(newest[-1].name.removeprefix("step-")) > self.state.step:
            raise WetokError(
                f"out={self.folder}: another process went on with this run to {newest[-1].name}; "
                "start again with --resume"
            )

    def _take_stretch(self) -> None:
        """Steps until the settings change, the run ends or a signal comes."""
        run, state, processes = self.config.run, self.state, self.processes
        with self._next_stretch() as stretch:
            while state.step < stretch.end and not self._stop:
                began = time.perf_counter()
                result, waited = stretch.step()
                state.samples += stretch.batch
                seconds = time.perf_counter() - began
                state.seconds += seconds
                self.log.add(result, stretch.batch, seconds, waited)
                self._tell_broken(result)
                if state.step % run.log_every == 0 or state.step == stretch.end:
                    with processes.together():
                        record = self.log.line(state.step, state.seconds, state.skipped)
                        self.trackers.log(record)
                    self.watcher.step(record)
                    self._tell_skipped(stretch.failures)
                # At the end all is due; and what keeps breaking may have broken weights.
                if state.step < run.steps and not state.skipped_in_a_row:
                    if state.step % run.sample_every == 0:
                        self._sample()
                    validate = state.step % run.validate_every == 0
                    if validate or state.step % run.checkpoint_every == 0:
                        self._checkpoint(validate)
                self._stop = processes.any(self._signal.came)  # all after the same step
            self._tell_skipped(stretch.failures)

    def _append(self, record: dict[str, Any]) -> None:
        """Adds a line to the log; every process must call it."""
        with self.processes.together():
            self.log.append({"step": self.state.step, **record})

    def _tell_broken(self, result: StepResult) -> None:
        if result.broken is None:
            return
        state = self.state
        self._append({"not_taken": result.broken})
        self.watcher.event(
            f"step {state.step} not taken: {result.broken} is NaN or infinite "
            f"({state.skipped} so far; run.max_skipped={self.config.run.max_skipped} in a row end "
            "the run)"
        )

    def _tell_skipped(self, failures: Mapping[str, str]) -> None:
        own = {name: reason for name, reason in failures.items() if name not in self._skipped}
        self._skipped |= own.keys()
        everyone: dict[str, str] = {}
        for one in self.processes.gathered(own):
            everyone |= one
        for reason in everyone.values():
            self._append({"skipped_image": reason})
            self.watcher.event(f"skipped: {reason}")

    def _validate(self) -> float:
        """Scores the averaged weights, tells them, and returns the one that chooses the best."""
        state = self.state
        with state.ema.applied(state.network):
            scores = self._scores()
        best = state.step > 0 and (state.best is None or scores["score"] < state.best)
        self._append({"validation": scores, "best": best})
        with self.processes.together():
            self.trackers.log({"step": state.step, "validation": scores})
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        self.watcher.event(f"step {state.step}: {told}{' (best so far)' if best else ''}")
        return scores["score"]

    def _checkpoint(self, validate: bool) -> None:
        state, best = self.state, False
        if validate and self._validates:
            score = self._validate()
            best = state.best is None or score < state.best
            state.best = score if best else state.best
        choosing = self._validates and self.config.run.export == "best"
        if (best if choosing else validate) and self.exports:
            self.export(self.folder / "model")
        with self.processes.together():
            path = state.save(self.folder / "checkpoints", self.config.run.keep, best)
        self.saved = state.step
        self.watcher.event(f"checkpoint {path}")


class _Nobody:
    """Watches nothing: for every process but the first."""

    def step(self, record: dict[str, Any]) -> None:
        pass

    def event(self, text: str) -> None:
        pass
