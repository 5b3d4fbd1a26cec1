"""Where the images lie in a tar file, found by reading its headers only.

The index is kept in a few bytes an image, and optionally in a cache on disk, so that a large set is
scanned once. Damage ends the scan of that file and is reported; what comes before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from wetok.data.images import SUFFIXES

ENTRY = np.dtype([("data", "<i8"), ("size", "<u4"), ("header", "<u2")])
"""One image: where its bytes begin, how many, and how many blocks before them its header begins."""

_BLOCK = 512
_LARGEST = 2**32 - 1  # bytes of a member that an entry can tell
_LONGEST = 2**20  # bytes of an extended header; a real one has a few hundred
_FORMAT = 1  # of the cache on disk
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Member(NamedTuple):
    """A member of a tar file. Positions and size in bytes."""

    name: str
    header: int  # where the first of its headers begins
    data: int  # where its bytes begin
    size: int
    file: bool  # a plain file, not a folder or a link


class TarIndex(NamedTuple):
    """What was found in one tar file."""

    entries: np.ndarray  # of ENTRY, in the order of the file
    ignored: int  # members that are not taken for images
    problem: str | None  # why there may be less in it than there was


class _Damage(Exception):
    """Why a tar file can't be read on from here."""


class _NoEndMark(_Damage):
    pass


def scan(path: Path, cache: Path | None = None) -> TarIndex:
    """The images in the tar file at `path`. Never raises for what is in it.

    An image is a plain file with one of `wetok.data.images.SUFFIXES`, whose name does not begin
    with a dot. As in WebDataset, neighbours whose names agree up to the first dot of the last part
    (`12/a.jpg`, `12/a.mask.png`, `12/a.txt`) are one sample. Where such a sample has an image with
    a plain suffix (`a.jpg`), the first of these is taken and its other images are ignored.

    Args:
        path: an uncompressed tar file.
        cache: folder of indexes on disk. One is used as long as the file's size and time of change
            are the same; a folder that can't be written is done without.
    """
    try:
        status = path.stat()
        stored = _Stored(cache, path, status) if cache else None
        if stored and (known := stored.load()):
            return known
        if status.st_size == 0:
            return _nothing("is an empty file")
        with open(path, "rb") as stream:
            found = _scan(stream, status.st_size)
    except OSError as error:
        return _nothing(f"can't be read: {error.strerror}")
    if stored:
        stored.save(found)
    return found


def read_member(stream: BinaryIO, at: int) -> Member | None:
    """The member whose header begins at `at`; None at the end mark.

    Raises:
        _Damage: there is none.
    """
    start, name, size = at, "", -1
    while True:
        block = _read(stream, at, _BLOCK, started=at > start)
        if block.count(0) == _BLOCK:
            return None
        kind, length = block[156:157], _checked_size(block, at)
        at += _BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            if length > _LONGEST:
                raise _Damage(f"is damaged at byte {at - _BLOCK}")
            body = _read(stream, at, length, started=True)
            at += _padded(length)
            if kind == b"L":
                name = _text(body)
            elif kind == b"x":
                name, size = _extended(body, name, size, at)
            continue
        if kind == b"S":
            raise _Damage(f"has a sparse member at byte {start}, which is not read: repack it")
        file = kind in (b"0", b"\0", b"7")
        if not name:
            name = _text(block[:100])
            if block[257:263] == b"ustar\0" and block[345]:
                name = f"{_text(block[345:500])}/{name}"
        if size < 0:
            # Links and folders may state a size, but have no bytes.
            size = 0 if kind in (b"1", b"2", b"3", b"4", b"5", b"6") else length
        return Member(name, start, at, size, file and not name.endswith("/"))


