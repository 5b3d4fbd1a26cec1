"""Latents to look for Proposition 3.1 in: the shipped model's, correlated and independent ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wetok import checkpoint
from wetok.data.images import find_images
from wetok.evaluate.approximation import approximations
from wetok.evaluate.protocols import protocol

MODEL = "tiny-48x"
PROTOCOL = "modern-256"
POSITIONS = 65536
"""Of the latents that are made up."""
SCALE = 0.5
"""Their standard deviation: most bits are sure of themselves, as a trained model's are."""
CORRELATION = 0.9


class Case(NamedTuple):
    """Latents of one kind, of which there are several samples."""

    kind: str
    sample: str
    latent: Tensor
    """[N, d]."""


KINDS = {
    "model-8": f"{MODEL} on photographs, each group of 8 bits",
    "model-16": f"{MODEL} on photographs, each pair of groups",
    "model-16-shuffled": "the same, each bit's positions shuffled",
    "correlated": f"made up, neighbouring channels correlated ({CORRELATION})",
    "correlated-apart": "the same, channels in random order",
    "correlated-12": f"made up, 12 channels, neighbours correlated ({CORRELATION})",
    "independent": "made up, independent",
}


def approximate_all(
    photos: Path, seeds: Sequence[int], tell: Callable[[str], None], model: str = MODEL
) -> list[dict[str, Any]]:
    """One record for each sample of each kind, with the entropies of all numbers of groups."""
    records = []
    for case in (*_of_model(model_latents(model, photos)), *_made_up(seeds)):
        results = approximations(case.latent)
        records.append(
            {
                "kind": case.kind,
                "sample": case.sample,
                "bits": case.latent.shape[1],
                "positions": len(case.latent),
                "exact": results[0].exact,
                "groups": [result.groups for result in results],
                "grouped": [result.grouped for result in results],
                "error": [result.error for result in results],
            }
        )
        last = results[-1]
        tell(f"{KINDS[case.kind]}, {case.sample}: BSQ off by {last.error:.4f} of {last.exact:.3f}")
    return records


@torch.no_grad()
def model_latents(model: str, photos: Path) -> Tensor:
    """The latents [N, d] of every position of the photographs' center crops.

    Raises:
        WetokError: no such model, or a photograph can't be read.
    """
    tokenizer, chosen = checkpoint.load(model), protocol(PROTOCOL)
    rows = []
    for path in find_images([photos]):
        image = chosen.to_float(chosen.prepare(chosen.load(path)))[None]
        rows.append(tokenizer.model.encoder(image)[0].flatten(1).T)
    return torch.cat(rows)


def _of_model(latents: Tensor, group_bits: int = 8) -> Iterator[Case]:
    groups = latents.split(group_bits, dim=1)
    for index, group in enumerate(groups):
        yield Case("model-8", f"group {index}", group)
    for one, other in itertools.combinations(range(len(groups)), 2):
        pair = torch.cat([groups[one], groups[other]], 1)
        yield Case("model-16", f"groups {one} and {other}", pair)
    generator = torch.Generator().manual_seed(0)
    for one, other in itertools.combinations(range(len(groups)), 2):
        pair = torch.cat([groups[one], groups[other]], 1)
        yield Case("model-16-shuffled", f"groups {one} and {other}", shuffled(pair, generator))


def _made_up(seeds: Sequence[int]) -> Iterator[Case]:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        near = correlated(16, POSITIONS, CORRELATION, generator)
        yield Case("correlated", f"seed {seed}", near)
        order = torch.randperm(16, generator=generator)
        yield Case("correlated-apart", f"seed {seed}", near[:, order])
        yield Case("correlated-12", f"seed {seed}", near[:, :12])
        alone = correlated(16, POSITIONS, 0, generator)
        yield Case("independent", f"seed {seed}", alone)


def correlated(bits: int, positions: int, between: float, generator: torch.Generator) -> Tensor:
    """Normal latents [N, d], channels i and j correlated by `between` to the power |i - j|."""
    fresh = torch.randn(positions, bits, generator=generator)
    columns = [fresh[:, 0]]
    for channel in range(1, bits):
        columns.append(between * columns[-1] + (1 - between**2) ** 0.5 * fresh[:, channel])
    return SCALE * torch.stack(columns, 1)


def shuffled(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Each channel in an order of its own: its bit's share stays, what it tells of others goes.

    What is left of an error is what a finite number of positions alone makes of independent bits.
    """
    return torch.stack(
        [
            latents[torch.randperm(len(latents), generator=generator), channel]
            for channel in range(latents.shape[1])
        ],
        1,
    )
