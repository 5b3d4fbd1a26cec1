"""The engine for a cluster: Ray Data decodes and encodes on its nodes, this process commits.

    parts -> chunks -> decoding tasks (CPU) -> encoding actors (GPU, or CPU) -> here -> commit

Exactly once, whatever Ray repeats: nothing but this process, which holds the folder, writes to it,
and a part is committed when each of its items has come, once or more often, from whichever node.
So the nodes need not reach the output, and a job that was left for dead can't write any more.

A task whose process or node dies is tried again by Ray, on another; what is lost even so is worked
on once more by item, with decoding in a process of its own, so that an image that ends whatever
decodes it becomes a failure with its reason. What a node holds in its object store is bounded:
tasks wait while those behind them are slow.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any

from wetok.config import WetokError
from wetok.tokenize.chunks import (
    BYTES,
    Encoded,
    Gathering,
    chunks,
    largest_chunk,
    smallest_chunk,
)
from wetok.tokenize.inputs import Inputs
from wetok.tokenize.local import Progress
from wetok.tokenize.output import Output, Receipt
from wetok.tokenize.plan import Part, Plan
from wetok.tokenize.ray_cluster import connected
from wetok.tokenize.ray_workers import Answer, Encoding, Job, Task, decode_rows, table
from wetok.tokenize.work import Failure

if TYPE_CHECKING:
    from wetok.model.tokenizer import Tokenizer

WINDOW = 2**18
"""Inputs that are listed at a time."""
_TRIES = 3  # by Ray, of a task whose process died, before it is worked on by item
_WRITING = 2  # parts that may wait to be written


@dataclass(frozen=True)
class Cluster:
    """Where to work, and on how much of it.

    address     host:port of a Ray cluster, or auto; None starts one on this machine
    workers     most decoding tasks at a time; None: as many as there are processors
    encoders    encoding actors; None: one a GPU, or half the processors
    device      auto, cpu or cuda
    debug       lets Ray speak
    """

    address: str | None = None
    workers: int | None = None
    encoders: int | None = None
    device: str = "auto"
    debug: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "encoders"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise WetokError(f"{name}={value} must be at least 1 with --engine ray")
        if self.device.partition(":")[0] not in ("auto", "cpu", "cuda"):
            raise WetokError(f"device={self.device!r} must be auto, cpu or cuda with --engine ray")


@dataclass(frozen=True)
class _Shares:
    """What tasks and actors ask a cluster for."""

    encoders: int
    workers: int | None
    cpus: float  # of a decoding task, and of an encoder without a GPU
    gpus: int  # of an encoder

    @classmethod
    def of(cls, cluster: Cluster, there: dict[str, float]) -> _Shares:
        cpus, gpus = there.get("CPU", 0.0), int(there.get("GPU", 0))
        wants_gpu = cluster.device.startswith("cuda") or (cluster.device == "auto" and gpus > 0)
        if wants_gpu and not gpus:
            raise WetokError(f"device={cluster.device!r}: the cluster has no GPU; use cpu or auto")
        encoders = cluster.encoders or (gpus if wants_gpu else max(1, int(cpus) // 2))
        if wants_gpu and encoders > gpus:
            raise WetokError(f"encoders={encoders} must be at most the cluster's GPUs, {gpus}")
        # Where there are fewer processors than processes they are shared, or none would begin.
        processes = (0 if wants_gpu else encoders) + (cluster.workers or 1)
        share = min(1.0, int(100 * cpus / processes) / 100)
        if share <= 0:
            raise WetokError(f"the cluster has {cpus:g} CPUs: too few for {processes} processes")
        return cls(encoders, cluster.workers, share, int(wants_gpu))

    @property
    def store(self) -> int:
        """Bytes of chunks that may lie in object stores."""
        return 4 * BYTES * (self.encoders + (self.workers or self.encoders))


def tokenize(
    plan: Plan,
    inputs: Inputs,
    tokenizer: Tokenizer,
    output: Output,
    missing: Sequence[int],
    *,
    cluster: Cluster = Cluster(),  # noqa: B008 (it is frozen)
    tell: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Does and commits the parts `missing`. The folder must be held (`Output.locked`).

    Args:
        tokenizer: the model; what the encoders get is a copy.
        tell: is called after every chunk.
        stop: is asked now and then; parts under way are then left undone.

    Raises:
        WetokError: Ray is not installed or can't be reached; a node can't do its work; the output
            can't be written, or the sources can't be listed any more.
    """
    if not missing:
        return Progress()
    with connected(cluster.address, cluster.debug) as ray:
        shares = _Shares.of(cluster, ray.cluster_resources())
        folder, paths = os.getcwd(), tuple(p for p in plan.inputs if os.path.exists(p))
        pipeline = _Pipeline(
            ray,
            shares,
            ray.put(Job(plan, inputs.reader, folder, paths)),
            ray.put(tokenizer),
            cluster.debug,
            stop,
        )
        with ThreadPoolExecutor(1, "wetok-write") as writer:
            return _Run(plan, inputs, output, pipeline, writer, tell).over(missing)


