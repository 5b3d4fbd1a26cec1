"""Trains a network whose quantizer is another package's, in the loop that trains ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from wetok.checkpoint import written_beside
from wetok.commands.ablation.runs import WEIGHTS
from wetok.commands.ablation.variants import STAND_INS, stand_in
from wetok.config import WetokError, load_train_config
from wetok.train.loop import Run


class _Events:
    """Passes a run's events on and leaves its numbers to its log."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def step(self, record: dict[str, Any]) -> None:
        pass

    def event(self, text: str) -> None:
        self.tell(text)


def train_outside(
    name: str,
    recipe: Path,
    settings: list[str],
    folder: Path,
    resume: bool,
    tell: Callable[[str], None],
) -> None:
    """Trains `recipe` with the quantizer called `name`; averaged weights go to the folder.

    Raises:
        WetokError: no such quantizer, or what `Run` raises; a signal ended it early.
    """
    if name not in STAND_INS:
        raise WetokError(f"quantizer={name!r} is unknown: use one of {', '.join(STAND_INS)}")
    config = load_train_config(recipe, settings)
    run = Run(config, folder, _Events(tell), resume, stand_in(name, config))
    if not run.train():
        raise WetokError(f"{folder}: stopped and saved at step {run.saved}; go on with --resume")
    network = run.state.network
    with run.state.ema.applied(network), written_beside(folder / WEIGHTS) as beside:
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, beside)