def _scan(stream: BinaryIO, end: int) -> TarIndex:
    entries: list[tuple[int, int, int]] = []
    members, at, problem = 0, 0, None
    sample: list[Member] = []  # images so far whose names agree
    key = ""

    def finish() -> None:
        plain = [one for one in sample if PurePosixPath(one.name).name.count(".") == 1]
        for one in plain[:1] or sample:
            entries.append((one.data, one.size, (one.data - one.header) // _BLOCK))
        sample.clear()

    while True:
        try:
            member = read_member(stream, at)
        except _NoEndMark as error:
            problem = str(error)
            break
        except _Damage as error:
            problem = _not_a_tar(stream) if at == 0 else str(error)
            break
        if member is None:
            break
        if member.data + member.size > end:
            problem = f"is cut off within its member {member.name!r}"
            break
        at = member.data + _padded(member.size)
        members += 1
        folder, _, last = member.name.rpartition("/")
        if f"{folder}/{last.partition('.')[0]}" != key:
            finish()
            key = f"{folder}/{last.partition('.')[0]}"
        fits = member.size <= _LARGEST and member.data - member.header < 2**16 * _BLOCK
        if member.file and fits and _is_image(last):
            sample.append(member)
    finish()
    if problem and members:
        problem += f" (images before that, which are used: {len(entries)})"
    return TarIndex(np.array(entries, ENTRY), members - len(entries), problem)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def _nothing(problem: str) -> TarIndex:
    return TarIndex(np.empty(0, ENTRY), 0, problem)


def _not_a_tar(stream: BinaryIO) -> str:
    stream.seek(0)
    begin = stream.read(8)
    for magic, name in _COMPRESSED.items():
        if begin.startswith(magic):
            return f"is compressed with {name}, which can't be read from the middle: unpack it"
    return "is not a tar file"


def _read(stream: BinaryIO, at: int, length: int, started: bool) -> bytes:
    stream.seek(at)
    data = stream.read(length)
    if len(data) < length:
        if not data and not started:
            raise _NoEndMark("has no end mark, so that it may have been cut off")
        raise _Damage(f"is cut off within the header at byte {at}")
    return data


def _padded(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _checked_size(block: bytes, at: int) -> int:
    """The size in a header block whose checksum is right."""
    try:
        wanted = _number(block[148:156])
        others = block[:148] + block[156:]
        total = sum(others) + 8 * ord(" ")
        # Some old programs have summed bytes with a sign.
        if wanted not in (total, total - 256 * sum(byte > 127 for byte in others)):
            raise ValueError
        size = _number(block[124:136])
        if size < 0:
            raise ValueError
    except ValueError:
        raise _Damage(f"is damaged at byte {at}") from None
    return size


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # larger than its octal digits can tell
        return int.from_bytes(field[1:], "big")
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _extended(body: bytes, name: str, size: int, at: int) -> tuple[str, int]:
    """The path and size that a pax header gives, in place of those known so far."""
    try:
        while body:
            digits, _, _ = body.partition(b" ")
            length = int(digits)
            if not len(digits) + 2 < length <= len(body):
                raise ValueError
            key, _, value = body[len(digits) + 1 : length - 1].partition(b"=")
            body = body[length:]
            if key == b"path":
                name = value.decode("utf-8", "surrogateescape")
            elif key == b"size":
                size = int(value)
            elif key.startswith(b"GNU.sparse"):
                raise _Damage(f"has a sparse member before byte {at}, which is not read: repack it")
        if size < -1:
            raise ValueError
    except ValueError:
        raise _Damage(f"is damaged before byte {at}") from None
    return name, size


class _Stored:
    """The index of one tar file in a cache folder."""

    def __init__(self, folder: Path, path: Path, status: os.stat_result) -> None:
        where = os.path.abspath(path)
        self.file = folder / (hashlib.sha256(os.fsencode(where)).hexdigest()[:32] + ".npz")
        # The path as well, however unlikely it is that two have one hash.
        self.key = json.dumps([_FORMAT, where, status.st_size, status.st_mtime_ns])

    def load(self) -> TarIndex | None:
        try:
            with np.load(self.file, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                if about["key"] != self.key or stored["entries"].dtype != ENTRY:
                    return None
                return TarIndex(stored["entries"], about["ignored"], about["problem"])
        except Exception:  # absent, damaged, or of another program: scanning is always possible
            return None

    def save(self, index: TarIndex) -> None:
        about = {"key": self.key, "ignored": index.ignored, "problem": index.problem}
        beside = self.file.with_name(f".{secrets.token_hex(6)}.tmp")
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Not synced to the disk: a torn one fails its checksum and is made again.
                with open(beside, "wb") as stream:
                    np.savez(stream, entries=index.entries, about=np.array(json.dumps(about)))
                os.replace(beside, self.file)
            finally:
                beside.unlink(missing_ok=True)
