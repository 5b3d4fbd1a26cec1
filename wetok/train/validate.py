"""Scores on held-out images, to choose a checkpoint by."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from wetok.data.images import find_images, load_image, to_tensor, to_uint8
from wetok.data.transforms import center_crop
from wetok.losses.perceptual import LPIPS
from wetok.model.network import TokenizerNetwork

_SIDE = 256
_EXAMPLES = 8


class ValidationSet:
    """Center crops of 256 pixels of every image in a folder, kept in memory."""

    def __init__(self, folder: Path, factor: int) -> None:
        side = -(-_SIDE // factor) * factor
        crops = [center_crop(load_image(path), side) for path in find_images(folder)]
        self.images = torch.stack([to_tensor(crop) for crop in crops])

    @torch.no_grad()
    def score(self, network: TokenizerNetwork, lpips: LPIPS | None) -> dict[str, float]:
        """Means over the images: `psnr` (dB, 8-bit values), `l1`, `lpips`; `score` = l1 + lpips.

        Image by image, in the network's own precision, without its training-only losses.
        """
        device = next(network.parameters()).device
        training = network.training
        network.eval()
        rows = []
        for image in self.images.split(1):
            image = image.to(device)
            again = _reconstruct(network, image)
            error = to_uint8(again).double() - to_uint8(image).double()
            row = [
                10 * torch.log10(255**2 / error.square().mean()).item(),
                (again - image).abs().mean().item(),
            ]
            if lpips is not None:
                row.append(lpips(again.clamp(-1, 1), image).item())
            rows.append(row)
        network.train(training)
        means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
        scores = dict(zip(("psnr", "l1", "lpips"), means, strict=False))
        return {**scores, "score": scores["l1"] + scores.get("lpips", 0.0)}

    @torch.no_grad()
    def examples(self, network: TokenizerNetwork) -> tuple[Tensor, Tensor]:
        """Some images and their reconstructions, [N,3,256,256] on the CPU, evenly picked."""
        picked = torch.linspace(0, len(self.images) - 1, min(_EXAMPLES, len(self.images))).long()
        device = next(network.parameters()).device
        training = network.training
        network.eval()
        results = [_reconstruct(network, self.images[i : i + 1].to(device)).cpu() for i in picked]
        network.train(training)
        return self.images[picked], torch.cat(results)


def _reconstruct(network: TokenizerNetwork, image: Tensor) -> Tensor:
    return network(image).image
