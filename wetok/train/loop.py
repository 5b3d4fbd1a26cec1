"""A training run from its settings to a model folder."""

from __future__ import annotations

import json
import signal
import threading
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
from wetok.train.log import RunLog
from wetok.train.optimizers import build_optimizer
from wetok.train.samples import write_grid
from wetok.train.state import TrainState, checkpoints
from wetok.train.step import train_step
from wetok.train.validate import ValidationSet, reconstruct
from wetok.weights import find

_SHOWN = 8
"""Images of a samples picture."""


class Watcher(Protocol):
    """Who shows a run to a person; the loop itself prints nothing."""

    def step(self, record: dict[str, Any]) -> None:
        """A line of the log, every `run.log_every` steps."""

    def event(self, text: str) -> None:
        """Something worth a line: a checkpoint, a validation score, a skipped file."""


class Run:
    """One training run in a folder of its own.

    folder/config.json         the settings it was last started with
    folder/log.jsonl           one line a log step and a validation
    folder/checkpoints/step-N  all that a resume needs
    folder/samples/            grids of images and their reconstructions
    folder/model/              averaged weights with the best validation score so far (without a
                               validation folder: the newest)

    Raises:
        WetokError: a run is in the folder and `resume` is not given, or none is and it is; its
            checkpoint is damaged or another network's; images, weights, device or `run.init`
            can't be had.
    """

    def __init__(
        self, config: TrainConfig, folder: Path, watcher: Watcher, resume: bool = False
    ) -> None:
        self.config, self.folder, self.watcher = config, folder, watcher
        newest = self._newest(resume)
        self.device = choose_device(config.run.device)
        with _naming("data.train"):
            self.source = ImageFolder(config.data.train, cache=config.data.cache)
        self.lpips = self._lpips()
        torch.manual_seed(config.run.seed)
        network = self._network(start_anew=newest is None)
        self.state = TrainState(
            network, build_optimizer(config.optimizer, network.parameters()), config
        )
        if newest is not None:
            self.state.load(newest)
            watcher.event(f"resumed from {newest}")
        self.validation: ValidationSet | None = None
        if config.data.val:
            with _naming("data.val"):
                self.validation = ValidationSet(Path(config.data.val), config.model.factor)
            self._shown = self.validation.examples(_SHOWN)
        else:
            with self._loader(config, batch=_SHOWN) as loader:
                self._shown = next(loader)
        self._skipped: set[str] = set()
        self._saved: int | None = None
        self._stop = False

    def _newest(self, resume: bool) -> Path | None:
        found = checkpoints(self.folder / "checkpoints")
        if found and not resume:
            raise WetokError(
                f"out={self.folder} holds a run ({found[-1].name}): go on with --resume, or name "
                "another --out"
            )
        if not resume:
            return None
        if not found:
            raise WetokError(f"out={self.folder} holds no run to --resume: start without it")
        before = _model_of(self.folder / "config.json")
        if before is not None and before != self.config.model:
            raise WetokError(
                f"out={self.folder} holds a run of another model: "
                f"{_differences(before, self.config.model)}; resume it with its own recipe"
            )
        return found[-1]

    def _lpips(self) -> LPIPS | None:
        crops = [c.data.crop for _, c in self.config.stretches() if c.loss.perceptual_weight]
        if not crops:
            return None
        loss = self.config.loss
        given = Path(loss.perceptual_weights) if loss.perceptual_weights else None
        lpips = LPIPS.from_file(find(f"lpips-{loss.perceptual}", given), loss.perceptual)
        if min(crops) < lpips.smallest:
            raise WetokError(
                f"data.crop={min(crops)}: LPIPS {loss.perceptual} needs at least {lpips.smallest} "
                "pixels; enlarge it, or set loss.perceptual_weight=0"
            )
        return lpips.to(self.device)

    def _network(self, start_anew: bool) -> TokenizerNetwork:
        config = self.config
        # All of them, so that what one of them refuses is told before the first step.
        quantizers = [_quantizer(stretch) for _, stretch in config.stretches()]
        network = TokenizerNetwork(config.model, quantizers[0])
        if config.run.init and start_anew:
            start, _ = load_network(config.run.init)
            if start.config != config.model:
                raise WetokError(
                    f"run.init={config.run.init!r} is another model: "
                    f"{_differences(start.config, config.model)}"
                )
            network.load_state_dict(start.state_dict())
        return network.to(self.device).train()

    def _loader(self, config: TrainConfig, batch: int, workers: int = 0) -> TrainLoader[int]:
        data = config.data
        crop = RandomCrop(
            data.crop, data.scale, data.ratio, flip=0.5 if data.flip else 0, jitter=data.color
        )
        return TrainLoader(
            self.source,
            batch,
            data.crop,
            config.run.seed,
            transform=crop,
            workers=workers,
            draft=not data.cache,
        )

    def train(self) -> bool:
        """Runs to the last step; False when a signal ended it early (after a checkpoint)."""
        state, model, steps = self.state, self.config.model, self.config.run.steps
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.config.model_dump_json(indent=2) + "\n"
        (self.folder / "config.json").write_text(settings, encoding="utf-8")
        self.log = RunLog(
            self.folder / "log.jsonl",
            model.groups,
            model.group_bits,
            state.step,
            validated=state.step < steps,
        )
        with self._stop_on_signal():
            while state.step < steps and not self._stop:
                self._stretch()
            finished = state.step >= steps
            if finished:
                self._sample()
            if finished or state.step != self._saved:
                self._checkpoint(validate=finished)
        return finished

    def _stretch(self) -> None:
        """Steps until the settings change, the run ends or a signal comes."""
        run, state = self.config.run, self.state
        end, config = next(s for s in self.config.stretches() if s[0] > state.step)
        state.network.quantizer = _quantizer(config)
        objective = ReconstructionObjective(config.loss, self.lpips)
        batch = config.data.batch
        with self._loader(config, batch, config.data.workers) as loader:
            loader.load_state_dict({"samples": state.samples})
            while state.step < end and not self._stop:
                began = time.perf_counter()
                image = next(loader).to(self.device, non_blocking=True)
                waited = time.perf_counter() - began
                result = train_step(state, objective, config, image)
                state.samples += batch
                seconds = time.perf_counter() - began
                state.seconds += seconds
                self.log.add(result, batch, seconds, waited)
                if state.step % run.log_every == 0 or state.step == end:
                    self.watcher.step(self.log.line(state.step, state.seconds))
                    self._tell_skipped(loader.failures)
                if state.step < run.steps:  # at the end all is due
                    if state.step % run.sample_every == 0:
                        self._sample()
                    validate = state.step % run.validate_every == 0
                    if validate or state.step % run.checkpoint_every == 0:
                        self._checkpoint(validate)
            self._tell_skipped(loader.failures)

    def _tell_skipped(self, failures: dict[str, str]) -> None:
        for name in failures.keys() - self._skipped:
            self._skipped.add(name)
            self.log.append({"step": self.state.step, "skipped": failures[name]})
            self.watcher.event(f"skipped: {failures[name]}")

    def _sample(self) -> None:
        state = self.state
        with state.ema.applied(state.network):
            again = reconstruct(state.network, self._shown)
        write_grid(self.folder / "samples" / f"step-{state.step:08d}.png", self._shown, again)

    def _checkpoint(self, validate: bool) -> None:
        state = self.state
        best = False
        if validate and self.validation:
            with state.ema.applied(state.network):
                scores = self.validation.score(state.network, self.lpips)
            best = state.best is None or scores["score"] < state.best
            if best:
                state.best = scores["score"]
            self.log.append({"step": state.step, "validation": scores, "best": best})
            told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self.watcher.event(f"step {state.step}: {told}{' (best so far)' if best else ''}")
        if best or (validate and not self.validation):
            self.export(self.folder / "model")
        path = state.save(self.folder / "checkpoints", self.config.run.keep, best)
        self._saved = state.step
        self.watcher.event(f"checkpoint {path}")

    def export(self, folder: Path, precision: Precision = "float32") -> None:
        """Writes the averaged weights as a model folder."""
        name = self.folder.resolve().name
        with self.state.ema.applied(self.state.network):
            save_folder(folder, self.state.network, name=name, precision=precision)

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the step under way, with a checkpoint.

        A second one does what it would have done, for whoever can't wait.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # where Python knows no signals
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop = True
            restore()

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            restore()


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


@contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Puts the setting's name before an error, for its value alone does not tell which it is."""
    try:
        yield
    except WetokError as error:
        raise WetokError(f"{setting}: {error}") from None


def _quantizer(config: TrainConfig) -> GroupedQuantizer:
    loss = config.loss
    return GroupedQuantizer(
        config.model.bits,
        config.model.groups,
        entropy=loss.entropy if loss.entropy_weight else None,
        temperature=loss.temperature,
        eps=loss.epsilon,
    )


def _model_of(path: Path) -> ModelConfig | None:
    try:
        return ModelConfig.model_validate(json.loads(path.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _differences(one: ModelConfig, other: ModelConfig) -> str:
    mine, theirs = one.model_dump(), other.model_dump()
    return ", ".join(f"{k}={mine[k]} there, {theirs[k]} here" for k in mine if mine[k] != theirs[k])
