"""Large images: peak memory and time of each mode, and what the fast mode changes.

    python benchmarks/tiling.py memory              # 16,384^2 fast, 8,192^2 exact: an hour or more
    python benchmarks/tiling.py memory --side 2048  # every mode at that side, and the whole image
    python benchmarks/tiling.py bits                # bits and pixels that differ, on photographs
    python benchmarks/tiling.py bits --side 4096    # the same on a mosaic
    python benchmarks/tiling.py exact               # latents of exact strips and of the whole image
    python benchmarks/tiling.py bits --quick        # one small photograph, writes nothing

Photographs are those under --photos (by default `shared/photos/val` beside the repository, or under
WETOK_SHARED). Large images are mosaics of them, saved as JPEG. Every measurement of memory runs in
a process of its own, from the file to the tokens or from the tokens to a PIL image, and is that
process's peak resident set (`getrusage`), torch included. The last line printed is one line of
JSON, also written to benchmarks/results/tiling-PART-HARDWARE-DATE.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED = Path(os.environ.get("WETOK_SHARED") or ROOT.parent / "shared")
MODEL = "tiny-48x"
TILE = 512
NEAR = 8  # pixels from a tile's border that count as its seam


# --- memory, in processes of their own


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    cases = [("fast", 16384), ("exact", 8192)]
    if options.side:
        cases = [(mode, options.side) for mode in ("off", "exact", "fast")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for mode, side in cases:
            image, tokens = Path(folder, f"{side}.jpg"), Path(folder, f"{mode}-{side}.wetok")
            if not image.exists():
                mosaic(options.photos, side).save(image, quality=95)
            for what in ("encode", "decode"):
                job = json.dumps([what, mode, str(image), str(tokens)])
                command = [sys.executable, __file__, "memory", "--job", job]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                row = {"what": what, "mode": mode, "side": side}
                rows.append({**row, **json.loads(done.stdout.splitlines()[-1])})
                print(rows[-1], flush=True)
    return rows


def measure(what: str, mode: Any, image: str, tokens: str) -> dict[str, Any]:
    import torch

    import wetok

    tok = wetok.load(MODEL)
    loaded = peak()
    clocks = time.perf_counter(), time.process_time()
    if what == "encode":
        tok.encode(image, tiles=mode).save(tokens)
    else:
        tok.decode(wetok.Tokens.load(tokens), tiles=mode)
    return {
        "peak_mb": peak(),
        "loaded_mb": loaded,
        "seconds": time.perf_counter() - clocks[0],
        "processor_seconds": time.process_time() - clocks[1],
        "threads": torch.get_num_threads(),
    }


def peak() -> float:
    """MB of 10^6 bytes; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def mosaic(photos: Path, side: int) -> Any:
    """A square of photographs in rows 1024 pixels high."""
    from PIL import Image

    files = sorted(photos.iterdir())
    sheet, number = Image.new("RGB", (side, side)), 0
    for top in range(0, side, 1024):
        left = 0
        while left < side:
            with Image.open(files[number % len(files)]) as opened:
                photo = opened.convert("RGB")
            photo = photo.resize((round(photo.width * 1024 / photo.height), 1024), 3)
            sheet.paste(photo, (left, top))
            left, number = left + photo.width, number + 1
    return sheet


# --- what differs from the whole image


