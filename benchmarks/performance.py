"""The tables of docs/performance.md, from the newest result files of benchmarks/inference.py.

    python benchmarks/performance.py          # rewrite the tables from what is in results/
    python benchmarks/performance.py --run    # measure the shipped model anew first

The last line printed is one line of JSON: the files that the tables come from.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def newest(results: Path) -> list[Path]:
    """The last file of each model and hardware; names end in the date."""
    found = {path.stem[: -len("-2026-01-01")]: path for path in sorted(results.glob("inference-*"))}
    return list(found.values())


def table(result: dict[str, Any]) -> str:
    lines = [
        f"**{result['model']}** ({result['weights']} weights), {result['side']} x {result['side']} "
        f"pixels, one at a time; {result['hardware']}, {result['threads']} thread"
        f"{'s' * (result['threads'] != 1)}, torch {result['torch']}, {result['date']}, "
        f"load average {result['load_average']:.1f}.",
        "",
        "| | mode | processor time | faster than released | share of matmul peak | nearness |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        near = "the reference"
        if row["mode"] != "released" and row["direction"] == "encode":
            near = f"{row['flips']:.2%} of bits differ" if row["flips"] else "the same ids"
        elif row["mode"] != "released":
            near = f"{row['psnr']:.0f} dB" if row["psnr"] else "the same pixels"
        lines.append(
            f"| {row['direction']} | {row['mode']} | {row['processor_seconds'] * 1e3:,.0f} ms | "
            f"{row['ratio']:.2f}x | {row['share_of_peak']:.0%} | {near} |"
        )
    if "validation" in result:
        told = result["validation"]
        lines += [
            "",
            f"On {told['images']} photographs, {told['bits']:,} bits: "
            f"{told['ids_that_differ_from_the_released_way']} ids in float32 differ from the "
            f"released way's. In bf16 {told['flips_in_bf16']:.3%} of the bits differ, and "
            f"{told['uncertain_in_bf16']:.1%} are nearer to zero than the error band of "
            f"{told['error_band']:.3f} (`Tokens.uncertain`). Decoding in bf16 is "
            f"{told['psnr_of_bf16']:.1f} dB from float32 (the least: "
            f"{told['least_psnr_of_bf16']:.1f}).",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", action="store_true", help="measure the shipped model first")
    options = parser.parse_args()
    if options.run:
        subprocess.run([sys.executable, ROOT / "benchmarks" / "inference.py"], check=True)
    files = newest(RESULTS)
    tables = "\n\n".join(table(json.loads(path.read_text())) for path in files)
    head, rest = DOCS.read_text().split(BEGIN)
    DOCS.write_text(f"{head}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}")
    print(json.dumps({"tables": [path.name for path in files]}))


if __name__ == "__main__":
    main()
