"""Rate-distortion plots of a comparison: codecs as curves, models as points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wetok.checkpoint import written_beside
from wetok.config import WetokError
from wetok.evaluate.codecs import CODECS

_COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")  # told apart by the colour-blind
_MARKS = ("*", "P", "X", "D", "s", "^")


def check_matplotlib() -> None:
    """Before hours of scoring: that plots can be drawn at the end.

    Raises:
        WetokError: matplotlib is not installed.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise WetokError("plots need the package 'matplotlib': pip install 'wetok[eval]'")


def draw_rate_distortion(results: Mapping[str, Any], target: Path) -> None:
    """Draws `Comparison.results` into the PNG `target`: a panel a score, rate on a log scale.

    Raises:
        WetokError: the file can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = [one["model"] for one in results["contests"]]
    panels = [(name, *axis) for name in models[0] if (axis := _axis(name)) is not None]
    columns = min(3 if len(panels) > 4 else 2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for (name, title, better), axis in zip(panels, axes, strict=False):
        for index, (codec, points) in enumerate(results["curves"].items()):
            drawn = sorted((p["coded_bpp"], p[name]) for p in points if _plain(p.get(name)))
            if drawn:
                colour = _COLOURS[index % len(_COLOURS)]
                axis.plot(
                    *zip(*drawn, strict=True),
                    marker=".",
                    linewidth=1.4,
                    color=colour,
                    label=CODECS[codec].title,
                )
        for index, model in enumerate(models):
            rate = _rate(model)
            if rate and _plain(model.get(name)):
                mark = {"marker": _MARKS[index % len(_MARKS)], "markersize": 11}
                axis.plot(
                    rate, model[name], linestyle="", color="#222222", label=model["model"], **mark
                )
                axis.axvline(rate, color="#222222", linewidth=0.6, alpha=0.4, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel("bits a pixel, whole files", fontsize=9)
        axis.set_title(f"{title} ({better} is better)", fontsize=10)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(6, len(labels)), frameon=False
    )
    with written_beside(target) as beside:
        figure.savefig(beside, dpi=110, format="png", metadata={"Software": None})


def _axis(name: str) -> tuple[str, str] | None:
    """Title and better end of a score's panel; None for what gets none."""
    if name in ("psnr", "ssim"):
        return ("PSNR in dB", "higher") if name == "psnr" else ("SSIM", "higher")
    if name.startswith("lpips-"):
        return name.replace("lpips", "LPIPS"), "lower"
    if name.startswith(("rfid", "fd-")) and not name.endswith("weights"):
        return name.replace("rfid", "rFID"), "lower"
    return None


def _rate(model: Mapping[str, Any]) -> float | None:
    rate = model["bpp"] if model["coded_bpp"] is None else model["coded_bpp"]
    return None if rate is None else float(rate)


def _plain(value: Any) -> bool:
    return isinstance(value, float)  # infinity is text in results
