"""What a recipe may say about its data, and what is opened for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.streams import encoded, numbers_of, write_folder
from tests.data.test_shards import samples, write_tar
from wetok.config import WetokError
from wetok.data.mixture import Mixture
from wetok.data.opening import SourceSpec, expand_braces, open_source
from wetok.data.shards import TarShards
from wetok.data.sources import ImageFolder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("WETOK_CACHE", str(folder))
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for index in range(12):
        write_tar(folder / f"s-{index:03d}.tar", samples(range(2 * index, 2 * index + 2)))
    return folder


def parquet(path: Path, numbers: range) -> Path:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extras dev and scale)")
    pq = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": list(map(encoded, numbers)), "thumb": [b""] * 3}), path)
    return path


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{008..011}.tar", ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]),
        ("s-{8..11}", ["s-8", "s-9", "s-10", "s-11"]),
        ("{00..2}", ["00", "01", "02"]),
        ("{train,val}/{0..1}", ["train/0", "train/1", "val/0", "val/1"]),
        ("{a,{b,c}x}", ["a", "bx", "cx"]),
        ("{x}{0..1", ["x{0..1"]),
    ],
)
def test_braces(pattern: str, wanted: list[str]) -> None:
    assert expand_braces(pattern) == wanted


def test_falling_range() -> None:
    with pytest.raises(WetokError, match=r"\{9\.\.3\} falls"):
        expand_braces("a{9..3}.tar")


def test_images(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", range(5))
    assert numbers_of(open_source(folder), 5) == [0, 1, 2, 3, 4]
    assert numbers_of(open_source(str(folder / "00[13].png")), 5) == [1, 3]
    assert numbers_of(open_source(str(folder / "002.png")), 5) == [2]
    cached = open_source(folder, cache=True)
    assert isinstance(cached, ImageFolder)
    cached.read(0)
    assert cached.cached_bytes


def test_shards(shards: Path, cache: Path) -> None:
    for spec, count in (
        (shards, 24),
        (shards / "*.tar", 24),
        (str(shards / "s-{002..010}.tar"), 18),
        (str(shards / "s-{002,00[45]}.tar"), 6),
        (shards / "s-000.tar", 2),
        (f"{shards.parent}/**/*.tar", 24),
    ):
        source = open_source(spec)
        assert isinstance(source, TarShards) and len(source) == count
        assert [path.name for path in source.paths] == sorted(path.name for path in source.paths)
    assert len(list((cache / "shards").iterdir())) == 12
    (shards / "s-003.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    (shards / "s-003.tar").rename(shards / "s-003.tar.gz")
    assert "gzip" in next(iter(open_source(shards).skipped.values()))
    with pytest.raises(WetokError, match=r"there is no '.*s-003\.tar'"):
        open_source(str(shards / "s-{002..010}.tar"))


def test_natural_order(tmp_path: Path) -> None:
    for index in (1, 10, 2):
        write_tar(tmp_path / f"s{index}.tar", samples(range(1)))
    source = open_source(tmp_path)
    assert isinstance(source, TarShards)
    assert [path.name for path in source.paths] == ["s1.tar", "s2.tar", "s10.tar"]


def test_names_with_signs_of_patterns(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a[1]{x,y}", range(3))
    assert len(open_source(folder)) == 3


def test_archives_beside_images_are_not_taken_for_shards(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", range(3))
    write_tar(folder / "backup.tar", samples(range(4)))
    assert isinstance(open_source(folder), ImageFolder)
    outer = tmp_path / "outer"
    write_folder(outer / "inner", range(2))
    write_tar(outer / "download.tar", samples(range(4)))
    assert isinstance(open_source(outer), ImageFolder)
    assert len(open_source(outer / "download.tar")) == 4


def test_parquet(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "a" / "1.parquet", range(3)).parent
    parquet(folder / "2.parquet", range(3, 6))
    assert numbers_of(open_source(folder), 6) == list(range(6))
    assert len(open_source(str(folder / "{1,2}.parquet"))) == 6
    one = open_source({"path": str(folder / "2.parquet"), "column": "image"})
    assert numbers_of(one, 6) == [3, 4, 5]
    with pytest.raises(WetokError, match="column='label'"):
        open_source(SourceSpec(str(folder), column="label"))


def test_saved_and_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra scale)")
    data = datasets.Dataset.from_dict({"image": [encoded(1), encoded(0)]})
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "saved")
    assert numbers_of(open_source(tmp_path / "saved"), 2) == [1, 0]
    assert len(open_source({"path": str(tmp_path / "saved"), "split": "test"})) == 2

    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(open_source("hub:someone/pictures")) == 2
    spec = {"path": "hub:x/y", "split": "val", "subset": "big", "revision": "v1", "column": "image"}
    assert len(open_source(spec)) == 2
    assert asked == [
        (("someone/pictures", None), {"split": "train", "revision": None}),
        (("x/y", "big"), {"split": "val", "revision": "v1"}),
    ]


def test_mixtures(tmp_path: Path, shards: Path) -> None:
    folder = write_folder(tmp_path / "a", range(8))
    both = open_source([str(folder), shards])
    assert isinstance(both, Mixture) and both.shares == pytest.approx([0.25, 0.75])
    weighted = open_source(
        [{"path": str(folder), "weight": 3}, SourceSpec(str(shards), weight=1.0)]
    )
    assert isinstance(weighted, Mixture) and weighted.shares == pytest.approx([0.75, 0.25])
    assert isinstance(open_source([str(folder)]), ImageFolder)
    assert isinstance(open_source([{"path": str(folder), "weight": 2}]), ImageFolder)


def test_all_fields_at_their_defaults_are_as_if_not_given(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", range(2))
    fields = vars(SourceSpec(str(folder)))
    assert set(fields) > {"path", "weight", "column", "split"}
    assert len(open_source(fields)) == 2


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("FOLDER/none", "FOLDER/none' does not exist"),
        ("FOLDER/*.none", r"there is no 'FOLDER/\*\.none'"),
        ("FOLDER/{a,none}", "there is no 'FOLDER/none'"),
        ("FOLDER/{a/000.png,b.tar}", r"several kinds \(images, shards\)"),
        ("https://example.org/a.tar", "is an address: only .*parquet"),
        ({"path": "FOLDER/a", "wieght": 1}, "'wieght'.*did you mean 'weight'"),
        ({"weight": 1}, "has no path"),
        ({"path": "FOLDER/a", "column": "x"}, "column='x' means nothing .*images.*parquet and"),
        ({"path": "FOLDER/b.tar", "stream": True}, "stream=True .*shards.*it is for hub"),
        ([{"path": "FOLDER/a", "weight": 1}, "FOLDER/b.tar"], "b.tar' has no weight"),
        ([{"path": "FOLDER/a", "weight": 0}, {"path": "FOLDER/a", "weight": 1}], "weight=0"),
        ([], "list of sources is empty"),
    ],
    ids=str,
)
def test_mistakes(tmp_path: Path, spec: Any, part: str) -> None:
    write_folder(tmp_path / "a", range(2))
    write_tar(tmp_path / "b.tar", samples(range(2)))

    def placed(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("FOLDER", str(tmp_path))
        if isinstance(value, dict):
            return {key: placed(one) for key, one in value.items()}
        return [placed(one) for one in value] if isinstance(value, list) else value

    with pytest.raises(WetokError, match=part.replace("FOLDER", str(tmp_path))):
        open_source(placed(spec))


def test_cache_is_for_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", samples(range(2)))
    with pytest.raises(WetokError, match="cache=True means nothing"):
        open_source(tmp_path / "b.tar", cache=True)
