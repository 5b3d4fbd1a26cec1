"""A small class-labelled set that anyone can make: twelve classes of drawn shapes.

Four shapes in three colours each, of random place, size, turn and shade on a random background:
enough for a generator to learn in minutes what it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from wetok.config import WetokError

SHAPES = ("circle", "cross", "square", "triangle")
COLOURS = ("blue", "green", "red")
CLASSES = tuple(f"{colour}-{shape}" for colour in COLOURS for shape in SHAPES)
"""Names of the classes, in alphabetical order, as folders are numbered."""

_HUES = {"red": (0, 1), "green": (1, 2), "blue": (2, 0)}
"""The strong channel, and one that varies a little with the shade."""
_FINER = 4
"""Drawn this many times as large and scaled down, for smooth edges."""


def drawn(label: int, seed: int, side: int = 64) -> Image.Image:
    """One RGB image of class `label`, another for every seed.

    Raises:
        WetokError: no such class, or fewer than 16 pixels a side.
    """
    if not 0 <= label < len(CLASSES):
        raise WetokError(f"label={label} must lie in [0, {len(CLASSES)})")
    if side < 16:
        raise WetokError(f"side={side} must be at least 16")
    random = np.random.default_rng((seed, label))
    colour, shape = CLASSES[label].split("-")
    large = side * _FINER
    image = _background(random, large)
    radius = large * random.uniform(0.2, 0.34)
    center = random.uniform(radius, large - radius, 2)
    strong, weak = _HUES[colour]
    fill = [int(random.uniform(20, 60))] * 3
    fill[strong] = int(random.uniform(190, 250))
    fill[weak] = int(random.uniform(20, 90))
    _put(ImageDraw.Draw(image), shape, center, radius, random.uniform(-0.35, 0.35), tuple(fill))
    return image.resize((side, side), Image.Resampling.BOX)


def write_drawn(folder: Path, count: int, side: int = 64, seed: int = 0) -> Iterator[Path]:
    """Writes `count` images as folder/CLASS/number.png, classes in turns; tells each path.

    Raises:
        WetokError: the folder can't be written.
    """
    for number in range(count):
        label = number % len(CLASSES)
        path = folder / CLASSES[label] / f"{number:06}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn(label, seed * 1_000_003 + number, side).save(path)
        except OSError as error:
            raise WetokError(f"{path}: can't be written: {error.strerror}") from None
        yield path


def _background(random: np.random.Generator, side: int) -> Image.Image:
    """Grey from one shade to another, in a random direction."""
    ends = random.uniform(120, 235, 2)
    turn = random.uniform(0, 2 * math.pi)
    down, across = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    share = (math.cos(turn) * across + math.sin(turn) * down) / 2.83 + 0.5
    grey = (ends[0] + (ends[1] - ends[0]) * share).astype(np.uint8)
    return Image.fromarray(np.stack([grey] * 3, -1))


def _put(
    draw: ImageDraw.ImageDraw,
    shape: str,
    center: np.ndarray,
    radius: float,
    turn: float,
    fill: tuple[int, ...],
) -> None:
    def corners(angles: list[float], lengths: list[float]) -> list[tuple[float, float]]:
        return [
            (
                center[0] + radius * far * math.sin(a + turn),
                center[1] - radius * far * math.cos(a + turn),
            )
            for a, far in zip(angles, lengths, strict=True)
        ]

    if shape == "circle":
        draw.ellipse([*(center - 0.9 * radius), *(center + 0.9 * radius)], fill=fill)
    elif shape == "square":
        draw.polygon(corners([math.pi * (k / 2 + 0.25) for k in range(4)], [1.1] * 4), fill=fill)
    elif shape == "triangle":
        draw.polygon(corners([math.tau * k / 3 for k in range(3)], [1.1] * 3), fill=fill)
    else:  # a cross: arms of a third of its width
        arm = math.atan2(1, 3)
        angles, lengths = [], []
        for quarter in range(4):
            base = math.pi / 2 * quarter
            angles += [base - arm, base + arm, base + math.pi / 4]
            lengths += [1.1, 1.1, 1.1 * math.sqrt(2) / math.sqrt(10)]
        draw.polygon(corners(angles, lengths), fill=fill)
