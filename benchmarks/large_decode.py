"""Decoding one large image with a full-size model: peak memory and time, whole and in parts.

    python benchmarks/large_decode.py                    # general-192x, 2048 x 2048: half an hour
    python benchmarks/large_decode.py --side 1024 --precision float32
    python benchmarks/large_decode.py --quick            # a small model and image, writes nothing

Every mode runs in a process of its own, as `wetok decode` does it, from random tokens to a PIL
image; models that are not shipped have random weights. Memory is the process's peak resident set,
torch and the model included (`loaded_mb` before the first pass). Time is processor time. Pixels
are compared with the whole image's. `--modes off exact` leaves the fast one out, whose tiles
overlap by half where a network looks as far as a full-size one does.
The last line printed is one line of JSON, also written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

MODES = ("off", "exact", "fast")


def measure(name: str, side: int, mode: str, precision: str | None, file: str) -> dict[str, Any]:
    """One pass in this process; the image goes to `file`."""
    import torch
    from inference import opened

    from wetok.codec.tokens import Tokens
    from wetok.memory import keep_freed_memory

    keep_freed_memory(large=mode == "off")
    tok = opened(name, "cpu")
    config = tok.config
    positions = -(-side // config.factor)
    torch.manual_seed(1)
    ids = torch.randint(2**config.group_bits, (1, config.groups, positions, positions))
    tokens = Tokens(ids, (side, side), tok.ref, config.group_bits)
    loaded = peak()
    began = time.process_time()
    (image,) = tok.decode(tokens, tiles=mode, precision=precision)  # type: ignore[arg-type]
    processor = time.process_time() - began
    result = {
        "mode": mode,
        "precision": tok.way("decode", precision).precision,
        "peak_mb": peak(),
        "loaded_mb": loaded,
        "processor_seconds": processor,
        "threads": torch.get_num_threads(),
    }
    image.save(file)
    return result


def peak() -> float:
    """MB of 10^6 bytes; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def apart(file: Path, whole: Path) -> dict[str, float]:
    """Bytes that differ, and the root mean square difference in levels of 255."""
    import numpy as np
    from PIL import Image

    a, b = (np.asarray(Image.open(one)).astype(np.float64) for one in (file, whole))
    return {"bytes_differing": float((a != b).mean()), "rms": float(((a - b) ** 2).mean() ** 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="general-192x")
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument(
        "--precision", choices=["float32", "bf16"], help="by default decoding's own"
    )
    parser.add_argument("--quick", action="store_true", help="tiny-48x at 160, writes nothing")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(*json.loads(options.job))))
        return
    name, side = ("tiny-48x", 160) if options.quick else (options.model, options.side)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {mode: Path(folder, f"{mode}.png") for mode in options.modes}
        for mode, file in files.items():
            job = json.dumps([name, side, mode, options.precision, str(file)])
            command = [sys.executable, __file__, "--job", job]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            if mode != "off" and "off" in files:
                row["against_the_whole"] = apart(file, files["off"])
            rows.append(row)
            print(json.dumps(row), flush=True)
    import torch

    from wetok import checkpoint

    result = {
        "benchmark": "large-decode",
        "model": name,
        "weights": "trained" if name in checkpoint.shipped() else "random",
        "side": side,
        "hardware": f"cpu{os.cpu_count()}",
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "load_average": os.getloadavg()[0],
        "rows": rows,
    }
    if not options.quick:
        file = RESULTS / f"large-decode-{name}-{side}-{result['hardware']}-{result['date']}.json"
        file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
