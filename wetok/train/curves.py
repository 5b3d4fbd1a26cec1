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
    panels = [panel for panel in _PANELS if any(_rows(training, term) for term in panel[1])]
    scores = [panel for panel in _SCORES if _rows(validation, panel[1])]
    rows = -(-(len(panels) + len(scores) + 1) // 3)
    figure = Figure(figsize=(11, 3.25 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = iter(figure.subplots(rows, 3, squeeze=False).flat)
    for (title, terms), axis in zip(panels, axes, strict=False):
        _frame(axis, title)
        for term in terms:
            if _rows(training, term):
                axis.plot(*_smooth(training, term), label=term.replace("_", " "), linewidth=1.2)
        axis.legend(fontsize=8, frameon=False)
    for (title, score), axis in zip(scores, axes, strict=False):
        _frame(axis, title)
        points = _rows(validation, score)
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2)
    usage = [(row["step"], min(row["usage"])) for row in training if row.get("usage")]
    if usage:
        axis = next(axes)
        _frame(axis, "usage of the least used group")
        axis.plot(*zip(*usage, strict=True), linewidth=1.2)
        axis.set_ylim(0, 1.02)
    for axis in axes:
        axis.set_axis_off()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


_PANELS = (
    ("total loss", ("loss",)),
    ("reconstruction (training crops)", ("l1", "l2", "lpips")),
    ("entropies (nats)", ("token_entropy", "codebook_entropy")),
    ("adversarial losses", ("generator", "discriminator")),
    ("the discriminator's logits", ("logits_real", "logits_fake")),
)
_SCORES = (("validation PSNR (dB)", "psnr"), ("validation LPIPS", "lpips"))


def _frame(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.grid(alpha=0.3)
    axis.locator_params(axis="x", nbins=5)
    axis.tick_params(labelsize=8)


def _rows(records: list[dict[str, Any]], term: str) -> list[tuple[int, float]]:
    """Steps and values of `term`, of the lines that have it (and not null, for infinity)."""
    return [(record["step"], record[term]) for record in records if record.get(term) is not None]


def _smooth(records: list[dict[str, Any]], term: str) -> tuple[list[int], list[float]]:
    """Steps and running means of `term` over the last lines that have it."""
    rows = _rows(records, term)
    values = [value for _, value in rows]
    means = []
    for index in range(len(values)):
        window = values[max(0, index - _SMOOTH + 1) : index + 1]
        means.append(sum(window) / len(window))
    return [step for step, _ in rows], means
