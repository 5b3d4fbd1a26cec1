"""Where a model beats its rivals at equal bytes and where it does not, side by side in a picture.

Images are ranked by LPIPS (the first network's; PSNR where there is none): the model's less that
of its best rival whose file is no larger. Of a large image the window is shown where the two differ
most in that sense. The same scores always choose the same windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from wetok.evaluate.evaluation import Scored
from wetok.evaluate.networks import Networks
from wetok.evaluate.pixels import psnr
from wetok.evaluate.processes import gathered
from wetok.evaluate.rows import file_size

WINDOW = 256
_MARGIN, _GAP, _LINE = 16, 8, 18
_PAPER, _INK, _FAINT = (255, 255, 255), (25, 25, 25), (95, 95, 95)


class Cell(NamedTuple):
    """One system's window."""

    title: str
    pixels: NDArray[np.uint8]
    """[h,w,3]"""
    size: int | None
    """Bytes of the whole image's file."""
    psnr: float | None
    """Of the window; None for the original."""
    lpips: float | None


class Strip(NamedTuple):
    """The windows of one image: original, model, rivals."""

    difference: float
    """The model's distance less `rival`'s, of the whole image; below 0 the model is nearer."""
    place: int
    image: str
    rival: str
    score: str
    corner: tuple[int, int]
    """Left and top of the window."""
    cells: list[Cell]


