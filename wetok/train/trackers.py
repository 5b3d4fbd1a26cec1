"""What a run tells TensorBoard and other trackers, through Accelerate."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from wetok.config import RunSettings, WetokError
from wetok.train.processes import Processes


class Trackers:
    """The trackers that `run.trackers` names, on the first process; on the others nothing.

    Args:
        name: of the run.
        step: where the run goes on; what TensorBoard has of later steps happens again.

    Raises:
        WetokError: a tracker can't write; so it is with every method.
    """

    def __init__(self, processes: Processes, config: RunSettings, name: str, step: int) -> None:
        accelerator = processes.accelerator
        options: dict[str, Any] = {"tensorboard": {"purge_step": step + 1}, "wandb": {"name": name}}
        chosen = {
            tracker: options[tracker] for tracker in config.run.trackers if tracker in options
        }
        self._accelerator = accelerator
        self._hook = threading.excepthook
        threading.excepthook = self._unless_told
        with _telling():
            accelerator.init_trackers("wetok", init_kwargs=chosen)
            if processes.is_main and step == 0:
                for tracker in accelerator.trackers:
                    if tracker.name != "tensorboard":  # which would make a run of its own of it
                        tracker.store_init_configuration(_flat(config.model_dump()))

    def log(self, record: dict[str, Any]) -> None:
        """A line of the log: its numbers, those in a list (usage) one by one."""
        values = {name: value for name, value in _flat(record).items() if _is_number(value)}
        with _telling():
            self._accelerator.log({k: v for k, v in values.items() if k != "step"}, record["step"])

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """An RGB picture, for the trackers that show any."""
        for tracker in self._accelerator.trackers:
            show = getattr(tracker, "log_images", None)
            if show is None:
                continue
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            with _telling():
                show({name: np.asarray(picture)[None]}, step=step, **options)

    def close(self) -> None:
        """Writes what is left."""
        with _telling():
            for tracker in self._accelerator.trackers:
                tracker.finish()
        threading.excepthook = self._hook

    def _unless_told(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread need not tell what the next call raises again."""
        own = type(failed.thread).__module__.startswith("tensorboard.")
        if not (own and isinstance(failed.exc_value, OSError)):
            self._hook(failed)


@contextmanager
def _telling() -> Iterator[None]:
    """Makes one line of what the system says, of a full disk above all."""
    try:
        yield
    except OSError as error:
        raise WetokError(
            f"run.trackers: can't be written ({error.strerror or error}); checkpoints are intact: "
            "make room and go on with --resume, or leave them out (run.trackers=[])"
        ) from None


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Leaves of a tree of dicts and sequences by dotted names; None as text."""
    if isinstance(tree, dict):
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        return {name: tree if isinstance(tree, (bool, int, float, str)) else str(tree)}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{name}.{key}" if name else str(key))
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
