"""Scores of a tokenizer on photographs, image by image, in constant memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wetok.config import WetokError
from wetok.data.images import load_image, to_tensor, to_uint8
from wetok.evaluate.pixels import psnr, ssim
from wetok.evaluate.protocols import Protocol
from wetok.losses.perceptual import LPIPS
from wetok.model.tokenizer import Tokenizer
from wetok.model.usage import UsageCounter


class Evaluation:
    """Runs images through a tokenizer and keeps means, usage counts and each image's scores.

    Scores: PSNR (dB) and SSIM (scikit-image's definition) on 8-bit values, LPIPS of each network
    given (on the 8-bit reconstruction, in [-1,1]), usage of every group's codes, dead bits.
    """

    def __init__(
        self, tokenizer: Tokenizer, protocol: Protocol, lpips: Sequence[LPIPS] = (), seed: int = 0
    ) -> None:
        self.tokenizer, self.protocol, self.seed = tokenizer, protocol, seed
        self.lpips = [network.to(tokenizer.device) for network in lpips]
        config = tokenizer.config
        self.usage = UsageCounter(config.groups, config.group_bits)
        self.images: list[dict[str, Any]] = []
        self.failures: list[str] = []

    def add(self, path: Path) -> dict[str, Any]:
        """Scores the image at `path`.

        Raises:
            WetokError: it can't be read, or is too small for a score; it then counts nowhere.
        """
        image = self.protocol.prepare(load_image(path))
        began = time.perf_counter()
        tokens = self.tokenizer.encode(image)
        encoded = time.perf_counter()
        again = self.tokenizer.decode(tokens, seed=self.seed, output="uint8")
        decoded = time.perf_counter()
        original = to_uint8(to_tensor(image)[None]).to(again.device)
        scores = {
            "image": path.name,
            "width": image.width,
            "height": image.height,
            "bits": tokens.ids[0].numel() * tokens.group_bits,
            "psnr": psnr(again, original).item(),
            "ssim": ssim(again, original).item(),
            **{f"lpips-{net.net}": _lpips(net, again, original) for net in self.lpips},
            "encode_seconds": encoded - began,
            "decode_seconds": decoded - encoded,
        }
        self.usage.update(tokens.ids)
        self.images.append(scores)
        return scores

    def add_all(self, paths: Iterable[Path], step: Callable[[], None] = lambda: None) -> None:
        """Scores every image; what fails is listed in `failures`, one line each, the rest go on."""
        for path in paths:
            try:
                self.add(path)
            except WetokError as error:
                text = str(error)
                self.failures.append(text if path.name in text else f"{path}: {text}")
            step()

    def summary(self) -> dict[str, Any]:
        """Means over the images and totals, with what is needed to know what they mean.

        Raises:
            WetokError: no image was scored.
        """
        if not self.images:
            raise WetokError("no image could be scored; see the failures listed above")
        pixels = sum(row["width"] * row["height"] for row in self.images)
        names = [
            name
            for name in self.images[0]
            if name in ("psnr", "ssim") or name.startswith("lpips-") or name.endswith("_seconds")
        ]
        means = {name: sum(row[name] for row in self.images) / len(self.images) for name in names}
        return {
            "model": self.tokenizer.name,
            "fingerprint": self.tokenizer.fingerprint,
            "protocol": self.protocol.name,
            "protocol_description": self.protocol.description,
            "lpips_weights": {net.net: net.weights_hash for net in self.lpips},
            "images": len(self.images),
            "failed": len(self.failures),
            "seed": self.seed,
            "bpp": sum(row["bits"] for row in self.images) / pixels,
            **means,
            "usage": self.usage.usage(),
            "dead_bits": self.usage.dead_bits(),
        }


@torch.no_grad()
def _lpips(network: LPIPS, image: Tensor, reference: Tensor) -> float:
    return network(image.float() / 127.5 - 1, reference.float() / 127.5 - 1).item()
