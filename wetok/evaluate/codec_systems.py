"""Codecs as systems to score: at as many bytes as a model took for the same image, or at a quality.

An image at equal bytes shows what one would have got for the same space. Where even a codec's
smallest file is larger, that file is taken, and whoever reports it must say so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wetok.config import WetokError
from wetok.data.images import to_pil, to_tensor
from wetok.evaluate.codecs import Codec, Coded, Encodings
from wetok.evaluate.containers import payload_bytes
from wetok.evaluate.systems import Reconstruction

NO_SIZE = "there is no size to match"


class Encoder:
    """The files of the image at hand, so that all systems of one codec share the search."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._image: Tensor | None = None
        self._encodings: Encodings | None = None

    def of(self, image: Tensor) -> Encodings:
        """For [1,3,H,W] in [-1,1]; those of the same tensor are kept until the next comes."""
        if self._encodings is None or self._image is not image:
            self._image, self._encodings = image, Encodings(self.codec, to_pil(image)[0])
        return self._encodings


class _CodecSystem:
    """What both kinds have in common; `System` says what the attributes are."""

    generative = False
    code_shape = None

    def __init__(self, encoder: Encoder, device: torch.device, what: str) -> None:
        self.encoder, self.device = encoder, device
        self.name = f"{encoder.codec.name} {what}"
        known = f"{encoder.codec.fingerprint} {what}"
        self.fingerprint = hashlib.sha256(known.encode()).hexdigest()[:16]

    def choose(self, encodings: Encodings) -> Coded:
        """The file to score."""
        raise NotImplementedError

    def reconstruct(self, image: Tensor, seeds: Sequence[int]) -> Reconstruction:
        coded = self.choose(self.encoder.of(image))
        again = to_tensor(coded.image)[None].to(self.device)
        return Reconstruction(
            [again] * len(seeds),
            coded_bytes=len(coded.file),
            payload_bytes=payload_bytes(coded.file),
            encode_seconds=coded.encode_seconds,
            decode_seconds=coded.decode_seconds,
        )


class AtBytes(_CodecSystem):
    """A codec at the highest quality whose file is no larger than `budget` says for the image.

    Args:
        budget: bytes for the image at hand; None where there is no such size.
        of: whose bytes these are; name and fingerprint.
    """

    def __init__(
        self,
        encoder: Encoder,
        budget: Callable[[], int | None],
        of: tuple[str, str],
        device: torch.device,
    ) -> None:
        super().__init__(encoder, device, f"at the bytes of {' '.join(of)}")
        self.name, self.budget, self.of = encoder.codec.name, budget, of[0]

    def choose(self, encodings: Encodings) -> Coded:
        budget = self.budget()
        if budget is None:
            raise WetokError(f"{NO_SIZE}: {self.of!r} made none of this image")
        return encodings.at_bytes(budget)


class AtQuality(_CodecSystem):
    """A codec at one quality for all images."""

    def __init__(self, encoder: Encoder, quality: int, device: torch.device) -> None:
        super().__init__(encoder, device, f"at quality {quality}")
        self.quality = quality

    def choose(self, encodings: Encodings) -> Coded:
        return encodings.at_quality(self.quality)
