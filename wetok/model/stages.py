"""Encoder and decoder as a list of stages, for a network that runs over an image piece by piece.

A stage holds at most one norm and one convolution, so that whoever runs the list decides where a
norm's statistics come from and how much of the image is at hand. Run over a whole image with the
image's own statistics, the stages are the network's forward pass (`tests/model/test_stages.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wetok.model.decoder import Decoder
from wetok.model.encoder import Encoder
from wetok.model.layers import (
    AdaptiveGroupNorm,
    GroupNorm,
    ResidualBlock,
    Upsample,
    depth_to_space,
)


@dataclass(frozen=True)
class Stage:
    """[norm] -> [SiLU] -> [convolution] -> [+ what was kept] -> [depth to space], each optional."""

    conv: nn.Conv2d | None = None
    norm: GroupNorm | AdaptiveGroupNorm | None = None
    silu: bool = False
    opens: bool = False
    """Its input is kept for the residual sum of a later stage."""
    closes: bool = False
    """Adds what was kept, through `shortcut` where there is one."""
    shortcut: nn.Conv2d | None = None
    up: int = 1
    """Side of the depth to space at the end."""
    code_bits: int | None = None
    """d where the input is code and noise, 2d channels, whose convolutions are summed."""

    @property
    def dtype(self) -> torch.dtype | None:
        """What its convolution computes in; None where it has none and takes what comes."""
        return None if self.conv is None else self.conv.weight.dtype

    @property
    def stride(self) -> int:
        """Input rows for each row of the convolution's output."""
        return 1 if self.conv is None else self.conv.stride[0]

    @property
    def reach(self) -> int:
        """Rows beyond its own that a row of the output looks at, on either side."""
        return 0 if self.conv is None else self.conv.kernel_size[0] // 2

    def channels(self, channels: int) -> int:
        """Channels of the output, for an input of so many."""
        return channels if self.conv is None else self.conv.out_channels // self.up**2


class Moments(NamedTuple):
    """Of one norm's input: mean and 1 / sqrt(variance + epsilon) of each group, [G] both."""

    mean: Tensor
    inverse: Tensor


Condition = tuple[Tensor, Tensor]
"""Mean and deviation of the code, [1,d] each, for the decoder's adaptive norms."""


def encoder_stages(encoder: Encoder) -> list[Stage]:
    """The encoder behind its patch stem: [1, 3p^2, H/p, W/p] to the latent."""
    stages = [Stage(encoder.conv_in)]
    for level in encoder.down:
        stages += _blocks(level.block)
        if isinstance(level.downsample, nn.Conv2d):
            stages.append(Stage(level.downsample))
    stages += _blocks(encoder.mid_block)
    return [*stages, Stage(encoder.conv_out, encoder.norm_out, silu=True)]


def decoder_stages(decoder: Decoder) -> list[Stage]:
    """The decoder from code (and noise, as further channels) to the image."""
    bits = decoder.bits if decoder.generative else None
    stages = [Stage(decoder.conv_in, code_bits=bits), *_blocks(decoder.mid_block)]
    for adaptive, level in zip(reversed(decoder.adaptive), reversed(decoder.up), strict=True):
        assert isinstance(adaptive, AdaptiveGroupNorm)
        stages += [Stage(norm=adaptive), *_blocks(level.block)]
        if isinstance(level.upsample, Upsample):
            stages.append(Stage(level.upsample.conv1, up=2))
    return [*stages, Stage(decoder.conv_out, decoder.norm_out, silu=True, up=decoder.patch)]


def _blocks(blocks: Tensor | nn.Module) -> Iterator[Stage]:
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        assert isinstance(block, ResidualBlock)
        yield Stage(block.conv1, block.norm1, silu=True, opens=True)
        shortcut = None if block.same_width else block.nin_shortcut
        yield Stage(block.conv2, block.norm2, silu=True, closes=True, shortcut=shortcut)


def reach(stages: Sequence[Stage], scale: float) -> float:
    """How far an output looks at the input, on either side, norms apart.

    Args:
        scale: the unit of the result, as rows of the first stage's input: `patch` for pixels of
            an encoder's image, 1 for positions of a decoder's code.
    """
    total = 0.0
    for stage in stages:
        total += stage.reach * scale
        scale *= stage.stride / stage.up
    return total


