"""Data sets of the Hugging Face Hub, and those saved in a folder, as a source of images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from wetok.config import WetokError, near
from wetok.data.cells import image_column, load_cell, scale_package
from wetok.data.order import far_step, shuffled
from wetok.data.parquet import ParquetRows
from wetok.data.sources import Draft

_SPLIT = "train"


class DatasetRows:
    """The images in a column of a `datasets.Dataset`, which lies in memory-mapped files.

    Args:
        dataset: with a column of type Image, or of bytes.
        column: the column of images; found out if not given, see `wetok.data.cells.image_column`.
        name: what errors call the data set.

    Raises:
        WetokError: there is no such column, or no row.
    """

    def __init__(self, dataset: Any, column: str | None = None, name: str = "data set") -> None:
        datasets = scale_package("datasets", "reading a data set")
        self._pyarrow = scale_package("pyarrow", "reading a data set")
        if not isinstance(dataset, datasets.Dataset):
            kind = type(dataset).__name__
            raise WetokError(f"dataset is a {kind}: expected a datasets.Dataset, e.g. one split")
        self._column = image_column(dataset.features.arrow_schema, column, name)
        rows = dataset.with_format(None).select_columns([self._column])
        if isinstance(rows.features[self._column], datasets.Image):
            # The files' own bytes: they are decoded here, as those of all other sources.
            rows = rows.cast_column(self._column, datasets.Image(decode=False))
        if not len(rows):
            raise WetokError(f"{name} has no rows")
        self.dataset, self.column = dataset, self._column
        self._rows, self._name = rows, name
        self._step = far_step(len(rows))
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def order(self, seed: int, start: int) -> Iterator[int]:
        return shuffled(len(self), seed, start)

    def substitute(self, key: int) -> int:
        return (key + self._step) % len(self)

    def name(self, key: int) -> str:
        return f"{self._name}: row {key}"

    def read(self, key: int, draft: Draft | None = None) -> Image.Image:
        try:
            cell = self._rows[key][self._column]
        except (OSError, self._pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise WetokError(f"image {self.name(key)!r} can't be read: {reason}") from None
        return load_cell(cell, self.name(key), Path(), draft)


def is_saved(folder: Path) -> bool:
    """Whether `folder` was written by `save_to_disk` of the `datasets` library."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def open_saved(folder: Path, split: str | None = None, column: str | None = None) -> DatasetRows:
    """A data set that `save_to_disk` wrote.

    Args:
        split: where the folder has several; "train" if not given, or the only one.

    Raises:
        WetokError: datasets is not installed, the folder can't be read, no such split or column.
    """
    datasets = scale_package("datasets", "reading a saved data set")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise _not_opened(f"folder {str(folder)!r}", error, "save it again") from None
    if isinstance(loaded, datasets.DatasetDict):
        known = list(loaded)
        wanted = split or (known[0] if len(known) == 1 else _SPLIT)
        _check_split(wanted, known, f"folder {str(folder)!r}")
        return DatasetRows(loaded[wanted], column, f"{folder}/{wanted}")
    if split is not None and loaded.split is not None and split != str(loaded.split):
        _check_split(split, [str(loaded.split)], f"folder {str(folder)!r}")
    return DatasetRows(loaded, column, str(folder))


def open_hub(
    name: str,
    split: str | None = None,
    column: str | None = None,
    *,
    subset: str | None = None,
    revision: str | None = None,
    stream: bool = False,
) -> DatasetRows | ParquetRows:
    """A data set of the Hub.

    Args:
        name: `user/dataset`, as the Hub shows it.
        split: "train" if not given; `train[:1000]` takes a part of it, unless streamed.
        column: the column of images; found out if not given.
        subset: where a data set has several (the Hub's word; `name` in `datasets`).
        revision: branch, tag or commit; the newest if not given. Name one where a run is to go on
            from the same data later.
        stream: read the data set's Parquet files where they are, row group by row group, instead of
            downloading everything first. Better for large ones, over a good connection.

    Raises:
        WetokError: datasets is not installed; the Hub can't be reached; no such data set, subset,
            split or column; it is to be streamed, but isn't in Parquet.
    """
    where = f"hub:{name}"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise WetokError(f"{where} is not a name on the Hub: it looks like hub:user/dataset")
    datasets = scale_package("datasets", "reading a data set of the Hub")
    split = split or _SPLIT
    remedy = "check the name and the connection, or give a folder made by save_to_disk"
    try:
        if not stream:
            loaded = datasets.load_dataset(name, subset, split=split, revision=revision)
            return DatasetRows(loaded, column, f"{where} ({split})")
        builder = datasets.load_dataset_builder(name, subset, revision=revision)
    except WetokError:
        raise
    except Exception as error:  # of requests, of the Hub's library, of the data set's own making
        raise _not_opened(where, error, remedy) from None
    files = builder.config.data_files or {}
    _check_split(split, list(map(str, files)), where)
    others = [file for file in map(str, files[split]) if not file.endswith(".parquet")]
    if others:
        raise WetokError(
            f"{where} can't be streamed: it has other files than Parquet, e.g. "
            f"{others[0].rsplit('/', 1)[-1]!r}; set stream off"
        )
    return ParquetRows(map(str, files[split]), column)


def _check_split(split: str, known: list[str], where: str) -> None:
    if split not in known:
        raise WetokError(f"split={split!r} is not in {where}{near(split, known)}")


def _not_opened(where: str, error: Exception, remedy: str) -> WetokError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return WetokError(f"{where} can't be opened: {reason}; {remedy}")
