"""Folders as a source of images, and the order in which they are gone through."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wetok.config import WetokError
from wetok.data import sources
from wetok.data.sources import ImageFolder, shuffled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(12):
        image = Image.new("RGBA" if index % 2 else "RGB", (10 + index, 8), (index, 2 * index, 3))
        image.save(tmp_path / f"image{index}.png")
    return tmp_path


def test_images_in_natural_order(folder: Path) -> None:
    source = ImageFolder(folder)
    assert len(source) == 12
    for index in range(12):
        assert source[index].mode == "RGB" and source[index].width == 10 + index
        assert source.name(index) == str(folder / f"image{index}.png")
    assert source[-1].width == 21
    for index in (12, -13):
        with pytest.raises(IndexError):
            source[index]
    assert len(list(iter(source))) == 12  # type: ignore[call-overload]


def test_list_of_files_and_nothing_found(folder: Path) -> None:
    assert len(ImageFolder([folder / "image3.png", folder / "image1.png"])) == 2
    (folder / "none").mkdir()
    with pytest.raises(WetokError, match="no images"):
        ImageFolder(folder / "none")


def test_broken_file_is_an_error_that_names_it(folder: Path) -> None:
    (folder / "image5.png").write_bytes(b"junk")
    with pytest.raises(WetokError, match=r"image5\.png"):
        ImageFolder(folder)[5]


def test_cache_decodes_once_and_keeps_to_its_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    load = sources.load_image

    def counting(path: Path, **options: object) -> Image.Image:
        decoded.append(path.name)
        return load(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "load_image", counting)
    plain = ImageFolder(folder)
    cached = ImageFolder(folder, cache=True)
    wanted = [np.asarray(plain[index]) for index in range(12)]
    decoded.clear()
    for _ in range(3):
        for index in range(12):
            np.testing.assert_array_equal(np.asarray(cached[index]), wanted[index])
    assert len(decoded) == 12
    assert cached.cached_bytes == sum(4 * array.shape[0] * array.shape[1] for array in wanted)

    decoded.clear()
    limit = 4 * 8 * (10 + 11 + 12)
    small = ImageFolder(folder, cache=True, cache_bytes=limit)
    for _ in range(3):
        for index in range(12):
            np.testing.assert_array_equal(np.asarray(small[index]), wanted[index])
    assert small.cached_bytes == limit
    assert len(decoded) == 3 + 3 * 9


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 200),
)
def test_shuffled(length: int, seed: int, start: int) -> None:
    epochs = [list(islice(shuffled(length, seed), length * n, length * (n + 1))) for n in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(length))
        assert all(type(index) is int for index in epoch)
    if length > 15:  # by chance equal once in 15!
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        assert epochs[0] != list(islice(shuffled(length, seed + 1), length))
    whole = list(islice(shuffled(length, seed), start + 50))
    assert list(islice(shuffled(length, seed, start), 50)) == whole[start:]


def test_nothing_to_shuffle() -> None:
    with pytest.raises(WetokError, match="no images"):
        next(shuffled(0, 1))


@pytest.mark.parametrize("length", [*range(1, 30), 100, 240, 997])
def test_substitutes_go_through_everything(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "find_images", lambda _: [tmp_path] * length)
    source = ImageFolder(tmp_path)
    visited, key = [], 0
    for _ in range(length):
        visited.append(key)
        key = source.substitute(key)
    assert sorted(visited) == list(range(length)) and key == 0
    if length >= 29:  # far from a run of neighbours
        assert length / 5 < source.substitute(0) < length / 2
