"""Views: the crops that they say, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.tokenize.job import pixels
from wetok.config import WetokError
from wetok.data.transforms import center_crop
from wetok.tokenize.views import Preprocessing


def test_center_and_flip() -> None:
    image = Image.fromarray(pixels(0, 50, 70))
    middle = np.asarray(center_crop(image, 32))
    (one,) = Preprocessing(32)(image)
    assert np.array_equal(one, middle)
    for got, wanted in zip(
        Preprocessing(32, "flip")(image), (middle, np.fliplr(middle)), strict=True
    ):
        assert np.array_equal(got, wanted) and got.flags.c_contiguous
    assert Preprocessing(32, "flip").names == ("center", "center-flip")


def test_whole_images() -> None:
    image = Image.fromarray(pixels(0, 5, 7))
    one, two = Preprocessing(None, "flip")(image)
    assert np.array_equal(one, pixels(0, 5, 7))
    assert np.array_equal(two, pixels(0, 5, 7)[:, ::-1])


@pytest.mark.parametrize(("size", "ratio", "wide"), [(32, 1.1, 35), (20, 1.0, 20), (16, 1.3, 20)])
def test_ten_crops(size: int, ratio: float, wide: int) -> None:
    """Corners clockwise from the top left as torchvision's TenCrop has them, then mirrored."""
    image = Image.fromarray(pixels(0, 60, 41))
    whole = center_crop(image, wide)
    middle = (wide - size) // 2
    places = {
        "top-left": (0, 0),
        "top-right": (wide - size, 0),
        "bottom-left": (0, wide - size),
        "bottom-right": (wide - size, wide - size),
        "center": (middle, middle),
    }
    preprocessing = Preprocessing(size, "ten-crop", ratio)
    crops = dict(zip(preprocessing.names, preprocessing(image), strict=True))
    assert len(crops) == 10
    for name, (x, y) in places.items():
        part = whole.crop((x, y, x + size, y + size))
        assert np.array_equal(crops[name], np.asarray(part))
        mirrored = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert np.array_equal(crops[f"{name}-flip"], np.asarray(mirrored))


def test_the_hash_is_of_what_it_does() -> None:
    every = [
        *(Preprocessing(32), Preprocessing(33), Preprocessing(None), Preprocessing(32, "flip")),
        *(Preprocessing(32, "ten-crop"), Preprocessing(32, "ten-crop", 1.5)),
    ]
    assert len({one.hash for one in every}) == len(every) == len({str(one) for one in every})
    assert Preprocessing(32).hash == Preprocessing(32, crop_range=2.0).hash  # which means nothing


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": 0}, "size=0"),
        ({"views": "nine"}, "views='nine' must be one of center, flip, ten-crop"),
        ({"crop_range": 0.9}, "crop_range=0.9"),
        ({"size": None, "views": "ten-crop"}, "give size"),
    ],
)
def test_settings_that_do_not_fit(options: dict[str, object], reason: str) -> None:
    with pytest.raises(WetokError, match=reason):
        Preprocessing(**options)  # type: ignore[arg-type]
