"""Parquet files as a training source."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.data.streams import check_stream, encoded, numbers_of
from wetok.config import WetokError
from wetok.data.loader import TrainLoader
from wetok.data.parquet import ParquetRows, Recent

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extras dev and scale)")
pq = pytest.importorskip("pyarrow.parquet")


def cell(number: int, kind: str) -> Any:
    data = encoded(number)
    return {"bytes": data, "path": f"{number}.png"} if kind == "struct" else data


def column(kind: str) -> Any:
    if kind == "struct":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return {"binary": pa.binary(), "large": pa.large_binary()}[kind]


def write(
    path: Path, cells: list[Any], kind: str = "struct", rows: int = 4, name: str = "image"
) -> Path:
    table = pa.table(
        {
            "label": pa.array(range(len(cells))),
            name: pa.array(cells, column(kind)),
            "text": pa.array(["a caption"] * len(cells)),
        }
    )
    pq.write_table(table, path, row_group_size=rows, write_page_checksum=True)
    return path


def rows(numbers: range, kind: str = "struct") -> list[Any]:
    return [cell(number, kind) for number in numbers]


@pytest.fixture(params=["struct", "binary", "large"])
def files(tmp_path: Path, request: pytest.FixtureRequest) -> list[Path]:
    kind = request.param
    return [
        write(tmp_path / "a.parquet", rows(range(9), kind), kind),
        write(tmp_path / "b.parquet", rows(range(9, 10), kind), kind),
        write(tmp_path / "c.parquet", rows(range(10, 21), kind), kind, rows=3),
    ]


def test_rows_in_the_order_of_the_files(files: list[Path]) -> None:
    source = ParquetRows(files)
    assert len(source) == 21 and not source.skipped
    assert numbers_of(source, 21) == list(range(21))
    assert source.name(0) == f"{files[0]}: row 0" and source.name(8) == f"{files[0]}: row 8"
    assert source.name(9) == f"{files[1]}: row 0" and source.name(20) == f"{files[2]}: row 10"


@pytest.mark.parametrize("lanes", [1, 3, 16])
def test_stream(files: list[Path], lanes: int) -> None:
    check_stream(lambda: ParquetRows(files, lanes=lanes), steps=8)


def damage(tmp_path: Path) -> list[Path]:
    """Three rows that are no images, a page damaged within, a file cut off."""
    cells = rows(range(9))
    cells[2] = {"bytes": b"<html>", "path": None}
    cells[5] = None
    cells[8] = {"bytes": None, "path": None}
    first = write(tmp_path / "a.parquet", cells)
    second = write(tmp_path / "b.parquet", rows(range(10, 18)))
    with pq.ParquetFile(second) as file:
        chunk = file.metadata.row_group(1).column(1)
        begin = chunk.dictionary_page_offset or chunk.data_page_offset
        at = begin + chunk.total_compressed_size // 2
    data = second.read_bytes()
    second.write_bytes(data[:at] + bytes(20) + data[at + 20 :])
    third = tmp_path / "c.parquet"
    third.write_bytes(data[:-40])
    return [first, second, third]


def test_stream_of_damaged_files(tmp_path: Path) -> None:
    files = damage(tmp_path)
    check_stream(lambda: ParquetRows(files, lanes=3), broken=3 + 4, steps=6)


def test_damage_is_counted_and_listed(tmp_path: Path) -> None:
    files = damage(tmp_path)
    source = ParquetRows(files)
    assert len(source) == 17
    with TrainLoader(source, 17, 8, workers=2) as loader:
        next(loader)
        failures = {Path(name).name: reason for name, reason in loader.failures.items()}
    wanted = {
        "a.parquet: row 2": "row 2' is not an image",
        "a.parquet: row 5": "row 5' is missing: its cell is empty",
        "a.parquet: row 8": "row 8' is missing: its cell is empty",
        "c.parquet": "is not a Parquet file, or cut off",
    } | {f"b.parquet: row {row}": f"row {row}' can't be read" for row in range(4, 8)}
    assert failures.keys() == wanted.keys()
    for name, part in wanted.items():
        assert part in failures[name] and "\n" not in failures[name]


def test_a_path_is_followed_where_there_are_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(encoded(1))
    cells = [
        {"bytes": None, "path": "images/1.png"},
        {"bytes": None, "path": str(tmp_path / "images" / "1.png")},
        {"bytes": None, "path": "images/none.png"},
    ]
    source = ParquetRows([write(tmp_path / "a.parquet", cells)])
    assert source.read(0).tobytes() == source.read(1).tobytes()
    with pytest.raises(WetokError, match=r"a\.parquet: row 2: .*none\.png' does not exist"):
        source.read(2)


class TestColumn:
    """Which column is taken for the images."""

    @pytest.fixture
    def several(self, tmp_path: Path) -> Path:
        data = [encoded(3)]
        path = tmp_path / "a.parquet"
        pq.write_table(
            pa.table({"thumb": [b"x"], "one": data, "label": [1], "my.image": data}), path
        )
        return path

    def test_named(self, several: Path) -> None:
        assert numbers_of(ParquetRows([several], "one"), 4) == [3]
        assert numbers_of(ParquetRows([several], "my.image"), 4) == [3]

    def test_ambiguous_or_wrong(self, several: Path) -> None:
        with pytest.raises(WetokError, match="'thumb', 'one', 'my.image'.*name one with column="):
            ParquetRows([several])
        with pytest.raises(WetokError, match="column='on' is not in .*did you mean 'one'"):
            ParquetRows([several], "on")
        with pytest.raises(WetokError, match="column='label' .*int64"):
            ParquetRows([several], "label")

    def test_usual_name(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"other": [b"x"], "JPG": [encoded(1)], "bytes": [b"y"]}), path)
        assert numbers_of(ParquetRows([path]), 2) == [1]

    def test_marked_as_image(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        features = {"image": {"dtype": "binary", "_type": "Value"}, "look": {"_type": "Image"}}
        marks = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pa.table({"image": [b"x"], "look": [encoded(1)]})
        pq.write_table(table.replace_schema_metadata(marks), path)
        assert numbers_of(ParquetRows([path]), 2) == [1]

    def test_none(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"label": [1], "url": ["x"]}), path)
        with pytest.raises(WetokError, match="no column of images .its columns: 'label', 'url'"):
            ParquetRows([path])


def test_few_row_groups_are_read_at_a_time_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", rows(range(60)), rows=5)
    source = ParquetRows([path], memory=1, lanes=16)  # room for none, so one at a time
    assert source._lanes == 1
    with pq.ParquetFile(path) as file:
        size = max(file.metadata.row_group(n).column(1).total_uncompressed_size for n in range(12))
        size += max(file.metadata.row_group(n).column(2).total_uncompressed_size for n in range(12))
    source = ParquetRows([path], memory=5 * size, lanes=16)
    assert source._lanes == 4  # and one kept for workers that are behind
    read: list[int] = []
    original: Callable[[int], Any] = source._recent._make

    def counting(index: int) -> Any:
        read.append(index)
        return original(index)

    monkeypatch.setattr(source._recent, "_make", counting)
    for workers in (3, 0):
        read.clear()
        source._recent._values.clear()
        with TrainLoader(source, 4, 8, workers=workers) as loader:
            for _ in range(15):
                next(loader)
                assert len(source._recent._values) <= 5
    assert sorted(read) == list(range(12))  # each once, where no worker runs ahead or lags
    # A restart reads the row groups it needs, not those before.
    read.clear()
    late = list(islice(source.order(0, 40), 20))
    source._recent._values.clear()
    for key in late:
        source.read(key)
    assert sorted(set(read)) == sorted({key // 5 for key in late}) and len(read) == len(set(read))


def test_recent_values_are_made_once_for_all_threads() -> None:
    made: list[int] = []
    gate = threading.Event()

    def make(key: int) -> int:
        made.append(key)
        gate.wait(5)
        if key < 0:
            raise OSError("no such thing")
        return key * 10

    recent: Recent[int, int] = Recent(make, 2)
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(recent.get(7))) for _ in range(5)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert results == [70] * 5 and made == [7]
    for key in (8, 7, 9, 7, 8):  # 8 was pushed out by 9
        recent.get(key)
    assert made == [7, 8, 9, 8]
    for _ in range(2):  # what failed once is not tried again and again
        with pytest.raises(OSError, match="no such thing"):
            recent.get(-1)
    assert made.count(-1) == 1


def test_ctrl_c_while_reading_is_not_kept() -> None:
    tries = iter([KeyboardInterrupt(), None])

    def make(key: int) -> int:
        if error := next(tries):
            raise error
        return key

    recent: Recent[int, int] = Recent(make, 2)
    with pytest.raises(KeyboardInterrupt):
        recent.get(1)
    assert recent.get(1) == 1


def test_addresses(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    path = write(tmp_path / "a.parquet", rows(range(6)))
    with fsspec.open("memory://set/a.parquet", "wb") as stream:
        stream.write(path.read_bytes())
    source = ParquetRows(["memory://set/a.parquet", "memory://set/none.parquet"])
    assert numbers_of(source, 6) == list(range(6))
    assert source.name(2) == "memory://set/a.parquet: row 2"
    assert list(source.skipped) == ["memory://set/none.parquet"]
    with pytest.raises(WetokError, match=r"address 'what://a\.parquet' can't be opened"):
        ParquetRows(["what://a.parquet"])


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(WetokError, match="no Parquet files"):
        ParquetRows([])
    with pytest.raises(WetokError, match=r"a\.parquet' has no rows"):
        ParquetRows([write(tmp_path / "a.parquet", [])])
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(WetokError, match=r"b\.parquet' is not a Parquet file.*and 1 more files"):
        ParquetRows([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    with pytest.raises(WetokError, match="can't be read: No such file"):
        ParquetRows([tmp_path / "none.parquet"])


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(WetokError, match=r"'pyarrow'.*pip install 'wetok\[scale\]'"):
        ParquetRows([tmp_path / "a.parquet"])
