"""`wetok reconstruct` from the start of its process to the file, against importing torch alone.

    python benchmarks/cold_start.py            # writes a result
    python benchmarks/cold_start.py --quick    # once, writes nothing

The photograph is the package's cat.jpg, the model the shipped one, everything as it comes. Times
are wall time of whole processes, in turn, on a machine that has to be quiet; the first of each is
left out, as it also reads the files from disk. What may be imported is held by
tests/test_cold_start.py.
The last line printed is one line of JSON, also written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PHOTO = ROOT / "wetok" / "assets" / "photos" / "cat.jpg"


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, writes nothing")
    options = parser.parse_args()
    ours, torch_alone = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1 + (1 if options.quick else options.rounds)):
            target = Path(folder, f"{number}.png")
            ours.append(seconds("-m", "wetok", "reconstruct", str(PHOTO), "-o", str(target)))
            assert target.exists()
            torch_alone.append(seconds("-c", "import torch"))
    result: dict[str, Any] = {
        "benchmark": "cold-start",
        "photo": PHOTO.name,
        "seconds": statistics.median(ours[1:]),
        "seconds_each_time": [round(one, 3) for one in ours[1:]],
        "import_torch_seconds": statistics.median(torch_alone[1:]),
        "hardware": f"cpu{os.cpu_count()}",
        "python": sys.version.split()[0],
        "torch": version("torch"),
        "date": date.today().isoformat(),
        "load_average": os.getloadavg()[0],
    }
    if not options.quick:
        name = f"cold-start-{result['hardware']}-{result['date']}.json"
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
