"""How far the grouped codebook entropy is from the exact one (WeTok, Proposition 3.1).

The codebook entropy is that of the mean over positions of the soft assignments, a joint
distribution P of d bits. Grouped quantization takes the sum of the entropies of its groups' own
distributions P_G instead. The difference is the total correlation between the groups,

    sum of H(P_G) - H(P) = KL(P, product of the P_G) >= 0,

0 where the groups are independent. Cutting a group in two can only add to it, by the same
inequality within that group: so BSQ, the finest, has the largest error, and of numbers of groups
that divide one another the larger has the larger error. Of two that don't, either may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from wetok.config import WetokError
from wetok.model.entropy import MAX_GROUP_BITS, group_entropies


class Approximation(NamedTuple):
    """Of one number of groups; in nats."""

    groups: int
    grouped: float
    """Sum over the groups of the entropies of their codes."""
    exact: float
    """Entropy of all bits together: that of one group."""

    @property
    def error(self) -> float:
        """What the groups leave out of sight: never negative, but for rounding."""
        return self.grouped - self.exact


def divisors(bits: int) -> list[int]:
    """The numbers of groups that `bits` can be cut into, rising."""
    return [groups for groups in range(1, bits + 1) if bits % groups == 0]


def approximations(
    latent: Tensor, groups: Sequence[int] | None = None, temperature: float = 0.01
) -> list[Approximation]:
    """The grouped codebook entropy of latents [B, d, *] against the exact one, in float64.

    Nothing is sampled: the joint of all d bits is computed by the factored tables.

    Args:
        groups: numbers of groups; by default all divisors of d.
        temperature: of the soft assignment, as in training.

    Raises:
        WetokError: more bits than a joint can have, or a number of groups that divides nothing.
    """
    bits = latent.shape[1]
    if bits > MAX_GROUP_BITS:
        raise WetokError(
            f"latent has {bits} channels: the exact entropy takes at most {MAX_GROUP_BITS} bits; "
            "choose some of them"
        )

    def total(count: int) -> float:
        wide = latent.detach().double()
        return group_entropies(wide, count, temperature=temperature, eps=0).codebook.sum().item()

    exact = total(1)
    return [
        Approximation(count, exact if count == 1 else total(count), exact)
        for count in (divisors(bits) if groups is None else groups)
    ]
