"""What a `.wetok` file says besides the ids."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from wetok.checkpoint import check_name
from wetok.codec.chunks import LARGEST
from wetok.codec.packing import MAX_BITS, packed_size
from wetok.config import WetokError

PACKED, LEARNED, ADAPTIVE = 0, 1, 2
"""Codings of the ids: fixed length (`codec.packing`), entropy-coded with learned tables
(`codec.context`) or with adaptive probabilities (`codec.adaptive`)."""
CODINGS = ("packed", "learned", "adaptive")
MAX_FACTOR = 1024
"""Largest downsampling factor that a true size may imply."""

MODEL = struct.Struct("<8sHBB")  # fingerprint, groups, bits per group, length of the name
IMAGES = struct.Struct("<BIIIII")  # coding, images, height, width, latent height, latent width
GREY = b"\1"  # in a chunk colr; 0, or no chunk, is colour
META_LIMIT = 1 << 20
DIGEST = 8


@dataclass(frozen=True)
class Header:
    """All that a file says besides the ids.

    Raises:
        WetokError: on construction, for a value that no file can hold or that contradicts another.
    """

    name: str
    """The model's name; at most 255 bytes of UTF-8."""
    fingerprint: str
    """The model's fingerprint: 16 hex digits (`wetok.checkpoint.fingerprint`)."""
    groups: int
    group_bits: int
    images: int
    size: tuple[int, int]
    """True height and width in pixels, the same for all images of the file."""
    latent: tuple[int, int]
    """Height and width in positions."""
    grey: bool = False
    """Whether the images are greyscale; all are in sRGB's transfer curve and primaries."""
    coding: int = PACKED
    """PACKED, LEARNED or ADAPTIVE; what a file says, and not heeded when one is written."""
    tables: str = ""
    """Which learned tables: 16 hex digits (`CodingTables.digest`), or nothing."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if not re.fullmatch("[0-9a-f]{16}", self.fingerprint):
            raise WetokError(
                f"fingerprint {self.fingerprint!r} must be 16 hex digits in small letters"
            )
        if not 1 <= self.group_bits <= MAX_BITS:
            raise WetokError(f"group_bits={self.group_bits} must lie in 1..{MAX_BITS}")
        if not 1 <= self.groups <= 2**16 - 1:
            raise WetokError(f"groups={self.groups} must lie in 1..{2**16 - 1}")
        for what, value in (
            ("image count", self.images),
            *(("size", side) for side in self.size),
            *(("latent size", side) for side in self.latent),
        ):
            if not 1 <= value <= LARGEST:
                raise WetokError(f"{what} {value} must lie in 1..{LARGEST}")
        if not _some_factor(self.size, self.latent):
            raise WetokError(
                f"size {self.size[0]}x{self.size[1]} and {self.latent[0]}x{self.latent[1]} "
                f"positions do not go together: ceil(size / factor) for one factor up to "
                f"{MAX_FACTOR} gives the positions"
            )
        if self.coding not in (PACKED, LEARNED, ADAPTIVE):
            raise WetokError(f"coding {self.coding} of the ids is unknown; a newer wetok may know")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the ids, [images, groups, latent height, latent width]."""
        return (self.images, self.groups, *self.latent)

    @property
    def bit_shape(self) -> tuple[int, int, int, int]:
        """Shape of what there is one of for each bit, [images, d, latent height, latent width]."""
        return (self.images, self.groups * self.group_bits, *self.latent)

    @property
    def payload_size(self) -> int:
        """Bytes of the packed ids."""
        images, groups, height, width = self.shape
        return packed_size(images * groups * height * width, self.group_bits)


def _some_factor(size: tuple[int, int], latent: tuple[int, int]) -> bool:
    """Whether one factor f in 1..MAX_FACTOR has ceil(side / f) = positions on both axes."""
    low, high = 1, MAX_FACTOR
    for side, positions in zip(size, latent, strict=True):
        # ceil(side / f) = n  <=>  side / n <= f < side / (n - 1)
        low = max(low, -(-side // positions))
        if positions > 1:
            high = min(high, (side - 1) // (positions - 1))
    return low <= high