class Crops:
    """Keeps the strips of the `kept` images where a model does best, and of those where worst."""

    def __init__(self, kept: int, networks: Networks) -> None:
        self.kept, self.networks = kept, networks
        self.best: list[Strip] = []
        self.worst: list[Strip] = []

    def offer(
        self, model: tuple[str, Scored | None], rivals: Sequence[tuple[str, Scored | None]]
    ) -> None:
        """Takes the image in if it is among the best or worst so far; None is what failed."""
        title, own = model
        there = [(name, scored) for name, scored in rivals if scored is not None]
        if own is None or not there:
            return
        score = next((name for name in own.row if name.startswith("lpips-")), "psnr")
        limit = file_size(own.row)
        fair = [one for one in there if limit and (file_size(one[1].row) or 0) <= limit]
        rival, other = min(fair or there, key=lambda one: _distance(one[1].row, score))
        difference = _distance(own.row, score) - _distance(other.row, score)
        best = len(self.best) < self.kept or difference < self.best[-1].difference
        worst = len(self.worst) < self.kept or difference > self.worst[-1].difference
        if not best and not worst:
            return
        strips: dict[int, Strip] = {}
        for sign, kept in ((1, best), (-1, worst)):
            if kept:
                left, top = self._window(own, other, score, sign)
                shown = [("original", None), (title, own), *there]
                cells = [self._cell(name, one, own.original, (left, top)) for name, one in shown]
                strips[sign] = Strip(
                    difference, own.place, own.row["image"], rival, score, (left, top), cells
                )
        if best:
            self.best = sorted([*self.best, strips[1]], key=_rank)[: self.kept]
        if worst:
            self.worst = sorted([*self.worst, strips[-1]], key=_rank_back)[: self.kept]

    def gather(self) -> None:
        """Joins what all processes have kept."""
        best = [strip for strips in gathered(self.best) for strip in strips]
        worst = [strip for strips in gathered(self.worst) for strip in strips]
        self.best = sorted(best, key=_rank)[: self.kept]
        self.worst = sorted(worst, key=_rank_back)[: self.kept]

    def strips(self) -> tuple[list[Strip], list[Strip]]:
        """The best and the worst; of few images, none is in both: the nearer end has it."""
        ranked = sorted({one.place: one for one in (*self.best, *self.worst)}.values(), key=_rank)
        middle = -(-len(ranked) // 2)
        first = {one.place for one in ranked[:middle]}
        return (
            [one for one in self.best if one.place in first],
            [one for one in self.worst if one.place not in first],
        )

    def about(self) -> list[dict[str, Any]]:
        """Which images and windows, for a file of results."""
        return [
            {
                "image": one.image,
                "window": [*one.corner, *one.cells[0].pixels.shape[1::-1]],
                "score": one.score,
                "rival": one.rival,
                "difference": one.difference,
            }
            for strips in self.strips()
            for one in strips
        ]

    def sheet(self) -> Image.Image:
        """All strips below one another, pixels unscaled; `strips` must not be empty."""
        best, worst = self.strips()
        return _sheet([("Where it is better, or least behind", best), ("Where it is worse", worst)])

    def _window(self, own: Scored, other: Scored, score: str, sign: int) -> tuple[int, int]:
        """Left and top of the window where the model is nearest (sign 1) or farthest (-1)."""
        height, width = own.original.shape[-2:]
        corners = [(left, top) for top in _starts(height) for left in _starts(width)]
        if len(corners) == 1:
            return corners[0]

        def lead(corner: tuple[int, int]) -> float:
            first, second, original = (
                _cut(image, corner) for image in (own.samples[0], other.samples[0], own.original)
            )
            net = score.removeprefix("lpips-")
            return sign * (self._far(first, original, net) - self._far(second, original, net))

        return min(corners, key=lead)

    def _far(self, image: Tensor, original: Tensor, net: str) -> float:
        """LPIPS of uint8 [1,3,h,w] twice, or the mean squared error."""
        if net not in self.networks.lpips:
            return (image.double() - original.double()).square().mean().item()
        network = self.networks.lpips[net]
        with torch.no_grad():
            device = next(network.parameters()).device
            pair = (one.to(device).float() / 127.5 - 1 for one in (image, original))
            return float(network(*pair).item())

    def _cell(
        self, title: str, scored: Scored | None, original: Tensor, corner: tuple[int, int]
    ) -> Cell:
        reference = _cut(original, corner)
        pixels = reference if scored is None else _cut(scored.samples[0], corner)
        array = pixels[0].movedim(0, -1).cpu().numpy().copy()
        if scored is None:
            return Cell(title, array, None, None, None)
        net = next(iter(self.networks.lpips), None)
        large = net is not None and min(array.shape[:2]) >= self.networks.lpips[net].smallest
        far = self._far(pixels, reference, net) if net is not None and large else None
        size = file_size(scored.row)
        return Cell(title, array, size, psnr(pixels, reference).item(), far)


def _distance(row: dict[str, Any], score: str) -> float:
    return -float(row[score]) if score == "psnr" else float(row[score])


def _rank(strip: Strip) -> tuple[float, int]:
    return strip.difference, strip.place


def _rank_back(strip: Strip) -> tuple[float, int]:
    return -strip.difference, strip.place


def _starts(length: int) -> list[int]:
    """Where windows begin that cover a side, evenly."""
    count = -(-length // WINDOW)
    return [round(i * (length - WINDOW) / (count - 1)) for i in range(count)] if count > 1 else [0]


def _cut(image: Tensor, corner: tuple[int, int]) -> Tensor:
    left, top = corner
    return image[..., top : top + WINDOW, left : left + WINDOW]


def _sheet(parts: Sequence[tuple[str, Sequence[Strip]]]) -> Image.Image:
    font, head = ImageFont.load_default(14), ImageFont.load_default(18)
    strips = [strip for _, some in parts for strip in some]
    texts = [text for strip in strips for cell in strip.cells for text in _lines(cell)]
    widest = max(cell.pixels.shape[1] for strip in strips for cell in strip.cells)
    column = max(widest, *(round(font.getlength(text)) for text in texts))
    titles = [*(_title(strip) for strip in strips), *(name for name, some in parts if some)]
    most = max(len(strip.cells) for strip in strips)
    width = 2 * _MARGIN + max(
        most * (column + _GAP) - _GAP, *(round(head.getlength(title)) for title in titles)
    )
    tall = [2 * _LINE + 8 + strip.cells[0].pixels.shape[0] + 3 * _LINE for strip in strips]
    height = 2 * _MARGIN + sum(tall) + 36 * sum(bool(some) for _, some in parts)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for name, some in parts:
        if some:
            draw.text((_MARGIN, y), name, _INK, font=head)
            y += 36
        for strip in some:
            draw.text((_MARGIN, y), _title(strip), _FAINT, font=font)
            y += _LINE + 4
            for place, cell in enumerate(strip.cells):
                x = _MARGIN + place * (column + _GAP)
                sheet.paste(Image.fromarray(cell.pixels), (x, y))
                below = y + cell.pixels.shape[0] + 4
                for number, text in enumerate(_lines(cell)):
                    ink = _FAINT if number else _INK
                    draw.text((x, below + number * _LINE), text, ink, font=font)
            y += 2 * _LINE + 4 + strip.cells[0].pixels.shape[0] + 2 * _LINE
    return sheet.crop((0, 0, width, y + _MARGIN - _LINE))


def _title(strip: Strip) -> str:
    name = "PSNR" if strip.score == "psnr" else strip.score.replace("lpips", "LPIPS")
    near = strip.difference < 0
    word = (
        ("higher" if near else "lower") if strip.score == "psnr" else "lower" if near else "higher"
    )
    left, top = strip.corner
    where = f", from ({left}, {top})" if any(strip.corner) else ""
    digits = 2 if strip.score == "psnr" else 3
    return (
        f"{strip.image}{where}: {name} of the image {abs(strip.difference):.{digits}f} {word} "
        f"than {strip.rival}'s"
    )


def _lines(cell: Cell) -> list[str]:
    size = "" if cell.size is None else f"  {cell.size:,} bytes"
    if cell.psnr is None:
        return [cell.title]
    far = "" if cell.lpips is None else f"  LPIPS {cell.lpips:.3f}"
    return [f"{cell.title}{size}", f"{cell.psnr:.2f} dB{far}"]
