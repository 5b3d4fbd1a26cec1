"""A small model, pictures, and a job over them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wetok import checkpoint
from wetok.config import ModelConfig
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer
from wetok.tokenize.inputs import Inputs
from wetok.tokenize.local import tokenize
from wetok.tokenize.output import Output
from wetok.tokenize.plan import Plan, about_model, make_plan
from wetok.tokenize.views import Preprocessing

SIDE = 32


def network(seed: int = 0, **changes: Any) -> TokenizerNetwork:
    """A small one of random weights."""
    shape = {"bits": 8, "groups": 2, "channels": 32, "mults": (1, 1), "blocks": 1, "patch": 2}
    torch.manual_seed(seed)
    made = TokenizerNetwork(ModelConfig.model_validate(shape | changes))
    with torch.no_grad():
        # As it is drawn, neighbouring images would have nearly the same ids.
        for parameter in made.encoder.parameters():
            parameter.mul_(1.5)
    return made


def model_folder(path: Path, seed: int = 0, **changes: Any) -> Path:
    checkpoint.save_folder(path, network(seed, **changes), path.name)
    return path


def pixels(number: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A picture that no other number gives, uint8 [H,W,3]."""
    return np.random.default_rng((7, number)).integers(0, 256, (height, width, 3), np.uint8)


def png(number: int, height: int = SIDE, width: int = SIDE) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number, height, width)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


BROKEN: dict[str, Callable[[int], bytes]] = {
    "cut off": lambda number: png(number)[:200],
    "empty": lambda number: b"",
    "no image": lambda number: b"this is a text",
}


def write_pictures(folder: Path, count: int, broken: int = 0) -> set[str]:
    """`count` PNGs in two subfolders, of which `broken` can't be decoded; returns these' keys."""
    kinds = list(BROKEN.values())
    bad = {int(n) for n in np.linspace(3, count - 2, broken)} if broken else set()
    keys = set()
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        key = f"{'ab'[number % 2]}/{number:05d}.png"
        data = kinds[number % 3](number) if number in bad else png(number)
        (folder / key).write_bytes(data)
        keys |= {key} if number in bad else set()
    return keys


def planned(inputs: Inputs, tokenizer: Tokenizer, part_size: int = 5, **options: Any) -> Plan:
    preprocessing = options.pop("preprocessing", Preprocessing(SIDE))
    about = about_model(tokenizer)
    return make_plan(inputs, about, preprocessing, sources=("x",), part_size=part_size, **options)


def run(
    out: Path, inputs: Inputs, tokenizer: Tokenizer, workers: int = 0, **options: Any
) -> tuple[Plan, Output]:
    """A whole job, from where it is."""
    plan, output = planned(inputs, tokenizer, **options), Output(out)
    with output.locked():
        output.begin(plan)
        tokenize(plan, inputs, tokenizer, output, output.missing(plan), workers=workers)
        output.finish(plan)
    return plan, output


def failed(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: line["reason"] for line in lines}


def files(out: Path) -> dict[str, bytes]:
    """All of a job's output, receipts too, by name."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "lock"
    }
