"""Tokenising a data set against its encoder alone, and how time and memory grow with the set.

    python benchmarks/tokenization.py --data PHOTOS/train          # writes benchmarks/results/
    python benchmarks/tokenization.py --data PHOTOS/train --quick  # two small sets, writes nothing

(Not `tokenize.py`: scripts in this folder would then find it in place of Python's own module.)
Random crops of the photographs are written as JPEG files of 64 x 64 pixels (1,000, 5,000 and
20,000 of them) and 256 x 256 (400). Each set is a job in a process of its own: `wetok tokenize`
with one decoding process and one thread for the network, everything from the list of files to the
last shard on the disk; what decoding processes import is there by then, as it is imported while the
model is loaded. "Alone" is the same tokenizer on the same images, decoded and in memory, before and
after the job in the same process. The share is the job's images a second over those of the encoder
alone.
Beside it, which other work on the machine disturbs less: the part of the job's time in which the
encoder waited for an image, and the processor time that an image costs this process over that of
the encoder alone. Memory is the peak of this process above what it had with the model loaded and
used, and of the processes that decode.
The last line printed is one line of JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
FULL = ((64, 1_000), (64, 5_000), (64, 20_000), (256, 400))
QUICK = ((64, 200), (64, 400))
SLICE_SECONDS = 8.0  # of the encoder alone, before the job and after it


def write_crops(photos: Path, folder: Path, count: int, side: int) -> None:
    """`count` random crops of `side` pixels, as JPEGs, in a folder for each photograph."""
    from wetok.data.images import find_images, load_image

    rng, number = random.Random(0), 0
    paths = find_images(photos)
    for place, path in enumerate(paths):
        image = load_image(path)
        if min(image.size) < side:
            image = image.resize((max(side, image.width), max(side, image.height)))
        own = folder / f"{place:04d}"
        own.mkdir(parents=True)
        while number < (place + 1) * count // len(paths):
            x, y = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
            stream = io.BytesIO()
            image.crop((x, y, x + side, y + side)).save(stream, "JPEG", quality=92)
            (own / f"{number:06d}.jpg").write_bytes(stream.getvalue())
            number += 1


class Children:
    """The most memory that processes started by this one have had, by looking at times."""

    def __init__(self) -> None:
        self.peak, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Children:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        import psutil

        while not self._ended.wait(0.5):
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_full_info().uss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)


def alone(tokenizer: Any, images: list[Any], seconds: float) -> tuple[int, float, float]:
    """Images encoded in about so many seconds, the seconds, and those of the processor."""
    begin, cpu, count = time.perf_counter(), time.thread_time(), 0
    while (took := time.perf_counter() - begin) < seconds:
        tokenizer.encode(images[count % len(images)])
        count += 1
    return count, took, time.thread_time() - cpu


def job(folder: Path, out: Path, side: int, seconds: float) -> dict[str, Any]:
    """One set, in this process."""
    import wetok
    from wetok.memory import keep_freed_memory
    from wetok.tokenize import processes

    keep_freed_memory()  # as the command does; the encoder alone gains from it as well
    processes.begin()  # before the model is loaded
    import numpy as np
    import psutil
    import torch

    from wetok.data.images import load_image
    from wetok.tokenize.inputs import open_inputs
    from wetok.tokenize.local import tokenize
    from wetok.tokenize.output import Output
    from wetok.tokenize.plan import about_model, make_plan
    from wetok.tokenize.verify import verify
    from wetok.tokenize.views import Preprocessing

    torch.set_num_threads(1)
    tokenizer = wetok.load("tiny-48x")
    paths = sorted(folder.rglob("*.jpg"))
    images = [np.asarray(load_image(path)) for path in paths[:: max(1, len(paths) // 256)]]
    alone(tokenizer, images, 1.0)
    slices = [alone(tokenizer, images, seconds)]
    process = psutil.Process()
    before = process.memory_info().rss
    peak = 0

    def tell(progress: Any) -> None:
        nonlocal peak
        if progress.inputs % 50 == 0:
            peak = max(peak, process.memory_info().rss)

    with Children() as children:
        begin, cpu = time.perf_counter(), time.process_time()
        output = Output(out)
        with output.locked():
            inputs = open_inputs([folder])
            plan = make_plan(
                inputs, about_model(tokenizer), Preprocessing(side), sources=("crops",)
            )
            output.begin(plan)
            listed = time.perf_counter() - begin
            progress = tokenize(
                plan, inputs, tokenizer, output, output.missing(plan), workers=1, tell=tell
            )
            totals = output.finish(plan)
        took, cpu = time.perf_counter() - begin, time.process_time() - cpu
    slices.append(alone(tokenizer, images, seconds))
    found = verify(output, inputs)
    assert found.ok and totals.records == len(paths), found.problems
    count = sum(one[0] for one in slices)
    rate = count / sum(one[1] for one in slices)
    own = len(paths) / took
    return {
        "side": side,
        "images": len(paths),
        "seconds": round(took, 2),
        "images_per_second": round(own, 2),
        "alone_images_per_second": round(rate, 2),
        "alone_before_and_after": [round(one[0] / one[1], 2) for one in slices],
        "share": round(own / rate, 3),
        "waiting": round(progress.waiting / took, 4),
        "cpu_ratio": round(cpu / len(paths) / (sum(one[2] for one in slices) / count), 3),
        "cpu_ms_per_image": round(1000 * cpu / len(paths), 3),
        "listing_seconds": round(listed, 3),
        "bytes_per_image": round(totals.bytes / len(paths), 1),
        "memory_mb": round((peak - before) / 1e6, 1),
        "memory_kb_per_image": round((peak - before) / 1e3 / len(paths), 2),
        "decoder_memory_mb": round(children.peak / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--quick", action="store_true", help="two small sets; writes nothing")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        side, seconds = int(given.job[0]), float(given.job[1])
        with tempfile.TemporaryDirectory() as out:
            print(json.dumps(job(given.data, Path(out) / "tokens", side, seconds)))
        return
    sets = []
    for side, count in QUICK if given.quick else FULL:
        with tempfile.TemporaryDirectory() as place:
            write_crops(given.data, Path(place) / "crops", count, side)
            seconds = 1.0 if given.quick else SLICE_SECONDS
            words = ["--data", str(Path(place) / "crops"), "--job", str(side), str(seconds)]
            done = subprocess.run(
                [sys.executable, __file__, *words],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
        sets.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(sets[-1]), flush=True)
    result = {
        "what": "wetok tokenize, one machine",
        "model": "tiny-48x",
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_average": [round(one, 1) for one in os.getloadavg()],
        "sets": sets,
    }
    if not given.quick:
        path = RESULTS / f"tokenization-cpu{os.cpu_count()}-{date.today()}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
