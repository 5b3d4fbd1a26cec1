"""A generator's folder: config.json + model.safetensors, as a tokenizer's, of another type."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from wetok.checkpoint import (
    CARD,
    CONFIG,
    NetworkFolder,
    Precision,
    fingerprint_of,
    read_settings,
    read_weights,
    stored,
    write_folder,
)
from wetok.config import WetokError, validate
from wetok.generate.autoregressive import AutoregressiveGenerator
from wetok.generate.config import GeneratorConfig
from wetok.generate.masked import MaskedGenerator

Generator = AutoregressiveGenerator | MaskedGenerator


class GeneratorFolderConfig(NetworkFolder):
    """What config.json says of a generator."""

    model_type: Literal["wetok-generator"] = "wetok-generator"
    network: GeneratorConfig


def build(config: GeneratorConfig) -> Generator:
    """A generator with random weights."""
    if config.kind == "masked":
        return MaskedGenerator(config)
    return AutoregressiveGenerator(config)


def save_generator(
    folder: str | Path, generator: Generator, name: str, precision: Precision = "float32"
) -> None:
    """Writes a generator's folder, complete or not at all; other files in it stay.

    Args:
        name: what people call it.
        precision: type of the stored weights.

    Raises:
        WetokError: a bad name, weights that overflow `precision`, a folder that can't be written.
    """
    state = stored(generator, precision)
    config = validate(
        GeneratorFolderConfig,
        {
            "name": name,
            "network": generator.config.model_dump(),
            "precision": precision,
            "fingerprint": fingerprint_of(generator.config, state),
        },
    )
    card = None
    if not os.path.exists(Path(folder) / CARD):
        card = _card(config, sum(tensor.numel() for tensor in state.values()))
    write_folder(Path(folder), config.model_dump_json(indent=2) + "\n", state, card)


def load_generator(folder: str | Path) -> tuple[Generator, str]:
    """The generator in `folder`, in evaluation mode, and its name.

    Raises:
        WetokError: no such folder, broken or missing files, weights of another network.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise WetokError(f"generator {str(folder)!r}: there is no such folder")
    config = read_settings(path, GeneratorFolderConfig)

    def plausible(tensors: int) -> Generator:
        """Refuses settings of far more layers than there are tensors before building any."""
        asked = max(config.network.depth, config.network.group_depth, config.network.groups)
        if asked > tensors:
            raise WetokError(
                f"{folder}: {CONFIG} asks for {asked} layers, and the weights are {tensors} tensors"
            )
        return build(config.network)

    generator = read_weights(path, str(folder), plausible, config.network, config.fingerprint)
    return generator, config.name


def _card(config: GeneratorFolderConfig, parameters: int) -> str:
    network = config.network
    conditions = f"{network.classes} classes" if network.classes else "none"
    return f"""---
library_name: wetok
tags:
- image-generation
- wetok
---

# {config.name}

A generator of image tokens for [wetok](https://arxiv.org/abs/2508.05599).

| setting | value |
| --- | --- |
| kind | {network.kind} |
| tokenizer | {network.tokenizer or "not told"} {network.fingerprint or ""} |
| positions, groups, bits a group | {network.grid[0]} x {network.grid[1]}, {network.groups}, \
{network.group_bits} |
| conditions | {conditions} |
| parameters | {parameters:,} |
| fingerprint | {config.fingerprint} |
"""
