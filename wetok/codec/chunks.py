"""The container of a `.wetok` file: magic, chunks, checksum; not what the chunks mean."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from wetok.config import WetokError

MAGIC = b"\x89WTK"
VERSION = 1
LARGEST = 2**32 - 1
"""Most bytes in a chunk."""

_PREFIX = struct.Struct("<4sBB")  # magic, version, flags
_CHUNK = struct.Struct("<4sI")  # tag, length of the payload
_CHECKSUM = struct.Struct("<4sII")  # the whole CSUM chunk: tag, 4, CRC-32
_READ = 1 << 20


class Chunk(NamedTuple):
    """Where a chunk's payload lies in the file."""

    tag: bytes
    position: int
    length: int


def written(chunks: Iterable[tuple[bytes, list[bytes]]]) -> Iterator[bytes]:
    """The bytes of a file, in pieces, whose chunks have these tags and payloads (in pieces)."""

    def pieces() -> Iterator[bytes]:
        yield _PREFIX.pack(MAGIC, VERSION, 0)
        for tag, payload in chunks:
            yield _CHUNK.pack(tag, sum(len(piece) for piece in payload))
            yield from payload
        yield _CHUNK.pack(b"CSUM", 4)

    crc = 0
    for piece in pieces():
        crc = zlib.crc32(piece, crc)
        yield piece
    yield struct.pack("<I", crc)


class Container:
    """A file's chunks, found without reading what is in them."""

    def __init__(self, stream: BinaryIO, size: int, *, verify: bool) -> None:
        """Raises WetokError: not a `.wetok` file, truncated, altered, or of a newer version."""
        self._stream = stream
        self._end = size - _CHECKSUM.size  # of what the checksum covers, less its own 8 bytes
        self._verified = False
        magic, version, flags = _PREFIX.unpack(_taken(stream, 0, _PREFIX.size, size))
        if magic != MAGIC:
            raise WetokError("not a .wetok file")
        if version != VERSION or flags:
            raise WetokError(
                f"has format version {version}, flags {flags}; this wetok reads version "
                f"{VERSION}, flags 0: update wetok"
            )
        if self._end < _PREFIX.size:
            raise WetokError("truncated")
        tag, length, self._stored = _CHECKSUM.unpack(
            _taken(stream, self._end, _CHECKSUM.size, size)
        )
        if (tag, length) != (b"CSUM", 4):
            raise WetokError(
                "truncated, or followed by other bytes: it does not end in its checksum"
            )
        if verify:
            self.verify()

    def verify(self) -> None:
        """Checks the checksum of the whole file, the first time.

        Raises:
            WetokError: the file was altered.
        """
        if self._verified:
            return
        self._stream.seek(0)
        crc, left = 0, self._end
        while left:
            piece = self._stream.read(min(left, _READ))
            if not piece:
                raise WetokError("truncated while it was read")
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
        if zlib.crc32(_CHUNK.pack(b"CSUM", 4), crc) != self._stored:
            raise WetokError("altered or damaged: its checksum does not match")
        self._verified = True

    def chunks(self) -> Iterator[Chunk]:
        """All chunks but the checksum.

        Raises:
            WetokError: a tag that is not four letters, or a length beyond the file's end.
        """
        position = _PREFIX.size
        while position < self._end:
            tag, length = _CHUNK.unpack(_taken(self._stream, position, _CHUNK.size, self._end))
            position += _CHUNK.size
            if not (tag.isalpha() and tag.isascii()):
                raise WetokError(f"has a chunk tag {tag!r} that is not four letters")
            if length > self._end - position:
                raise WetokError(
                    f"chunk {tag!r} claims {length} bytes, {self._end - position} are left"
                )
            yield Chunk(tag, position, length)
            position += length

    def take(self, chunk: Chunk, start: int, length: int) -> bytes:
        """`length` bytes of a chunk's payload from `start` on.

        Raises:
            WetokError: the chunk ends before.
        """
        return _taken(self._stream, chunk.position + start, length, chunk.position + chunk.length)


def _taken(stream: BinaryIO, position: int, length: int, end: int) -> bytes:
    """`length` bytes at `position`, which must lie before `end`."""
    if length > end - position:
        raise WetokError("truncated")
    stream.seek(position)
    data = stream.read(length)
    if len(data) != length:
        raise WetokError("truncated while it was read")
    return data