def photographs(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    from wetok.data.images import load_image

    files = sorted(options.photos.iterdir())
    taken = [(file.stem, load_image(file)) for file in files]
    large = [(name, image) for name, image in taken if min(image.size) > TILE]
    if options.quick:
        large = [(name, image.crop((0, 0, 600, 520))) for name, image in large[:1]]
    yield from large[: options.count]


def bits(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row an image: share of the bits and pixels that differ, for several ways to tile it."""
    import torch

    import wetok
    from wetok.model.tiling import Tiling

    tok = wetok.load(MODEL)
    images = list(photographs(options))
    if options.side:
        images = [(f"mosaic {options.side}", mosaic(options.photos, options.side))]
    reference: Any = "exact" if options.side else "off"
    ways = {
        "fast": Tiling("fast", tile=TILE),
        "fast, overlap 32": Tiling("fast", tile=TILE, overlap=32),
        "fast, 24 windows": Tiling("fast", tile=TILE, windows=24),
        "fast, 384 windows": Tiling("fast", tile=TILE, windows=384),
    }
    rows = []
    for name, image in images:
        whole = tok.encode(image, tiles=reference)
        pixels = tok.decode(whole, output="uint8", tiles=reference)
        original = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        original = original.view(image.height, image.width, 3).permute(2, 0, 1)[None]
        row: dict[str, Any] = {"image": name, "width": image.width, "height": image.height}
        row["psnr"] = psnr(pixels, original)
        alone = by_itself(tok, image)
        row["tiles alone"] = {
            "bits": share(alone["ids"], whole.ids),
            "psnr": psnr(alone["both"], original),
            **seams(alone["pixels"](whole.ids), pixels),
        }
        for way, tiling in ways.items():
            tokens = tok.encode(image, tiles=tiling)
            decoded = tok.decode(whole, output="uint8", tiles=tiling)
            both = tok.decode(tokens, output="uint8", tiles=tiling)
            row[way] = {
                "bits": share(tokens.ids, whole.ids),
                "psnr": psnr(both, original),
                **seams(decoded, pixels),
            }
        rows.append(row)
        told = ", ".join(f"{way} {100 * row[way]['bits']:.2f}%" for way in ("tiles alone", *ways))
        print(f"{name}: {told}", flush=True)
    return rows


def by_itself(tok: Any, image: Any) -> dict[str, Any]:
    """Tiles that know nothing of each other, side by side."""
    import torch

    from wetok.codec.tokens import Tokens

    def columns(size: int) -> list[tuple[int, int]]:
        return [(start, min(start + TILE, size)) for start in range(0, size, TILE)]

    def encoded(box: tuple[int, int, int, int]) -> Any:
        return tok.encode(image.crop(box), tiles="off").ids

    rows, cells = columns(image.height), columns(image.width)
    ids = torch.cat(
        [torch.cat([encoded((x0, y0, x1, y1)) for x0, x1 in cells], 3) for y0, y1 in rows], 2
    )

    def pixels(ids: Any) -> Any:
        f = tok.config.factor

        def decoded(y: tuple[int, int], x: tuple[int, int]) -> Any:
            part = ids[:, :, y[0] // f : -(-y[1] // f), x[0] // f : -(-x[1] // f)]
            size = y[1] - y[0], x[1] - x[0]
            tokens = Tokens(part, size, tok.ref, tok.config.group_bits)
            return tok.decode(tokens, output="uint8", tiles="off")

        return torch.cat([torch.cat([decoded(y, x) for x in cells], 3) for y in rows], 2)

    return {"ids": ids, "pixels": pixels, "both": pixels(ids)}


def share(ids: Any, others: Any) -> float:
    """Of the bits that differ, for 8 bits an id."""
    apart = ids ^ others
    return sum(((apart >> k) & 1).float().mean().item() for k in range(8)) / 8


def psnr(image: Any, original: Any) -> float:
    """In dB, of two uint8 images."""
    return 10 * math.log10(255**2 / max(1e-9, (image.float() - original).square().mean().item()))


def seams(image: Any, whole: Any) -> dict[str, float]:
    """Root mean square difference in levels of 255, near the borders of a grid of tiles and
    elsewhere; the fast mode's tiles lie elsewhere, which makes no difference to an average."""
    import torch

    _, _, height, width = whole.shape
    line = torch.zeros(height, width, dtype=torch.bool)
    for start in range(TILE, height, TILE):
        line[start - NEAR : start + NEAR] = True
    for start in range(TILE, width, TILE):
        line[:, start - NEAR : start + NEAR] = True
    apart = (image.float() - whole).square().mean((0, 1))
    return {
        "seam_rms": apart[line].mean().sqrt().item() if line.any() else 0.0,
        "other_rms": apart[~line].mean().sqrt().item(),
        "largest": (image.int() - whole.int()).abs().max().item(),
    }


# --- exactness


def exact(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Latents of strips against the whole image's, with the margin that the ids would have."""
    import torch

    import wetok
    from wetok.data.images import to_tensor
    from wetok.model.tiling import Tiling, latent_bands
    from wetok.model.tokenizer import pad_to_multiple

    tok = wetok.load(MODEL)
    rows = []
    for name, image in photographs(options):
        with torch.no_grad():
            whole = tok.model.encoder(pad_to_multiple(to_tensor(image)[None], tok.config.factor))
        bands = latent_bands(tok.model, image, Tiling("exact"), "exact")
        strips = torch.cat([band for _, band in bands], 2)
        ids = tok.encode(image, tiles="off")
        same = torch.equal(
            tok.decode(ids, output="float", tiles="off"),
            tok.decode(ids, output="float", tiles="exact"),
        )
        rows.append(
            {
                "image": name,
                "width": image.width,
                "height": image.height,
                "latents": whole.numel(),
                "largest_error": (whole - strips).abs().max().item(),
                "smallest_latent": whole.abs().min().item(),
                "ids_equal": bool(((whole > 0) == (strips > 0)).all()),
                "pixels_equal": same,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=["memory", "bits", "exact"])
    parser.add_argument("--side", type=int, help="side of a mosaic")
    parser.add_argument("--photos", type=Path, default=SHARED / "photos" / "val")
    parser.add_argument("--count", type=int, default=1000, help="photographs at most")
    parser.add_argument("--quick", action="store_true", help="one small case, writes nothing")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(*json.loads(options.job))))
        return
    import torch

    parts = {"memory": memory, "bits": bits, "exact": exact}
    rows = parts[options.part](options)
    result: dict[str, Any] = {
        "benchmark": f"tiling-{options.part}",
        "hardware": f"cpu{os.cpu_count()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": MODEL,
        "date": date.today().isoformat(),
        "load_average": os.getloadavg()[0],
        "cases": rows,
    }
    if options.part == "bits":
        result["mean_bits"] = {
            way: statistics.mean(row[way]["bits"] for row in rows)
            for way, value in rows[0].items()
            if isinstance(value, dict)
        }
    if not options.quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        side = f"-{options.side}" if options.side else ""
        name = f"{result['benchmark']}{side}-{result['hardware']}-{result['date']}.json"
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
