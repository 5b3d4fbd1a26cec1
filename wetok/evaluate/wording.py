"""How scores are called and written for people, the same in a terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def title_of(name: str) -> str:
    """What the score called `name` in a summary is called for people."""
    names = {"psnr": "PSNR (dB)", "ssim": "SSIM", "fid": "FID", "rfid": "rFID"}
    if name in names:
        return names[name]
    for short, words in (("lpips", "LPIPS"), ("rfid", "rFID"), ("fid", "FID"), ("fd", "FD")):
        if name.startswith(f"{short}-"):
            return words + name[len(short) :]
    return name


def digits_of(name: str) -> int | None:
    """How many decimals the score called `name` is shown with; None for what is no score."""
    if name == "psnr":
        return 2
    if name.startswith(("rfid", "fid", "fd-")):
        return 3
    return 4 if name == "ssim" or name.startswith("lpips-") else None


def number(value: Any, digits: int) -> str:
    """`value` with so many decimals; a dash where there is none."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def score_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """A summary as a table: name, value, and of several samples mean, best and spread."""
    rows = [
        ["bits a pixel", number(summary["bpp"], 3)],
        ["ratio", number(summary["ratio"], 1)],
    ]
    if summary["coded_bpp"] is not None:
        rows.append(["bits a pixel, as a file", number(summary["coded_bpp"], 3)])
    for name, value in summary.items():
        digits = digits_of(name)
        if digits is not None:
            of = summary.get("of_samples", {}).get(name, {})
            values = [value, *(of[what] for what in ("mean", "best", "spread") if of)]
            rows.append([title_of(name), *(number(one, digits) for one in values)])
    codes = "usage" in summary
    return [
        *rows,
        ["least group usage", f"{min(summary['usage']):.1%}" if codes else "-"],
        [
            "least group entropy (bits)",
            number(min(summary["token_entropy"]) if codes else None, 2),
        ],
        ["dead bits", str(summary["dead_bits"]) if codes else "-"],
        ["encode (s an image)", number(summary["encode_seconds"], 3)],
        ["decode (s an image)", number(summary["decode_seconds"], 3)],
    ]
