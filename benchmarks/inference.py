"""Encoding and decoding against the released way, on the same weights.

    python benchmarks/inference.py                       # the shipped model; writes a result
    python benchmarks/inference.py --model general-192x  # a published shape with random weights
    python benchmarks/inference.py --threads 2 --batch 4 # a batch, on both cores
    python benchmarks/inference.py --also channels_last  # float32 in channels last beside it
    python benchmarks/inference.py --quick               # one round at 64 pixels, writes nothing

"The released way" is the released network's arithmetic, written out below: contiguous float32, SiLU
as x * sigmoid(x) in new tensors, the adaptive norm as a norm, a product and a sum; and glibc's
allocator as its adaptive limits leave it; it takes a batch at once. Ours runs as the commands do
(`wetok.memory`), which take one image after another.

Rounds take all modes in turn, in one process; the ratio is the median of the rounds' ratios. With
one thread the clock is processor time, so that other work on the machine shows little. With more it
is wall time, which alone shows whether they share the work well: the machine has to be quiet. Peak
is that of a 2048^3 matrix product in the mode's own precision by the same clock, in the same
process. `--device cuda` takes wall time and is untested.
The last line printed is one line of JSON, also written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED = Path(os.environ.get("WETOK_SHARED") or ROOT.parent / "shared")
sys.path.insert(0, str(ROOT))

from wetok import checkpoint  # noqa: E402
from wetok.data.images import find_images, load_image, to_tensor  # noqa: E402
from wetok.data.transforms import center_crop  # noqa: E402
from wetok.memory import keep_freed_memory  # noqa: E402
from wetok.model.layers import code_statistics, depth_to_space, space_to_depth  # noqa: E402
from wetok.model.network import TokenizerNetwork  # noqa: E402
from wetok.model.tokenizer import Tokenizer  # noqa: E402
from wetok.presets import PRESETS  # noqa: E402

# --- the released way


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def norm(x: Tensor, layer: Any) -> Tensor:
    return F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)


def blocks(x: Tensor, layers: Any) -> Tensor:
    for layer in layers:
        y = layer.conv1(swish(norm(x, layer.norm1)))
        y = layer.conv2(swish(norm(y, layer.norm2)))
        x = y + (x if layer.same_width else layer.nin_shortcut(x))
    return x


def released_encoder(encoder: Any, image: Tensor) -> Tensor:
    x = space_to_depth(image, encoder.patch) if encoder.patch > 1 else image
    x = encoder.conv_in(x)
    for level in encoder.down:
        x = level.downsample(blocks(x, level.block))
    x = blocks(x, encoder.mid_block)
    return encoder.conv_out(swish(norm(x, encoder.norm_out)))


def released_decoder(decoder: Any, code: Tensor) -> Tensor:
    mean, deviation = code_statistics(code)
    x = blocks(decoder.conv_in(code), decoder.mid_block)
    for adaptive, level in zip(reversed(decoder.adaptive), reversed(decoder.up), strict=True):
        scale = adaptive.gamma(deviation)[:, :, None, None]
        shift = adaptive.beta(mean)[:, :, None, None]
        x = level.upsample(blocks(scale * norm(x, adaptive.gn) + shift, level.block))
    x = decoder.conv_out(swish(norm(x, decoder.norm_out)))
    return depth_to_space(x, decoder.patch) if decoder.patch > 1 else x


# --- measuring

LONG = 2.0
"""Seconds of a pass from which on the pages it asks for no longer count."""


def allocator(ours: bool) -> None:
    """As the commands set it, or as glibc's own limits come to be in a program like this."""
    if ours:
        keep_freed_memory(large=True)
    elif sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in ((-4, 65536), (-3, 32 << 20), (-1, 64 << 20)):
            mallopt(setting, value)


