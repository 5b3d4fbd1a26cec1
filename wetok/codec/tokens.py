"""Tokens: the ids of one or several images with all that decoding them takes."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wetok.codec import file
from wetok.codec.header import LEARNED, Header
from wetok.codec.packing import id_dtype
from wetok.codec.reader import TokenFile
from wetok.codec.tables import FILE, CodingTables
from wetok.config import WetokError

if TYPE_CHECKING:
    from torch import Tensor


class ModelRef(NamedTuple):
    """Which model made some tokens."""

    name: str
    fingerprint: str
    """16 hex digits (`wetok.checkpoint.fingerprint`)."""


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """The tokens of a batch of images of one size.

    The ids are checked on construction, and kept in the smallest type that holds them (uint8 up to
    8 bits a group, int16 to 15, int32 to 31, int64 to 62), so that equal tokens look equal.

    Raises:
        WetokError: ids that are not an integer tensor [B,g,h,w] in [0, 2^d'), or a size that
            h x w positions can't stand for; margins or `known` that don't go with the ids.
    """

    ids: Tensor
    """[B,g,h,w] integers in [0, 2^group_bits)."""
    size: tuple[int, int]
    """True height and width in pixels, the same for all images."""
    model: ModelRef
    group_bits: int
    """d': bits of one id."""
    grey: bool = False
    """Whether the images are greyscale."""
    known: int | None = None
    """The first so many groups are known, the others zero: an incomplete, coarser version. None is
    all of them."""
    margins: Tensor | None = None
    """[B,d,h,w] uint8: how far each latent was from the other sign, in 1/64; 255 is that or more.
    The smaller, the less certain the bit."""
    tables: CodingTables | None = None
    """What entropy-codes these tokens well when they are saved; no part of their value."""
    uncertain: float | None = None
    """Of tokens encoded in bf16: the share of bits whose latent was within the measured error of
    zero, and which float32 may have made otherwise. None in float32; no part of their value."""

    def __post_init__(self) -> None:
        import torch

        if not isinstance(self.ids, torch.Tensor):
            raise WetokError(f"ids must be a tensor [B,g,h,w], not a {type(self.ids).__name__}")
        if self.ids.ndim != 4:
            raise WetokError(f"ids must be [B,g,h,w], not of shape {list(self.ids.shape)}")
        if self.ids.is_floating_point() or self.ids.is_complex() or self.ids.dtype == torch.bool:
            raise WetokError(f"ids must be integers, not {self.ids.dtype}")
        try:
            height, width = (operator.index(side) for side in self.size)
            name, fingerprint = self.model
        except (TypeError, ValueError):
            raise WetokError(
                f"size={self.size!r} must be (height, width) and model={self.model!r} "
                "(name, fingerprint)"
            ) from None
        object.__setattr__(self, "size", (height, width))
        object.__setattr__(self, "model", ModelRef(name, fingerprint))
        self._header()  # checks the values that a file would hold, and that they go together
        narrow = self.ids.dtype in (torch.uint8, torch.int16, torch.int32, torch.int64)
        ids = self.ids if narrow else self.ids.long()
        least, most = (int(end) for end in ids.aminmax())
        if least < 0 or most >> self.group_bits:
            raise WetokError(
                f"ids span {least}..{most}, outside [0, 2^{self.group_bits}) of "
                f"group_bits={self.group_bits}"
            )
        dtype: torch.dtype = getattr(torch, id_dtype(self.group_bits).name)
        object.__setattr__(self, "ids", ids.to(dtype))
        if self.known is not None and not 1 <= self.known <= ids.shape[1]:
            raise WetokError(f"known={self.known} must lie in 1..{ids.shape[1]}, the groups")
        if self.margins is not None and (
            not isinstance(self.margins, torch.Tensor)
            or self.margins.dtype != torch.uint8
            or tuple(self.margins.shape) != self._header().bit_shape
        ):
            raise WetokError(f"margins must be a uint8 tensor {list(self._header().bit_shape)}")

    def __len__(self) -> int:
        """The number of images."""
        return self.ids.shape[0]

    def __eq__(self, other: object) -> bool:
        """Whether ids, size, model, bits, colour, what is known and margins are the same.

        On any device; whatever tables they would be saved with.
        """
        if not isinstance(other, Tokens):
            return NotImplemented
        return (
            self._plain() == other._plain()
            and self.ids.shape == other.ids.shape
            and bool((self.ids.cpu() == other.ids.cpu()).all())
            and (self.margins is None) == (other.margins is None)
            and (
                self.margins is None
                or other.margins is None
                or bool((self.margins.cpu() == other.margins.cpu()).all())
            )
        )

    __hash__ = None  # type: ignore[assignment]  # as a tensor's ids may change in place

    def __repr__(self) -> str:
        images, groups, height, width = self.ids.shape
        return (
            f"Tokens({images} x {self.size[0]}x{self.size[1]} pixels, {height}x{width} positions, "
            f"{groups} groups of {self.group_bits} bits, {self.bpp:.4g} bpp, "
            f"{'' if self.known is None else f'first {self.known} known, '}"
            f"{self.model.name} {self.model.fingerprint})"
        )

    @property
    def bpp(self) -> float:
        """Bits of ids for each pixel of the true size, before entropy coding."""
        bits = self.ids[0].numel() * self.group_bits
        return bits / (self.size[0] * self.size[1])

    def first_groups(self, count: int) -> Tokens:
        """The first `count` groups, the others unknown: what a quick look decodes.

        Raises:
            WetokError: not 1 to g, or more than are known.
        """
        most = self.ids.shape[1] if self.known is None else self.known
        if not 1 <= count <= most:
            raise WetokError(f"groups={count} must lie in 1..{most}")
        if count == self.ids.shape[1]:
            return self
        ids = self.ids.clone()
        ids[:, count:] = 0
        return replace(self, ids=ids, known=count, margins=None)

    def to_bytes(self, coding: file.Coding = "auto") -> bytes:
        """The `.wetok` file that `save` writes.

        Raises:
            WetokError: as `save`.
        """
        return b"".join(file.pieces([self._part()], coding, self.tables))

    def save(
        self,
        path: str | Path,
        coding: file.Coding = "auto",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a `.wetok` file, complete or not at all; an existing one is replaced.

        Args:
            coding: "packed" in fixed length, "entropy" with `tables` (without: adaptive), "auto"
                whichever of these is smallest.
            metadata: what JSON can hold, to go with the tokens.

        Raises:
            WetokError: the file can't be written, or not all groups are known.
        """
        file.write_parts(path, [self._part()], coding, self.tables, metadata)

    @staticmethod
    def save_all(
        path: str | Path,
        tokens: Sequence[Tokens],
        coding: file.Coding = "auto",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes tokens of images of several sizes, all by one model, to one file.

        Raises:
            WetokError: as `save`; no tokens, or by several models.
        """
        tables = next((one.tables for one in tokens if one.tables is not None), None)
        file.write_parts(path, [one._part() for one in tokens], coding, tables, metadata)

    @classmethod
    def load(
        cls,
        path: str | Path,
        tables: CodingTables | str | Path | None = None,
        groups: int | None = None,
    ) -> Tokens:
        """The tokens in a `.wetok` file.

        Args:
            tables: what entropy-coded tokens of a model need that is neither shipped nor in the
                Hub's cache: its folder, or its tokenizer's `tables`.
            groups: decode the first so many only; the others count as unknown.

        Raises:
            WetokError: not a `.wetok` file, truncated, altered, or of a newer version; its tables
                are not at hand; it holds images of several sizes.
        """
        with file.opened(path) as opened:
            _ = opened.only
            return cls._read(opened, 0, tables, groups)

    @classmethod
    def load_all(
        cls,
        path: str | Path,
        tables: CodingTables | str | Path | None = None,
        groups: int | None = None,
    ) -> list[Tokens]:
        """The tokens in a `.wetok` file, one item for each size of image.

        Raises:
            WetokError: as `load`.
        """
        with file.opened(path) as opened:
            return [cls._read(opened, part, tables, groups) for part in range(len(opened.headers))]

    @classmethod
    def _read(
        cls,
        opened: TokenFile,
        part: int,
        tables: CodingTables | str | Path | None,
        groups: int | None,
    ) -> Tokens:
        import numpy as np
        import torch

        header = opened.headers[part]
        found = tables_for(header, tables)
        ids = opened.read(part, found, groups=groups)
        if ids.shape != header.shape:
            whole = np.zeros(header.shape, ids.dtype)
            whole[:, :groups] = ids
            ids = whole
        margins = opened.margins(part) if groups in (None, header.groups) else None
        return cls(
            torch.from_numpy(np.ascontiguousarray(ids)),
            header.size,
            ModelRef(header.name, header.fingerprint),
            header.group_bits,
            grey=header.grey,
            known=None if groups == header.groups else groups,
            margins=None if margins is None else torch.from_numpy(margins.copy()),
            tables=found,
        )

    def _plain(self) -> tuple[object, ...]:
        return self.size, self.model, self.group_bits, self.grey, self.known

    def _part(self) -> file.Part:
        if self.known is not None:
            raise WetokError(
                f"tokens of which only the first {self.known} groups are known can't be saved"
            )
        margins = None if self.margins is None else self.margins.cpu().numpy()
        return file.Part(self._header(), self.ids.cpu().numpy(), margins)

    def _header(self) -> Header:
        images, groups, height, width = self.ids.shape
        return Header(
            name=self.model.name,
            fingerprint=self.model.fingerprint,
            groups=groups,
            group_bits=self.group_bits,
            images=images,
            size=self.size,
            latent=(height, width),
            grey=self.grey,
        )


def tables_for(header: Header, given: CodingTables | str | Path | None) -> CodingTables | None:
    """The tables that a file asks for, or the given ones if it asks for none.

    Raises:
        WetokError: a model was given that does not exist or has none.
    """
    from wetok import checkpoint

    if given is None:
        wanted = header.coding == LEARNED
        return checkpoint.tables_at_hand(header.name) if wanted else None
    if isinstance(given, CodingTables):
        return given
    found = checkpoint.find_tables(given)
    if found is None and header.coding == LEARNED:
        raise WetokError(f"model {str(given)!r} has no tables ({FILE}) to read these tokens with")
    return found
