"""Every variant with every seed: trained, scored, and written down seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from wetok.commands.ablation.results import read_result, write_result
from wetok.commands.ablation.runs import Job, train_all
from wetok.commands.ablation.scoring import networks, score
from wetok.commands.ablation.variants import Variant

PART = "training"


def run_matrix(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    *,
    recipes: Path,
    train: Path,
    val: Path,
    out: Path,
    overrides: tuple[str, ...],
    at_once: int,
    threads: int,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Trains and scores what is not done yet, and returns what is in OUT/training.json then.

    One seed of all variants comes before the next, so that a break leaves whole comparisons.

    Raises:
        WetokError: a recipe, photographs or weights can't be had; a training failed; the folder
            holds runs with other settings.
    """
    looks = networks()
    if "vgg" not in looks.lpips:
        tell("LPIPS-vgg and fd-vgg are left out: `wetok weights` tells how to get their network")
    result = read_result(out / f"{PART}.json") or {"runs": []}
    for seed in seeds:
        jobs = [
            Job(one, seed, recipes.absolute(), train.absolute(), out.absolute(), overrides)
            for one in variants
        ]
        train_all(jobs, at_once, threads, tell)
        known = {(run["variant"], run["seed"]): run for run in result["runs"]}
        new = [job for job in jobs if _is_new(job, known.get((job.variant.name, seed)))]
        if new:
            before = torch.get_num_threads()
            torch.set_num_threads(at_once * threads)
            try:
                for record in score(new, val, looks):
                    scored = record.pop("scored")
                    known[record["variant"], seed] = record
            finally:
                torch.set_num_threads(before)
            runs = [known[key] for key in sorted(known)]
            result = write_result(out, PART, {"scored": scored, "runs": runs})
            tell(f"seed {seed}: {len(new)} variants scored")
    return result


def _is_new(job: Job, record: dict[str, Any] | None) -> bool:
    """Whether its scores are still to be found: none are known, or those of other weights."""
    return record is None or record["seconds"] != job.seconds()
