"""The C library's allocator, for programs that compute one image after another."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h> of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MAPPED = 32 * 2**20  # the most that glibc takes
_KEPT = 2**30


def keep_freed_memory(large: bool = False) -> bool:
    """Lets this process keep up to 1 GB that it has freed; whether it could be told.

    A network frees and asks for the same megabytes at every image. By default glibc gives them
    back to the system each time and gets them anew page by page, which on a CPU can take a third
    of the time. For the command line only: a library has no business with its host's allocator.
    On other systems than Linux with glibc nothing happens.

    Args:
        large: also pieces of more than 32 MB, such as the widest activations of a full-size model,
            for which glibc otherwise always asks the system. Not for programs whose pieces grow
            to gigabytes: what lies between two that are in use can't be given back.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    if large and not mallopt(_M_MMAP_MAX, 0):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
