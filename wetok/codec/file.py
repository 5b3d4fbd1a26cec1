"""The `.wetok` file, version 1: bytes <-> header and ids. `docs/formats.md` is its specification.

    magic 89 57 54 4B | version u8 | flags u8
    chunk MODL: whose ids these are      tag [4], length u32, payload
    chunk IMGS: sizes and the ids
    chunk CSUM: CRC-32 of all before it  (last; nothing follows)

All numbers are little-endian. A reader refuses an unknown chunk whose tag starts with a capital and
skips one that starts with a small letter, so that later versions can add what old ones may ignore.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from wetok.checkpoint import check_name, written_beside
from wetok.codec.packing import MAX_BITS, pack, packed_size, unpack
from wetok.config import WetokError

MAGIC = b"\x89WTK"
VERSION = 1
PACKED = 0
"""Payload coding 0: fixed-length packing (`codec.packing`)."""
MAX_FACTOR = 1024
"""Largest downsampling factor that a true size may imply."""

_PREFIX = struct.Struct("<4sBB")  # magic, version, flags
_CHUNK = struct.Struct("<4sI")  # tag, length of the payload
_MODEL = struct.Struct("<8sHBB")  # fingerprint, groups, bits per group, length of the name
_IMAGES = struct.Struct("<BIIIII")  # coding, images, height, width, latent height, latent width
_CHECKSUM = struct.Struct("<4sII")  # the whole CSUM chunk: tag, 4, CRC-32
_LARGEST = 2**32 - 1
_READ = 1 << 20


@dataclass(frozen=True)
class Header:
    """All that a file says besides the ids.

    Raises:
        WetokError: on construction, for a value that no file can hold or that contradicts another.
    """

    name: str
    """The model's name; at most 255 bytes of UTF-8."""
    fingerprint: str
    """The model's fingerprint: 16 hex digits (`wetok.checkpoint.fingerprint`)."""
    groups: int
    group_bits: int
    images: int
    size: tuple[int, int]
    """True height and width in pixels, the same for all images of the file."""
    latent: tuple[int, int]
    """Height and width in positions."""
    coding: int = PACKED

    def __post_init__(self) -> None:
        check_name(self.name)
        if not re.fullmatch("[0-9a-f]{16}", self.fingerprint):
            raise WetokError(
                f"fingerprint {self.fingerprint!r} must be 16 hex digits in small letters"
            )
        if not 1 <= self.group_bits <= MAX_BITS:
            raise WetokError(f"group_bits={self.group_bits} must lie in 1..{MAX_BITS}")
        if not 1 <= self.groups <= 2**16 - 1:
            raise WetokError(f"groups={self.groups} must lie in 1..{2**16 - 1}")
        for what, value in (
            ("image count", self.images),
            *(("size", side) for side in self.size),
            *(("latent size", side) for side in self.latent),
        ):
            if not 1 <= value <= _LARGEST:
                raise WetokError(f"{what} {value} must lie in 1..{_LARGEST}")
        if not _some_factor(self.size, self.latent):
            raise WetokError(
                f"size {self.size[0]}x{self.size[1]} and {self.latent[0]}x{self.latent[1]} "
                f"positions do not go together: ceil(size / factor) for one factor up to "
                f"{MAX_FACTOR} gives the positions"
            )
        if self.coding != PACKED:
            raise WetokError(f"coding {self.coding} of the ids is unknown; a newer wetok may know")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the ids, [images, groups, latent height, latent width]."""
        return (self.images, self.groups, *self.latent)

    @property
    def payload_size(self) -> int:
        """Bytes of the packed ids."""
        images, groups, height, width = self.shape
        return packed_size(images * groups * height * width, self.group_bits)


def encode(header: Header, ids: NDArray[np.integer]) -> bytes:
    """The bytes of a file that holds `ids`, of shape `header.shape`.

    The same header and ids always give the same bytes.

    Raises:
        WetokError: ids of another shape, not integers, or not in [0, 2^d').
    """
    return b"".join(_pieces(header, ids))


def decode(data: bytes, source: str = "data") -> tuple[Header, NDArray[np.integer]]:
    """Header and ids [B,g,h,w] of the file whose bytes are `data`; errors speak of `source`.

    Raises:
        WetokError: not a `.wetok` file, truncated, altered, of a newer version, or inconsistent.
    """
    with _errors_name(source):
        return _read_all(io.BytesIO(data), len(data))


def write(path: str | Path, header: Header, ids: NDArray[np.integer]) -> None:
    """Writes the file complete or not at all; an existing one is replaced.

    Raises:
        WetokError: as `encode`, or the file can't be written.
    """
    pieces = list(_pieces(header, ids))
    with written_beside(path) as beside, open(beside, "wb") as stream:
        stream.writelines(pieces)


def read(path: str | Path) -> tuple[Header, NDArray[np.integer]]:
    """Header and ids [B,g,h,w], the ids in the smallest type that holds them.

    Memory is bounded by the file's real size: nothing is allocated for what a header merely claims.

    Raises:
        WetokError: as `decode`, or the file can't be read.
    """
    with _opened(path) as (stream, size):
        return _read_all(stream, size)


def read_header(path: str | Path) -> Header:
    """The header alone; the checksum is verified, the ids are not unpacked.

    Raises:
        WetokError: as `read`.
    """
    with _opened(path) as (stream, size):
        return _read_header(stream, size)[0]


def _pieces(header: Header, ids: NDArray[np.integer]) -> Iterator[bytes]:
    if ids.shape != header.shape:
        raise WetokError(f"ids have shape {ids.shape}, the header says {header.shape}")
    if header.payload_size > _LARGEST - _IMAGES.size:
        raise WetokError(
            f"ids of {header.payload_size} bytes are too many for one file (4 GiB); write fewer "
            "images to a file"
        )
    name = header.name.encode()
    fingerprint = bytes.fromhex(header.fingerprint)
    model = _MODEL.pack(fingerprint, header.groups, header.group_bits, len(name)) + name
    images = _IMAGES.pack(header.coding, header.images, *header.size, *header.latent)
    crc = 0
    for piece in (
        _PREFIX.pack(MAGIC, VERSION, 0),
        _CHUNK.pack(b"MODL", len(model)),
        model,
        _CHUNK.pack(b"IMGS", len(images) + header.payload_size),
        images,
        pack(ids, header.group_bits),
        _CHUNK.pack(b"CSUM", 4),
    ):
        crc = zlib.crc32(piece, crc)
        yield piece
    yield struct.pack("<I", crc)


@contextmanager
def _errors_name(source: str | Path) -> Iterator[None]:
    try:
        yield
    except WetokError as error:
        raise WetokError(f"{source}: {error}") from None


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file for reading and its real size."""
    try:
        # Before opening, since to open a pipe would wait for a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise WetokError(f"{path}: not a regular file")
        with open(path, "rb") as stream, _errors_name(path):
            yield stream, os.fstat(stream.fileno()).st_size
    except (OSError, ValueError) as error:
        if isinstance(error, WetokError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise WetokError(f"{path}: can't be read: {reason}") from None


def _read_all(stream: BinaryIO, size: int) -> tuple[Header, NDArray[np.integer]]:
    header, payload = _read_header(stream, size)
    data = _take(stream, payload, header.payload_size, size)
    ids = unpack(data, math.prod(header.shape), header.group_bits)
    return header, ids.reshape(header.shape)


def _read_header(stream: BinaryIO, size: int) -> tuple[Header, int]:
    """The header and where the packed ids begin; the whole file is checked on the way."""
    magic, version, flags = _PREFIX.unpack(_take(stream, 0, _PREFIX.size, size))
    if magic != MAGIC:
        raise WetokError("not a .wetok file")
    if version != VERSION or flags:
        raise WetokError(
            f"has format version {version}, flags {flags}; this wetok reads version {VERSION}, "
            "flags 0: update wetok"
        )
    end = size - _CHECKSUM.size
    _verify_checksum(stream, end)
    chunks = _find_chunks(stream, end)
    if list(chunks) != [b"MODL", b"IMGS"]:
        raise WetokError("must hold one chunk MODL and then one chunk IMGS")
    position, length = chunks[b"MODL"]
    fingerprint, groups, group_bits, name_length = _MODEL.unpack(
        _take(stream, position, _MODEL.size, position + length)
    )
    if length != _MODEL.size + name_length:
        raise WetokError(f"chunk MODL has {length} bytes, its name says otherwise")
    try:
        name = _take(stream, position + _MODEL.size, name_length, end).decode()
    except UnicodeDecodeError:
        raise WetokError("the model's name is not UTF-8") from None
    position, length = chunks[b"IMGS"]
    coding, images, *sides = _IMAGES.unpack(
        _take(stream, position, _IMAGES.size, position + length)
    )
    header = Header(
        name=name,
        fingerprint=fingerprint.hex(),
        groups=groups,
        group_bits=group_bits,
        images=images,
        size=(sides[0], sides[1]),
        latent=(sides[2], sides[3]),
        coding=coding,
    )
    if length != _IMAGES.size + header.payload_size:
        raise WetokError(
            f"holds {length - _IMAGES.size} bytes of ids, its sizes ask for {header.payload_size}"
        )
    return header, position + _IMAGES.size


def _verify_checksum(stream: BinaryIO, end: int) -> None:
    if end < _PREFIX.size:
        raise WetokError("truncated")
    stream.seek(0)
    crc = 0
    left = end
    while left:
        piece = stream.read(min(left, _READ))
        if not piece:
            raise WetokError("truncated while it was read")
        crc = zlib.crc32(piece, crc)
        left -= len(piece)
    tag, length, stored = _CHECKSUM.unpack(stream.read(_CHECKSUM.size))
    if (tag, length) != (b"CSUM", 4):
        raise WetokError("truncated, or followed by other bytes: it does not end in its checksum")
    if zlib.crc32(_CHUNK.pack(tag, length), crc) != stored:
        raise WetokError("altered or damaged: its checksum does not match")


def _find_chunks(stream: BinaryIO, end: int) -> dict[bytes, tuple[int, int]]:
    """Position and length of the payload of every chunk this version must understand."""
    chunks: dict[bytes, tuple[int, int]] = {}
    position = _PREFIX.size
    while position < end:
        tag, length = _CHUNK.unpack(_take(stream, position, _CHUNK.size, end))
        position += _CHUNK.size
        if not (tag.isalpha() and tag.isascii()):
            raise WetokError(f"has a chunk tag {tag!r} that is not four letters")
        if length > end - position:
            raise WetokError(f"chunk {tag!r} claims {length} bytes, {end - position} are left")
        if tag in (b"MODL", b"IMGS") and tag not in chunks:
            chunks[tag] = (position, length)
        elif tag[:1].isupper():
            raise WetokError(f"has a chunk {tag!r} that this wetok can't read: update wetok")
        position += length
    return chunks


def _take(stream: BinaryIO, position: int, length: int, end: int) -> bytes:
    """`length` bytes at `position`, which must lie before `end`."""
    if length > end - position:
        raise WetokError("truncated")
    stream.seek(position)
    data = stream.read(length)
    if len(data) != length:
        raise WetokError("truncated while it was read")
    return data


def _some_factor(size: tuple[int, int], latent: tuple[int, int]) -> bool:
    """Whether one factor f in 1..MAX_FACTOR has ceil(side / f) = positions on both axes."""
    low, high = 1, MAX_FACTOR
    for side, positions in zip(size, latent, strict=True):
        # ceil(side / f) = n  <=>  side / n <= f < side / (n - 1)
        low = max(low, -(-side // positions))
        if positions > 1:
            high = min(high, (side - 1) // (positions - 1))
    return low <= high
