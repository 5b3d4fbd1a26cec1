"""`LFQ` of vector-quantize-pytorch, by call, results and checkpoints, with the exact entropies.

`docs/from-vector-quantize-pytorch.md` sets the two side by side.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from wetok.config import WetokError
from wetok.model.entropy import MAX_GROUP_BITS, entropies
from wetok.model.quantizer import GroupedQuantizer


class Return(NamedTuple):
    """What a call gives."""

    quantized: Tensor
    """As the input, in {-1,+1} before the projection out."""
    indices: Tensor
    """int64; the input without its channels, and with a last side of codebooks if it is kept."""
    entropy_aux_loss: Tensor
    """Scalar: all losses with their weights. 0 in eval mode."""


class LossBreakdown(NamedTuple):
    """The losses one by one, without weights; 0 where they play no part."""

    per_sample_entropy: Tensor
    batch_entropy: Tensor
    commitment: Tensor


class LFQ(nn.Module):
    """Lookup-free quantization as vector-quantize-pytorch calls it.

    Channel 0 of a codebook is the highest bit of an index there, and here (in `GroupedQuantizer`
    it is the lowest). Entropies are means over codebooks, computed without the table of all codes,
    so 2^18 codes and more fit in memory.

    Args:
        dim: channels of the input; log2(codebook_size) * num_codebooks if not given.
        codebook_size: a power of 2; 2^dim if not given.
        entropy_loss_weight, commitment_loss_weight, diversity_gamma: of the auxiliary loss.
        num_codebooks: the groups.
        keep_num_codebooks_dim: a last side of codebooks in the indices; by default if several.
        has_projections: linear maps in and out; by default where `dim` asks for them.
        projection_has_bias: of those.
        channel_first: where the channels are; by default second from 4 sides on, else last.
        eps: in log(p + eps) of the batch entropy. vector-quantize-pytorch has log(max(p, 1e-5)).
    """

    mask: Tensor

    def __init__(
        self,
        *,
        dim: int | None = None,
        codebook_size: int | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.0,
        diversity_gamma: float = 1.0,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        has_projections: bool | None = None,
        projection_has_bias: bool = True,
        channel_first: bool | None = None,
        eps: float = 0.0,
    ) -> None:
        super().__init__()
        bits = _bits(dim, codebook_size)
        total = bits * num_codebooks
        self.dim = total if dim is None else dim
        if bits > MAX_GROUP_BITS:
            raise WetokError(
                f"codebook_size=2^{bits} must be at most 2^{MAX_GROUP_BITS}: use more codebooks"
            )
        if has_projections is None:
            has_projections = self.dim != total
        if not has_projections and self.dim != total:
            raise WetokError(f"dim={self.dim} needs projections to {total} channels of codebooks")
        if keep_num_codebooks_dim is None:
            keep_num_codebooks_dim = num_codebooks > 1
        if num_codebooks > 1 and not keep_num_codebooks_dim:
            raise WetokError(
                f"keep_num_codebooks_dim=False: {num_codebooks} codebooks need their side"
            )
        self.codebook_dim, self.num_codebooks = bits, num_codebooks
        self.codebook_size = 2**bits
        self.keep_num_codebooks_dim, self.channel_first = keep_num_codebooks_dim, channel_first
        self.entropy_loss_weight, self.diversity_gamma = entropy_loss_weight, diversity_gamma
        self.commitment_loss_weight, self.eps = commitment_loss_weight, eps
        self.has_projections = has_projections
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if has_projections:
            self.project_in = nn.Linear(self.dim, total, bias=projection_has_bias)
            self.project_out = nn.Linear(total, self.dim, bias=projection_has_bias)
        self.quantizer = GroupedQuantizer(total, num_codebooks, entropy=None, channel_dim=-1)
        # Not used here; its checkpoints hold it.
        self.register_buffer("mask", 2 ** torch.arange(bits - 1, -1, -1))

    @overload
    def forward(
        self,
        x: Tensor,
        inv_temperature: float = 100.0,
        return_loss_breakdown: Literal[False] = False,
        mask: Tensor | None = None,
    ) -> Return: ...
    @overload
    def forward(
        self,
        x: Tensor,
        inv_temperature: float = 100.0,
        *,
        return_loss_breakdown: Literal[True],
        mask: Tensor | None = None,
    ) -> tuple[Return, LossBreakdown]: ...
    def forward(
        self,
        x: Tensor,
        inv_temperature: float = 100.0,
        return_loss_breakdown: bool = False,
        mask: Tensor | None = None,
    ) -> Return | tuple[Return, LossBreakdown]:
        """Quantizes [B,...,dim], or [B,dim,...].

        Args:
            inv_temperature: of the soft assignment behind the entropies.
            return_loss_breakdown: give the single losses, too.
            mask: bool [B,...], the positions that the losses are of.

        Raises:
            WetokError: a wrong shape or type; in eval mode also NaN or Inf.
        """
        first = x.ndim >= 4 if self.channel_first is None else self.channel_first
        moved = x.movedim(1, -1) if first else x
        if moved.shape[-1] != self.dim:
            where = "second" if first else "last"
            raise WetokError(f"x has shape {tuple(x.shape)}: its {where} side must be {self.dim}")
        latent = self._turned(self.project_in(moved))
        out = self.quantizer(latent)
        losses = self._losses(latent, mask, inv_temperature)
        quantized = self.project_out(self._turned(out.code))
        indices = out.ids.long()
        loss = self.entropy_loss_weight * (
            losses.per_sample_entropy - self.diversity_gamma * losses.batch_entropy
        )
        result = Return(
            quantized.movedim(-1, 1) if first else quantized,
            indices if self.keep_num_codebooks_dim else indices.squeeze(-1),
            loss + self.commitment_loss_weight * losses.commitment,
        )
        return (result, losses) if return_loss_breakdown else result

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """The quantized tensor that `indices` were told with, in {-1,+1} if not projected out.

        Raises:
            WetokError: wrong shape or type, or an index outside the codebook.
        """
        image = indices.ndim >= 3 + self.keep_num_codebooks_dim
        first = image if self.channel_first is None else self.channel_first
        ids = indices if self.keep_num_codebooks_dim else indices.unsqueeze(-1)
        codes = self._turned(self.quantizer.ids_to_code(ids))
        if project_out:
            codes = self.project_out(codes)
        return codes.movedim(-1, 1) if first else codes

    def _losses(self, latent: Tensor, mask: Tensor | None, sharpness: float) -> LossBreakdown:
        zero = latent.new_zeros((), dtype=torch.float32)
        if not self.training:
            return LossBreakdown(zero, zero, zero)
        rows = (latent.flatten(0, -2) if mask is None else latent[mask])[:, :, None, None]
        rows = rows if rows.dtype == torch.float64 else rows.float()
        token, codebook = entropies(
            rows, self.num_codebooks, "grouped", temperature=1 / sharpness, eps=self.eps
        )
        commitment = zero
        if self.commitment_loss_weight > 0:
            signs = torch.where(rows.detach() > 0, 1.0, -1.0)
            commitment = (rows - signs).square().mean()
        return LossBreakdown(token / self.num_codebooks, codebook / self.num_codebooks, commitment)

    def _turned(self, channels: Tensor) -> Tensor:
        """The bits of each codebook in the other order."""
        return channels.unflatten(-1, (self.num_codebooks, self.codebook_dim)).flip(-1).flatten(-2)


def _bits(dim: int | None, codebook_size: int | None) -> int:
    if codebook_size is None:
        if dim is None:
            raise WetokError("dim=None: give dim, codebook_size or both")
        return dim
    bits = round(math.log2(codebook_size)) if codebook_size > 1 else 0
    if bits < 1 or 2**bits != codebook_size:
        raise WetokError(f"codebook_size={codebook_size} must be a power of 2 from 2 on")
    return bits
