"""Scores on held-out images, to choose a checkpoint by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from wetok.data.images import find_images, load_image, to_tensor, to_uint8
from wetok.data.transforms import center_crop
from wetok.distributed import all_reduce_sum_, rank, world_size
from wetok.losses.perceptual import LPIPS
from wetok.model.decoder import sample_noise
from wetok.model.network import TokenizerNetwork

Item = TypeVar("Item")

SIDE = 256
MOST = 1000
"""Images of a validation folder that are used, evenly picked."""


class ValidationSet:
    """Center crops of 256 pixels (the next multiple of the factor), kept in memory as uint8.

    Raises:
        WetokError: an image can't be read; a score that quietly left it out would mislead.
    """

    def __init__(self, folder: Path, factor: int) -> None:
        side = -(-SIDE // factor) * factor
        paths = evenly(find_images(folder), MOST)
        self.crops = [np.asarray(center_crop(load_image(path), side)) for path in paths]

    def __len__(self) -> int:
        return len(self.crops)

    @torch.no_grad()
    def score(self, network: TokenizerNetwork, lpips: LPIPS | None) -> dict[str, float]:
        """Means over the images: `psnr` (dB, 8-bit values), `l1`, `lpips`; `score` = l1 + lpips.

        Image by image, in the network's own precision, the noise of a generative decoder seeded by
        the image's number. The images are dealt to the processes, each of which must call it.
        """
        rows, device = [], next(network.parameters()).device
        # As often on every process, for sharded weights are gathered in each pass.
        for number in range(rank(), -(-len(self) // world_size()) * world_size(), world_size()):
            index = min(number, len(self) - 1)
            image = to_tensor(self.crops[index])[None].to(device)
            again = reconstruct(network, image, first_seed=index)
            error = to_uint8(again).double() - to_uint8(image).double()
            row = {
                "psnr": 10 * torch.log10(255**2 / error.square().mean().clamp_min(1e-10)),
                "l1": (again - image).abs().mean(),
            }
            if lpips is not None:
                row["lpips"] = lpips(again, image)[0]
            if number == index:
                rows.append(torch.stack([value.double() for value in row.values()]))
        names = list(row)
        sums = torch.stack(rows).sum(0) if rows else torch.zeros(len(names)).double().to(device)
        means = dict(zip(names, (all_reduce_sum_(sums) / len(self)).tolist(), strict=True))
        return {**means, "score": means["l1"] + means.get("lpips", 0.0)}

    def examples(self, count: int) -> Tensor:
        """So many of the images, evenly picked, [count,3,side,side] in [-1,1]."""
        return to_tensor(np.stack(evenly(self.crops, count)))


@torch.no_grad()
def reconstruct(network: TokenizerNetwork, images: Tensor, first_seed: int = 0) -> Tensor:
    """images [B,3,H,W] in [-1,1] through `network` and back, one by one; clamped to [-1,1].

    A generative decoder's noise has the seeds first_seed, first_seed + 1, ...
    """
    device, config, results = next(network.parameters()).device, network.config, []
    with _evaluating(network):
        for seed, image in enumerate(images.split(1), first_seed):
            noise = None
            if config.generative:
                sides = (side // config.factor for side in image.shape[-2:])
                noise = sample_noise([seed], (config.bits, *sides), image).to(device)
            results.append(network(image.to(device), noise).image.clamp(-1, 1))
    return torch.cat(results)


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """All `items`, or `most` of them at even distances."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


@contextmanager
def _evaluating(network: TokenizerNetwork) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():  # a frozen part may differ from the rest
            module.training = training
