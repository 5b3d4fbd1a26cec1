"""A training run from its settings to a model folder."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from wetok.checkpoint import Precision, load_network, save_folder
from wetok.config import ModelConfig, TrainConfig, WetokError
from wetok.data.loader import TrainLoader
from wetok.data.sources import ImageFolder
from wetok.data.transforms import RandomCrop
from wetok.losses.objective import ReconstructionObjective
from wetok.losses.perceptual import LPIPS
from wetok.model.network import TokenizerNetwork
from wetok.model.quantizer import GroupedQuantizer
from wetok.model.usage import UsageCounter
from wetok.train.optimizers import build_optimizer
from wetok.train.samples import write_grid
from wetok.train.state import TrainState, checkpoints
from wetok.train.step import StepResult, train_step
from wetok.train.validate import ValidationSet
from wetok.weights import find

_USAGE_STEPS = 100
"""Steps that one usage figure of the log looks back on."""


class Watcher(Protocol):
    """Who shows a run to a person; the loop itself prints nothing."""

    def step(self, record: dict[str, Any]) -> None:
        """A line of the log, every `run.log_every` steps."""

    def event(self, text: str) -> None:
        """Something worth a line: a checkpoint, a validation score, skipped files."""


def choose_device(name: str) -> torch.device:
    """`auto` is the accelerator if there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator or torch.device("cpu")


