"""Decoding processes: each task once, whatever they die of."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from PIL import Image

from wetok.config import WetokError
from wetok.tokenize.inputs import Item
from wetok.tokenize.pool import DecodePool
from wetok.tokenize.views import Preprocessing
from wetok.tokenize.work import Decoded, Failed


@dataclass(frozen=True)
class Reader:
    """An item's `where` says what becomes of it."""

    folder: str = ""

    def read(self, item: Item) -> tuple[Image.Image, dict[str, Any]]:
        kind = item.where[0]
        if kind == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "kills once":
            mark = os.path.join(self.folder, item.key)
            if not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "hangs":
            time.sleep(1000)
        if kind == "slow":
            time.sleep(0.002)
        if kind == "wrong":
            raise WetokError(f"{item.key} is\nwrong")
        if kind == "fault":
            raise ZeroDivisionError("of a library")
        return Image.new("RGB", (8, 8), (int(item.key) % 256, 0, 0)), {"pid": os.getpid()}


def tasks(kinds: list[str]) -> Iterator[tuple[int, Item]]:
    for number, kind in enumerate(kinds):
        yield number, Item(str(number), 0, (kind,))


def run(kinds: list[str], workers: int, reader: Reader, **options: Any) -> dict[int, Any]:
    found: dict[int, Any] = {}
    with DecodePool(reader, Preprocessing(None), workers, **options) as pool:
        for number, outcome in pool.run(tasks(kinds)):
            assert number not in found, "once"
            found[number] = outcome
        assert pool._workers or not workers
    assert sorted(found) == list(range(len(kinds)))
    for number, outcome in found.items():
        if isinstance(outcome, Decoded):
            assert outcome.views[0][0, 0, 0] == number % 256, "and its own"
    return found


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_task_is_done_once(workers: int) -> None:
    kinds = ["good"] * 60
    kinds[7], kinds[30] = "wrong", "fault"
    found = run(kinds, workers, Reader(), ahead=2)
    assert found[7] == Failed("7 is wrong")
    assert "can't be read: ZeroDivisionError('of a library')" in found[30].reason
    pids = {one.extras["pid"] for one in found.values() if isinstance(one, Decoded)}
    assert (pids == {os.getpid()}) == (workers == 0)


def test_what_kills_twice_has_failed_and_nothing_else(tmp_path: Any) -> None:
    kinds = ["good"] * 80
    kinds[0], kinds[20], kinds[21], kinds[40], kinds[79] = (
        *("kills", "kills", "kills once", "kills once", "kills"),
    )
    found = run(kinds, 2, Reader(str(tmp_path)))
    failed = {number: one.reason for number, one in found.items() if isinstance(one, Failed)}
    assert sorted(failed) == [0, 20, 79]
    assert failed[20] == (
        "image '20': decoding it ended 2 processes (SIGKILL, perhaps out of memory)"
    )


def test_what_takes_too_long_has_failed() -> None:
    kinds = ["good"] * 12
    kinds[5] = "hangs"
    found = run(kinds, 1, Reader(), seconds=1.0)
    assert [n for n, one in found.items() if isinstance(one, Failed)] == [5]
    assert "took longer than 1 s" in found[5].reason


def test_processes_killed_from_outside_cost_nothing() -> None:
    found: set[int] = set()
    with DecodePool(Reader(), Preprocessing(None), 2) as pool:
        for number, outcome in pool.run(tasks(["slow"] * 400)):
            assert isinstance(outcome, Decoded) and number not in found
            found.add(number)
            if number % 50 == 10:
                os.kill(pool._workers[number // 50 % 2].process.pid, signal.SIGKILL)
        assert pool.deaths >= 4
    assert found == set(range(400))


def test_nothing_is_left_when_it_ends_early() -> None:
    with DecodePool(Reader(), Preprocessing(None), 2) as pool:
        stream = pool.run(tasks(["good"] * 10_000))
        next(stream)
        pids = [worker.process.pid for worker in pool._workers]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not any(thread.name.startswith("wetok-") for thread in threading.enumerate())


def test_an_error_of_the_tasks_is_raised() -> None:
    def broken() -> Iterator[tuple[int, Item]]:
        yield 0, Item("0", 0, ("good",))
        raise WetokError("the source is gone")

    with (
        pytest.raises(WetokError, match="the source is gone"),
        DecodePool(Reader(), Preprocessing(None), 1) as pool,
    ):
        list(pool.run(broken()))


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (3,)


def test_processes_that_can_not_live_are_told() -> None:
    with (
        pytest.raises(WetokError, match="decoding processes end at once .exit code 3."),
        DecodePool(Fatal(), Preprocessing(None), 1) as pool,  # type: ignore[arg-type]
    ):
        list(pool.run(tasks(["good"])))
    with pytest.raises(WetokError, match="workers=-1"):
        DecodePool(Reader(), Preprocessing(None), -1)
