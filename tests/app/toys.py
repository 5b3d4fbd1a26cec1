"""Small models, generators and photographs for the tests of the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wetok.checkpoint import save_folder
from wetok.config import ModelConfig
from wetok.generate.config import GeneratorConfig
from wetok.generate.folder import build, save_generator
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer


def network(generative: bool = False, bits: int = 8, groups: int = 2) -> TokenizerNetwork:
    """Random weights; the noise of a generative one has some too, so that seeds differ."""
    torch.manual_seed(bits + generative)
    config = ModelConfig(
        bits=bits,
        groups=groups,
        channels=8,
        mults=(1, 1),
        blocks=1,
        patch=2,
        generative=generative,
    )
    found = TokenizerNetwork(config)
    if generative:
        with torch.no_grad():
            found.decoder.conv_in.weight[:, bits:].normal_(std=0.2)
    return found


def tokenizer(name: str = "toy", **shape: int | bool) -> Tokenizer:
    return Tokenizer(network(**shape), name)  # type: ignore[arg-type]


def save_model(folder: Path, name: str = "toy", **shape: int | bool) -> Path:
    save_folder(folder, network(**shape), name)  # type: ignore[arg-type]
    return folder


def save_maker(folder: Path, of: Tokenizer) -> Path:
    """A generator of 4 x 6 positions and two classes."""
    torch.manual_seed(5)
    config = GeneratorConfig(
        groups=of.config.groups,
        group_bits=of.config.group_bits,
        grid=(4, 6),
        classes=2,
        class_names=("day", "night"),
        width=16,
        depth=1,
        group_depth=1,
        heads=2,
        tokenizer=of.name,
        fingerprint=of.fingerprint,
    )
    save_generator(folder, build(config), "toy-maker")
    return folder


def photo(seed: int = 0, size: tuple[int, int] = (61, 44)) -> Image.Image:
    """Smooth noise, RGB."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def saved(path: Path, seed: int = 0, size: tuple[int, int] = (61, 44)) -> Path:
    photo(seed, size).save(path)
    return path
