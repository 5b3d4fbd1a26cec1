"""A Ray cluster to work on: one that runs already, or one on this machine for as long as a job."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from wetok.config import WetokError
from wetok.data.cells import scale_package

_STORE = 2**30  # bytes of the object store of a cluster on this machine
_LOCAL = {
    # So that Ray, which takes the machine's outer address otherwise, listens on 127.0.0.1 alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # On a busy machine its processes take longer than the 15 s that it gives them.
    "RAY_agent_register_timeout_ms": "120000",
    # Ray's own default, 15, starves them where anything else runs.
    "RAY_worker_niceness": "0",
}


def import_ray() -> Any:
    """The package `ray.data`'s parent; it sends no statistics of use.

    Raises:
        WetokError: it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scale_package("ray.data", "--engine ray")
    return scale_package("ray", "--engine ray")


@contextmanager
def connected(address: str | None, debug: bool = False) -> Iterator[Any]:
    """`ray`, connected to the cluster at `address`, or to a new one on this machine.

    A new one listens on 127.0.0.1 only, and ends with the block, or with this process. If this
    process is connected already, that is used, and left as it is.

    Args:
        address: host:port, or "auto" for the one that runs here; None starts one.
        debug: lets Ray and its workers speak.

    Raises:
        WetokError: Ray is not installed, there is no such cluster, or it can't be started.
    """
    own = _own_environment(address, debug)
    os.environ.update(own)
    ray = import_ray()
    _quiet(debug)
    if ray.is_initialized():
        yield ray
        return
    folder = None
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": debug}
    if not debug:
        options |= {"logging_level": logging.CRITICAL, "configure_logging": False}
    if address is None:
        folder = tempfile.mkdtemp(prefix="wetok-ray-")
        options |= {
            "include_dashboard": False,
            "object_store_memory": _STORE,
            "_temp_dir": folder,
        }
    try:
        with _own_signals():
            try:
                with _silent(debug):
                    ray.init(**options)
            except (Exception, SystemExit) as error:
                what = f"no cluster at {address!r} can be reached" if address else "Ray can't start"
                raise WetokError(f"{what}: {' '.join(str(error).split())[:200]}") from None
        _quiet(debug)
        try:
            yield ray
        finally:
            with _own_signals():
                ray.shutdown()
    finally:
        for name in own:
            os.environ.pop(name, None)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _own_environment(address: str | None, debug: bool) -> dict[str, str]:
    values = dict(_LOCAL) if address is None else {}
    if not debug:
        values["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    return {name: value for name, value in values.items() if name not in os.environ}


@contextmanager
def _silent(debug: bool) -> Iterator[None]:
    """Nothing reaches stderr, from whatever language."""
    if debug:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _quiet(debug: bool) -> None:
    if debug:
        return
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)


@contextmanager
def _own_signals() -> Iterator[None]:
    """What the caller does about signals stays: Ray would put its own in place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(TypeError, ValueError):
                signal.signal(number, handler)
