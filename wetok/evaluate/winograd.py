"""Convolutions of 3 x 3 with fewer multiplications, for networks whose weights are frozen.

A tile of 4 x 4 outputs takes 36 multiplications a pair of channels instead of 144: Winograd's
F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016).
It rounds otherwise than a plain convolution, by about 1e-5 of the largest output: enough for
features that are compared, not for ids that must be the same to the last bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TILE = 4
"""Outputs of a tile along each side; it sees two inputs more."""
_TILES = 80
"""Tiles a band, about: what is made of them stays in a core's cache (measured)."""

# Lavin and Gray, section 4.3: inputs, weights and outputs of one dimension.
_INPUT = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_WEIGHT = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OUTPUT = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)


class WinogradConv2d(nn.Module):
    """What `convolution` gives, without gradients: [B,C,H,W] -> [B,K,H,W], channels last.

        6x6 inputs of each tile -> 36 sums -> 36 products of [tiles,C] and [C,K] -> 4x4 outputs

    The weights are kept in their transformed form, four times as large.

    Args:
        convolution: 3 x 3, stride 1, padding 1 with zeros, one group, with a bias. What becomes of
            it later changes nothing here.
    """

    weight: Tensor
    bias: Tensor
    inputs: Tensor
    outputs: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        assert fits(convolution) and convolution.bias is not None
        weight = convolution.weight.detach()
        transform = torch.tensor(_WEIGHT, dtype=torch.float64, device=weight.device)
        transformed = torch.einsum("ai,kcij,bj->abck", transform, weight.double(), transform)
        self.register_buffer("weight", transformed.flatten(0, 1).to(weight.dtype).contiguous())
        self.register_buffer("bias", convolution.bias.detach().clone())
        for name, matrix in (("inputs", _INPUT), ("outputs", _OUTPUT)):
            one = torch.tensor(matrix, dtype=weight.dtype, device=weight.device)
            self.register_buffer(name, torch.kron(one, one))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        width_out = self.weight.shape[2]
        down, across = -(-height // _TILE), -(-width // _TILE)
        x = F.pad(x, (1, _TILE * across - width + 1, 1, _TILE * down - height + 1))
        x = x.permute(0, 2, 3, 1).contiguous()
        result = x.new_empty(batch, _TILE * down, _TILE * across, width_out)
        rows = min(down, -(-_TILES // across))
        most = rows * across
        seen, changed = x.new_empty(2, 36 * most * channels)
        products, tiles = x.new_empty(36 * most * width_out), x.new_empty(16 * most * width_out)
        for image, into in zip(x, result, strict=True):
            for top in range(0, down, rows):
                count = min(rows, down - top)
                here = count * across
                # 6x6 windows at every fourth row and column, which overlap by two.
                row, column, _ = image.stride()
                windows = image[_TILE * top :].as_strided(
                    (6, 6, count, across, channels),
                    (row, column, _TILE * row, _TILE * column, 1),
                )
                a, b = (each[: 36 * here * channels] for each in (seen, changed))
                a.view_as(windows).copy_(windows)
                torch.mm(self.inputs, a.view(36, -1), out=b.view(36, -1))
                c = products[: 36 * here * width_out].view(36, here, width_out)
                torch.bmm(b.view(36, here, channels), self.weight, out=c)
                d = tiles[: 16 * here * width_out].view(16, -1)
                torch.mm(self.outputs, c.view(36, -1), out=d)
                placed = d.view(_TILE, _TILE, count, across, width_out).permute(2, 0, 3, 1, 4)
                band = into[_TILE * top : _TILE * (top + count)]
                torch.add(placed, self.bias, out=band.view(placed.shape))
        return result[:, :height, :width].permute(0, 3, 1, 2)


def fits(convolution: nn.Module) -> bool:
    """Whether `WinogradConv2d` can take the place of `convolution`."""
    return (
        isinstance(convolution, nn.Conv2d)
        and convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.padding == (1, 1)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and convolution.bias is not None
    )
