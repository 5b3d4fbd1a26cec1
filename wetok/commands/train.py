"""`wetok train`: a tokenizer from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wetok.config import WetokError

if TYPE_CHECKING:
    from rich.progress import Progress


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

    The run's folder gets checkpoints, a log (log.jsonl), pictures
    (samples/) and, after each best validation, the model (model/).
    Ctrl-C saves a checkpoint and ends; --resume goes on from it.

    Example: wetok train recipes/tiny/tiny-48x.yaml data.train=photos -o runs/mine
    """
    from wetok.config import load_train_config

    config = load_train_config(recipe, overrides or [])
    folder = out or Path("runs") / recipe.stem
    from wetok.train.loop import Run
    from wetok.train.state import checkpoints

    done = checkpoints(folder / "checkpoints")
    if done and not resume:
        raise WetokError(
            f"out={folder} holds a run ({done[-1].name}); go on with --resume or name another --out"
        )
    with _bar(config.run.steps, quiet) as progress:
        run = Run(config, folder, _Screen(progress, config.run.steps))
        if resume:
            run.resume()
        finished = run.train()
    if finished:
        print(f"done: {folder}/model is ready; try: wetok reconstruct PHOTO -m {folder}/model")
    else:
        words = " ".join([str(recipe), *(overrides or [])])
        print(f"stopped and saved at step {run.state.step}; go on with:")
        print(f"  wetok train {words} -o {folder} --resume")


def _bar(steps: int, quiet: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    # On standard error, so that the output can be piped; not a terminal: only the events' lines.
    console = Console(stderr=True)
    columns = (
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeLeft(),
        TextColumn("{task.description}", markup=False),
    )
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal)


class _Screen:
    """Shows a run on a terminal: a bar with the newest numbers, and a line for each event."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self.progress = progress
        self.task = progress.add_task("starting", total=steps)

    def step(self, record: dict[str, Any]) -> None:
        used = min(record["usage"])
        text = (
            f"loss {record['loss']:.3f}  {record['images_per_second']:.0f} images/s  "
            f"least group usage {used:.0%}  dead bits {record['dead_bits']}"
        )
        self.progress.update(self.task, completed=record["step"], description=text)

    def event(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
