"""docs/results.md says what the committed results say, and what was published."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from wetok.commands.ablation import report
from wetok.commands.ablation.results import PARTS
from wetok.commands.ablation.variants import QUESTIONS, VARIANTS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def committed() -> dict[str, dict[str, Any]]:
    """Part -> the newest of its results."""
    found: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        paths = sorted((ROOT / "benchmarks" / "results").glob(f"ablation-{part}-*.json"))
        found[part] = json.loads(paths[-1].read_text(encoding="utf-8"))
    return found


RESULTS = committed()


def test_the_tables_are_those_of_the_committed_results() -> None:
    made = report.tables(RESULTS)
    assert set(made) == {"entropy", "approximation", *(one.name for one in QUESTIONS)}
    assert report.insert(DOCUMENT, made) == DOCUMENT
    assert set(re.findall(r"<!-- ablation: (\S+) -->", DOCUMENT)) == set(made)


def test_every_variant_has_the_same_seeds_three_at_least() -> None:
    runs = RESULTS["training"]["runs"]
    seeds = {name: {run["seed"] for run in runs if run["variant"] == name} for name in VARIANTS}
    assert len(seeds["groups-2"]) >= 3
    assert all(own == seeds["groups-2"] for own in seeds.values())
    for score in ("psnr", "lpips-vgg", "fd-vgg"):
        assert all(score in run for run in runs)
    assert f"{len(seeds['groups-2'])} seeds" in DOCUMENT


def test_the_proposition_is_borne_out_as_said() -> None:
    records = RESULTS["approximation"]["records"]
    counted = report.agreement(records)
    assert counted.never_negative == counted.below_bsq == counted.rising == counted.samples
    assert f"in all {counted.samples} samples" in DOCUMENT


@pytest.mark.parametrize(
    "published",
    ["1.17", "22.64", "0.64", "23.71", "0.61", "24.50", "0.12", "0.18", "0.19", "3.49", "4.57"]
    + ["5.37", "3.90", "10.6 GB"],
)
def test_the_published_numbers_stand_beside_ours(published: str) -> None:
    (table,) = re.findall(r"## Published, and here\n\n(.*?)\n\n", DOCUMENT, re.DOTALL)
    rows = [row.split("|") for row in table.splitlines()[2:]]
    assert any(published in row[2] for row in rows)
    assert all(row[4].strip() for row in rows), "each says whether it is the same measurement"
