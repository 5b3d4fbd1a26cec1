"""What a generator's run will take, before it takes it."""

from __future__ import annotations

import torch

from wetok.data.tokens import TokenShards
from wetok.generate.folder import build
from wetok.train.generator_config import GeneratorTrainConfig
from wetok.train.start import naming
from wetok.train.token_data import Classes


def generator_lines(config: GeneratorTrainConfig) -> list[str]:
    """For a person: the generator, its parameters, the tokens, the steps.

    Raises:
        WetokError: shards that can't be read, or a generator that can't be made for them.
    """
    tokens, run = config.tokens, config.run
    with naming("tokens.train"):
        train = tokens.train
        shards = TokenShards([train] if isinstance(train, str) else list(train))
    classes = Classes(shards, tokens.label, tokens.classes)
    shape = config.generator.of(shards.about, classes.count, classes.names)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(shape).parameters())
    return [
        f"{shape.kind} generator: {shape.width} wide, {shape.depth} + {shape.group_depth} blocks, "
        f"{parameters:,} parameters",
        f"{shape.grid[0]} x {shape.grid[1]} positions of {shape.groups} groups of "
        f"{shape.group_bits} bits, {classes.count or 'no'} classes",
        f"weights, average and optimizer: {16 * parameters / 2**30:.2f} GB in all",
        f"{len(shards):,} images' tokens of {shards.about.model} ({shards.about.fingerprint})",
        f"{run.steps:,} steps of {tokens.batch}: {run.steps * tokens.batch / len(shards):.1f} "
        "epochs",
    ]
