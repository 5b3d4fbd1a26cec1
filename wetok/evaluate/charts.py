"""Small charts as SVG text, whose colours are those of the page around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import torch
from torch import Tensor

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 30


def histogram(values: Sequence[float], title: str, digits: int) -> str:
    """How often values fall into each of some equal steps; a dashed line at the median.

    Infinite values have no place on the axis and are told in the label.
    """
    finite = sorted(value for value in values if math.isfinite(value))
    beyond = len(values) - len(finite)
    if not finite:
        return _svg(f"{title}: no finite value", [], HEIGHT)
    low, high = finite[0], finite[-1]
    if high == low:
        low, high = low - 10.0**-digits, high + 10.0**-digits
    steps = min(40, max(6, round(2 * len(finite) ** (1 / 3) + math.sqrt(len(finite)) / 2)))
    counts = [0] * steps
    for value in finite:
        counts[min(steps - 1, int((value - low) / (high - low) * steps))] += 1
    most = max(counts)
    median = (finite[(len(finite) - 1) // 2] + finite[len(finite) // 2]) / 2
    wide = (WIDTH - LEFT - RIGHT) / steps
    parts = _axes(f"{low:.{digits}f}", title, f"{high:.{digits}f}", "0", str(most))
    for index, count in enumerate(counts):
        tall = (HEIGHT - TOP - BOTTOM) * count / most
        start = low + (high - low) * index / steps
        end = low + (high - low) * (index + 1) / steps
        x, y = LEFT + wide * index + 0.5, HEIGHT - BOTTOM - tall
        words = f"{start:.{digits}f} to {end:.{digits}f}: {count}"
        parts.append(
            f'<rect class="bar" x="{x:.2f}" y="{y:.2f}" width="{max(0.5, wide - 1):.2f}" '
            f'height="{tall:.2f}"><title>{words}</title></rect>'
        )
    x = LEFT + (median - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    parts.append(
        f'<line class="mark" x1="{x:.2f}" x2="{x:.2f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    )
    more = f", {beyond} infinite and not shown" if beyond else ""
    label = (
        f"Histogram of {title} over {len(values)} images: {finite[0]:.{digits}f} to "
        f"{finite[-1]:.{digits}f}, median {median:.{digits}f}{more}"
    )
    return _svg(label, parts, HEIGHT)


def rank_counts(counts: Tensor, title: str) -> str:
    """Counts [n] sorted from the most to the least frequent code, both axes logarithmic."""
    ordered = counts[counts > 0].sort(descending=True).values.double()
    if not len(ordered):
        return _svg(f"{title}: nothing counted", [], HEIGHT)
    total = len(counts)
    places = torch.logspace(0, math.log10(len(ordered)), 120, dtype=torch.float64).round().long()
    places = torch.cat([places, torch.tensor([len(ordered)])]).clamp(1, len(ordered)).unique()
    most, least = ordered[0].item(), ordered[-1].item()
    across, up = math.log(max(2, total)), math.log(max(2.0, most)) or 1.0
    floor = HEIGHT - BOTTOM

    def at(place: float, count: float) -> str:
        x = LEFT + math.log(place) / across * (WIDTH - LEFT - RIGHT)
        y = floor - (floor - TOP) * math.log(max(1.0, count)) / up
        return f"{x:.2f},{y:.2f}"

    line = [at(place, ordered[place - 1].item()) for place in places.tolist()]
    end = line[-1].partition(",")[0]
    parts = _axes("1", "code, most frequent first", f"{total:,}", "1", _short(most))
    parts.append(f'<polygon class="area" points="{LEFT},{floor} {" ".join(line)} {end},{floor}"/>')
    parts.append(f'<polyline class="line" points="{" ".join(line)}"/>')
    label = (
        f"{title}: {len(ordered):,} of {total:,} codes seen, the most frequent {most:,.0f} times, "
        f"the least {least:,.0f}"
    )
    return _svg(label, parts, HEIGHT)


def bit_balance(ones: Sequence[Sequence[float]]) -> str:
    """How often each bit is 1, groups side by side; from one half, up or down."""
    bits = sum(len(group) for group in ones)
    width, height = 960, 150
    middle, half = 64, 56
    room = (width - LEFT - RIGHT) / (bits + (len(ones) - 1) * 0.8)
    parts = []
    for share, words in ((0.0, "always 0"), (0.5, "half"), (1.0, "always 1")):
        y = middle - (share - 0.5) * 2 * half
        parts.append(
            f'<line class="axis" x1="{LEFT + 16}" x2="{width - RIGHT}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<text x="{LEFT + 12}" y="{y + 4}" text-anchor="end">{words}</text>')
    x = LEFT + 18.0
    room = (width - RIGHT - x) / (bits + (len(ones) - 1) * 0.8)
    for number, group in enumerate(ones):
        begin = x
        for bit, share in enumerate(group):
            tall = abs(share - 0.5) * 2 * half
            top = middle - tall if share > 0.5 else middle
            dead = " odd" if share in (0.0, 1.0) else ""
            parts.append(
                f'<rect class="bar{dead}" x="{x + room * 0.1:.2f}" y="{top - 0.75:.2f}" width="'
                f'{room * 0.8:.2f}" height="{tall + 1.5:.2f}"><title>group {number}, bit {bit}: '
                f"1 in {share:.2%}</title></rect>"
            )
            x += room
        if len(ones) <= 32:
            parts.append(
                f'<text x="{(begin + x) / 2:.2f}" y="{height - 8}" text-anchor="middle">'
                f"{f'group {number}' if len(ones) <= 8 else number}</text>"
            )
        x += 0.8 * room
    shares = [share for group in ones for share in group]
    label = (
        f"Balance of {bits} bits: each is 1 in {min(shares):.1%} to {max(shares):.1%} of all places"
    )
    return _svg(label, parts, height, width)


def _axes(left: str, middle: str, right: str, bottom: str, top: str) -> list[str]:
    floor = HEIGHT - BOTTOM
    words = [
        (LEFT, floor + 14, "start", left),
        ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, "middle", middle),
        (WIDTH - RIGHT, floor + 14, "end", right),
        (LEFT - 5, floor, "end", bottom),
        (LEFT - 5, TOP + 9, "end", top),
    ]
    return [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>',
        *(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
            for x, y, anchor, text in words
        ),
    ]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1000 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.0f}"


def _svg(label: str, parts: list[str], height: int, width: int = WIDTH) -> str:
    label = escape(label, quote=True)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )
