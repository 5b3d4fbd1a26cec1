"""Parquet files with a column of images as a source, read by row groups."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import IO, Any, Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from wetok.config import WetokError
from wetok.data.cells import image_column, load_cell, scale_package
from wetok.data.order import interleaved
from wetok.data.sources import Draft

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_SCANNERS = 16  # footers read at once: what takes long is waiting for a network


class _Group(NamedTuple):
    """A row group: the unit that Parquet is read and unpacked by."""

    file: int
    number: int  # within the file
    first: int  # its first row's number in the file
    rows: int
    size: int  # bytes of the column, unpacked


class ParquetRows:
    """The images in a column of Parquet files.

    A cell is the bytes of an image file, or a struct of `bytes` and `path` as the `datasets`
    library writes. Row groups are read as a whole and the latest kept, so images come in the order
    of `wetok.data.order.interleaved`: row groups shuffled, as many of them at a time as fit
    `memory`, and the rows of each shuffled.

    Args:
        paths: files, or addresses that fsspec knows, e.g. `hf://` and `s3://`. A file that can't be
            read is listed in `skipped`.
        column: the column of images; found out if not given, see `wetok.data.cells.image_column`.
        memory: bytes of unpacked row groups to keep, but always two of them. It is part of what
            decides the order.
        lanes: most row groups at a time.

    Raises:
        WetokError: pyarrow is not installed, there is no such column, or no image in any file.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        column: str | None = None,
        *,
        memory: int = 2**30,
        lanes: int = 16,
    ) -> None:
        self._pyarrow = scale_package("pyarrow", "reading Parquet")
        self._parquet = scale_package("pyarrow.parquet", "reading Parquet")
        self.paths = [os.fspath(path) for path in paths]
        if not self.paths:
            raise WetokError("no Parquet files are given: name some, e.g. 'data/*.parquet'")
        self.skipped: dict[str, str] = {}
        self._columns: dict[int, str] = {}
        self._groups: list[_Group] = []
        with ThreadPoolExecutor(min(_SCANNERS, len(self.paths)), "wetok-scan") as pool:
            footers = list(pool.map(self._footer, self.paths))
        for file, footer in enumerate(footers):
            if isinstance(footer, str):
                self.skipped[self.paths[file]] = f"file {self.paths[file]!r} {footer}"
            else:
                self._add(file, *footer, column)
        if not self._groups:
            reason = next(iter(self.skipped.values()), f"file {self.paths[0]!r} has no rows")
            more = f" (and {len(self.paths) - 1} more files)" if len(self.paths) > 1 else ""
            raise WetokError(f"no images are found: {reason}{more}")
        self._ends = np.cumsum([group.rows for group in self._groups], dtype=np.int64)
        largest = max(group.size for group in self._groups)
        # One is kept besides, for workers that are still at it when its lane takes the next.
        self._lanes = max(1, min(lanes, memory // max(1, largest) - 1))
        self._recent: Recent[int, Any] = Recent(self._unpacked, self._lanes + 1)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def order(self, seed: int, start: int) -> Iterator[int]:
        return interleaved([group.rows for group in self._groups], self._lanes, seed, start)

    def substitute(self, key: int) -> int:
        return (key + 1) % len(self)  # most likely of a row group that is at hand

    def name(self, key: int) -> str:
        index, row = self._position(key)
        group = self._groups[index]
        return f"{self.paths[group.file]}: row {group.first + row}"

    def read(self, key: int, draft: Draft | None = None) -> Image.Image:
        index, row = self._position(key)
        try:
            cell = self._recent.get(index)[row].as_py()
        except (OSError, self._pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise WetokError(f"image {self.name(key)!r} can't be read: {reason}") from None
        path = self.paths[self._groups[index].file]
        return load_cell(cell, self.name(key), None if _remote(path) else Path(path).parent, draft)

    def place(self, key: int) -> tuple[str, int, int, int]:
        """File, row group in it, row within the group, and row within the file."""
        index, row = self._position(key)
        group = self._groups[index]
        return self.paths[group.file], group.number, row, group.first + row

    def column_of(self, path: str) -> str:
        """The column of images of the file `path`."""
        return self._columns[self.paths.index(path)]

    def _position(self, key: int) -> tuple[int, int]:
        """Row group, and row within it."""
        index = int(np.searchsorted(self._ends, key, "right"))
        return index, key - int(self._ends[index]) + self._groups[index].rows

    def _add(self, file: int, metadata: Any, schema: Any, column: str | None) -> None:
        path = self.paths[file]
        name = self._columns[file] = image_column(schema, column, f"file {path!r}")
        leaves = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
        parts = [i for i, leaf in enumerate(leaves) if f"{leaf}.".startswith(f"{name}.")]
        first = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            size = sum(group.column(part).total_uncompressed_size for part in parts)
            if group.num_rows:
                self._groups.append(_Group(file, number, first, group.num_rows, size))
            first += group.num_rows

    def _footer(self, path: str) -> tuple[Any, Any] | str:
        """Metadata and schema, or why there are none."""
        try:
            with open_file(path) as stream, self._parquet.ParquetFile(stream) as file:
                return file.metadata, file.schema_arrow
        except OSError as error:
            return f"can't be read: {' '.join((error.strerror or str(error)).split())[:200]}"
        except self._pyarrow.ArrowException as error:
            return f"is not a Parquet file, or cut off: {' '.join(str(error).split())[:200]}"

    def _unpacked(self, index: int) -> Any:
        """The column of one row group."""
        group = self._groups[index]
        column = self._columns[group.file]
        with (
            open_file(self.paths[group.file]) as stream,
            self._parquet.ParquetFile(
                stream, pre_buffer=True, page_checksum_verification=True
            ) as file,
        ):
            table = file.read_row_group(group.number, columns=[column], use_threads=False)
        return table.column(column)


class Recent(Generic[K, V]):
    """The values that were asked for last. Of several threads that ask at once, one makes it."""

    def __init__(self, make: Callable[[K], V], most: int) -> None:
        self._make, self._most = make, most
        self._values: OrderedDict[K, Future[V]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> V:
        with self._lock:
            future = self._values.get(key)
            mine = future is None
            if future is None:
                future = self._values[key] = Future()
                while len(self._values) > self._most:
                    self._values.popitem(last=False)
            else:
                self._values.move_to_end(key)
        if mine:
            try:
                future.set_result(self._make(key))
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):  # Ctrl-C is not the value's fault
                    with self._lock:
                        self._values.pop(key, None)
        return future.result()


def _remote(path: str) -> bool:
    return "://" in path


def open_file(path: str) -> IO[bytes]:
    """A file, or an address that fsspec knows."""
    if not _remote(path):
        return open(path, "rb")
    fsspec = scale_package("fsspec", "reading over a network")
    try:
        stream: IO[bytes] = fsspec.open(path, "rb").open()
    except (ImportError, ValueError) as error:  # no driver for what comes before ://
        raise WetokError(f"address {path!r} can't be opened: {error}") from None
    return stream
