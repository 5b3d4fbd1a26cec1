"""Which codes a tokenizer uses over an evaluation: usage, entropy, the balance of every bit."""

from __future__ import annotations

import torch
from torch import Tensor

from wetok.evaluate.processes import summed
from wetok.model.usage import EXACT_BITS, UsageCounter


class CodeStatistics:
    """Counts every code of every group, and the ones of every bit, over all positions seen.

    Beyond 16 bits a group, codes are counted in 2^16 hashed buckets (`UsageCounter`): usage is
    then that of buckets, and the entropy a lower bound. Counts of bits are always exact.
    """

    def __init__(self, groups: int, group_bits: int) -> None:
        self.groups, self.group_bits = groups, group_bits
        self.exact = group_bits <= EXACT_BITS
        """Whether usage and entropy are of codes, not of buckets."""
        self.counter = UsageCounter(groups, group_bits)
        self.ones = torch.zeros(groups, group_bits, dtype=torch.long)
        """[g, d'], how often each bit was 1."""
        self.positions = 0
        self._shift = torch.arange(group_bits)[:, None]

    def update(self, ids: Tensor) -> None:
        """Counts ids [B,g,h,w] of any integer type."""
        ids = ids.cpu()
        self.counter.update(ids)
        codes = ids.movedim(1, 0).flatten(1).long()
        self.ones += ((codes[:, None] >> self._shift) & 1).sum(-1)
        self.positions += codes.shape[1]

    def total(self) -> CodeStatistics:
        """What all processes have counted; every rank must call it."""
        total = CodeStatistics(self.groups, self.group_bits)
        total.counter.counts = summed(self.counter.counts)
        total.ones = summed(self.ones)
        total.positions = int(summed(torch.tensor(self.positions)))
        return total

    def usage(self) -> list[float]:
        """Share of the codes of each group that were seen: [g] in [0, 1]."""
        return self.counter.usage()

    def entropy(self) -> list[float]:
        """Entropy in bits of the codes of each group as they were counted: [g] in [0, d'].

        Of few positions it is too low: N of them give at most log2 N.
        """
        counts = self.counter.counts.double()
        share = counts / counts.sum(1, keepdim=True).clamp_min(1)
        bits: list[float] = (
            torch.special.entr(share).sum(1) / torch.log(torch.tensor(2.0))
        ).tolist()
        return bits

    def bit_ones(self) -> list[list[float]]:
        """How often each bit is 1: [g][d'] in [0, 1]; one half carries the most."""
        shares: list[list[float]] = (self.ones.double() / max(1, self.positions)).tolist()
        return shares

    def dead_bits(self) -> int:
        """Number of bits, of d in all, that had one value throughout."""
        return int(((self.ones == 0) | (self.ones == self.positions)).sum())
