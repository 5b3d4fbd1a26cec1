"""The `.wetok` file, version 1: bytes <-> headers and ids. `docs/formats.md` is its specification.

    magic 89 57 54 4B | version u8 | flags u8
    chunk MODL: whose ids these are      tag [4], length u32, payload
    chunk IMGS: sizes and the ids        once for each size of image, each followed by its
                                         colr (colour) and marg (margins) where it has them
    chunk meta: a JSON object            where there is one
    chunk CSUM: CRC-32 of all before it  (last; nothing follows)

All numbers are little-endian. A reader refuses an unknown chunk whose tag starts with a capital and
skips one that starts with a small letter, so that later versions can add what old ones may ignore.
"""

from __future__ import annotations

import io
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from wetok.checkpoint import written_beside
from wetok.codec.adaptive import AdaptiveModel
from wetok.codec.chunks import LARGEST, written
from wetok.codec.context import Model
from wetok.codec.header import (
    ADAPTIVE,
    GREY,
    IMAGES,
    LEARNED,
    META_LIMIT,
    MODEL,
    PACKED,
    Header,
)
from wetok.codec.packing import checked, pack
from wetok.codec.payload import compress
from wetok.codec.reader import TokenFile
from wetok.codec.tables import CodingTables
from wetok.config import WetokError

Coding = Literal["auto", "packed", "entropy"]
"""How to write ids: "packed" in fixed length, "entropy" with the given tables where they fit
and else adaptive, "auto" whichever of the three is smallest."""


class Part(NamedTuple):
    """Images of one size: what a chunk IMGS and those after it hold."""

    header: Header
    ids: NDArray[np.integer]
    """[B,g,h,w]"""
    margins: NDArray[np.uint8] | None = None
    """[B,d,h,w]: how far each latent was from the other sign, in 1/64; 255 is that or more."""


def encode(
    header: Header,
    ids: NDArray[np.integer],
    coding: Coding = "auto",
    tables: CodingTables | None = None,
) -> bytes:
    """The bytes of a file that holds `ids`, of shape `header.shape`.

    The same arguments always give the same bytes, on every machine.

    Raises:
        WetokError: ids of another shape, not integers, or not in [0, 2^d').
    """
    return b"".join(pieces([Part(header, ids)], coding, tables))


def decode(
    data: bytes, source: str = "data", tables: CodingTables | None = None
) -> tuple[Header, NDArray[np.integer]]:
    """Header and ids [B,g,h,w] of the file whose bytes are `data`; errors speak of `source`.

    Raises:
        WetokError: not a `.wetok` file, truncated, altered, of a newer version, or inconsistent;
            it holds images of several sizes, or needs other learned tables than `tables`.
    """
    with _errors_name(source):
        return _only(TokenFile(io.BytesIO(data), len(data)), tables)


def write(
    path: str | Path,
    header: Header,
    ids: NDArray[np.integer],
    coding: Coding = "auto",
    tables: CodingTables | None = None,
) -> None:
    """Writes the file complete or not at all; an existing one is replaced.

    Raises:
        WetokError: as `encode`, or the file can't be written.
    """
    write_parts(path, [Part(header, ids)], coding, tables)


