"""The facade: photographs to tokens and back in one call each."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from PIL import Image
from torch import Tensor

from wetok import checkpoint
from wetok.codec.tokens import ModelRef, Tokens
from wetok.config import ModelConfig, WetokError
from wetok.data.images import load_image, to_pil, to_tensor, to_uint8
from wetok.model.decoder import sample_noise
from wetok.model.network import TokenizerNetwork
from wetok.model.pixels import ImageLike, Output, largest, reflected, singles
from wetok.model.running import Direction, Prepared, Way, check, chosen
from wetok.model.tiling import Mode, Tiling, decoded, latent_bands

if TYPE_CHECKING:
    from wetok.codec.tables import CodingTables


class Tokenizer(
    ModelHubMixin,
    library_name="wetok",
    tags=["image-tokenizer", "wetok"],
    license="apache-2.0",
):
    """A network in evaluation mode with what it takes to use it: sizes, seeds, names.

        image -> [-1,1], padded by reflection to a multiple of f -> encoder, quantizer -> Tokens
        Tokens -> code (+ seeded noise where generative) -> decoder -> cropped to the true size

    Images of a batch pass one by one: the ids and pixels of one don't depend on its neighbours.
    `model` is the network itself (`.encoder`, `.quantizer`, `.decoder`); it is taken over, in
    evaluation mode and without gradients. `tables` (from the model's folder, or None) are what its
    tokens are entropy-coded with when they are saved. `precision` is "float32", "bf16", or None
    for what is best for the device (`wetok.model.running`); each call can have its own.
    """

    def __init__(
        self,
        model: TokenizerNetwork,
        name: str = "unnamed",
        tables: CodingTables | None = None,
        precision: str | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.tables = tables
        self.precision = check(precision)
        self._fingerprint: str | None = None
        self._prepared = Prepared(self.model)

    def __repr__(self) -> str:
        shape = self.config
        kind = "generative" if shape.generative else "deterministic"
        return (
            f"Tokenizer({self.name!r}, factor={shape.factor}, bits={shape.bits}, "
            f"groups={shape.groups}, {kind}, device={str(self.device)!r})"
        )

    @property
    def config(self) -> ModelConfig:
        """The network's shape."""
        return self.model.config

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the settings and weights; tokens carry it, `decode` compares it."""
        if self._fingerprint is None:
            self._fingerprint = checkpoint.fingerprint(self.model)
        return self._fingerprint

    @property
    def ref(self) -> ModelRef:
        """Name and fingerprint, as tokens carry them."""
        return ModelRef(self.name, self.fingerprint)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> Tokenizer:
        """Moves the network; returns this tokenizer."""
        self.model.to(device)
        return self

    def way(self, direction: Direction, precision: str | None = None) -> Way:
        """How `direction` runs: by `precision`, else the tokenizer's own, else the device's best.

        Raises:
            WetokError: an unknown precision.
        """
        return chosen(direction, self.device, check(precision) or self.precision)

    @torch.no_grad()
    def encode(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        margins: bool = False,
        tiles: Mode | Tiling = "auto",
        precision: str | None = None,
    ) -> Tokens:
        """Tokens of one image or of several of one size.

        Args:
            image: PIL image, path, uint8 [H,W,3] or [B,H,W,3], float [3,H,W] or [B,3,H,W] in
                [-1,1] (numpy or torch), or a list of these. Any size from 1 x 1 on.
            margins: keep how certain each bit is (`Tokens.margins`).
            tiles: how large images pass: "off", as a whole; "exact", over strips and files, with
                the same ids; "fast", over tiles, with nearly the same; "auto", as a whole where
                the memory is there, else exact. More in `wetok.model.tiling.Tiling`.
            precision: "float32" (the default, whose ids don't depend on the machine), or "bf16",
                which is faster: about one bit in a thousand of the shipped model's differs, and
                `Tokens.uncertain` tells the share of bits of which that may be so.

        Returns:
            Tokens with ids [B,g,h,w], h = ceil(H/f), w = ceil(W/f), and the true size.

        Raises:
            WetokError: not an image, a wrong shape or range, sizes that differ; no room for the
                files of exact tiles; an unknown precision.
        """
        way = self.way("encode", precision)
        network = self._prepared.network("encode", way)
        band = None if way.precision == "float32" else self._prepared.band()
        size, latents = self._latents(image, Tiling.of(tiles), network)
        ids, distances = [], []
        near_zero = bits = 0
        for bands in latents:
            rows: list[Tensor] = []
            row_distances: list[Tensor] = []
            for latent in bands:
                latent = latent.float()
                rows.append(self.model.quantizer(latent).ids.cpu())
                if band is not None:
                    near_zero += int((latent.abs() <= band).sum())
                    bits += latent.numel()
                if margins:
                    near = (latent.abs() * 64).clamp(max=255)
                    row_distances.append(near.to(torch.uint8).cpu())
            ids.append(torch.cat(rows, 2))
            if margins:
                distances.append(torch.cat(row_distances, 2))
        return Tokens(
            torch.cat(ids),
            size,
            self.ref,
            self.config.group_bits,
            margins=torch.cat(distances) if margins else None,
            tables=self.tables,
            uncertain=None if band is None else near_zero / bits,
        )

    def _latents(
        self, image: ImageLike | Sequence[ImageLike], tiling: Tiling, network: TokenizerNetwork
    ) -> tuple[tuple[int, int], Iterator[Iterable[Tensor]]]:
        """The true size, and for each image its latent [1,d,h,w] in bands of rows."""
        mode = tiling.chosen(self.model, largest(image), self.device)
        if mode == "off":
            batch = _batch(image)
            factor, device = self.config.factor, self.device
            padded = (pad_to_multiple(one.to(device), factor) for one in batch.split(1))
            size = (batch.shape[-2], batch.shape[-1])
            return size, ([network.encoder(one)] for one in padded)
        images = singles(image, unlimited=tiling.mode != "auto")
        return largest(images), (
            (latent for _, latent in latent_bands(network, one, tiling, mode)) for one in images
        )

    @torch.no_grad()
    def decode(
        self,
        tokens: Tokens,
        seed: int | Sequence[int] = 0,
        output: Output = "pil",
        *,
        tiles: Mode | Tiling = "auto",
        precision: str | None = None,
    ) -> Any:
        """Images of `tokens`, at their true size.

        Args:
            tokens: what `encode` of this model gave.
            seed: of a generative decoder's noise; one for every image, or one each.
            output: "pil": list of PIL images; "uint8": [B,3,H,W]; "float": [B,3,H,W] in [-1,1].
            tiles: as in `encode`; "exact" gives the pixels of the whole image.
            precision: "float32" or "bf16"; by default bf16 where the device is faster at it, which
                shows in no pixel by more than a few of 255 levels (`docs/performance.md`).

        Raises:
            WetokError: the tokens are another model's, or a wrong number of seeds; no room for
                the files of exact tiles; an unknown precision.
        """
        if output not in ("pil", "uint8", "float"):
            raise WetokError(f"output={output!r} must be 'pil', 'uint8' or 'float'")
        network = self._prepared.network("decode", self.way("decode", precision))
        self.check(tokens)
        seeds = _seeds(seed, len(tokens))
        tiling = Tiling.of(tiles)
        mode = tiling.chosen(self.model, tokens.size, self.device)
        if mode != "off":
            images = [
                decoded(network, ids, tokens.size, seed, output, tiling, mode, tokens.known)
                for ids, seed in zip(tokens.ids.split(1), seeds, strict=True)
            ]
            if output == "pil":
                return images
            return images[0][None] if len(images) == 1 else torch.stack(images)
        code = self.model.quantizer.ids_to_code(tokens.ids.to(self.device))
        if tokens.known is not None:
            code[:, tokens.known * self.config.group_bits :] = 0  # neither sign
        noise = sample_noise(seeds, code.shape[1:], code) if self.config.generative else None
        height, width = tokens.size
        image = network.decode(code, noise)[..., :height, :width].float().clamp(-1, 1)
        if output == "float":
            return image
        return to_uint8(image) if output == "uint8" else to_pil(image)

    def check(self, tokens: Tokens) -> None:
        """Raises WetokError unless `tokens` were made by this very model."""
        if not isinstance(tokens, Tokens):
            raise WetokError(
                f"tokens of type {type(tokens).__name__}: give Tokens, as `encode` makes them and "
                "`Tokens.load` reads them from a file"
            )
        self.check_model(tokens.model)
        positions = tuple(-(-side // self.config.factor) for side in tokens.size)
        if tuple(tokens.ids.shape[-2:]) != positions:
            raise WetokError(
                f"tokens have {list(tokens.ids.shape[-2:])} positions for an image of "
                f"{list(tokens.size)} pixels; this model makes {list(positions)}"
            )

    def check_model(self, made_by: ModelRef) -> None:
        """Raises WetokError unless `made_by` is this very model, or another of the same encoder."""
        if made_by.fingerprint not in (self.fingerprint, *self.model.decodes):
            raise WetokError(
                f"tokens of model {made_by.name!r} ({made_by.fingerprint}) can't be "
                f"decoded by {self.name!r} ({self.fingerprint}); load the model they were made with"
            )

    def save_pretrained(
        self, save_directory: str | Path, *, config: Any = None, **kwargs: Any
    ) -> str | None:
        """Writes a model folder (config.json, model.safetensors, README.md).

        `config` is there for the mixin's sake and not read: the network has its own. The other
        arguments are `ModelHubMixin`'s.
        """
        return super().save_pretrained(save_directory, config=None, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint.save_folder(save_directory, self.model, self.name)
        if self.tables is not None:
            with checkpoint.written_beside(save_directory / checkpoint.TABLES) as beside:
                beside.write_bytes(self.tables.data)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        **hub: Any,
    ) -> Tokenizer:
        """The model of that name: a shipped name, a model folder or a Hub id.

        `hub` are `hf_hub_download`'s cache_dir, force_download, local_files_only and token.
        """
        name_or_path = pretrained_model_name_or_path
        network, name = checkpoint.load_network(name_or_path, revision=revision, **hub)
        tables = checkpoint.find_tables(name_or_path, revision=revision, **hub)
        return cls(network, name, tables)


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    try:
        seeds = [operator.index(seed)] * count  # type: ignore[arg-type]
    except TypeError:
        try:
            seeds = [operator.index(one) for one in seed]  # type: ignore[union-attr]
        except TypeError:
            raise WetokError(f"seed={seed!r} must be an integer or a list of integers") from None
    if len(seeds) != count:
        raise WetokError(f"seed: {len(seeds)} seeds for {count} images; give one each")
    if any(not 0 <= one < 2**63 for one in seeds):
        raise WetokError(f"seed={seed!r} must lie in [0, 2^63)")
    return seeds


def pad_to_multiple(image: Tensor, factor: int) -> Tensor:
    """[...,H,W] continued by reflection, right and below, to multiples of `factor`.

    The reflection repeats where the image is narrower than what is missing, so 1 x 1 works.
    """
    height, width = image.shape[-2:]
    rows = reflected(height, -(-height // factor) * factor).to(image.device)
    columns = reflected(width, -(-width // factor) * factor).to(image.device)
    return image[..., rows[:, None], columns]


def _batch(image: ImageLike | Sequence[ImageLike]) -> Tensor:
    if isinstance(image, (list, tuple)):
        if not image:
            raise WetokError("image=[]: give at least one image")
        batches = [_batch(item) for item in image]
        sizes = sorted({(b.shape[-2], b.shape[-1]) for b in batches})
        if len(sizes) > 1:
            raise WetokError(
                f"image: a batch takes images of one size, not {len(sizes)} (from "
                f"{sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]}); encode them singly"
            )
        return torch.cat(batches)
    if isinstance(image, (str, os.PathLike, Image.Image)):
        image = load_image(image)
    elif not isinstance(image, (np.ndarray, Tensor)):
        raise WetokError(
            f"image of type {type(image).__name__}: give a PIL image, a path, a uint8 array "
            "[H,W,3] or a float tensor [3,H,W] in [-1,1]"
        )
    tensor = to_tensor(image)
    return tensor if tensor.ndim == 4 else tensor[None]
