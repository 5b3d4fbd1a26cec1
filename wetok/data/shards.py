"""WebDataset tar shards as a source of images."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from wetok.config import WetokError
from wetok.data.images import load_image
from wetok.data.order import far_step, interleaved, shuffled
from wetok.data.sources import Draft, NamedBytes
from wetok.data.tarindex import TarIndex, read_member, scan

_BLOCK = 512
_SCANNERS = 8  # files looked at at once: what takes long is waiting for a network drive


class TarShards:
    """The images in tar files, read one by one by their position.

    Nothing is unpacked and no file is read through: an image is one read of its bytes, so that any
    order, any share of it and any restart cost the same. See `wetok.data.tarindex.scan` for which
    members are images.

    Args:
        paths: uncompressed tar files. One that is damaged is used up to there and listed in
            `skipped`.
        cache: folder where the positions are kept on disk; without it the headers are read anew
            each time.
        whole: sets of at most this many images are shuffled as a whole. Larger ones are cut into
            runs of `run` neighbouring images; the runs are shuffled and `lanes` of them read at a
            time, each in a random order: see `wetok.data.order.interleaved`. That keeps reading
            close together, for disks and networks that like it, and memory bounded.

    Memory: 14 bytes an image, and 8 more where the set is shuffled as a whole.

    Raises:
        WetokError: there is no image in any of the files.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        cache: Path | None = None,
        whole: int = 2**20,
        run: int = 1024,
        lanes: int = 64,
    ) -> None:
        given = [Path(path) for path in paths]
        if not given:
            raise WetokError("no tar files are given: name some, e.g. 'shards/*.tar'")
        self.skipped: dict[str, str] = {}
        self.ignored = 0
        self.paths: list[Path] = []
        found: list[np.ndarray] = []
        for path, index in zip(given, _scan_all(given, cache), strict=True):
            self.ignored += index.ignored
            if index.problem:
                self.skipped[str(path)] = f"shard {str(path)!r} {index.problem}"
            if len(index.entries):
                self.paths.append(path)
                found.append(index.entries)
        if not found:
            reason = next(iter(self.skipped.values()), f"shard {str(given[0])!r} has no images")
            more = f" (and {len(given) - 1} more shards)" if len(given) > 1 else ""
            raise WetokError(f"no images are found: {reason}{more}")
        self._entries = np.concatenate(found)
        sizes = [len(entries) for entries in found]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._step = far_step(len(self))
        self._lanes = lanes
        self._runs: list[int] | None = None
        if len(self) > whole:
            # Parts of nearly one size, so that none is a crumb.
            self._runs = [
                (size + part) // parts
                for size in sizes
                for parts in (-(-size // run),)
                for part in range(parts)
            ]

    def __len__(self) -> int:
        return len(self._entries)

    def order(self, seed: int, start: int) -> Iterator[int]:
        if self._runs is None:
            return shuffled(len(self), seed, start)
        return interleaved(self._runs, self._lanes, seed, start)

    def substitute(self, key: int) -> int:
        return (key + self._step) % len(self)

    def name(self, key: int) -> str:
        path, header, data, _ = self.position(key)
        try:
            return _name(path, _read(path, header, data - header))
        except WetokError:
            return f"{path}: member at byte {header}"

    def read(self, key: int, draft: Draft | None = None) -> Image.Image:
        path, header, data, size = self.position(key)
        both = _read(path, header, data - header + size)
        return load_image(NamedBytes(both[data - header :], _name(path, both)), draft=draft)

    def position(self, key: int) -> tuple[Path, int, int, int]:
        """File, where the member's header and its bytes begin, and how many bytes it has."""
        shard = int(np.searchsorted(self._ends, key, "right"))
        data, size, blocks = self._entries[key].item()
        return self.paths[shard], data - blocks * _BLOCK, data, size


def _scan_all(paths: list[Path], cache: Path | None) -> list[TarIndex]:
    pool = ThreadPoolExecutor(min(_SCANNERS, len(paths)), "wetok-scan")
    try:
        return list(pool.map(lambda path: scan(path, cache), paths))
    finally:
        pool.shutdown(cancel_futures=True)  # for Ctrl-C


def _read(path: Path, at: int, length: int) -> bytes:
    try:
        # Opened each time: cheap beside decoding, and there may be more shards than a process may
        # have open files.
        with open(path, "rb") as stream:
            stream.seek(at)
            data = stream.read(length)
    except OSError as error:
        raise WetokError(f"shard {str(path)!r} can't be read: {error.strerror}") from None
    if len(data) < length:
        raise WetokError(f"shard {str(path)!r} has become shorter since it was opened")
    return data


def _name(path: Path, header: bytes) -> str:
    try:
        member = read_member(io.BytesIO(header), 0)
    except Exception:  # the file was changed since: decoding will tell
        member = None
    return f"{path}: {member.name if member else 'member'}"
