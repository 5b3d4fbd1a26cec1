"""All that a run needs to go on: weights, averages, optimizer, position, random state."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from wetok.checkpoint import written_beside
from wetok.config import TrainConfig, WetokError
from wetok.model.network import TokenizerNetwork
from wetok.train.ema import EMA

_FILE, _BEST = "state.pt", "best.json"

# What torch.load and load_state_dict raise on a file that is not what it should be.
_DAMAGED = (
    OSError,
    RuntimeError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


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
        try:
            final.mkdir(parents=True, exist_ok=True)
            with written_beside(final / _FILE) as beside:
                torch.save(self._tree(), beside)
            if best:
                with written_beside(folder / _BEST) as beside:
                    beside.write_text(json.dumps({"step": self.step}))
        except (OSError, RuntimeError, WetokError) as error:
            with suppress(OSError):
                final.rmdir()  # only where it is empty
            reason = " ".join(str(error).split())
            raise WetokError(
                f"{final}: the checkpoint can't be written ({reason}); those before are intact: "
                "make room and go on with --resume"
            ) from None
        kept = {*checkpoints(folder)[-keep:], best_checkpoint(folder)}
        for old in folder.glob("step-*"):  # also what a killed run left half written
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)
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
            with zipfile.ZipFile(checkpoint / _FILE) as archive:
                if (altered := archive.testzip()) is not None:  # torch itself reads over it
                    raise ValueError(f"{altered} was altered")
            tree = torch.load(checkpoint / _FILE, map_location="cpu", weights_only=True)
            if not isinstance(tree, dict):
                raise TypeError("it holds no table")
            self.network.load_state_dict(tree["network"])
            self.ema.load_state_dict(tree["ema"])
            self.optimizer.load_state_dict(tree["optimizer"])
            if tree["scaler"]:  # empty where it wasn't fp16
                self.scaler.load_state_dict(tree["scaler"])
            self.step, self.samples = tree["step"], tree["samples"]
            self.seconds, self.best = tree["seconds"], tree["best"]
            torch.set_rng_state(tree["rng"])
        except _DAMAGED as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise WetokError(
                f"{checkpoint}: damaged, or not a checkpoint of this run ({reason}); delete the "
                "folder to resume from the one before"
            ) from None


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _FILE).is_file())


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation score, if one was marked."""
    try:
        path = folder / f"step-{json.loads((folder / _BEST).read_text())['step']:08d}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if (path / _FILE).is_file() else None
