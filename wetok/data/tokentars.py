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


def read_webdataset(path: str | os.PathLike[str], about: About | None = None) -> Iterator[Record]:
    """The records of a shard that `to_webdataset` wrote, one by one.

    Args:
        about: what the ids must be of; None takes any.

    Raises:
        WetokError: it can't be read, is damaged or cut off, or holds something else.
    """
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
                ids = np.lib.format.read_array(io.BytesIO(_data(tar, second)), allow_pickle=False)
                yield _record(tree, ids, about)
    except OSError as error:
        raise WetokError(f"{where} can't be read: {error.strerror or error}") from None
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WetokError(f"{where} is damaged: {reason}") from None


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    data = stream.read() if stream is not None else b""
    if stream is None or len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} is cut off")
    return data


def _record(tree: dict[str, Any], ids: np.ndarray, about: About | None) -> Record:
    key, view, height, width, groups, bits, _, fingerprint = (tree.pop(name) for name in _OWN)
    if about is not None:
        if (groups, bits, fingerprint) != (about.groups, about.group_bits, about.fingerprint):
            raise ValueError(f"{key!r} is of another model")
        if ids.shape != (groups, *about.grid_of((height, width))) or ids.dtype != about.dtype:
            raise ValueError(f"ids of {key!r} have type {ids.dtype} and shape {ids.shape}")
    return Record(key, view, ids, (height, width), tree)
