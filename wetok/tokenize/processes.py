"""How processes that decode are started: forked off one that has imported all they need."""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def begin() -> ForkServerContext:
    """Starts that one, and returns at once: called early, it gets ready while the model is loaded.

    Whatever dies, a new process is then there in a few milliseconds. It ends with this process,
    however that ends.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["wetok.tokenize.work"])
    forkserver.ensure_running()
    return context
