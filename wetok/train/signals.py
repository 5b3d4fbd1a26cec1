"""Ending a run by a signal, after the step under way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """Whether SIGINT or SIGTERM came to this process."""

    came = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block a first signal is only noted.

        A second one does what it would have done, for whoever can't wait.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # where Python knows no signals
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def stop(number: int, frame: FrameType | None) -> None:
            self.came = True
            restore()

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            restore()
