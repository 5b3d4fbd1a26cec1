"""Protocols against what they stand for: torchvision's rules, and the released evaluation's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wetok.config import WetokError
from wetok.data.images import load_image
from wetok.evaluate.protocols import (
    PROTOCOLS,
    crop_as_released,
    load_as_released,
    preprocessing_hash,
    protocol,
    to_8bit_as_released,
)

PAPER = protocol("paper-256")


def released(image: Image.Image) -> np.ndarray:
    """Resize(256), CenterCrop(256) of a PIL image, as torchvision documents them: [256,256,3]."""
    width, height = image.size
    upright = width <= height
    long = int(256 * max(image.size) / min(image.size))
    size = (256, long) if upright else (long, 256)
    resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    top = int(round((size[1] - 256) / 2.0))
    left = int(round((size[0] - 256) / 2.0))
    return resized[top : top + 256, left : left + 256]


def pattern(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(20, 700), height=st.integers(20, 700), seed=st.integers(0, 99))
def test_the_released_crop(width: int, height: int, seed: int) -> None:
    image = pattern(width, height, seed)
    assert np.array_equal(np.asarray(crop_as_released(image)), released(image))


@pytest.mark.parametrize("size", [(256, 259), (257, 256), (256, 258), (263, 256)])
def test_an_odd_rest_is_rounded_half_to_even(size: tuple[int, int]) -> None:
    image = pattern(*size)
    assert np.array_equal(np.asarray(crop_as_released(image)), released(image))
    corner = round((max(size) - 256) / 2)
    whole = np.asarray(image)
    cut = whole[corner : corner + 256] if size[1] > 256 else whole[:, corner : corner + 256]
    assert np.array_equal(np.asarray(crop_as_released(image)), cut), "cut, not resampled"


def test_the_released_values() -> None:
    """The model's input to the last bit, and 8-bit values that are cut off, not rounded."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    given = PAPER.to_float(Image.fromarray(values))
    wanted = (values / 127.5 - 1.0).astype(np.float32)
    assert given.dtype == torch.float32
    assert np.array_equal(given.numpy(), wanted.transpose(2, 0, 1))

    again = ((wanted + np.float32(1)) / np.float32(2) * np.float32(255)).astype(np.uint8)
    assert np.array_equal(PAPER.to_8bit(given).numpy(), again.transpose(2, 0, 1))
    lost = values.astype(int) - again
    assert set(np.unique(lost)) == {0, 1}
    assert (lost[..., 0] == 1).sum() == 95, "as docs/evaluation.md says"
    assert PAPER.to_8bit(torch.tensor([-2.0, -1.0, 0.999, 1.0, 3.0])).tolist() == [
        *(0, 0, 254, 255, 255)
    ]
    with pytest.raises(WetokError, match="NaN"):
        to_8bit_as_released(torch.tensor([torch.nan]))


def test_what_the_networks_see() -> None:
    values = torch.tensor([[-0.9999, 0.1234, 0.5]])
    assert torch.equal(PAPER.seen(values), values), "unrounded"
    for name in ("modern-256", "original"):
        seen = protocol(name).seen(values)
        assert ((seen + 1) * 127.5).tolist()[0] == pytest.approx([0, 143, 191])


def test_the_released_way_to_read(tmp_path: Path) -> None:
    """Pillow's plain conversion: no turning, and what is under transparency shows."""
    image = pattern(40, 30)
    image.putalpha(Image.new("L", image.size, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "odd.png", exif=exif)
    loaded = load_as_released(tmp_path / "odd.png")
    assert loaded.size == (40, 30) and np.array_equal(loaded, image.convert("RGB"))
    assert protocol("modern-256").load(tmp_path / "odd.png").size == (30, 40)
    (tmp_path / "junk.png").write_bytes(b"junk")
    for path in (tmp_path / "junk.png", tmp_path / "absent.png"):
        with pytest.raises(WetokError) as ours:
            load_as_released(path)
        with pytest.raises(WetokError) as usual:
            load_image(path)
        assert str(ours.value) == str(usual.value)
    with pytest.raises(WetokError, match="not an image"):
        load_as_released(io.BytesIO(b"junk"))


def test_every_protocol_has_a_hash_of_its_own() -> None:
    hashes = {name: preprocessing_hash(known) for name, known in PROTOCOLS.items()}
    assert len(set(hashes.values())) == len(PROTOCOLS) == 3
    assert all(len(value) == 16 for value in hashes.values())
    renamed = PAPER._replace(name="another", description="words")
    assert preprocessing_hash(renamed) == hashes["paper-256"], "it is of the pixels alone"


@pytest.mark.parametrize(
    "change",
    [
        {"prepare": protocol("modern-256").prepare},
        {"prepare": lambda image: crop_as_released(image.transpose(Image.Transpose.ROTATE_180))},
        {"load": load_image},
        {"to_float": lambda image: PAPER.to_float(image) * (1 - 2**-20)},
        {"to_8bit": protocol("original").to_8bit},
        {"unrounded": False},
    ],
    ids=["resize", "turned", "read", "float", "rounding", "seen"],
)
def test_a_change_of_the_pixels_changes_the_hash(change: dict[str, object]) -> None:
    assert preprocessing_hash(PAPER._replace(**change)) != preprocessing_hash(PAPER)  # type: ignore[arg-type]
