"""Exported programs against the model itself: bytes of the files, and processor time of a pass.

    python benchmarks/export.py            # writes benchmarks/results/export-*.json
    python benchmarks/export.py --quick    # without AOTInductor and with 1 round, writes nothing

The programs are written by `wetok export` (each held against the model) and run in their own
runtimes on one thread, in the same process and in turn with the model, round after round: what is
told of a program is the median over rounds of its time as a share of the model's in that round.
Times are processor time, which other work on the machine disturbs less than the clock on the wall.
The last line printed is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is imported

RESULTS = Path(__file__).resolve().parent / "results"
SIZES = ((1, 64, 64), (8, 64, 64), (1, 256, 256), (1, 512, 512))


def measure(passes: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Processor seconds of each way, least of all rounds, and the median share of "eager"."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for function in passes.values():
        function()  # sets up its memory
    for _ in range(rounds):
        for name, function in passes.items():
            begin = time.process_time()
            function()
            seconds[name].append(time.process_time() - begin)
    return {
        name: {
            "ms": round(1e3 * min(taken), 2),
            "of_eager": round(
                median(a / b for a, b in zip(taken, seconds["eager"], strict=True)), 3
            ),
        }
        for name, taken in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny-48x")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()

    import onnxruntime
    import torch

    import wetok
    from wetok.export.exporting import export
    from wetok.export.formats import load

    torch.set_num_threads(1)
    tokenizer = wetok.load(options.model)
    network, config = tokenizer.model, tokenizer.config
    if config.generative:
        raise SystemExit("the model must have a deterministic decoder")
    with TemporaryDirectory() as folder:
        wanted: Any = ["torch", "onnx"] if options.quick else ["torch", "aoti", "onnx"]
        programs = export(tokenizer, Path(folder), wanted)
        runners = {
            (one["part"], one["format"]): load(Path(folder) / one["file"], one["format"])
            for one in programs
        }

        def encode(image: Any) -> Any:
            with torch.no_grad():
                return network.quantizer(network.encoder(image)).ids

        def decode(ids: Any) -> Any:
            with torch.no_grad():
                return network.decoder(network.quantizer.ids_to_code(ids)).clamp(-1, 1)

        speed = []
        for batch, height, width in SIZES[:3] if options.quick else SIZES:
            image = torch.rand(batch, 3, height, width) * 2 - 1
            ids = encode(image).long()
            for part, eager, given in (("encoder", encode, image), ("decoder", decode, ids)):
                passes = {"eager": lambda f=eager, x=given: f(x)}
                for format in wanted:
                    passes[format] = lambda f=runners[part, format], x=given: f(x)
                found = measure(passes, 1 if options.quick else options.rounds)
                speed.append({"part": part, "shape": [batch, 3, height, width], **found})
                print(speed[-1], flush=True)
    result = {
        "benchmark": "export",
        "model": options.model,
        "fingerprint": tokenizer.fingerprint,
        "programs": [
            {
                "part": one["part"],
                "format": one["format"],
                "bytes": one["bytes"],
                "seconds_to_export_and_check": round(one["seconds"], 1),
                "checks": one["checks"],
            }
            for one in programs
        ],
        "speed": speed,
        "rounds": options.rounds,
        "clock": "processor time, one thread; of_eager is the median over rounds taken in turn",
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "load_average": os.getloadavg()[0],
        "date": date.today().isoformat(),
    }
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"export-cpu{os.cpu_count()}-{result['date']}.json"
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
