"""Token shards: Parquet files of ids that generators train from without decoding an image.

One row is one view of one image:

    key     string              what the image is called in its source
    view    string              which part of it: "center", "top-left-flip", ...
    height  int32               of that part in pixels, before it was padded to a multiple of f
    width   int32
    ids     fixed_size_binary   [g, ceil(height/f), ceil(width/f)] in C order, little-endian, in
                                1, 2, 4 or 8 bytes each; binary where the images' sizes vary
    ...                         columns that were passed through: labels, captions

The schema's metadata has all the rest as JSON under the key `wetok`: see `About`. docs/tokenize.md
shows how to read it with pyarrow, numpy and `datasets` alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wetok.config import WetokError
from wetok.data.cells import scale_package
from wetok.data.order import interleaved
from wetok.data.parquet import Recent

FORMAT = 1
METADATA = b"wetok"
COLUMNS = ("key", "view", "height", "width", "ids")
_GROUP_BYTES = 2**22  # of ids in a row group: what is unpacked at a time
_NEEDS = "token shards"


def ids_dtype(group_bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Little-endian and unsigned, of 1, 2, 4 or 8 bytes: the smallest that holds the ids.

    Raises:
        WetokError: not 1 to 64 bits.
    """
    for size in (1, 2, 4, 8):
        if 1 <= group_bits <= 8 * size:
            return np.dtype(f"<u{size}")
    raise WetokError(f"group_bits={group_bits} must lie in 1..64")


class Record(NamedTuple):
    """One view of one image."""

    key: str
    view: str
    ids: np.ndarray
    """[g,h,w] unsigned integers."""
    size: tuple[int, int]
    """True height and width in pixels."""
    extras: Mapping[str, Any]
    """What was passed through: column -> value."""


