"""Token shards: what is written comes back, whoever reads it; what is damaged is told."""

from __future__ import annotations

import json
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetok.config import WetokError
from wetok.data.tokens import About, Record, TokenShards, ids_dtype, to_parquet
from wetok.data.tokentars import read_webdataset, to_webdataset

EXTRAS = pa.schema([pa.field("label", pa.int16()), pa.field("caption", pa.string())])


def about(bits: int = 8, groups: int = 2, size: tuple[int, int] | None = (12, 20)) -> About:
    return About("toy", "0" * 16, groups, bits, 4, size, ("center",), "none", "1" * 16, "0.1.0")


def records(own: About, count: int, seed: int = 0) -> list[Record]:
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        size = own.size or (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
        shape = own.groups, *own.grid_of(size)
        ids = rng.integers(0, 2**own.group_bits, shape, np.uint64, endpoint=False)
        extras = {"label": number % 3, "caption": None if number % 4 else f"caption {number} é"}
        made.append(Record(f"a/{number}.jpg", "center", ids.astype(own.dtype), size, extras))
    return made


def same(one: Record, other: Record) -> bool:
    return (
        (one.key, one.view, one.size, dict(one.extras))
        == (other.key, other.view, other.size, dict(other.extras))
        and one.ids.dtype == other.ids.dtype
        and np.array_equal(one.ids, other.ids)
    )


def shard(path: Path, made: list[Record], own: About) -> Path:
    path.write_bytes(to_parquet(made, own, EXTRAS))
    return path


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(1, 63),
    groups=st.integers(1, 5),
    count=st.integers(0, 7),
    vary=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int,
    groups: int,
    count: int,
    vary: bool,
    seed: int,
) -> None:
    own = about(bits, groups, None if vary else (12, 20))
    made, folder = records(own, count, seed), tmp_path_factory.mktemp("shards")
    read = TokenShards(shard(folder / "x.parquet", made, own))
    assert read.about == own and len(read) == count
    assert all(same(read[number], one) for number, one in enumerate(made))
    assert to_parquet(made, own, EXTRAS) == (folder / "x.parquet").read_bytes()
    tar = folder / "x.tar"
    tar.write_bytes(to_webdataset(made, own))
    assert all(same(one, two) for one, two in zip(read_webdataset(tar, own), made, strict=True))


@pytest.mark.parametrize(
    ("bits", "size"), [(1, 1), (8, 1), (9, 2), (16, 2), (17, 4), (18, 4), (32, 4), (33, 8)]
)
def test_ids_take_the_fewest_whole_bytes(bits: int, size: int) -> None:
    assert ids_dtype(bits) == np.dtype(f"<u{size}")
    with pytest.raises(WetokError, match="group_bits=65"):
        ids_dtype(65)


def test_parquet_as_others_read_it(tmp_path: Path) -> None:
    """The layout by hand: C order over [g,h,w], little-endian, metadata as JSON."""
    own = about(bits=12, groups=2, size=(8, 12))  # 2 x 3 positions
    ids = np.arange(12, dtype="<u2").reshape(2, 2, 3) * 300
    one = Record("k", "center", ids, (8, 12), {"label": 3, "caption": "c"})
    table = pq.read_table(shard(tmp_path / "x.parquet", [one], own))
    assert table.schema.field("ids").type == pa.binary(24)
    assert table.schema.field("label").type == pa.int16()
    cell = table["ids"][0].as_py()
    for group in range(2):
        for y in range(2):
            for x in range(3):
                at = 2 * ((group * 2 + y) * 3 + x)
                assert int.from_bytes(cell[at : at + 2], "little") == ids[group, y, x]
    told = json.loads(table.schema.metadata[b"wetok"])
    assert told["grid"] == [2, 3] and told["bytes_per_id"] == 2 and told["size"] == [8, 12]
    assert (told["model"], told["fingerprint"], told["group_bits"]) == ("toy", "0" * 16, 12)
    (row,) = table.drop_columns("ids").to_pylist()
    assert row == {
        **{"key": "k", "view": "center", "height": 8, "width": 12},
        **{"label": 3, "caption": "c"},
    }


def test_webdataset_as_others_read_it(tmp_path: Path) -> None:
    webdataset: Any = pytest.importorskip("webdataset")
    own = about(bits=12)
    made = records(own, 5)
    (tmp_path / "x.tar").write_bytes(to_webdataset(made, own, first=40))
    loaded = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False).decode())
    assert [one["__key__"] for one in loaded] == [f"{40 + n:09d}" for n in range(5)]
    for one, record in zip(loaded, made, strict=True):
        assert np.array_equal(one["npy"], record.ids) and one["npy"].dtype == own.dtype
        assert (one["json"]["key"], one["json"]["label"]) == (record.key, record.extras["label"])
        assert one["json"]["fingerprint"] == own.fingerprint


