"""What is to be tokenised: every image of the sources under a key of its own, in a fixed order.

A key is what the image is called within its source, wherever the source lies:

    folder      path below the folder           n01440764/10026.jpg
    tar         shard/member                    train-000.tar/000123.jpg
    Parquet     file:row                        part-0.parquet:17
    data set    row                             17

Of several sources each key begins with the name of its source and `/`.

`Inputs` lists items; an item has all that a `Reader` needs to decode it, so that a worker anywhere
is handed items and one reader, and never looks at the rest of the source.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from wetok.config import WetokError, near
from wetok.data.cells import load_cell, scale_package
from wetok.data.hub import DatasetRows
from wetok.data.images import load_image
from wetok.data.mixture import Mixture
from wetok.data.opening import Spec, open_source
from wetok.data.parquet import ParquetRows
from wetok.data.shards import TarShards
from wetok.data.sources import ImageFolder, NamedBytes
from wetok.data.tarindex import read_member
from wetok.data.tokens import COLUMNS

FOLDER_LABEL = "folder"
_TAR_COLUMNS = {"cls": "label", "txt": "caption"}


class Item(NamedTuple):
    """One image of the input."""

    key: str
    size: int
    """Bytes of its file (of the table that it is a row of; 0 in a data set): by it a source that
    was changed between two runs is noticed."""
    where: tuple[Any, ...]
    """What its reader finds it by; numbers, texts and bytes only."""


class Reader(Protocol):
    """Decodes items; small, and can be pickled."""

    def read(self, item: Item) -> tuple[Image.Image, dict[str, Any]]:
        """RGB image, and what is passed through: column -> value.

        Raises WetokError where it can't be decoded.
        """
        ...


class Inputs(Protocol):
    """The images of a source, in a fixed order."""

    left_out: dict[str, str]
    """What could not be listed, e.g. the end of a tar file that is cut off: name -> reason."""

    def __len__(self) -> int: ...

    def items(self, start: int, stop: int) -> list[Item]:
        """Items start..stop-1."""
        ...

    @property
    def reader(self) -> Reader: ...

    @property
    def schema(self) -> Any:
        """pyarrow schema of what is passed through."""
        ...


def open_inputs(
    specs: Sequence[Spec], keep: Sequence[str] = (), labels: str | None = None
) -> Inputs:
    """All images of the sources that `specs` describe (see `wetok.data.opening.open_source`).

    Args:
        keep: what to pass through. Columns of Parquet and data sets; for tars suffixes of the
            members beside an image, e.g. "cls" (as the column `label`), "txt" (`caption`), "json".
        labels: "folder": the folder of an image, below the folder given, as the column `label`.

    Raises:
        WetokError: as `open_source`; weights, which mean nothing where each image is taken once;
            `keep` or `labels` that the source has not.
    """
    if not specs:
        raise WetokError("no source is given: name a folder, files or hub:NAME")
    if labels not in (None, FOLDER_LABEL):
        raise WetokError(f"labels={labels!r} must be {FOLDER_LABEL!r}, or be left out")
    opened = []
    for spec in specs:
        source = open_source(spec)
        if isinstance(source, Mixture):
            raise WetokError(
                f"source {spec!r} is a mixture: each image is taken once, so name "
                "its sources one by one"
            )
        opened.append(_listed(source, _path(spec), keep, labels))
    if len(opened) == 1:
        return opened[0]
    return _Several(opened, [_short(spec) for spec in specs])


def _path(spec: Spec) -> str:
    return str(spec["path"] if isinstance(spec, Mapping) else getattr(spec, "path", spec))


def _short(spec: Spec) -> str:
    name = _path(spec).removeprefix("hub:").rstrip("/")
    return name.rsplit("/", 1)[-1] or name


def _listed(source: Any, path: str, keep: Sequence[str], labels: str | None) -> Inputs:
    if labels and not isinstance(source, ImageFolder):
        raise WetokError(f"labels={labels!r} is for folders of images: use keep for others")
    if isinstance(source, ImageFolder):
        if keep:
            raise WetokError(f"keep={keep[0]!r} is for tars, Parquet and data sets, not folders")
        return _Folder(source, path, labels)
    if isinstance(source, TarShards):
        return _Tars(source, keep)
    if isinstance(source, ParquetRows):
        return _Parquet(source, keep)
    assert isinstance(source, DatasetRows)
    return _Dataset(source, keep)


def _text(path: str) -> str:
    """A file's name need not be valid UTF-8, but a key is."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _schema(columns: Sequence[tuple[str, Any]]) -> Any:
    pa = scale_package("pyarrow", "token shards")
    for name, _ in columns:
        if name in COLUMNS:
            raise WetokError(f"keep={name!r} has the name of a column of ours: rename it")
    names = [name for name, _ in columns]
    if len(set(names)) < len(names):
        raise WetokError(f"keep={','.join(names)} names a column twice")
    return pa.schema([pa.field(name, kind) for name, kind in columns])


