"""Exact token and codebook entropy of grouped lookup-free quantization, without the dense table.

The soft assignment softmax(2 x.c / T) over all codes c in {-1,1}^d' (WeTok, arXiv 2508.05599) is a
product of independent bits with p_k = sigmoid(4 x_k / T). Therefore, exactly,
  token entropy of a group = sum of its d' Bernoulli entropies,
  mean joint [2^h, 2^l]    = A B^T / N, with A [2^h, N] and B [2^l, N] the outer-product tables of
                             the h high and the l low bits, h + l = d'.

Shape legend: G groups, D bits per group (d'), N positions, H = 2^h, L = 2^l, R rows of the joint
in one block, n positions in one block. The joint's entry [i, j] belongs to code i * L + j.
"""

from __future__ import annotations

import math
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
MIN_POSITIONS = 1024  # at a time: fewer make thin, slow matrix products
MAX_POSITIONS = 4096  # on a CPU: longer float32 sums lose digits
CACHE_BYTES = 2 * 2**20  # on a CPU: tables up to this size are cheap to walk through again
SMALL_JOINT = 2**14  # entries up to which the joint is computed in float64, for next to nothing
MAX_LOGIT = 1e6  # p or q is exactly 0 long before, in float64 too; keeps inf * 0 away


class Entropies(NamedTuple):
    """Natural-logarithm entropies: scalars from `entropies`, vectors [g] from `group_entropies`."""

    token: Tensor
    codebook: Tensor


