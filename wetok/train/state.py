"""All that a run needs to go on: weights, averages, optimizers, position, random state."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from wetok.checkpoint import written_beside
from wetok.config import RunSettings, WetokError
from wetok.distributed import rank
from wetok.model.network import TokenizerNetwork
from wetok.train.adversary import Adversary
from wetok.train.ema import EMA
from wetok.train.optimizers import build_optimizer
from wetok.train.processes import Processes
from wetok.train.sharding import placed, placed_optimizer, whole

Trained = TypeVar("Trained", bound=nn.Module)

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


class TrainState(Generic[Trained]):
    """A run's networks and everything that changes beside them.

    `network` and `adversary` are the modules; `called` and `judge` what to call them by in
    training, which may be a wrapper that averages gradients over the processes.

    Args:
        adversary: given exactly where `config.gan` is.
        processes: None for a single process, without Accelerate.
    """

    def __init__(
        self,
        network: Trained,
        config: RunSettings,
        adversary: Adversary | None = None,
        processes: Processes | None = None,
    ) -> None:
        device = next(network.parameters()).device
        if isinstance(network, TokenizerNetwork):
            freeze(network, config.run.freeze)
        self.network: Trained = network
        self.adversary = adversary
        self.called: nn.Module = network
        self.judge: nn.Module | None = adversary.discriminator if adversary else None
        if processes:
            self.called = processes.wrap(network, sharded=True)
            self.judge = processes.wrap(adversary.discriminator) if adversary else None
        self.optimizer = build_optimizer(config.optimizer, network.parameters(), outer(network))
        self.judge_optimizer = (
            build_optimizer(config.gan.optimizer, adversary.parameters())
            if config.gan and adversary
            else None
        )
        self.ema = EMA(network, config.run.ema)
        enabled = config.run.precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self.judge_scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self.step = 0
        self.samples = 0
        """The data position: training crops taken so far, over all processes."""
        self.seconds = 0.0
        """Time spent training, over all resumptions."""
        self.best: float | None = None
        """Lowest validation score so far."""
        self.skipped = 0
        """Steps that were not taken, as something was NaN or infinite."""
        self.skipped_in_a_row = 0

    def skip(self, broken: str, most: int) -> None:
        """Counts a step that is not taken for the sake of the term `broken`.

        Raises:
            WetokError: it is the `most`-th in a row.
        """
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= most:
            raise WetokError(
                f"{broken} is NaN or infinite at step {self.step}, as something was in each of the "
                f"last {most} steps; none of these was taken: resume from the last checkpoint with "
                "a lower optimizer.lr, optimizer.clip=1 or run.precision=fp32"
            )

    def tree(self) -> dict[str, Any]:
        """All of it as whole tensors and plain values; every rank must call it."""
        tree: dict[str, Any] = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
            "best": self.best,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rng": torch.get_rng_state(),
        }
        if isinstance(self.network, TokenizerNetwork):
            tree["decodes"] = list(self.network.decodes)
        if self.adversary and self.judge_optimizer:
            tree |= {
                "adversary": self.adversary.state_dict(),
                "judge_optimizer": self.judge_optimizer.state_dict(),
                "judge_scaler": self.judge_scaler.state_dict(),
            }
        gathered: dict[str, Any] = whole(tree)
        return gathered

    def save(self, folder: Path, keep: int, best: bool = False) -> Path:
        """Writes `folder/step-N`, whole or not at all; keeps the last `keep` and the best.

        Every rank must call it; the first one writes.

        Raises:
            WetokError: the disk is full or the folder can't be written; older checkpoints stay.
        """
        final = folder / f"step-{self.step:08d}"
        tree = self.tree()
        if rank():
            return final
        try:
            final.mkdir(parents=True, exist_ok=True)
            with written_beside(final / _FILE) as beside:
                torch.save(tree, beside)
            if best:
                with written_beside(folder / _BEST) as beside:
                    beside.write_text(json.dumps({"step": self.step}))
        except (OSError, RuntimeError, WetokError) as error:
            with suppress(OSError):
                final.rmdir()  # only where it is empty
            reason = " ".join(str(error).split())
            if isinstance(error, RuntimeError):  # torch's, which forgets what the system said
                reason = f"is the disk full? torch says {reason[:80]!r}"
            raise WetokError(
                f"{final}: the checkpoint can't be written ({reason}); those before are intact: "
                "make room and go on with --resume"
            ) from None
        kept = {*checkpoints(folder)[-keep:], best_checkpoint(folder)}
        for old in folder.glob("step-*"):  # also what a killed run left half written
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)
        return final

    def load(self, checkpoint: Path) -> None:
        """Takes over what `save` wrote; every rank must call it.

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
            if ("adversary" in tree) != (self.adversary is not None):
                has, wants = ("a", "none") if "adversary" in tree else ("no", "one")
                raise ValueError(f"it has {has} discriminator, the settings' gan has {wants}")
            own = self.network.state_dict()
            self.network.load_state_dict(
                {
                    name: placed(tensor, own[name]) if name in own else tensor
                    for name, tensor in tree["network"].items()
                }
            )
            self.ema.load_state_dict(tree["ema"])
            self.optimizer.load_state_dict(placed_optimizer(tree["optimizer"], self.optimizer))
            if tree["scaler"]:  # empty where it wasn't fp16
                self.scaler.load_state_dict(tree["scaler"])
            if self.adversary and self.judge_optimizer:
                self.adversary.load_state_dict(tree["adversary"])
                self.judge_optimizer.load_state_dict(tree["judge_optimizer"])
                if tree["judge_scaler"]:
                    self.judge_scaler.load_state_dict(tree["judge_scaler"])
            self.step, self.samples = tree["step"], tree["samples"]
            self.seconds, self.best = tree["seconds"], tree["best"]
            if isinstance(self.network, TokenizerNetwork):
                self.network.decodes = tuple(tree.get("decodes", ()))
            self.skipped = tree.get("skipped", 0)  # the first checkpoints lack them
            self.skipped_in_a_row = tree.get("skipped_in_a_row", 0)
            torch.set_rng_state(tree["rng"])
        except _DAMAGED as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise WetokError(
                f"{checkpoint}: damaged, or not a checkpoint of this run ({reason}); delete the "
                "folder to resume from the one before"
            ) from None


def outer(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of a tokenizer's layers that meet pixels; none of any other network."""
    if not isinstance(network, TokenizerNetwork):
        return []
    first, last = network.encoder.conv_in, network.decoder.conv_out
    return [*first.parameters(), *last.parameters()]


def freeze(network: TokenizerNetwork, part: str | None) -> None:
    """Keeps the encoder (and with it the quantizer) or the decoder from training, or nothing."""
    network.encoder.requires_grad_(part != "encoder")
    network.decoder.requires_grad_(part != "decoder")
    network.quantizer.train(part != "encoder")


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
