"""The engine for one machine: processes decode, this one encodes, a thread writes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wetok.config import WetokError
from wetok.tokenize.inputs import Inputs, Item
from wetok.tokenize.output import Output, Receipt
from wetok.tokenize.plan import Plan
from wetok.tokenize.pool import DecodePool
from wetok.tokenize.work import Failed, PartWork

if TYPE_CHECKING:
    from wetok.model.tokenizer import Tokenizer

_WRITING = 2  # parts that may wait to be written


@dataclass
class Progress:
    """Where a run stands; counts are of this run alone."""

    inputs: int = 0
    """Done, failed ones too, whether their part is written or not."""
    images: int = 0
    """Views encoded."""
    failed: int = 0
    bytes: int = 0
    """Of shards written."""
    parts: int = 0
    deaths: int = 0
    """Decoding processes that died and were replaced."""
    encoding: float = 0.0
    """Seconds spent in the encoder."""
    waiting: float = 0.0
    """Seconds the encoder had nothing to do."""


def tokenize(
    plan: Plan,
    inputs: Inputs,
    tokenizer: Tokenizer,
    output: Output,
    missing: Sequence[int],
    *,
    workers: int = 1,
    tell: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Does and commits the parts `missing`. The folder must be held (`Output.locked`).

    Args:
        workers: decoding processes; 0 decodes here.
        tell: is called after every image.
        stop: is asked after every image; parts under way are then left undone.

    Raises:
        WetokError: it can't be written, or the sources can't be listed any more.
    """
    progress = Progress()
    works: dict[int, PartWork] = {}
    writing: deque[Future[Receipt]] = deque()

    def tasks() -> Iterator[tuple[tuple[int, int], Item]]:
        for number in missing:
            part = plan.part(inputs, number)
            if len(part.items) != plan.size_of(number):
                raise WetokError("the sources have become smaller since they were opened")
            works[number] = PartWork(part, plan, tokenizer)
            for index, item in enumerate(part.items):
                yield (number, index), item

    def settle(most: int) -> None:
        while writing and (len(writing) > most or writing[0].done()):
            receipt = writing.popleft().result()
            progress.bytes += receipt.bytes
            progress.parts += 1

    views = len(plan.preprocessing.names)
    # Whole images may be large: fewer of them.
    ahead = 2 if plan.preprocessing.size is None else max(4, -(-(16 + 2 * plan.batch) // views))
    with (
        ThreadPoolExecutor(1, "wetok-write") as writer,
        DecodePool(inputs.reader, plan.preprocessing, workers, ahead=ahead) as pool,
    ):
        before = time.perf_counter()
        try:
            for (number, index), outcome in pool.run(tasks()):
                begun = time.perf_counter()
                progress.waiting += begun - before
                work = works[number]
                work.add(index, outcome)
                before = time.perf_counter()
                progress.encoding += before - begun
                progress.inputs += 1
                failed = isinstance(outcome, Failed)
                progress.failed += failed
                progress.images += 0 if failed else views
                progress.deaths = pool.deaths
                if work.done:
                    result = works.pop(number).result()
                    writing.append(writer.submit(output.commit, plan, result, inputs.schema))
                settle(_WRITING)
                tell(progress)
                if stop():
                    break
            settle(0)
        finally:
            # What is complete is written, whatever ended the rest.
            with suppress(WetokError):
                settle(0)
    tell(progress)
    return progress
