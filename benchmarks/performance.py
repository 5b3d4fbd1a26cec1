"""The tables of docs/performance.md, from the newest result files of all benchmarks of speed.

    python benchmarks/performance.py          # rewrite the tables from what is in results/
    python benchmarks/performance.py --run    # measure anew first: an hour, on a quiet machine

A test holds the page to what this makes of the committed results. The last line printed is one
line of JSON: the files that the tables come from.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "performance.md"
MODES = {"channels_last": "float32, channels last"}

RUNS = [
    ["inference.py"],
    ["inference.py", "--threads", "2"],
    ["inference.py", "--threads", "2", "--batch", "4"],
    ["inference.py", "--model", "general-192x", "--rounds", "2"],
    ["inference.py", "--model", "general-192x", "--rounds", "2"]
    + ["--threads", "2", "--also", "channels_last"],
    ["entropy.py", "--docs"],
    ["train_step.py"],
    ["data_path.py"],
    ["large_decode.py", "--modes", "off", "exact"],
    ["cold_start.py"],
]
"""What `--run` measures; evaluation, tokenising, generation, exports and the codec need more than
a machine, and have commands of their own in their scripts."""


class Row(NamedTuple):
    """One line of the summary."""

    what: str
    ours: str
    against: str
    """What it is compared with, and its number."""
    ratio: float
    hardware: str
    date: str


# --- one table of everything


def inference(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["rows"]:
        default = "float32" if row["direction"] == "encode" else "bf16"
        if row["mode"] not in ("float32", "bf16"):
            continue
        base = next(
            one
            for one in result["rows"]
            if one["direction"] == row["direction"] and one["mode"] == "released"
        )
        batch = f", {result['batch']} images" if result["batch"] > 1 else ""
        yield Row(
            f"{row['direction']}, {result['model']}{batch}, {row['mode']}"
            + (" (the default)" if row["mode"] == default else ""),
            seconds(row["seconds"]),
            f"released way {seconds(base['seconds'])}",
            row["ratio"],
            *where(result),
        )


def entropy(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["cases"]:
        if "speedup" not in row:
            continue
        dense = seconds(row["dense_seconds"])
        what = f"entropies and gradient, {row['name']}, {row['positions']:,} positions"
        yield Row(what, seconds(row["seconds"]), f"dense {dense}", row["speedup"], *where(result))
        yield Row(
            f"their memory, {row['name']}",
            f"{row['mb']:,.0f} MB",
            f"dense {row['dense_mb']:,.0f} MB",
            row["memory_ratio"],
            *where(result),
        )


def train_step(result: dict[str, Any]) -> Iterator[Row]:
    for case in result["cases"]:
        ours, plain = case["variants"]["ours, bf16"], case["variants"]["straightforward"]
        yield Row(
            f"training step, {case['name']}",
            seconds(ours["seconds"]),
            f"straightforward {seconds(plain['seconds'])}",
            ours["speedup" if result["threads"] > 1 else "processor_time_ratio"],
            *where(result),
        )


def data_path(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["rows"]:
        for workers in (1, 2):
            one = row[f"workers_{workers}"]
            yield Row(
                f"JPEG of {row['megapixels']:.1f} MP to crops of {result['crop']}, "
                f"{workers} worker{'s' * (workers > 1)}",
                f"{one['training_images_a_second']:.0f} images/s",
                f"full decode, bicubic {one['full_images_a_second']:.0f} images/s",
                one["ratio"],
                *where(result),
            )


def large_decode(result: dict[str, Any]) -> Iterator[Row]:
    rows = {row["mode"]: row for row in result["rows"]}
    whole = rows.pop("off")
    for mode, row in rows.items():
        yield Row(
            f"memory to decode {result['side']:,} x {result['side']:,}, {result['model']}, "
            f"tiles={mode}",
            f"{row['peak_mb'] / 1e3:.1f} GB, {row['processor_seconds']:,.0f} s",
            f"whole {whole['peak_mb'] / 1e3:.1f} GB, {whole['processor_seconds']:,.0f} s",
            whole["peak_mb"] / row["peak_mb"],
            *where({**result, "threads": row["threads"]}),
        )


def cold_start(result: dict[str, Any]) -> Iterator[Row]:
    yield Row(
        f"`wetok reconstruct {result['photo']}`, process start to file",
        seconds(result["seconds"]),
        f"`import torch` alone {seconds(result['import_torch_seconds'])}",
        result["import_torch_seconds"] / result["seconds"],
        *where(result),
    )


def evaluation(result: dict[str, Any]) -> Iterator[Row]:
    for what, ours, base, ratio in (
        ("one system", "ours", "released", "ratio_an_image"),
        ("four systems at once", "together", "released", "ratio_an_image_together"),
    ):
        times = result["seconds_an_image"]
        yield Row(
            f"scores of an image, {what}",
            seconds(times[ours]),
            f"released way {seconds(times[base])}",
            result[ratio],
            *where(result),
        )


def tokenization(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["sets"]:
        if row["images"] not in (400, 20000):
            continue
        yield Row(
            f"`wetok tokenize`, {row['images']:,} images of {row['side']}",
            f"{row['images_per_second']:.0f} images/s",
            f"the model alone {row['alone_images_per_second']:.0f} images/s",
            row["share"],
            *where({**result, "hardware": f"cpu{result['cpus']}"}),
        )


def generation(result: dict[str, Any]) -> Iterator[Row]:
    times = result["seconds"]
    yield Row(
        f"sampling {result['positions']} positions of {result['groups']} groups",
        seconds(times["wetok"]),
        f"whole passes {seconds(times['whole_passes'])}",
        result["times_as_fast_as"]["whole_passes"],
        *where(result),
    )


def codec(result: dict[str, Any]) -> Iterator[Row]:
    for name, images in (("whole", "photographs"), ("modern-256", "crops of 256")):
        sizes = result[name]
        ours, plain = sizes["learned"]["bytes"], sizes["packed"]["bytes"]
        yield Row(
            f"bytes of the tokens of {sizes['images']} {images}",
            f"{ours:,}",
            f"packed bits {plain:,}",
            plain / ours,
            *where(result),
        )


def export(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["speed"]:
        if row["shape"] != [1, 3, 256, 256]:
            continue
        yield Row(
            f"{row['part']} as ONNX, 256 x 256, float32",
            seconds(row["onnx"]["ms"] / 1e3),
            f"eager {seconds(row['eager']['ms'] / 1e3)}",
            1 / row["onnx"]["of_eager"],
            *where(result),
        )


SOURCES: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "inference": inference,
    "entropy": entropy,
    "train_step": train_step,
    "data-path": data_path,
    "large-decode": large_decode,
    "cold-start": cold_start,
    "evaluation-speed": evaluation,
    "tokenization": tokenization,
    "generation-speed": generation,
    "codec": codec,
    "export": export,
}
"""The beginning of a result file's name -> its rows."""


