"""Pictures of a run: originals beside their reconstructions."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from wetok.checkpoint import written_beside
from wetok.data.images import to_pil

_GAP = 4


def grid(images: Tensor, reconstructions: Tensor, pairs_a_row: int = 4) -> Image.Image:
    """Pairs (original left, reconstruction right) on one sheet, [B,3,H,W] in [-1,1] each."""
    originals, results = to_pil(images), to_pil(reconstructions.clamp(-1, 1))
    width, height = originals[0].size
    columns = min(pairs_a_row, len(originals))
    rows = -(-len(originals) // columns)
    cell_w, cell_h = 2 * width + _GAP, height + _GAP
    sheet = Image.new("RGB", (columns * cell_w - _GAP, rows * cell_h - _GAP), "white")
    for index, (original, result) in enumerate(zip(originals, results, strict=True)):
        x, y = index % columns * cell_w, index // columns * cell_h
        sheet.paste(original, (x, y))
        sheet.paste(result, (x + width, y))
    return sheet


def write_picture(path: Path, picture: Image.Image) -> None:
    """Writes `picture` as PNG, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as beside:
        picture.save(beside, format="PNG")
