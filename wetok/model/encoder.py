"""The encoder: image to latent."""

from __future__ import annotations

from torch import Tensor, nn

from wetok.config import ModelConfig
from wetok.model.layers import GroupNorm, ResidualBlock, space_to_depth


class _Level(nn.Module):
    """Residual blocks, then (not on the last level) half the side by a strided convolution."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, last: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.block = nn.ModuleList(
            ResidualBlock(a, b) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.downsample = (
            nn.Identity() if last else nn.Conv2d(channels_out, channels_out, 3, 2, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class Encoder(nn.Module):
    """Image to latent, as in Open-MAGVIT2.

        image [B,3,H,W] -> (patch) -> conv_in -> levels, each half the side -> mid
            -> norm, SiLU, conv_out -> latent [B,d,h,w]

    H and W must be multiples of the factor f; h = H/f, w = W/f.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.mults]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(3 * config.patch**2, config.channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            _Level(before, width, config.blocks, last=index == len(widths) - 1)
            for index, (before, width) in enumerate(
                zip([config.channels, *widths], widths, strict=False)
            )
        )
        self.mid_block = nn.ModuleList(
            ResidualBlock(widths[-1], widths[-1]) for _ in range(config.blocks)
        )
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.bits, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1] -> latent [B,d,h,w]."""
        x = space_to_depth(image, self.patch) if self.patch > 1 else image
        x = self.conv_in(x.to(self.conv_in.weight.dtype))
        for level in self.down:
            x = level(x)
        for block in self.mid_block:
            x = block(x)
        return self.conv_out(self.norm_out.silu(x))
