"""The training run of a generator, from token shards to a folder that `wetok generate` reads."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from wetok import checkpoint
from wetok.checkpoint import Precision
from wetok.config import WetokError
from wetok.data.images import to_pil
from wetok.data.tokens import TokenShards
from wetok.distributed import all_reduce_sum_
from wetok.generate.folder import build, save_generator
from wetok.generate.pictures import decode_ids, sheet
from wetok.generate.sampling import Sampling, sample
from wetok.model.tokenizer import Tokenizer
from wetok.train.course import Course, Stretch, Watcher
from wetok.train.generator_config import GeneratorTrainConfig
from wetok.train.generator_step import Learner, generator_step
from wetok.train.noise import DROPOUT, sample_seed
from wetok.train.samples import write_picture
from wetok.train.sharding import whole
from wetok.train.start import naming, newest_checkpoint
from wetok.train.state import TrainState
from wetok.train.step import StepResult
from wetok.train.token_data import Classes, TokenBatch, TokenStream, batch_of

_SHOWN = 16
"""Images of a samples picture."""
_MOST = 4096
"""Records of the validation shards that are used, evenly picked."""


class GeneratorRun(Course[Learner]):
    """The training of a generator; `samples` are new images, always of the same seeds.

    Raises:
        WetokError: as for a tokenizer's run; shards that can't be read, or of two tokenizers.
    """

    config: GeneratorTrainConfig

    def __init__(
        self, config: GeneratorTrainConfig, folder: Path, watcher: Watcher, resume: bool = False
    ) -> None:
        super().__init__(config, folder, watcher)
        newest = newest_checkpoint(folder, resume)
        run, tokens = config.run, config.tokens
        if tokens.batch % (run.accumulate * self.processes.world):
            raise WetokError(
                f"tokens.batch={tokens.batch} can't be shared out to {self.processes.world} "
                f"processes in run.accumulate={run.accumulate} parts"
            )
        with naming("tokens.train"):
            self.shards = TokenShards(_paths(tokens.train))
        self.classes = Classes(self.shards, tokens.label, tokens.classes)
        self.validation: TokenShards | None = None
        if tokens.val is not None:
            with naming("tokens.val"):
                self.validation = TokenShards(_paths(tokens.val))
            if self.validation.about.fingerprint != self.shards.about.fingerprint:
                raise WetokError("tokens.val is of another tokenizer than tokens.train")
        shape = config.generator.of(self.shards.about, self.classes.count, self.classes.names)
        if newest is not None:
            _check_same(folder, shape.model_dump(mode="json"))
        torch.manual_seed(run.seed)
        learner = Learner(build(shape)).to(self.device).train()
        self.state = TrainState(learner, config, None, self.processes)
        if run.compile:
            for block in (
                *learner.generator.blocks,
                *getattr(learner.generator, "group_blocks", ()),
            ):
                block.compile()
        self._goes_on(newest)
        self.tokenizer = self._find_tokenizer()

    def _about(self) -> str:
        classes = f"{self.classes.count} classes" if self.classes.count else "no classes"
        return f"{len(self.shards):,} images' tokens, {classes}"

    def _codes(self) -> None:
        return None

    def _begin_folder(self) -> None:
        super()._begin_folder()
        shape = self.state.network.generator.config
        with checkpoint.written_beside(self.folder / "generator.json") as beside:
            beside.write_text(shape.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @contextmanager
    def _next_stretch(self) -> Iterator[Stretch]:
        run, state, processes = self.config.run, self.state, self.processes
        batch = self.config.tokens.batch
        part = batch // (processes.world * run.accumulate)
        stream = TokenStream(
            self.shards,
            self.classes,
            part,
            run.seed,
            state.samples,
            processes.rank,
            processes.world,
        )

        def step() -> tuple[StepResult, float]:
            began = time.perf_counter()
            parts = [self._moved(next(stream)) for _ in range(run.accumulate)]
            waited = time.perf_counter() - began
            # Dropout and masks follow from the sample's number, so a resumed run draws the same.
            torch.manual_seed(sample_seed(run.seed, DROPOUT, state.samples + processes.rank))
            return generator_step(state, self.config, parts), waited

        yield Stretch(run.steps, batch, step, {})

    def _moved(self, batch: TokenBatch) -> TokenBatch:
        return TokenBatch(*(part.to(self.device, non_blocking=True) for part in batch))

    @property
    def _validates(self) -> bool:
        return self.validation is not None

    @torch.no_grad()
    def _scores(self) -> dict[str, float]:
        """`score`: nats of an image's position, all groups together; `bits`: the same in bits."""
        assert self.validation is not None
        learner, total = self.state.network, min(len(self.validation), _MOST)
        numbers = [index * len(self.validation) // total for index in range(total)]
        own = numbers[self.processes.rank :: self.processes.world]
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        learner.eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # masks
            size = max(1, self.config.tokens.batch // self.processes.world)
            for first in range(0, len(own), size):
                part = own[first : first + size]
                batch = self._moved(batch_of(self.validation, self.classes, part))
                nats = learner(*batch).sum().double()
                sums += torch.stack([nats * len(part), nats.new_tensor(float(len(part)))])
        learner.train()
        nats_sum, count = all_reduce_sum_(sums).tolist()
        mean = nats_sum / count
        return {"score": mean, "bits": mean / 0.6931471805599453}

    def _sample(self) -> None:
        state, generator = self.state, self.state.network.generator
        if self.tokenizer is None or self.processes.sharded:
            return
        with self.processes.together():
            if not self.processes.is_main:
                return
            seeds = list(range(_SHOWN))
            count = self.classes.count
            labels = [
                seed * count // _SHOWN if count >= _SHOWN else seed % max(1, count)
                for seed in seeds
            ]
            with state.ema.applied(state.network), torch.random.fork_rng(devices=[]):
                ids = sample(generator, seeds, labels if count else None, Sampling())
            images = decode_ids(self.tokenizer, ids.cpu(), self.shards.about.size, seeds)
            picture = sheet(to_pil(images))
            write_picture(self.folder / "samples" / f"step-{state.step:08d}.png", picture)
            self.trackers.picture("samples", picture, state.step)

    def _find_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the tokens, where it is at hand: without it no pictures are drawn."""
        about = self.shards.about
        try:
            found = checkpoint.load(self.config.tokens.tokenizer or about.model, str(self.device))
        except WetokError as error:
            if self.config.tokens.tokenizer:
                raise
            self.watcher.event(f"no pictures of samples: {error}; set tokens.tokenizer")
            return None
        if found.fingerprint != about.fingerprint:
            message = (
                f"{found.name!r} ({found.fingerprint}) did not make these tokens "
                f"({about.fingerprint})"
            )
            if self.config.tokens.tokenizer:
                raise WetokError(f"tokens.tokenizer: {message}")
            self.watcher.event(f"no pictures of samples: {message}; set tokens.tokenizer")
            return None
        return found

    def export(self, folder: Path, precision: Precision = "float32") -> None:
        learner = self.state.network
        with self.state.ema.applied(learner):
            weights = whole(learner.state_dict())
            with self.processes.together():
                if self.processes.is_main:
                    with torch.device("meta"):
                        bare = Learner(build(learner.generator.config))
                    bare.load_state_dict(weights, assign=True)
                    name = self.folder.resolve().name
                    save_generator(folder, bare.generator, name, precision)


def _paths(given: str | tuple[str, ...]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _check_same(folder: Path, shape: dict[str, object]) -> None:
    """Raises WetokError where the run in `folder` is of another generator."""
    try:
        before = json.loads((folder / "generator.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    differs = [
        f"{k}={before.get(k)} there, {v} here" for k, v in shape.items() if before.get(k) != v
    ]
    if differs:
        raise WetokError(
            f"out={folder} holds a run of another generator: {', '.join(differs)}; resume it with "
            "its own recipe and tokens"
        )
