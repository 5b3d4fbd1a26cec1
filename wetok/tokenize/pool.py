"""Processes that decode. One that dies is replaced, and its images are decoded by another.

An image that a process was at when it died is tried once more, later; if that one dies of it too
(an image can take more memory than there is, or meet a fault in a library), it counts as failed.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from queue import Empty, Full, Queue
from threading import Thread
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from wetok.config import WetokError
from wetok.tokenize import processes
from wetok.tokenize.inputs import Item, Reader
from wetok.tokenize.views import Preprocessing
from wetok.tokenize.work import Decoded, Failed, decode

Ticket = TypeVar("Ticket")

TRIES = 2
"""How many processes an image may cost."""
SECONDS = 300.0
"""How long an image may take before its process is ended."""
_DEPTH = 16  # images that a process has been handed: it never waits for the next
# Small images are sent together: else waking up for each costs as much as decoding it.
_GROUP, _GROUP_BYTES, _GROUP_SECONDS = 8, 2**22, 0.05
_HOPELESS = 5  # processes that ended one after another before they had done anything


class _Task(NamedTuple):
    number: int
    ticket: Any
    item: Item


class DecodePool:
    """Decodes items in `workers` processes of their own, or (0) in the caller's.

    Memory: some decoded images (up to 8, or 4 MB) in each process, and `ahead` of them here. When
    whoever takes the images is slow, the processes wait. They end with this one, however it ends.

    Args:
        reader, preprocessing: what `wetok.tokenize.work.decode` takes.
        ahead: decoded images to have ready.
        seconds: how long an image may take.
    """

    def __init__(
        self,
        reader: Reader,
        preprocessing: Preprocessing,
        workers: int,
        *,
        ahead: int = 16,
        seconds: float = SECONDS,
    ) -> None:
        if workers < 0:
            raise WetokError(f"workers={workers} must be at least 0")
        self._reader, self._preprocessing, self._seconds = reader, preprocessing, seconds
        self._count, self._ahead = workers, ahead
        self._context = processes.begin() if workers else None
        self._workers: list[_Worker] = []
        self._queue: Queue[Any] = Queue(max(1, ahead // _GROUP))
        self._stopped = False
        self._thread: Thread | None = None
        self.deaths = 0
        """Processes that ended before their time."""

    def run(
        self, tasks: Iterable[tuple[Ticket, Item]]
    ) -> Iterator[tuple[Ticket, Decoded | Failed]]:
        """Each ticket once with what came of its item, in any order. To be called once.

        `tasks` is gone through in a thread, little ahead of what was taken.

        Raises:
            WetokError: no process can be kept alive; and whatever `tasks` raises.
        """
        if not self._count:
            for ticket, item in tasks:
                yield ticket, decode(item, self._reader, self._preprocessing)
            return
        self._thread = Thread(target=self._collect, args=(iter(tasks),), daemon=True)
        self._thread.start()
        while True:
            try:
                found = self._queue.get(timeout=1)
            except Empty:  # so that a signal is seen to
                continue
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield from found

    def close(self) -> None:
        """Ends the processes. Calling it twice is fine."""
        self._stopped = True
        if self._thread is not None:
            self._thread.join()
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _collect(self, tasks: Iterator[tuple[Any, Item]]) -> None:
        try:
            self._work(_Tasks(tasks, self._count * _DEPTH))
            self._put(None)
        except BaseException as error:  # is raised where the images are taken
            self._put(error)

    def _work(self, tasks: _Tasks) -> None:
        in_vain = 0
        self._workers += [self._start() for _ in range(self._count)]
        while not self._stopped:
            for worker in self._workers:
                if len(worker.pending) <= _DEPTH // 2:
                    worker.give(tasks.some(_DEPTH - len(worker.pending)))
            if not any(worker.pending for worker in self._workers):
                return  # and there are no more tasks
            waited: list[Any] = [worker.connection for worker in self._workers]
            waited += [worker.process.sentinel for worker in self._workers]
            ready = set(wait(waited, timeout=0.5))
            for place, worker in enumerate(self._workers):
                # First what it still said, then that it is dead.
                dead = worker.process.sentinel in ready
                if worker.connection in ready or dead:
                    answers = worker.answers(until_end=dead)
                    if answers:
                        self._put([(task.ticket, outcome) for task, outcome in answers])
                    worker.since = time.monotonic()
                    in_vain = 0 if answers else in_vain
                if not dead and worker.is_stuck(self._seconds):
                    worker.process.kill()
                    worker.process.join()
                    worker.stuck = dead = True
                if not dead:
                    continue
                self.deaths += 1
                in_vain += 1
                self._mourn(worker, tasks)
                if in_vain > _HOPELESS * self._count:
                    raise WetokError(
                        f"decoding processes end at once ({worker.cause()}): is there memory for "
                        f"workers={self._count}? try fewer, or 0"
                    )
                worker.end()
                self._workers[place] = self._start()

    def _mourn(self, worker: _Worker, tasks: _Tasks) -> None:
        """What a dead process has left undone, and perhaps died of."""
        culprit = worker.culprit()
        if culprit is not None:
            worker.pending.remove(culprit)
            cause = f"took longer than {self._seconds:g} s" if worker.stuck else worker.cause()
            if tasks.blame(culprit) >= TRIES:
                reason = (
                    f"image {culprit.item.key!r}: decoding it ended {TRIES} processes ({cause})"
                )
                self._put([(culprit.ticket, Failed(reason))])
        tasks.give_back(worker.pending)

    def _start(self) -> _Worker:
        return _Worker(self._context, self._reader, self._preprocessing)

    def _put(self, value: Any) -> None:
        while not self._stopped:
            with suppress(Full):
                self._queue.put(value, timeout=0.2)
                return


class _Tasks:
    """What is yet to be decoded: new ones, those of the dead, and suspects after a while."""

    def __init__(self, fresh: Iterator[tuple[Any, Item]], delay: int) -> None:
        self._fresh = enumerate(fresh)
        self._again: deque[_Task] = deque()
        self._suspects: deque[tuple[int, _Task]] = deque()  # not before so many were handed out
        self._blamed: dict[int, int] = {}
        self._handed = 0
        self._delay = delay

    def next(self) -> _Task | None:
        self._handed += 1
        if self._suspects and self._suspects[0][0] <= self._handed:
            return self._suspects.popleft()[1]
        if self._again:
            return self._again.popleft()
        for number, (ticket, item) in self._fresh:
            return _Task(number, ticket, item)
        return self._suspects.popleft()[1] if self._suspects else None

    def some(self, most: int) -> list[_Task]:
        found: list[_Task] = []
        while len(found) < most and (task := self.next()) is not None:
            found.append(task)
        return found

    def give_back(self, tasks: Iterable[_Task]) -> None:
        self._again.extend(tasks)

    def blame(self, task: _Task) -> int:
        """How many processes `task` has cost; it is tried again unless these are enough."""
        count = self._blamed[task.number] = self._blamed.get(task.number, 0) + 1
        if count < TRIES:
            self._suspects.append((self._handed + self._delay, task))
        return count


class _Worker:
    """One process, what it was given, and what it is at."""

    def __init__(self, context: Any, reader: Reader, preprocessing: Preprocessing) -> None:
        self.connection, theirs = context.Pipe()
        # In shared memory, so that it can be read when the process is dead: the number of the task
        # that it is at and 1, or 0.
        self._busy = context.RawValue("q", 0)
        self.pending: deque[_Task] = deque()
        self.since = time.monotonic()
        self.stuck = False
        arguments = theirs, reader, preprocessing, self._busy
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def give(self, tasks: list[_Task]) -> None:
        self.pending.extend(tasks)
        if tasks:
            with suppress(OSError):  # it is dead, which will be noticed
                self.connection.send([(task.number, task.item) for task in tasks])

    def answers(self, until_end: bool) -> list[tuple[_Task, Decoded | Failed]]:
        """What it has sent: one group of answers, or all that there is."""
        found: list[tuple[_Task, Decoded | Failed]] = []
        try:
            while (until_end or not found) and self.connection.poll():
                for outcome in self.connection.recv():
                    found.append((self.pending.popleft(), outcome))
        except (EOFError, OSError):  # dead, perhaps within an answer
            pass
        return found

    def culprit(self) -> _Task | None:
        """The task that the process was at when it died."""
        at = self._busy.value - 1
        return next((task for task in self.pending if task.number == at), None)

    def is_stuck(self, seconds: float) -> bool:
        return self.culprit() is not None and time.monotonic() - self.since > seconds

    def cause(self) -> str:
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"{name}, perhaps out of memory" if name == "SIGKILL" else name

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()
        self.process.close()


def _serve(connection: Connection, reader: Reader, preprocessing: Preprocessing, busy: Any) -> None:
    """The life of a process: it ends when the other end of the connection is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that has started it
    tasks: deque[tuple[int, Item]] = deque()
    group: list[Decoded | Failed] = []
    size, begun = 0, 0.0
    with suppress(EOFError, OSError):
        while True:
            if not tasks:
                tasks.extend(connection.recv())
            number, item = tasks.popleft()
            begun = begun if group else time.monotonic()
            busy.value = number + 1
            outcome = decode(item, reader, preprocessing)
            busy.value = 0
            group.append(outcome)
            if isinstance(outcome, Decoded):
                size += sum(view.nbytes for view in outcome.views)
            late = time.monotonic() - begun > _GROUP_SECONDS
            if not tasks or len(group) >= _GROUP or size >= _GROUP_BYTES or late:
                connection.send(group)
                group, size = [], 0