class Run:
    """One training run in a folder of its own.

    folder/config.json         the settings it was started with
    folder/log.jsonl           one line a log step and a validation
    folder/checkpoints/step-N  all that a resume needs
    folder/samples/            grids of validation images and reconstructions
    folder/model/              the averaged weights with the best validation score so far
    """

    def __init__(self, config: TrainConfig, folder: Path, watcher: Watcher) -> None:
        self.config, self.folder, self.watcher = config, folder, watcher
        self.device = choose_device(config.run.device)
        torch.manual_seed(config.run.seed)
        self.source = ImageFolder(config.data.train, cache=config.data.cache)
        self.lpips = self._lpips()
        network = self._network().to(self.device).train()
        self.state = TrainState(
            network, build_optimizer(config.optimizer, network.parameters()), config
        )
        self.validation = (
            ValidationSet(Path(config.data.val), config.model.factor) if config.data.val else None
        )
        self.usage = UsageCounter(config.model.groups, config.model.group_bits)
        self._stop = False

    def _lpips(self) -> LPIPS | None:
        settings = [
            self.config.loss,
            *(self.config.at(p.until - 1).loss for p in self.config.phases),
        ]
        if not any(loss.perceptual_weight for loss in settings):
            return None
        loss = self.config.loss
        given = Path(loss.perceptual_weights) if loss.perceptual_weights else None
        path = find(f"lpips-{loss.perceptual}", given)
        return LPIPS.from_file(path, loss.perceptual).to(self.device)

    def _network(self) -> TokenizerNetwork:
        loss = self.config.loss
        quantizer = GroupedQuantizer(
            self.config.model.bits,
            self.config.model.groups,
            entropy=loss.entropy if loss.entropy_weight else None,
            temperature=loss.temperature,
            eps=loss.epsilon,
        )
        network = TokenizerNetwork(self.config.model, quantizer)
        if self.config.run.init:
            start, _ = load_network(self.config.run.init)
            if start.config != self.config.model:
                raise WetokError(
                    f"run.init={self.config.run.init!r}: its model differs from the run's in "
                    f"{_differences(start.config, self.config.model)}"
                )
            network.load_state_dict(start.state_dict())
        return network

    def resume(self) -> int:
        """Goes on from the newest checkpoint; returns its step.

        Raises:
            WetokError: there is none, or it is another network's.
        """
        found = checkpoints(self.folder / "checkpoints")
        if not found:
            raise WetokError(f"{self.folder}: no checkpoint to resume from; start without --resume")
        self.state.load(found[-1])
        return self.state.step

    def train(self) -> bool:
        """Runs to the last step; False when a signal ended it early (after a checkpoint)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config_file = self.folder / "config.json"
        config_file.write_text(self.config.model_dump_json(indent=2) + "\n")
        state = self.state
        with self._stop_on_signal(), open(self.folder / "log.jsonl", "a") as log:
            while state.step < self.config.run.steps and not self._stop:
                self._phase(log)
            if state.step >= self.config.run.steps:
                self._checkpoint(log, validate=True)
        return not self._stop

    def _phase(self, log: Any) -> None:
        """Steps until the settings change, the run ends or a signal comes."""
        run, state = self.config.run, self.state
        phase = self.config.at(state.step)
        ends = [p.until for p in self.config.phases if p.until > state.step]
        last = min([run.steps, *ends])
        objective = ReconstructionObjective(phase.loss, self.lpips)
        state.network.quantizer.entropy = phase.loss.entropy if phase.loss.entropy_weight else None
        data = phase.data
        crop = RandomCrop(
            data.crop, data.scale, data.ratio, flip=0.5 if data.flip else 0, jitter=data.color
        )
        loader = TrainLoader(
            self.source,
            data.batch,
            data.crop,
            run.seed,
            transform=crop,
            workers=data.workers,
            draft=not data.cache,
        )
        loader.load_state_dict({"samples": state.samples})
        began, before = time.perf_counter(), state.step
        waited = 0.0
        with loader:
            batches = iter(loader)
            while state.step < last and not self._stop:
                asked = time.perf_counter()
                image = next(batches).to(self.device, non_blocking=True)
                now = time.perf_counter()
                waited += now - asked
                result = train_step(state, objective, phase, image)
                state.samples += data.batch
                self.usage.update(result.ids)
                state.seconds += time.perf_counter() - asked
                if state.step % run.log_every == 0 or state.step == last:
                    elapsed = time.perf_counter() - began
                    speed = (state.step - before) * data.batch / elapsed
                    self._log_step(log, result, speed, waited / elapsed)
                    began, before, waited = time.perf_counter(), state.step, 0.0
                if self._due(run.checkpoint_every) or self._due(run.validate_every):
                    self._checkpoint(log, validate=self._due(run.validate_every))
                    began, before, waited = time.perf_counter(), state.step, 0.0
        if loader.failures:
            self.watcher.event(f"{len(loader.failures)} unreadable images were skipped")
        if self._stop:
            self._checkpoint(log, validate=False)

    def _due(self, every: int) -> bool:
        return self.state.step % every == 0 and self.state.step < self.config.run.steps

    def _log_step(self, log: Any, result: StepResult, speed: float, waited: float) -> None:
        record = {
            "step": self.state.step,
            **{name: float(term) for name, term in result.terms.items()},
            "lr": result.rate,
            "images_per_second": speed,
            "data_wait": waited,
            "usage": self.usage.usage(),
            "dead_bits": self.usage.dead_bits(),
            "seconds": self.state.seconds,
        }
        if self.state.step % _USAGE_STEPS == 0:
            self.usage.reset()
        _append(log, record)
        self.watcher.step(record)

    def _checkpoint(self, log: Any, validate: bool) -> None:
        state, run = self.state, self.config.run
        best = False
        if validate and self.validation:
            with state.ema.applied(state.network):
                scores = self.validation.score(state.network, self.lpips)
                image, again = self.validation.examples(state.network)
                write_grid(self.folder / "samples" / f"step-{state.step:08d}.png", image, again)
            best = state.best is None or scores["score"] < state.best
            if best:
                state.best = scores["score"]
            _append(log, {"step": state.step, "validation": scores, "best": best})
            told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self.watcher.event(f"step {state.step}: {told}{' (best so far)' if best else ''}")
        if best or (self.validation is None and validate):
            self.export(self.folder / "model")
        path = state.save(self.folder / "checkpoints", run.keep, best=best)
        self.watcher.event(f"checkpoint {path}")

    def export(self, folder: Path, precision: Precision = "float32") -> None:
        """Writes the averaged weights as a model folder."""
        with self.state.ema.applied(self.state.network):
            save_folder(folder, self.state.network, name=self.folder.name, precision=precision)

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the step under way, with a checkpoint."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop = True

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, stop) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def _differences(one: ModelConfig, other: ModelConfig) -> str:
    mine, theirs = one.model_dump(), other.model_dump()
    return ", ".join(f"{k} ({mine[k]} against {theirs[k]})" for k in mine if mine[k] != theirs[k])


def _append(log: Any, record: dict[str, Any]) -> None:
    log.write(json.dumps(record) + "\n")
    log.flush()
