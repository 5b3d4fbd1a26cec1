"""Draws the diagrams of docs/concepts.md: `python docs/building/drawings.py` writes docs/drawings/.

Every number in them is computed, where it is not a definition: entropies and joints by
`wetok.model.entropy`, ids by `wetok.GroupedQuantizer`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent))

from paper import (  # noqa: E402
    FAINT,
    GROUPS,
    ORANGE,
    PAPER,
    STYLE,
    TEAL,
    VIOLET,
    arrow,
    box,
    cell,
    save,
    sheet,
    write,
)

from wetok import GroupedQuantizer  # noqa: E402
from wetok.model.entropy import entropies  # noqa: E402

FOLDER = Path(__file__).resolve().parents[1] / "drawings"
TEMPERATURE = 0.01


def flow() -> Figure:
    """From image to ids and back, with the shapes of tiny-48x on 256 x 256 pixels."""
    figure, axes = sheet(470, 236)
    top, bottom, height = 168, 22, 40
    box(axes, 6, top, 78, height, "image\n[B, 3, 256, 256]")
    arrow(axes, (84, top + 20), (114, top + 20))
    box(axes, 114, top, 78, height, "encoder", TEAL, filled=True)
    arrow(axes, (192, top + 20), (222, top + 20))
    box(axes, 222, top, 78, height, "latent z\n[B, 32, 32, 32]")
    arrow(axes, (300, top + 20), (330, top + 20))
    box(axes, 330, top, 134, height, "sign of each channel\n+1 where z > 0, else −1", ORANGE, True)
    write(axes, 153, top + 50, "f = 8: a position for 8 × 8 pixels", fontsize=8)
    write(axes, 397, top + 50, "grouped quantizer, no codebook", fontsize=8)

    arrow(axes, (397, top), (397, 134))
    box(axes, 330, 94, 134, height, "ids [B, 4, 32, 32]\n4 groups of 8 bits, 0…255", ORANGE)
    write(axes, 322, 128, "saved, sent or modelled:", fontsize=8, ha="right")
    write(axes, 322, 115, "4,096 bytes instead of 196,608", fontsize=8, ha="right")
    arrow(axes, (397, 94), (397, bottom + height))

    box(axes, 330, bottom, 134, height, "code [B, 32, 32, 32]\nin {−1, +1}")
    arrow(axes, (330, bottom + 20), (270, bottom + 20))
    box(axes, 192, bottom, 78, height, "decoder", TEAL, filled=True)
    arrow(axes, (192, bottom + 20), (162, bottom + 20))
    box(axes, 84, bottom, 78, height, "image\n[B, 3, 256, 256]")
    box(axes, 192, bottom + 58, 78, 22, "noise", VIOLET)
    arrow(axes, (231, bottom + 58), (231, bottom + height), color=VIOLET, linestyle="--")
    write(axes, 184, bottom + 69, "a generative decoder only", fontsize=8, ha="right")
    return figure


LATENT = (0.8, -0.3, 0.5, 0.2, -0.9, 0.4, -0.1, -0.6)
"""The latent of one position in `grouping`."""


def grouping() -> Figure:
    """One position of eight channels: its signs, and the ids of one, two and eight groups."""
    figure, axes = sheet(470, 250)
    latent = torch.tensor(LATENT)[None, :, None, None]
    left, step = 96, 44
    write(axes, 88, 213, "latent z", ha="right")
    axes.plot([left, left + 8 * step - 6], [213, 213], color=FAINT, lw=0.8)
    for k, value in enumerate(LATENT):
        x = left + k * step
        colour = TEAL if value > 0 else FAINT
        cell(axes, x + 8, min(213, 213 + 28 * value), 22, 28 * abs(value), color=colour)
        away = 8 if value > 0 else -8
        write(axes, x + 19, 213 + 28 * value + away, f"{value:+.1f}", fontsize=8)
    write(axes, 88, 162, "bit (1 where z > 0)", ha="right", fontsize=8)
    for k, value in enumerate(LATENT):
        write(axes, left + k * step + 19, 162, str(int(value > 0)), fontweight="bold")
    rows = (
        (1, "LFQ: g = 1"),
        (2, "GQ: g = 2"),
        (8, "BSQ's bits: g = 8"),
    )
    for row, (groups, title) in enumerate(rows):
        ids = GroupedQuantizer(8, groups).eval()(latent).ids.flatten().tolist()
        y, each = 112 - row * 48, 8 // groups
        write(axes, 88, y + 20, title, ha="right", fontweight="bold")
        codes = f"{groups} × {2**each} codes" if groups > 1 else f"{2**each} codes"
        write(axes, 88, y + 6, codes, ha="right", fontsize=8)
        for j, number in enumerate(ids):
            x = left + j * each * step
            label = f"id {number}"
            if each > 1:
                bits = [k for k in range(each) if number >> k & 1]
                label += " = " + " + ".join(str(2**k) for k in bits)
            colour = GROUPS[j % 2] if groups > 1 else TEAL
            box(axes, x, y, each * step - 6, 28, label, colour)
    return figure


def _entropy(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probability that the bit is one, its entropy in nats) at the latents `b`."""
    latent = torch.tensor(b, dtype=torch.float64)
    probability = torch.sigmoid(4 * latent / TEMPERATURE)
    entropy = [entropies(one.view(1, 1), 1, temperature=TEMPERATURE)[0].item() for one in latent]
    return probability.numpy(), np.array(entropy)


