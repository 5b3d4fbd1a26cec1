"""Autoencoders in diffusers' layout: SD-VAE, FLUX-VAE and their like, through diffusers itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wetok.config import WetokError, near
from wetok.evaluate.foreign import Options, hash_of_state, there_and_back, told
from wetok.evaluate.systems import Reconstruction

KINDS = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny")


class DiffusersSystem:
    """A continuous autoencoder; of a variational one the posterior's mode, so nothing is random.

    A scaling or shift of the latents belongs to a diffusion model and plays no part.

    Args:
        latent_bits: bits that each number of the latent is counted with; None, then no size is
            told, for a continuous latent has none of its own.
    """

    generative = False
    code_shape: tuple[int, int] | None = None

    def __init__(
        self, name: str, model: Any, device: torch.device, latent_bits: int | None = None
    ) -> None:
        self.name, self.device, self.latent_bits = name, device, latent_bits
        self.model = model.to(device).eval().requires_grad_(False)
        self.dtype: torch.dtype = next(self.model.parameters()).dtype
        self.factor = downsampling(self.model)
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Over the class, its settings and every weight, as it computes with them."""
        if self._fingerprint is None:
            config = {key: value for key, value in self.model.config.items() if key[0] != "_"}
            settings = json.dumps(config, sort_keys=True, default=str)
            self._fingerprint = hash_of_state(
                f"{type(self.model).__name__} {settings}", self.model.state_dict()
            )
        return self._fingerprint

    def reconstruct(self, image: Tensor, seeds: Sequence[int]) -> Reconstruction:
        result, latent = there_and_back(
            image, self.name, self.device, self.dtype, self.factor, self._encode, self._decode
        )
        if self.latent_bits is None:
            return result
        return Reconstruction(**{**vars(result), "bits": latent.numel() * self.latent_bits})

    def _encode(self, image: Tensor) -> Tensor:
        encoded = self.model.encode(image, return_dict=False)[0]
        latent: Tensor = (
            encoded.mode()
            if hasattr(encoded, "mode") and not isinstance(encoded, Tensor)
            else encoded
        )
        return latent

    def _decode(self, latent: Tensor) -> Tensor:
        image: Tensor = self.model.decode(latent, return_dict=False)[0]
        return image


def downsampling(model: Any) -> int:
    """The factor of one of `KINDS`."""
    config = model.config
    if "block_out_channels" in config:
        return int(2 ** (len(config["block_out_channels"]) - 1))
    return int(2 ** (len(config["encoder_block_out_channels"]) - 1))


def open_diffusers(
    spec: str, place: str, options: Mapping[str, str], device: torch.device
) -> DiffusersSystem:
    """`diffusers:FOLDER_OR_HUB_ID`; options subfolder, revision, dtype, latent_bits.

    Weights are read from safetensors files only, which hold no code.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
        WetokError: no such model, or one that is no autoencoder that is known here.
    """
    import diffusers

    chosen = Options(spec, options, ("subfolder", "revision", "dtype", "latent_bits"))
    bits = chosen.number("latent_bits", int, None)
    dtype = chosen.dtype() or torch.float32
    subfolder = chosen.text("subfolder")
    folder = Path(place)
    if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", place):
        raise WetokError(f"model={spec!r}: {place!r} is no folder, and no Hub id (user/model)")
    pipeline = (folder / "vae" / "config.json").is_file() and not (folder / "config.json").exists()
    if subfolder is None and pipeline:
        subfolder = "vae"
    at: dict[str, Any] = {"subfolder": subfolder, "revision": chosen.text("revision")}
    at = {key: value for key, value in at.items() if value is not None}
    where = f"model={spec!r}"
    with told(where, "no autoencoder in diffusers' layout can be read"):
        config: Any = diffusers.AutoencoderKL.load_config(place, **at)
        kind = str(config.get("_class_name"))
        if kind not in KINDS:
            raise WetokError(
                f"{where}: a {kind} is no autoencoder that is known{near(kind, KINDS)}"
            )
        model = getattr(diffusers, kind).from_pretrained(
            place, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False, **at
        )
    return DiffusersSystem(spec, model, device, None if bits is None else int(bits))
