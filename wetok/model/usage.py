"""How much of its codebook a tokenizer uses: codes seen per group, and bits that never change."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wetok.config import WetokError
from wetok.distributed import all_reduce_sum_

EXACT_BITS = 16
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # odd and irregular, as a signed 64-bit number


class CodeUsage(NamedTuple):
    """Share of codes seen, one number in [0, 1] a group, and the number of dead bits in all."""

    share: list[float]
    dead_bits: int


def code_usage(ids: Tensor, group_bits: int) -> CodeUsage:
    """Usage within one batch of ids [B, g, h, w]; over several batches, use `UsageCounter`."""
    if ids.ndim != 4:
        raise WetokError(f"ids has shape {tuple(ids.shape)}: it must be [B, g, h, w]")
    counter = UsageCounter(ids.shape[1], group_bits)
    counter.update(ids)
    return CodeUsage(counter.usage(), counter.dead_bits())


class UsageCounter:
    """Counts the codes of every group over many batches, on the device of the ids.

    `update` is one histogram and reads nothing back from a GPU: cheap enough for every step.

    Up to 16 bits per group every code has its own count. Above that a table of all codes would be
    mostly empty, so codes are hashed into 2^16 buckets: a share of buckets below 1 is then a true
    sign of unused codes once far more than 2^16 ids were counted, a share of 1 only says that the
    codes are well spread. Dead bits are exact for any number of bits.
    """

    def __init__(self, groups: int, group_bits: int) -> None:
        if groups < 1 or not 1 <= group_bits <= 62:
            raise WetokError(
                f"groups={groups}, group_bits={group_bits}: need at least one group of 1 to 62 bits"
            )
        self.groups, self.group_bits = groups, group_bits
        self._exact = group_bits <= EXACT_BITS
        self.reset()

    def reset(self) -> None:
        """Forgets everything counted."""
        self.counts = torch.zeros(self.groups, 2 ** min(self.group_bits, EXACT_BITS)).long()
        """[g, 2^d'] (beyond 16 bits: buckets), how often each code was seen."""
        self._seen = torch.zeros(2, self.groups, self.group_bits, dtype=torch.bool)

    def update(self, ids: Tensor) -> None:
        """Counts ids [B, g, h, w] of any integer type.

        Raises:
            WetokError: wrong shape or type, or (checked on a CPU only) an id out of range.
        """
        if ids.ndim != 4 or ids.shape[1] != self.groups or ids.is_floating_point():
            raise WetokError(
                f"ids is {ids.dtype} {tuple(ids.shape)}: it must be integers of shape "
                f"[B, {self.groups}, h, w]"
            )
        if not ids.numel():
            return
        codes = ids.detach().movedim(1, 0).flatten(1).long()  # [g, N]
        if codes.device.type == "cpu":
            least, most = (int(v) for v in codes.aminmax())
            if least < 0 or most >> self.group_bits:
                raise WetokError(
                    f"ids lie in [{least}, {most}]: {self.group_bits} bits per group allow "
                    f"[0, {2**self.group_bits - 1}]"
                )
        if self.counts.device != codes.device:
            self.counts, self._seen = self.counts.to(codes.device), self._seen.to(codes.device)
        if not self._exact:
            shift = torch.arange(self.group_bits, device=codes.device)[:, None]
            ones = ((codes[:, None] >> shift) & 1).bool()  # [g, d', N]
            self._seen |= torch.stack([(~ones).any(-1), ones.any(-1)])
            codes = ((codes * _GOLDEN) >> (64 - EXACT_BITS)) & (2**EXACT_BITS - 1)
        size = self.counts.shape[1]
        codes = codes + torch.arange(self.groups, device=codes.device)[:, None] * size
        flat = codes.flatten()  # not bincount: on a GPU it waits for the device
        self.counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))

    def total(self) -> UsageCounter:
        """A counter of what all processes have counted; every rank must call it."""
        total = UsageCounter(self.groups, self.group_bits)
        total.counts = all_reduce_sum_(self.counts.clone())
        total._seen = all_reduce_sum_(self._seen.long()) > 0
        return total

    def usage(self) -> list[float]:
        """Share of codes (beyond 16 bits: of buckets) seen so far, one number in [0, 1] a group."""
        shares: list[float] = (self.counts > 0).double().mean(1).tolist()
        return shares

    def dead_bits(self) -> int:
        """Number of bits, of d in all, that had the same value in everything seen so far."""
        return int(self.dead().sum())

    def dead(self) -> Tensor:
        """Which bits never changed: [g, d'], True for a dead one (all, before the first update)."""
        if not self._exact:
            return ~self._seen.all(0)
        used = self.counts > 0
        both = [
            used.view(self.groups, -1, 2, 2**k).any(3).any(1).all(1) for k in range(self.group_bits)
        ]
        return ~torch.stack(both, 1)
