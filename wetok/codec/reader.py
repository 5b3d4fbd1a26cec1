"""Reads `.wetok` files: all at once, or parts of them."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wetok.codec.adaptive import AdaptiveModel
from wetok.codec.chunks import Chunk, Container
from wetok.codec.context import Model
from wetok.codec.header import (
    ADAPTIVE,
    DIGEST,
    GREY,
    IMAGES,
    LEARNED,
    META_LIMIT,
    MODEL,
    PACKED,
    Header,
)
from wetok.codec.packing import packed_size, unpack
from wetok.codec.payload import Index, expand, read_index
from wetok.codec.tables import CodingTables
from wetok.config import WetokError


class _Stored(NamedTuple):
    """Where a part lies in a file."""

    header: Header
    images: Chunk
    start: int
    """of the ids within the chunk"""
    blocks: Index | None
    """where they are entropy-coded"""
    margins: Chunk | None


class TokenFile:
    """A `.wetok` file whose parts can be read one by one."""

    def __init__(self, stream: BinaryIO, size: int, *, verify: bool = True) -> None:
        self._container = Container(stream, size, verify=verify)
        self.metadata: dict[str, Any] = {}
        """What the chunk `meta` says."""
        self._parts: list[_Stored] = []
        self._find_parts()

    @property
    def headers(self) -> list[Header]:
        """One for each size of image, in the file's order."""
        return [part.header for part in self._parts]

    @property
    def only(self) -> Header:
        """The header of a file whose images have one size.

        Raises:
            WetokError: they have several.
        """
        if len(self._parts) > 1:
            raise WetokError(
                f"holds images of {len(self._parts)} sizes: read them with Tokens.load_all"
            )
        return self._parts[0].header

    def read(
        self,
        part: int = 0,
        tables: CodingTables | None = None,
        *,
        images: Sequence[int] | None = None,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
        groups: int | None = None,
    ) -> NDArray[np.integer]:
        """Ids [B,g,h,w] of a part of the file, or of some of it.

        Args:
            part: which of `headers`.
            tables: what learned coding needs.
            images: which images, in that order; all by default.
            rows, columns: (first, end) of the positions wanted.
            groups: the first so many only.

        Raises:
            WetokError: damaged ids, other tables than the file needs, or no such images,
                positions or groups.
        """
        stored = self._parts[part]
        header = stored.header
        count, all_groups, height, width = header.shape
        images = range(count) if images is None else images
        groups = all_groups if groups is None else groups
        (top, bottom), (left, right) = rows or (0, height), columns or (0, width)
        for what, inside in (
            (f"images={list(images)[:5]} must lie in 0..{count - 1}", _within(images, count)),
            (f"rows={top, bottom} must rise within 0..{height}", 0 <= top < bottom <= height),
            (f"columns={left, right} must rise within 0..{width}", 0 <= left < right <= width),
            (f"groups={groups} must lie in 1..{all_groups}", 1 <= groups <= all_groups),
        ):
            if not inside:
                raise WetokError(what)
        area = slice(top, bottom), slice(left, right)
        if stored.blocks is None:
            self._container.verify()
            return self._unpacked(stored, images)[:, :groups, area[0], area[1]]
        if stored.blocks.checksums is None:
            self._container.verify()
        model = _model_for(header, tables)
        return expand(
            lambda position, length: self._ids(stored, position, length),
            *(stored.blocks, header.group_bits, model, images, *area, groups),
        )

    def margins(self, part: int = 0) -> NDArray[np.uint8] | None:
        """Margins [B,d,h,w] of a part of the file, where it has them.

        Raises:
            WetokError: the file was altered.
        """
        stored = self._parts[part]
        if stored.margins is None:
            return None
        self._container.verify()
        data = self._container.take(stored.margins, 0, stored.margins.length)
        return np.frombuffer(data, np.uint8).reshape(stored.header.bit_shape)

    def _ids(self, stored: _Stored, position: int, length: int) -> bytes:
        return self._container.take(stored.images, stored.start + position, length)

    def _unpacked(self, stored: _Stored, images: Sequence[int]) -> NDArray[np.integer]:
        """Packed ids: bits are found by counting, from the last whole byte before an image."""
        header = stored.header
        total, size = math.prod(header.shape), math.prod(header.shape[1:])
        if images == range(header.images):
            data = self._ids(stored, 0, header.payload_size)
            return unpack(data, total, header.group_bits).reshape(header.shape)
        found = []
        for image in images:
            first = image * size // 8 * 8  # eight ids fill whole bytes
            end = min(-(-(image + 1) * size // 8) * 8, total)
            place = first // 8 * header.group_bits
            length = packed_size(end - first, header.group_bits)
            ids = unpack(self._ids(stored, place, length), end - first, header.group_bits)
            found.append(ids[image * size - first :][:size].reshape(header.shape[1:]))
        return np.stack(found)

    def _find_parts(self) -> None:
        """Reads MODL and the fixed part and index of every IMGS."""
        model: bytes | None = None
        grey, margins = set(), {}
        images: list[Chunk] = []
        seen_metadata = False
        for chunk in self._container.chunks():
            tag = chunk.tag
            if tag == b"MODL" and model is None and not images:
                model = self._container.take(chunk, 0, min(chunk.length, MODEL.size + 256))
                if chunk.length > len(model):
                    raise WetokError(f"chunk MODL has {chunk.length} bytes, too many for a name")
            elif tag == b"IMGS" and model is not None:
                images.append(chunk)
            elif tag == b"meta" and not seen_metadata:
                seen_metadata = True
                self.metadata = _metadata_of(chunk, self._container)
            elif tag == b"colr" and images:
                if self._container.take(chunk, 0, min(chunk.length, 2)) == GREY:
                    grey.add(len(images) - 1)
            elif tag == b"marg" and images:
                margins[len(images) - 1] = chunk
            elif tag[:1].isupper():
                if tag in (b"MODL", b"IMGS"):
                    raise WetokError("must hold one chunk MODL and then one or more chunks IMGS")
                raise WetokError(f"has a chunk {tag!r} that this wetok can't read: update wetok")
        if model is None or not images:
            raise WetokError("must hold one chunk MODL and then one or more chunks IMGS")
        for number, chunk in enumerate(images):
            stored = self._part(chunk, model, number in grey, margins.get(number))
            self._parts.append(stored)

    def _part(self, chunk: Chunk, model: bytes, grey: bool, margins: Chunk | None) -> _Stored:
        fixed = self._container.take(chunk, 0, IMAGES.size)
        coding, images, *sides = IMAGES.unpack(fixed)
        if coding == LEARNED:
            fixed += self._container.take(chunk, IMAGES.size, DIGEST)
        fingerprint, groups, group_bits, name = _model_of(model)
        header = Header(
            name=name,
            fingerprint=fingerprint,
            groups=groups,
            group_bits=group_bits,
            images=images,
            size=(sides[0], sides[1]),
            latent=(sides[2], sides[3]),
            grey=grey,
            coding=coding,
            tables=fixed[IMAGES.size :].hex(),
        )
        if margins is not None and margins.length != math.prod(header.bit_shape):
            raise WetokError(
                f"holds {margins.length} margins, its sizes ask for {math.prod(header.bit_shape)}"
            )
        stored = _Stored(header, chunk, len(fixed), None, margins)
        length = chunk.length - len(fixed)
        if coding == PACKED:
            if length != header.payload_size:
                raise WetokError(
                    f"holds {length} bytes of ids, its sizes ask for {header.payload_size}"
                )
            return stored
        index = read_index(
            lambda position, size: self._ids(stored, position, size),
            *(length, header.shape, group_bits, zlib.crc32(fixed, zlib.crc32(model))),
        )
        return stored._replace(blocks=index)


def _within(numbers: Sequence[int], count: int) -> bool:
    return all(0 <= number < count for number in numbers)


def _model_of(chunk: bytes) -> tuple[str, int, int, str]:
    """Fingerprint, groups, bits per group and name in a chunk MODL."""
    if len(chunk) < MODEL.size:
        raise WetokError("truncated in its chunk MODL")
    fingerprint, groups, group_bits, length = MODEL.unpack(chunk[: MODEL.size])
    if len(chunk) != MODEL.size + length:
        raise WetokError(f"chunk MODL has {len(chunk)} bytes, its name says otherwise")
    try:
        name = chunk[MODEL.size :].decode()
    except UnicodeDecodeError:
        raise WetokError("the model's name is not UTF-8") from None
    return fingerprint.hex(), groups, group_bits, name


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _metadata_of(chunk: Chunk, container: Container) -> dict[str, Any]:
    if chunk.length > META_LIMIT:
        raise WetokError(f"metadata of {chunk.length} bytes; at most {META_LIMIT} are read")
    try:
        found = json.loads(container.take(chunk, 0, chunk.length), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise WetokError("its metadata is not JSON") from None
    if not isinstance(found, dict):
        raise WetokError("its metadata is not a JSON object")
    return found


def _model_for(header: Header, tables: CodingTables | None) -> Model:
    if header.coding == ADAPTIVE:
        return AdaptiveModel(header.group_bits)
    if tables is None or tables.digest.hex() != header.tables:
        given = "none were given" if tables is None else f"those given are {tables.digest.hex()}"
        raise WetokError(
            f"its ids are coded with the tables {header.tables} of model {header.name!r}, and "
            f"{given}; name the model's folder, or the model, that it was written with"
        )
    if not tables.fits(header.groups, header.group_bits):
        raise WetokError(
            f"has {header.groups} groups of {header.group_bits} bits; its tables {header.tables} "
            f"are for {tables.groups} of {tables.group_bits}"
        )
    return tables.model