class _Plan(NamedTuple):
    """Block sizes: groups and rows of the joint at a time, positions at a time."""

    groups: int
    rows: int
    positions: int
    is_small: bool = False  # the joint: computed in float64


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

    Runs in float32, or float64 for a float64 latent, whatever autocast says. Work memory beyond
    five copies of the latent stays below `max_bytes`. The gradient is found in the forward pass
    (it costs nothing without one) and cannot be differentiated again.

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
    if groups < 1 or bits % groups or not bits:
        raise WetokError(f"groups={groups} must divide the latent's {bits} channels")
    check_settings(bits // groups, convention, temperature, eps, max_bytes)
    if latent.numel() == 0 and not is_distributed():
        raise WetokError(f"latent {tuple(latent.shape)} has no positions: give at least one")
    wide = latent if latent.dtype == torch.float64 else latent.float()
    grouped = wide.reshape(wide.shape[0], groups, bits // groups, math.prod(wide.shape[2:]))
    if convention == "pooled":  # the same as taking the groups for further positions
        grouped = grouped.flatten(0, 1).unsqueeze(1)
    token, codebook = _FactoredEntropy.apply(grouped, temperature, eps, max_bytes)
    return Entropies(token, codebook)


def check_settings(
    group_bits: int, convention: str, temperature: float, eps: float, max_bytes: int = MAX_BYTES
) -> None:
    """Refuses settings that cannot be computed, in one line.

    Raises:
        WetokError: an argument is out of its range; for a size, with the estimate in bytes.
    """
    if convention not in CONVENTIONS:
        raise WetokError(
            f"entropy={convention!r} is unknown: use one of {', '.join(CONVENTIONS)}, or None"
        )
    if not 0 < temperature < math.inf:
        raise WetokError(f"temperature={temperature} must be positive and finite, such as 0.01")
    if not 0 <= eps < 1:
        raise WetokError(f"eps={eps} must lie in [0, 1): 1e-5 is the released value, 0 is exact")
    if group_bits > MAX_GROUP_BITS:
        raise WetokError(
            f"{group_bits} bits per group make a joint table of {4 * 2**group_bits:,} bytes: the "
            f"entropies take up to {MAX_GROUP_BITS} bits per group, so use more groups"
        )
    smallest = _work_bytes(group_bits, _Plan(1, min(16, 2 ** (group_bits // 2)), 16), 8)
    if smallest > max_bytes:
        raise WetokError(
            f"max_bytes={max_bytes:,} is too small: {group_bits} bits per group need at least "
            f"{smallest:,} bytes, so raise it or use more groups"
        )


def _work_bytes(group_bits: int, plan: _Plan, itemsize: int) -> int:
    """Three tensors of the joint's block; tables with their slopes, or with float64 copies."""
    low = 2 ** (group_bits - group_bits // 2)
    joint, tables = (6, 3) if plan.is_small else (3, 2)
    entries = joint * plan.rows * low + tables * (plan.rows + low) * plan.positions
    return plan.groups * entries * itemsize


def _make_plan(latent: Tensor, max_bytes: int) -> _Plan:
    """A quarter of the memory for the joint, the rest for the tables of latents [B, G, D, S].

    Groups and rows do not depend on the number of positions, so that all ranks cut alike and meet
    in the same reductions.
    """
    batch, groups, group_bits, positions = latent.shape
    count, itemsize = batch * positions, latent.element_size()
    low, high = 2 ** (group_bits - group_bits // 2), 2 ** (group_bits // 2)
    joint = max(1, max_bytes // 4 // (6 * itemsize))
    if high * low > SMALL_JOINT:
        joint *= 2
    at_once = min(groups, max(1, joint // (high * low)))
    rows = min(high, 2 ** int(math.log2(max(1, joint // (at_once * low)))))
    is_small = at_once * rows * low <= SMALL_JOINT
    per_position = (3 if is_small else 2) * (rows + low) * at_once * itemsize
    longest = max(1, (max_bytes - max_bytes // 4) // per_position)
    if latent.device.type == "cpu":
        cached = min(MAX_POSITIONS, CACHE_BYTES // per_position)
        longest = min(longest, max(MIN_POSITIONS, cached))
    blocks = max(1, -(-count // longest))
    return _Plan(at_once, rows, max(1, -(-count // blocks)), is_small)


class _FactoredEntropy(torch.autograd.Function):
    """[B, G, D, S] latents -> token and codebook entropy, both [G], over N = B * S positions.

    The derivatives are worked out in the forward pass, block by block while the joint is at hand,
    so that neither the joint nor the tables outlive it. Kept are two tensors of the latent's size.
    """

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, temperature: float, eps: float, max_bytes: int
    ) -> tuple[Tensor, Tensor]:
        batch, groups, group_bits, positions = latent.shape
        count = batch * positions
        plan = _make_plan(latent, max_bytes)
        share = position_share(count, latent) if is_distributed() else None
        want_slopes = ctx.needs_input_grad[0]
        with torch.autocast(latent.device.type, enabled=False):
            logit = latent.new_empty(groups, group_bits, batch, positions)
            torch.mul(latent.permute(1, 2, 0, 3), 4 / temperature, out=logit)
            logit = logit.flatten(2).clamp_(-MAX_LOGIT, MAX_LOGIT)
            slopes = torch.zeros_like(logit) if want_slopes else None
            token, codebook = latent.new_empty(groups), latent.new_empty(groups)
            for start in range(0, groups, plan.groups):
                part = slice(start, start + plan.groups)
                tables = _Tables(logit[part], plan)
                token[part] = _token_entropy(tables, logit[part], want_slopes)
                codebook[part] = _codebook_entropy(
                    tables, eps, share, None if slopes is None else slopes[part]
                )
            if share is not None:
                all_reduce_sum_(token.mul_(share))
        if want_slopes:
            ctx.shape, ctx.factor = latent.shape, -4 / temperature / max(1, count)
            ctx.save_for_backward(logit, slopes, None if share is None else share * world_size())
        return token, codebook

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor, codebook: Tensor) -> tuple[Tensor, None, None, None]:
        token_slope, codebook_slope, share = ctx.saved_tensors
        factor = ctx.factor if share is None else ctx.factor * share
        grad = token_slope.new_empty(ctx.shape)
        by_group = grad.permute(1, 2, 0, 3)
        token, codebook = ((t * factor)[:, None, None, None] for t in (token, codebook))
        torch.mul(token_slope.view(by_group.shape), token, out=by_group)
        by_group.addcmul_(codebook_slope.view(by_group.shape), codebook)
        return grad, None, None, None


class _Tables:
    """Bit probabilities of some groups, pq [G, D, 2, N] with q = 1 - p at 0 and p at 1, and their
    outer-product tables a [G, R, n] and b [G, L, n] for one block of positions and one of rows."""

    def __init__(self, logit: Tensor, plan: _Plan) -> None:
        self.groups, self.bits, self.count = logit.shape
        self.pq = logit.new_empty(self.groups, self.bits, 2, self.count)
        self.rows = plan.rows
        self.low = self.bits - self.bits // 2
        self.is_small = plan.is_small
        self.largest = self.groups * max(plan.rows, 2**self.low) * plan.positions
        self.blocks = [
            slice(start, min(start + plan.positions, self.count))
            for start in range(0, self.count, plan.positions)
        ]
        self._a, self._a_holds = logit, (-1, -1)
        self._b, self._b_holds = logit, -1

    def load(self, block: slice, first_row: int) -> tuple[Tensor, Tensor]:
        """The tables of a block, rebuilt only where they hold another."""
        pq = self.pq[..., block]
        if self.rows == 2**self.low and self._b_holds != block.start:  # equal halves: one product
            pairs = pq.unflatten(1, (2, self.low)).flatten(0, 1)
            both = _table(pairs).unflatten(0, (self.groups, 2))
            self._b, self._a = both.unbind(1)
            self._b_holds, self._a_holds = block.start, (block.start, first_row)
        if self._b_holds != block.start:
            self._b, self._b_holds = _table(pq[:, : self.low]), block.start
        if self._a_holds != (block.start, first_row):
            inner = self.low + self.rows.bit_length() - 1
            a = _table(pq[:, self.low : inner])
            for k in range(inner, self.bits):  # the bits that are the same in all these rows
                a = a * pq[:, k, first_row >> (k - self.low) & 1, None]
            self._a, self._a_holds = a, (block.start, first_row)
        return self._a, self._b


def _table(pq: Tensor) -> Tensor:
    """Outer product over the bits: pq [G, k, 2, n] -> [G, 2^k, n], lowest bit first."""
    bits = pq.shape[1]
    if bits == 0:
        return pq.new_ones(pq.shape[0], 1, pq.shape[3])
    if bits == 1:
        return pq[:, 0]
    low, high = _table(pq[:, : bits // 2]), _table(pq[:, bits // 2 :])
    return (high[:, :, None] * low[:, None]).flatten(1, 2)


def _token_entropy(tables: _Tables, logit: Tensor, want_slopes: bool) -> Tensor:
    """Token entropy [G] of this rank. Fills p and q, each from the logit so that neither loses
    digits, and turns the logits into the derivatives with respect to them, times -N."""
    total = logit.new_zeros(tables.groups)
    for block in tables.blocks:
        b, q, p = logit[..., block], *tables.pq[..., block].unbind(2)
        torch.sigmoid(b, out=p)
        torch.sigmoid(b.neg(), out=q)
        least = torch.minimum(p, q)
        # H = |b| least - log(1 - least): no cancellation, unlike softplus(b) - b p
        negative = least.neg().log1p_().sub_(least.mul_(b).abs_())
        total -= negative.sum(dim=(1, 2))
        if want_slopes:
            b.mul_(p).mul_(q)
    return total / max(1, tables.count)


def _codebook_entropy(
    tables: _Tables, eps: float, share: Tensor | None, slopes: Tensor | None
) -> Tensor:
    """Codebook entropy [G] over all ranks. `slopes` [G, D, N], zeros at first, receives the
    derivatives with respect to the logits, times -N."""
    low, rows, pq = tables.low, tables.rows, tables.pq
    uniform = 0.5**tables.bits
    top = uniform + eps
    total, centre = pq.new_zeros(tables.groups, 1, 1), None
    low_bits = _bit_rows(low, 0, 2**low, pq)
    # Memory used again for every block of rows: to get it anew from the system takes longer than
    # to fill it.
    wide = tables.is_small and pq.device.type != "mps"
    shape = (3, tables.groups, rows, 2**low)
    work = pq.new_empty(shape, dtype=torch.float64 if wide else pq.dtype)
    joint, log, scratch = work.unbind()
    weights = pq.new_empty(0 if slopes is None else tables.largest)
    for first_row in range(0, 2 ** (tables.bits - low), rows):
        joint.zero_()
        for block in tables.blocks:
            a, b = tables.load(block, first_row)
            joint.baddbmm_(a.to(joint.dtype), b.to(joint.dtype).mT)
        joint.div_(max(1, tables.count) * top)
        if share is not None:
            all_reduce_sum_(joint.mul_(share))
        if centre is None:
            mass = _sums(joint).mul_(top)
        part = _log_terms_(joint, log, scratch, uniform, eps)
        total += part
        if slopes is None:
            continue
        if centre is None:  # any constant will do; about the mean logarithm, it saves digits
            centre = part / mass.clamp_min_(torch.finfo(mass.dtype).tiny)
        slope = joint.sub_(centre).to(pq.dtype)
        same = rows == 2**low  # so small tables share them
        high_bits = low_bits if same else _bit_rows(tables.bits - low, first_row, rows, pq)
        for block in tables.blocks:
            a, b = tables.load(block, first_row)
            out, q, p = slopes[..., block], *pq[..., block].unbind(2)
            weight = torch.bmm(slope, b, out=weights[: a.numel()].view_as(a)).mul_(a)
            _add_slopes(out[:, low:], high_bits, weight, p[:, low:], q[:, low:])
            weight = torch.bmm(slope.mT, a, out=weights[: b.numel()].view_as(b)).mul_(b)
            _add_slopes(out[:, :low], low_bits, weight, p[:, :low], q[:, :low])
    return -math.log(top) - total.flatten()


def _log_terms_(joint: Tensor, log: Tensor, scratch: Tensor, uniform: float, eps: float) -> Tensor:
    """Turns P / top, with top = 1 / 2^d' + eps, into -dH/dP up to a constant, which has no
    influence on the gradient because probabilities sum to one. Returns sum P log((P + eps) / top)
    as [G, 1, 1]. The other two tensors are work memory.

    Dividing by top centres the logarithm on the uniform joint, so that small differences keep
    their digits; log1p keeps them where all P are far below eps.
    """
    top = uniform + eps
    if eps > uniform:
        torch.log1p(joint.sub_(uniform / top), out=log)
        total = top * _sums(torch.mul(joint, log, out=scratch)) + uniform * _sums(log)
        joint.div_(torch.add(joint, 1, out=scratch)).mul_(eps / top).add_(log)
    elif eps > 0:
        torch.log(joint.add_(eps / top), out=log)
        total = top * _sums(torch.mul(joint, log, out=scratch)) - eps * _sums(log)
        joint.reciprocal_().mul_(-eps / top).add_(log)
    else:
        torch.log(joint.clamp_min_(torch.finfo(joint.dtype).tiny), out=log)
        total = top * _sums(torch.mul(joint, log, out=scratch))
        joint.copy_(log)
    return total


def _sums(joint: Tensor) -> Tensor:
    return joint.sum(dim=(1, 2), keepdim=True)


def _add_slopes(out: Tensor, bits: Tensor, weight: Tensor, p: Tensor, q: Tensor) -> None:
    """Adds q * (sum of weights where the bit is one) - p * (... zero): stable at any p."""
    ones, zeros = torch.matmul(bits, weight).chunk(2, dim=1)
    out.addcmul_(q, ones).addcmul_(p, zeros, value=-1)


def _bit_rows(bits: int, start: int, rows: int, like: Tensor) -> Tensor:
    """[2 * bits, rows]: for each bit, the codes from `start` where it is one; then where zero."""
    codes = torch.arange(start, start + rows, device=like.device)
    ones = (codes >> torch.arange(bits, device=like.device)[:, None]) & 1
    return torch.cat([ones, 1 - ones]).to(like.dtype)