class _Folder:
    def __init__(self, source: ImageFolder, path: str, labels: str | None) -> None:
        pa = scale_package("pyarrow", "token shards")
        self._paths = source.paths
        self.left_out: dict[str, str] = {}
        given = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(given):  # a file or a pattern
            given = os.path.commonpath([os.path.dirname(os.path.abspath(p)) for p in self._paths])
        self._root = given
        self._labels = labels is not None
        self.reader: Reader = _FileReader(self._labels)
        self.schema = _schema([("label", pa.string())] if labels else [])

    def __len__(self) -> int:
        return len(self._paths)

    def items(self, start: int, stop: int) -> list[Item]:
        items = []
        for path in self._paths[start:stop]:
            key = _text(os.path.relpath(os.path.abspath(path), self._root).replace(os.sep, "/"))
            try:
                size = path.stat().st_size
            except OSError:
                size = 0
            items.append(Item(key, size, (str(path), os.path.dirname(key))))
        return items


@dataclass(frozen=True)
class _FileReader:
    labels: bool

    def read(self, item: Item) -> tuple[Image.Image, dict[str, Any]]:
        path, label = item.where
        return load_image(path), {"label": label} if self.labels else {}


class _Tars:
    def __init__(self, source: TarShards, keep: Sequence[str]) -> None:
        pa = scale_package("pyarrow", "token shards")
        self._source = source
        self.left_out = dict(source.skipped)
        self._suffixes = tuple(one.lstrip(".") for one in keep)
        columns = [(_TAR_COLUMNS.get(one, one), pa.string()) for one in self._suffixes]
        self.schema = _schema(columns)
        self.reader: Reader = _TarReader(tuple(name for name, _ in columns))
        folders = {os.path.dirname(os.path.abspath(path)) for path in source.paths}
        self._root = os.path.commonpath(folders)
        self._scanned: tuple[str, dict[int, tuple[tuple[int, int] | None, ...]]] = ("", {})

    def __len__(self) -> int:
        return len(self._source)

    def items(self, start: int, stop: int) -> list[Item]:
        items = []
        path, stream = None, None
        try:
            for index in range(start, min(stop, len(self))):
                shard, header, data, size = self._source.position(index)
                if shard != path:
                    if stream is not None:
                        stream.close()
                    path, stream = shard, open(shard, "rb")  # noqa: SIM115
                assert stream is not None
                member = read_member(stream, header)
                if member is None:
                    raise WetokError(f"shard {str(shard)!r} was changed since it was opened")
                name = os.path.relpath(os.path.abspath(shard), self._root).replace(os.sep, "/")
                beside = self._beside(shard, data) if self._suffixes else ()
                key = _text(f"{name}/{member.name}")
                items.append(Item(key, size, (str(shard), data, size, beside)))
        except OSError as error:
            raise WetokError(f"shard {str(path)!r} can't be read: {error.strerror}") from None
        finally:
            if stream is not None:
                stream.close()
        return items

    def _beside(self, shard: Path, data: int) -> tuple[tuple[int, int] | None, ...]:
        """Position and size of the members that are passed through, None where there is none."""
        if self._scanned[0] != str(shard):
            self._scanned = str(shard), _samples(shard, self._suffixes)
        return self._scanned[1].get(data, (None,) * len(self._suffixes))


