"""Broken files: an error of ours or the exact tokens, nothing else.

`WETOK_FUZZ_CASES=20000 pytest tests/codec/test_fuzz.py` tries 200,000 files.
"""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from functools import cache

import numpy as np
import pytest

from tests.codec.test_entropy_coding import header_for, smooth_ids, some_tables
from wetok.codec.file import Coding, Part, pieces
from wetok.codec.header import PACKED, Header
from wetok.codec.packing import id_dtype
from wetok.codec.reader import TokenFile
from wetok.codec.tables import CodingTables
from wetok.config import WetokError

CASES = int(os.environ.get("WETOK_FUZZ_CASES", "400"))  # of each of the ten kinds


@cache
def tables() -> CodingTables:
    return some_tables(2, 3, 1, 2)


@cache
def originals() -> list[bytes]:
    made = []
    for seed, (images, groups, bits, size, latent) in enumerate(
        [
            (1, 1, 1, (1, 1), (1, 1)),
            (1, 4, 8, (31, 40), (4, 5)),
            (3, 2, 3, (17, 5), (9, 3)),
            (2, 1, 18, (16, 48), (1, 3)),
            (1, 3, 62, (7, 7), (2, 2)),
        ]
    ):
        header = Header(f"model-{seed}", f"{seed:016x}", groups, bits, images, size, latent)
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, 2**bits, header.shape).astype(id_dtype(bits))
        made.append(written([Part(header, ids)], "packed"))
    for seed, (shape, bits) in enumerate(
        [((1, 2, 6, 7), 3), ((3, 2, 5, 2), 3), ((1, 1, 3, 130), 2), ((1, 2, 1, 1), 3)]
    ):
        ids = smooth_ids(shape, bits, seed)
        made.append(written([Part(header_for(ids, bits), ids)], "entropy"))
    several = []
    for shape in ((2, 2, 4, 4), (1, 2, 3, 5)):
        ids = smooth_ids(shape, 3)
        margins = np.zeros((shape[0], 6, *shape[2:]), np.uint8)
        several.append(Part(header_for(ids, 3), ids, margins))
    made.append(written(several, "packed"))
    made.append(written(several, "entropy"))
    return made


def written(parts: list[Part], coding: Coding) -> bytes:
    return b"".join(pieces(parts, coding, tables(), {"made": "here"}))


Content = list[tuple[Header, np.ndarray]]


def content(data: bytes, verify: bool = True) -> Content:
    """All that a file holds."""
    file = TokenFile(io.BytesIO(data), len(data), verify=verify)
    for part in range(len(file.headers)):
        file.margins(part)
    return [(header, file.read(part, tables())) for part, header in enumerate(file.headers)]


def same(one: Content, other: Content) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
    )


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : rng.choice([len(data), start + rng.randrange(1, 9)])]


def insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice([rng.randbytes(rng.randrange(1, 40)), bytes(data[:at])])


def scribble(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    number = rng.choice([0, 1, 2**31, 2**32 - 1, rng.getrandbits(32)])
    data[at : at + 4] = struct.pack("<I", number)


def noise(data: bytearray, rng: random.Random) -> None:
    data[rng.choice([0, 4, 6]) :] = rng.randbytes(rng.randrange(200))


@pytest.mark.parametrize("seal", [False, True], ids=["as-is", "checksum-mended"])
@pytest.mark.parametrize("change", [flip, cut, insert, scribble, noise])
def test_changed_files(change, seal: bool) -> None:
    """With a mended checksum the change gets past the CRC, to the checks behind it."""
    rng = random.Random(f"{change.__name__} {seal}")
    files = originals()
    accepted = 0
    for _ in range(CASES):
        original = rng.choice(files)
        data = bytearray(original)
        change(data, rng)
        if seal:
            data[-12:] = b"CSUM" + struct.pack("<I", 4)
            data += struct.pack("<I", zlib.crc32(data))
        try:
            found = content(bytes(data))
        except WetokError as error:
            assert "\n" not in str(error)
            continue
        assert seal or data == original
        accepted += 1
        # What was accepted are ids that a file can hold: written again, they are read again.
        again = [Part(header, ids) for header, ids in found]
        coding: Coding = "packed" if found[0][0].coding == PACKED else "entropy"
        assert same(content(written(again, coding)), found)
    # Bits of ids, sizes or the name can change into other valid ones; most changes can't.
    assert accepted < CASES * (0.75 if seal else 0.05)


@pytest.mark.parametrize("change", [flip, scribble])
def test_parts_of_changed_files(change) -> None:
    """Read without the whole file's checksum, what is accepted is what was written."""
    rng = random.Random(change.__name__)
    for _ in range(CASES):
        original = rng.choice(originals())
        data = bytearray(original)
        change(data, rng)
        try:
            found = content(bytes(data), verify=False)
        except WetokError as error:
            assert "\n" not in str(error)
            continue
        assert same(found, content(original))
