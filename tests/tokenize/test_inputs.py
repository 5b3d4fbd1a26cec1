"""Keys and what is passed through, of every kind of source; readers work in any process."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tokenize.job import pixels, planned, png, write_pictures
from wetok.config import WetokError
from wetok.model.tokenizer import Tokenizer
from wetok.tokenize.inputs import Inputs, Item, open_inputs
from wetok.tokenize.plan import KeyList


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WETOK_CACHE", str(tmp_path / "cache"))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_rows(path: Path, numbers: range, group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": pa.array([png(n) for n in numbers], pa.binary()),
        "label": pa.array([n % 5 for n in numbers], pa.int16()),
        "names": pa.array([[f"n{n}", "x"] for n in numbers]),
    }
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def read(inputs: Inputs, item: Item) -> tuple[np.ndarray, dict[str, Any]]:
    """As another process would: the reader and the item as they come out of a pickle."""
    reader, item = pickle.loads(pickle.dumps((inputs.reader, item)))
    image, extras = reader.read(item)
    return np.asarray(image), extras


def check(inputs: Inputs, wanted: dict[str, tuple[int, dict[str, Any]]]) -> None:
    """Keys in order, each with its picture's number and what is passed through."""
    items = inputs.items(0, len(inputs))
    assert [item.key for item in items] == list(wanted)
    for start in range(len(items)):
        assert inputs.items(start, start + 2) == items[start : start + 2]
    for item in items:
        number, extras = wanted[item.key]
        image, passed = read(inputs, item)
        assert np.array_equal(image, pixels(number)) and passed == extras
        assert set(extras) == set(inputs.schema.names)


def test_a_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path / "x" / "photos", 4)
    wanted = {f"{'ab'[n % 2]}/{n:05d}.png": (n, {"label": "ab"[n % 2]}) for n in (0, 2, 1, 3)}
    check(open_inputs([tmp_path / "x" / "photos"], labels="folder"), wanted)
    plain = open_inputs([tmp_path / "x"])
    assert [item.key for item in plain.items(0, 1)] == ["photos/a/00000.png"]
    assert plain.items(0, 1)[0].size == len(png(0))
    one = open_inputs([str(tmp_path / "x" / "photos" / "a" / "*.png")])
    assert [item.key for item in one.items(0, 9)] == ["00000.png", "00002.png"]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    bad = bytes(tmp_path / "photos" / "x") + b"\xff.png"
    (tmp_path / "photos").mkdir()
    with open(bad, "wb") as file:
        file.write(png(3))
    check(open_inputs([tmp_path / "photos"]), {r"x\xff.png": (3, {})})


def test_tars(tmp_path: Path) -> None:
    first = {"00.cls": b"7", "00.png": png(0), "00.txt": "é".encode(), "01.png": png(1)}
    write_tar(tmp_path / "t" / "s-0.tar", first)
    write_tar(tmp_path / "t" / "s-1.tar", {"d/00.png": png(2), "d/00.cls": b"8"})
    inputs = open_inputs([tmp_path / "t"], keep=["cls", ".txt"])
    none = {"label": None, "caption": None}
    wanted = {
        "s-0.tar/00.png": (0, {"label": "7", "caption": "é"}),
        "s-0.tar/01.png": (1, none),
        "s-1.tar/d/00.png": (2, {**none, "label": "8"}),
    }
    check(inputs, wanted)
    check(open_inputs([tmp_path / "t"]), {key: (n, {}) for key, (n, _) in wanted.items()})


def test_a_tar_that_is_cut_off_is_told(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "t" / "0.tar", {f"{n}.png": png(n) for n in range(4)})
    whole.write_bytes(whole.read_bytes()[:9000])
    inputs = open_inputs([tmp_path / "t"])
    assert 0 < len(inputs) < 4
    assert list(inputs.left_out) == [str(whole)]


