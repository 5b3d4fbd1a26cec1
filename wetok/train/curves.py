"""The curves of a run, drawn from its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wetok.config import WetokError

_SMOOTH = 20
"""Log lines that a drawn point averages; single batches are noisy."""


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training lines and the validation lines of a log.jsonl, in order of steps.

    Raises:
        WetokError: there is no such log, or a line of it is not JSON.
    """
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise WetokError(f"{path}: not the log of a run: {error}") from None
    training = [record for record in records if "loss" in record]
    validation = [{"step": r["step"], **r["validation"]} for r in records if "validation" in r]
    return training, validation


def plot_curves(log: Path, target: Path) -> None:
    """Draws a run's losses, validation scores and code usage into the picture `target`.

    Raises:
        WetokError: no log, or nothing in it yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training, validation = read_log(log)
    if not training:
        raise WetokError(f"{log}: no step has been logged yet, so there is nothing to draw")
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots(2, 3)
    panels = (
        ("total loss", ("loss",)),
        ("reconstruction (training crops)", ("l1", "l2")),
        ("entropies (nats)", ("token_entropy", "codebook_entropy")),
    )
    for axis, (title, terms) in zip(figure.axes, panels, strict=False):
        axis.set_title(title, fontsize=10)
        for term in terms:
            if term in training[0]:
                axis.plot(*_smooth(training, term), label=term.replace("_", " "), linewidth=1.2)
        axis.legend(fontsize=8, frameon=False)
    scores = (("psnr", "validation PSNR (dB)"), ("lpips", "validation LPIPS"))
    for axis, (score, title) in zip(figure.axes[3:5], scores, strict=True):
        axis.set_title(title, fontsize=10)
        points = [(row["step"], row[score]) for row in validation if score in row]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2)
    axis = figure.axes[5]
    axis.set_title("usage of the least used group", fontsize=10)
    usage = [(row["step"], min(row["usage"])) for row in training if row.get("usage")]
    if usage:
        axis.plot(*zip(*usage, strict=True), linewidth=1.2)
        axis.set_ylim(0, 1.02)
    for axis in figure.axes:
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
        axis.locator_params(axis="x", nbins=5)
        axis.tick_params(labelsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def _smooth(records: list[dict[str, Any]], term: str) -> tuple[list[int], list[float]]:
    """Steps and running means of `term` over the last lines that have it."""
    rows = [(record["step"], record[term]) for record in records if term in record]
    values = [value for _, value in rows]
    means = []
    for index in range(len(values)):
        window = values[max(0, index - _SMOOTH + 1) : index + 1]
        means.append(sum(window) / len(window))
    return [step for step, _ in rows], means
