"""Runs that train from shards, Parquet and mixtures, broken members included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.streams import encoded
from tests.data.test_shards import samples, write_tar
from tests.train.test_run import Watcher, assert_same, interrupt_at, lines, train
from tests.train.tiny import Recipe
from wetok.train.loop import Run

CROPS: dict[str, Any] = {"data.crop": 8, "data.scale": None}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Ten whole images, three broken members, and a last image that the end of the file cuts."""
    members = samples(range(11))
    members["003.webp"] = b"no image"
    members["005.webp"] = b""
    members["006.png"] = members["006.png"][:60]  # an image that was cut before it was packed
    path = write_tar(tmp_path / "shard.tar", members)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(members["010.png"]) + 20])
    return path


def test_a_damaged_shard_trains_through(recipe: Recipe, shard: Path, tmp_path: Path) -> None:
    config = recipe({**CROPS, "data.train": str(shard), "run.steps": 20})
    run = train(config, tmp_path / "run", watcher := Watcher())
    # Of eleven images the last is cut off by the end of the file and never counted.
    assert len(run.source) == 10
    assert f"training on 10 images from {shard}" in watcher.events[0]
    skipped = [event for event in watcher.events if event.startswith("skipped: ")]
    assert len(skipped) == 4, skipped
    for name in ("003.webp", "005.webp", "006.png"):
        assert sum(f"{shard}: {name}" in event for event in skipped) == 1
    assert sum("shard.tar" in e and "cut off" in e for e in skipped) == 1
    logged = [record["skipped_image"] for record in lines(tmp_path / "run") if "loss" not in record]
    assert {f"skipped: {reason}" for reason in logged} == set(skipped)
    assert run.state.step == 20 and run.state.samples == 40


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extras dev and scale)")
    import pyarrow.parquet as pq

    cells = [{"bytes": encoded(number), "path": None} for number in range(9)]
    cells[4]["bytes"] = b"no image"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"picture": pa.array(cells, kind)}), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_parquet_trains_through(recipe: Recipe, parquet: Path, tmp_path: Path) -> None:
    source = {"path": str(parquet), "column": "picture"}
    config = recipe({**CROPS, "data.train": source, "run.steps": 12})
    run = train(config, tmp_path / "run", watcher := Watcher())
    assert len(run.source) == 9
    (skipped,) = [event for event in watcher.events if event.startswith("skipped: ")]
    assert f"{parquet}: row 4" in skipped


def test_a_mixture_is_resumed_to_the_bit(
    recipe: Recipe, shard: Path, parquet: Path, pictures: Path, tmp_path: Path
) -> None:
    mixture = [
        {"path": str(shard), "weight": 1},
        {"path": str(parquet), "column": "picture", "weight": 1},
        {"path": str(pictures), "weight": 2},
    ]
    config = recipe({**CROPS, "data.train": mixture, "run.steps": 9, "data.workers": 2})
    whole = train(config, tmp_path / "whole", watcher := Watcher())
    assert len(whole.source) == 10 + 9 + 8
    assert "from 3 sources" in watcher.events[0]
    train(config, tmp_path / "parts", interrupt_at(4))
    parts = Run(config, tmp_path / "parts", Watcher(), resume=True)
    assert parts.state.step == 4 and parts.train()
    assert_same(parts, whole)
