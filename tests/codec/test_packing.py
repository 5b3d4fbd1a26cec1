"""Packing against the definition in docs/formats.md: one long little-endian number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetok.codec.packing import MAX_BITS, id_dtype, pack, packed_size, unpack
from wetok.config import WetokError


def reference(ids: list[int], bits: int) -> bytes:
    number = sum(value << (index * bits) for index, value in enumerate(ids))
    return number.to_bytes((len(ids) * bits + 7) // 8, "little")


@st.composite
def id_lists(draw: st.DrawFn) -> tuple[list[int], int]:
    bits = draw(st.integers(1, MAX_BITS))
    return draw(st.lists(st.integers(0, 2**bits - 1), max_size=70)), bits


@settings(deadline=None)
@given(id_lists())
def test_pack_is_the_long_number(case: tuple[list[int], int]) -> None:
    ids, bits = case
    data = pack(np.array(ids, np.int64), bits)
    assert data == reference(ids, bits)
    back = unpack(data, len(ids), bits)
    assert back.dtype == id_dtype(bits)
    assert back.tolist() == ids


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
def test_extreme_ids_survive_across_blocks(bits: int) -> None:
    # More than one block of 8 x 8192 ids, and a ragged end.
    count = 8 * 8192 + 13
    ids = np.random.default_rng(bits).integers(0, 2**bits, count).astype(id_dtype(bits))
    ids[:2], ids[-2:] = 0, 2**bits - 1
    ids[8 * 8192 - 1 : 8 * 8192 + 1] = 2**bits - 1
    data = pack(ids, bits)
    assert len(data) == packed_size(count, bits)
    assert np.array_equal(unpack(data, count, bits), ids)
    assert data[: 8 * bits] == reference(ids[:64].tolist(), bits)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64, ">i4"])
def test_any_integer_type_and_layout_packs_alike(dtype: str) -> None:
    ids = np.arange(120).reshape(2, 3, 4, 5).astype(dtype)
    want = reference(list(range(120)), 7)
    assert pack(ids, 7) == want
    assert pack(np.asfortranarray(ids), 7) == want
    assert pack(np.repeat(ids, 2, axis=3)[..., ::2], 7) == want


def test_dtype_is_the_smallest_that_holds_the_bits() -> None:
    for bits in range(1, MAX_BITS + 1):
        most = 2**bits - 1
        fitting = [t for t in (np.uint8, np.int16, np.int32, np.int64) if np.iinfo(t).max >= most]
        assert id_dtype(bits) == fitting[0]


@pytest.mark.parametrize(
    ("ids", "bits", "said"),
    [
        (np.array([0, 8]), 3, r"0\.\.8, outside \[0, 2\^3\)"),
        (np.array([-1, 3]), 3, r"-1\.\.3"),
        (np.array([2**63], np.uint64), 62, "outside"),
        (np.array([1.0]), 3, "float64"),
        (np.array([True]), 3, "bool"),
        (np.array([0]), 0, "group_bits=0"),
        (np.array([0]), 63, "group_bits=63"),
    ],
)
def test_bad_ids_are_refused(ids: np.ndarray, bits: int, said: str) -> None:
    with pytest.raises(WetokError, match=said):
        pack(ids, bits)


def test_bad_payloads_are_refused() -> None:
    data = pack(np.arange(5), 3)  # 15 bits in 2 bytes
    for wrong in (data[:1], data + b"\0", b""):
        with pytest.raises(WetokError, match="2 bytes"):
            unpack(wrong, 5, 3)
    with pytest.raises(WetokError, match="not zero"):
        unpack(bytes([data[0], data[1] | 0x80]), 5, 3)
