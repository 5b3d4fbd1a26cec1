"""Trains the variants, several at a time, each as `wetok train` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from wetok.commands.ablation.variants import STAND_INS, Variant
from wetok.config import TrainConfig, WetokError

WEIGHTS = "network.safetensors"
"""The averaged weights of a network with a stand-in; others leave a model folder."""


@dataclass(frozen=True)
class Job:
    """A variant to train with one seed, in `folder`."""

    variant: Variant
    seed: int
    recipes: Path
    train: Path
    """The photographs."""
    out: Path
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.out / f"{self.variant.name}-seed{self.seed}"

    @property
    def settings(self) -> list[str]:
        """What its command says besides the recipe. Scores come later, so there is no data.val."""
        own = [f"data.train={self.train}", "data.val=null", f"run.seed={self.seed}"]
        if self.variant.stage_one:
            own.append(f"run.init={self.out / f'{self.variant.stage_one}-seed{self.seed}'}/model")
        return [*own, *self.variant.settings, *self.overrides]

    @property
    def config(self) -> TrainConfig:
        return self.variant.config(self.recipes, self.settings)

    def command(self) -> list[str]:
        """The words after `wetok` that train it, or go on where it was left."""
        recipe, target = str(self.variant.path(self.recipes)), ["-o", str(self.folder), "--quiet"]
        if self.variant.name in STAND_INS:
            words = ["ablate", "outside", self.variant.name, recipe, *self.settings, *target]
        else:
            words = ["train", recipe, *self.settings, *target]
        return [*words, "--resume"] if self.has_begun() else words

    def has_begun(self) -> bool:
        return any(self.folder.glob("checkpoints/step-*/state.pt"))

    def is_done(self) -> bool:
        """Whether its network can be scored.

        Raises:
            WetokError: the folder holds a run with other settings.
        """
        config = self.config
        try:
            text = (self.folder / "config.json").read_text(encoding="utf-8")
        except OSError:
            return False
        try:
            same = TrainConfig.model_validate_json(text) == config
        except ValueError:
            same = False
        if not same:
            raise WetokError(
                f"out={self.out}: {self.folder.name} was trained with other settings; name another "
                "--out, or delete that folder"
            )
        last = self.folder / "checkpoints" / f"step-{config.run.steps:08d}" / "state.pt"
        result = WEIGHTS if self.variant.name in STAND_INS else "model/config.json"
        return last.is_file() and (self.folder / result).is_file()

    def seconds(self) -> float:
        """What its steps took, by its own log."""
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return float([json.loads(line) for line in lines if '"seconds"' in line][-1]["seconds"])


def train_all(jobs: Iterable[Job], at_once: int, threads: int, tell: Callable[[str], None]) -> None:
    """Trains what is not trained yet. A stage 2 waits for its stage 1, which comes before it.

    Raises:
        WetokError: a training failed; those under way are finished first.
    """
    waiting = [job for job in jobs if not job.is_done()]
    begun: dict[str, Future[None]] = {}
    with ThreadPoolExecutor(at_once) as pool:
        for job in waiting:
            stage = job.variant.stage_one
            before = begun.get(f"{stage}-seed{job.seed}")
            begun[job.folder.name] = pool.submit(_train, job, before, threads, tell)
        try:
            for future in begun.values():
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _train(
    job: Job, before: Future[None] | None, threads: int, tell: Callable[[str], None]
) -> None:
    if before is not None:
        before.result()
    job.folder.mkdir(parents=True, exist_ok=True)
    # Threads that wait in a loop for the next piece of work take it from the run beside.
    env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    said = job.folder / "said.txt"
    with open(said, "a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-m", "wetok", *job.command()],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode or not job.is_done():
        last = (said.read_text(encoding="utf-8").strip().splitlines() or ["nothing was said"])[-1]
        raise WetokError(f"{job.folder}: the training ended early: {last.removeprefix('wetok: ')}")
    tell(f"trained {job.folder.name} ({job.seconds():.0f} s of steps)")
