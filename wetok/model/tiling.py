"""Images that don't fit in memory: which way to take them through a network, and the ways.

whole   the network's own forward pass
exact   stage by stage over strips, activations in files: the same bits      (model/strips.py)
fast    overlapping tiles with statistics from a sample: nearly the same     (model/tiles.py)
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from wetok.config import WetokError
from wetok.model import stages, strips, tiles
from wetok.model.layers import EPSILON, code_statistics
from wetok.model.network import TokenizerNetwork
from wetok.model.pixels import Output, Picture, Pixels
from wetok.model.stages import Condition, Stage
from wetok.model.strips import Activation, Plane

Mode: TypeAlias = Literal["auto", "off", "fast", "exact"]
MODES: tuple[Mode, ...] = get_args(Mode)

_WINDOW = 64
"""Side of a window, in pixels."""
_COPIES = 5
"""Activations of the widest stage that a forward pass holds at a time: its input, the input kept
for the residual, the output, and both as the convolution lays them out."""
_DRAWS = 1 << 20


@dataclass(frozen=True)
class Tiling:
    """How images are taken through a network.

    Attributes:
        mode: "off": as a whole. "exact": over strips, with files for the activations; the same
            ids and pixels. "fast": over tiles; a small share of the bits differs. "auto": as a
            whole where memory allows it, else exact.
        tile: side of a tile in pixels (fast).
        overlap: pixels that neighbouring tiles share at least (fast). By default twice as far as
            the network looks, which leaves no seam, but not more than half a tile.
        windows: of 64 x 64 pixels, from which the norms' statistics are taken (fast); as many
            as cover the image give the image's own.
        scratch: folder of the files (exact, and the noise of generative decoders); the system's
            folder for temporary files by default, which the variable TMPDIR names.

    Raises:
        WetokError: a value that can't be.
    """

    mode: Mode = "auto"
    tile: int = 512
    overlap: int | None = None
    windows: int = 96
    scratch: str | Path | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise WetokError(f"tiles={self.mode!r} must be one of {', '.join(MODES)}")
        if self.tile < 1 or self.windows < 1:
            raise WetokError(
                f"tile={self.tile} (pixels) and windows={self.windows} must be at least 1"
            )
        if self.overlap is not None and not 0 <= self.overlap <= self.tile // 2:
            raise WetokError(
                f"overlap={self.overlap} must lie in 0..{self.tile // 2}, half of tile={self.tile}"
            )

    @classmethod
    def of(cls, tiles: Mode | Tiling) -> Tiling:
        """`tiles` itself, or the mode of that name with everything else as it comes."""
        return tiles if isinstance(tiles, Tiling) else cls(tiles)

    def chosen(
        self, network: TokenizerNetwork, size: tuple[int, int], device: torch.device
    ) -> Literal["off", "fast", "exact"]:
        """What "auto" comes down to for an image of `size`; the other modes are themselves."""
        if self.mode != "auto":
            return self.mode
        free = _free_memory(device)
        return "off" if free is None or whole_bytes(network, size) <= 0.8 * free else "exact"


def whole_bytes(network: TokenizerNetwork, size: tuple[int, int]) -> int:
    """About what the larger of encoder and decoder needs for an image as a whole, in bytes."""
    factor, patch = network.config.factor, network.config.patch
    height, width = (-(-side // factor) for side in size)
    scale = factor // patch
    widest = 0
    for parts, shape in (
        (stages.encoder_stages(network.encoder), (3 * patch**2, height * scale, width * scale)),
        (stages.decoder_stages(network.decoder), (network.config.bits, height, width)),
    ):
        for stage in parts:
            shape = strips.output_shape(stage, shape)
            widest = max(widest, math.prod(shape))
    return 4 * _COPIES * widest


@torch.no_grad()
def latent_bands(
    network: TokenizerNetwork, image: Any, tiling: Tiling, mode: Literal["fast", "exact"]
) -> Iterator[tuple[int, Tensor]]:
    """The latent of one image, as bands (first position's row, [1,d,rows,w]), top to bottom.

    Args:
        image: RGB PIL image, uint8 [H,W,3] or float [3,H,W] in [-1,1].
    """
    config, device = network.config, _device(network)
    pixels = Pixels(image, config.factor, config.patch)
    parts = stages.encoder_stages(network.encoder)
    scale = config.factor // config.patch
    positions = pixels.shape[1] // scale, pixels.shape[2] // scale
    reach = stages.reach(parts, 1 / scale)
    yield from _bands(parts, pixels, positions, reach, tiling, mode, device, None, config.factor)


@torch.no_grad()
def decoded(
    network: TokenizerNetwork,
    ids: Tensor,
    size: tuple[int, int],
    seed: int,
    output: Output,
    tiling: Tiling,
    mode: Literal["fast", "exact"],
    known: int | None = None,
) -> Any:
    """One image of ids [1,g,h,w]: a PIL image, or a tensor [3,H,W] (uint8, or float in [-1,1]).

    Args:
        size: its true height and width.
        known: groups that are known, of g; the bits of the others count as neither sign.
    """
    picture = None
    for top, band in image_bands(network, ids, seed, tiling, mode, known):
        picture = picture or Picture(size, output, _device(network))  # after all that goes before
        picture.put(top, band)
    assert picture is not None
    return picture.result()


@torch.no_grad()
def image_bands(
    network: TokenizerNetwork,
    ids: Tensor,
    seed: int,
    tiling: Tiling,
    mode: Literal["fast", "exact"],
    known: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The decoder's output for ids [1,g,h,w], as bands (first row, [1,3,rows,f*w]), not clamped."""
    config, device = network.config, _device(network)
    noise = None
    if config.generative:
        noise = _noise(seed, (config.bits, ids.shape[2], ids.shape[3]), tiling.scratch)
    try:
        code = _Code(network, ids, noise, known)
        condition = code.statistics(device) if mode == "exact" else code.counted(device)
        parts = stages.decoder_stages(network.decoder)
        positions = (ids.shape[2], ids.shape[3])
        reach = stages.reach(parts, 1)
        yield from _bands(
            parts, code, positions, reach, tiling, mode, device, condition, config.factor
        )
    finally:
        if noise is not None:
            noise.close()


def _bands(
    parts: Sequence[Stage],
    plane: Plane,
    positions: tuple[int, int],
    reach: float,
    tiling: Tiling,
    mode: Literal["fast", "exact"],
    device: torch.device,
    condition: Condition | None,
    factor: int,
) -> Iterator[tuple[int, Tensor]]:
    if mode == "exact":
        _check_scratch(tiling.scratch, strips.scratch_bytes(parts, plane.shape))
        yield from strips.in_strips(parts, plane, device, condition, tiling.scratch)
        return
    tile, seen = max(2, -(-tiling.tile // factor)), math.ceil(reach)
    overlap = 2 * seen if tiling.overlap is None else -(-tiling.overlap // factor)
    grid = tiles.Grid(positions, tile, min(overlap, tile // 2), seen)
    windows = tiles.sample(grid, max(1, _WINDOW // factor), tiling.windows)
    moments = tiles.estimate(parts, plane, grid, windows, device, condition)
    yield from tiles.in_tiles(parts, plane, grid, moments, device, condition)


class _Code:
    """The code of ids, with the noise as further channels where there is any, by windows."""

    def __init__(
        self,
        network: TokenizerNetwork,
        ids: Tensor,
        noise: Activation | None,
        known: int | None,
    ) -> None:
        self._quantizer, self._ids, self._noise, self._known = network.quantizer, ids, noise, known
        self._bits = network.config.bits
        channels = self._bits * (1 if noise is None else 2)
        self.shape = (channels, ids.shape[2], ids.shape[3])

    def read(self, top: int, bottom: int, left: int = 0, right: int | None = None) -> Tensor:
        code = self._code(top, bottom, left, right)
        if self._noise is None:
            return code
        return torch.cat([code, self._noise.read(top, bottom, left, right)], 1)

    def _code(self, top: int, bottom: int, left: int = 0, right: int | None = None) -> Tensor:
        code = self._quantizer.ids_to_code(self._ids[:, :, top:bottom, left:right].cpu())
        if self._known is not None:
            code[:, self._known * self._quantizer.group_bits :] = 0
        return code

    def statistics(self, device: torch.device) -> Condition:
        """By the function that the decoder calls, which wants the code in one piece."""
        _, height, width = self.shape
        code = torch.empty(1, self._bits, height, width)
        for top, bottom in self._rows():
            code[:, :, top:bottom] = self._code(top, bottom)
        return code_statistics(code.to(device))

    def counted(self, device: torch.device) -> Condition:
        """From sums over rows; the same up to rounding, in less memory."""
        total = squares = torch.zeros(self._bits, dtype=torch.float64)
        for top, bottom in self._rows():
            code = self._code(top, bottom)[0].flatten(1).double()
            total, squares = total + code.sum(1), squares + code.square().sum(1)
        count = self.shape[1] * self.shape[2]
        mean = total / count
        variance = (squares - count * mean.square()) / max(1, count - 1)
        deviation = (variance.clamp(min=0) + EPSILON).sqrt()
        return mean.float()[None].to(device), deviation.float()[None].to(device)

    def _rows(self) -> Iterator[tuple[int, int]]:
        _, height, width = self.shape
        step = max(1, (1 << 20) // (self._bits * width))
        for top in range(0, height, step):
            yield top, min(top + step, height)


def _noise(seed: int, shape: tuple[int, int, int], folder: str | Path | None) -> Activation:
    """`sample_noise` of that seed, in a file: the generator gives the same numbers part by part
    as at once, while parts are multiples of the 16 that it makes at a time."""
    noise = Activation(shape, folder)
    generator = torch.Generator().manual_seed(seed)
    count, done = math.prod(shape), 0
    while done < count:
        part = count - done if count - done < _DRAWS + 16 else _DRAWS
        noise.put(done, torch.randn(part, generator=generator))
        done += part
    return noise


def _check_scratch(folder: str | Path | None, needed: int) -> None:
    folder = folder or tempfile.gettempdir()
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise WetokError(
            f"scratch folder {str(folder)!r} can't be used: {error.strerror}; name another"
        ) from None
    if free < needed:
        raise WetokError(
            f"scratch folder {str(folder)!r} has {free / 1e9:.1f} GB free, and exact tiles of this "
            f"image need {needed / 1e9:.1f} GB: set TMPDIR to a folder on a larger disk, or "
            "take fast tiles"
        )


def _device(network: TokenizerNetwork) -> torch.device:
    return next(network.parameters()).device


def _free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on the device, None where that can't be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
