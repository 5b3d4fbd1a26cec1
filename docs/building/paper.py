"""A sheet to draw on in points, boxes and arrows: what the documents' diagrams have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

INK, PAPER, FAINT = "#1f2933", "#fffffe", "#9aa5b1"
"""The site shows these three in the page's own colours (hooks.py); all others stay."""
TEAL, ORANGE, VIOLET, GREEN = "#2a8c9e", "#d9772b", "#8a63c4", "#5a9a4a"
GROUPS = (TEAL, ORANGE, VIOLET, GREEN)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's font
    "svg.hashsalt": "wetok",  # the same drawing is the same bytes
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of that many points, and axes over all of it with the same unit."""
    figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    colour: str = FAINT,
    filled: bool = False,
    **options: Any,
) -> None:
    """A rounded box with its lower left corner at (x, y) and text in the middle."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=4",
            facecolor=colour if filled else PAPER,
            edgecolor=colour,
            linewidth=1.4,
            **options,
        )
    )
    # White on a colour is white in the dark, too.
    write(axes, x + width / 2, y + height / 2, text, color="white" if filled else INK)


def write(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Text about a point; `ha`, `va`, `fontsize`, `color` and so on as in matplotlib."""
    settings: dict[str, Any] = {"ha": "center", "va": "center", "linespacing": 1.35, "color": INK}
    axes.text(x, y, text, **(settings | options))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **options: Any) -> None:
    """From one point to another."""
    style: dict[str, Any] = {
        "arrowstyle": "-|>",
        "color": INK,
        "lw": 1.2,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.annotate("", end, start, arrowprops=style | options)


def cell(axes: Axes, x: float, y: float, width: float, height: float, **options: Any) -> None:
    """A plain rectangle, such as one entry of a table."""
    axes.add_patch(Rectangle((x, y), width, height, **({"linewidth": 0.8} | options)))


def save(figure: Figure, path: Path) -> None:
    """Writes an SVG, the same bytes each time."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    # matplotlib ends some lines in blanks.
    lines = [line.rstrip() for line in path.read_text("utf-8").splitlines()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