def write_parts(
    path: str | Path,
    parts: Sequence[Part],
    coding: Coding = "auto",
    tables: CodingTables | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes images of several sizes by one model, and what JSON can say about them.

    Raises:
        WetokError: as `write`; parts by different models, or none; `metadata` that JSON can't
            hold, or of more than 1 MiB.
    """
    written_pieces = list(pieces(parts, coding, tables, metadata))
    with written_beside(path) as beside, open(beside, "wb") as stream:
        stream.writelines(written_pieces)


def read(
    path: str | Path, tables: CodingTables | None = None
) -> tuple[Header, NDArray[np.integer]]:
    """Header and ids [B,g,h,w], the ids in the smallest type that holds them.

    Memory is bounded by the file's real size: nothing is allocated for what a header merely claims.

    Raises:
        WetokError: as `decode`, or the file can't be read.
    """
    with opened(path) as file:
        return _only(file, tables)


def read_header(path: str | Path) -> Header:
    """The header alone; the checksum is verified, the ids are not decoded.

    Raises:
        WetokError: as `read`.
    """
    with opened(path) as file:
        return file.only


@contextmanager
def opened(path: str | Path, *, verify: bool = True) -> Iterator[TokenFile]:
    """The file, open for reading parts of it.

    Args:
        verify: check the whole file first. Without, what can be checked alone (the blocks of a
            large image, the images of a large file) is checked as it is read, and for other ids
            and margins the whole file then; colour and metadata are taken as they are.

    Raises:
        WetokError: as `read`; so do the methods of what is given.
    """
    with _stream(path) as (stream, size):
        yield TokenFile(stream, size, verify=verify)


def _only(file: TokenFile, tables: CodingTables | None) -> tuple[Header, NDArray[np.integer]]:
    return file.only, file.read(tables=tables)


def pieces(
    parts: Sequence[Part],
    coding: Coding,
    tables: CodingTables | None,
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[bytes]:
    """The bytes of the file that `write_parts` writes, in pieces.

    Raises:
        WetokError: as `write_parts`.
    """
    if coding not in get_args(Coding):
        raise WetokError(f"coding={coding!r} must be one of {', '.join(get_args(Coding))}")
    if not parts or len({_made_by(part.header) for part in parts}) > 1:
        raise WetokError("parts: give tokens of at least one image, all by one model")
    fingerprint, groups, group_bits, name = _made_by(parts[0].header)
    model = MODEL.pack(bytes.fromhex(fingerprint), groups, group_bits, len(name)) + name
    chunks: list[tuple[bytes, list[bytes]]] = [(b"MODL", [model])]
    if metadata:
        chunks.append((b"meta", [_json(metadata)]))
    for part in parts:
        payload = _coded(part, coding, tables, zlib.crc32(model))
        if sum(len(piece) for piece in payload) > LARGEST:
            raise WetokError(
                "ids of 4 GiB or more are too many for one file; write fewer images to a file"
            )
        chunks.append((b"IMGS", payload))
        if part.header.grey:
            chunks.append((b"colr", [GREY]))
        if part.margins is not None:
            if part.margins.shape != part.header.bit_shape or part.margins.dtype != np.uint8:
                raise WetokError(
                    f"margins must be uint8 {list(part.header.bit_shape)}, not "
                    f"{part.margins.dtype} {list(part.margins.shape)}"
                )
            chunks.append((b"marg", [part.margins.tobytes()]))
    yield from written(chunks)


def _made_by(header: Header) -> tuple[str, int, int, bytes]:
    return header.fingerprint, header.groups, header.group_bits, header.name.encode()


def _json(metadata: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False, allow_nan=False)
        data = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WetokError(f"metadata can't be written as JSON: {error}") from None
    if len(data) > META_LIMIT:
        raise WetokError(f"metadata of {len(data)} bytes; a file takes at most {META_LIMIT}")
    return data


def _coded(part: Part, coding: Coding, tables: CodingTables | None, before: int) -> list[bytes]:
    """The payload of a chunk IMGS, in pieces."""
    header = part.header
    if part.ids.shape != header.shape:
        raise WetokError(f"ids have shape {part.ids.shape}, the header says {header.shape}")
    ids = checked(part.ids, header.group_bits)

    def fixed(number: int) -> bytes:
        return IMAGES.pack(number, header.images, *header.size, *header.latent)

    def entropy(number: int, model: Model, digest: bytes) -> list[bytes]:
        start = fixed(number) + digest
        return [start, *compress(ids, header.group_bits, model, zlib.crc32(start, before))]

    packed = [fixed(PACKED), pack(ids, header.group_bits)]
    if coding == "packed":
        return packed
    ways = [packed] if coding == "auto" else []
    if tables is not None and tables.fits(header.groups, header.group_bits):
        ways.append(entropy(LEARNED, tables.model, tables.digest))
    if coding == "auto" or not ways:
        ways.append(entropy(ADAPTIVE, AdaptiveModel(header.group_bits), b""))
    return min(ways, key=lambda way: sum(len(piece) for piece in way))  # the first, if alike


@contextmanager
def _errors_name(source: str | Path) -> Iterator[None]:
    try:
        yield
    except WetokError as error:
        raise WetokError(f"{source}: {error}") from None


@contextmanager
def _stream(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
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