def test_parquet(tmp_path: Path) -> None:
    write_rows(tmp_path / "p" / "a.parquet", range(7))
    write_rows(tmp_path / "p" / "b.parquet", range(7, 9))
    inputs = open_inputs([tmp_path / "p"], keep=["label", "names"])
    assert inputs.schema.field("label").type == pa.int16()
    assert inputs.schema.field("names").type == pa.list_(pa.string())
    keys = [("a", n, n) for n in range(7)] + [("b", n - 7, n) for n in range(7, 9)]
    check(
        inputs,
        {
            f"{file}.parquet:{row}": (n, {"label": n % 5, "names": [f"n{n}", "x"]})
            for file, row, n in keys
        },
    )


def test_a_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(5)], "label": [0, 1, 0, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    inputs = open_inputs([tmp_path / "saved"], keep=["label"])
    check(inputs, {str(n): (n, {"label": n % 2}) for n in range(5)})


def test_several(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 2)
    write_rows(tmp_path / "p" / "a.parquet", range(5, 8))
    inputs = open_inputs([tmp_path / "photos", {"path": str(tmp_path / "p" / "a.parquet")}])
    wanted = {
        "photos/a/00000.png": (0, {}),
        "photos/b/00001.png": (1, {}),
        **{f"a.parquet/a.parquet:{n - 5}": (n, {}) for n in range(5, 8)},
    }
    check(inputs, wanted)
    # Two of one name are told apart.
    write_pictures(tmp_path / "other" / "photos", 1)
    inputs = open_inputs([tmp_path / "photos", tmp_path / "other" / "photos"])
    assert [item.key for item in inputs.items(0, 9)] == [
        *("0-photos/a/00000.png", "0-photos/b/00001.png", "1-photos/a/00000.png")
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keep": ["label"]}, "keep='label' is for tars"),
        ({"labels": "parent"}, "labels='parent' must be 'folder'"),
    ],
)
def test_options_that_mean_nothing(tmp_path: Path, options: Any, reason: str) -> None:
    write_pictures(tmp_path / "photos", 1)
    with pytest.raises(WetokError, match=reason):
        open_inputs([tmp_path / "photos"], **options)


def test_columns_that_do_not_fit(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "p" / "a.parquet", range(2))
    with pytest.raises(WetokError, match="keep='labels' is not in .*did you mean 'label'"):
        open_inputs([rows], keep=["labels"])
    with pytest.raises(WetokError, match="labels='folder' is for folders"):
        open_inputs([rows], labels="folder")
    with pytest.raises(WetokError, match="names a column twice"):
        open_inputs([rows], keep=["label", "label"])
    pq.write_table(pq.read_table(rows).append_column("ids", pa.array([1, 2])), rows)
    with pytest.raises(WetokError, match="keep='ids' has the name of a column of ours"):
        open_inputs([rows], keep=["ids"])
    write_pictures(tmp_path / "photos", 1)
    with pytest.raises(WetokError, match="is a mixture"):
        open_inputs([[rows, tmp_path / "photos"]])  # type: ignore[list-item]
    with pytest.raises(WetokError, match="no source is given"):
        open_inputs([])


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.png": png(0), "b.png": png(1)})
    more = write_tar(tmp_path / "1.tar", {"c.png": png(0), "a.png": png(1)})
    # The same members in one file, one after another.
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + b"\0" * (-len(data) % 512) + more.read_bytes())
    with pytest.raises(WetokError, match="key '0.tar/a.png' is there twice"):
        planned(open_inputs([path]), tokenizer)


def test_two_keys_of_one_short_hash_are_no_duplicates(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "photos", 5)
    monkeypatch.setattr("wetok.tokenize.plan.short_hash", lambda key: len(key))
    plan = planned(open_inputs([tmp_path / "photos"]), tokenizer)
    assert plan.images == 5
    keys = KeyList()
    keys.add(open_inputs([tmp_path / "photos"]).items(0, 5))
    assert keys.suspects() == {len("a/00000.png")}