def bit() -> Figure:
    """How sure one bit is, by its latent: probability and entropy."""
    figure = Figure(figsize=(470 / 72, 170 / 72), facecolor="none")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.32})
    figure.subplots_adjust(left=0.1, right=0.98, top=0.88, bottom=0.25)
    x = np.linspace(-0.02, 0.02, 161)
    probability, entropy = _entropy(x)
    left.plot(x, probability, color=TEAL, lw=2)
    left.set(xlabel="latent x", title="P(bit is 1) = sigmoid(4x / T)", yticks=[0, 0.5, 1])
    right.plot(x, entropy, color=ORANGE, lw=2)
    right.axhline(np.log(2), color=FAINT, lw=0.8, ls="--")
    right.text(0.02, np.log(2) + 0.02, "ln 2", ha="right", va="bottom", fontsize=8)
    right.set(xlabel="latent x", title="entropy of the bit, nats", ylim=(0, 0.8))
    for axes in (left, right):
        axes.set_xticks([-0.02, -0.01, 0, 0.01, 0.02])
        axes.title.set_fontsize(9)
    return figure


POSITIONS = (
    (0.002, -0.004, 0.001, 0.003),
    (-0.003, 0.001, 0.002, -0.002),
    (0.004, 0.002, -0.003, 0),
)
"""Three positions of four bits, bit 0 first, in `joint`."""


def joint() -> Figure:
    """The mean joint of all 16 codes of four bits as a product of two tables of four entries."""
    bits = torch.sigmoid(4 * torch.tensor(POSITIONS, dtype=torch.float64) / TEMPERATURE)
    p = torch.stack([1 - bits, bits], dim=-1)  # [N, bit, value]
    low = torch.einsum("na,nb->nba", p[:, 0], p[:, 1]).flatten(1)  # [N, 4], bit 0 lowest
    high = torch.einsum("na,nb->nba", p[:, 2], p[:, 3]).flatten(1)
    mean = high.T @ low / len(p)  # [4, 4]
    figure, axes = sheet(470, 190)

    def table(
        values: torch.Tensor, x: float, y: float, side: float, colour: str, most: float
    ) -> None:
        rgb = matplotlib.colors.to_rgb(colour)
        for i, row in enumerate(values.tolist()):
            for j, value in enumerate(row):
                at = x + j * side, y + (len(values) - 1 - i) * side * 0.78
                cell(
                    axes,
                    *at,
                    side,
                    side * 0.78,
                    facecolor=(*rgb, 0.85 * value / most),
                    edgecolor=FAINT,
                )
                text = f"{value:.2f}".removeprefix("0")
                write(axes, at[0] + side / 2, at[1] + side * 0.38, text, fontsize=8)

    side, y = 33, 48
    names = ("00", "01", "10", "11")
    table(high.T, 34, y, side, TEAL, 1)
    write(axes, 34 + 1.5 * side, 171, "A: the two high bits", fontweight="bold")
    write(axes, 34 + 1.5 * side, 158, "of 3 positions", fontsize=8)
    write(axes, 148, y + 52, "×", fontsize=14)
    table(low, 170, y + 13, side, ORANGE, 1)
    write(axes, 170 + 2 * side, 171, "Bᵀ: the two low bits", fontweight="bold")
    write(axes, 170 + 2 * side, 158, "of the same", fontsize=8)
    write(axes, 318, y + 52, "/ 3  =", fontsize=11)
    table(mean, 344 + 18, y, side * 0.8, VIOLET, float(mean.max()))
    write(axes, 360 + 2 * side * 0.8, 171, "the mean joint", fontweight="bold")
    write(axes, 360 + 2 * side * 0.8, 158, "of all 16 codes", fontsize=8)
    for k, name in enumerate(names):
        height = side * 0.78
        write(axes, 22, y + (3 - k) * height + height / 2, name, fontsize=8)
        write(axes, 170 + k * side + side / 2, y + 3, name, fontsize=8)
        small = side * 0.8
        write(axes, 352, y + (3 - k) * small * 0.78 + small * 0.39, name, fontsize=8)
        write(axes, 362 + k * small + small / 2, y - 9, name, fontsize=8)
    told = "8 numbers a position instead of 16; for 18 bits, 1,024 instead of 262,144"
    write(axes, 235, 14, told, fontsize=8)
    return figure