def run(
    stages: Sequence[Stage],
    x: Tensor,
    moments: Callable[[int, Tensor], Moments],
    condition: Condition | None = None,
) -> Tensor:
    """The stages over one piece [1,C,H,W] that is at hand as a whole, padded with zeros.

    Args:
        moments: those of a norm, from the stage's index and its input.
    """
    kept: Tensor | None = None
    x = entered(stages, x)
    for index, stage in enumerate(stages):
        kept = x if stage.opens else kept
        given = None if stage.norm is None else moments(index, x)
        x = advanced(stage, x, kept, given, condition)
        kept = None if stage.closes else kept
    return x


def entered(stages: Sequence[Stage], x: Tensor) -> Tensor:
    """x in the type and memory format that the stages compute in."""
    conv = stages[0].conv
    assert conv is not None
    if conv.weight.dtype == x.dtype:
        return x
    return x.to(conv.weight.dtype, memory_format=torch.channels_last)


def advanced(
    stage: Stage,
    x: Tensor,
    kept: Tensor | None,
    moments: Moments | None,
    condition: Condition | None,
) -> Tensor:
    """The stage over one piece x that is at hand as a whole; x and kept stay as they are."""
    y = x if moments is None else normalized(stage, x, moments, condition)
    if stage.silu:
        y = F.silu(y, inplace=True)
    if stage.conv is not None:
        y = convolved(stage, y, stage.reach)
    if stage.closes:
        assert kept is not None
        y += kept if stage.shortcut is None else stage.shortcut(kept)
    return depth_to_space(y, stage.up) if stage.up > 1 else y


def convolved(stage: Stage, x: Tensor, pad_rows: int) -> Tensor:
    """The stage's convolution, with `pad_rows` rows of zeros above and below."""
    conv = stage.conv
    assert conv is not None
    padding = (pad_rows, stage.reach)
    if stage.code_bits is None:
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, padding)
    # As `Decoder` does it, to the last bit.
    weight, noise_weight = conv.weight.split(stage.code_bits, dim=1)
    code, noise = x.split(stage.code_bits, dim=1)
    layout = torch.channels_last if x.dtype == torch.bfloat16 else torch.contiguous_format
    code, noise = (each.contiguous(memory_format=layout) for each in (code, noise))
    y = F.conv2d(code, weight, conv.bias, padding=padding)
    y += F.conv2d(noise, noise_weight, padding=padding)
    return y


def normalized(stage: Stage, x: Tensor, moments: Moments, condition: Condition | None) -> Tensor:
    """The stage's norm of x [1,C,h,W] with these moments; a new tensor.

    On the CPU the result is that of torch's own kernel to the last bit, given its moments.
    What is not float32 or float64 is computed in float32 and rounded once, as that kernel does.
    """
    if x.dtype == torch.bfloat16:
        return _normalized(stage, x.float(), moments, condition).to(torch.bfloat16)
    return _normalized(stage, x, moments, condition)


def _normalized(stage: Stage, x: Tensor, moments: Moments, condition: Condition | None) -> Tensor:
    norm = stage.norm
    assert norm is not None
    group_norm = norm.gn if isinstance(norm, AdaptiveGroupNorm) else norm
    repeats = group_norm.num_channels // group_norm.num_groups
    mean, inverse = (each.repeat_interleave(repeats) for each in moments)
    if isinstance(norm, AdaptiveGroupNorm):
        assert condition is not None
        code_mean, code_deviation = condition
        weight, bias = norm.gamma(code_deviation)[0], norm.beta(code_mean)[0]
    else:
        weight, bias = norm.weight, norm.bias
    scale = inverse * weight
    if _fused(x.device.type, x.dtype):
        shift = torch.addcmul(bias, -scale, mean)
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])
    y = x * scale[:, None, None]
    y += (bias - scale * mean)[:, None, None]
    return y


@lru_cache(maxsize=8)
def _fused(device: str, dtype: torch.dtype) -> bool:
    """Whether torch's group norm rounds scale * x + shift once; that depends on its compiler."""
    x = torch.linspace(-1, 1, 4096, dtype=dtype, device=device).sin().view(1, 4, 32, 32)
    weight = torch.tensor([0.3, 1.7, -0.9, 1.1], dtype=dtype, device=device)
    bias = weight.flip(0)
    y, mean, inverse = torch.native_group_norm(x, weight, bias, 1, 4, 1024, 1, 1e-6)
    scale = inverse[0] * weight
    shift = torch.addcmul(bias, -scale, mean[0])
    return torch.equal(torch.addcmul(shift[:, None, None], x, scale[:, None, None]), y)
