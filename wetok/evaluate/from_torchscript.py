"""Pairs of TorchScript files, encoder and decoder, as NVIDIA's Cosmos tokenizers are published.

Their calling convention (NVIDIA/Cosmos-Tokenizer, `image_lib.py`): the encoder takes
[B,3,H,W] in [-1,1] and returns a tuple. Of a discrete tokenizer its first entry are the indices,
int [B,h,w] (then the codes and a loss); of a continuous one the latent [B,16,h,w]. The decoder
takes that first entry.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wetok.config import WetokError
from wetok.evaluate.foreign import Options, hash_of_files, there_and_back, told
from wetok.evaluate.systems import Reconstruction

ENCODER, DECODER = "encoder.jit", "decoder.jit"
MULTIPLE = 16  # what Cosmos's own code pads to, for factors 8 and 16


class TorchScriptSystem:
    """An encoder and a decoder in TorchScript.

    Args:
        codes: number of codes of a discrete tokenizer; its bits are log2 of it an index.
        latent_bits: bits that each number of a continuous latent is counted with.
        multiple: images are padded by reflection to multiples of it, and cut off again.
    """

    generative = False

    def __init__(
        self,
        name: str,
        encoder: Any,
        decoder: Any,
        fingerprint: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        codes: int | None = None,
        latent_bits: int | None = None,
        multiple: int = MULTIPLE,
    ) -> None:
        self.name, self.fingerprint, self.device = name, fingerprint, device
        self.encoder, self.decoder, self.dtype = encoder, decoder, dtype
        self.codes, self.latent_bits, self.multiple = codes, latent_bits, multiple
        # Usage is of 2^d' codes, so only such a number has one.
        power = codes is not None and codes > 1 and codes & (codes - 1) == 0
        self.code_shape = (1, codes.bit_length() - 1) if codes is not None and power else None

    def reconstruct(self, image: Tensor, seeds: Sequence[int]) -> Reconstruction:
        result, latent = there_and_back(
            image,
            self.name,
            self.device,
            self.dtype,
            self.multiple,
            self._encode,
            self.decoder,
        )
        if latent.is_floating_point():
            if self.codes is not None:
                raise WetokError(
                    f"{self.name}: levels are for discrete tokenizers; this encoder gives "
                    f"{str(latent.dtype).removeprefix('torch.')}"
                )
            bits = None if self.latent_bits is None else latent.numel() * self.latent_bits
            return Reconstruction(**{**vars(result), "bits": bits})
        if self.codes is None:
            return result
        if latent.numel() and not 0 <= int(latent.min()) <= int(latent.max()) < self.codes:
            raise WetokError(
                f"{self.name}: an index of {int(latent.min())} to {int(latent.max())} is not one "
                f"of {self.codes} codes; give its own levels"
            )
        bits = math.ceil(latent.numel() * math.log2(self.codes))
        ids = latent.reshape(1, 1, *latent.shape[-2:]) if self.code_shape else None
        return Reconstruction(**{**vars(result), "bits": bits, "ids": ids})

    def _encode(self, image: Tensor) -> Tensor:
        output = self.encoder(image)
        latent = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(latent, Tensor):
            raise WetokError(f"{self.name}: the encoder gave {type(latent).__name__}, no tensor")
        return latent


def open_torchscript(
    spec: str, place: str, options: Mapping[str, str], device: torch.device
) -> TorchScriptSystem:
    """`torchscript:DIR` (with encoder.jit and decoder.jit) or `torchscript:ENCODER,DECODER`.

    Options: levels (8,8,8,5,5,5: the product is the number of codes), latent_bits, multiple, dtype.
    Loading runs code from the files.

    Raises:
        WetokError: a file is missing or no TorchScript, or an option is wrong.
    """
    chosen = Options(spec, options, ("levels", "latent_bits", "multiple", "dtype"))
    files = _files(spec, place)
    dtype = chosen.dtype()
    parts = {}
    for name, path in files.items():
        with told(f"model={spec!r}", f"{str(path)!r} is no TorchScript file"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the format as a whole
                part = torch.jit.load(str(path), map_location=device).eval()
            parts[name] = part if dtype is None else part.to(dtype)
    own = next((p.dtype for p in parts["encoder"].parameters() if p.is_floating_point()), None)
    settings = f"torchscript {dtype or own}"
    return TorchScriptSystem(
        spec,
        parts["encoder"],
        parts["decoder"],
        hash_of_files(settings, files),
        device,
        dtype or own or torch.float32,
        _codes(chosen),
        _whole(chosen, "latent_bits"),
        _whole(chosen, "multiple") or MULTIPLE,
    )


def _files(spec: str, place: str) -> dict[str, Path]:
    if Path(place).is_dir():
        paths = [Path(place) / ENCODER, Path(place) / DECODER]
    else:
        paths = [Path(one).expanduser() for one in place.split(",")]
    if len(paths) != 2:
        raise WetokError(
            f"model={spec!r}: give a folder with {ENCODER} and {DECODER}, or two files "
            "ENCODER,DECODER"
        )
    for path in paths:
        if not path.is_file():
            raise WetokError(f"model={spec!r}: there is no file {str(path)!r}")
    return dict(zip(("encoder", "decoder"), paths, strict=True))


def _codes(chosen: Options) -> int | None:
    text = chosen.text("levels")
    if text is None:
        return None
    try:
        levels = [int(one) for one in text.split(",")]
        if min(levels) < 2:
            raise ValueError
    except ValueError:
        raise WetokError(
            f"model={chosen.spec!r}: levels={text!r} must be whole numbers above 1, such as "
            "8,8,8,5,5,5"
        ) from None
    return math.prod(levels)


def _whole(chosen: Options, key: str) -> int | None:
    value = chosen.number(key, int, None)
    return None if value is None else int(value)
