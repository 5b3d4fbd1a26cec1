"""The blocks that encoder and decoder are built of, as in Open-MAGVIT2 and WeTok.

Shapes: B images, C channels, H x W positions, d bits of code.
Attribute names follow the released checkpoints, so that their tensors load by name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

EPSILON = 1e-6
"""Of every norm in these networks."""


def norm_groups(channels: int) -> int:
    """32, as published, or for widths that 32 does not divide the largest divisor below it."""
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)


class GroupNorm(nn.GroupNorm):
    """Group norm that also takes a single value a group, as a 1 x 1 latent has: it becomes 0."""

    widens = False
    """`silu` computes in float32 even on a CPU, as autocast has it on accelerators."""

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__(norm_groups(channels), channels, eps=EPSILON, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        # F.group_norm refuses one value a group; the kernel below it gives (x - x) / sqrt(eps).
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def silu(self, x: Tensor) -> Tensor:
        """SiLU of the norm of x [B,C,H,W]; in training only x is kept for backward.

        Values and gradients are those of the two operations to the last bit; the norm is computed
        again in backward, at a hundredth of a step's time.
        """
        if torch.compiler.is_compiling():
            return F.silu(self(x))
        if is_used():
            return F.silu(self(x), inplace=True)  # of a new tensor: a pass over memory less
        wide = x.dtype != torch.float64 and (self.widens or _is_widened(x.device.type))
        result: Tensor = _NormSilu.apply(x, self.weight, self.bias, self.num_groups, self.eps, wide)
        return result


def is_used() -> bool:
    """Whether a pass is for its result alone: not trained, compiled or exported."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return not (torch.is_grad_enabled() or traced)


def _is_widened(device: str) -> bool:
    """Whether autocast is on and computes group norm in float32 on this kind of device."""
    known = device != "cpu" and torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


class _NormSilu(torch.autograd.Function):
    """silu(group norm(x)), of which autograd by itself would keep the norm's result too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, wide: bool
    ) -> Tensor:
        ctx.settings = groups, eps, wide
        y, mean, inverse = _native(x, weight, bias, groups, eps, wide)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        return F.silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        groups, eps, wide = ctx.settings
        y, _, _ = _native(x, weight, bias, groups, eps, wide)
        gradient = torch.ops.aten.silu_backward(gradient, y)
        own = _laid_out(x.float() if wide else x, x)
        batch, channels = x.shape[:2]
        of_x, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
            *(_laid_out(gradient, x), own, mean, inverse, weight),
            *(batch, channels, math.prod(x.shape[2:]), groups, list(ctx.needs_input_grad[:3])),
        )
        return (None if of_x is None else of_x.to(x.dtype)), of_weight, of_bias, None, None, None


def _native(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, wide: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm with each group's mean and 1 / deviation, by the kernel below `torch.group_norm`."""
    batch, channels = x.shape[:2]
    x = _laid_out(x.float() if wide else x, x)
    return torch.native_group_norm(
        x, weight, bias, batch, channels, math.prod(x.shape[2:]), groups, eps
    )


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """In a memory format that the kernel takes: channels last only on the CPU."""
    if (
        like.device.type == "cpu"
        and not like.is_contiguous()
        and like.is_contiguous(memory_format=torch.channels_last)
    ):
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3, plus the input (through 1x1 where the width changes).

    With `recompute`, a training pass keeps only its input and computes the rest again in backward:
    less memory, about a third more time.
    """

    recompute = False

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = GroupNorm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.same_width = channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """[B,C_in,H,W] -> [B,C_out,H,W]."""
        if self.recompute and torch.is_grad_enabled():
            result: Tensor = checkpoint(self._forward, x, use_reentrant=False)
            return result
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.norm1.silu(x))
        y = self.conv2(self.norm2.silu(y))
        shortcut = x if self.same_width else self.nin_shortcut(x)
        return y.add_(shortcut) if is_used() else y + shortcut


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose scale and shift come from the code's spread and mean over the image.

    scale = Linear(std(code)), shift = Linear(mean(code)), both [B,C]: Open-MAGVIT2's way of
    telling every level of the decoder what the whole image is like.
    """

    def __init__(self, code_channels: int, channels: int) -> None:
        super().__init__()
        self.gn = GroupNorm(channels, affine=False)
        self.gamma = nn.Linear(code_channels, channels)
        self.beta = nn.Linear(code_channels, channels)

    def forward(self, x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """x [B,C,H,W]; mean and deviation [B,d], as `code_statistics` gives them."""
        scale, shift = self.gamma(deviation), self.beta(mean)
        fits = scale.dtype == x.dtype or x.dtype == torch.bfloat16
        if is_used() and fits and len(x) == 1:
            # The scale and shift of one image are a norm's own: one pass, rounded once.
            return torch.group_norm(x, self.gn.num_groups, scale[0], shift[0], self.gn.eps)
        return scale[:, :, None, None] * self.gn(x) + shift[:, :, None, None]


def code_statistics(code: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of [B,d,h,w] over its positions, [B,d] each.

    The deviation is of the sample (n - 1); of a single position, where that is undefined, the
    variance counts as 0.
    """
    flat = code.flatten(2)
    mean = flat.mean(-1)
    variance = flat.var(-1) if flat.shape[-1] > 1 else torch.zeros_like(mean)
    return mean, (variance + EPSILON).sqrt()


def depth_to_space(x: Tensor, side: int) -> Tensor:
    """[B, side*side*C, H, W] -> [B, C, side*H, side*W], channels ordered (row, column, C)."""
    b, c, h, w = x.shape
    # Float32 goes back to planes: the channels-last norm that follows would be less exact in it.
    if (
        x.dtype == torch.bfloat16
        and not torch.compiler.is_compiling()  # whose sizes, and so layouts, are open
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    ):
        # Whole pixels move, and the result is channels last too.
        x = x.permute(0, 2, 3, 1).reshape(b, h, w, side, side, c // side**2).transpose(2, 3)
        return x.reshape(b, h * side, w * side, c // side**2).permute(0, 3, 1, 2)
    x = x.view(b, side, side, c // side**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c // side**2, h * side, w * side)


def space_to_depth(x: Tensor, side: int) -> Tensor:
    """The inverse of `depth_to_space`: [B, C, side*H, side*W] -> [B, side*side*C, H, W]."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // side, side, w // side, side).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(b, c * side**2, h // side, w // side)


class Upsample(nn.Module):
    """Twice the side: a 3x3 convolution to four times the channels, then depth to space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,2H,2W]."""
        return depth_to_space(self.conv1(x), 2)