def test_the_order_goes_through_all_and_on_from_anywhere(tmp_path: Path) -> None:
    own = about()
    made = [records(own, count, count) for count in (40, 1, 70, 33)]
    paths = [shard(tmp_path / f"{n}.parquet", one, own) for n, one in enumerate(made)]
    read = TokenShards(tmp_path, memory=1, lanes=3)
    assert read.paths == paths and len(read) == 144
    flat = [record for one in made for record in one]
    stream = list(islice(read.order(5), 300))
    assert sorted(stream[:144]) == list(range(144)) != stream[:144]
    assert sorted(stream[144:288]) == list(range(144)) and stream[:144] != stream[144:288]
    for start in (0, 1, 77, 143, 144, 200):
        assert list(islice(read.order(5, start), 20)) == stream[start : start + 20]
    assert all(same(read[number], flat[number]) for number in stream[:150])
    assert same(read[-1], flat[-1])
    with pytest.raises(IndexError):
        read[144]


def test_what_does_not_fit_is_refused() -> None:
    own = about(bits=4)
    (good,) = records(own, 1)
    for bad, reason in (
        (good._replace(ids=good.ids[:1]), "shape"),
        (good._replace(ids=np.full_like(good.ids, 16)), "no integers in"),
        (good._replace(ids=good.ids.astype(np.float32)), "no integers in"),
        (good._replace(size=(13, 20)), "shape"),
        (good._replace(extras={"label": "three", "caption": None}), "can't be written"),
        (good._replace(extras={"label": 2**15, "caption": None}), "can't be written"),
    ):
        with pytest.raises(WetokError, match=reason):
            to_parquet([bad], own, EXTRAS)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_truncated_anywhere_is_told(tmp_path: Path, kind: str) -> None:
    own = about()
    made = records(own, 9)
    whole = to_parquet(made, own, EXTRAS) if kind == "parquet" else to_webdataset(made, own)
    path = tmp_path / f"x.{kind}"
    end = len(whole) if kind == "parquet" else len(whole.rstrip(b"\0"))  # the rest is padding
    for length in [0, 1, 100, *range(300, end, end // 25), end - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(WetokError) as told:
            for number in range(9):
                _ = (
                    TokenShards(path)[number]
                    if kind == "parquet"
                    else [*read_webdataset(path, own)]
                )
        assert "\n" not in str(told.value) and str(path) in str(told.value)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_altered_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """A clean error, or records of the right form (a tar's bytes have no checksum)."""
    own = about()
    made = records(own, 5)
    whole = bytearray(
        to_parquet(made, own, EXTRAS) if kind == "parquet" else to_webdataset(made, own)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("altered") / f"x.{kind}"
    path.write_bytes(whole)
    try:
        if kind == "parquet":
            shards = TokenShards(path)
            found = [shards[number] for number in range(min(5, len(shards)))]
        else:
            found = list(read_webdataset(path, own))
    except WetokError as error:
        assert "\n" not in str(error)
        return
    for record in found:
        assert record.ids.shape == (2, *own.grid_of(record.size))


def test_shards_of_two_sets_are_not_mixed(tmp_path: Path) -> None:
    one = shard(tmp_path / "0.parquet", records(about(), 2), about())
    two = shard(tmp_path / "1.parquet", records(about(6), 2), about(6))
    with pytest.raises(WetokError, match="of another set"):
        TokenShards([one, two])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p.write_bytes(b"PAR1 no"), "not Parquet"),
        (lambda p: pq.write_table(pa.table({"a": [1]}), p), "holds no tokens"),
        (
            lambda p: pq.write_table(
                pa.table(
                    {n: ["x"] for n in ("key", "view", "height", "width", "ids")}
                ).replace_schema_metadata({"wetok": "{"}),
                p,
            ),
            "damaged metadata",
        ),
    ],
)
def test_other_files_are_told(tmp_path: Path, make: Any, reason: str) -> None:
    make(tmp_path / "x.parquet")
    with pytest.raises(WetokError, match=reason):
        TokenShards(tmp_path / "x.parquet")
    with pytest.raises(WetokError, match="holds no shards"):
        TokenShards(tmp_path.joinpath("x.parquet").parent / "..").paths  # noqa: B018
    with pytest.raises(WetokError, match="does not exist"):
        TokenShards(tmp_path / "none")
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        tar.add(tmp_path / "x.parquet", "x.parquet")
    with pytest.raises(WetokError, match="holds no tokens"):
        list(read_webdataset(tmp_path / "y.tar"))