def _samples(
    shard: Path, suffixes: tuple[str, ...]
) -> dict[int, tuple[tuple[int, int] | None, ...]]:
    """Of each member, by where its bytes begin: the members of its sample with these suffixes."""
    found: dict[int, tuple[tuple[int, int] | None, ...]] = {}
    sample: dict[str, tuple[int, int]] = {}
    members: list[int] = []
    current, at = "", 0

    def finish() -> None:
        values = tuple(sample.get(suffix) for suffix in suffixes)
        found.update(dict.fromkeys(members, values))
        sample.clear()
        members.clear()

    with open(shard, "rb") as stream:
        while True:
            try:
                member = read_member(stream, at)
            except Exception:  # damage ends the list of images here, too
                break
            if member is None:
                break
            at = member.data + -(-member.size // 512) * 512
            folder, _, last = member.name.rpartition("/")
            base, _, suffix = last.partition(".")
            if f"{folder}/{base}" != current:
                finish()
                current = f"{folder}/{base}"
            if member.file:
                members.append(member.data)
                sample.setdefault(suffix, (member.data, member.size))
    finish()
    return found


@dataclass(frozen=True)
class _TarReader:
    columns: tuple[str, ...]

    def read(self, item: Item) -> tuple[Image.Image, dict[str, Any]]:
        path, data, size, beside = item.where
        try:
            with open(path, "rb") as stream:
                stream.seek(data)
                image = stream.read(size)
                extras: dict[str, Any] = {}
                for column, place in zip(self.columns, beside, strict=True):
                    extras[column] = None
                    if place is not None:
                        stream.seek(place[0])
                        extras[column] = stream.read(place[1]).decode("utf-8", "replace")
        except OSError as error:
            raise WetokError(f"shard {path!r} can't be read: {error.strerror}") from None
        if len(image) < size:
            raise WetokError(f"shard {path!r} has become shorter since it was opened")
        return load_image(NamedBytes(image, item.key)), extras


class _Parquet:
    def __init__(self, source: ParquetRows, keep: Sequence[str]) -> None:
        parquet = scale_package("pyarrow.parquet", "reading Parquet")
        self._source = source
        self.left_out = dict(source.skipped)
        remote = any("://" in path for path in source.paths)
        parents = {
            os.path.dirname(path if remote else os.path.abspath(path)) for path in source.paths
        }
        self._root = os.path.commonpath(parents)
        self._sizes = {
            p: 0 if "://" in p else os.path.getsize(p)
            for p in source.paths
            if p not in source.skipped
        }
        first = source.place(0)[0]
        columns = []
        if keep:
            from wetok.data.parquet import open_file

            with open_file(first) as stream, parquet.ParquetFile(stream) as file:
                columns = _kept(file.schema_arrow, keep, f"file {first!r}")
        self.schema = _schema(columns)
        used = {path: source.column_of(path) for path in self._sizes}
        self.reader: Reader = _RowReader(used, tuple(keep))

    def __len__(self) -> int:
        return len(self._source)

    def items(self, start: int, stop: int) -> list[Item]:
        items = []
        for index in range(start, min(stop, len(self))):
            path, group, row, number = self._source.place(index)
            full = path if "://" in path else os.path.abspath(path)
            name = os.path.relpath(full, self._root).replace(os.sep, "/")
            items.append(Item(f"{_text(name)}:{number}", self._sizes[path], (path, group, row)))
        return items


def _kept(schema: Any, keep: Sequence[str], where: str) -> list[tuple[str, Any]]:
    for name in keep:
        if name not in schema.names:
            raise WetokError(f"keep={name!r} is not in {where}{near(name, schema.names)}")
    return [(name, schema.field(name).type) for name in keep]


class _RowReader:
    def __init__(self, columns: dict[str, str], keep: tuple[str, ...]) -> None:
        self.columns, self.keep = columns, keep
        self._at: tuple[str, int] | None = None
        self._table: Any = None

    def read(self, item: Item) -> tuple[Image.Image, dict[str, Any]]:
        path, group, row = item.where
        column = self.columns[path]
        pa = scale_package("pyarrow", "reading Parquet")
        if self._at != (path, group):
            parquet = scale_package("pyarrow.parquet", "reading Parquet")
            from wetok.data.parquet import open_file

            try:
                with (
                    open_file(path) as stream,
                    parquet.ParquetFile(stream, page_checksum_verification=True) as file,
                ):
                    names = list(dict.fromkeys([column, *self.keep]))
                    self._table = file.read_row_group(group, columns=names, use_threads=False)
                self._at = (path, group)
            except (OSError, pa.ArrowException) as error:
                reason = " ".join(str(error).split())[:200]
                raise WetokError(f"image {item.key!r} can't be read: {reason}") from None
        cells = self._table.slice(row, 1).to_pylist()[0]
        folder = None if "://" in path else Path(path).parent
        image = load_cell(cells[column], item.key, folder, None)
        return image, {name: cells[name] for name in self.keep}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_at": None, "_table": None}


class _Dataset:
    def __init__(self, source: DatasetRows, keep: Sequence[str]) -> None:
        self._length = len(source)
        self.left_out: dict[str, str] = {}
        self.schema = _schema(
            _kept(source.dataset.features.arrow_schema, keep, "the data set") if keep else []
        )
        self.reader: Reader = _DatasetReader(source.dataset, source.column, tuple(keep))

    def __len__(self) -> int:
        return self._length

    def items(self, start: int, stop: int) -> list[Item]:
        return [Item(str(row), 0, (row,)) for row in range(start, min(stop, self._length))]


class _DatasetReader:
    def __init__(self, dataset: Any, column: str, keep: tuple[str, ...]) -> None:
        self.dataset, self.column, self.keep = dataset, column, keep
        self._rows: DatasetRows | None = None

    def read(self, item: Item) -> tuple[Image.Image, dict[str, Any]]:
        if self._rows is None:
            self._rows = DatasetRows(self.dataset, self.column)
            self._kept = self.dataset.with_format("arrow").select_columns(list(self.keep))
        (row,) = item.where
        image = self._rows.read(row)
        return image, dict(self._kept[row : row + 1].to_pylist()[0]) if self.keep else {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None, "_kept": None}


class _Several:
    """Inputs one after another; each item's place begins with the number of its source."""

    def __init__(self, inputs: list[Inputs], names: list[str]) -> None:
        self._inputs = inputs
        if len(set(names)) < len(names):
            names = [f"{number}-{name}" for number, name in enumerate(names)]
        self._names = names
        self.left_out = {name: why for one in inputs for name, why in one.left_out.items()}
        self.schema = inputs[0].schema
        for one in inputs[1:]:
            if not one.schema.equals(self.schema):
                raise WetokError(
                    "the sources have columns of different types to keep: take them one by one"
                )
        self.reader: Reader = _SeveralReader(tuple(one.reader for one in inputs))

    def __len__(self) -> int:
        return sum(map(len, self._inputs))

    def items(self, start: int, stop: int) -> list[Item]:
        items: list[Item] = []
        first = 0
        for number, (name, one) in enumerate(zip(self._names, self._inputs, strict=True)):
            low, high = max(0, start - first), min(len(one), stop - first)
            if low < high:
                items += [
                    Item(f"{name}/{item.key}", item.size, (number, item.where))
                    for item in one.items(low, high)
                ]
            first += len(one)
        return items


@dataclass(frozen=True)
class _SeveralReader:
    readers: tuple[Reader, ...]

    def read(self, item: Item) -> tuple[Image.Image, dict[str, Any]]:
        number, where = item.where
        return self.readers[number].read(item._replace(where=where))
