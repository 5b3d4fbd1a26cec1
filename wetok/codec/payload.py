"""Entropy-coded ids inside a file: cut into blocks, with an index, so that any block can be read.

    side u16 | width u8 | length of every segment, `width` bytes each | segments

A block is at most side x side positions of one image, a segment one group of a block. Where there
are several blocks, a CRC-32 of each and one of the index stand before the segments, so that a part
can be read, and trusted, without the rest of the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wetok.codec.context import Model, to_ids, to_planes
from wetok.codec.packing import id_dtype
from wetok.codec.rangecoder import BITS_A_BYTE
from wetok.config import WetokError

SIDE = 128
"""Positions on a side of the blocks that are written; a border costs a little, as nothing is known
beyond it."""
MAX_SIDE = 256
"""Largest side that is read: it bounds the working memory."""
_START = struct.Struct("<HB")

Shape = tuple[int, int, int, int]
Read = Callable[[int, int], bytes]
"""(position, length) -> bytes of the payload; raises WetokError beyond its end."""


class Block(NamedTuple):
    """Where one block lies in its image and in the payload."""

    rows: slice
    columns: slice
    position: int
    lengths: tuple[int, ...]
    """of the segments, one for each group"""
    checksum: int | None


@dataclass(frozen=True)
class Index:
    """What the index of a payload says."""

    side: int
    shape: Shape
    starts: NDArray[np.int64]
    """[blocks] where each block begins in the payload"""
    lengths: NDArray[np.int64]
    """[blocks, groups]"""
    checksums: NDArray[np.uint32] | None
    """[blocks] where there are several blocks"""

    def blocks(self, image: int, rows: slice, columns: slice) -> Iterator[Block]:
        """The blocks that a part of an image touches."""
        height, width = self.shape[2:]
        across = -(-width // self.side)
        first = image * -(-height // self.side) * across
        for row in range(rows.start // self.side, -(-rows.stop // self.side)):
            for column in range(columns.start // self.side, -(-columns.stop // self.side)):
                number = first + row * across + column
                yield Block(
                    slice(row * self.side, min((row + 1) * self.side, height)),
                    slice(column * self.side, min((column + 1) * self.side, width)),
                    int(self.starts[number]),
                    tuple(self.lengths[number].tolist()),
                    None if self.checksums is None else int(self.checksums[number]),
                )


def compress(
    ids: NDArray[np.integer], group_bits: int, model: Model, before: int, side: int = SIDE
) -> list[bytes]:
    """The payload, in pieces, of ids [B,g,h,w].

    Args:
        before: CRC-32 of what the checksum of the index covers beside the index.
    """
    images, groups, height, width = ids.shape
    segments = []
    for image in range(images):
        for top in range(0, height, side):
            for left in range(0, width, side):
                part = ids[image, :, top : top + side, left : left + side]
                segments.append(model.encode(to_planes(part, group_bits)))
    lengths = np.array([[len(segment) for segment in block] for block in segments], "<u4")
    wide = max(1, -(-int(lengths.max()).bit_length() // 8))
    raw = lengths.reshape(-1, 1).view(np.uint8)[:, :wide].tobytes()
    index = _START.pack(side, wide) + raw
    if len(segments) > 1:
        index += np.array([zlib.crc32(b"".join(block)) for block in segments], "<u4").tobytes()
        index += struct.pack("<I", zlib.crc32(index, before))
    return [index, *(segment for block in segments for segment in block)]


def read_index(read: Read, size: int, shape: Shape, group_bits: int, before: int) -> Index:
    """The index of a payload of `size` bytes, checked against it before anything is allocated.

    Raises:
        WetokError: an index that does not belong to such a payload.
    """
    images, groups, height, width = shape
    side, wide = _START.unpack(read(0, _START.size))
    if not 1 <= side <= MAX_SIDE or not 1 <= wide <= 4:
        raise WetokError(
            f"blocks of side {side} (1..{MAX_SIDE}), lengths of {wide} bytes (1..4) in the index"
        )
    count = images * -(-height // side) * -(-width // side)
    end = _START.size + count * groups * wide + (4 * count + 4 if count > 1 else 0)
    if end > size:
        raise WetokError(f"index of {count} blocks takes {end} bytes, {size} are there")
    data = read(0, end)
    at = _START.size + count * groups * wide
    spread = np.zeros((count * groups, 4), np.uint8)
    spread[:, :wide] = np.frombuffer(data, np.uint8)[_START.size : at].reshape(-1, wide)
    lengths = spread.view("<u4").astype(np.int64).reshape(count, groups)
    checksums = None
    if count > 1:
        if zlib.crc32(data[:-4], before) != struct.unpack("<I", data[-4:])[0]:
            raise WetokError("altered or damaged: the index's checksum does not match")
        checksums = np.frombuffer(data[at:-4], "<u4")
    if end + int(lengths.sum()) != size:
        raise WetokError(
            f"index tells of {int(lengths.sum())} bytes of ids, {size - end} are there"
        )
    starts = end + np.concatenate([[0], np.cumsum(lengths.sum(1))[:-1]])
    # No byte holds more than so many bits, so sizes that the data can't fill are refused here.
    most = min(side, height) * min(side, width) * group_bits
    if most > BITS_A_BYTE * (int(lengths.min()) + 6):
        _check_each(lengths, shape, side, group_bits)
    return Index(side, shape, starts, lengths, checksums)


def _check_each(lengths: NDArray[np.int64], shape: Shape, side: int, group_bits: int) -> None:
    images, _, height, width = shape
    tall = np.minimum(side, height - np.arange(0, height, side))
    broad = np.minimum(side, width - np.arange(0, width, side))
    positions = np.tile((tall[:, None] * broad).reshape(-1), images)
    if (positions[:, None] * group_bits > BITS_A_BYTE * (lengths + 6)).any():
        raise WetokError("holds fewer bytes of ids than its sizes ask for")


def expand(
    read: Read,
    index: Index,
    group_bits: int,
    model: Model,
    images: Sequence[int],
    rows: slice,
    columns: slice,
    groups: int,
) -> NDArray[np.integer]:
    """The ids [images, groups, rows, columns] of a part; of the first `groups` groups only.

    Raises:
        WetokError: damaged or impossible segments.
    """
    tall, broad = rows.stop - rows.start, columns.stop - columns.start
    ids = np.zeros((len(images), groups, tall, broad), id_dtype(group_bits))
    for target, image in zip(ids, images, strict=True):
        for block in index.blocks(image, rows, columns):
            values = _decode(read, block, model, groups, group_bits)
            top = max(block.rows.start, rows.start)
            left = max(block.columns.start, columns.start)
            bottom = min(block.rows.stop, rows.stop)
            right = min(block.columns.stop, columns.stop)
            wanted = values[
                :,
                top - block.rows.start : bottom - block.rows.start,
                left - block.columns.start : right - block.columns.start,
            ]
            target[
                :,
                top - rows.start : bottom - rows.start,
                left - columns.start : right - columns.start,
            ] = wanted
    return ids


def _decode(
    read: Read, block: Block, model: Model, groups: int, group_bits: int
) -> NDArray[np.integer]:
    """Ids [groups, rows, columns] of a whole block."""
    data = read(block.position, sum(block.lengths))
    if block.checksum is not None and zlib.crc32(data) != block.checksum:
        raise WetokError("altered or damaged: the checksum of a block does not match")
    ends = np.cumsum((0, *block.lengths)).tolist()
    segments = [data[ends[group] : ends[group + 1]] for group in range(groups)]
    size = (block.rows.stop - block.rows.start, block.columns.stop - block.columns.start)
    return np.concatenate([to_ids(planes, group_bits) for planes in model.decode(segments, size)])
