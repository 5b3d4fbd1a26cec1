"""Pictures for people: photographs beside their reconstructions, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from wetok.checkpoint import written_beside

_MARGIN, _GAP = 16, 8
_PAPER, _INK, _FAINT = (255, 255, 255), (25, 25, 25), (110, 110, 110)


class Labelled(NamedTuple):
    """A picture and the line of text below it."""

    image: Image.Image
    label: str


def side_by_side(rows: Sequence[Sequence[Labelled]], title: str | None = None) -> Image.Image:
    """Rows of pictures, such as a photograph and its reconstructions; pixels unscaled.

    Args:
        rows: each with as many pictures as the others, all of a row of one height.
    """
    font, bold = ImageFont.load_default(14), ImageFont.load_default(20)
    line, head = 24, 36 if title else 0
    # A tiny image still needs room for its label.
    widths = [
        max(max(one.image.width, round(font.getlength(one.label))) for one in column)
        for column in zip(*rows, strict=True)
    ]
    inside = max(sum(widths) + _GAP * (len(widths) - 1), round(bold.getlength(title or "")))
    heights = [row[0].image.height + line + _GAP for row in rows]
    sheet = Image.new(
        "RGB", (inside + 2 * _MARGIN, head + sum(heights) - _GAP + 2 * _MARGIN), _PAPER
    )
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_MARGIN, _MARGIN - 4), title, _INK, font=bold)
    y = _MARGIN + head
    for row, height in zip(rows, heights, strict=True):
        x = _MARGIN
        for one, width in zip(row, widths, strict=True):
            sheet.paste(one.image, (x, y))
            draw.text((x, y + one.image.height + 4), one.label, _FAINT, font=font)
            x += width + _GAP
        y += height
    return sheet


def is_grey(image: Image.Image) -> bool:
    """Whether red, green and blue of an RGB image are the same everywhere."""
    for top in range(0, image.height, 256):  # in bands: an image may fill half the memory
        band = image.crop((0, top, image.width, min(top + 256, image.height)))
        red, green, blue = band.split()
        if not red.tobytes() == green.tobytes() == blue.tobytes():
            return False
    return True


def save_png(image: Image.Image, target: Path) -> None:
    """Write `image` as the PNG `target`, complete or not at all; folders are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(target) as beside:
        image.save(beside, format="PNG")
