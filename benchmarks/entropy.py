"""The exact entropies against the dense computation over all codes, forward and backward.

    python benchmarks/entropy.py            # all cases, writes benchmarks/results/entropy-*.json
    python benchmarks/entropy.py --docs     # also the table and the plot of docs/entropy.md
    python benchmarks/entropy.py --quick    # two cases, few repeats, writes nothing

Every measurement runs in a process of its own, ours and dense in turn, several rounds of them, so
that other work on the machine hits both alike. A round's time is the median over the repeats; the
table gives the median over the rounds, and the speed-up is the median of the rounds' ratios.
Memory is the growth of the process's resident set above what it had after a warm-up with tiny
tensors (on a GPU: of the allocated memory), during the first forward and backward pass.
The last line printed is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "entropy.md"
PLOT = ROOT / "docs" / "images" / "entropy.png"


class Case(NamedTuple):
    name: str
    bits: int
    groups: int
    positions: int
    dense: bool = True
    eps: float = 1e-5

    @property
    def group_bits(self) -> int:
        return self.bits // self.groups

    @property
    def dense_bytes(self) -> int:
        """One float32 table of all positions by all codes; dense needs several of them."""
        return 4 * self.positions * self.groups * 2**self.group_bits


CASES = [
    Case("d=32, g=4", 32, 4, 8192),
    Case("d=64, g=8", 64, 8, 8192),
    Case("LFQ d=16", 16, 1, 256),
    Case("LFQ d=18", 18, 1, 256),
    Case("LFQ d=24", 24, 1, 1024, dense=False, eps=0.0),
    Case("LFQ d=28", 28, 1, 1024, dense=False, eps=0.0),
]
SWEEP = [Case(f"sweep {d}", d, 1, 256, dense=d <= 18) for d in range(8, 28, 2)]


# --- one measurement, in a process of its own


def measure(method: str, case: Case, device: str, repeats: int) -> dict[str, Any]:
    """Seconds of each repeat (wall and processor) and the peak memory of the first pass."""
    sys.path.insert(0, str(ROOT))
    from wetok.evaluate.footprint import footprint

    kind: Any = method
    measured = footprint(
        kind,
        case.bits,
        case.groups,
        case.positions,
        eps=case.eps,
        device=device,
        repeats=repeats,
    )
    return measured._asdict()


# --- rounds of measurements


def run(method: str, case: Case, options: argparse.Namespace, repeats: int) -> dict[str, Any]:
    job = json.dumps([method, case, options.device, repeats])
    threads = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    command = [sys.executable, __file__, "--job", job]
    done = subprocess.run(
        command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: Case, options: argparse.Namespace, rounds: int) -> dict[str, Any]:
    """Rounds of ours and, where it fits, dense in turn -> one row of results."""
    long = case.group_bits >= 24
    ours_rounds, dense_rounds = [], []
    for _ in range(1 if case.group_bits >= 28 else rounds):
        if case.dense:
            dense_rounds.append(run("dense", case, options, 2 if options.quick else 5))
        ours_rounds.append(run("ours", case, options, 1 if long else 30))
    median = {
        clock: [statistics.median(r[clock]) for r in ours_rounds] for clock in ("wall", "processor")
    }
    row: dict[str, Any] = {
        **case._asdict(),
        "seconds": statistics.median(median["wall"]),
        "seconds_each_round": [round(s, 6) for s in median["wall"]],
        "mb": statistics.median(r["bytes"] for r in ours_rounds) / 1e6,
        "dense_table_mb": case.dense_bytes / 1e6,
    }
    if dense_rounds:
        dense = {
            clock: [statistics.median(r[clock]) for r in dense_rounds]
            for clock in ("wall", "processor")
        }
        ratios = {
            clock: [d / o for d, o in zip(dense[clock], median[clock], strict=True)]
            for clock in dense
        }
        row |= {
            "dense_seconds": statistics.median(dense["wall"]),
            "dense_mb": statistics.median(r["bytes"] for r in dense_rounds) / 1e6,
            "speedup": statistics.median(ratios["wall"]),
            "speedup_each_round": [round(r, 1) for r in ratios["wall"]],
            "processor_time_ratio": statistics.median(ratios["processor"]),
        }
        row["memory_ratio"] = row["dense_mb"] / row["mb"]
    print(_line(row), flush=True)
    return row


# --- what a person reads


def _line(row: dict[str, Any]) -> str:
    dense = "dense: not tried"
    if "speedup" in row:
        dense = (
            f"dense {_seconds(row['dense_seconds'])}, {row['dense_mb']:,.0f} MB; "
            f"{row['speedup']:.0f}x faster, {row['memory_ratio']:.0f}x less memory"
        )
    return f"{row['name']:>10}: {_seconds(row['seconds'])}, {row['mb']:,.0f} MB; {dense}"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| case | positions | ours | dense | faster | ours, memory | dense, memory | less |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["name"], f"{row['positions']:,}", _seconds(row["seconds"])]
        if "speedup" in row:
            cells += [_seconds(row["dense_seconds"]), f"{row['speedup']:.0f}x"]
            cells += [f"{row['mb']:.0f} MB", f"{row['dense_mb']:,.0f} MB"]
            cells += [f"{row['memory_ratio']:.0f}x"]
        else:
            each = f"{row['dense_table_mb'] / 1e3:,.0f} GB a table"
            cells += ["not tried", "", f"{row['mb']:.0f} MB", each, ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(sweep: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    tried = [row for row in sweep if "speedup" in row]
    for axis, ours, dense, label in (
        (axes[0], "seconds", "dense_seconds", "seconds, forward and backward"),
        (axes[1], "mb", "dense_mb", "peak memory (MB)"),
    ):
        bits = [row["bits"] for row in sweep]
        axis.plot([r["bits"] for r in tried], [r[dense] for r in tried], "o-", label="dense")
        last = tried[-1]
        beyond = [d for d in bits if d >= last["bits"]]
        grown = [last[dense] * 2.0 ** (d - last["bits"]) for d in beyond]
        axis.plot(beyond, grown, ":", color="C0", label="dense, extrapolated")
        axis.plot(bits, [r[ours] for r in sweep], "s-", color="C1", label="factored")
        axis.set(yscale="log", xlabel="bits in one group", ylabel=label, xticks=bits)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.suptitle(f"Token and codebook entropy of {sweep[0]['positions']} positions")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def write_docs(rows: list[dict[str, Any]], caption: str) -> None:
    text = DOCS.read_text()
    head, rest = text.split("<!-- benchmark: begin -->")
    tail = rest.split("<!-- benchmark: end -->")[1]
    middle = f"<!-- benchmark: begin -->\n{table(rows)}\n\n{caption}\n<!-- benchmark: end -->"
    DOCS.write_text(head + middle + tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two cases, writes nothing")
    parser.add_argument("--docs", action="store_true", help="rewrite the docs' table and plot")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        method, case, device, repeats = json.loads(options.job)
        print(json.dumps(measure(method, Case(*case), device, repeats)))
        return
    cases = [CASES[0], CASES[2]] if options.quick else CASES
    rows = [compare(case, options, 1 if options.quick else options.rounds) for case in cases]
    import torch

    hardware = f"cpu{os.cpu_count()}"
    if options.device == "cuda":
        hardware = torch.cuda.get_device_name().lower().replace(" ", "-")
    result = {
        "benchmark": "entropy",
        "hardware": hardware,
        "processor": platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "load_average": os.getloadavg()[0],
        "cases": rows,
    }
    if not options.quick:
        result["sweep"] = sweep = [compare(case, options, 1) for case in SWEEP]
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"entropy-{hardware}-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        if options.docs:
            plot(sweep, PLOT)
            caption = (
                f"{hardware}, {options.threads} threads, torch {torch.__version__}, "
                f"{result['date']}; median of {options.rounds} rounds, load average "
                f"{result['load_average']:.1f}."
            )
            write_docs(rows, caption)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
