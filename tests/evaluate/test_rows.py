"""The table of single images' scores: reads as a list, stays small, merges in order."""

from __future__ import annotations

import hashlib
import math
import sys

import pytest

from wetok.config import WetokError
from wetok.evaluate.rows import Rows


def rows(places: range, **extra: float) -> Rows:
    table = Rows()
    for place in places:
        values = {"width": 10 + place, "psnr": 20 + place / 3, "bits": None, **extra}
        table.append(place, f"{place}.png", bytes([place % 256]), values)
    return table


def test_it_reads_as_a_list_of_dictionaries() -> None:
    table = rows(range(3))
    assert len(table) == 3 and bool(table)
    assert table[-1] == {"image": "2.png", "width": 12, "psnr": 20 + 2 / 3, "bits": None}
    assert isinstance(table[0]["width"], int)
    assert [row["image"] for row in table] == ["0.png", "1.png", "2.png"]
    assert table[1:] == [table[1], table[2]]
    with pytest.raises(IndexError):
        table[3]


def test_means() -> None:
    table = rows(range(5))
    assert table.mean("psnr") == math.fsum(20 + n / 3 for n in range(5)) / 5
    assert table.sum("width") == 60 and table.mean("bits") is None and table.sum("bits") is None
    assert Rows().list_hash() == hashlib.sha256().hexdigest()[:16]


def test_merging_brings_back_the_order_and_every_sum_to_the_bit() -> None:
    whole = rows(range(31))
    parts = [rows(range(n, 31, 3)) for n in (2, 0, 1)]
    merged = Rows.merged([*parts, Rows()])
    assert list(merged) == list(whole) and merged.list_hash() == whole.list_hash()
    assert merged.mean("psnr") == whole.mean("psnr")


def test_the_hash_is_of_names_and_contents() -> None:
    one, renamed, changed = Rows(), Rows(), Rows()
    one.append(0, "a.png", b"1", {})
    renamed.append(0, "b.png", b"1", {})
    changed.append(0, "a.png", b"2", {})
    assert len({table.list_hash() for table in (one, renamed, changed)}) == 3
    assert one.list_hash() == hashlib.sha256(b"a.png\x0031\n").hexdigest()[:16]


def test_rows_are_small() -> None:
    table = rows(range(2000), ssim=0.5, lpips=0.25)
    held = sum(sys.getsizeof(column) for column in table.columns.values())
    held += sum(sys.getsizeof(one) for one in (*table.names, *table.hashes))
    assert held / len(table) < 250


def test_other_columns_are_refused() -> None:
    table = rows(range(1))
    with pytest.raises(WetokError, match="other scores"):
        table.append(1, "b.png", b"", {"psnr": 1.0})
