"""What can be evaluated: anything that turns an image into something small and back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from wetok.codec.tokens import Tokens
from wetok.evaluate import protocols
from wetok.evaluate.containers import payload_bytes
from wetok.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reconstruction:
    """One image as it came back, once for each seed, with what it took."""

    images: list[Tensor]
    """float32 [1,3,H,W] in [-1,1], one a seed, of the image's own size."""
    bits: int | None = None
    """Size with codes of fixed length, where there are codes."""
    coded_bytes: int | None = None
    """Size as a file, whole: with its header, its checksum and whatever else is in it."""
    payload_bytes: int | None = None
    """How much of that is the image itself (`wetok.evaluate.containers`)."""
    ids: Tensor | None = None
    """[1,g,h,w], where there are any."""
    encode_seconds: float | None = None
    decode_seconds: float | None = None
    """Of one image: the first. None where nobody measured."""


class System(Protocol):
    """A tokenizer, a codec, or another's model."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever its results may: of weights, or of the settings and library version."""
        ...

    @property
    def generative(self) -> bool:
        """Whether another seed gives another image."""
        ...

    @property
    def code_shape(self) -> tuple[int, int] | None:
        """Groups and bits a group of its ids; None for a system without ids."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its images come back."""
        ...

    def reconstruct(self, image: Tensor, seeds: Sequence[int]) -> Reconstruction:
        """There and back: [1,3,H,W] in [-1,1] on a CPU.

        Raises:
            WetokError: it can't take this image; which then counts as failed.
        """
        ...


class FileSystem(System, Protocol):
    """A system that knows images by their files, such as a folder of another's reconstructions."""

    def reconstruct_file(
        self, path: Path, image: Image.Image, protocol: protocols.Protocol
    ) -> Reconstruction:
        """What it has for the file `path`, brought to what `protocol` makes of `image`.

        Args:
            path: of the original; for one from memory, its name.
            image: what `protocol.load` read from it.

        Raises:
            WetokError: it has nothing for this image, which then counts as failed.
        """
        ...


class TokenizerSystem:
    """A wetok model as a `System`, in float32 both ways: scores don't depend on the processor."""

    precision = "float32"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.generative = tokenizer.config.generative
        self.code_shape: tuple[int, int] | None
        self.code_shape = tokenizer.config.groups, tokenizer.config.group_bits

    @property
    def name(self) -> str:
        return self.tokenizer.name

    @property
    def fingerprint(self) -> str:
        return self.tokenizer.fingerprint

    @property
    def device(self) -> torch.device:
        return self.tokenizer.device

    def reconstruct(self, image: Tensor, seeds: Sequence[int]) -> Reconstruction:
        began = now(self.device)
        tokens = self.tokenizer.encode(image, precision=self.precision)
        encoded = now(self.device)
        images = [self._decoded(tokens, seeds[0])]
        decoded = now(self.device)
        images += [self._decoded(tokens, seed) for seed in seeds[1:]]
        file = tokens.to_bytes()
        return Reconstruction(
            images,
            bits=tokens.ids[0].numel() * tokens.group_bits,
            coded_bytes=len(file),
            payload_bytes=payload_bytes(file),
            ids=tokens.ids,
            encode_seconds=encoded - began,
            decode_seconds=decoded - encoded,
        )

    def _decoded(self, tokens: Tokens, seed: int) -> Tensor:
        image: Tensor = self.tokenizer.decode(
            tokens, seed=seed, output="float", precision=self.precision
        )
        return image


def now(device: torch.device) -> float:
    """Seconds on a clock, once `device` has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