def where(result: dict[str, Any]) -> tuple[str, str]:
    """Hardware and date, of which some files speak only in their name."""
    hardware = result.get("hardware") or result["name"]["hardware"]
    threads = result.get("threads")
    many = f", {threads} thread{'s' * (threads != 1)}" if threads else ""
    return f"{hardware}{many}", result.get("date") or result["name"]["date"]


def seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:,.3g} s"


def newest(results: Path, what: str) -> list[dict[str, Any]]:
    """The last result of each kind, model and hardware; names end in hardware and date."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(results.glob(f"{what}-*.json")):
        name = re.fullmatch(r"(.*)-([a-z0-9]+)-(\d{4}-\d\d-\d\d)", path.stem)
        if name is None:
            continue
        result = json.loads(path.read_text())
        told = {"file": path.name, "hardware": name[2], "date": name[3]}
        found[f"{name[1]}-{name[2]}"] = {**result, "name": told}
    return list(found.values())


def summary(results: Path) -> str:
    lines = [
        "| what | ours | against | times as good | hardware | date |",
        "|---|---|---|---|---|---|",
    ]
    for what, rows in SOURCES.items():
        for result in newest(results, what):
            for row in rows(result):
                ratio = f"{row.ratio:.2f}" if row.ratio < 10 else f"{row.ratio:.0f}"
                cells = (row.what, row.ours, row.against, ratio, row.hardware, row.date)
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- every measurement of inference


def table(result: dict[str, Any]) -> str:
    many = "one at a time" if result["batch"] == 1 else f"{result['batch']} images"
    lines = [
        f"**{result['model']}** ({result['weights']} weights), {result['side']} x {result['side']} "
        f"pixels, {many}; {where(result)[0]}, torch {result['torch']}, {result['date']}, "
        f"load average {result['load_average']:.1f}.",
        "",
        f"| | mode | {result['clock']} time | faster than released | share of matmul peak "
        "| nearness |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        near = "the reference"
        if row["mode"] != "released" and row["direction"] == "encode":
            near = f"{row['flips']:.2%} of bits differ" if row["flips"] else "the same ids"
        elif row["mode"] != "released":
            near = f"{row['psnr']:.0f} dB" if row["psnr"] else "the same pixels"
        lines.append(
            f"| {row['direction']} | {MODES.get(row['mode'], row['mode'])} | "
            f"{row['seconds'] * 1e3:,.0f} ms | {row['ratio']:.2f}x | {row['share_of_peak']:.0%} | "
            f"{near} |"
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


# --- the page


def written(text: str, results: Path = RESULTS) -> str:
    """The page with its tables made anew."""
    parts = {
        "summary": summary(results),
        "inference": "\n\n".join(table(result) for result in newest(results, "inference")),
    }
    for name, middle in parts.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{middle}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", action="store_true", help="measure anew first")
    options = parser.parse_args()
    if options.run:
        for script, *arguments in RUNS:
            command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
            subprocess.run(command, check=True)
    DOCS.write_text(written(DOCS.read_text()))
    files = [result["name"]["file"] for what in SOURCES for result in newest(RESULTS, what)]
    print(json.dumps({"tables": files}))


if __name__ == "__main__":
    main()
