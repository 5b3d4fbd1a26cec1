"""Reading an image by windows and writing it by bands: the pixels that a whole image would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wetok.config import WetokError
from wetok.data.images import load_image, to_pil, to_tensor, to_uint8
from wetok.model import pixels
from wetok.model.pixels import Picture, Pixels, largest, open_image, singles


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def as_float(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()


def kinds(array: np.ndarray) -> list[Any]:
    whole = as_float(array)
    return [array, torch.from_numpy(array), Image.fromarray(array), whole, whole.numpy()]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_window_is_part_of_the_image_continued(data: st.DataObject) -> None:
    patch = data.draw(st.sampled_from([1, 2, 3]), "patch")
    factor = patch * data.draw(st.sampled_from([1, 2, 4, 8]), "levels")
    height, width = (data.draw(st.integers(1, 45), name) for name in ("height", "width"))
    array = image(height, width)
    missing = [(0, -height % factor), (0, -width % factor), (0, 0)]
    expected = np.pad(array.astype(np.float32) / 127.5 - 1, missing, mode="reflect")
    source = Pixels(data.draw(st.sampled_from(kinds(array)), "kind"), factor, patch)
    rows, columns = (side // patch for side in expected.shape[:2])
    assert source.size == (height, width) and source.shape == (3 * patch**2, rows, columns)
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    bottom = data.draw(st.integers(top + 1, rows))
    right = data.draw(st.integers(left + 1, columns))
    got = source.read(top, bottom, left, right)
    window = expected[top * patch : bottom * patch, left * patch : right * patch]
    # Channels of the stem are ordered (row, column, colour) of the patch.
    blocks = window.reshape(bottom - top, patch, right - left, patch, 3).transpose(1, 3, 4, 0, 2)
    assert torch.equal(got[0], torch.from_numpy(blocks.reshape(-1, bottom - top, right - left)))


def test_a_memory_map_is_read_by_windows(tmp_path: Path) -> None:
    array = image(40, 24)
    np.save(tmp_path / "a.npy", array)
    source = Pixels(np.load(tmp_path / "a.npy", mmap_mode="r"), 8, 1)
    assert torch.equal(source.read(8, 24, 3, 9)[0], as_float(array)[:, 8:24, 3:9])


@pytest.mark.parametrize("output", ["pil", "uint8", "float"])
def test_a_picture_of_bands(output: Any) -> None:
    torch.manual_seed(0)
    whole = 1.2 * torch.randn(1, 3, 24, 32)
    picture = Picture((19, 27), output, torch.device("cpu"))
    for top, bottom in ((0, 8), (8, 9), (9, 20), (20, 24)):
        picture.put(top, whole[:, :, top:bottom])
    expected = whole[0, :, :19, :27].clamp(-1, 1)
    got = picture.result()
    if output == "pil":
        assert np.array_equal(np.array(got), np.array(to_pil(expected)[0]))
    else:
        assert torch.equal(got, to_uint8(expected) if output == "uint8" else expected)


def test_what_singles_takes(tmp_path: Path) -> None:
    array = image(6, 9)
    Image.fromarray(array).save(tmp_path / "a.png")
    grey = Image.fromarray(array[..., 0])
    for one in [*kinds(array), tmp_path / "a.png", str(tmp_path / "a.png")]:
        (single,) = singles(one, unlimited=False)
        assert largest(one) == (6, 9)
        assert torch.equal(Pixels(single, 1, 1).read(0, 6)[0], as_float(array))
    (single,) = singles(grey, unlimited=False)
    assert torch.equal(Pixels(single, 1, 1).read(0, 6)[0], to_tensor(grey))
    # What `load_image` changes in a PIL image, it changes here.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        (single,) = singles(turned, unlimited=False)
    assert single.size == (6, 9)
    batch = np.stack([array, array[::-1]])
    assert len(singles(batch, unlimited=False)) == 2
    assert len(singles([array, batch, grey], unlimited=False)) == 4
    assert largest([array, image(30, 4)]) == (30, 4)
    assert largest("missing.png") == largest(None) == largest([]) == (0, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one image"),
        (None, "NoneType"),
        ([image(4, 4), image(4, 5)], "one size, not 2"),
        (image(4, 4)[..., :2], r"\[H,W,3\]"),
        (image(4, 4).astype(np.int32), "int32"),
        (torch.zeros(1, 8, 8), r"\[3,H,W\]"),
        ("missing.png", "missing.png"),
    ],
)
def test_what_singles_refuses(given: Any, message: str) -> None:
    for unlimited in (False, True):
        with pytest.raises(WetokError, match=message):
            singles(given, unlimited=unlimited)


def test_values_out_of_range_are_refused_where_they_are_read() -> None:
    source = Pixels(torch.full((3, 8, 8), 1.5), 8, 1)
    with pytest.raises(WetokError, match=r"\[-1, 1\]"):
        source.read(0, 8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif"])
def test_large_files_are_opened_on_request(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Pillow's limit and ours shrunk to a few pixels."""
    path = tmp_path / f"large{suffix}"
    Image.fromarray(image(40, 50)).save(path)
    expected = load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 200)
    with pytest.raises(WetokError, match="too large.*or ask for fast or exact tiles"):
        open_image(path, unlimited=False)
    assert np.array_equal(open_image(path, unlimited=True), expected)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(pixels, "TILED_MAX_PIXELS", 1999)
    with pytest.raises(WetokError, match="max_pixels=1999"):
        open_image(path, unlimited=True)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_large_file_is_upright_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "MAX_PIXELS", 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, clear, cut = tmp_path / "turned.jpg", tmp_path / "clear.png", tmp_path / "cut.png"
    Image.fromarray(image(40, 50)).save(turned, exif=exif)
    assert open_image(turned, unlimited=True).size == (40, 50)
    Image.fromarray(image(40, 50)).convert("RGBA").save(clear)
    assert open_image(clear, unlimited=True).mode == "RGB"
    Image.fromarray(image(40, 50)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(WetokError, match="truncated or damaged"):
        open_image(cut, unlimited=True)


@pytest.mark.parametrize("output", ["pil", "uint8", "float"])
def test_a_picture_is_the_same_a_few_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, output: Any
) -> None:
    bands = [
        torch.randn(1, 3, rows, 24, generator=torch.Generator().manual_seed(rows))
        for rows in (16, 9, 16)
    ]
    results = []
    for at_once in (1 << 20, 50, 1):
        monkeypatch.setattr(pixels, "_AT_ONCE", at_once)
        picture, top = Picture((38, 21), output, torch.device("cpu")), 0
        for band in bands:
            picture.put(top, band)
            top += band.shape[2]
        results.append(np.asarray(picture.result()))
    assert results[0].shape == ((38, 21, 3) if output == "pil" else (3, 38, 21))
    wanted = torch.cat(bands, 2)[0, :, :38, :21].clamp(-1, 1).numpy()
    if output == "float":
        np.testing.assert_array_equal(results[0], wanted)
    assert all(np.array_equal(results[0], one) for one in results[1:])
