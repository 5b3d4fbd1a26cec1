"""Tokens: the ids of one or several images with all that decoding them takes."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wetok.codec import file
from wetok.codec.packing import id_dtype
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
            h x w positions can't stand for.
    """

    ids: Tensor
    """[B,g,h,w] integers in [0, 2^group_bits)."""
    size: tuple[int, int]
    """True height and width in pixels, the same for all images."""
    model: ModelRef
    group_bits: int
    """d': bits of one id."""

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

    def __len__(self) -> int:
        """The number of images."""
        return self.ids.shape[0]

    def __eq__(self, other: object) -> bool:
        """Whether all ids, the size, the model and the bits are the same, on any device."""
        if not isinstance(other, Tokens):
            return NotImplemented
        return (
            (self.size, self.model, self.group_bits) == (other.size, other.model, other.group_bits)
            and self.ids.shape == other.ids.shape
            and bool((self.ids.cpu() == other.ids.cpu()).all())
        )

    __hash__ = None  # type: ignore[assignment]  # as a tensor's ids may change in place

    def __repr__(self) -> str:
        images, groups, height, width = self.ids.shape
        return (
            f"Tokens({images} x {self.size[0]}x{self.size[1]} pixels, {height}x{width} positions, "
            f"{groups} groups of {self.group_bits} bits, {self.bpp:.4g} bpp, "
            f"{self.model.name} {self.model.fingerprint})"
        )

    @property
    def bpp(self) -> float:
        """Bits of ids for each pixel of the true size, without the file's header."""
        bits = self.ids[0].numel() * self.group_bits
        return bits / (self.size[0] * self.size[1])

    def save(self, path: str | Path) -> None:
        """Writes a `.wetok` file, complete or not at all; an existing one is replaced.

        Raises:
            WetokError: the file can't be written.
        """
        file.write(path, self._header(), self.ids.cpu().numpy())

    @classmethod
    def load(cls, path: str | Path) -> Tokens:
        """The tokens in a `.wetok` file.

        Raises:
            WetokError: not a `.wetok` file, truncated, altered, or of a newer version.
        """
        import torch

        header, ids = file.read(path)
        model = ModelRef(header.name, header.fingerprint)
        return cls(torch.from_numpy(ids), header.size, model, header.group_bits)

    def _header(self) -> file.Header:
        images, groups, height, width = self.ids.shape
        return file.Header(
            name=self.model.name,
            fingerprint=self.model.fingerprint,
            groups=groups,
            group_bits=self.group_bits,
            images=images,
            size=self.size,
            latent=(height, width),
        )
