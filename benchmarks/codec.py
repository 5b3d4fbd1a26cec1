"""Entropy-coded ids against packed ones: bytes, and megabytes of pixels a second on one core.

    python benchmarks/codec.py --data PHOTOS/val            # writes benchmarks/results/codec-*.json
    python benchmarks/codec.py --data PHOTOS/val --quick    # four photographs, writes nothing

Every photograph is tokenized whole and at 256 x 256 pixels (the center, shorter side 256), then
written and read in memory as packed, learned and adaptive files and as the smallest of them
("auto"), in turn, best of three rounds.
Bytes are those of whole files, header and checksum included. Speeds are pixels of 3 bytes for each
second of processor time of one thread, which other work on the machine disturbs little.
The last line printed is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is imported

RESULTS = Path(__file__).resolve().parent / "results"
WAYS = ("packed", "learned", "adaptive", "auto")


def timed(function: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """What it gives, and its least processor seconds."""
    best, result = float("inf"), None
    for _ in range(rounds):
        begin = time.process_time()
        result = function()
        best = min(best, time.process_time() - begin)
    return result, best


def measure(images: list[Any], tokenizer: Any, rounds: int) -> dict[str, Any]:
    """Sums over images: bytes, bits a pixel, speeds of writing and reading."""
    from dataclasses import replace

    from wetok.codec.file import decode

    sums = {way: {"bytes": 0, "write": 0.0, "read": 0.0} for way in WAYS}
    smallest: list[float] = []
    pixels = 0
    for image in images:
        tokens = tokenizer.encode(image)
        pixels += image.width * image.height
        sizes = {}
        for way in WAYS:
            given = replace(tokens, tables=None if way == "adaptive" else tokens.tables)
            coding = way if way in ("packed", "auto") else "entropy"
            data, write = timed(partial(given.to_bytes, coding), rounds)
            (_, ids), read = timed(partial(decode, data, tables=given.tables), rounds)
            assert (ids == tokens.ids.numpy()).all()
            sizes[way] = len(data)
            for key, value in (("bytes", len(data)), ("write", write), ("read", read)):
                sums[way][key] += value
        smallest.append(sizes["learned"] / sizes["packed"])
    found: dict[str, Any] = {"images": len(images), "megapixels": round(pixels / 1e6, 3)}
    for way in WAYS:
        found[way] = {
            "bytes": int(sums[way]["bytes"]),
            "bpp": round(8 * sums[way]["bytes"] / pixels, 4),
            "saved": round(1 - sums[way]["bytes"] / sums["packed"]["bytes"], 4),
            "write_mb_s": round(3e-6 * pixels / sums[way]["write"], 1),
            "read_mb_s": round(3e-6 * pixels / sums[way]["read"], 1),
        }
    found["learned"]["least_saved"] = round(1 - max(smallest), 4)
    found["learned"]["most_saved"] = round(1 - min(smallest), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="photographs")
    parser.add_argument("--model", default="tiny-48x")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()

    import numpy
    import torch

    import wetok
    from wetok.data.images import find_images, load_image
    from wetok.evaluate.protocols import protocol

    torch.set_num_threads(1)
    tokenizer = wetok.load(options.model)
    photographs = [load_image(path) for path in find_images(options.data)]
    if options.quick:
        photographs = photographs[:: max(1, len(photographs) // 4)]
    square = protocol("modern-256")
    rounds = 1 if options.quick else 3
    result = {
        "benchmark": "codec",
        "model": options.model,
        "fingerprint": tokenizer.fingerprint,
        "tables": tokenizer.tables.digest.hex() if tokenizer.tables else None,
        "whole": measure(photographs, tokenizer, rounds),
        "modern-256": measure([square.prepare(one) for one in photographs], tokenizer, rounds),
        "clock": "processor time, one thread",
        "processor": _processor(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
        "date": date.today().isoformat(),
    }
    for name in ("whole", "modern-256"):
        for way in WAYS:
            print(f"{name:>10} {way:>8}: {result[name][way]}")
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"codec-cpu{os.cpu_count()}-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
