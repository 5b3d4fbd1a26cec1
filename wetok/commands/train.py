"""`wetok train`: a tokenizer or a generator from a recipe, or several that follow on each other."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from wetok.config import TrainConfig, WetokError

if TYPE_CHECKING:
    from rich.progress import Progress

    from wetok.train.course import Course
    from wetok.train.generator_config import GeneratorTrainConfig


def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...",
            show_default=False,
            help="YAML files of settings, and settings that differ from theirs.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run.  [default: runs/RECIPE]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take, and find the data.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train a tokenizer, or a generator, from a recipe.

    The run's folder gets checkpoints, a log (log.jsonl, curves.png,
    tensorboard/), pictures (samples/) and, after each best validation,
    the model (model/).
    Of several recipes each starts from the model of the one before, in
    a folder of its own (OUT/RECIPE): stage 1, then stage 2.
    Ctrl-C saves a checkpoint and ends; --resume goes on from it.
    --dry-run tells what it would take.
    On several GPUs or machines: torchrun --nproc-per-node 8 -m wetok
    train ..., or accelerate launch -m wetok train ...

    Example: wetok train recipes/tiny/tiny-48x-first.yaml data.train=photos data.val=null
    """
    from wetok.memory import keep_freed_memory

    stages = _stages(arguments, out)
    if dry_run:
        for stage in stages:
            _plan(stage)
        return
    keep_freed_memory()
    for stage in stages:
        is_last = stage is stages[-1]
        if resume and _is_done(stage) and not is_last:
            _tell(f"{stage.name}: done already, {stage.folder}/model is there")
            continue
        again = resume and (is_last and len(stages) == 1 or _has_begun(stage))
        run = _train(stage, again, quiet)
        if run.saved != stage.config.run.steps:
            line = [*_launcher(), "train", *arguments, *(["-o", str(out)] if out else [])]
            line.append("--resume")
            _tell(f"stopped and saved at step {run.saved}; go on with:\n  {shlex.join(line)}")
            _draw(stage.folder)
            break
        if is_last:
            model = stage.folder / "model"
            made = isinstance(stage.config, TrainConfig)
            use = f"wetok reconstruct PHOTO -m {model}" if made else f"wetok generate {model}"
            _tell(f"done: {model} is ready; try: {use}")
        _draw(stage.folder)  # last, as it takes a second
    _leave()


class _Stage(NamedTuple):
    """One recipe and the folder of its run."""

    name: str
    config: TrainConfig | GeneratorTrainConfig
    folder: Path


def _stages(arguments: list[str], out: Path | None) -> list[_Stage]:
    """The recipes among `arguments`, all of their settings checked before any begins."""
    # os.path's, as a setting may be longer than a file's name can be.
    is_recipe = {word: "=" not in word or os.path.isfile(word) for word in arguments}
    recipes = [Path(word) for word in arguments if is_recipe[word]]
    overrides = [word for word in arguments if not is_recipe[word]]
    if not recipes:
        raise WetokError(f"recipe is missing: {' '.join(arguments)} are settings; name a YAML file")
    for path in recipes:
        if path.suffix not in (".yaml", ".yml") and not path.is_file():
            raise WetokError(
                f"{str(path)!r} is no recipe (a YAML file), and a setting must look like "
                "key=value, e.g. data.batch=8"
            )
    names = [path.stem for path in recipes]
    if len(set(names)) < len(names):
        raise WetokError(f"recipes {', '.join(names)}: two of one name would share a folder")
    stages: list[_Stage] = []
    for path in recipes:
        own = list(overrides)
        if stages and not any(word.startswith("run.init=") for word in own):
            own.append(f"run.init={stages[-1].folder / 'model'}")
        single = out is not None and len(recipes) == 1
        folder = out if out and single else (out or Path("runs")) / path.stem
        stages.append(_Stage(path.stem, _config(path, own), folder))
    return stages


def _config(recipe: Path, overrides: list[str]) -> TrainConfig | GeneratorTrainConfig:
    """A tokenizer's settings, or a generator's where the recipe has a block of that name."""
    from wetok.config import read_recipe, validate

    tree = read_recipe(recipe, overrides)
    if "generator" not in tree:
        return validate(TrainConfig, tree)
    from wetok.train.generator_config import GeneratorTrainConfig

    return validate(GeneratorTrainConfig, tree)


def _plan(stage: _Stage) -> None:
    """Prints what `stage` would take: parameters, memory, steps, data."""
    if not isinstance(stage.config, TrainConfig):
        from wetok.train.generator_plan import generator_lines

        _tell("\n  ".join([f"{stage.name} -> {stage.folder}", *generator_lines(stage.config)]))
        return
    from wetok.train.plan import lines, plan
    from wetok.train.start import open_images

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    source = open_images(stage.config)
    told = [f"{stage.name} -> {stage.folder}", *lines(plan(stage.config, source, processes))]
    _tell("\n  ".join(told))
    for reason in source.skipped.values():
        _tell(f"  left out: {reason}")


def _train(stage: _Stage, resume: bool, quiet: bool) -> Course[Any]:
    from wetok.train.generator import GeneratorRun
    from wetok.train.loop import Run

    with _bar(quiet or not _is_first_process()) as progress:
        screen = _Screen(progress, stage.config.run.steps)
        run: Course[Any]
        if isinstance(stage.config, TrainConfig):
            run = Run(stage.config, stage.folder, screen, resume)
        else:
            run = GeneratorRun(stage.config, stage.folder, screen, resume)
        run.train()
    return run


def _has_begun(stage: _Stage) -> bool:
    from wetok.train.state import checkpoints

    return bool(checkpoints(stage.folder / "checkpoints"))


def _is_done(stage: _Stage) -> bool:
    from wetok.train.state import checkpoints

    last = f"step-{stage.config.run.steps:08d}"
    found = checkpoints(stage.folder / "checkpoints")
    return bool(found) and found[-1].name == last and (stage.folder / "model").is_dir()


def _launcher() -> list[str]:
    """What this command was started with; of torchrun, as much as its processes are told."""
    here, world = (int(os.environ.get(f"{of}WORLD_SIZE", "1")) for of in ("LOCAL_", ""))
    if world == 1:
        return ["wetok"]
    nodes = [] if world == here else ["--nnodes", str(world // here)]
    return ["torchrun", *nodes, "--nproc-per-node", str(here), "-m", "wetok"]


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _tell(text: str) -> None:
    if _is_first_process():
        print(text, flush=True)


def _draw(folder: Path) -> None:
    """Draws the run's curves, where matplotlib is installed and there is something to draw."""
    from wetok.train.curves import plot_curves

    if _is_first_process():
        with suppress(ImportError, WetokError):
            plot_curves(folder / "log.jsonl", folder / "curves.png")


def _leave() -> None:
    """Leaves the process group, if there is one, so that none waits for another in vain."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


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
        loss = "none" if record["loss"] is None else f"{record['loss']:.3f}"
        text = f"loss {loss}  {record['images_per_second']:.0f} img/s"
        if "usage" in record:
            text += f"  usage {min(record['usage']):.0%}"
        if record.get("dead_bits"):
            text += f"  {record['dead_bits']} dead bits"
        if not self.seen:
            # The time left is reckoned from here: a resumed run did not do its first steps now.
            self.progress.reset(self.task, total=self.steps, completed=record["step"])
            self.seen = True
        self.progress.update(self.task, completed=record["step"], description=text)

    def event(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
