"""What both generators are made of: RMSNorm, rotary positions, attention, SwiGLU, blocks.

Shapes: B batch, T places in a sequence, H heads, C width, D = C/H channels of a head.
Sources: Llama (Touvron et al., 2023), LlamaGen (Sun et al., 2024), RoFormer (Su et al., 2021).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MULTIPLE = 256
"""The hidden width of SwiGLU is rounded up to a multiple of this."""


class RMSNorm(nn.Module):
    """[...,C] divided by its root mean square, in float32 at least, and scaled per channel."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(wide(x), (x.shape[-1],), None, self.eps).to(x.dtype) * self.weight


class Cache:
    """Keys and values of one attention layer for the places so far; [B,H,T,D] each."""

    def __init__(self, batch: int, heads: int, places: int, head_width: int, like: Tensor) -> None:
        self.keys, self.values = like.new_empty(2, batch, heads, places, head_width)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values there are now, the given ones last."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Self-attention with rotary positions: [B,T,C] -> [B,T,C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, rotation: Tensor, causal: bool, cache: Cache | None = None
    ) -> Tensor:
        """With a cache, `x` is one place further on, [B,1,C], and looks at all before it."""
        batch, places, width = x.shape
        q, k, v = (
            part.view(batch, places, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        q, k = rotated(q, rotation), rotated(k, rotation)
        if cache is not None:
            k, v = cache.append(k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal and cache is None)
        return self.out(y.transpose(1, 2).reshape(batch, places, width))


class SwiGLU(nn.Module):
    """Llama's feed-forward layer; its hidden width is 8/3 C, rounded up to 256."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-int(8 * width / 3) // _MULTIPLE) * _MULTIPLE
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); dropout at the end of a branch."""

    def __init__(self, width: int, heads: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, eps)
        self.attention = Attention(width, heads)
        self.feed_norm = RMSNorm(width, eps)
        self.feed = SwiGLU(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rotation: Tensor, causal: bool, cache: Cache | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, causal, cache))
        return x + self.dropout(self.feed(self.feed_norm(x)))


def rotations(grid: tuple[int, int], head_width: int, base: float, silent_class: bool) -> Tensor:
    """Cosine and sine of every place's angles: [1 + h w, D/2, 2].

    The first place is the class's, which is not turned (`silent_class`: multiplied by zero). Of a
    position, the first half of the pairs turns with the row, the second with the column.
    """
    half = head_width // 2
    # On the CPU even where networks are made on "meta": no file brings these values along.
    count = partial(torch.arange, dtype=torch.float64, device="cpu")
    speeds = base ** -(count(0, half, 2)[: half // 2] / half)
    row, column = (torch.outer(count(side), speeds) for side in grid)
    angles = torch.cat(
        [
            row[:, None].expand(-1, grid[1], -1),
            column[None].expand(grid[0], -1, -1),
        ],
        dim=-1,
    ).flatten(0, 1)
    turned = torch.stack([angles.cos(), angles.sin()], dim=-1)
    first = torch.zeros_like(turned[:1])
    first[..., 0] = 0.0 if silent_class else 1.0
    return torch.cat([first, turned]).float()


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """[B,H,T,D], whose neighbouring channels are turned by the angles [T,D/2,2]."""
    pairs = x.unflatten(-1, (-1, 2))
    first, second = pairs.unbind(-1)
    cosine, sine = rotation.to(x.dtype).unbind(-1)
    return torch.stack(
        [first * cosine - second * sine, second * cosine + first * sine], dim=-1
    ).flatten(-2)


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def initialise(module: nn.Module) -> None:
    """Weights of linear layers and embeddings from N(0, 0.02^2)."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
