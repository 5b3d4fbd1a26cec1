"""What is freed stays with the process, once it is told so."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from wetok.memory import keep_freed_memory

SCRIPT = """
import ctypes, json, resource, sys
from wetok.memory import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else False
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 24 * 2**20
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([told, faults]))
"""


def faults(what: str) -> tuple[bool, list[int]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what], stdout=subprocess.PIPE, text=True, check=True
    )
    told, counts = json.loads(done.stdout)
    return told, counts


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_is_asked_for_once() -> None:
    told, kept = faults("keep")
    if not told:
        pytest.skip("another C library than glibc")
    assert kept[0] > 5000 and sum(kept[1:]) < 500, "72 MB are 18,432 pages, at first only"


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
