"""All that a run needs to go on: weights, averages, optimizer, position, random state."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from wetok.config import TrainConfig, WetokError
from wetok.model.network import TokenizerNetwork
from wetok.train.ema import EMA

_FILE = "state.pt"


class TrainState:
    """A run's network and everything that changes beside it.

    `samples` is the data position: training crops taken so far, over all processes.
    """

    def __init__(
        self, network: TokenizerNetwork, optimizer: torch.optim.Optimizer, config: TrainConfig
    ) -> None:
        device = next(network.parameters()).device
        self.network = network
        self.optimizer = optimizer
        self.ema = EMA(network, config.run.ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.run.precision == "fp16")
        self.step = 0
        self.samples = 0
        self.seconds = 0.0
        """Time spent training, over all resumptions."""
        self.best: float | None = None
        """Lowest validation score so far."""

    def save(self, folder: Path, keep: int, best: bool = False) -> Path:
        """Writes `folder/step-N`, whole or not at all; keeps the last `keep` and the best.

        Raises:
            WetokError: the disk is full or the folder can't be written; older checkpoints stay.
        """
        final = folder / f"step-{self.step:08d}"
        beside = folder / f".{final.name}.partial"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            with open(beside / _FILE, "wb") as file:
                torch.save(self._tree(), file)
                file.flush()
                os.fsync(file.fileno())
            shutil.rmtree(final, ignore_errors=True)
            beside.rename(final)
            if best:
                _replace_text(folder / "best.json", json.dumps({"step": self.step}))
        except (OSError, RuntimeError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise WetokError(
                f"{final}: the checkpoint can't be written ({error}); the one before is intact"
            ) from None
        kept = set(checkpoints(folder)[-keep:])
        if (chosen := best_checkpoint(folder)) is not None:
            kept.add(chosen)
        for old in checkpoints(folder):
            if old not in kept:
                shutil.rmtree(old)
        return final

    def _tree(self) -> dict[str, object]:
        return {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
            "best": self.best,
            "rng": torch.get_rng_state(),
        }

    def load(self, checkpoint: Path) -> None:
        """Takes over what `save` wrote.

        Raises:
            WetokError: the file is damaged or belongs to another network.
        """
        try:
            tree = torch.load(checkpoint / _FILE, map_location="cpu", weights_only=True)
            self.network.load_state_dict(tree["network"])
            self.ema.load_state_dict(tree["ema"])
            self.optimizer.load_state_dict(tree["optimizer"])
            self.scaler.load_state_dict(tree["scaler"])
            self.step, self.samples = tree["step"], tree["samples"]
            self.seconds, self.best = tree["seconds"], tree["best"]
            torch.set_rng_state(tree["rng"])
        except (OSError, KeyError, RuntimeError, ValueError, EOFError) as error:
            reason = " ".join(str(error).split())[:200]
            raise WetokError(f"{checkpoint}: not a checkpoint of this run: {reason}") from None


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _FILE).is_file())


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation score, if one was marked."""
    try:
        step = json.loads((folder / "best.json").read_text())["step"]
    except (OSError, ValueError, KeyError):
        return None
    path = folder / f"step-{step:08d}"
    return path if (path / _FILE).is_file() else None


def _replace_text(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text)
    beside.replace(path)
