"""Plots of the ablations: one file a part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from wetok.checkpoint import written_beside
from wetok.commands.ablation.entropies import FORMS
from wetok.commands.ablation.grouping import KINDS
from wetok.commands.ablation.report import LOOK, Result, scores_here, values
from wetok.commands.ablation.variants import QUESTIONS, VARIANTS


def plot(part: str, result: Result, path: Path) -> None:
    """Draws `part` of the ablations as a PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        WetokError: the file can't be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    draw: Callable[[Any, Result], Any] = {
        "entropy": _entropy,
        "approximation": _approximation,
        "training": _training,
    }[part]
    figure = draw(pyplot, result)
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=110, format="png")
    pyplot.close(figure)


def _entropy(pyplot: Any, result: Result) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 3.8), constrained_layout=True)
    for axis, key, unit, label in (
        (axes[0], "bytes", 1e6, "memory (MB)"),
        (axes[1], "seconds", 1e-3, "processor time (ms)"),
    ):
        for number, form in enumerate(FORMS):
            own = [r for r in result["records"] if r["form"] == form.name and key in r]
            own = [r for r in own if r["bits"] <= 40 and r[key] > 0]
            measured = [r for r in own if r["how"] == "measured"]
            rest = measured[-1:] + [r for r in own if r["how"] == "computed"]
            for records, style, name in ((measured, "o-", form.says), (rest, ":", None)):
                if len(records) > (style == ":"):
                    axis.plot(
                        [r["bits"] for r in records],
                        [r[key] / unit for r in records],
                        style,
                        color=f"C{number}",
                        label=name,
                    )
        axis.set(yscale="log", xlabel="bits a position, d", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(top=1e6)
    axes[1].set_ylim(top=1e7)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"Token and codebook entropy of {result['positions']:,} positions, there and back "
        "(dotted: computed)"
    )
    return figure


def _approximation(pyplot: Any, result: Result) -> Any:
    figure, axis = pyplot.subplots(figsize=(7.5, 5.0), constrained_layout=True)
    for kind, says in KINDS.items():
        records = [r for r in result["records"] if r["kind"] == kind]
        if not records:
            continue
        groups = records[0]["groups"][1:]
        means = [fmean(r["error"][place + 1] for r in records) for place in range(len(groups))]
        axis.plot(groups, means, "o-", label=f"d = {records[0]['bits']}: {says}")
    axis.set(xscale="log", yscale="log", xlabel="groups, g (the last of each: BSQ)")
    axis.set_ylabel("grouped less exact codebook entropy (nats)")
    axis.set_xticks([2, 3, 4, 6, 8, 12, 16], [2, 3, 4, 6, 8, 12, 16])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _training(pyplot: Any, result: Result) -> Any:
    scores = [score for score in scores_here(result) if score != "ssim"]
    shape = (len(QUESTIONS), len(scores))
    size = (3.6 * len(scores) + 1.5, 1.6 + 2.3 * len(QUESTIONS))
    figure, grid = pyplot.subplots(*shape, figsize=size, constrained_layout=True, squeeze=False)
    for question, axes in zip(QUESTIONS, grid, strict=True):
        names = [name for name in question.variants if values(result, name, scores[0])]
        for score, axis in zip(scores, axes, strict=True):
            for row, name in enumerate(names):
                points = values(result, name, score)
                for seed, value in points.items():
                    axis.plot(value, row, "o", color=f"C{seed}", alpha=0.8, markersize=5)
                axis.plot(fmean(points.values()), row, "|", color="black", markersize=16)
            axis.set_yticks(range(len(names)), [VARIANTS[name].says for name in names])
            axis.set_ylim(len(names) - 0.5, -0.5)
            if score != scores[0]:
                axis.set_yticklabels([])
            title, _, lower = LOOK[score]
            axis.set_xlabel(f"{title}, {'less' if lower else 'more'} is better", fontsize=9)
            axis.grid(alpha=0.3)
        axes[0].set_title(question.title, loc="left", fontsize=10)
    return figure
