"""The brute-force entropies: softmax over all 2^d' codes of a group, for every position.

The independent reference of the tests and the opponent in `wetok ablate entropy` and
`benchmarks/entropy.py`. It follows the definition, not the factorisation, and its memory is
N x g x 2^d' several times over.
"""

from __future__ import annotations

import torch
from torch import Tensor


def all_codes(group_bits: int, like: Tensor) -> Tensor:
    """Every code of a group [2^d', d'] in {-1, +1}; row i has bit k of i in column k."""
    ids = torch.arange(2**group_bits, device=like.device)
    bits = ids[:, None].bitwise_right_shift(torch.arange(group_bits, device=like.device)) & 1
    return (2 * bits - 1).to(like.dtype)


def dense_entropies(
    latent: Tensor,
    groups: int,
    convention: str = "grouped",
    temperature: float = 0.01,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Token and codebook entropy [g] (`pooled`: [1]) of a latent [B, d, *], in its own dtype."""
    rows = latent.flatten(2).mT.unflatten(-1, (groups, -1))  # [B, S, g, d']
    logits = 2 / temperature * torch.einsum("bsgk,ck->bsgc", rows, all_codes(rows.shape[-1], rows))
    probs = logits.softmax(-1)
    token = -(probs * logits.log_softmax(-1)).sum(-1)  # [B, S, g]
    if convention == "pooled":
        token, mean = token.mean().reshape(1), probs.mean((0, 1, 2)).unsqueeze(0)
    else:
        token, mean = token.mean((0, 1)), probs.mean((0, 1))
    codebook = -torch.where(mean + eps > 0, mean * (mean + eps).clamp_min(1e-300).log(), 0.0).sum(
        -1
    )
    return token, codebook
