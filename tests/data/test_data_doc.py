"""docs/data.md says what is there: its snippet runs, its numbers and options are the code's."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from tests.data.streams import encoded, write_folder
from tests.data.test_shards import samples, write_tar
from tests.documents import run
from wetok.data import opening, order, tarindex
from wetok.data.parquet import ParquetRows
from wetok.data.shards import TarShards

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_snippet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WETOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", range(4))
    (tmp_path / "photos" / "2.png").write_bytes(encoded(2)[:90])
    (tmp_path / "shards").mkdir()
    for index in range(3):
        write_tar(tmp_path / "shards" / f"train-{index:03d}.tar", samples(range(3)))
    names = run("docs/data.md")
    assert names["images"].shape == (16, 3, 256, 256)
    assert names["position"] == {"samples": 16}


def test_options() -> None:
    told = {
        name
        for row in re.findall(r"^\|.*\|(.*)\|$", TEXT, re.M)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert told == {field.name for field in fields(opening.SourceSpec)} - {"path"}


def test_numbers() -> None:
    def default(kind: type, name: str) -> int:
        value: int = inspect.signature(kind).parameters[name].default
        return value

    assert tarindex.ENTRY.itemsize == 14 and "(14 bytes an\nimage in memory)" in TEXT
    assert default(TarShards, "run") == 1024 and "runs of up to 1,024 neighbours" in TEXT
    assert default(TarShards, "lanes") == 64 and "64 runs at a time" in TEXT
    assert default(TarShards, "whole") == 2**20 and "up to a million images in shards" in TEXT
    assert default(ParquetRows, "memory") == 2**30 and "and a gigabyte of these is kept" in TEXT
    assert default(ParquetRows, "lanes") == 16 and "its gigabyte (16\nat most)" in TEXT
    assert order._WINDOW == 256 and "every 256 samples" in TEXT
