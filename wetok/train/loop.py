"""The training run of a tokenizer, from its settings to a model folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from wetok.checkpoint import Precision, save_folder
from wetok.config import SourceConfig, TrainConfig
from wetok.data.loader import TrainLoader
from wetok.data.transforms import RandomCrop
from wetok.losses.objective import ReconstructionObjective
from wetok.model.network import TokenizerNetwork
from wetok.train import start
from wetok.train.course import Course, Stretch, Watcher
from wetok.train.noise import training_noise
from wetok.train.samples import grid, write_picture
from wetok.train.sharding import whole
from wetok.train.state import TrainState
from wetok.train.step import Batch, StepResult, train_step
from wetok.train.validate import ValidationSet, reconstruct

Module = TypeVar("Module", bound=nn.Module)

_SHOWN = 8
"""Images of a samples picture."""


class Run(Course[TokenizerNetwork]):
    """The training of a tokenizer; `samples` are images and their reconstructions.

    Args:
        quantizer: one that stands in for the settings' own, see `TokenizerNetwork`. There is no
            model/ then: whoever reads a model folder could not know what to put in.

    Raises:
        WetokError: a run is in the folder and `resume` is not given, or none is and it is; its
            checkpoint is damaged or another network's; images, weights, device or `run.init`
            can't be had; the batch can't be shared out.
    """

    config: TrainConfig

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        watcher: Watcher,
        resume: bool = False,
        quantizer: nn.Module | None = None,
    ) -> None:
        super().__init__(config, folder, watcher)
        self._stand_in, self.exports = quantizer, quantizer is None
        newest = start.newest_checkpoint(folder, resume)
        if newest is not None:
            start.check_same_model(config, folder)
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
        self._goes_on(newest)
        self.validation: ValidationSet | None = None
        if config.data.val:
            with start.naming("data.val"):
                self.validation = ValidationSet(Path(config.data.val), config.model.factor)
            self._shown = self.validation.examples(_SHOWN)
        else:
            with self._loader(config, batch=_SHOWN, alone=True) as loader:
                self._shown = next(loader)

    def _ready(self, module: Module) -> Module:
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

    def _about(self) -> str:
        train = self.config.data.train
        origin = f"{len(train)} sources" if isinstance(train, tuple) else train
        origin = origin.path if isinstance(origin, SourceConfig) else origin
        return f"{len(self.source):,} images from {origin}"

    def _codes(self) -> tuple[int, int]:
        return self.config.model.groups, self.config.model.group_bits

    @contextmanager
    def _next_stretch(self) -> Iterator[Stretch]:
        run, state = self.config.run, self.state
        end, config = next(s for s in self.config.stretches() if s[0] > state.step)
        if self._stand_in is None:
            state.network.quantizer = start.quantizer(config).train(run.freeze != "encoder")
        objective = ReconstructionObjective(config.loss, self.lpips)
        part = config.data.batch // (self.processes.world * run.accumulate)
        with self._loader(config, part, config.data.workers) as loader:
            loader.load_state_dict({"samples": state.samples})

            def step() -> tuple[StepResult, float]:
                began = time.perf_counter()
                images = [next(loader) for _ in range(run.accumulate)]
                waited = time.perf_counter() - began
                return train_step(state, objective, config, self._parts(images)), waited

            yield Stretch(end, config.data.batch, step, loader.failures)

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

    @property
    def _validates(self) -> bool:
        return self.validation is not None

    def _scores(self) -> dict[str, float]:
        assert self.validation is not None
        return self.validation.score(self.state.network, self.lpips)

    def _sample(self) -> None:
        state = self.state
        with state.ema.applied(state.network):
            again = reconstruct(state.network, self._shown)
        with self.processes.together():
            if self.processes.is_main:
                picture = grid(self._shown, again.cpu())
                write_picture(self.folder / "samples" / f"step-{state.step:08d}.png", picture)
                self.trackers.picture("samples", picture, state.step)

    def export(self, folder: Path, precision: Precision = "float32") -> None:
        """Writes the averaged weights as a model folder; every process must call it."""
        network = self.state.network
        with self.state.ema.applied(network):
            weights = whole(network.state_dict())
            with self.processes.together():
                if self.processes.is_main:
                    name = self.folder.resolve().name
                    save_folder(folder, _unsharded(network, weights), name, precision=precision)


def _unsharded(network: TokenizerNetwork, weights: dict[str, torch.Tensor]) -> TokenizerNetwork:
    """A network like `network` that holds `weights` themselves."""
    with torch.device("meta"):
        bare = TokenizerNetwork(network.config, network.quantizer)
    bare.load_state_dict(weights, assign=True)
    bare.decodes = network.decodes
    return bare
