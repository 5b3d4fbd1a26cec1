"""Folders as a source of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wetok.config import WetokError
from wetok.data import sources
from wetok.data.sources import ImageFolder


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
