"""`wetok import`: a published checkpoint to a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wetok.commands import options

if TYPE_CHECKING:
    from wetok.config import ModelConfig
    from wetok.released.tokenizer import ImportReport


def command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            show_default=False,
            help="A .ckpt file: a tokenizer of WeTok or Open-MAGVIT2, or a generator of WeTok.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", show_default=False, help="Model folder to write.")
    ],
    config: Annotated[
        str | None,
        typer.Option(
            help="The released YAML, or a preset's name; without it the tensors tell the shape."
        ),
    ] = None,
    groups: Annotated[
        int | None, typer.Option(min=1, help="Groups; needed without --config (WeTok: bits / 8).")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="ema: the averaged weights, which the scores are of; or raw.")
    ] = "ema",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Of a generator: the model whose tokens it makes, to be noted."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What its tokens carry; the folder's name if not given.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Read a published checkpoint into a model folder.

    Every tensor of the network must be there and be used; what else the file
    holds is set aside and counted.

    Example: wetok import WeTok.ckpt --config general-48x -o models/general-48x
    """
    from wetok import checkpoint as folders
    from wetok.config import WetokError
    from wetok.presets import PRESETS
    from wetok.released.generator import is_generator
    from wetok.released.tokenizer import read_released

    if (out / folders.CONFIG).exists() and not force:
        raise WetokError(f"{out} holds a model: give --force to overwrite it, or another --out")
    if is_generator(checkpoint):
        if config is not None or groups is not None:
            raise WetokError("--config and --groups are for tokenizers: a generator needs neither")
        _import_generator(checkpoint, out, tokenizer, name)
        return
    if tokenizer is not None:
        raise WetokError(f"--tokenizer {tokenizer}: is for generators, {checkpoint} is a tokenizer")
    settings: ModelConfig | Path | None
    if config is None:
        settings = None
    elif config in PRESETS and not Path(config).exists():
        settings = PRESETS[config]
    else:
        settings = Path(config)
    # The reader checks `weights`; a Literal is more than older versions of typer understand.
    released = read_released(checkpoint, settings, groups, weights)  # type: ignore[arg-type]
    network, report = released.network, released.report
    name = name or out.resolve().name
    parameters = sum(parameter.numel() for parameter in network.parameters())
    lines = _lines(network.config, report, parameters)
    folders.save_folder(out, network, name, card=_card(name, checkpoint.name, lines))

    print(f"{checkpoint} -> {out}")
    for line in lines:
        print(f"  {line}")
    print(f"  fingerprint {folders.read_config(out).fingerprint}")
    print(f"try it: wetok reconstruct PHOTO -m {out}")


def _import_generator(checkpoint: Path, out: Path, tokenizer: str | None, name: str | None) -> None:
    from wetok.generate.folder import save_generator
    from wetok.released.generator import read_generator

    made_for = options.load(tokenizer, "cpu").ref if tokenizer else None
    released = read_generator(
        checkpoint,
        tokenizer=made_for.name if made_for else None,
        fingerprint=made_for.fingerprint if made_for else None,
    )
    generator = released.generator
    save_generator(out, generator, name or out.resolve().name)
    config = generator.config
    aside = ", ".join(f"{count} {kind}" for kind, count in released.set_aside.items()) or "nothing"
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    print(f"{checkpoint} -> {out}")
    print(
        f"  autoregressive generator: {config.classes} classes, {config.groups} groups of "
        f"{config.group_bits} bits, {config.width} wide, {config.depth} + {config.group_depth} "
        "blocks"
    )
    print(f"  used: {released.used} tensors, {parameters:,} parameters")
    print(f"  set aside: {aside}")
    if released.step is not None:
        print(f"  training step: {released.step:,}")


def _lines(config: ModelConfig, report: ImportReport, parameters: int) -> list[str]:
    """What was read, for people: on the screen and in the model card."""
    from wetok.presets import PRESETS

    same = [name for name, shape in PRESETS.items() if shape == config]
    names = {"ema": "averaged weights (EMA)", "raw": "raw weights"}
    encoder = names[report.encoder]
    if report.encoder != report.decoder:
        encoder += ", as it was frozen and has no average"
    aside = ", ".join(f"{count} {kind}" for kind, count in report.set_aside.items()) or "nothing"
    lines = [
        f"shape: {config.bits} bits in {config.groups} group{'s' * (config.groups > 1)}, "
        f"factor {config.factor}, "
        f"ratio {config.ratio:.4g}, {'generative' if config.generative else 'deterministic'}"
        + (f" ({', '.join(same)})" if same else ""),
        f"used: {report.used} tensors, {parameters:,} parameters",
        f"encoder: {encoder}",
        f"decoder: {names[report.decoder]}",
        f"set aside: {aside}",
    ]
    if report.ema_decay is not None:
        updates = "updates not counted"
        if report.ema_updates is not None:
            updates = f"{report.ema_updates:,} updates"
        lines.append(f"EMA: decay {report.ema_decay:.6g}, {updates}")
    if report.step is not None:
        lines.append(f"training step: {report.step:,}")
    return lines


def _card(name: str, source: str, lines: list[str]) -> str:
    told = "\n".join(f"- {line}" for line in lines)
    return f"""---
library_name: wetok
tags:
- image-tokenizer
- wetok
---

# {name}

Imported from the published checkpoint `{source}` by `wetok import`.

{told}

The weights are their authors' (WeTok, arXiv 2508.05599, or Open-MAGVIT2, arXiv 2409.04410); the
licence is that of the checkpoint.
"""
