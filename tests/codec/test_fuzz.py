"""Broken files: an error of ours or the exact tokens, nothing else."""

from __future__ import annotations

import random
import struct
import zlib

import numpy as np
import pytest

from wetok.codec.file import decode, encode
from wetok.codec.header import Header
from wetok.codec.packing import id_dtype
from wetok.config import WetokError

CASES = 5000  # of each of the ten kinds


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
        made.append(encode(header, ids, "packed"))
    return made


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
            header, ids = decode(bytes(data))
        except WetokError as error:
            assert "\n" not in str(error)
            continue
        # Every content has one file: what was accepted is read exactly, or nothing had changed.
        assert encode(header, ids, "packed") == data
        assert seal or data == original
        accepted += 1
    # Bits of ids, sizes or the name can change into other valid ones; most changes can't.
    assert accepted < CASES * (0.75 if seal else 0.05)
