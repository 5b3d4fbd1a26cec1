"""Token shards as WebDataset tars: for each record `.npy` with the ids, `.json` with the rest."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wetok.config import WetokError
from wetok.data.tokens import About, Record, ids_bytes

_OWN = ("key", "view", "height", "width", "groups", "group_bits", "model", "fingerprint")


def to_webdataset(records: Sequence[Record], about: About, first: int = 0) -> bytes:
    """A shard of `records` as the bytes of a tar file; equal arguments give equal bytes.

    Args:
        first: number of the first record in the whole set, by which its members are called.

    Raises:
        WetokError: ids out of range or of another shape; a value that JSON can't hold.
    """
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, record in enumerate(records, first):
            grid = about.groups, *about.grid_of(record.size)
            ids = np.frombuffer(ids_bytes(record, about), about.dtype).reshape(grid)
            array = io.BytesIO()
            np.lib.format.write_array(array, ids, allow_pickle=False)
            own = (
                *(record.key, record.view, *record.size),
                *(about.groups, about.group_bits, about.model, about.fingerprint),
            )
            tree = dict(zip(_OWN, own, strict=True))
            try:
                text = json.dumps({**tree, **record.extras}, ensure_ascii=False)
            except (TypeError, ValueError) as error:
                raise WetokError(f"{record.key!r} can't be written as JSON: {error}") from None
            for suffix, data in (("json", text.encode()), ("npy", array.getvalue())):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def made_by(path: str | os.PathLike[str]) -> tuple[str, str, int]:
    """Name and fingerprint of the model that made a shard's first ids, and their bits.

    Raises:
        WetokError: as `read_webdataset`; it is empty.
    """
    for tree, _ in _pairs(path):
        try:
            return str(tree["model"]), str(tree["fingerprint"]), int(tree["group_bits"])
        except (KeyError, TypeError, ValueError):
            break
    raise WetokError(f"shard {os.fspath(path)!r} holds no tokens: make some with wetok tokenize")


def read_webdataset(
    path: str | os.PathLike[str], about: About | None = None, fingerprint: str | None = None
) -> Iterator[Record]:
    """The records of a shard that `to_webdataset` wrote, one by one.

    Args:
        about: what the ids must be of; None takes any.
        fingerprint: of the model they must be of; None takes any.

    Raises:
        WetokError: it can't be read, is damaged or cut off, or holds something else.
    """
    for tree, ids in _pairs(path):
        try:
            yield _record(tree, ids, about, fingerprint)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, error) from None


def _pairs(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    where = f"shard {os.fspath(path)!r}"
    try:
        with open(path, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 2 * tarfile.BLOCKSIZE))
            if stream.read() != bytes(2 * tarfile.BLOCKSIZE):
                raise WetokError(f"{where} is cut off, or no tar file: it has no end mark")
        with tarfile.open(path, "r:") as tar:
            members = iter(tar)
            for first in members:
                second = next(members, None)
                if second is None or second.name != first.name.removesuffix("json") + "npy":
                    raise WetokError(f"{where} holds no tokens: {first.name!r} has no .npy beside")
                tree = json.loads(_data(tar, first))
                array = io.BytesIO(_data(tar, second))
                yield tree, np.lib.format.read_array(array, allow_pickle=False)
    except OSError as error:
        raise WetokError(f"{where} can't be read: {error.strerror or error}") from None
    except (tarfile.TarError, ValueError, EOFError, RecursionError) as error:
        raise _damaged(path, error) from None


def _damaged(path: str | os.PathLike[str], error: Exception) -> WetokError:
    reason = " ".join(str(error).split())[:200]
    return WetokError(f"shard {os.fspath(path)!r} is damaged: {reason}")


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    data = stream.read() if stream is not None else b""
    if stream is None or len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} is cut off")
    return data


def _record(
    tree: dict[str, Any], ids: np.ndarray, about: About | None, fingerprint: str | None
) -> Record:
    key, view, height, width, groups, bits, _, maker = (tree.pop(name) for name in _OWN)
    if fingerprint not in (None, maker):
        raise ValueError(f"{key!r} is of another model")
    if about is not None:
        if (groups, bits, maker) != (about.groups, about.group_bits, about.fingerprint):
            raise ValueError(f"{key!r} is of another model")
        if ids.shape != (groups, *about.grid_of((height, width))) or ids.dtype != about.dtype:
            raise ValueError(f"ids of {key!r} have type {ids.dtype} and shape {ids.shape}")
    return Record(key, view, ids, (height, width), tree)
