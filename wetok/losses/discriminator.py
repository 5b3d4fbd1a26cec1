"""The two discriminators of the released training code: networks that tell photographs from fakes.

Shapes: B images, C channels, H x W positions; logits are a map, one number a patch, real above 0.
Attribute names follow the released checkpoints, so that their tensors load by name.

Sources: PatchGAN, Isola et al., "Image-to-Image Translation with Conditional Adversarial
Networks", CVPR 2017; the blur-pooled one, Weber et al., "MaskBit", 2024, which follows
MAGVIT-v2 and Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wetok.config import WetokError
from wetok.distributed import all_reduce_sum_, is_distributed

_WIDEST = 8
"""Multiple of the first layer's width at which PatchGAN stops to widen."""
_BLUR = (1, 3, 3, 1)


class PatchDiscriminator(nn.Module):
    """PatchGAN: [B,channels,H,W] in [-1,1] -> logits [B,1,h,w], h = floor(H / 2^layers) - 2.

        4x4 stride 2 (filters), LeakyReLU
        layers - 1 times: 4x4 stride 2 (twice as wide, up to 8 x filters), batch norm, LeakyReLU
        4x4 (twice as wide, up to 8 x filters), batch norm, LeakyReLU
        4x4 to one channel

    Starts from normal weights of deviation 0.02, as published. Batch norm averages over all
    processes.

    Raises:
        WetokError: `channels`, `filters` or `layers` below 1.
    """

    def __init__(self, channels: int = 3, filters: int = 64, layers: int = 3) -> None:
        super().__init__()
        _check_sizes("PatchDiscriminator", channels=channels, filters=filters, layers=layers)
        self.channels = channels
        self.smallest = 3 * 2**layers
        """Side of an image below which no logit is left."""
        widths = [filters * min(2**level, _WIDEST) for level in range(layers + 1)]
        parts: list[nn.Module] = [
            nn.Conv2d(channels, filters, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            parts += [
                # No bias: the norm that follows would take it away again.
                nn.Conv2d(widths[level - 1], widths[level], 4, stride, padding=1, bias=False),
                DistributedBatchNorm2d(widths[level]),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        parts.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*parts)
        for part in parts:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)
            elif isinstance(part, DistributedBatchNorm2d):
                nn.init.normal_(part.weight, 1.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images.

        Raises:
            WetokError: not [B,channels,H,W], or a side is smaller than `smallest`.
        """
        _check_image("PatchDiscriminator", image, self.channels, self.smallest, "layers")
        logits: Tensor = self.main(image)
        return logits


class BlurDiscriminator(nn.Module):
    """MaskBit's discriminator: [B,channels,H,W] in [-1,1] -> [B,1,h,w], h = ceil(H / 2^stages).

        5x5 (hidden), LeakyReLU
        for each stage: 3x3 (hidden x 1, 1, 2, 4, ...), blur pool by 2, group norm, LeakyReLU
        1x1, LeakyReLU, 5x5 to one channel

    No norm looks across images. Groups of a norm are 32, as published, or for widths that 32 does
    not divide the largest divisor below it.

    Raises:
        WetokError: `channels`, `hidden` or `stages` below 1.
    """

    def __init__(self, channels: int = 3, hidden: int = 128, stages: int = 4) -> None:
        super().__init__()
        _check_sizes("BlurDiscriminator", channels=channels, hidden=hidden, stages=stages)
        self.channels = channels
        # 2 x 2 positions at the end: a norm needs more than one value a group.
        self.smallest = 2**stages + 1
        """Side of the smallest image it takes."""
        self.block_in = nn.Sequential(
            nn.Conv2d(channels, hidden, 5, padding=2), nn.LeakyReLU(0.1, inplace=True)
        )
        self.blocks = nn.ModuleList()
        width = hidden
        for stage in range(stages):
            before, width = width, hidden * 2**stage
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, padding=1),
                    BlurPool(),
                    nn.GroupNorm(_norm_groups(width), width),
                    nn.LeakyReLU(0.1, inplace=True),
                )
            )
        self.to_logits = nn.Sequential(
            nn.Conv2d(width, width, 1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(width, 1, 5, padding=2),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images.

        Raises:
            WetokError: not [B,channels,H,W], or a side is smaller than `smallest`.
        """
        _check_image("BlurDiscriminator", image, self.channels, self.smallest, "stages")
        x = self.block_in(image)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.to_logits(x)
        return logits


class BlurPool(nn.Module):
    """Half the side, rounded up: every channel blurred by 1-3-3-1 in both directions, then thinned.

    Borders count as 0; an odd side is padded once more at its end.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor(_BLUR, dtype=torch.float32)
        square = torch.outer(line, line)
        self.register_buffer("kernel", (square / square.sum())[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,ceil(H/2),ceil(W/2)]."""
        channels, height, width = x.shape[1:]
        x = F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2))
        return F.conv2d(x, self.kernel.expand(channels, -1, -1, -1), stride=2, groups=channels)


class DistributedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the images of all processes, on any device.

    In training every rank must call it, with any number of images each and more than one position
    in all; gradients then average (as `DistributedDataParallel` averages them) to those of one
    process with the whole batch. Running statistics are those of the whole batch and equal on
    every rank. In a single process and in evaluation it is `nn.BatchNorm2d` itself.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> the same shape and type; statistics in float32 at least."""
        if not (self.training and is_distributed()):
            return super().forward(x)
        return self._normalise(x)

    def _normalise(self, x: Tensor) -> Tensor:
        y, mean, variance, count = _BatchNorm.apply(x, self.weight, self.bias, self.eps)
        running_mean, running_var = self.running_mean, self.running_var
        assert running_mean is not None and running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), self.momentum)
            # Of the sample, as nn.BatchNorm2d keeps it; it normalises by that of the batch.
            unbiased = variance * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        normalised: Tensor = y
        return normalised


_POSITIONS = (0, 2, 3)


class _BatchNorm(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias with everyone's mean and variance.

    A loss on one rank reaches the other ranks' x through the statistics, so the backward pass adds
    up what all ranks have to say about them:
    dx = weight / sqrt(variance + eps) * (dy - E[dy] - x' * E[dy x']), E over everyone's positions.
    (`distributed.all_reduce_mean` instead expects one loss that all ranks share.)
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = _wide(x)
        own = wide.new_full((1,), x.numel() / x.shape[1])
        sums = all_reduce_sum_(torch.cat([wide.sum(_POSITIONS), own]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        # Around the mean of all, for E[x^2] - mean^2 would cancel.
        variance = all_reduce_sum_((wide - _map(mean)).square().sum(_POSITIONS)) / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        y = (wide - _map(mean)) * _map(scale * weight) + _map(bias)
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        normal = (_wide(x) - _map(mean)) * _map(scale)
        wide = _wide(grad)
        d_bias, d_weight = wide.sum(_POSITIONS), (wide * normal).sum(_POSITIONS)
        both = all_reduce_sum_(torch.stack([d_bias, d_weight])) / count
        d_x = (wide - _map(both[0]) - normal * _map(both[1])) * _map(scale * weight)
        # Weight and bias keep this rank's part: their gradients are averaged by whoever trains.
        return d_x.to(x.dtype), d_weight.to(weight.dtype), d_bias.to(weight.dtype), None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _map(values: Tensor) -> Tensor:
    """[C] -> [C,1,1], to meet [B,C,H,W]."""
    return values[:, None, None]


def _norm_groups(channels: int) -> int:
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)


def _check_sizes(name: str, **sizes: int) -> None:
    for argument, size in sizes.items():
        if size < 1:
            raise WetokError(f"{argument}={size}: {name} needs at least 1")


def _check_image(name: str, image: Tensor, channels: int, smallest: int, depth: str) -> None:
    if image.ndim != 4 or image.shape[1] != channels:
        raise WetokError(f"image {tuple(image.shape)}: {name} takes a batch [B,{channels},H,W]")
    if min(image.shape[-2:]) < smallest:
        raise WetokError(
            f"image {image.shape[-2]}x{image.shape[-1]}: {name} needs at least {smallest} pixels "
            f"a side; enlarge the crop or take fewer {depth}"
        )
