"""The pictures of docs/models.md: the family, its second stages with several seeds, its failures.

    python tools/gallery.py --val photos/val

Crops of the validation photographs, enlarged twice without smoothing, so that a pixel is a pixel.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from PIL import Image

import wetok
from wetok.commands.picture import Labelled, side_by_side
from wetok.data.images import load_image
from wetok.data.transforms import center_crop
from wetok.model.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
FAMILY = ("tiny-24x", "tiny-48x", "tiny-192x")
SEEDS = (0, 1, 2)
SHOWN = ("other_054", "object_190", "monument_110", "animal_062")
"""Of each group of subjects, one that says something."""


class Piece(NamedTuple):
    """A square of a photograph, in its own pixels."""

    name: str
    left: int
    top: int
    side: int


FAILURES = (
    Piece("object_198", 250, 146, 176),
    Piece("other_134", 260, 186, 176),
    Piece("object_182", 300, 200, 176),
)
"""Letters on a house, faces on a stage, a circuit board: at the photographs' own size."""


def twice(image: Image.Image) -> Image.Image:
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)


def again(model: Tokenizer, image: Image.Image, seed: int = 0) -> Image.Image:
    return model.decode(model.encode(image), seed=seed, precision="float32")[0]


def family(photos: dict[str, Image.Image]) -> Image.Image:
    """Center crops of 256, as they are scored, beside every deterministic model's."""
    models = {name: wetok.load(name) for name in FAMILY}
    rows = []
    for name in SHOWN:
        photo = center_crop(photos[name], 256)
        row = [Labelled(photo, "photograph")]
        row += [Labelled(again(model, photo), title) for title, model in models.items()]
        rows.append(row)
    return side_by_side(rows)


def stages(photos: dict[str, Image.Image], name: str) -> Image.Image:
    """The middle of each crop: stage 1, and stage 2 with several seeds."""
    first, second = wetok.load(name), wetok.load(f"{name}-gd")
    box = (64, 64, 192, 192)
    rows = []
    for shown in SHOWN:
        photo = center_crop(photos[shown], 256)
        pictures = [("photograph", photo), (name, again(first, photo))]
        pictures += [(f"{name}-gd, seed {seed}", again(second, photo, seed)) for seed in SEEDS]
        rows.append([Labelled(twice(image.crop(box)), label) for label, image in pictures])
    return side_by_side(rows)


def failures(photos: dict[str, Image.Image]) -> Image.Image:
    """What the models can't do, at the photographs' own size."""
    models = {name: wetok.load(name) for name in FAMILY}
    rows = []
    for piece in FAILURES:
        photo = photos[piece.name]
        box = (piece.left, piece.top, piece.left + piece.side, piece.top + piece.side)
        pictures = [("photograph", photo)]
        pictures += [(name, again(model, photo)) for name, model in models.items()]
        rows.append([Labelled(twice(image.crop(box)), label) for label, image in pictures])
    return side_by_side(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--val", type=Path, required=True, help="the validation photographs")
    given = parser.parse_args()
    names = {*SHOWN, *(piece.name for piece in FAILURES)}
    photos = {name: load_image(given.val / f"{name}.jpg") for name in names}
    sheets = {"models-family": family(photos), "models-failures": failures(photos)}
    sheets |= {f"models-{name}-stages": stages(photos, name) for name in ("tiny-48x", "tiny-192x")}
    for name, sheet in sheets.items():
        sheet.save(IMAGES / f"{name}.webp", quality=88, method=6)
        print(IMAGES / f"{name}.webp")


if __name__ == "__main__":
    main()
