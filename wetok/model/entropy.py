"""Exact token and codebook entropy of grouped lookup-free quantization, without the dense table.

The soft assignment softmax(2 x.c / T) over all codes c in {-1,1}^d' (WeTok, arXiv 2508.05599) is a
product of independent bits with p_k = sigmoid(4 x_k / T). Therefore, exactly,
  token entropy of a group = sum of its d' Bernoulli entropies,
  mean joint [2^h, 2^l]    = A B^T / N, with A [2^h, N] and B [2^l, N] the outer-product tables of
                             the h high and the l low bits, h + l = d'.

Shape legend: G groups, D bits per group (d'), N positions, R rows of the joint in one block,
H = 2^h, L = 2^l. Bit 0 is the least significant, so the joint's entry [i, j] is code i * L + j.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wetok.config import WetokError
from wetok.distributed import all_reduce_sum_, is_distributed, position_share, world_size

Convention = Literal["grouped", "pooled"]
CONVENTIONS: tuple[Convention, ...] = ("grouped", "pooled")
MAX_GROUP_BITS = 30
MAX_BYTES = 256 * 2**20


class Entropies(NamedTuple):
    """Natural-logarithm entropies: scalars from `entropies`, vectors [g] from `group_entropies`."""

    token: Tensor
    codebook: Tensor


class _Plan(NamedTuple):
    """Block sizes: groups and rows of the joint at a time, positions at a time."""

    groups: int
    rows: int
    positions: int


def entropies(
    latent: Tensor,
    groups: int,
    convention: Convention = "grouped",
    *,
    temperature: float = 0.01,
    eps: float = 1e-5,
    max_bytes: int = MAX_BYTES,
) -> Entropies:
    """Token and codebook entropy of a latent [B, d, *], in nats, over the positions of all ranks.

    `grouped` sums both entropies over the groups (the paper); `pooled` averages the token entropy
    over the groups and takes the codebook entropy of one histogram pooled over them (the released
    training code). The codebook term is -sum p log(p + eps); eps = 0 means -sum p log p.

    Runs in float32, or float64 for a float64 latent, whatever autocast says. Work memory beyond a
    few copies of the latent stays below `max_bytes`.

    Raises:
        WetokError: a bad argument, or more bits per group than can be computed.
    """
    per_group = group_entropies(
        latent, groups, convention, temperature=temperature, eps=eps, max_bytes=max_bytes
    )
    return Entropies(per_group.token.sum(), per_group.codebook.sum())


def group_entropies(
    latent: Tensor,
    groups: int,
    convention: Convention = "grouped",
    *,
    temperature: float = 0.01,
    eps: float = 1e-5,
    max_bytes: int = MAX_BYTES,
) -> Entropies:
    """As `entropies`, before the sum over groups: vectors [g] (`pooled`: [1])."""
    if not latent.is_floating_point() or latent.ndim < 2:
        raise WetokError(
            f"latent is {latent.dtype} {tuple(latent.shape)}: it must be floating and [B, d, *]"
        )
    bits = latent.shape[1]
    if groups < 1 or bits % groups:
        raise WetokError(f"groups={groups} must divide the latent's {bits} channels")
    check_settings(bits // groups, convention, temperature, eps, max_bytes)
    if latent.numel() == 0 and not is_distributed():
        raise WetokError(f"latent {tuple(latent.shape)} has no positions: give at least one")
    grouped = latent.reshape(latent.shape[0], groups, bits // groups, -1)  # [B, G, D, S]
    if convention == "grouped":
        logit_source = grouped.permute(1, 2, 0, 3).flatten(2)  # [G, D, N]
    else:  # pooling over groups is the same as taking the groups for further positions
        logit_source = grouped.permute(2, 1, 0, 3).flatten(1).unsqueeze(0)  # [1, D, G*N]
    if logit_source.dtype != torch.float64:
        logit_source = logit_source.float()
    with torch.autocast(latent.device.type, enabled=False):
        token, codebook = _FactoredEntropy.apply(logit_source, temperature, eps, max_bytes)
    return Entropies(token, codebook)


def check_settings(
    group_bits: int, convention: str, temperature: float, eps: float, max_bytes: int = MAX_BYTES
) -> None:
    """Refuses, in one line, settings that cannot be computed. A group of d' bits has 2^d' codes."""
    if convention not in CONVENTIONS:
        raise WetokError(f"entropy convention {convention!r} is unknown: use one of {CONVENTIONS}")
    if not temperature > 0 or not math.isfinite(temperature):
        raise WetokError(f"temperature={temperature} must be positive and finite, such as 0.01")
    if not 0 <= eps < 1:
        raise WetokError(f"eps={eps} must lie in [0, 1): 1e-5 is the released value, 0 is exact")
    if group_bits > MAX_GROUP_BITS:
        raise WetokError(
            f"{group_bits} bits per group mean a joint table of {4 * 2**group_bits:,} bytes: the "
            f"entropy takes up to {MAX_GROUP_BITS} bits per group, so use more groups"
        )
    smallest = _bytes(group_bits, _Plan(1, min(16, 2 ** (group_bits // 2)), 16), 4)
    if smallest > max_bytes:
        raise WetokError(
            f"max_bytes={max_bytes:,} is too small: {group_bits} bits per group need at least "
            f"{smallest:,} bytes, so raise it or use more groups"
        )


def _bytes(group_bits: int, plan: _Plan, itemsize: int) -> int:
    low = 2 ** (group_bits - group_bits // 2)
    joint = 3 * plan.rows * low
    tables = 2 * (plan.rows + low) * plan.positions
    return plan.groups * (joint + tables) * itemsize


def _make_plan(groups: int, group_bits: int, count: int, itemsize: int, max_bytes: int) -> _Plan:
    """A quarter of the memory for the joint, the rest for the tables.

    Groups and rows do not depend on the number of positions, so that all ranks cut alike.
    """
    low, high = 2 ** (group_bits - group_bits // 2), 2 ** (group_bits // 2)
    entries = max_bytes // (4 * 3 * itemsize)
    at_once = min(groups, max(1, entries // (high * low)))
    rows = min(high, max(1, 2 ** int(math.log2(max(1, entries // (at_once * low))))))
    fitting = max(1, 3 * max_bytes // (4 * itemsize * at_once * 2 * (rows + low)))
    blocks = max(1, -(-count // fitting))
    return _Plan(at_once, rows, max(1, -(-count // blocks)))


class _FactoredEntropy(torch.autograd.Function):
    """[G, D, N] latents -> token [G] and codebook [G] entropies.

    The gradient is worked out in the forward pass, block by block while the joint is at hand, so
    neither the joint nor the tables outlive it; what is kept are two tensors of the latent's size.
    """

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, temperature: float, eps: float, max_bytes: int
    ) -> tuple[Tensor, Tensor]:
        want_grad = ctx.needs_input_grad[0]
        groups, group_bits, count = latent.shape
        plan = _make_plan(groups, group_bits, count, latent.element_size(), max_bytes)
        slope = 4 / temperature
        share = scale = None
        if is_distributed():
            share = position_share(count, latent.device, latent.dtype)
            scale = share * world_size()
        logit = latent * slope
        size = logit.abs()
        p, q = torch.sigmoid(logit), torch.sigmoid(-logit)
        per_bit = torch.log1p(torch.exp(-size)).addcmul_(size, torch.sigmoid(-size))
        token = per_bit.sum(dim=(1, 2)) / max(1, count)
        if share is not None:
            token = all_reduce_sum_(token * share)
        codebook = latent.new_empty(groups)
        token_grad = codebook_grad = None
        if want_grad:
            token_grad = (p * q).mul_(logit).mul_(-slope / max(1, count))
            codebook_grad = torch.zeros_like(latent)
        for start in range(0, groups, plan.groups):
            part = slice(start, start + plan.groups)
            codebook[part] = _codebook(
                p[part],
                q[part],
                None if codebook_grad is None else codebook_grad[part],
                plan,
                eps,
                share,
            )
        if want_grad:
            assert token_grad is not None and codebook_grad is not None
            codebook_grad.mul_(slope / max(1, count))
            if scale is not None:
                token_grad.mul_(scale)
                codebook_grad.mul_(scale)
            ctx.save_for_backward(token_grad, codebook_grad)
        return token, codebook

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor, codebook: Tensor) -> tuple[Tensor, None, None, None]:
        token_grad, codebook_grad = ctx.saved_tensors
        grad = token_grad * token[:, None, None]
        grad.addcmul_(codebook_grad, codebook[:, None, None])
        return grad, None, None, None


def _codebook(
    p: Tensor, q: Tensor, grad: Tensor | None, plan: _Plan, eps: float, share: Tensor | None
) -> Tensor:
    """Codebook entropy [G] of bit probabilities p, q = 1 - p [G, D, N]; adds to `grad` [G, D, N]
    the derivative with respect to the logits, times N."""
    groups, group_bits, count = p.shape
    low = group_bits - group_bits // 2
    high_rows = 2 ** (group_bits // 2)
    low_bits, high_bits = _bit_rows(low, p), _bit_rows(group_bits - low, p)
    uniform = 2.0**-group_bits
    top = uniform + eps
    total = p.new_zeros(groups)
    blocks = [slice(i, min(i + plan.positions, count)) for i in range(0, count, plan.positions)]
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def tables() -> Iterator[tuple[slice, Tensor, Tensor]]:
        for block in blocks:
            if block.start not in kept:
                b = _table(p[:, :low, block], q[:, :low, block])
                a = _table(p[:, low:, block], q[:, low:, block])
                if len(blocks) == 1:
                    kept[block.start] = (a, b)
            else:
                a, b = kept[block.start]
            yield block, a, b

    for start in range(0, high_rows, plan.rows):
        rows = slice(start, start + plan.rows)
        joint = p.new_zeros(groups, plan.rows, 2**low)
        for _, a, b in tables():
            joint.baddbmm_(a[:, rows], b.mT, alpha=1 / max(1, count))
        if share is not None:
            all_reduce_sum_(joint.mul_(share))
        if eps > uniform:
            ratio = joint.sub_(uniform).div_(top)  # (P + eps) / top - 1
            log = torch.log1p(ratio)
            total += torch.mul(ratio, log).sum(dim=(1, 2)) * top + log.sum(dim=(1, 2)) * uniform
            slope = ratio.div_(ratio + 1).mul_(-eps / top).sub_(log)
        else:
            ratio = joint.add_(eps).div_(top).clamp_min_(torch.finfo(p.dtype).tiny)
            log = torch.log(ratio)
            total += torch.mul(ratio, log).sum(dim=(1, 2)) * top - log.sum(dim=(1, 2)) * eps
            slope = ratio.reciprocal_().mul_(eps / top).sub_(log)
        if grad is None:
            continue
        for block, a, b in tables():
            logits = (p[:, :, block], q[:, :, block], grad[:, :, block])
            a_weight = torch.bmm(slope, b).mul_(a[:, rows])
            _add_logit_grad(*(t[:, low:] for t in logits), high_bits[:, rows], a_weight)
            b_weight = torch.bmm(slope.mT, a[:, rows]).mul_(b)
            _add_logit_grad(*(t[:, :low] for t in logits), low_bits, b_weight)
    return -math.log(top) - total


def _add_logit_grad(p: Tensor, q: Tensor, grad: Tensor, bits: Tensor, weight: Tensor) -> None:
    ones, zeros = (bits @ weight).chunk(2, dim=1)
    grad.addcmul_(q, ones).addcmul_(p, zeros, value=-1)


def _bit_rows(bits: int, like: Tensor) -> Tensor:
    """[2 * bits, 2^bits]: for each bit, the codes where it is one; then those where it is zero."""
    codes = torch.arange(2**bits, device=like.device)
    ones = (codes[None] >> torch.arange(bits, device=like.device)[:, None]) & 1
    return torch.cat([ones, 1 - ones]).to(like.dtype)


def _table(p: Tensor, q: Tensor) -> Tensor:
    """Outer product over bits [G, k, n] -> [G, 2^k, n]."""
    groups, bits, count = p.shape
    table = p.new_ones(groups, 1, count)
    for k in range(bits):
        table = torch.cat([table * q[:, k : k + 1], table * p[:, k : k + 1]], dim=1)
    return table
