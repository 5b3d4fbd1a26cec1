"""`wetok eval`: the scores of a model on photographs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wetok.commands import options
from wetok.commands.measures import networks_for, networks_used, title_of

if TYPE_CHECKING:
    from wetok.evaluate.evaluation import Evaluation
    from wetok.evaluate.networks import Networks

DEFAULT_PROTOCOL = "modern-256"


def command(
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", "-d", show_default=False, help="Photographs or a folder; repeatable."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A shipped name, a model folder or a Hub id; or another system: folder:DIR, "
            "module:function, diffusers:FOLDER_OR_ID, torchscript:DIR.  "
            f"[default: {options.DEFAULT_MODEL}]",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="modern-256 (256 x 256 center crops), original (whole images) or paper-256 (as "
            f"the released evaluation).  [default: {DEFAULT_PROTOCOL}]"
        ),
    ] = None,
    lpips: options.Lpips = None,
    frechet: options.Frechet = None,
    fid_weights: options.FidWeights = None,
    generated: Annotated[
        Path | None,
        typer.Option(
            help="Samples (a folder or a .npz file) to compare as a set with --data or "
            "--reference; no model is run."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of a generative decoder's noise, from 0 on.  [default: 0]"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Reconstructions of each image by a generative decoder.  [default: 1]"
        ),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="Statistics (.npz) to compare with instead of the originals'."),
    ] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Write the originals' statistics (.npz).")
    ] = None,
    receipt: Annotated[
        Path | None, typer.Option(help="Write the scores and all they depend on as JSON.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Score again as this receipt says, and tell what differs.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for a page (index.html) with the scores, pictures and codes."),
    ] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Score a model on photographs.

    PSNR, SSIM, LPIPS, Frechet distance, size, how much of each group's
    codes is in use, their entropy, and bits that never change. torchrun
    spreads the images over several processes.

    Example: wetok eval -m tiny-48x --data photos/val
    """
    from wetok.commands.batch import progress
    from wetok.config import WetokError
    from wetok.data.images import find_images
    from wetok.distributed import rank
    from wetok.evaluate import receipt as receipts
    from wetok.evaluate.evaluation import Evaluation
    from wetok.evaluate.others import open_system
    from wetok.evaluate.pictures import Gallery
    from wetok.evaluate.processes import joined
    from wetok.evaluate.protocols import protocol as find_protocol
    from wetok.evaluate.report import check_folder, write_report
    from wetok.memory import keep_freed_memory

    keep_freed_memory()
    if generated is not None:
        from wetok.commands.generated import score_generated

        given = {"-m": model, "--lpips": lpips, "--samples": samples, "--verify": verify}
        given |= {"--report": report, "--save-reference": save_reference, "--seed": seed}
        for name, value in given.items():
            if value is not None:
                raise WetokError(f"{name} means nothing with --generated: it scores no model")
        score_generated(
            generated,
            [str(path) for path in data or []],
            reference or [],
            protocol or DEFAULT_PROTOCOL,
            frechet,
            fid_weights,
            receipt,
            as_json,
        )
        return
    asked: dict[str, Any] = {
        "data": [str(path) for path in data or []],
        "model": model,
        "protocol": protocol,
        "lpips": lpips,
        "frechet": frechet,
        "seed": seed,
        "samples": samples,
        "reference": [str(path) for path in reference or []],
    }
    before = None
    if verify is not None:
        before = receipts.read(verify)
        asked = _as_on_receipt(asked, before, verify)
    if not asked["data"]:
        raise WetokError("--data is missing: name a folder of photographs (see wetok eval --help)")
    with joined(device) as own_device:
        chosen = find_protocol(asked["protocol"] or DEFAULT_PROTOCOL)
        networks = networks_for(asked["lpips"], asked["frechet"], fid_weights)
        _check_targets(receipt, save_reference, networks)
        if report is not None:
            check_folder(report)
            gallery = Gallery()
        paths = find_images(asked["data"])
        evaluation = Evaluation(
            open_system(asked["model"] or options.DEFAULT_MODEL, own_device),
            chosen,
            networks,
            asked["seed"] or 0,
            asked["samples"] or 1,
            _references(asked["reference"]),
            watch=None if report is None else gallery.offer,
        )
        with progress(len(paths), "scoring") as step:
            evaluation.add_all(paths, step)
        evaluation.gather()
        if report is not None:
            gallery.gather()
        if rank():
            raise typer.Exit(0 if evaluation.images else 2)
        for line in evaluation.failures:
            typer.echo(f"wetok: {line}", err=True)
        summary = evaluation.summary()
        if asked["reference"]:
            summary["reference"] = _hashes(asked["reference"])
        if save_reference is not None:
            _save_reference(evaluation, save_reference)
        arguments = {**asked, **networks_used(networks)}
        if receipt is not None:
            receipts.write(receipt, summary, arguments)
        if report is not None:
            rows, codes, failures = evaluation.images, evaluation.codes, evaluation.failures
            page = write_report(report, summary, arguments, rows, gallery, codes, failures)
            typer.echo(f"wetok: report in {page}", err=True)
        _show(receipts.finite(summary), as_json, asked["frechet"] != ["none"])
        if before is not None and verify is not None:
            _tell(receipts.differences(before, summary), verify)
        if evaluation.failures:
            raise typer.Exit(1)


