"""Tokens with something done to them, to see what each of them does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from wetok.codec.tokens import Tokens
from wetok.config import WetokError

RANDOM, FLIP, ZERO, SHUFFLE, SWAP = (
    "Replace tokens at random",
    "Flip bits",
    "Zero one group",
    "Shuffle a rectangle",
    "Rectangle from another photo",
)
KINDS = (RANDOM, FLIP, ZERO, SHUFFLE, SWAP)


class Box(NamedTuple):
    """A part of the picture, in shares of its width and height, from 0 to 1."""

    left: float
    top: float
    width: float
    height: float

    def slices(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of `height` x `width` positions that it touches, at least one each."""
        if not all(0 <= value <= 1 for value in self):
            raise WetokError(f"The rectangle {tuple(self)} must lie in shares from 0 to 1.")
        rows = _span(self.top, self.height, height)
        return rows, _span(self.left, self.width, width)


class Damaged(NamedTuple):
    """What came of it."""

    tokens: Tokens
    changed: int
    """Ids that are others now."""
    flipped: int
    """Bits that are others now."""


def damaged(
    tokens: Tokens,
    kind: str,
    *,
    share: float = 0.0,
    group: int = 0,
    box: Box = Box(0, 0, 1, 1),  # noqa: B008
    other: Tokens | None = None,
    seed: int = 0,
) -> Damaged:
    """`tokens` after one kind of damage; the same seed does the same.

    Args:
        kind: of `KINDS`.
        share: of the ids that are replaced, each by another one, or of the bits that are flipped.
        group: which is set to id 0, all bits off, from 0 on.
        box: where positions change places, all groups of one together, or come from `other`.
        other: tokens of the same shape by the same model.

    Raises:
        WetokError: an unknown kind, a value outside its range, or other tokens that don't fit.
    """
    if not 0 <= share <= 1:
        raise WetokError(f"The share {share} must lie in 0 to 1.")
    ids, bits = tokens.ids.long().cpu().clone(), tokens.group_bits
    chance = torch.Generator().manual_seed(seed % 2**63)
    if kind == RANDOM:
        flat = ids.view(-1)
        where = torch.randperm(len(flat), generator=chance)[: round(share * len(flat))]
        # Any id but its own, each as likely as the others.
        step = torch.randint(1, 2**bits, (len(where),), generator=chance)
        flat[where] = (flat[where] + step) % 2**bits
    elif kind == FLIP:
        flat = ids.view(-1)
        where = torch.randperm(len(flat) * bits, generator=chance)
        where = where[: round(share * len(where))]
        masks = torch.zeros_like(flat).index_add_(0, where // bits, 1 << where % bits)
        flat ^= masks
    elif kind == ZERO:
        if not 0 <= group < ids.shape[1]:
            raise WetokError(f"There is no group {group + 1}: there are {ids.shape[1]}.")
        ids[:, group] = 0
    elif kind == SHUFFLE:
        part = (..., *box.slices(*ids.shape[-2:]))
        inside = ids[part]
        order = torch.randperm(inside.shape[-2] * inside.shape[-1], generator=chance)
        ids[part] = inside.flatten(2)[..., order].view(inside.shape)
    elif kind == SWAP:
        if other is None:
            raise WetokError("Choose another photo to take the rectangle from.")
        if other.ids.shape != ids.shape or other.model.fingerprint != tokens.model.fingerprint:
            raise WetokError("The other photo's tokens are of another shape or another model.")
        part = (..., *box.slices(*ids.shape[-2:]))
        ids[part] = other.ids[part].long().cpu()
    else:
        raise WetokError(f"There is no damage called {kind!r}.")
    after = replace(tokens, ids=ids, margins=None)
    return Damaged(after, *_counted(tokens.ids.long().cpu() ^ ids, bits))


def _counted(differing: Tensor, bits: int) -> tuple[int, int]:
    flipped = sum(int((differing >> bit & 1).sum()) for bit in range(bits))
    return int((differing != 0).sum()), flipped


def _span(start: float, length: float, positions: int) -> slice:
    first = min(int(start * positions), positions - 1)
    last = math.ceil((start + length) * positions - 1e-9)  # a share may be a hair too large
    return slice(first, min(max(first + 1, last), positions))
