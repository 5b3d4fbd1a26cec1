"""The decoder: code (and, where generative, noise) to image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wetok.config import ModelConfig, WetokError
from wetok.model.layers import (
    AdaptiveGroupNorm,
    GroupNorm,
    ResidualBlock,
    Upsample,
    code_statistics,
    depth_to_space,
)


class _Level(nn.Module):
    """Residual blocks, then (not on the finest level) twice the side."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, finest: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.block = nn.ModuleList(
            ResidualBlock(a, b) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.upsample = nn.Identity() if finest else Upsample(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.upsample(x)


class Decoder(nn.Module):
    """Code to image, as in Open-MAGVIT2; with `generative`, WeTok's generative decoder.

    code [B,d,h,w] (+ noise [B,d,h,w]) -> conv_in -> mid
        -> levels, coarsest first: adaptive norm (by the code), blocks, twice the side
        -> norm, SiLU, conv_out -> (patch) -> image [B,3,f*h,f*w], not clamped
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.decoder_channels or config.channels
        blocks = config.decoder_blocks or config.blocks
        # Index 0 is the finest level, as in the released state dicts; they run in reverse.
        widths = [channels * mult for mult in config.decoder_mults or config.mults]
        self.bits = config.bits
        self.patch = config.patch
        self.generative = config.generative
        inputs = config.bits * (2 if config.generative else 1)
        self.conv_in = nn.Conv2d(inputs, widths[-1], 3, padding=1)
        self.mid_block = nn.ModuleList(ResidualBlock(widths[-1], widths[-1]) for _ in range(blocks))
        before = [*widths[1:], widths[-1]]
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(config.bits, width) for width in before)
        self.up = nn.ModuleList(
            _Level(a, b, blocks, finest=index == 0)
            for index, (a, b) in enumerate(zip(before, widths, strict=True))
        )
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3 * config.patch**2, 3, padding=1)

    def forward(self, code: Tensor, noise: Tensor | None = None) -> Tensor:
        """code, noise [B,d,h,w] -> image [B,3,f*h,f*w], about [-1,1], not clamped.

        Raises:
            WetokError: noise missing for a generative decoder, or given to a deterministic one.
        """
        mean, deviation = code_statistics(code)
        x = self._enter(code, noise)
        for block in self.mid_block:
            x = block(x)
        for adaptive, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = level(adaptive(x, mean, deviation))
        x = self.conv_out(self.norm_out.silu(x))
        return depth_to_space(x, self.patch) if self.patch > 1 else x

    def _enter(self, code: Tensor, noise: Tensor | None) -> Tensor:
        if self.generative != (noise is not None):
            state = "needs noise beside the code" if self.generative else "takes no noise"
            raise WetokError(f"noise={'None' if noise is None else 'given'}: this decoder {state}")
        code = code.to(self.conv_in.weight.dtype)
        if noise is None:
            return self.conv_in(code)
        # conv_in over [code, noise] as a sum of two: while the noise half is zero the sum is
        # exactly the code half, whatever the order in which a kernel adds up its channels.
        weight, noise_weight = self.conv_in.weight.split(self.bits, dim=1)
        x = F.conv2d(code, weight, self.conv_in.bias, padding=1)
        # In place, which keeps strides, and with them the kernels that follow.
        x += F.conv2d(noise.to(code.dtype), noise_weight, padding=1)
        return x


def sample_noise(seeds: Sequence[int], shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal noise [len(seeds), *shape] on `like`'s device, drawn sample by sample.

    Each sample comes from a CPU generator of its own, so it depends on its seed alone: not on
    the batch it is in, nor on the device.
    """
    rows = [
        torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    return torch.stack(rows).to(like.device)
