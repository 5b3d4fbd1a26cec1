"""The two programs that an export holds: image to ids, and ids to image.

Both are plain functions of tensors: what the facade does besides (padding to multiples of the
factor, reading files, naming the model) stays with whoever calls them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from wetok.config import ModelConfig, WetokError
from wetok.model.layers import EPSILON, depth_to_space
from wetok.model.network import TokenizerNetwork

Part = Literal["encoder", "decoder"]
PARTS: tuple[Part, ...] = ("encoder", "decoder")


class Shape(NamedTuple):
    """What an export leaves open: None is any, from 1 on."""

    batch: int | None = None
    height: int | None = None
    width: int | None = None

    def check(self, factor: int) -> None:
        """Raises WetokError unless the sides are multiples of `factor`."""
        for side in (self.height, self.width):
            if side is not None and (side < factor or side % factor):
                size = f"{self.height},{self.width}"
                raise WetokError(f"size={size} must be multiples of the model's factor, {factor}")
        if self.batch is not None and self.batch < 1:
            raise WetokError(f"batch={self.batch} must be at least 1")


class Port(NamedTuple):
    """An input or output: its name, type, and sides (a number, or the name of an open one)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class EncoderProgram(nn.Module):
    """image [B,3,H,W] in [-1,1], H and W multiples of f -> ids [B,g,h,w], int64.

    A bit is 1 where the latent is > 0, so exactly 0, and NaN too, give bit 0.
    """

    def __init__(self, network: TokenizerNetwork) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.groups, self.group_bits = network.config.groups, network.config.group_bits

    def forward(self, image: Tensor) -> Tensor:
        positive = (self.encoder(image) > 0).unflatten(1, (self.groups, self.group_bits))
        ids = positive[:, :, 0].long()
        for k in range(1, self.group_bits):  # ONNX Runtime's sum of int64 is exact to 2^53 only
            ids = ids + positive[:, :, k].long() * 2**k
        return ids


class DecoderProgram(nn.Module):
    """ids [B,g,h,w], int64 (+ noise [B,d,h,w], float32, where generative) -> image [B,3,H,W].

    The image is clamped to [-1,1]. Of an id only its lowest d' bits count.
    """

    weights: Tensor

    def __init__(self, network: TokenizerNetwork) -> None:
        super().__init__()
        self.decoder = network.decoder
        self.group_bits = network.config.group_bits
        device = next(network.parameters()).device
        self.register_buffer("weights", 2 ** torch.arange(self.group_bits, device=device), False)

    def forward(self, ids: Tensor, noise: Tensor | None = None) -> Tensor:
        # Division, not a shift: ONNX shifts unsigned integers only.
        bits = (ids[:, :, None] // self.weights[:, None, None]) % 2  # [B, g, d', h, w]
        code = bits.flatten(1, 2).float() * 2 - 1
        decoder = self.decoder
        mean, deviation = _statistics(code)
        x = decoder._enter(code, noise)
        for block in decoder.mid_block:
            x = block(x)
        for adaptive, level in zip(reversed(decoder.adaptive), reversed(decoder.up), strict=True):
            x = level(adaptive(x, mean, deviation))
        x = decoder.conv_out(decoder.norm_out.silu(x))
        x = depth_to_space(x, decoder.patch) if decoder.patch > 1 else x
        return x.clamp(-1, 1)


def _statistics(code: Tensor) -> tuple[Tensor, Tensor]:
    """`wetok.model.layers.code_statistics` without its branch for a single position, which a
    traced program could take only one way."""
    flat = code.flatten(2)
    mean = flat.mean(-1)
    spread = (flat - mean[..., None]).square().sum(-1)
    variance = spread / torch.sym_max(flat.shape[-1] - 1, 1)
    return mean, (variance + EPSILON).sqrt()


def program(network: TokenizerNetwork, part: Part) -> nn.Module:
    """The program of a network in evaluation mode."""
    made = EncoderProgram(network) if part == "encoder" else DecoderProgram(network)
    return made.eval()


def ports(config: ModelConfig, part: Part, shape: Shape) -> tuple[tuple[Port, ...], Port]:
    """Inputs and output of a part; open sides are `batch`, and `h`, `w` or `f*h`, `f*w`."""
    factor = config.factor
    batch: int | str = "batch" if shape.batch is None else shape.batch
    rows: int | str = "h" if shape.height is None else shape.height // factor
    columns: int | str = "w" if shape.width is None else shape.width // factor
    sides = (
        f"{factor}*h" if shape.height is None else shape.height,
        f"{factor}*w" if shape.width is None else shape.width,
    )
    image = Port("image", "float32", (batch, 3, *sides))
    ids = Port("ids", "int64", (batch, config.groups, rows, columns))
    noise = Port("noise", "float32", (batch, config.bits, rows, columns))
    if part == "encoder":
        return (image,), ids
    return ((ids, noise) if config.generative else (ids,)), image


def example(config: ModelConfig, part: Part, shape: Shape) -> tuple[Tensor, ...]:
    """Inputs to trace with: open sides take small sizes that differ."""
    batch = shape.batch or 2
    rows = (shape.height or 3 * config.factor) // config.factor
    columns = (shape.width or 5 * config.factor) // config.factor
    if part == "encoder":
        return (torch.zeros(batch, 3, rows * config.factor, columns * config.factor),)
    ids = torch.zeros(batch, config.groups, rows, columns, dtype=torch.int64)
    if not config.generative:
        return (ids,)
    return ids, torch.zeros(batch, config.bits, rows, columns)


def dynamic_shapes(config: ModelConfig, part: Part, shape: Shape) -> tuple[dict[int, object], ...]:
    """What `torch.export` is told of each input's open sides."""
    from torch.export import Dim

    factor = config.factor if part == "encoder" else 1
    dims: dict[int, object] = {}
    for index, (name, given, step) in enumerate(
        (("batch", shape.batch, 1), ("h", shape.height, factor), ("w", shape.width, factor))
    ):
        if given is None:
            position = 0 if index == 0 else index + 1
            side = Dim(name, min=1)
            dims[position] = side if step == 1 else step * side
    count = 2 if part == "decoder" and config.generative else 1
    return (dims,) * count
