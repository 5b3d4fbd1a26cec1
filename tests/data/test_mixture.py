"""Several sources as one stream."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.streams import check_stream, encoded, write_folder
from tests.data.test_shards import samples, write_tar
from wetok.config import WetokError
from wetok.data.loader import TrainLoader
from wetok.data.mixture import Mixture
from wetok.data.order import seed_of
from wetok.data.shards import TarShards
from wetok.data.sources import ImageFolder


@pytest.fixture
def parts(tmp_path: Path) -> tuple[ImageFolder, TarShards, ImageFolder]:
    """Three of different kinds and sizes: 3, 20 and 8 images."""
    return (
        ImageFolder(write_folder(tmp_path / "a", range(3))),
        TarShards([write_tar(tmp_path / "b.tar", samples(range(10, 30)))], whole=0, run=5, lanes=2),
        ImageFolder(write_folder(tmp_path / "c", range(40, 48))),
    )


def test_stream(parts: tuple[Any, ...]) -> None:
    with TrainLoader(Mixture(parts, [1, 0.5, 2.25]), 31, 8) as loader:
        assert next(loader).shape == (31, 3, 8, 8)

    def opened() -> Any:
        return OneEpoch(Mixture(parts, [1, 0.5, 2.25]))

    check_stream(opened)


class OneEpoch:
    """A mixture has no epoch: its keys come again before all have come once."""

    def __init__(self, source: Mixture) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def __len__(self) -> int:
        return 1


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5),
    start=st.integers(0, 2000),
    seed=st.integers(0, 2**30),
)
def test_order(weights: list[float], start: int, seed: int) -> None:
    sources = [Numbers(4 + 3 * index) for index in range(len(weights))]
    mixture = Mixture(sources, weights)
    whole = list(islice(mixture.order(seed, 0), start + 256))
    assert list(islice(mixture.order(seed, start), 256)) == whole[start:]
    for index, source in enumerate(sources):  # each in its own order, whatever the others do
        own = [key for which, key in whole if which == index]
        assert own == list(islice(source.order(seed_of(seed, index), 0), len(own)))
        wanted = weights[index] / math.fsum(weights)
        assert abs(mixture.shares[index] - wanted) < 1e-9
        exact = len(whole) // 256 * 256
        seen = sum(which == index for which, _ in whole[:exact])
        assert abs(seen - exact * wanted) < len(weights) + 1e-6


class Numbers(ImageFolder):
    """A folder of so many images that are not there."""

    def __init__(self, length: int) -> None:
        self.paths = [Path(str(number)) for number in range(length)]
        self.skipped = {}


def test_by_default_all_images_are_seen_equally_often() -> None:
    mixture = Mixture([Numbers(30), Numbers(50), Numbers(176)])
    assert len(mixture) == 256
    assert mixture.shares == pytest.approx([30 / 256, 50 / 256, 176 / 256])
    seen = Counter(islice(mixture.order(0, 0), 256 * 3))
    assert len(seen) == 256 and set(seen.values()) == {3}


def test_mixture_of_mixtures() -> None:
    inner = Mixture([Numbers(5), Numbers(7)], [1, 3])
    outer = Mixture([inner, Numbers(9)], [1, 1])
    counts = Counter(
        key[0] if key[0] else (0, key[1][0])  # type: ignore[index]
        for key in islice(outer.order(0, 0), 2048)
    )
    assert counts == {1: 1024, (0, 0): 256, (0, 1): 768}


def test_failures_of_all_sources(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", range(4))
    (folder / "002.png").write_bytes(b"junk")
    data = write_tar(tmp_path / "b.tar", samples(range(6))).read_bytes()
    (tmp_path / "b.tar").write_bytes(data[: len(data) // 2])
    mixture = Mixture([ImageFolder(folder), TarShards([tmp_path / "b.tar"])], [1, 1])
    assert list(mixture.skipped) == [str(tmp_path / "b.tar")]
    with TrainLoader(mixture, 32, 8, workers=2) as loader:
        next(loader)
        assert set(loader.failures) == {str(tmp_path / "b.tar"), str(folder / "002.png")}


def test_source_without_any_image_that_decodes_ends_the_run(tmp_path: Path) -> None:
    good = ImageFolder(write_folder(tmp_path / "a", range(4)))
    (tmp_path / "b").mkdir()
    for name in ("x.png", "y.png"):
        (tmp_path / "b" / name).write_bytes(encoded(1)[:50])
    mixture = Mixture([good, ImageFolder(tmp_path / "b")], [1, 1])
    with (
        TrainLoader(mixture, 32, 8, workers=1) as loader,
        pytest.raises(WetokError, match=r"none of the 2 .*b/[xy]\.png"),
    ):
        next(loader)


@pytest.mark.parametrize(
    ("count", "weights", "part"),
    [
        (0, None, "at least one source"),
        (2, [1.0], "1 numbers for 2"),
        (2, [1.0, 0.0], "weight=0.0"),
        (2, [1.0, -1.0], "weight=-1.0"),
        (1, [math.inf], "weight=inf"),
        (1, [math.nan], "weight=nan"),
    ],
)
def test_wrong_settings(count: int, weights: list[float] | None, part: str) -> None:
    with pytest.raises(WetokError, match=part):
        Mixture([Numbers(3)] * count, weights)
