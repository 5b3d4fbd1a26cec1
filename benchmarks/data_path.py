"""JPEG files to training crops: as training reads them, against decoding in full and bicubic.

    python benchmarks/data_path.py            # writes a result
    python benchmarks/data_path.py --quick    # few images, one round, writes nothing

Training reads through `TrainLoader` with `draft`: a JPEG is decoded at a half, a quarter or an
eighth where that leaves 1.5 times the crop, and reduced by a box filter before the bicubic one.
The other way is the usual one: decode in full, then one bicubic antialiased resize of the part.
Both go through the same loader with the same seed, so every crop is of the same part.

Photographs are those under --photos: as they are, and side by side at their own resolution in
mosaics of 3072 x 2304 pixels (7 megapixels), saved as JPEG of quality 92. Rounds take both ways in
turn; ratios are medians of the rounds' ratios. Images a second are by wall time, for which the
machine has to be quiet; the ratio of processor times is beside it. PSNR is of the crops that
differ at all, in dB.
The last line printed is one line of JSON, also written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED = Path(os.environ.get("WETOK_SHARED") or ROOT.parent / "shared")
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import PIL  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from wetok.data.images import find_images  # noqa: E402
from wetok.data.loader import TrainLoader  # noqa: E402
from wetok.data.sources import ImageFolder  # noqa: E402
from wetok.data.transforms import Plan, RandomCrop  # noqa: E402

CROP = 256
SIZE = 3072, 2304
WAYS = ("full", "training")


class FullCrop(RandomCrop):
    """The same parts, by one bicubic resize of the whole image's own pixels."""

    def apply(self, image: Image.Image, plan: Plan) -> Image.Image:
        side = (self.size, self.size)
        result = image.resize(side, Image.Resampling.BICUBIC, box=plan.box)
        return result.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if plan.flip else result


def mosaics(photos: list[Path], count: int, folder: Path) -> None:
    """Photographs in rows at their own resolution, each mosaic beginning with another one."""
    for number in range(count):
        sheet, top, taken = Image.new("RGB", SIZE), 0, number * len(photos) // count
        while top < SIZE[1]:
            left = low = 0
            while left < SIZE[0]:
                with Image.open(photos[taken % len(photos)]) as photo:
                    sheet.paste(photo.convert("RGB"), (left, top))
                    left, taken = left + photo.width, taken + 1
                    low = min(low, photo.height) if low else photo.height
            top += low
        sheet.save(folder / f"{number:03}.jpg", quality=92)


def loader(way: str, source: ImageFolder, workers: int) -> TrainLoader[int]:
    fast = way == "training"
    crop = RandomCrop(CROP) if fast else FullCrop(CROP)
    return TrainLoader(source, 8, CROP, transform=crop, workers=workers, draft=fast)


def timed(way: str, source: ImageFolder, workers: int, batches: int) -> tuple[float, float]:
    """Wall and processor seconds an image."""
    with loader(way, source, workers) as batch:
        for _ in range(2):
            next(batch)
        began = time.perf_counter(), time.process_time()
        for _ in range(batches):
            next(batch)
        spent = time.perf_counter() - began[0], time.process_time() - began[1]
    images = batch.batch_size * batches
    return spent[0] / images, spent[1] / images


def nearness(source: ImageFolder, images: int) -> list[float]:
    """PSNR of each crop by the training's way against the other's."""
    found: list[float] = []
    with loader("full", source, 2) as full, loader("training", source, 2) as training:
        while len(found) < images:
            for one, other in zip(next(full), next(training), strict=True):
                error = (one - other).double().square().mean().item()
                found.append(10 * math.log10(4 / error) if error else math.inf)
    return found


def compare(
    name: str, source: ImageFolder, rounds: int, batches: int, images: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"set": name, "images": len(source)}
    for workers in (1, 2):
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                taken[way].append(timed(way, source, workers, batches))
        pairs = list(zip(taken["full"], taken["training"], strict=True))
        row[f"workers_{workers}"] = {
            **{
                f"{way}_images_a_second": 1 / statistics.median(wall for wall, _ in spent)
                for way, spent in taken.items()
            },
            "ratio": statistics.median(full[0] / fast[0] for full, fast in pairs),
            "processor_time_ratio": statistics.median(full[1] / fast[1] for full, fast in pairs),
        }
        print(json.dumps({"set": name, "workers": workers, **row[f"workers_{workers}"]}))
    near = nearness(source, images)
    apart = [value for value in near if value < math.inf]
    row["same_crops"] = 1 - len(apart) / len(near)
    row["psnr_of_others"] = statistics.median(apart) if apart else None
    row["least_psnr"] = min(apart, default=None)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, default=SHARED / "photos" / "train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = find_images(options.photos)
    count, rounds, images = (2, 1, 8) if options.quick else (24, options.rounds, 192)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        mosaics(photos, count, Path(folder))
        rows.append(compare("7 MP", ImageFolder(folder), rounds, 1 if options.quick else 4, images))
    own = ImageFolder([str(path) for path in photos])
    rows.append(compare("own size", own, rounds, 2 if options.quick else 16, images))
    sizes = []
    for path in photos:
        with Image.open(path) as photo:
            sizes.append(photo.width * photo.height)
    rows[-1]["megapixels"] = statistics.median(sizes) / 1e6
    rows[0]["megapixels"] = SIZE[0] * SIZE[1] / 1e6
    result = {
        "benchmark": "data-path",
        "crop": CROP,
        "hardware": f"cpu{os.cpu_count()}",
        "processor": platform.machine(),
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "date": date.today().isoformat(),
        "load_average": os.getloadavg()[0],
        "rows": rows,
    }
    if not options.quick:
        name = f"data-path-{result['hardware']}-{result['date']}.json"
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
