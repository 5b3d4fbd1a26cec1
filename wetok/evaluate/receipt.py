"""A receipt: a score with all it takes to get it again, and the check that it comes again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from wetok.checkpoint import written_beside
from wetok.config import WetokError

FORMAT = 1

# What must be the same for two scores to be the same measurement.
IDENTITY = {
    "fingerprint": "model",
    "protocol": "protocol",
    "preprocessing_hash": "preprocessing",
    "lpips_weights": "LPIPS weights",
    "frechet_weights": "Frechet distance's weights",
    "reference": "reference statistics",
    "images": "number of images",
    "failed": "number of images that failed",
    "image_list_hash": "images",
    "seed": "seed",
    "samples": "samples",
}

# How far a score may move between machines: absolute ("abs"), or as a share of itself ("rel").
# On one CPU, other thread counts and another library's convolutions moved PSNR by 2e-7 dB, SSIM by
# 1e-7, LPIPS by 1e-6 and fd-vgg by 2e-5 of itself. The room is for processors that round coarser.
TOLERANCES = {
    "psnr": (1e-3, "abs"),
    "ssim": (1e-5, "abs"),
    "lpips-": (1e-4, "abs"),
    "rfid": (1e-3, "rel"),
    "fid": (1e-3, "rel"),
    "fd-": (1e-3, "rel"),
    "bpp": (1e-9, "abs"),
    "coded_bpp": (1e-4, "rel"),
    "payload_bpp": (1e-4, "rel"),
    "token_entropy": (1e-3, "abs"),
    "usage": (1e-3, "abs"),
}


class Difference(NamedTuple):
    """One thing that is not as the receipt says."""

    what: str
    before: Any
    now: Any
    matters: bool
    """False for what may differ as long as the scores agree: versions, the device."""

    def __str__(self) -> str:
        return f"{self.what}: {_short(self.before)} on the receipt, {_short(self.now)} now"


def write(path: Path, summary: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Writes `summary` (of an `Evaluation`) with the arguments that it was asked for with.

    Raises:
        WetokError: the file can't be written.
    """
    text = json.dumps(
        {"receipt": FORMAT, "arguments": dict(arguments), **finite(summary)},
        indent=2,
        ensure_ascii=False,
        allow_nan=False,
    )
    try:
        with written_beside(path) as beside:
            beside.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise WetokError(f"receipt {str(path)!r} can't be written: {error.strerror}") from None


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote.

    Raises:
        WetokError: it can't be read, is no receipt, or is of a newer version.
    """
    try:
        receipt = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise WetokError(f"receipt {str(path)!r} can't be read: {reason}") from None
    if not isinstance(receipt, dict) or not isinstance(receipt.get("arguments"), dict):
        raise WetokError(f"{str(path)!r} is not a receipt: make one with wetok eval --receipt")
    arguments = receipt["arguments"]
    lists = ("data", "lpips", "frechet", "reference")
    kinds = {**dict.fromkeys(lists, list), **dict.fromkeys(("seed", "samples"), int)}
    for name, kind in {**kinds, "model": str, "protocol": str}.items():
        value = arguments.get(name)
        texts = not isinstance(value, list) or all(isinstance(one, str) for one in value)
        if value is not None and not (type(value) is kind and texts):
            raise WetokError(
                f"receipt {str(path)!r}: arguments.{name} is {value!r}, which no receipt has; make "
                "it anew with wetok eval --receipt"
            )
    if receipt.get("receipt") != FORMAT:
        raise WetokError(
            f"receipt {str(path)!r} has format {receipt.get('receipt')!r}, this version reads "
            f"{FORMAT}; use the wetok that wrote it"
        )
    return receipt


def differences(receipt: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Difference]:
    """What of a new `summary` is not as `receipt` says; those that matter first."""
    now = finite(summary)
    found = [
        Difference(words, receipt.get(key), now.get(key), True)
        for key, words in IDENTITY.items()
        if receipt.get(key) != now.get(key)
    ]
    names = dict.fromkeys(key for each in (receipt, now) for key in each if tolerance(key))
    for name in names:
        before, after = receipt.get(name), now.get(name)
        if not _agree(name, before, after):
            found.append(Difference(name, before, after, True))
    for name, one in (receipt.get("of_samples") or {}).items():
        for what, value in one.items():
            after = ((now.get("of_samples") or {}).get(name) or {}).get(what)
            if tolerance(name) and not _agree(name, value, after):
                found.append(Difference(f"{name}, {what} of the samples", value, after, True))
    versions = receipt.get("versions") or {}
    for name in dict.fromkeys([*versions, *now["versions"]]):
        if versions.get(name) != now["versions"].get(name):
            found.append(Difference(name, versions.get(name), now["versions"].get(name), False))
    if receipt.get("device") != now["device"]:
        found.append(Difference("device", receipt.get("device"), now["device"], False))
    return found


def tolerance(score: str) -> tuple[float, str] | None:
    """How far `score` may move, and whether that is "abs" or "rel"; None for what is no score."""
    for name, allowed in TOLERANCES.items():
        if score == name or (name in ("lpips-", "rfid", "fid", "fd-") and score.startswith(name)):
            return allowed
    return None


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are infinite or NaN become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return value


def _agree(score: str, before: Any, now: Any) -> bool:
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return all(_agree(score, one, other) for one, other in zip(before, now, strict=True))
    numbers = [one for one in (before, now) if type(one) in (int, float)]
    allowed = tolerance(score)
    if len(numbers) < 2 or allowed is None:
        return bool(before == now)
    far = abs(before - now)
    limit, kind = allowed
    return bool(far <= limit * (max(abs(before), abs(now)) if kind == "rel" else 1))


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
