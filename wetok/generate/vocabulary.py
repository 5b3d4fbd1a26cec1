"""Ids of all groups as one contiguous vocabulary, for language models that take any tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wetok.config import WetokError


@dataclass(frozen=True)
class Vocabulary:
    """Maps ids [B,g,h,w] to sequences of integers in [base, base + size) and back.

        begin | row 0: position 0: group 0 .. g-1, position 1: ... | end of row | row 1 ... | end

    Group k's id i is base + k 2^d' + i; after all groups come begin-of-image, end-of-image and,
    with `rows`, end-of-row. End-of-row tells images of different widths apart.

    Args:
        groups, group_bits: g and d' of the tokenizer.
        base: the first integer; the size of a text vocabulary that lies before.
        rows: whether a token ends each row.
    """

    groups: int
    group_bits: int
    base: int = 0
    rows: bool = True

    def __post_init__(self) -> None:
        if self.groups < 1 or self.group_bits < 1 or self.base < 0:
            raise WetokError(
                f"groups={self.groups}, group_bits={self.group_bits}, base={self.base}: need at "
                "least one group of one bit, and a base of 0 or more"
            )

    @property
    def codes(self) -> int:
        """2^d'."""
        return int(2**self.group_bits)

    @property
    def size(self) -> int:
        """Number of integers used: g 2^d' and the two or three marks."""
        return self.groups * self.codes + (3 if self.rows else 2)

    @property
    def begin(self) -> int:
        """Begin of image."""
        return self.base + self.groups * self.codes

    @property
    def end(self) -> int:
        """End of image."""
        return self.begin + 1

    @property
    def row(self) -> int:
        """End of row."""
        return self.begin + 2

    def length(self, height: int, width: int) -> int:
        """Tokens of an image of that many positions down and across."""
        return height * (width * self.groups + self.rows) + 2

    def allowed(self, place: int, height: int, width: int) -> list[int]:
        """What may stand at `place` of the sequence of an image of height x width positions.

        For constrained generation: whatever is chosen place by place among these, `decode` takes.

        Raises:
            WetokError: a place outside [0, length).
        """
        if not 0 <= place < self.length(height, width):
            raise WetokError(
                f"place={place} must lie in [0, {self.length(height, width)}), the length of an "
                f"image of {height} x {width} positions"
            )
        if place == 0:
            return [self.begin]
        if place == self.length(height, width) - 1:
            return [self.end]
        column = (place - 1) % (width * self.groups + self.rows)
        if column == width * self.groups:
            return [self.row]
        first = self.base + column % self.groups * self.codes
        return list(range(first, first + self.codes))

    def encode(self, ids: Tensor) -> Tensor:
        """Sequences [B,T] of int64 from ids [B,g,h,w].

        Raises:
            WetokError: another number of groups, or an id out of range.
        """
        if ids.ndim != 4 or ids.shape[1] != self.groups:
            raise WetokError(f"ids has shape {list(ids.shape)}: must be [B,{self.groups},h,w]")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.codes:
            raise WetokError(
                f"ids from {int(ids.min())} to {int(ids.max())}: must be below {self.codes}"
            )
        batch, groups, height, width = ids.shape
        first = self.base + self.codes * torch.arange(groups, device=ids.device)
        body = (ids.long() + first[:, None, None]).permute(0, 2, 3, 1).flatten(2)
        if self.rows:
            body = torch.cat([body, body.new_full((batch, height, 1), self.row)], dim=2)
        marks = [body.new_full((batch, 1), mark) for mark in (self.begin, self.end)]
        return torch.cat([marks[0], body.flatten(1), marks[1]], dim=1)

    def decode(self, sequence: Tensor, width: int | None = None) -> Tensor:
        """Ids [B,g,h,w] from sequences [B,T], begin and end included.

        Args:
            width: positions across; needed where rows are not marked, else found.

        Raises:
            WetokError: not such sequences, told of the first token that is wrong.
        """
        if sequence.ndim != 2 or sequence.shape[1] < 2:
            raise WetokError(f"sequence has shape {list(sequence.shape)}: must be [B,T], T >= 2")
        for place, mark, name in ((0, self.begin, "begin"), (-1, self.end, "end")):
            self._check(sequence[:, place] == mark, sequence[:, place], f"{name} of image ({mark})")
        body = sequence[:, 1:-1]
        if self.rows and width is None and len(body):
            ends = (body[0] == self.row).nonzero()
            width = int(ends[0]) // self.groups if len(ends) else None
        if not width:
            raise WetokError("width of the image is unknown: give it, or mark the rows")
        across = width * self.groups + self.rows
        if body.shape[1] == 0 or body.shape[1] % across:
            raise WetokError(
                f"sequence has {body.shape[1]} tokens between begin and end: not whole rows of "
                f"{across}"
            )
        lines = body.unflatten(1, (-1, across))
        if self.rows:
            last = lines[:, :, -1]
            self._check(last == self.row, last, f"end of row ({self.row})")
            lines = lines[:, :, :-1]
        first = self.base + self.codes * torch.arange(self.groups, device=sequence.device)
        ids = lines.unflatten(2, (width, self.groups)) - first
        self._check((ids >= 0) & (ids < self.codes), ids + first, "an id of its own group")
        return ids.permute(0, 3, 1, 2)

    @staticmethod
    def _check(right: Tensor, tokens: Tensor, wanted: str) -> None:
        if not bool(right.all()):
            wrong = int(tokens[~right][0])
            raise WetokError(f"sequence: token {wrong} where there should be {wanted}")
