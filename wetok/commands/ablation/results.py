"""The results' files: OUT/entropy.json, OUT/approximation.json and OUT/training.json."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from wetok.checkpoint import written_beside
from wetok.config import WetokError

PARTS = ("entropy", "approximation", "training")


def read_result(path: Path) -> dict[str, Any] | None:
    """What was written there; None where nothing was.

    Raises:
        WetokError: it is no result of an ablation.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise WetokError(f"{path}: can't be read as results ({error}); delete it") from None
    if not isinstance(result, dict) or result.get("ablation") not in PARTS:
        raise WetokError(f"{path}: no result of `wetok ablate`; delete it, or name another --out")
    return result


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All parts that are in `folder`.

    Raises:
        WetokError: there are none, or one is broken.
    """
    read = {part: read_result(folder / f"{part}.json") for part in PARTS}
    found = {part: result for part, result in read.items() if result is not None}
    if not found:
        raise WetokError(f"out={folder}: holds no results of `wetok ablate`; run it first")
    return found


def write_result(folder: Path, part: str, content: dict[str, Any]) -> dict[str, Any]:
    """Writes OUT/PART.json, with where and when it was made, and returns it.

    Raises:
        WetokError: it can't be written.
    """
    result = {
        "ablation": part,
        **content,
        "hardware": f"cpu{os.cpu_count()}",
        "processor": platform.machine(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WetokError(f"out={folder}: can't be made ({error.strerror})") from None
    with written_beside(folder / f"{part}.json") as beside:
        beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result
