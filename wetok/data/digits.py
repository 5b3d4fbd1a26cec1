"""Scikit-learn's handwritten digits as images: ten classes, 1,797 of them, written by people.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI, 1998), of which
scikit-learn carries the test part: 8 x 8 pixels of 17 shades.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from wetok.config import WetokError

DIGITS = tuple("0123456789")
"""Names of the classes."""
HELD_OUT = 5
"""Every so many-th digit is kept from training."""


def digits(side: int = 32, held_out: bool = False) -> Iterator[tuple[int, int, Image.Image]]:
    """Number, class and RGB image of each digit: white on black, enlarged bicubically.

    Args:
        held_out: every fifth digit instead of the four others.

    Raises:
        WetokError: scikit-learn is absent, or fewer than 8 pixels a side.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError:
        raise WetokError(
            "digits come with scikit-learn, which is absent: pip install scikit-learn"
        ) from None
    if side < 8:
        raise WetokError(f"side={side} must be at least 8")
    whole = load_digits()
    for number, (shades, label) in enumerate(zip(whole.images, whole.target, strict=True)):
        if (number % HELD_OUT == HELD_OUT - 1) == held_out:
            grey = Image.fromarray(np.rint(shades * (255 / 16)).astype(np.uint8))
            large = grey.resize((side, side), Image.Resampling.BICUBIC)
            yield number, int(label), large.convert("RGB")


def write_digits(folder: Path, side: int = 32, held_out: bool = False) -> Iterator[Path]:
    """Writes `digits` as folder/CLASS/number.png; tells each path.

    Raises:
        WetokError: as `digits`; the folder can't be written.
    """
    for number, label, image in digits(side, held_out):
        path = folder / DIGITS[label] / f"{number:06}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        except OSError as error:
            raise WetokError(f"{path}: can't be written: {error.strerror}") from None
        yield path
