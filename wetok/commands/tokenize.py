"""`wetok tokenize`: a whole data set to token shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wetok.commands import options

if TYPE_CHECKING:
    from wetok.tokenize.inputs import Inputs
    from wetok.tokenize.local import Progress
    from wetok.tokenize.output import Output
    from wetok.tokenize.plan import Plan

STOPPED = 130


def _size(text: str) -> str:
    if text != "none" and not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a number of pixels nor none.")
    return text


def command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="Folders, tar shards, Parquet files or hub:user/dataset.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the shards; an unfinished one goes on.")
    ] = Path("tokens"),
    model: options.Model = options.DEFAULT_MODEL,
    size: Annotated[
        str,
        typer.Option(
            callback=_size, help="Side of the square crops in pixels, or none: whole images."
        ),
    ] = "256",
    views: Annotated[
        str,
        typer.Option(help="center, flip (and the mirror image) or ten-crop (5 crops, mirrored)."),
    ] = "center",
    crop_range: Annotated[
        float, typer.Option(help="Of ten-crop: the crops are taken from so many times their side.")
    ] = 1.1,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Pass a column through (of tars: members such as cls, txt, json); repeatable."
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="folder: the folder of an image is its label.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Where the images are in Parquet and data sets.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set.  [default: train]")] = None,
    subset: Annotated[str | None, typer.Option(help="Of a data set of the Hub.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Of a data set of the Hub: branch, tag or commit.")
    ] = None,
    file_format: Annotated[
        str, typer.Option("--format", help="parquet, or webdataset (.npy and .json in tars).")
    ] = "parquet",
    shard_size: Annotated[
        int, typer.Option(min=1, help="Images a shard; what a kill may cost.")
    ] = 1024,
    batch: Annotated[
        int,
        typer.Option(
            min=1,
            help="Images that pass the model together. Beyond 1 faster on GPUs, and a few bits may "
            "differ.",
        ),
    ] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, show_default=False, help="Decoding processes.  [default: half the cores]"
        ),
    ] = None,
    device: options.Device = "auto",
    engine: Annotated[
        str, typer.Option(help="local: this machine; ray: a cluster, see --address.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="Of the Ray cluster: host:port, or auto. Without it one is started here.",
        ),
    ] = None,
    encoders: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="With --engine ray: copies of the model.  [default: one a GPU, or half the cores]",
        ),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Only check this folder of shards; with SOURCE also that every image is there.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    as_json: options.Json = False,
) -> None:
    """Turn a data set into token shards.

    Every image is once in the shards or, with the reason, in
    failed.jsonl, whatever is killed and however often: the same command
    goes on from what is done. The exit code is 1 when some images
    failed. --verify proves that nothing is lost, twice or altered.

    Example: wetok tokenize photos -o tokens --size 256
    """
    from wetok.config import WetokError
    from wetok.memory import keep_freed_memory
    from wetok.tokenize import processes

    keep_freed_memory()
    if verify is None and workers != 0 and sources:
        processes.begin()  # ready by the time that the model is
    from wetok.tokenize.inputs import open_inputs
    from wetok.tokenize.output import Output

    given = {"column": column, "split": split, "subset": subset, "revision": revision}
    spec = {name: value for name, value in given.items() if value is not None}
    specs = [{"path": path, **spec} for path in sources or []]
    if verify is not None:
        inputs = open_inputs(specs) if specs else None
        _verify(Output(verify), inputs, as_json)
        return
    if not specs:
        raise WetokError("SOURCE is missing: name a folder, files or hub:NAME")
    run = _engine(engine, workers, device, address, encoders)
    for path in sources or []:
        if os.path.isdir(path) and out.resolve().is_relative_to(Path(path).resolve()):
            raise WetokError(f"--out {out} lies within the source {path}: name another folder")
    output = Output(out)
    with output.locked():
        inputs = open_inputs(specs, keep or (), labels)
        from wetok.tokenize.plan import about_model, make_plan
        from wetok.tokenize.views import Preprocessing

        preprocessing = Preprocessing(
            None if size == "none" else int(size),
            views,  # type: ignore[arg-type]
            crop_range,
        )
        tokenizer = options.load(model, device if engine == "local" else "cpu")
        plan = make_plan(
            inputs,
            about_model(tokenizer),
            preprocessing,
            sources=tuple(sources or ()),
            keep=tuple(keep or ()),
            labels=labels,
            output=file_format,  # type: ignore[arg-type]
            batch=batch,
            part_size=shard_size,
        )
        output.begin(plan)
        _run(plan, inputs, tokenizer, output, run, quiet or as_json, as_json)


def _run(
    plan: Plan,
    inputs: Inputs,
    tokenizer: Any,
    output: Output,
    run: Callable[..., Progress],
    quiet: bool,
    as_json: bool,
) -> None:
    import time

    from wetok.commands.batch import ALL_FAILED, SOME_FAILED
    from wetok.config import WetokError
    from wetok.tokenize.output import summary
    from wetok.train.signals import StopSignal

    missing = output.missing(plan)
    before = plan.images - sum(map(plan.size_of, missing))
    signals = StopSignal()
    begun = time.monotonic()
    with signals.watched(), _bar(plan.images, before, quiet) as tell:
        try:
            progress = run(
                plan,
                inputs,
                tokenizer,
                output,
                missing,
                tell=tell,
                stop=lambda: signals.came,
            )
        except WetokError as error:
            raise WetokError(f"{error}; the same command goes on from what is done") from None
        totals = output.finish(plan)
    seconds = time.monotonic() - begun
    told = summary(plan, totals)
    told["run"] = {
        "seconds": round(seconds, 3),
        "inputs": progress.inputs,
        "images": progress.images,
        "images_per_second": round(progress.images / max(seconds, 1e-9), 2),
        "encoder_share": round(progress.encoding / max(seconds, 1e-9), 4),
        "processes_replaced": progress.deaths,
    }
    if as_json:
        from wetok.commands.tables import show_json

        show_json(told)
    else:
        _show(plan, told, output)
    if not told["done"]:
        raise typer.Exit(STOPPED)
    if totals.failed or plan.left_out:
        raise typer.Exit(ALL_FAILED if totals.failed == totals.inputs else SOME_FAILED)


def _engine(
    engine: str, workers: int | None, device: str, address: str | None, encoders: int | None
) -> Callable[..., Progress]:
    """What does the work, but for the arguments that all engines take."""
    import sys
    from functools import partial

    from wetok.config import WetokError

    if engine == "ray":
        from wetok.tokenize.ray_cluster import import_ray
        from wetok.tokenize.ray_engine import Cluster, tokenize

        import_ray()
        cluster = Cluster(address, workers, encoders, device, "--debug" in sys.argv)
        return partial(tokenize, cluster=cluster)
    if engine != "local":
        raise WetokError(f"--engine {engine} must be local or ray")
    for name, value in (("address", address), ("encoders", encoders)):
        if value is not None:
            raise WetokError(f"--{name} {value} is for --engine ray: add that")
    from wetok.tokenize.local import tokenize as tokenize_here

    return partial(tokenize_here, workers=max(1, _cores() // 2) if workers is None else workers)


def _show(plan: Plan, told: dict[str, Any], output: Output) -> None:
    run = told["run"]
    if not told["done"]:
        print(
            f"{told['shards']:,} of {told['shards_planned']:,} shards are done; the same command "
            "goes on from there"
        )
        return
    print(
        f"{told['inputs']:,} images -> {output.path}  {told['records']:,} records in "
        f"{told['shards']:,} shards, {told['bytes']:,} bytes; {told['failed']:,} failed"
    )
    if run["images"]:
        print(
            f"{run['images_per_second']:,} images/s, the encoder at work {run['encoder_share']:.0%}"
        )
    if told["positions"]:
        bits = plan.about.group_bits
        shares = ", ".join(f"{share:.1%}" for share in told["usage"])
        entropies = ", ".join(f"{entropy:.2f}" for entropy in told["entropy_bits"])
        print(f"codes in use, by group: {shares}; entropy: {entropies} of {bits} bits")
        if told["dead_bits"]:
            print(f"bits that never change: {told['dead_bits']} of {plan.about.groups * bits}")
    if told["failed"]:
        print(f"what failed, and why: {output.path / 'failed.jsonl'}")
    for reason in told["left_out"].values():
        print(f"left out: {reason}")


def _verify(output: Output, inputs: Inputs | None, as_json: bool) -> None:
    from dataclasses import asdict

    from wetok.commands.batch import SOME_FAILED
    from wetok.tokenize.verify import verify

    found = verify(output, inputs)
    if as_json:
        from wetok.commands.tables import show_json

        show_json({"ok": found.ok, **asdict(found)})
    else:
        for problem in found.problems:
            print(problem)
        if found.more:
            print(f"and {found.more:,} more")
        against = "the source's keys" if found.with_source else "the plan (no source was given)"
        print(
            f"{output.path}: {found.inputs:,} inputs, {found.failed:,} of them failed; "
            f"{found.records:,} records in {found.shards:,} shards, compared with {against}: "
            + ("all is well" if found.ok else "NOT as it should be")
        )
    if not found.ok:
        raise typer.Exit(SOME_FAILED)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _bar(total: int, before: int, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.progress import TimeRemainingColumn as TimeLeft

    console = Console(stderr=True)
    columns = (
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeLeft(),
        TextColumn("{task.description}", markup=False),
    )
    begun = time.monotonic()
    shown = 0.0
    with Bar(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("starting", total=total, completed=before)

        def tell(progress: Progress) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown < 0.2 and before + progress.inputs < total:
                return
            shown = now
            text = f"{progress.images / max(now - begun, 1e-9):.1f} img/s  {_bytes(progress.bytes)}"
            if progress.failed:
                text += f"  {progress.failed} failed"
            bar.update(task, completed=before + progress.inputs, description=text)

        yield tell


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
