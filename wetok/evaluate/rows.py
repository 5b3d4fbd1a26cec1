"""The scores of single images, kept small: some hundred bytes an image, whatever their number."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from wetok.config import WetokError

_WHOLE = frozenset(("width", "height", "bits", "coded_bytes", "payload_bytes"))


class Rows(Sequence[dict[str, Any]]):
    """A table with a row an image, which reads as a list of dictionaries.

    A row has `image` (its name) and numbers, of which a missing one is None. All rows have the
    same columns. Rows also carry their place in the list of images and a hash of their content.
    """

    def __init__(self) -> None:
        self.places = array("q")
        self.names: list[str] = []
        self.hashes: list[bytes] = []
        self.columns: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        row: dict[str, Any] = {"image": self.names[index]}
        for name, column in self.columns.items():
            value = column[index]
            row[name] = None if math.isnan(value) else int(value) if name in _WHOLE else value
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def append(
        self, place: int, name: str, content: bytes, values: Mapping[str, float | None]
    ) -> None:
        """Adds the row of the image at `place` in the list; `content` is its hash.

        Raises:
            WetokError: other columns than the rows before it.
        """
        if not self.names:
            self.columns = {key: array("d") for key in values}
        if self.columns.keys() != values.keys():
            raise WetokError(f"image {name!r} has other scores than those before it")
        self.places.append(place)
        self.names.append(name)
        self.hashes.append(content)
        for key, value in values.items():
            self.columns[key].append(math.nan if value is None else value)

    def mean(self, name: str) -> float | None:
        """Of a column, the same in whatever order the rows came; None where a value is missing."""
        total = math.fsum(self.columns[name]) if len(self) else math.nan
        return None if math.isnan(total) else total / len(self)

    def sum(self, name: str) -> float | None:
        """Of a column; None where a value is missing."""
        mean = self.mean(name)
        return None if mean is None else math.fsum(self.columns[name])

    def list_hash(self) -> str:
        """16 hex digits of the SHA-256 over every image's name and content, in their order."""
        digest = hashlib.sha256()
        for name, content in zip(self.names, self.hashes, strict=True):
            digest.update(f"{name}\0{content.hex()}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    @classmethod
    def merged(cls, parts: Iterable[Rows]) -> Rows:
        """The rows of all `parts`, in the order of their places."""
        merged = cls()
        filled = [part for part in parts if len(part)]
        order = sorted(
            (place, part, index)
            for part, rows in enumerate(filled)
            for index, place in enumerate(rows.places)
        )
        for place, part, index in order:
            rows = filled[part]
            values = {name: column[index] for name, column in rows.columns.items()}
            merged.append(place, rows.names[index], rows.hashes[index], values)
        return merged


def file_size(row: dict[str, Any]) -> int | None:
    """Bytes of a row's file; of its codes in fixed length where there is no file; or None."""
    if row["coded_bytes"] is not None:
        return int(row["coded_bytes"])
    return None if row["bits"] is None else -(-int(row["bits"]) // 8)