def memory() -> Figure:
    """Work memory of the codebook entropy against the bits of a group: both formulas."""
    figure = Figure(figsize=(470 / 72, 200 / 72), facecolor="none")
    axes = figure.subplots()
    figure.subplots_adjust(left=0.13, right=0.8, top=0.95, bottom=0.2)
    bits, positions = np.arange(2, 31, 2), 1024
    dense = 4.0 * positions * 2.0**bits
    ours = 4 * (2 * positions * 2.0 ** (bits / 2) + 2.0**bits)
    axes.semilogy(bits, dense, color=ORANGE, lw=2, marker="o", ms=3)
    axes.semilogy(bits, ours, color=TEAL, lw=2, marker="o", ms=3)
    axes.annotate(
        "a table\nof all codes",
        (30, dense[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
    )
    axes.annotate(
        "two tables\nand the joint",
        (30, ours[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
    )
    axes.set(xlabel="bits in a group, d′", xticks=range(2, 31, 4), xlim=(1, 30.5))
    axes.set_yticks([1e3, 1e6, 1e9, 1e12], ["1 KB", "1 MB", "1 GB", "1 TB"])
    axes.minorticks_off()
    axes.set_ylabel("bytes, 1,024 positions")
    axes.grid(axis="y", color=FAINT, lw=0.4)
    return figure


def decoder() -> Figure:
    """The generative decoder's first convolution, before and after stage 2 begins."""
    figure, axes = sheet(470, 176)
    for left, title, extra in (
        (6, "stage 1: deterministic", False),
        (242, "stage 2: generative", True),
    ):
        write(axes, left + 111, 165, title, fontweight="bold")
        box(axes, left, 92, 72, 44, "code\n[d, h, w]", ORANGE)
        box(axes, left + 104, 60 if extra else 92, 48, 76 if extra else 44, "conv_in", TEAL, True)
        arrow(axes, (left + 72, 114), (left + 104, 114))
        middle = 98 if extra else 114
        arrow(axes, (left + 152, middle), (left + 176, middle))
        box(axes, left + 176, middle - 22, 46, 44, "rest", TEAL, True)
        if extra:
            box(axes, left, 34, 72, 44, "noise\n[d, h, w]", VIOLET)
            arrow(axes, (left + 72, 68), (left + 104, 68), color=VIOLET)
            write(axes, left + 90, 20, "new weights, zero at first:", fontsize=8, ha="left")
            write(axes, left + 90, 8, "the first picture is stage 1’s", fontsize=8, ha="left")
    axes.plot([235, 235], [6, 160], color=FAINT, lw=0.8, ls="--")
    return figure


def stages() -> Figure:
    """What each stage trains, and from what it learns."""
    figure, axes = sheet(470, 196)
    rows = (
        (112, "Stage 1", True, "L1, LPIPS, commitment,\nentropies; later a GAN"),
        (24, "Stage 2", False, "L1, LPIPS, GAN"),
    )
    for y, name, first, losses in rows:
        write(axes, 6, y + 60, name, fontweight="bold", ha="left")
        box(axes, 6, y, 78, 44, "encoder", TEAL if first else FAINT, filled=first)
        box(axes, 96, y, 78, 44, "quantizer\n(no weights)")
        box(axes, 186, y, 78, 44, "decoder" if first else "decoder\n+ noise", TEAL, filled=True)
        for x in (84, 174, 264):
            arrow(axes, (x, y + 22), (x + 12 if x < 264 else 288, y + 22))
        box(axes, 288, y, 176, 44, losses, ORANGE)
    write(axes, 45 + 45, 12, "frozen: ids stay what they were", fontsize=8)
    cell(axes, 330, 6, 10, 10, facecolor=TEAL, edgecolor=TEAL)
    write(axes, 346, 11, "learns", ha="left", fontsize=8)
    cell(axes, 396, 6, 10, 10, facecolor=PAPER, edgecolor=FAINT)
    write(axes, 412, 11, "stays", ha="left", fontsize=8)
    return figure


DRAWINGS: dict[str, Callable[[], Figure]] = {
    name: draw
    for name, draw in (
        ("flow", flow),
        ("grouping", grouping),
        ("bit", bit),
        ("joint", joint),
        ("memory", memory),
        ("decoder", decoder),
        ("stages", stages),
    )
}


def write_all(folder: Path) -> None:
    """Writes every drawing as NAME.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        with matplotlib.rc_context(STYLE):
            figure = draw()
        save(figure, folder / f"{name}.svg")


if __name__ == "__main__":
    write_all(FOLDER)
