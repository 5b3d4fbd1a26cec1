"""A network over an image of any size, stage by stage over strips of rows: the exact mode.

Between two stages the activations lie in a file. A norm's statistics are taken from there, group
by group, by the very kernel that takes them in the whole image, and then applied to strips. On a
CPU every value comes out as in the whole image, to the last bit; `wetok.model.kernels` has what
that takes, and `docs/large-images.md` what it was measured on.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from wetok.config import WetokError
from wetok.model import kernels
from wetok.model.layers import AdaptiveGroupNorm, depth_to_space
from wetok.model.stages import Condition, Moments, Stage, convolved, normalized

STRIP_BYTES = 32 << 20
"""Of a strip's input or output, the larger of the two."""
GROUP_BYTES = 256 << 20
"""Of the groups whose statistics are taken at a time; a single group may be larger."""


class Plane(Protocol):
    """[C,H,W] of which windows are read as [1,C,h,w]."""

    shape: tuple[int, int, int]

    def read(self, top: int, bottom: int, left: int = 0, right: int | None = None) -> Tensor: ...


class Activation:
    """[C,H,W] in a file without a name: it is gone with the process, however that ends.

    Read and written, not mapped into memory: mapped pages would count as the process's own.

    Args:
        shape: C, H, W.
        folder: of the file; the system's for temporary files by default.
        dtype: float32 or bfloat16.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        folder: str | Path | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._folder = folder or tempfile.gettempdir()
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise WetokError(
                f"scratch folder {str(self._folder)!r} can't be written: {error.strerror}; "
                "name another"
            ) from None

    def read(self, top: int, bottom: int, left: int = 0, right: int | None = None) -> Tensor:
        """A window [1, C, bottom - top, right - left]."""
        channels, height, width = self.shape
        rows = torch.empty(channels, bottom - top, width, dtype=self.dtype)
        for channel in range(channels):
            self._fill((channel * height + top) * width, rows[channel])
        return rows[None, :, :, left:right]

    def channels(self, first: int, last: int) -> Tensor:
        """Some channels as a whole, [1, last - first, H, W]."""
        _, height, width = self.shape
        planes = torch.empty(1, last - first, height, width, dtype=self.dtype)
        self._fill(first * height * width, planes)
        return planes

    def write(self, top: int, rows: Tensor) -> None:
        """rows [1,C,h,W] at `top`."""
        channels, height, width = self.shape
        rows = rows.cpu().contiguous()
        for channel in range(channels):
            self.put((channel * height + top) * width, rows[0, channel])

    def put(self, offset: int, values: Tensor) -> None:
        """Values in C order, from value number `offset` on."""
        self._file.seek(self.dtype.itemsize * offset)
        view = _bytes(values)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise WetokError(
                f"scratch folder {str(self._folder)!r} is full; name another, on a larger disk"
            ) from None

    def _fill(self, offset: int, values: Tensor) -> None:
        self._file.seek(self.dtype.itemsize * offset)
        view = _bytes(values)
        while view:
            view = view[self._file.readinto(view) :]

    def close(self) -> None:
        """Gives the disk space back."""
        self._file.close()


def _bytes(values: Tensor) -> memoryview:
    """The memory of contiguous values; numpy has no bfloat16, but as many bytes."""
    plain = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
    return memoryview(plain.numpy()).cast("B")  # type: ignore[arg-type]


def in_strips(
    stages: Sequence[Stage],
    plane: Plane,
    device: torch.device,
    condition: Condition | None = None,
    folder: str | Path | None = None,
    strip_bytes: int = STRIP_BYTES,
) -> Iterator[tuple[int, Tensor]]:
    """The stages' output over all of `plane`, as bands (top row, [1,C,rows,W]) from top to bottom.

    Args:
        plane: what the first stage takes.
        condition: of a decoder's adaptive norms.
        folder: of the files, up to `scratch_bytes` in all; the system's by default.

    Raises:
        WetokError: a folder that can't be written, or gets full.
    """
    x: Plane = plane
    dtype = stages[0].dtype or torch.float32
    kept: Plane | None = None
    files: list[Activation] = []
    try:
        for index, stage in enumerate(stages):
            moments = _moments(stage, x, device) if isinstance(x, Activation) else None
            kept = x if stage.opens else kept
            target = None
            if index < len(stages) - 1:
                target = Activation(output_shape(stage, x.shape), folder, dtype)
                files.append(target)
            for top, bottom, whole in cut(stage, x.shape, strip_bytes):
                y = _strip(stage, x, (top, bottom), whole, moments, condition, device)
                if stage.closes:
                    assert kept is not None
                    y += _residual(stage, kept, (top, bottom), whole, device)
                y = depth_to_space(y, stage.up) if stage.up > 1 else y
                if target is None:
                    yield top * stage.up, y
                else:
                    target.write(top * stage.up, y)
                del y
            if target is None:
                return
            x, kept = target, None if stage.closes else kept
            files = _closed(files, {id(x), id(kept)})
    finally:
        _closed(files, set())


def scratch_bytes(stages: Sequence[Stage], shape: tuple[int, int, int]) -> int:
    """The most that `in_strips` has in files at a time, for a plane of that shape."""
    most = kept = size = 0
    itemsize = (stages[0].dtype or torch.float32).itemsize
    for stage in stages[:-1]:
        shape = output_shape(stage, shape)
        after = itemsize * shape[0] * shape[1] * shape[2]
        # What is kept and the input are one file until the stage that opens has run.
        most = max(most, size + kept + after)
        kept = size if stage.opens else 0 if stage.closes else kept
        size = after
    return most


def output_shape(stage: Stage, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """[C,H,W] of what the stage makes of [C,H,W]."""
    channels, height, width = shape
    height, width = (side // stage.stride * stage.up for side in (height, width))
    return stage.channels(channels), height, width


def cut(
    stage: Stage, shape: tuple[int, int, int], strip_bytes: int
) -> Iterator[tuple[int, int, bool]]:
    """Strips of the convolution's output: (top, bottom, whether it is the only one)."""
    channels, height, width = shape
    rows = height // stage.stride
    out = stage.channels(channels) * stage.up**2
    row_bytes = 4 * max(channels * width * stage.stride, out * width // stage.stride)
    inputs = stage.code_bits or channels
    least = kernels.LEAST_ELEMENTS // (inputs * width * stage.stride) + 1
    count = max(1, min(rows // least, -(-rows * row_bytes // strip_bytes)))
    for number in range(count):
        yield rows * number // count, rows * (number + 1) // count, count == 1


def _strip(
    stage: Stage,
    x: Plane,
    span: tuple[int, int],
    whole: bool,
    moments: Moments | None,
    condition: Condition | None,
    device: torch.device,
) -> Tensor:
    """Rows top..bottom of the convolution's output (of the norm's, where there is none)."""
    _, height, width = x.shape
    first = span[0] * stage.stride - stage.reach
    end = (span[1] - 1) * stage.stride + stage.reach + 1
    top, bottom = max(first, 0), min(end, height)
    y = _laid_out(x.read(top, bottom).to(device), stage)
    if moments is not None:
        y = normalized(stage, y, moments, condition)
    if stage.silu:
        y = kernels.silu(y, top, height)
    if stage.conv is None:
        return y
    if whole:
        return convolved(stage, y, stage.reach)
    if stage.conv.kernel_size == (1, 1):
        return kernels.pointwise(stage.conv, y, (height, width))
    if (top, bottom) != (first, end):
        y = F.pad(y, (0, 0, top - first, end - bottom))
    return convolved(stage, y, 0)


def _laid_out(x: Tensor, stage: Stage) -> Tensor:
    """In the type of the stage's convolution, and the memory format that goes with it."""
    dtype = stage.dtype or x.dtype
    if dtype == torch.float32:
        return x
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def _residual(
    stage: Stage, kept: Plane, span: tuple[int, int], whole: bool, device: torch.device
) -> Tensor:
    x = _laid_out(kept.read(*span).to(device), stage)
    if stage.shortcut is None:
        return x
    if whole:
        result: Tensor = stage.shortcut(x)
        return result
    return kernels.pointwise(stage.shortcut, x, kept.shape[1:])


def _moments(stage: Stage, x: Activation, device: torch.device) -> Moments | None:
    """By torch's own kernel, which takes each group on its own, over all of its positions."""
    if stage.norm is None:
        return None
    norm = stage.norm.gn if isinstance(stage.norm, AdaptiveGroupNorm) else stage.norm
    channels, height, width = x.shape
    size = channels // norm.num_groups
    at_once = max(1, GROUP_BYTES // (4 * size * height * width))
    parts = []
    for first in range(0, norm.num_groups, at_once):
        last = min(first + at_once, norm.num_groups)
        groups = x.channels(first * size, last * size).to(device)
        shape = (1, groups.shape[1], height * width, last - first)
        if x.dtype == torch.float32:
            parts.append(torch.native_group_norm(groups, None, None, *shape, norm.eps)[1:])
        else:  # with a weight in float32 the moments are too
            groups = groups.contiguous(memory_format=torch.channels_last)
            one = torch.ones(groups.shape[1], device=device)
            parts.append(torch.native_group_norm(groups, one, one, *shape, norm.eps)[1:])
        del groups
    mean, inverse = (torch.cat([part[k][0] for part in parts]) for k in (0, 1))
    return Moments(mean, inverse)


def _closed(files: list[Activation], needed: set[int]) -> list[Activation]:
    for file in files:
        if id(file) not in needed:
            file.close()
    return [file for file in files if id(file) in needed]
