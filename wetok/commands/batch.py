"""What commands over many files share: what to read, where to write, going on past a bad one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import typer

from wetok.config import WetokError

SOME_FAILED, ALL_FAILED = 1, 2  # exit codes


@dataclass(frozen=True)
class Job:
    """One input and the file that comes of it."""

    source: Path
    target: Path


@dataclass
class Batch:
    """The inputs of a command, in order, and what went wrong so far."""

    jobs: list[Job]
    failures: list[str] = field(default_factory=list)

    def run(self, work: Callable[[Job], str], *, doing: str) -> None:
        """Call `work` on each job and print the line it returns; then list what failed.

        Raises:
            WetokError: there was one input only, and it failed.
            typer.Exit: 1 when some inputs failed, 2 when all did.
        """
        done = 0
        with progress(len(self.jobs), doing) as advance:
            for job in self.jobs:
                try:
                    print(work(job))
                    done += 1
                except BrokenPipeError:
                    raise
                except (WetokError, OSError, MemoryError) as error:
                    self.failures.append(_reason(job.source, error))
                advance()
        if self.failures:
            self.stop(done)

    def stop(self, done: int) -> NoReturn:
        """Tell what failed, after `done` inputs went well; raises as `run` does."""
        if not done and len(self.failures) == 1:
            raise WetokError(self.failures[0])
        total = done + len(self.failures)
        print(f"wetok: {len(self.failures)} of {total} inputs failed:", file=sys.stderr)
        for line in self.failures:
            print(f"  {line}", file=sys.stderr)
        raise typer.Exit(SOME_FAILED if done else ALL_FAILED)


def plan(
    inputs: Sequence[Path],
    out: Path,
    suffix: str,
    find: Callable[[Path], Sequence[Path]],
    *,
    force: bool,
) -> Batch:
    """Pair every file that `inputs` name with a target of its own.

    A folder's files keep their subfolders. `out` is a folder, or for a single input that is a file
    also a file name ending in `suffix`. Two inputs that would meet in one target get `-2`, `-3`
    and so on; an input that can't be found is a failure of the batch and the others go on.

    Raises:
        WetokError: a target exists and `force` is false, or a target is itself an input; no
            input can be found, if it is the only one.
        typer.Exit: 2 when none of several inputs can be found.
    """
    single = len(inputs) == 1 and not inputs[0].is_dir()
    to_file = out.suffix.lower() == suffix and not out.is_dir()
    if to_file and not single:
        raise WetokError(f"--out {out}: one file can't hold several results; name a folder")
    if out.exists() and not out.is_dir() and not to_file:
        raise WetokError(f"--out {out}: a file that does not end in {suffix}; name a folder")

    batch = Batch([])
    seen: set[Path] = set()
    taken: set[str] = set()
    for given in inputs:
        try:
            files = find(given)
        except WetokError as error:
            batch.failures.append(str(error))
            continue
        # Results of an earlier run, in a folder inside the input folder, are no inputs.
        inside = given.resolve() in out.resolve().parents
        fresh = [f for f in files if not (inside and f.resolve().is_relative_to(out.resolve()))]
        if not fresh:
            batch.failures.append(f"{given}: holds nothing but what is in --out {out}")
        for file in fresh:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            place = file.relative_to(given).parent if file != given else Path()
            target = out if to_file else _free(out / place / file.stem, suffix, taken)
            batch.jobs.append(Job(file, target))
    if not batch.jobs and batch.failures:
        batch.stop(0)
    _check_targets([job.target for job in batch.jobs], seen, force)
    return batch


def files_in(path: Path, suffix: str) -> list[Path]:
    """The file `path`, or those under the folder `path` that end in `suffix`, sorted."""
    if not path.exists():
        raise WetokError(f"path {str(path)!r} does not exist: name a {suffix} file or a folder")
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob(f"*{suffix}") if file.is_file())
    if not found:
        raise WetokError(f"folder {str(path)!r} holds no {suffix} files")
    return found


def _free(stem: Path, suffix: str, taken: set[str]) -> Path:
    number = 1
    while True:
        # Compared without case: `A.png` and `a.png` are one file on some disks.
        target = stem.with_name(stem.name + (f"-{number}" if number > 1 else "") + suffix)
        if str(target).casefold() not in taken:
            taken.add(str(target).casefold())
            return target
        number += 1


def _check_targets(targets: Sequence[Path], sources: set[Path], force: bool) -> None:
    for target in targets:
        if target.resolve() in sources:
            raise WetokError(f"--out would overwrite the input {target}; name another folder")
        if target.is_dir():
            raise WetokError(f"--out would replace the folder {target}; name another folder")
    there = [] if force else [target for target in targets if target.exists()]
    if there:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise WetokError(f"{there[0]}{more} exists: give --force to overwrite, or another --out")


def _reason(source: Path, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"{source}: does not fit in memory; make it smaller"
    if isinstance(error, OSError):
        return f"{error.filename or source}: {error.strerror or error}"
    text = " ".join(str(error).split())
    return text if source.name in text else f"{source}: {text}"


@contextmanager
def progress(total: int, doing: str) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's stderr when there are several things to do; else nothing."""
    quiet = os.environ.get("WETOK_QUIET", "0") not in ("", "0")
    if total < 2 or quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),  # lines of results then appear above the bar
        transient=True,
    ) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda: progress.advance(task)