@dataclass(frozen=True)
class About:
    """What holds for all ids of a set of shards."""

    model: str
    fingerprint: str
    """Of the model that made the ids and can decode them: `wetok.checkpoint.fingerprint`."""
    groups: int
    group_bits: int
    factor: int
    """f: a position stands for f x f pixels."""
    size: tuple[int, int] | None
    """Height and width of every image, or None where they vary."""
    views: tuple[str, ...]
    preprocessing: str
    """What was done to an image before it was encoded, in words."""
    preprocessing_hash: str
    """16 hex digits over what that does to known images."""
    wetok: str
    """Version that wrote the shard."""
    format: int = FORMAT
    bytes_per_id: int = field(init=False)
    grid: tuple[int, int] | None = field(init=False)
    """Rows and columns of positions, or None where they vary."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bytes_per_id", ids_dtype(self.group_bits).itemsize)
        object.__setattr__(self, "grid", None if self.size is None else self.grid_of(self.size))

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        return ids_dtype(self.group_bits)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of positions of an image of `size` (height, width)."""
        return -(-size[0] // self.factor), -(-size[1] // self.factor)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> About:
        """Raises WetokError, which speaks of `where`, for anything that `to_json` does not give."""
        try:
            tree = json.loads(text)
            if tree["format"] > FORMAT:
                raise WetokError(f"{where} has format {tree['format']}: update wetok")
            given = {one.name: tree[one.name] for one in fields(cls) if one.init}
            for name in ("groups", "group_bits", "factor"):
                if not isinstance(given[name], int) or given[name] < 1:
                    raise ValueError(name)
            if given["size"] is not None:
                height, width = given["size"]
                given["size"] = (_side(height), _side(width))
            given["views"] = tuple(given["views"])
            return cls(**given)
        except WetokError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise WetokError(f"{where} has damaged metadata: {error!r}") from None

    def ids_from(self, data: bytes, size: tuple[int, int]) -> np.ndarray:
        """[g,h,w] from a cell of the column `ids`.

        Raises:
            ValueError: the cell's length does not fit `size`.
        """
        return np.frombuffer(data, self.dtype).reshape(self.groups, *self.grid_of(size))


def _side(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"size {value!r}")
    return value


def to_parquet(records: Sequence[Record], about: About, extras: Any = None) -> bytes:
    """A shard of `records` as the bytes of a Parquet file; equal arguments give equal bytes.

    Args:
        extras: pyarrow schema of what is passed through; `Record.extras` has a value for each.

    Raises:
        WetokError: pyarrow is not installed; ids out of range or of another shape; a value that
            is not of its column's type.
    """
    pa = scale_package("pyarrow", _NEEDS)
    parquet = scale_package("pyarrow.parquet", _NEEDS)
    own = [] if extras is None else list(extras)
    width = None
    if about.grid is not None:
        width = about.groups * about.grid[0] * about.grid[1] * about.bytes_per_id
    schema = pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("view", pa.string(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("ids", pa.binary() if width is None else pa.binary(width), nullable=False),
            *(one.remove_metadata() for one in own),
        ],
        metadata={METADATA: about.to_json().encode()},
    )
    columns: list[list[Any]] = [
        [record.key for record in records],
        [record.view for record in records],
        [record.size[0] for record in records],
        [record.size[1] for record in records],
        [ids_bytes(record, about) for record in records],
        *([record.extras[one.name] for record in records] for one in own),
    ]
    try:
        arrays = [pa.array(c, one.type) for c, one in zip(columns, schema, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=schema)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise WetokError(f"a column can't be written: {' '.join(str(error).split())}") from None
    typical = width or max((len(cell) for cell in columns[4]), default=1)
    sink = pa.BufferOutputStream()
    parquet.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=min(8192, max(32, _GROUP_BYTES // max(1, typical))),
        use_dictionary=[name for name in schema.names if name not in ("key", "ids")],
        write_page_checksum=True,
        write_statistics=False,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def ids_bytes(record: Record, about: About) -> bytes:
    """The cell of the column `ids`.

    Raises:
        WetokError: another shape, or ids out of range.
    """
    ids = record.ids
    shape = (about.groups, *about.grid_of(record.size))
    if ids.shape != shape or (about.size is not None and record.size != about.size):
        raise WetokError(
            f"ids of {record.key!r} have shape {list(ids.shape)} for {list(record.size)} pixels: "
            f"expected {list(shape)}, of {about.size or 'any size'}"
        )
    if ids.dtype.kind not in "iu" or ids.min() < 0 or int(ids.max()) >> about.group_bits:
        raise WetokError(f"ids of {record.key!r} are no integers in [0, 2^{about.group_bits})")
    return ids.astype(about.dtype).tobytes()


def read_about(path: str | os.PathLike[str]) -> About:
    """What a shard says of its ids.

    Raises:
        WetokError: as `TokenShards`.
    """
    return TokenShards([path]).about


class _Group(NamedTuple):
    """A row group: the unit that is unpacked."""

    file: int
    number: int  # within the file
    rows: int
    size: int  # bytes, unpacked


class TokenShards:
    """The records in Parquet shards, by number or in a shuffled order that goes on from anywhere.

    Files are memory-mapped and unpacked by row groups (about 4 MB), the latest of which are kept;
    whichever process reads a shard, the operating system holds it once.

    Args:
        paths: shards, or a folder that holds them.
        memory: bytes of unpacked row groups to keep, but always two of them. It is part of what
            decides the order.
        lanes: most row groups that are read in turns: see `wetok.data.order.interleaved`.

    Raises:
        WetokError: pyarrow is not installed, there are no shards, one is damaged or no shard of
            ours, or they are not of one set (another model, size or preprocessing).
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        memory: int = 2**28,
        lanes: int = 32,
    ) -> None:
        self._pyarrow = scale_package("pyarrow", _NEEDS)
        self._parquet = scale_package("pyarrow.parquet", _NEEDS)
        self.paths = find_shards(paths, ".parquet")
        self._groups: list[_Group] = []
        self._schema: Any = None
        for number, path in enumerate(self.paths):
            self._add(number, path)
        sizes = [group.rows for group in self._groups]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        largest = max((group.size for group in self._groups), default=1)
        self._lanes = max(1, min(lanes, memory // max(1, largest) - 1))
        self._recent: Recent[int, Any] = Recent(self._unpacked, self._lanes + 1)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        """Record `index`, negative ones from the end.

        Raises:
            IndexError: there are not so many.
            WetokError: its row group is damaged.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        group = int(np.searchsorted(self._ends, index, "right"))
        row = index - int(self._ends[group]) + self._groups[group].rows
        try:
            cells = self._recent.get(group).slice(row, 1).to_pylist()[0]
            return self._record(cells)
        except (OSError, ValueError, self._pyarrow.ArrowException) as error:
            path = self.paths[self._groups[group].file]
            reason = " ".join(str(error).split())[:200]
            raise WetokError(f"shard {str(path)!r} is damaged: {reason}") from None

    def values(self, column: str) -> set[Any]:
        """The different values of a column that was passed through; empty cells aside.

        Raises:
            WetokError: no such column, or a damaged shard.
        """
        names = self._schema.names[len(COLUMNS) :] if self._schema is not None else []
        if column not in names:
            listed = ", ".join(map(repr, names)) or "none"
            raise WetokError(f"column {column!r} is not in the shards (passed through: {listed})")
        found: set[Any] = set()
        for path in self.paths:
            try:
                with self._parquet.ParquetFile(str(path), memory_map=True) as file:
                    for batch in file.iter_batches(columns=[column]):
                        found.update(batch.column(0).unique().to_pylist())
            except (OSError, self._pyarrow.ArrowException) as error:
                raise WetokError(f"shard {str(path)!r} is damaged: {_reason(error)}") from None
        return found - {None}

    def order(self, seed: int, start: int = 0) -> Iterator[int]:
        """The endless shuffled sequence of record numbers that `seed` gives, from `start` on."""
        return interleaved([group.rows for group in self._groups], self._lanes, seed, start)

    def _record(self, cells: dict[str, Any]) -> Record:
        key, view, height, width, ids = (cells.pop(name) for name in COLUMNS)
        size = (height, width)
        return Record(key, view, self.about.ids_from(ids, size), size, cells)

    def _unpacked(self, index: int) -> Any:
        group = self._groups[index]
        with (
            self._pyarrow.memory_map(str(self.paths[group.file])) as stream,
            self._parquet.ParquetFile(stream, page_checksum_verification=True) as file,
        ):
            return file.read_row_group(group.number, use_threads=False)

    def _add(self, number: int, path: Path) -> None:
        where = f"shard {str(path)!r}"
        try:
            with self._parquet.ParquetFile(str(path), memory_map=True) as file:
                metadata, schema = file.metadata, file.schema_arrow
        except OSError as error:
            raise WetokError(f"{where} can't be read: {_reason(error)}") from None
        except (self._pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise WetokError(f"{where} is not Parquet, or cut off: {_reason(error)}") from None
        if METADATA not in (schema.metadata or {}) or tuple(schema.names[:5]) != COLUMNS:
            raise WetokError(f"{where} holds no tokens: make some with wetok tokenize")
        about = About.from_json(schema.metadata[METADATA], where)
        if self._schema is None:
            self.about, self._schema = about, schema
        elif about != self.about or not schema.equals(self._schema):
            raise WetokError(f"{where} is of another set than {str(self.paths[0])!r}")
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            if group.num_rows:
                size = group.total_byte_size
                self._groups.append(_Group(number, index, group.num_rows, size))


def find_shards(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], suffix: str
) -> list[Path]:
    """The files of `suffix` that are named, or that lie in folders that are.

    Raises:
        WetokError: a path that does not exist, a folder without any, or no path.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: list[Path] = []
    for one in map(Path, given):
        if one.is_dir():
            inside = sorted(file for file in one.glob(f"*{suffix}") if file.name[0] != ".")
            if not inside:
                raise WetokError(f"folder {str(one)!r} holds no shards (*{suffix})")
            found += inside
        elif one.exists():
            found.append(one)
        else:
            raise WetokError(f"path {str(one)!r} does not exist: name shards or their folder")
    if not found:
        raise WetokError("no shards are given: name some, or their folder")
    return found


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