class _Pipeline:
    """Tasks to answers."""

    def __init__(
        self,
        ray: Any,
        shares: _Shares,
        job: Any,
        tokenizer: Any,
        debug: bool,
        stop: Callable[[], bool],
    ) -> None:
        self._ray, self._shares, self._debug, self.stopped = ray, shares, debug, stop
        self._job, self._tokenizer = job, tokenizer

    @property
    def encoders(self) -> int:
        return self._shares.encoders

    def run(self, tasks: list[Task], careful: bool) -> Iterator[Answer]:
        """Answers in any order, but for tasks that were lost.

        Raises:
            WetokError: Ray gave up.
        """
        queue: Queue[Any] = Queue(4)
        over = threading.Event()

        def put(value: Any) -> None:
            while not over.is_set():
                with suppress(Full):
                    queue.put(value, timeout=0.2)
                    return

        def pull() -> None:
            try:
                dataset = self._dataset(tasks, careful)
                for rows in dataset.iter_batches(
                    batch_size=None, batch_format="pyarrow", prefetch_batches=0
                ):
                    for cell in rows["answer"]:
                        put(pickle.loads(cell.as_buffer()))
                    if over.is_set():
                        return
                put(None)
            except BaseException as error:  # is raised where the answers are taken
                put(error)

        thread = threading.Thread(target=pull, name="wetok-ray", daemon=True)
        thread.start()
        try:
            while not self.stopped():
                try:
                    found = queue.get(timeout=0.2)
                except Empty:
                    continue
                if found is None:
                    return
                if isinstance(found, BaseException):
                    reason = (str(found).strip().splitlines() or [type(found).__name__])[-1]
                    raise WetokError(f"Ray gave up: {reason[:300]}") from found
                yield found
        finally:
            over.set()

    def _dataset(self, tasks: list[Task], careful: bool) -> Any:
        data, shares = self._ray.data, self._shares
        with data.DataContext.current(self._context()):
            # A block is a chunk: what is repeated, and what waits, is as small as that.
            dataset = data.from_arrow([table(task=task) for task in tasks])
            dataset = dataset.map_batches(
                decode_rows,
                fn_kwargs={"reference": [self._job]},
                batch_size=None,
                batch_format="pyarrow",
                compute=data.TaskPoolStrategy(size=shares.workers),
                num_cpus=shares.cpus,
                max_retries=_TRIES if careful else 1,
            )
            return dataset.map_batches(
                Encoding,
                fn_constructor_args=(self._job, self._tokenizer, "cuda" if shares.gpus else "cpu"),
                batch_size=None,
                batch_format="pyarrow",
                compute=data.ActorPoolStrategy(min_size=1, max_size=shares.encoders),
                num_cpus=0 if shares.gpus else shares.cpus,
                num_gpus=shares.gpus,
                max_task_retries=_TRIES,
                max_restarts=-1,
            )

    def _context(self) -> Any:
        context = self._ray.data.DataContext.get_current().copy()
        options = context.execution_options
        limits = type(options.resource_limits)
        options.resource_limits = limits.for_limits(object_store_memory=self._shares.store)
        options.preserve_order = False
        context.max_errored_blocks = -1  # they are missed, and worked on by item
        context.max_consecutive_actor_init_deaths = 20
        context.enable_progress_bars = self._debug
        context.print_on_execution_start = self._debug
        context.enable_auto_log_stats = False
        return context