def _as_on_receipt(asked: dict[str, Any], receipt: dict[str, Any], path: Path) -> dict[str, Any]:
    """The receipt's arguments; data, model and reference may lie elsewhere today."""
    from wetok.config import WetokError

    free = ("data", "model", "reference")
    for name, value in asked.items():
        if name not in free and value is not None:
            raise WetokError(
                f"--{name} can't be given with --verify: it is what {str(path)!r} says"
            )
    on_receipt = receipt["arguments"]
    return {
        name: (asked[name] or on_receipt.get(name)) if name in free else on_receipt.get(name)
        for name in asked
    }


def _references(files: list[str]) -> dict[str, Any]:
    """Statistics by the name of their distance; a file that says none is taken as rFID's."""
    from wetok.evaluate.frechet import Moments

    loaded = [Moments.load(file) for file in files]
    return {str(moments.about.get("features", "rfid")): moments for moments in loaded}


def _hashes(files: list[str]) -> dict[str, str]:
    import hashlib

    return {
        Path(file).name: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files
    }


def _check_targets(receipt: Path | None, reference: Path | None, networks: Networks) -> None:
    """Before the scoring, which may take hours: that its results can be written.

    Raises:
        WetokError: no such folder, or nothing that a reference could be made of.
    """
    from wetok.config import WetokError

    for option, path in (("--receipt", receipt), ("--save-reference", reference)):
        if path is not None and not path.absolute().parent.is_dir():
            raise WetokError(f"{option} {path}: there is no folder {str(path.parent)!r}; make it")
    if reference is not None and not networks.dims:
        raise WetokError("--save-reference: no Frechet distance is measured; give --frechet")


def _save_reference(evaluation: Evaluation, path: Path) -> None:
    """One file, or one for each distance that is measured."""
    names = list(evaluation.originals)
    for name in names:
        own = path if len(names) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}")
        evaluation.moments(name).save(own)


def _tell(found: list[Any], path: Path) -> None:
    """What differs from the receipt; exit code 1 where it matters."""
    for difference in found:
        mark = "differs" if difference.matters else "note"
        typer.echo(f"wetok: {mark}: {difference}", err=True)
    if any(difference.matters for difference in found):
        raise typer.Exit(1)
    typer.echo(f"wetok: the scores agree with {path}", err=True)


def _show(summary: dict[str, Any], as_json: bool, frechet: bool) -> None:
    from rich.table import Table

    from wetok.commands.tables import show, show_json
    from wetok.evaluate.wording import score_rows

    if as_json:
        show_json(summary)
        return
    table = Table(title=f"{summary['model']} on {summary['images']} images", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    if summary["samples"] > 1:
        for title in ("mean of {}", "best of {}", "spread"):
            table.add_column(title.format(summary["samples"]), justify="right")
    for row in score_rows(summary):
        table.add_row(*row)
    show(table)
    typer.echo(f"protocol {summary['protocol']}: {summary['protocol_description']}")
    hashes = [f"LPIPS {net} {digest}" for net, digest in summary["lpips_weights"].items()]
    hashes += [f"{title_of(name)} {digest}" for name, digest in summary["frechet_weights"].items()]
    typer.echo(", ".join([f"model {summary['fingerprint']}", *hashes, f"seed {summary['seed']}"]))
    if frechet and not any("rfid" in name for name in summary["frechet_weights"]):
        typer.echo("rFID is left out: --frechet rfid fetches the network that it needs (96 MB)")
