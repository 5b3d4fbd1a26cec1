"""Parts of an image through torch's CPU kernels, with the bits that the whole image would give.

Two kernels round by where a value lies. SiLU takes the last values of every thread's share by
another exponential than the rest. A convolution of 1x1 sums its channels in blocks, whose size
oneDNN chooses by the number of positions; and tiny inputs of any convolution take another kernel.
Here a strip of rows is given what its place in the whole image calls for. Convolutions of 3x3 need
no more than `LEAST_ELEMENTS` (measured, see docs/large-images.md).

Elsewhere than on a CPU with AVX-512, parts go through the plain functions: their last bits may
differ from the whole image's.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_ELEMENTS = 20480
"""torch sends inputs of one image and no more elements than this to a convolution of its own."""
_GRAIN = 32768
"""Elements up to which torch runs an element-wise function on one thread."""
_LANES = 16
"""float32 values in an AVX-512 register."""


def known(x: Tensor) -> bool:
    """Whether x is computed where this module knows the kernels: float32, CPU, AVX-512."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


# --- SiLU


def silu(x: Tensor, top: int, height: int) -> Tensor:
    """SiLU in place of x [1,C,h,W], which is rows from `top` on of a whole of that height."""
    if not known(x):
        return F.silu(x, inplace=True)
    _, channels, rows, width = x.shape
    tails = _tails(channels * height * width)
    row = tails // width % height - top
    inside = (row >= 0) & (row < rows)
    tails, row = tails[inside], row[inside]
    places = tails // width // height, row, tails % width
    alone = x[0][places]
    _vectorized_silu(x.view(-1))
    # Fewer than a register's worth at a time, so that these go the scalar way.
    for part in alone.split(_LANES // 2):
        F.silu(part, inplace=True)
    x[0][places] = alone
    return x


def _tails(elements: int) -> Tensor:
    """Places in a whole of so many elements that its threads do not take by registers."""
    step = 2 * _LANES
    threads = max(1, min(torch.get_num_threads(), -(-elements // _GRAIN)))
    share = -(-elements // threads)
    ends = [min(elements, share * (number + 1)) for number in range(threads)]
    sizes = [end - share * number for number, end in enumerate(ends)]
    spans = [
        torch.arange(end - size % step, end)
        for end, size in zip(ends, sizes, strict=True)
        if size > 0
    ]
    return torch.cat(spans)


def _vectorized_silu(flat: Tensor) -> None:
    """SiLU in place, every element by registers."""
    block = _GRAIN * torch.get_num_threads()
    main = flat.numel() - flat.numel() % block
    F.silu(flat[:main], inplace=True)  # equal shares, multiples of a register
    for part in flat[main:].split(_GRAIN):
        if part.numel() % (2 * _LANES) == 0:
            F.silu(part, inplace=True)
        else:
            padded = F.pad(part, (0, -part.numel() % (2 * _LANES)))
            part.copy_(F.silu(padded, inplace=True)[: part.numel()])


# --- convolutions of 1x1


def pointwise(conv: nn.Conv2d, x: Tensor, whole: tuple[int, int]) -> Tensor:
    """The 1x1 convolution of x [1,C,h,w], a part of a whole of that height and width."""
    threads = torch.get_num_threads()
    if not known(x) or threads == 1:  # one thread takes a matrix product, which has no blocks
        return F.conv2d(x, conv.weight, conv.bias)
    shape = conv.in_channels, conv.out_channels, threads
    block = sum_block(*whole, *shape)
    total, bias = None, conv.bias
    for first in range(0, conv.in_channels, block):
        last = min(first + block, conv.in_channels)
        part = _in_one_block(x[:, first:last], conv.weight[:, first:last], bias, threads)
        total = part if total is None else total.add_(part)
        bias = None
    assert total is not None
    return total


def _in_one_block(x: Tensor, weight: Tensor, bias: Tensor | None, threads: int) -> Tensor:
    _, channels, rows, width = x.shape
    count = rows * width
    shape = _unbroken(count, channels, weight.shape[0], threads)
    flat = x.reshape(1, channels, count)
    flat = F.pad(flat, (0, shape[0] * shape[1] - count))
    y = F.conv2d(flat.view(1, channels, *shape), weight, bias)
    return y.flatten(2)[:, :, :count].unflatten(2, (rows, width))


@lru_cache(maxsize=256)
def _unbroken(count: int, inputs: int, outputs: int, threads: int) -> tuple[int, int]:
    """A height and width for at least so many positions, at which all channels are one block."""
    for extra in range(4096):
        for height in (1, 29):
            width = max(-(-(count + extra) // height), LEAST_ELEMENTS // (inputs * height) + 1)
            if sum_block(height, width, inputs, outputs, threads) >= inputs:
                return height, width
    return 1, count  # no such shape: the last bits are left to chance


@lru_cache(maxsize=256)
def sum_block(height: int, width: int, inputs: int, outputs: int, threads: int) -> int:
    """Input channels that oneDNN's 1x1 convolution (jit_1x1:avx512_core) sums in one go.

    Sums of several blocks are added up afterwards, which rounds otherwise than one long sum. The
    block is a matter of cache sizes: this follows the choice that the library makes when it sets
    up a forward convolution of one float32 image.
    """
    inputs, outputs = (-(-channels // _LANES) * _LANES for channels in (inputs, outputs))
    positions, blocks = height * width, inputs // _LANES
    broadcast = threads <= 8
    if broadcast:
        narrow = 10 < height < 28
        most, least = (6, 5) if narrow and 128 < outputs < 256 else (9, 6)
        limit = 80 if narrow and outputs <= 256 else 512 if height > 10 else 256
        block = min(inputs, limit)
    else:
        most, least = 30, 9
        block = inputs
        if inputs >= 1024:
            limit = 8 if height > 10 else 16
            block = _LANES * max(n for n in range(1, limit + 1) if blocks % n == 0)
    unroll = _unroll(height, positions, most, least)
    return _without_aliases(block, positions, unroll)


def _unroll(height: int, positions: int, most: int, least: int) -> int:
    """Positions that a kernel call holds in registers."""
    line = height if height >= 14 else positions
    for unroll in range(most, least - 1, -1):
        if line % unroll == 0:
            return unroll
    best, tail = min(most, positions), positions % most
    for unroll in range(most, least - 1, -1):
        rest = positions % unroll
        if rest > tail or rest == 0:
            best, tail = unroll, rest
            if rest == 0:
                break
    return best


def _without_aliases(block: int, positions: int, unroll: int) -> int:
    """The block, or a smaller one where too many of its planes would fall in one set of the L2."""
    way, hits = 64 * 1024 // 4, 7
    if positions * block <= way * hits:
        return block
    way //= _LANES
    planes = block // _LANES
    for start in range(unroll):
        offsets = np.arange(start, positions * planes, way)
        hit = offsets[offsets % positions < unroll]
        if len(hit) >= hits:
            block = min(block, _LANES * max(1, (int(hit[hits - 1]) + way) // positions))
    return block
