"""Pictures for people: photographs beside their reconstructions, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from wetok.checkpoint import written_beside

_MARGIN, _GAP = 16, 8
_PAPER, _INK, _FAINT = (255, 255, 255), (25, 25, 25), (110, 110, 110)


class Pair(NamedTuple):
    """A photograph and its reconstruction, of one size, each with a line of text below it."""

    original: Image.Image
    reconstruction: Image.Image
    original_label: str
    reconstruction_label: str


def side_by_side(pairs: Sequence[Pair], title: str | None = None) -> Image.Image:
    """One row for each pair, the original left and the reconstruction right, pixels unscaled."""
    font, bold = ImageFont.load_default(14), ImageFont.load_default(20)
    line, head = 24, 36 if title else 0
    # A tiny image still needs room for its label.
    texts = [text for pair in pairs for text in (pair.original_label, pair.reconstruction_label)]
    column = max(
        *(pair.original.width for pair in pairs), *(round(font.getlength(text)) for text in texts)
    )
    width = max(2 * _MARGIN + 2 * column + _GAP, round(bold.getlength(title or "")) + 2 * _MARGIN)
    height = 2 * _MARGIN + head + sum(pair.original.height + line + _GAP for pair in pairs) - _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_MARGIN, _MARGIN - 4), title, _INK, font=bold)
    y = _MARGIN + head
    for pair in pairs:
        below = y + pair.original.height + 4
        for x, image, label in (
            (_MARGIN, pair.original, pair.original_label),
            (_MARGIN + column + _GAP, pair.reconstruction, pair.reconstruction_label),
        ):
            sheet.paste(image, (x, y))
            draw.text((x, below), label, _FAINT, font=font)
        y += pair.original.height + line + _GAP
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
