"""The `.wetok` file against its specification, and against lies."""

from __future__ import annotations

import binascii
import os
import re
import stat
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetok.codec import header as wetok_header
from wetok.codec.file import decode, encode, read, read_header, write
from wetok.codec.header import Header
from wetok.codec.packing import id_dtype
from wetok.config import WetokError

HEADER = Header("tiny", "0123456789abcdef", 2, 3, 1, (3, 5), (2, 3))
IDS = np.array([[[[1, 2, 3], [4, 5, 6]], [[7, 0, 1], [2, 3, 4]]]], np.uint8)


def chunk(tag: bytes, payload: bytes) -> bytes:
    return tag + struct.pack("<I", len(payload)) + payload


def sealed(body: bytes) -> bytes:
    """`body` with the right checksum behind it."""
    body += b"CSUM" + struct.pack("<I", 4)
    return body + struct.pack("<I", binascii.crc32(body))


def model_chunk(
    fingerprint: str = "0123456789abcdef", groups: int = 2, bits: int = 3, name: bytes = b"tiny"
) -> bytes:
    payload = bytes.fromhex(fingerprint) + struct.pack("<HBB", groups, bits, len(name)) + name
    return chunk(b"MODL", payload)


def images_chunk(
    count: int = 1,
    size: tuple[int, int] = (3, 5),
    latent: tuple[int, int] = (2, 3),
    coding: int = 0,
    data: bytes = bytes.fromhex("d1581fd108"),
) -> bytes:
    return chunk(b"IMGS", struct.pack("<BIIIII", coding, count, *size, *latent) + data)


START = b"\x89WTK\x01\x00"


def by_the_book(data: bytes) -> tuple[dict[str, object], list[int]]:
    """A reader written from docs/formats.md alone, for files without optional chunks."""
    assert data[:6] == b"\x89WTK\x01\x00"
    assert data[-12:-4] == b"CSUM\x04\x00\x00\x00"
    assert int.from_bytes(data[-4:], "little") == binascii.crc32(data[:-4])
    assert data[6:10] == b"MODL"
    length = int.from_bytes(data[10:14], "little")
    model, rest = data[14 : 14 + length], data[14 + length : -12]
    assert model[11] == length - 12
    assert rest[:4] == b"IMGS"
    assert int.from_bytes(rest[4:8], "little") == len(rest) - 8
    coding, *sizes = struct.unpack("<B5I", rest[8:29])
    groups, bits = int.from_bytes(model[8:10], "little"), model[10]
    count = sizes[0] * groups * sizes[3] * sizes[4]
    assert len(rest) - 29 == (count * bits + 7) // 8
    number = int.from_bytes(rest[29:], "little")
    ids = [(number >> (index * bits)) % 2**bits for index in range(count)]
    assert number < 2 ** (count * bits)
    told = {
        "fingerprint": model[:8].hex(),
        "name": model[12:].decode(),
        "groups": groups,
        "group_bits": bits,
        "coding": coding,
        "images": sizes[0],
        "size": (sizes[1], sizes[2]),
        "latent": (sizes[3], sizes[4]),
    }
    return told, ids


