"""`wetok ablate`: the paper's tables in miniature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="The paper's tables in miniature: the entropies, their approximation, training.\n\n"
    "Example: wetok ablate all --train photos/train --val photos/val",
)

Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the results: one JSON file each, plots.")
]
Photos = Annotated[Path, typer.Option("--val", show_default=False, help="Photographs to score on.")]
Train = Annotated[
    Path, typer.Option("--train", show_default=False, help="Photographs to train on.")
]
Seeds = Annotated[int, typer.Option(min=2, help="Runs of each variant, seeds 0, 1, ...")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trainings at a time.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings changed in every recipe."),
]
Docs = Annotated[
    Path | None,
    typer.Option(help="Document to put the tables into; the plots go to images/ beside it."),
]
Recipes = Annotated[Path, typer.Option(help="Folder of the variants' recipes.")]
OUT = Path("runs/ablation")
RECIPES = Path("recipes/ablation")


@app.command()
def entropy(
    out: Out = OUT,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each measurement.")] = 1,
    most: Annotated[
        float, typer.Option("--memory", min=0.1, help="GB that dense tables may take.")
    ] = 4.0,
) -> None:
    """Measure memory and time of the entropy terms at 8 to 40 bits.

    Each in a process of its own, forward and backward. What would take
    more memory than allowed is computed from what was measured, and
    marked so.

    Example: wetok ablate entropy --memory 8
    """
    from wetok.commands.ablation.entropies import about, measure_all

    records = measure_all(threads, int(most * 1e9), _tell)
    _finish(out, "entropy", {**about(), "threads": threads, "records": records})


@app.command()
def approximation(
    val: Photos,
    out: Out = OUT,
    seeds: Seeds = 3,
) -> None:
    """Compare the grouped codebook entropy with the exact one.

    For every number of groups: on the shipped model's latents of --val,
    and on correlated and independent ones that are made up.

    Example: wetok ablate approximation --val photos/val
    """
    from wetok.commands.ablation.grouping import MODEL, PROTOCOL, approximate_all

    records = approximate_all(val, range(seeds), _tell)
    about = {"model": MODEL, "protocol": PROTOCOL, "temperature": 0.01}
    _finish(out, "approximation", {**about, "records": records})


@app.command()
def training(
    train: Train,
    val: Photos,
    settings: Settings = None,
    out: Out = OUT,
    seeds: Seeds = 3,
    jobs: Jobs = 2,
    threads: Threads = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Just this variant; repeatable.  [default: all]")
    ] = None,
    recipes: Recipes = RECIPES,
) -> None:
    """Train every variant with every seed, score them, and tabulate.

    What is in --out already is not done again: after a break the same
    command goes on from there.

    Example: wetok ablate training --train photos/train --val photos/val
    """
    _train(train, val, settings, out, seeds, jobs, threads, only, recipes)
    _show(out)


@app.command("all")
def everything(
    train: Train,
    val: Photos,
    settings: Settings = None,
    out: Out = OUT,
    seeds: Seeds = 3,
    jobs: Jobs = 2,
    threads: Threads = 1,
    recipes: Recipes = RECIPES,
    docs: Docs = None,
) -> None:
    """All of it: entropy, approximation, training, and the tables.

    Trainings that are in --out already are not done again.

    Example: wetok ablate all --train photos/train --val photos/val
    """
    _train(train, val, settings, out, seeds, jobs, threads, None, recipes)
    approximation(val, out, seeds)
    entropy(out)
    _show(out, docs)


@app.command()
def tables(out: Out = OUT, docs: Docs = None) -> None:
    """Show the tables of what is in --out; draw its plots.

    Example: wetok ablate tables -o runs/ablation
    """
    _show(out, docs)


@app.command()
def outside(
    name: Annotated[str, typer.Argument(metavar="vq|fsq", help="Which quantizer.")],
    recipe: Annotated[Path, typer.Argument(help="Whose quantizer it stands in for.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changed settings.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", show_default=False, help="Folder of the run.")
    ] = Path("runs/outside"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say when it is done.")] = False,
) -> None:
    """Train a recipe with a quantizer of vector-quantize-pytorch.

    It leaves weights to score (network.safetensors), no model folder.

    Example: wetok ablate outside vq recipes/ablation/groups-2.yaml data.train=photos/train
    """
    from wetok.commands.ablation.outside import train_outside

    train_outside(name, recipe, settings or [], out, resume, _nothing if quiet else _tell)
    _tell(f"done: {out} is ready to be scored")


def _train(
    train: Path,
    val: Path,
    settings: list[str] | None,
    out: Path,
    seeds: int,
    jobs: int,
    threads: int,
    only: list[str] | None,
    recipes: Path,
) -> None:
    from wetok.commands.ablation.matrix import run_matrix
    from wetok.commands.ablation.variants import chosen

    run_matrix(
        chosen(only or []),
        range(seeds),
        recipes=recipes,
        train=train,
        val=val,
        out=out,
        overrides=tuple(settings or ()),
        at_once=jobs,
        threads=threads,
        tell=_tell,
    )


def _finish(out: Path, part: str, content: dict[str, Any]) -> None:
    from wetok.commands.ablation.results import write_result

    write_result(out, part, content)
    _tell(f"done: {out / part}.json")


def _show(out: Path, docs: Path | None = None) -> None:
    """Prints every table in `out`, draws the plots, and puts both into `docs`."""
    from wetok.commands.ablation import report
    from wetok.commands.ablation.plots import plot
    from wetok.commands.ablation.results import read_results

    results = read_results(out)
    images = out if docs is None else docs.parent / "images"
    images.mkdir(exist_ok=True)
    for part, result in results.items():
        plot(part, result, images / f"ablation-{part}.png")
    if docs is not None:
        report.write_docs(docs, results)
    for name, table in report.tables(results).items():
        typer.echo(f"\n{name}\n\n{table}")


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _nothing(text: Any) -> None:
    pass
