"""The learned tables of entropy coding: `coding.safetensors` in a model folder.

`docs/formats.md` lists the tensors. A file of ids names its tables by the first 8 bytes of the
SHA-256 of the tables' file, so it is only ever read with the very tables that wrote it.
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetok.codec.context import HIDDEN, LearnedModel, Net, inputs_of, phases
from wetok.codec.packing import MAX_BITS
from wetok.config import WetokError

FILE = "coding.safetensors"
LARGEST = 64 << 20
"""Bytes of a table file that is read at all; the shipped one has 0.3 million."""
MAX_LEVELS = 6
_EXACT = 2**24  # whole numbers below are exact in float32
_TENSORS = {"first": "I8", "first_bias": "I32", "second": "I8", "direct": "I8", "bias": "I32"}
_TYPES = {**_TENSORS, "within": "I8"}


class CodingTables:
    """Tables read from the bytes of a `coding.safetensors`, checked."""

    def __init__(self, data: bytes, source: str = "coding tables") -> None:
        """Raises WetokError, which speaks of `source`, for tables that can't be used."""
        self.data = data
        try:
            self.nets, self.group_bits = _parse(data)
        except WetokError as error:
            raise WetokError(f"{source}: {error}") from None

    @classmethod
    def read(cls, path: Path) -> CodingTables:
        """The tables in a file.

        Raises:
            WetokError: it can't be read, or its content can't be used.
        """
        try:
            with open(path, "rb") as stream:
                data = stream.read(LARGEST + 1)
        except OSError as error:
            raise WetokError(f"{path}: can't be read: {error.strerror}") from None
        return cls(data, str(path))

    @classmethod
    def of_nets(cls, nets: list[list[Net]]) -> CodingTables:
        """Tables of new networks, [groups][phases]."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {}
        for group, row in enumerate(nets):
            for number, net in enumerate(row):
                for part, kind in _TYPES.items():
                    values = getattr(net, part)
                    dtype = np.int8 if kind == "I8" else np.int32
                    tensors[f"{group}.{number}.{part}"] = np.ascontiguousarray(values, dtype)
        return cls(save(tensors, {"format": "wetok-coding-1"}))

    @property
    def groups(self) -> int:
        return len(self.nets)

    @cached_property
    def digest(self) -> bytes:
        """8 bytes by which a file of ids names its tables."""
        return hashlib.sha256(self.data).digest()[:8]

    @cached_property
    def model(self) -> LearnedModel:
        return LearnedModel(self.nets, self.group_bits)

    def fits(self, groups: int, group_bits: int) -> bool:
        """Whether these tables are for ids of that shape."""
        return (self.groups, self.group_bits) == (groups, group_bits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CodingTables) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"CodingTables({self.groups} groups of {self.group_bits} bits, {self.digest.hex()})"


def _parse(data: bytes) -> tuple[list[list[Net]], int]:
    from safetensors import SafetensorError, deserialize

    if len(data) > LARGEST:
        raise WetokError(f"has more than {LARGEST >> 20} MiB")
    try:
        entries = dict(deserialize(data))
    except (SafetensorError, ValueError) as error:
        raise WetokError(f"not coding tables: {str(error).splitlines()[0]}") from None
    found: dict[tuple[int, int], dict[str, NDArray[np.float32]]] = {}
    for name, entry in entries.items():
        match = re.fullmatch(r"(\d{1,5})\.(\d{1,2})\.(\w+)", name)
        if not match or _TYPES.get(match[3]) != entry["dtype"]:
            raise WetokError(f"has an unknown tensor {name!r} of type {entry['dtype']}")
        kind = "i1" if entry["dtype"] == "I8" else "<i4"
        values = np.frombuffer(entry["data"], kind).astype(np.float32)
        where = found.setdefault((int(match[1]), int(match[2])), {})
        where[match[3]] = values.reshape(entry["shape"])
    groups = 1 + max((group for group, _ in found), default=-1)
    count = 1 + max((number for _, number in found), default=-1)
    complete = len(found) == groups * count and all(len(p) == len(_TYPES) for p in found.values())
    levels, rest = divmod(count - 1, 3)
    if not groups or not complete or rest or levels > MAX_LEVELS:
        raise WetokError("lacks tensors of some group or phase")
    group_bits = found[0, 0]["bias"].size
    if not 1 <= group_bits <= MAX_BITS:
        raise WetokError(f"has ids of {group_bits} bits; they must have 1 to {MAX_BITS}")
    nets = []
    for group in range(groups):
        row = []
        for number, phase in enumerate(phases(levels)):
            net = Net(**found[group, number])
            _check(net, inputs_of(group, group_bits, phase), group_bits, f"{group}.{number}")
            row.append(net)
        nets.append(row)
    return nets, group_bits


def _check(net: Net, inputs: int, bits: int, name: str) -> None:
    hidden = net.first_bias.size
    shapes = ((hidden, inputs), (hidden,), (bits, hidden), (bits, inputs), (bits,), (bits, bits))
    for part, values, shape in zip(net._fields, net, shapes, strict=True):
        if values.shape != shape:
            raise WetokError(
                f"{name}.{part} has shape {list(values.shape)} where it must be {list(shape)}"
            )
    if np.triu(net.within).any():
        raise WetokError(f"{name}.within must be zero on and above its diagonal")
    # In float64, which is exact here: no sum may leave what float32 holds exactly.
    sums = (
        np.abs(net.first, dtype=np.float64).sum(1) + np.abs(net.first_bias),
        np.abs(net.second, dtype=np.float64).sum(1) * HIDDEN,
        np.abs(net.direct, dtype=np.float64).sum(1) + np.abs(net.bias),
        np.abs(net.within, dtype=np.float64).sum(1),
    )
    if any(total.size and total.max() >= _EXACT for total in sums):
        raise WetokError(f"{name} has weights whose sums reach 2^24")
