"""docs/performance.md says what the committed results say, and newer results take older's place."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


performance = script("performance")


def between(name: str) -> str:
    return DOCUMENT.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0]


def test_the_tables_are_those_of_the_committed_results() -> None:
    assert performance.written(DOCUMENT) == DOCUMENT


def test_the_summary_has_what_the_files_say() -> None:
    """Read here on its own: the defaults of the shipped model, and the entropies' ratios."""
    lines = between("summary").splitlines()
    (path,) = RESULTS.glob("inference-tiny-48x-cpu2-*.json")
    rows = {(row["direction"], row["mode"]): row for row in json.loads(path.read_text())["rows"]}
    for direction, mode in (("encode", "float32"), ("decode", "bf16")):
        ratio = rows[direction, mode]["ratio"]
        (line,) = (
            line
            for line in lines
            if line.startswith(f"| {direction}, tiny-48x, {mode}") and "1 thread |" in line
        )
        assert f"| {ratio:.2f} |" in line and "(the default)" in line
    (path,) = RESULTS.glob("entropy-cpu2-*.json")
    for case in json.loads(path.read_text())["cases"]:
        if "dense_seconds" in case:
            (line,) = (line for line in lines if f"gradient, {case['name']}, " in line)
            assert round(case["speedup"]) == round(float(line.split("|")[4]))


def test_every_measurement_of_speed_is_in_it() -> None:
    """Each committed result has its rows, but for those about quality or of another page."""
    elsewhere = ("ablation-", "compare-", "evaluation-memory-", "tiling-")
    for path in RESULTS.glob("*.json"):
        if not path.name.startswith(elsewhere):
            assert any(path.name.startswith(f"{what}-") for what in performance.SOURCES), path.name
    assert all(row.count("|") == 7 for row in between("summary").strip().splitlines())


def result(date: str, **changes: Any) -> dict[str, Any]:
    row = {"seconds": 1.0, "ratio": 1.0, "share_of_peak": 0.5, "psnr": None, "flips": 0.0}
    return {
        **{"model": "m", "weights": "random", "side": 8, "hardware": "cpu1", "threads": 1},
        **{"batch": 1, "clock": "wall", "torch": "2", "date": date, "load_average": 0.0},
        "rows": [{"direction": "encode", "mode": "released", **row}],
        **changes,
    }


def test_newer_results_take_the_place_of_older_ones_of_their_kind(tmp_path: Path) -> None:
    inference = script("inference")
    for one in (
        result("2026-01-02"),
        result("2026-01-01"),
        result("2026-01-01", threads=2),
        result("2026-01-01", threads=2, batch=4),
        result("2026-01-01", hardware="cpu8"),
        result("2026-01-01", model="m2"),
    ):
        (tmp_path / inference.file_name(one)).write_text(json.dumps(one))
    assert len(list(tmp_path.iterdir())) == 6
    found = performance.newest(tmp_path, "inference")
    assert len(found) == 5
    dates = [one["date"] for one in found if one["model"] == "m" and one["hardware"] == "cpu1"]
    assert sorted(dates) == ["2026-01-01", "2026-01-01", "2026-01-02"]


@pytest.mark.parametrize("quick", re.findall(r"python (benchmarks/\w+\.py)", DOCUMENT))
def test_the_scripts_that_the_page_names_are_there(quick: str) -> None:
    assert (ROOT / quick).is_file()
