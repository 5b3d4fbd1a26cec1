"""Published checkpoints as torch.save wrote them, read as plain data."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wetok.config import WetokError

LISTED = 3
"""Keys of a kind that an error spells out; the rest are counted."""


def load_pickled(path: Path) -> dict[str, Any]:
    """What torch.save wrote to `path`, read without running any code that it may hold.

    Raises:
        WetokError: no such file, not such a file, or one that holds more than plain data.
    """
    if not path.is_file():
        raise WetokError(f"checkpoint={path}: no such file; give a published .ckpt file")
    zipped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles; the error below says it in one line
            # Mapped rather than read: the largest is 13 GB, and only half of it is wanted.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch and pickle have a dozen kinds, all of them about the file
        raise WetokError(f"checkpoint={path}: {_refusal(path, error)}") from None
    if not isinstance(loaded, dict):
        raise WetokError(f"checkpoint={path}: holds a {type(loaded).__name__}, not a state_dict")
    return loaded


def _refusal(path: Path, error: Exception) -> str:
    """Why torch.load gave up, in one line; names the types that it won't build."""
    try:
        types = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a file of torch.save's present format
        types = re.findall(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
    if types:
        more = f" (and {len(types) - LISTED} more)" if len(types) > LISTED else ""
        return (
            f"holds objects of type {', '.join(types[:LISTED])}{more}, which could run code when "
            "read, so it isn't; if you trust it, save its state_dict alone: torch.save("
            "{'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, OTHER)"
        )
    # Torch wraps what went wrong in advice to read the file anyway.
    told = re.search(r"WeightsUnpickler error: (.*)", str(error))
    lines = [told[1]] if told else str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return f"can't be read as a torch checkpoint, it may be damaged or cut short ({reason})"


def state_dict_of(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The part of a checkpoint that holds its tensors.

    Raises:
        WetokError: there is none.
    """
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        raise WetokError(f"checkpoint={path}: no state_dict with tensors in it")
    return state


def plain(name: str, tensor: Tensor, path: Path) -> Tensor:
    """A float32 copy in memory, independent of the file.

    Raises:
        WetokError: integers, or values that are not finite.
    """
    if not tensor.is_floating_point():
        raise WetokError(f"{path}: {name} holds {tensor.dtype}, not floating-point weights")
    tensor = tensor.to(torch.float32, copy=True).contiguous()
    if not tensor.isfinite().all():
        raise WetokError(f"{path}: {name} holds NaN or Inf; the file is damaged")
    return tensor


def listed(keys: list[str]) -> str:
    """The first few keys, and how many more there are."""
    more = f" (and {len(keys) - LISTED} more)" if len(keys) > LISTED else ""
    return ", ".join(keys[:LISTED]) + more
