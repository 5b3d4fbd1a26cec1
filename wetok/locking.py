"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wetok.config import WetokError


@contextmanager
def locked(folder: Path, file: Path) -> Iterator[None]:
    """Holds `folder`; another process is refused until this block, or this process, ends.

    `file`, somewhere in it, is what is locked; it stays, empty.

    Raises:
        WetokError: another process holds it, or it can't be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise WetokError(f"{folder}: can't be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WetokError(
                f"{folder} is in use by another process: wait for it, or take another folder"
            ) from None
        yield
    finally:
        os.close(handle)