def timed(run: Callable[[], Tensor], device: torch.device) -> tuple[float, float, Tensor]:
    """Wall and processor time, and the result."""

    def clocks() -> tuple[float, float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter(), time.process_time()

    began = clocks()
    result = run()
    ended = clocks()
    return ended[0] - began[0], ended[1] - began[1], result


def clock(device: torch.device) -> str:
    return "wall" if device.type == "cuda" or torch.get_num_threads() > 1 else "processor"


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a matrix product: the best of several, as a peak is."""
    a = torch.randn(2048, 2048, device=device).to(dtype)
    b = torch.randn(2048, 2048, device=device).to(dtype)
    times = [timed(lambda: a @ b, device)[:2] for _ in range(5)]
    return 2 * 2048**3 / min(wall if clock(device) == "wall" else spent for wall, spent in times)


def flops(tok: Tokenizer, image: Tensor) -> dict[str, int]:
    """Of each direction, counted without computing anything."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = TokenizerNetwork(tok.config)
        counted = {}
        with FlopCounterMode(display=False) as counter:
            latent = released_encoder(network.encoder, torch.empty(image.shape))
        counted["encode"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            released_decoder(network.decoder, latent)
        counted["decode"] = counter.get_total_flops()
    return counted


Passes = dict[str, dict[str, Callable[[], Tensor]]]


def passes(tok: Tokenizer, image: Tensor, also: str | None = None) -> Passes:
    """direction -> mode -> one pass."""
    tokens = tok.encode(image, precision="float32", tiles="off")
    code = tok.model.quantizer.ids_to_code(tokens.ids.to(tok.device))
    fast = {
        direction: tok._prepared.network(direction, tok.way(direction, "bf16"))
        for direction in ("encode", "decode")
    }

    def encoded(encoder: Any) -> Tensor:
        return torch.cat([encoder(one) for one in image.split(1)])

    every: Passes = {
        "encode": {
            "released": lambda: released_encoder(tok.model.encoder, image),
            "float32": lambda: encoded(tok.model.encoder),
            "bf16": lambda: encoded(fast["encode"].encoder).float(),
        },
        "decode": {
            "released": lambda: released_decoder(tok.model.decoder, code),
            "float32": lambda: tok.model.decode(code),
            "bf16": lambda: fast["decode"].decode(code).float(),
        },
    }
    if also == "channels_last":
        last = copy.deepcopy(tok.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        every["encode"]["channels_last"] = lambda: encoded(last.encoder)
        every["decode"]["channels_last"] = lambda: last.decode(code)
    return every


@torch.no_grad()
def measure(
    tok: Tokenizer, image: Tensor, rounds: int, also: str | None = None
) -> list[dict[str, Any]]:
    device = tok.device
    every = passes(tok, image, also)
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    first: dict[str, float] = {}
    which = 0 if clock(device) == "wall" else 1
    results: dict[tuple[str, str], Tensor] = {}
    for number in range(rounds + 1):
        for direction, modes in every.items():
            for mode, run in modes.items():
                allocator(ours=mode != "released")
                if number and mode == "released" and first[direction] < LONG:
                    run()  # warm: the first after another allocator's rules pays for both
                wall, processor, results[direction, mode] = timed(run, device)
                if number:
                    taken.setdefault((direction, mode), []).append((wall, processor))
                else:
                    first.setdefault(direction, wall)
    float32 = matmul_peak(torch.float32, device)
    peaks = {"bf16": matmul_peak(torch.bfloat16, device)}
    rows = []
    work = flops(tok, image)
    for direction, modes in every.items():
        exact = results[direction, "released"]
        base = [clocks[which] for clocks in taken[direction, "released"]]
        for mode in modes:
            mine = [clocks[which] for clocks in taken[direction, mode]]
            walls, processors = zip(*taken[direction, mode], strict=True)
            rate = work[direction] / statistics.median(mine)
            row: dict[str, Any] = {
                "direction": direction,
                "mode": mode,
                "seconds": statistics.median(mine),
                "wall_seconds": statistics.median(walls),
                "processor_seconds": statistics.median(processors),
                "ratio": statistics.median(b / m for b, m in zip(base, mine, strict=True)),
                "gflop": work[direction] / 1e9,
                "share_of_peak": rate / peaks.get(mode, float32),
            }
            other = results[direction, mode]
            if direction == "encode":
                row["flips"] = ((exact > 0) != (other > 0)).float().mean().item()
            else:
                error = (exact.clamp(-1, 1) - other.clamp(-1, 1)).square().mean().item()
                row["psnr"] = 10 * math.log10(4 / error) if error else None
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


@torch.no_grad()
def validation(tok: Tokenizer, folder: Path, side: int) -> dict[str, Any]:
    """float32 ids against the released way, and what bf16 changes, on every photograph."""
    differ = bits = flipped = 0
    uncertain, psnr = [], []
    for path in find_images(folder):
        image = to_tensor(center_crop(load_image(path), side))[None].to(tok.device)
        released = released_encoder(tok.model.encoder, image)
        exact = tok.encode(image, precision="float32")
        differ += int((tok.model.quantizer(released).ids.cpu() != exact.ids).sum())
        rough = tok.encode(image, precision="bf16")
        one, other = (tok.model.quantizer.ids_to_code(t.ids) for t in (exact, rough))
        flipped, bits = flipped + int((one != other).sum()), bits + one.numel()
        uncertain.append(rough.uncertain or 0.0)
        a, b = (tok.decode(exact, output="float", precision=p) for p in ("float32", "bf16"))
        psnr.append(10 * math.log10(4 / (a - b).square().mean().item()))
    return {
        "images": len(psnr),
        "bits": bits,
        "ids_that_differ_from_the_released_way": differ,
        "flips_in_bf16": flipped / bits,
        "uncertain_in_bf16": statistics.mean(uncertain),
        "error_band": tok._prepared.band(),
        "psnr_of_bf16": statistics.mean(psnr),
        "least_psnr_of_bf16": min(psnr),
    }


def opened(name: str, device: str) -> Tokenizer:
    if name in PRESETS and name not in checkpoint.shipped():
        torch.manual_seed(0)
        return Tokenizer(TokenizerNetwork(PRESETS[name]).to(device), name)
    return checkpoint.load(name, device)


def inputs(photos: Path, side: int, batch: int) -> Tensor:
    """The middles of the first photographs, or noise where there are none."""
    if not photos.is_dir():
        return torch.rand(batch, 3, side, side) * 2 - 1
    crops = (center_crop(load_image(path), side) for path in find_images(photos)[:batch])
    return torch.stack([to_tensor(crop) for crop in crops])


def file_name(result: dict[str, Any]) -> str:
    """Of the result file: what was measured, then the hardware and the date."""
    name = f"inference-{result['model']}"
    name += f"-threads{result['threads']}" if result["threads"] > 1 else ""
    name += f"-batch{result['batch']}" if result["batch"] > 1 else ""
    return f"{name}-{result['hardware']}-{result['date']}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny-48x")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="images a pass")
    parser.add_argument("--also", choices=["channels_last"], help="float32 in that layout too")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--photos", type=Path, default=SHARED / "photos" / "val")
    parser.add_argument("--quick", action="store_true", help="one round, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tok = opened(options.model, options.device)
    side = 64 if options.quick else options.side
    shipped = options.model in checkpoint.shipped()
    image = inputs(options.photos, side, options.batch).to(tok.device)
    result: dict[str, Any] = {
        "benchmark": "inference",
        "model": options.model,
        "weights": "trained" if shipped else "random",
        "side": side,
        "hardware": f"cpu{os.cpu_count()}" if options.device == "cpu" else options.device,
        "processor": platform.machine(),
        "threads": options.threads,
        "batch": options.batch,
        "clock": clock(tok.device),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "load_average": os.getloadavg()[0],
    }
    rounds = 1 if options.quick else options.rounds
    result["rows"] = measure(tok, image, rounds, options.also)
    single = options.threads == options.batch == 1
    if not options.quick and shipped and single and options.photos.is_dir():
        result["validation"] = validation(tok, options.photos, side)
    if not options.quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / file_name(result)).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
