"""Fixed-length packing: each id in exactly its d' bits, one after the other.

Bit k of id i is bit i*d' + k of the stream; bit n of the stream is bit n % 8 (0 the least
significant) of byte n // 8. In other words: the ids, least significant first, written as one long
little-endian number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wetok.config import WetokError

MAX_BITS = 62
"""Largest d': ids stay below 2^62, so they fit int64."""
_BLOCK = 8192
"""Octets of ids handled at a time: the working set stays in cache and bounded."""


def id_dtype(group_bits: int) -> np.dtype[np.generic]:
    """The smallest of uint8, int16, int32, int64 that holds ids of `group_bits` bits.

    The wider unsigned types are left out because PyTorch computes with them only in part.
    """
    for dtype, capacity in ((np.uint8, 8), (np.int16, 15), (np.int32, 31), (np.int64, MAX_BITS)):
        if 1 <= group_bits <= capacity:
            return np.dtype(dtype)
    raise WetokError(f"group_bits={group_bits} must lie in 1..{MAX_BITS}")


def packed_size(count: int, group_bits: int) -> int:
    """Bytes that `count` ids take: ceil(count * d' / 8)."""
    return -(-count * group_bits // 8)


def pack(ids: NDArray[np.integer], group_bits: int) -> bytes:
    """The ids (any shape, in C order) as packed_size(ids.size, group_bits) bytes.

    Raises:
        WetokError: ids that are not integers or not in [0, 2^d').
    """
    flat = checked(ids, group_bits).reshape(-1)
    octets = -(-flat.size // 8)
    packed = np.empty((octets, group_bits), np.uint8)
    for start in range(0, octets, _BLOCK):
        block = flat[8 * start : 8 * (start + _BLOCK)]
        if block.size % 8:
            block = np.concatenate([block, np.zeros(-block.size % 8, block.dtype)])
        lanes = np.ascontiguousarray(block.reshape(-1, 8).T)
        columns = np.zeros((group_bits, lanes.shape[1]), np.uint8)
        for lane, column, shift in _overlaps(group_bits):
            if shift >= 0:  # the id starts inside this byte
                columns[column] |= lanes[lane].astype(np.uint8) << np.uint8(shift)
            else:
                columns[column] |= (lanes[lane] >> -shift).astype(np.uint8)
        packed[start : start + _BLOCK] = columns.T
    return packed.reshape(-1)[: packed_size(flat.size, group_bits)].tobytes()


def unpack(data: bytes, count: int, group_bits: int) -> NDArray[np.integer]:
    """The `count` ids in `data`, [count] of id_dtype(group_bits).

    Raises:
        WetokError: `data` is not packed_size(count, group_bits) bytes, or a bit after the last id
            is set.
    """
    dtype = id_dtype(group_bits)
    size = packed_size(count, group_bits)
    if len(data) != size:
        raise WetokError(f"packed ids take {size} bytes, not {len(data)}")
    used = count * group_bits % 8
    if used and data[-1] >> used:
        raise WetokError("packed ids end in bits that are not zero")
    unsigned = np.dtype(f"u{dtype.itemsize}")
    packed = np.frombuffer(data, np.uint8)
    ids = np.empty(count, unsigned)
    mask = unsigned.type((1 << group_bits) - 1)
    for start in range(0, -(-count // 8), _BLOCK):
        block = packed[group_bits * start : group_bits * (start + _BLOCK)]
        if block.size % group_bits:
            block = np.concatenate([block, np.zeros(-block.size % group_bits, np.uint8)])
        columns = np.ascontiguousarray(block.reshape(-1, group_bits).T)
        lanes = np.zeros((8, columns.shape[1]), unsigned)
        for lane, column, shift in _overlaps(group_bits):
            if shift >= 0:
                lanes[lane] |= (columns[column] >> np.uint8(shift)).astype(unsigned)
            else:
                lanes[lane] |= columns[column].astype(unsigned) << unsigned.type(-shift)
        lanes &= mask
        target = ids[8 * start : 8 * (start + _BLOCK)]
        target[:] = lanes.T.reshape(-1)[: target.size]
    return ids.view(dtype)


def _overlaps(group_bits: int) -> list[tuple[int, int, int]]:
    """(lane, column, shift) of the ids and bytes that share bits, where 8 ids fill d' bytes.

    An id starts `shift` bits into its byte; a negative shift says that it started earlier.
    """
    return [
        (lane, column, lane * group_bits - 8 * column)
        for lane in range(8)
        for column in range(lane * group_bits // 8, -(-(lane + 1) * group_bits // 8))
    ]


def checked(ids: NDArray[np.integer], group_bits: int) -> NDArray[np.integer]:
    """The ids in `id_dtype(group_bits)`; raises WetokError as `pack` does."""
    dtype = id_dtype(group_bits)
    if not np.issubdtype(ids.dtype, np.integer):
        raise WetokError(f"ids must be integers, not {ids.dtype}")
    if ids.size and (ids.min() < 0 or int(ids.max()) >> group_bits):
        raise WetokError(
            f"ids span {ids.min()}..{ids.max()}, outside [0, 2^{group_bits}) of "
            f"group_bits={group_bits}"
        )
    return ids.astype(dtype, copy=False)