@st.composite
def files(draw: st.DrawFn) -> tuple[Header, np.ndarray]:
    bits, groups, images = (
        draw(st.integers(1, 62)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 3)),
    )
    factor = draw(st.integers(1, 32))
    size = (draw(st.integers(1, 150)), draw(st.integers(1, 150)))
    latent = (-(-size[0] // factor), -(-size[1] // factor))
    latent = (min(latent[0], 6), min(latent[1], 6))
    size = (min(size[0], factor * latent[0]), min(size[1], factor * latent[1]))
    name = draw(st.text(min_size=1, max_size=20).filter(str.isprintable))
    fingerprint = draw(st.text("0123456789abcdef", min_size=16, max_size=16))
    header = Header(name, fingerprint, groups, bits, images, size, latent)
    seed = draw(st.integers(0, 2**32))
    ids = np.random.default_rng(seed).integers(0, 2**bits, header.shape).astype(id_dtype(bits))
    return header, ids


@settings(deadline=None)
@given(files())
def test_round_trip_and_specification(case: tuple[Header, np.ndarray]) -> None:
    header, ids = case
    data = encode(header, ids, "packed")
    told, numbers = by_the_book(data)
    assert told == {name: vars(header)[name] for name in told}
    assert numbers == ids.reshape(-1).tolist()
    for coding in ("packed", "auto", "entropy"):
        again, back = decode(encode(header, ids, coding))
        assert replace(again, coding=0) == header
        assert back.dtype == ids.dtype
        assert np.array_equal(back, ids)


def test_the_example_in_the_docs(repo: Path) -> None:
    text = (repo / "docs" / "formats.md").read_text(encoding="utf-8")
    block = re.search(r"```hex\n(.*?)```", text, re.DOTALL)
    assert block is not None
    data = bytes.fromhex("".join(line.split("#")[0] for line in block[1].splitlines()))
    assert encode(HEADER, IDS) == data
    header, ids = decode(data)
    assert header == HEADER
    assert np.array_equal(ids, IDS)
    # The parts that the tests below are built from are the same bytes.
    assert sealed(START + model_chunk() + images_chunk()) == data


def test_files_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.wetok"
    write(path, HEADER, IDS)
    assert path.read_bytes() == encode(HEADER, IDS)
    header, ids = read(path)
    assert header == HEADER
    assert np.array_equal(ids, IDS)
    assert read_header(path) == HEADER
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wetok"
    path.write_bytes(b"old")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WetokError, match=r"a\.wetok: can't be written: No space left"):
        write(path, HEADER, IDS)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.wetok"]


def test_writing_goes_through_a_link_and_not_over_a_device(tmp_path: Path) -> None:
    (tmp_path / "real.wetok").write_bytes(b"old")
    (tmp_path / "link.wetok").symlink_to("real.wetok")
    write(tmp_path / "link.wetok", HEADER, IDS)
    assert (tmp_path / "link.wetok").is_symlink()
    assert (tmp_path / "real.wetok").read_bytes() == encode(HEADER, IDS)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(WetokError, match="not a regular file"):
            write(path, HEADER, IDS)
    with pytest.raises(WetokError, match="No such file or directory"):
        write(tmp_path / "absent" / "a.wetok", HEADER, IDS)


def test_unreadable_paths(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "absent.wetok", "No such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "nul\0", "null"),
    ):
        for reader in (read, read_header):
            with pytest.raises(WetokError, match=said):
                reader(path)


def test_unknown_chunks_are_skipped_or_refused() -> None:
    note = chunk(b"note", b"anything" * 9)
    data = sealed(START + note + model_chunk() + note + images_chunk() + chunk(b"aBCD", b""))
    header, ids = decode(data)
    assert header == HEADER
    assert np.array_equal(ids, IDS)
    with pytest.raises(WetokError, match="NOTE.*update wetok"):
        decode(sealed(START + chunk(b"NOTE", b"") + model_chunk() + images_chunk()))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (START, "one chunk MODL and then one or more chunks IMGS"),
        (START + model_chunk(), "one chunk MODL"),
        (START + images_chunk() + model_chunk(), "one chunk MODL"),
        (START + model_chunk() * 2 + images_chunk(), "one chunk MODL"),
        (START + model_chunk() + images_chunk() + b"\0" * 8, "not four letters"),
        (START + model_chunk() + images_chunk() + b"abc", "truncated"),
        (START + model_chunk() + b"IMGS\xff\xff\xff\xff", "claims 4294967295 bytes, 0 are left"),
        (START + chunk(b"MODL", b"short") + images_chunk(), "truncated"),
        (START + model_chunk() + chunk(b"IMGS", b"short"), "truncated"),
        (START + chunk(b"MODL", model_chunk()[8:] + b"x") + images_chunk(), "name says otherwise"),
        (START + model_chunk(name=b"\xff\xfe") + images_chunk(), "not UTF-8"),
        (START + model_chunk(name=b"") + images_chunk(), "model name ''"),
        (START + model_chunk(name=b"a\nb") + images_chunk(), r"model name 'a\\nb'"),
        (START + model_chunk(groups=0) + images_chunk(), "groups=0"),
        (START + model_chunk(bits=0) + images_chunk(), "group_bits=0"),
        (START + model_chunk(bits=63) + images_chunk(), "group_bits=63"),
        (START + model_chunk() + images_chunk(count=0), "image count 0"),
        (START + model_chunk() + images_chunk(size=(0, 5)), "size 0"),
        (START + model_chunk() + images_chunk(latent=(2, 0)), "latent size 0"),
        (START + model_chunk() + images_chunk(size=(3, 50)), "do not go together"),
        (START + model_chunk() + images_chunk(coding=3), "coding 3"),
        (START + model_chunk() + images_chunk(data=b""), "0 bytes of ids, its sizes ask for 5"),
        (START + model_chunk() + images_chunk(data=bytes(6)), "6 bytes of ids"),
        (START + model_chunk() + images_chunk(count=2**32 - 1), "5 bytes of ids, its sizes ask"),
        (START + model_chunk(groups=2**16 - 1) + images_chunk(), "5 bytes of ids, its sizes ask"),
        (START + model_chunk() + images_chunk(data=b"\xff" * 5), "not zero"),
        (b"\x89WTK\x02\x00" + model_chunk() + images_chunk(), "version 2.*update wetok"),
        (b"\x89WTK\x00\x00" + model_chunk() + images_chunk(), "version 0"),
        (b"\x89WTK\x01\x01" + model_chunk() + images_chunk(), "flags 1"),
        (b"\x89PNG\x01\x00" + model_chunk() + images_chunk(), "not a .wetok file"),
    ],
)
def test_lies_with_a_right_checksum(body: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "lie.wetok"
    path.write_bytes(sealed(body))
    with pytest.raises(WetokError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_truncated_and_altered_files_are_told_apart() -> None:
    data = encode(HEADER, IDS)
    for length in range(len(data)):
        with pytest.raises(WetokError, match="truncated"):
            decode(data[:length])
    with pytest.raises(WetokError, match="followed by other bytes"):
        decode(data + b"\0")
    altered = bytearray(data)
    altered[60] ^= 4
    with pytest.raises(WetokError, match=r"cat\.wetok: altered"):
        decode(bytes(altered), "cat.wetok")


def test_memory_is_bounded_by_the_real_size(tmp_path: Path) -> None:
    side = 2**16
    body = START + model_chunk(bits=62) + images_chunk(2**32 - 1, (side, side), (side, side))
    tracemalloc.start()
    with pytest.raises(WetokError, match="sizes ask for"):
        decode(sealed(body))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    # A large file that only begins like ours is refused without being held in memory.
    path = tmp_path / "sparse.wetok"
    with open(path, "wb") as stream:
        stream.write(START)
        stream.truncate(1 << 28)
    tracemalloc.reset_peak()
    with pytest.raises(WetokError, match="truncated"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 3 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("factor", [1, 2, 3, 8, 16, 33, 1024])
def test_sizes_go_together_exactly_when_a_factor_exists(factor: int) -> None:
    for height in (1, 2, 7, 8, 9, 31, 1023, 5000):
        for width in (1, 3, 16, 17, 2049):
            latent = (-(-height // factor), -(-width // factor))
            assert Header("m", "0" * 16, 1, 1, 1, (height, width), latent).latent == latent


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_size_rule_against_trying_every_factor(
    size: tuple[int, int], latent: tuple[int, int]
) -> None:
    fits = any(
        (-(-size[0] // factor), -(-size[1] // factor)) == latent for factor in range(1, 1025)
    )
    assert wetok_header._some_factor(size, latent) == fits


def test_writing_refuses_what_does_not_fit_the_header() -> None:
    with pytest.raises(WetokError, match=r"shape \(1, 2, 3, 2\)"):
        encode(HEADER, IDS.transpose(0, 1, 3, 2))
    with pytest.raises(WetokError, match=r"outside \[0, 2\^3\)"):
        encode(HEADER, IDS + 3)
    for change in (
        {"fingerprint": "0123456789ABCDEF"},
        {"fingerprint": "0123"},
        {"name": "n" * 256},
        {"name": "ü" * 128},
        {"groups": 2**16},
        {"images": 2**32},
    ):
        with pytest.raises(WetokError):
            Header(**{**vars(HEADER), **change})
