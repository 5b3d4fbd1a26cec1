"""From what a recipe says to a source of images."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wetok.config import WetokError, near
from wetok.data.images import SUFFIXES
from wetok.data.mixture import Mixture
from wetok.data.sources import ImageFolder, Source
from wetok.weights import cache_dir


@dataclass(frozen=True)
class SourceSpec:
    """One source and its options; `path` alone says what kind it is.

    path        a folder of images, of *.tar or of *.parquet, or one that save_to_disk wrote;
                files, with `{000..127}`, `{a,b}`, `*`, `?`, `[0-9]` and `**`; hub:user/dataset
    weight      share in a mixture; none for any: by numbers of images
    column      of Parquet and data sets: where the images are
    split, subset, revision, stream      of data sets: see `wetok.data.hub.open_hub`
    """

    path: str
    weight: float | None = None
    column: str | None = None
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    stream: bool = False


Spec = str | os.PathLike[str] | SourceSpec | Mapping[str, Any]

_OPTIONS = {
    "images": (),
    "shards": (),
    "parquet": ("column",),
    "saved": ("column", "split"),
    "hub": ("column", "split", "subset", "revision", "stream"),
}
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PATTERN = re.compile(r"[*?\[{]")


def open_source(spec: Spec | Sequence[Spec], cache: bool = False) -> Source[Any]:
    """The source that `spec` describes; several are mixed.

    Args:
        spec: a path or pattern, a mapping of `SourceSpec`'s fields, or a list of these.
        cache: keep decoded images in memory; for folders of images only.

    Raises:
        WetokError: a path that leads to nothing, an option that means nothing there, a package that
            is not installed, a data set that can't be had, or no image at all.
    """
    if isinstance(spec, (str, os.PathLike, SourceSpec, Mapping)):
        return _open(_parse(spec), cache)
    specs = [_parse(one) for one in spec]
    if not specs:
        raise WetokError("the list of sources is empty: name a folder, files or hub:NAME")
    weights = [one.weight for one in specs if one.weight is not None]
    if 0 < len(weights) < len(specs):
        without = next(one.path for one in specs if one.weight is None)
        raise WetokError(f"source {without!r} has no weight, but others have: give all, or none")
    sources = [_open(one, cache) for one in specs]
    if len(sources) == 1:
        return sources[0]
    return Mixture(sources, weights or None)


def _parse(spec: Spec) -> SourceSpec:
    if isinstance(spec, SourceSpec):
        return spec
    if isinstance(spec, (str, os.PathLike)):
        return SourceSpec(os.fspath(spec))
    known = [field.name for field in fields(SourceSpec)]
    for key in spec:
        if key not in known:
            raise WetokError(f"unknown option {key!r} of a source{near(str(key), known)}")
    if "path" not in spec:
        raise WetokError(f"source {dict(spec)!r} has no path: name a folder, files or hub:NAME")
    return SourceSpec(**spec)


def _open(spec: SourceSpec, cache: bool) -> Source[Any]:
    kind, paths = _recognise(spec.path)
    for field in fields(SourceSpec):
        given = getattr(spec, field.name) != field.default
        if given and field.name not in ("path", "weight", *_OPTIONS[kind]):
            others = " and ".join(name for name, able in _OPTIONS.items() if field.name in able)
            raise WetokError(
                f"{field.name}={getattr(spec, field.name)!r} means nothing for "
                f"{spec.path!r} ({kind}): it is for {others}"
            )
    if cache and kind != "images":
        raise WetokError(
            f"cache=True means nothing for {spec.path!r} ({kind}): it is for folders of images"
        )
    if kind == "images":
        return ImageFolder(list(paths), cache=cache)
    if kind == "shards":
        from wetok.data.shards import TarShards

        return TarShards(paths, cache=cache_dir().with_name("shards"))
    if kind == "parquet":
        from wetok.data.parquet import ParquetRows

        return ParquetRows(paths, spec.column)
    from wetok.data.hub import open_hub, open_saved

    if kind == "saved":
        return open_saved(Path(paths[0]), spec.split, spec.column)
    return open_hub(
        spec.path.removeprefix("hub:"),
        spec.split,
        spec.column,
        subset=spec.subset,
        revision=spec.revision,
        stream=spec.stream,
    )


def _recognise(path: str) -> tuple[str, list[str]]:
    """The kind of source, a key of _OPTIONS, and its files or folder."""
    if path.startswith("hub:"):
        return "hub", [path]
    if "://" in path:
        paths = expand_braces(path)
        if all(one.endswith(".parquet") for one in paths):
            return "parquet", paths
        raise WetokError(
            f"path {path!r} is an address: only *.parquet files are read from afar; download it, "
            "or mount the drive"
        )
    paths = _expand(os.path.expanduser(path))
    if len(paths) == 1 and os.path.isdir(paths[0]):
        return _recognise_folder(Path(paths[0]))
    kinds = {_kind_of(one) for one in paths}
    if len(kinds) > 1:
        raise WetokError(
            f"path {path!r} names files of several kinds ({', '.join(sorted(kinds))}): give each "
            "kind a source of its own"
        )
    return kinds.pop(), paths


def _recognise_folder(folder: Path) -> tuple[str, list[str]]:
    from wetok.data.hub import is_saved

    if is_saved(folder):
        return "saved", [str(folder)]
    with os.scandir(folder) as scanned:
        entries = [entry for entry in scanned if not entry.name.startswith(".")]
    # Beside images or folders, such a file is an archive of something; name it to use it.
    if not any(entry.is_dir() or _suffix(entry.name) in SUFFIXES for entry in entries):
        for kind in ("shards", "parquet"):
            files = [entry.path for entry in entries if _kind_of(entry.name) == kind]
            if files:
                return kind, sorted(files, key=_natural)
    return "images", [str(folder)]


def _kind_of(file: str) -> str:
    if _suffix(file) == ".parquet":
        return "parquet"
    # Compressed ones can't be read, and will be told so better than that they are no images.
    return "shards" if file.lower().endswith(_TARS) else "images"


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _natural(path: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def _expand(path: str) -> list[str]:
    """The files and folders that a path or pattern names, in a fixed order."""
    if os.path.exists(path) or not _PATTERN.search(path):  # a name may have such signs in it
        if not os.path.exists(path):
            raise WetokError(f"path {path!r} does not exist: name a folder, files or hub:NAME")
        return [path]
    found: dict[str, None] = {}
    for one in expand_braces(path):
        matches = sorted(glob.glob(one, recursive=True), key=_natural)
        if not matches:
            raise WetokError(f"path {path!r}: there is no {one!r}")
        found.update(dict.fromkeys(matches))
    return list(found)


def expand_braces(pattern: str) -> list[str]:
    """`shard-{000..127}.tar` and `{train,val}/*.tar` in full, as bash and WebDataset do.

    Raises:
        WetokError: a range that falls.
    """
    match = re.search(r"\{([^{}]*)\}", pattern)  # the innermost, so that they may nest
    if match is None:
        return [pattern]
    inside = match[1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if first > last:
            raise WetokError(f"path {pattern!r}: the range {{{inside}}} falls; swap its ends")
        padded = any(text.startswith("0") and len(text) > 1 for text in numbers.groups())
        width = max(map(len, numbers.groups())) if padded else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        choices = inside.split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    expanded = [one for choice in choices for one in expand_braces(f"{before}{choice}{after}")]
    return list(dict.fromkeys(expanded))
