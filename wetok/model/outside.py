"""Quantizers of another package in a network of ours, to compare with: `wetok ablate` uses them.

They take a latent and give a `Quantized`, as `GroupedQuantizer` does, and are handed to
`TokenizerNetwork(config, quantizer)`. No setting of a recipe or of a model folder names one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wetok.config import WetokError
from wetok.model.quantizer import Quantized


class VectorQuantizer(nn.Module):
    """A learned codebook for each group of channels (VQ), by vector-quantize-pytorch.

        z [B,d,h,w] -> g groups of d/g channels -> the nearest of 2^d' learned vectors of each

    That package's defaults (moving averages of the vectors, the rotation trick for gradients) with
    two that its authors advise: k-means for the first vectors, and unused ones replaced.

    Args:
        channels: d, of the latent.
        groups: g, each with its own codebook.
        group_bits: d', so that a position takes g * d' bits.

    Raises:
        WetokError: the groups don't divide the channels.
        ModuleNotFoundError: vector-quantize-pytorch is not installed.
    """

    def __init__(self, channels: int, groups: int, group_bits: int) -> None:
        super().__init__()
        if channels % groups:
            raise WetokError(f"groups={groups} must divide channels={channels}")
        from vector_quantize_pytorch import VectorQuantize

        self.groups, self.group_bits = groups, group_bits
        self.inner = VectorQuantize(
            dim=channels,
            codebook_size=2**group_bits,
            codebook_dim=channels // groups,
            heads=groups,
            separate_codebook_per_head=groups > 1,
            kmeans_init=True,
            threshold_ema_dead_code=2,
        )

    def forward(self, latent: Tensor) -> Quantized:
        """latent [B,d,h,w] -> the chosen vectors as `code` [B,d,h,w], `ids` [B,g,h,w].

        In training `commitment` is the mean squared distance to them; there are no entropies.
        """
        with torch.autocast(latent.device.type, enabled=False):
            rows = latent.float().flatten(2).mT  # [B, h*w, d]
            code, ids, loss = self.inner(rows)
        code = code.mT.unflatten(2, latent.shape[2:]).to(latent.dtype)
        ids = ids.unflatten(1, latent.shape[2:])
        ids = ids.movedim(-1, 1) if self.groups > 1 else ids[:, None]
        commitment = loss.sum() if self.training else None
        return Quantized(code, ids, None, None, commitment)


class FiniteScalarQuantizer(nn.Module):
    """Channels rounded to a few levels each (FSQ, arXiv 2309.15505), by vector-quantize-pytorch.

        z [B,d,h,w] -> linear -> one channel a level, rounded -> linear -> code [B,d,h,w]

    Args:
        channels: d, of the latent.
        levels: how many values each of the rounded channels has; (8, 8, 8, 5, 5, 5), its authors'
            choice at 16 bits, makes 64,000 codes.

    Raises:
        ModuleNotFoundError: vector-quantize-pytorch is not installed.
    """

    def __init__(self, channels: int, levels: Sequence[int]) -> None:
        super().__init__()
        from vector_quantize_pytorch import FSQ

        self.groups, self.group_bits = 1, math.ceil(math.log2(math.prod(levels)))
        self.inner = FSQ(list(levels), dim=channels)

    def forward(self, latent: Tensor) -> Quantized:
        """latent [B,d,h,w] -> `code` [B,d,h,w], `ids` [B,1,h,w]; it has no losses."""
        with torch.autocast(latent.device.type, enabled=False):
            code, ids = self.inner(latent.float())
        return Quantized(code.to(latent.dtype), ids[:, None], None, None, None)
