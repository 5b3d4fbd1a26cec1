"""Token shards back to images: one file a record, or a WebDataset tar a shard."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image

from wetok.checkpoint import written_beside
from wetok.codec.tokens import ModelRef, Tokens
from wetok.config import WetokError
from wetok.data.images import SUFFIXES
from wetok.data.tokens import Record, TokenShards, find_shards
from wetok.data.tokentars import made_by, read_webdataset
from wetok.tokenize.plan import short_hash

if TYPE_CHECKING:
    from wetok.model.tokenizer import Tokenizer

ImageFormat: TypeAlias = Literal["png", "jpg", "webp", "webdataset"]
_PILLOW: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "quality": 95},
}
_LONGEST = 200  # bytes of a file's name, which most disks limit to 255


@dataclass(frozen=True)
class Shard:
    """One token shard, of either kind."""

    path: Path
    model: ModelRef
    group_bits: int

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Raises WetokError where it holds no tokens, or is damaged at its beginning."""
        if path.suffix == ".tar":
            name, fingerprint, bits = made_by(path)
            return cls(path, ModelRef(name, fingerprint), bits)
        about = TokenShards([path]).about
        return cls(path, ModelRef(about.model, about.fingerprint), about.group_bits)

    def records(self) -> Iterator[Record]:
        """Raises WetokError where it is damaged."""
        if self.path.suffix == ".tar":
            yield from read_webdataset(self.path, fingerprint=self.model.fingerprint)
        else:
            shard = TokenShards([self.path])
            for index in range(len(shard)):
                yield shard[index]


def shard_files(paths: Sequence[Path]) -> list[Path]:
    """The shards that are named or lie in a folder that is.

    Raises:
        WetokError: there is none, or two of one name, whose results would meet.
    """
    found: list[Path] = []
    for path in paths:
        kind = ".tar" if path.is_dir() and not any(path.glob("*.parquet")) else ".parquet"
        found += find_shards(path, kind)
    stems: dict[str, Path] = {}
    for one in found:
        if stems.setdefault(one.stem, one) is not one:
            raise WetokError(f"{one} and {stems[one.stem]} have one name: take them one by one")
    return found


class Names:
    """What the image of a record is called: its key, with another suffix.

    Two keys that differ only in their suffix, or only in capitals, keep it: `a.jpg.png`.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        stems: list[int] = []
        for shard in shards:
            with suppress(WetokError):  # a damaged one is told of when it is decoded
                for record in shard.records():
                    if _first(record):
                        stems.append(short_hash(_stem(record.key).casefold()))
        values, counts = np.unique(np.array(stems, np.uint64), return_counts=True)
        self._shared = set(map(int, values[counts > 1]))

    def file(self, record: Record, suffix: str) -> Path:
        """A path below the folder of the results."""
        stem = _stem(record.key)
        if short_hash(stem.casefold()) in self._shared:
            stem = _safe(record.key)
        view = "" if record.view == "center" else f".{record.view}"
        folder, _, name = stem.rpartition("/")
        if len(name.encode()) > _LONGEST:
            name = f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return Path(folder, f"{name}{view}.{suffix}")


def seed_of(seed: int, record: Record) -> int:
    """The seed of a record's noise: of the job's seed, its key and view, wherever it lies."""
    text = f"{seed}\n{record.key}\n{record.view}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def decoded(record: Record, shard: Shard, tokenizer: Tokenizer, seed: int) -> Image.Image:
    """The image of a record.

    Raises:
        WetokError: it was made by another model, or its ids are out of range.
    """
    ids = torch.from_numpy(record.ids.astype(np.int64))[None]
    tokens = Tokens(ids, record.size, shard.model, shard.group_bits)
    (image,) = tokenizer.decode(tokens, seed=seed_of(seed, record))
    return image


def write_files(
    shard: Shard, names: Names, tokenizer: Tokenizer, out: Path, suffix: str, seed: int
) -> Iterator[bool]:
    """Writes a shard's images, each file complete or not at all; tells of each if it was made.

    A file that is there already is left: so a job that was ended goes on.

    Raises:
        WetokError: as `decoded`, or a file can't be written.
    """
    for record in shard.records():
        target = out / names.file(record, suffix)
        if target.exists():
            yield False
            continue
        data = _encoded(decoded(record, shard, tokenizer, seed), suffix)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WetokError(f"{target.parent} can't be made: {error.strerror}") from None
        with written_beside(target) as beside:
            beside.write_bytes(data)
        yield True


def write_tar(shard: Shard, tokenizer: Tokenizer, out: Path, seed: int) -> Iterator[bool]:
    """Writes a shard's images as a WebDataset tar (PNG and `.json`), complete or not at all.

    One that is there already is left.

    Raises:
        WetokError: as `write_files`.
    """
    target = out / f"{shard.path.stem}.tar"
    if target.exists():
        yield False
        return
    out.mkdir(parents=True, exist_ok=True)
    with (
        written_beside(target) as beside,
        tarfile.open(beside, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, record in enumerate(shard.records()):
            about = {"key": record.key, "view": record.view, **record.extras}
            members = {
                "json": json.dumps(about, ensure_ascii=False, default=repr).encode(),
                "png": _encoded(decoded(record, shard, tokenizer, seed), "png"),
            }
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            yield True


def check_format(name: str) -> ImageFormat:
    """Raises WetokError where there is no such format."""
    if name not in get_args(ImageFormat):
        raise WetokError(f"format={name!r} must be one of {', '.join(get_args(ImageFormat))}")
    return name  # type: ignore[return-value]


def _encoded(image: Image.Image, suffix: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **_PILLOW[suffix])
    return stream.getvalue()


def _first(record: Record) -> bool:
    """Whether it is the first view of its key: every key has one such."""
    return record.view in ("center", "top-left")


def _safe(key: str) -> str:
    """A key as a path that does not lead out of the folder."""
    parts = [part for part in key.replace("\0", "").split("/") if part not in ("", ".")]
    return "/".join("__" if part == ".." else part for part in parts) or "_"


def _stem(key: str) -> str:
    stem, suffix = os.path.splitext(_safe(key))
    return stem if suffix.lower() in SUFFIXES else _safe(key)
