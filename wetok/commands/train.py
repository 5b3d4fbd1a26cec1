"""`wetok train`: a tokenizer from a recipe."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wetok.config import WetokError

if TYPE_CHECKING:
    from rich.progress import Progress

_INTERRUPTED = 130
"""Exit code of a run that a signal ended, so that `wetok train && ...` does not go on."""


def command(
    recipe: Annotated[Path, typer.Argument(show_default=False, help="A YAML file of settings.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ from the recipe's."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run.  [default: runs/RECIPE]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train a tokenizer from a recipe.

    The run's folder gets checkpoints, a log (log.jsonl, curves.png),
    pictures (samples/) and, after each best validation, the model
    (model/).
    Ctrl-C saves a checkpoint and ends; --resume goes on from it.

    Example: wetok train recipes/tiny/tiny-48x.yaml data.train=photos data.val=null
    """
    from wetok.config import load_train_config

    config = load_train_config(recipe, overrides or [])
    folder = out or Path("runs") / recipe.stem
    from wetok.train.loop import Run

    with _bar(quiet) as progress:
        run = Run(config, folder, _Screen(progress, config.run.steps), resume)
        finished = run.train()
    if finished:
        told = f"done: {folder}/model is ready; try: wetok reconstruct PHOTO -m {folder}/model"
    else:
        again = ["wetok", "train", str(recipe), *(overrides or []), "-o", str(folder), "--resume"]
        told = f"stopped and saved at step {run.state.step}; go on with:\n  {shlex.join(again)}"
    print(told, flush=True)  # first, as drawing takes a second
    _draw(folder)
    if not finished:
        raise typer.Exit(_INTERRUPTED)


def _draw(folder: Path) -> None:
    """Draws the run's curves, where matplotlib is installed and there is something to draw."""
    from wetok.train.curves import plot_curves

    with suppress(ImportError, WetokError):
        plot_curves(folder / "log.jsonl", folder / "curves.png")


def _bar(quiet: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    # On standard error, so that the output can be piped; not a terminal: only the events' lines.
    console = Console(stderr=True)
    # At 80 columns all of it fits.
    columns = (
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TimeLeft(),
        TextColumn("{task.description}", markup=False),
    )
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal)


class _Screen:
    """Shows a run on a terminal: a bar with the newest numbers, and a line for each event."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self.progress, self.steps = progress, steps
        self.task = progress.add_task("starting", total=steps)
        self.seen = False

    def step(self, record: dict[str, Any]) -> None:
        text = (
            f"loss {record['loss']:.3f}  {record['images_per_second']:.0f} img/s  "
            f"usage {min(record['usage']):.0%}"
        )
        if record["dead_bits"]:
            text += f"  {record['dead_bits']} dead bits"
        if not self.seen:
            # The time left is reckoned from here: a resumed run did not do its first steps now.
            self.progress.reset(self.task, total=self.steps, completed=record["step"])
            self.seen = True
        self.progress.update(self.task, completed=record["step"], description=text)

    def event(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