class _Run:
    """One call of `tokenize`."""

    def __init__(
        self,
        plan: Plan,
        inputs: Inputs,
        output: Output,
        pipeline: _Pipeline,
        writer: ThreadPoolExecutor,
        tell: Callable[[Progress], None],
    ) -> None:
        self._plan, self._inputs, self._output = plan, inputs, output
        self._pipeline, self._writer, self._tell = pipeline, writer, tell
        self._progress = Progress()
        self._writing: deque[Future[Receipt]] = deque()
        self._workers: set[tuple[str, int]] = set()
        self._under_way: dict[int, Gathering] = {}

    def over(self, missing: Sequence[int]) -> Progress:
        each = max(1, WINDOW // self._plan.part_size)
        try:
            for start in range(0, len(missing), each):
                self._window(missing[start : start + each])
                if self._pipeline.stopped():
                    break
            self._settle(0)
        finally:
            with suppress(WetokError):  # what is complete is written, whatever ended the rest
                self._settle(0)
        self._tell(self._progress)
        return self._progress

    def _window(self, numbers: Sequence[int]) -> None:
        """Two rounds over some parts: all of them, and what was lost."""
        length = largest_chunk(self._plan)
        tasks = []
        for number in numbers:
            part = self._part(number)
            self._under_way[number] = Gathering(part, self._plan)
            tasks += [Task(chunk, False) for chunk in chunks(part, length)]
        self._round(tasks, careful=False)
        if self._pipeline.stopped() or not self._under_way:
            return
        length, again = smallest_chunk(self._plan), []
        for number, gathering in self._under_way.items():
            lost = gathering.missing()
            again += [Task(chunk, True) for chunk in chunks(self._part(number), length, lost)]
        self._progress.deaths += len(again)
        self._round(again, careful=True)
        if not self._pipeline.stopped() and self._under_way:
            self._blame(len(again))

    def _round(self, tasks: list[Task], careful: bool) -> None:
        for answer in self._pipeline.run(tasks, careful):
            if answer.problem or answer.encoded is None:
                raise WetokError(answer.problem)
            self._workers.add(answer.worker)
            self._progress.encoding += answer.seconds / self._pipeline.encoders
            self._take(answer.encoded)

    def _take(self, encoded: Encoded) -> None:
        if (gathering := self._under_way.get(encoded.part)) is None:
            return  # it is complete: the chunk was worked on twice
        new, failed = gathering.add(encoded)
        self._progress.inputs += new
        self._progress.failed += failed
        self._progress.images += (new - failed) * len(self._plan.preprocessing.names)
        if gathering.done:
            result = self._under_way.pop(encoded.part).result()
            commit, extras = self._output.commit, self._inputs.schema
            self._writing.append(self._writer.submit(commit, self._plan, result, extras))
        self._settle(_WRITING)
        self._tell(self._progress)

    def _blame(self, tried: int) -> None:
        """What was lost when it was worked on alone and carefully, while others went well."""
        lost = {n: gathering.missing() for n, gathering in self._under_way.items()}
        count = sum(map(len, lost.values()))
        nothing_went_well = self._progress.inputs == 0 or count > max(1, tried // 2)
        if smallest_chunk(self._plan) > 1 or nothing_went_well:
            part, first = next((n, items[0]) for n, items in lost.items() if items)
            key = self._part(part).items[first].key
            raise WetokError(
                f"the cluster's processes end again and again, at {key!r} and {count - 1} others: "
                "is there memory for so many? try fewer --workers or --encoders"
            )
        for number, indexes in lost.items():
            items = self._part(number).items
            for index in indexes:
                key = items[index].key
                reason = f"image {key!r}: working on it ended {_TRIES + 1} processes of the cluster"
                self._take(Encoded(number, index, 1, [], [Failure(index, key, reason)]))

    def _part(self, number: int) -> Part:
        part = self._plan.part(self._inputs, number)
        if len(part.items) != self._plan.size_of(number):
            raise WetokError("the sources have become smaller since they were opened")
        return part

    def _settle(self, most: int) -> None:
        while self._writing and (len(self._writing) > most or self._writing[0].done()):
            receipt = self._writing.popleft().result()
            self._progress.bytes += receipt.bytes
            self._progress.parts += 1
