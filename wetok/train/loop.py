"""A training run from its settings to a model folder."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from wetok.checkpoint import Precision, save_folder, written_beside
from wetok.config import SourceConfig, TrainConfig, WetokError
from wetok.data.loader import TrainLoader
from wetok.data.transforms import RandomCrop
from wetok.losses.objective import ReconstructionObjective
from wetok.model.network import TokenizerNetwork
from wetok.train import start
from wetok.train.log import RunLog
from wetok.train.noise import training_noise
from wetok.train.processes import Processes
from wetok.train.samples import grid, write_picture
from wetok.train.sharding import whole
from wetok.train.signals import StopSignal
from wetok.train.state import TrainState
from wetok.train.step import Batch, StepResult, train_step
from wetok.train.trackers import Trackers
from wetok.train.validate import ValidationSet, reconstruct

Trained = TypeVar("Trained", bound=nn.Module)

_SHOWN = 8
"""Images of a samples picture."""


class Watcher(Protocol):
    """Who shows a run to a person; the loop itself prints nothing."""

    def step(self, record: dict[str, Any]) -> None:
        """A line of the log, every `run.log_every` steps."""

    def event(self, text: str) -> None:
        """Something worth a line: a checkpoint, a validation score, a skipped file."""


class Run:
    """One training run in a folder of its own, over one process or many.

    folder/config.json         the settings it was last started with
    folder/log.jsonl           one line a log step and a validation
    folder/checkpoints/step-N  all that a resume needs
    folder/samples/            grids of images and their reconstructions
    folder/tensorboard/        what TensorBoard shows
    folder/model/              averaged weights with the best validation score so far (without a
                               validation folder, or with run.export=newest: the newest)

    Only the first process writes and watches.

    Args:
        quantizer: one that stands in for the settings' own, see `TokenizerNetwork`. There is no
            model/ then: whoever reads a model folder could not know what to put in.

    Raises:
        WetokError: a run is in the folder and `resume` is not given, or none is and it is; its
            checkpoint is damaged or another network's; images, weights, device or `run.init`
            can't be had; the batch can't be shared out.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        watcher: Watcher,
        resume: bool = False,
        quantizer: nn.Module | None = None,
    ) -> None:
        self.config, self.folder = config, folder
        self._stand_in = quantizer
        self.processes = Processes(config.run, folder)
        self.watcher = watcher if self.processes.is_main else _Nobody()
        self.device = self.processes.device
        newest = start.newest_checkpoint(config, folder, resume)
        self.source = start.open_images(config)
        start.check_shares(config, self.processes.world)
        self.lpips = start.perceptual_network(config)
        if self.lpips:
            self.lpips.to(self.device)
        torch.manual_seed(config.run.seed)
        network = self._ready(start.tokenizer_network(config, newest is None, quantizer))
        adversary = start.adversary(config)
        adversary = self._ready(adversary) if adversary else None
        self.state = TrainState(network, config, adversary, self.processes)
        if config.run.compile:
            # The adaptive weight goes back through the decoder's end twice, which buffers that
            # Inductor reuses after the first time don't survive.
            torch._functorch.config.donated_buffer = False
            judge = adversary.discriminator if adversary else None
            for module in (network.encoder, network.decoder, judge, self.lpips):
                if module is not None:
                    module.compile()
        if newest is not None:
            self.state.load(newest)
            self.watcher.event(f"resumed from {newest}")
        self.validation: ValidationSet | None = None
        if config.data.val:
            with start.naming("data.val"):
                self.validation = ValidationSet(Path(config.data.val), config.model.factor)
            self._shown = self.validation.examples(_SHOWN)
        else:
            with self._loader(config, batch=_SHOWN, alone=True) as loader:
                self._shown = next(loader)
        self._skipped: set[str] = set()
        self.saved = self.state.step if newest else None
        """Step of the newest checkpoint."""
        self._signal = StopSignal()
        self._stop = False

    def _ready(self, module: Trained) -> Trained:
        """On the device, in the memory format of the settings, in training mode."""
        module = module.to(self.device).train()
        # Weights that are to be cut up stay as they are: FSDP takes no other format.
        cut = self.processes.sharded and isinstance(module, TokenizerNetwork)
        if self.config.run.channels_last and not cut:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module

    def _loader(
        self, config: TrainConfig, batch: int, workers: int = 0, alone: bool = False
    ) -> TrainLoader[Any]:
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
            rank=0 if alone else self.processes.rank,
            world=1 if alone else self.processes.world,
            draft=not data.cache,
        )

    def train(self) -> bool:
        """Runs to the last step; False when a signal ended it early (after a checkpoint)."""
        state, model, steps = self.state, self.config.model, self.config.run.steps
        with self.processes.together():
            if self.processes.is_main:
                self._begin_folder()
            self.log = RunLog(
                self.folder / "log.jsonl",
                model.groups,
                model.group_bits,
                state.step,
                validated=0 < state.step < steps,  # at both ends it happens again
            )
        train = self.config.data.train
        origin = f"{len(train)} sources" if isinstance(train, tuple) else train
        origin = origin.path if isinstance(origin, SourceConfig) else origin
        self.watcher.event(f"training on {len(self.source):,} images from {origin}")
        with self.processes.together():
            self.trackers = Trackers(self.processes, self.config, self.folder.name, state.step)
        with self._signal.watched():
            if state.step == 0 and self.config.run.init and self.validation:
                self._validate()  # what it starts from
            while state.step < steps and not self._stop:
                self._stretch()
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

    def _stretch(self) -> None:
        """Steps until the settings change, the run ends or a signal comes."""
        run, state, processes = self.config.run, self.state, self.processes
        end, config = next(s for s in self.config.stretches() if s[0] > state.step)
        if self._stand_in is None:
            state.network.quantizer = start.quantizer(config).train(run.freeze != "encoder")
        objective = ReconstructionObjective(config.loss, self.lpips)
        batch = config.data.batch
        part = batch // (processes.world * run.accumulate)
        with self._loader(config, part, config.data.workers) as loader:
            loader.load_state_dict({"samples": state.samples})
            while state.step < end and not self._stop:
                began = time.perf_counter()
                images = [next(loader) for _ in range(run.accumulate)]
                waited = time.perf_counter() - began
                result = train_step(state, objective, config, self._parts(images))
                state.samples += batch
                seconds = time.perf_counter() - began
                state.seconds += seconds
                self.log.add(result, batch, seconds, waited)
                self._tell_broken(result)
                if state.step % run.log_every == 0 or state.step == end:
                    with processes.together():
                        record = self.log.line(state.step, state.seconds, state.skipped)
                        self.trackers.log(record)
                    self.watcher.step(record)
                    self._tell_skipped(loader.failures)
                # At the end all is due; and what keeps breaking may have broken weights.
                if state.step < run.steps and not state.skipped_in_a_row:
                    if state.step % run.sample_every == 0:
                        self._sample()
                    validate = state.step % run.validate_every == 0
                    if validate or state.step % run.checkpoint_every == 0:
                        self._checkpoint(validate)
                self._stop = processes.any(self._signal.came)  # all after the same step
            self._tell_skipped(loader.failures)

    def _parts(self, images: list[torch.Tensor]) -> list[Batch]:
        """This process's micro-batches of a step, on its device, with noise where it is due."""
        config, processes, parts = self.config.model, self.processes, []
        number = self.state.samples + processes.rank
        for image in images:
            moved = image.to(self.device, non_blocking=True)
            if self.config.run.channels_last:
                moved = moved.contiguous(memory_format=torch.channels_last)
            noise = None
            if config.generative:
                numbers = range(number, number + len(image) * processes.world, processes.world)
                sides = (side // config.factor for side in image.shape[-2:])
                shape = (config.bits, *sides)
                noise = training_noise(self.config.run.seed, numbers, shape, moved)
            number += len(image) * processes.world
            parts.append(Batch(moved, noise))
        return parts

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

    def _tell_skipped(self, failures: dict[str, str]) -> None:
        own = {name: reason for name, reason in failures.items() if name not in self._skipped}
        self._skipped |= own.keys()
        everyone: dict[str, str] = {}
        for one in self.processes.gathered(own):
            everyone |= one
        for reason in everyone.values():
            self._append({"skipped_image": reason})
            self.watcher.event(f"skipped: {reason}")

    def _sample(self) -> None:
        state = self.state
        with state.ema.applied(state.network):
            again = reconstruct(state.network, self._shown)
        with self.processes.together():
            if self.processes.is_main:
                picture = grid(self._shown, again.cpu())
                write_picture(self.folder / "samples" / f"step-{state.step:08d}.png", picture)
                self.trackers.picture("samples", picture, state.step)

    def _validate(self) -> float:
        """Scores the averaged weights, tells them, and returns the one that chooses the best."""
        assert self.validation is not None
        state = self.state
        with state.ema.applied(state.network):
            scores = self.validation.score(state.network, self.lpips)
        best = state.step > 0 and (state.best is None or scores["score"] < state.best)
        self._append({"validation": scores, "best": best})
        with self.processes.together():
            self.trackers.log({"step": state.step, "validation": scores})
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        self.watcher.event(f"step {state.step}: {told}{' (best so far)' if best else ''}")
        return scores["score"]

    def _checkpoint(self, validate: bool) -> None:
        state, best = self.state, False
        if validate and self.validation:
            score = self._validate()
            best = state.best is None or score < state.best
            state.best = score if best else state.best
        choosing = self.validation and self.config.run.export == "best"
        if (best if choosing else validate) and self._stand_in is None:
            self.export(self.folder / "model")
        with self.processes.together():
            path = state.save(self.folder / "checkpoints", self.config.run.keep, best)
        self.saved = state.step
        self.watcher.event(f"checkpoint {path}")

    def export(self, folder: Path, precision: Precision = "float32") -> None:
        """Writes the averaged weights as a model folder; every process must call it."""
        network = self.state.network
        with self.state.ema.applied(network):
            weights = whole(network.state_dict())
            with self.processes.together():
                if self.processes.is_main:
                    name = self.folder.resolve().name
                    save_folder(folder, _unsharded(network, weights), name, precision=precision)


class _Nobody:
    """Watches nothing: for every process but the first."""

    def step(self, record: dict[str, Any]) -> None:
        pass

    def event(self, text: str) -> None:
        pass


def _unsharded(network: TokenizerNetwork, weights: dict[str, torch.Tensor]) -> TokenizerNetwork:
    """A network like `network` that holds `weights` themselves."""
    with torch.device("meta"):
        bare = TokenizerNetwork(network.config, network.quantizer)
    bare.load_state_dict(weights, assign=True)
    return bare
