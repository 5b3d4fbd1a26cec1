"""A tokenizer in the place of diffusers' `AutoencoderKL`: its codes are what diffuses.

    image [B,3,H,W] in [-1,1] -> encode(x).latent_dist.mode() -> code [B,d,h,w] in {-1,+1}
    latents [B,d,h,w], any numbers -> their signs -> decode(z).sample -> image, about [-1,1]

Imported by whoever uses it, as it needs diffusers: `pip install 'wetok[diffusers]'`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from wetok.checkpoint import load
from wetok.codec.tokens import Tokens
from wetok.config import ModelConfig, WetokError, validate
from wetok.model.decoder import sample_noise
from wetok.model.network import TokenizerNetwork
from wetok.model.tiling import Mode
from wetok.model.tokenizer import Tokenizer


class CodeDistribution:
    """The posterior of an image: one code with certainty."""

    def __init__(self, code: Tensor) -> None:
        self.code = self.mean = code
        self.std = self.var = torch.zeros_like(code)
        self.deterministic = True

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The code, [B,d,h,w] in {-1,+1}; nothing is drawn."""
        return self.code

    def mode(self) -> Tensor:
        """The same."""
        return self.code

    def kl(self, other: Any = None) -> Tensor:
        """Bits have no Gaussian prior to be near to: 0 for each image, [B]."""
        return self.code.new_zeros(len(self.code))


@dataclass
class EncoderOutput(BaseOutput):
    """What `encode` gives."""

    latent_dist: CodeDistribution


@dataclass
class DecoderOutput(BaseOutput):
    """What `decode` gives."""

    sample: Tensor


class WetokAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as every model there
    """A tokenizer behind the interface of `AutoencoderKL`; make it by `from_tokenizer`.

    `config.scaling_factor` is 1: codes have mean square 1 as they are. `config.latent_channels` is
    d, and `config.block_out_channels` has as many entries as pipelines need to find f.

    Args:
        network: the settings of the network, as config.json of a model folder has them.
        name: what tokens of the model carry.
        scaling_factor: what pipelines multiply latents with.
        binarize: decode the signs of latents; else the numbers as they are, which the decoder was
            not trained on.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        network: dict[str, Any],
        name: str = "unnamed",
        scaling_factor: float = 1.0,
        binarize: bool = True,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int | None = None,
        block_out_channels: tuple[int, ...] | None = None,
        shift_factor: float | None = None,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        settings = validate(ModelConfig, dict(network))
        levels = settings.factor.bit_length()
        if settings.factor != 2 ** (levels - 1):
            raise WetokError(
                f"factor={settings.factor}: diffusers knows autoencoders of factors 2, 4, 8, ..."
            )
        self.net = TokenizerNetwork(settings)
        widths = [settings.channels * mult for mult in settings.mults]
        self.register_to_config(
            latent_channels=settings.bits,
            block_out_channels=tuple([widths[0]] * (levels - len(widths)) + widths),
        )
        self.use_slicing = False
        self.tiles: Mode = "off"
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer | str, **settings: Any) -> WetokAutoencoder:
        """The adapter of a tokenizer, or of the model of that name; weights are copied.

        Args:
            settings: scaling_factor, binarize.

        Raises:
            WetokError: no such model, or one that diffusers can't use.
        """
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = load(tokenizer)
        shape = tokenizer.config.model_dump(mode="json")
        made = cls(network=shape, name=tokenizer.name, **settings)
        made.net.load_state_dict(tokenizer.model.state_dict())
        return made.to(tokenizer.device).eval().requires_grad_(False)

    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> EncoderOutput | tuple[CodeDistribution]:
        """image [B,3,H,W] in [-1,1] -> the code of its tokens.

        Raises:
            WetokError: H or W is no multiple of f.
        """
        factor = self.net.config.factor
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % factor or x.shape[3] % factor:
            raise WetokError(
                f"x has shape {tuple(x.shape)}: it must be [B, 3, H, W], H and W multiples of "
                f"{factor}"
            )
        if self.tiles != "off":
            ids = self._whole().encode(x.float(), tiles=self.tiles, precision="float32").ids
            code = self.net.quantizer.ids_to_code(ids.to(x.device)).to(x.dtype)
        elif self.use_slicing:
            code = torch.cat([self._encode(one) for one in x.split(1)])
        else:
            code = self._encode(x)
        posterior = CodeDistribution(code)
        return EncoderOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _encode(self, x: Tensor) -> Tensor:
        latent = self.net.encoder(x)
        return _signs(latent) + (latent - latent.detach())  # gradients pass as if unquantized

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """latents [B,d,h,w] -> image [B,3,f*h,f*w], about [-1,1].

        Args:
            generator: of a generative decoder's noise; without one, that of seed 0 for each image.
        """
        if z.ndim != 4 or z.shape[1] != self.net.config.bits:
            wanted = f"[B, {self.net.config.bits}, h, w]"
            raise WetokError(f"z has shape {tuple(z.shape)}: it must be {wanted}")
        code = _signs(z) + (z - z.detach()) if self.config["binarize"] else z
        noise = self._noise(code, generator)
        if self.tiles != "off" and generator is None and self.config["binarize"]:
            image = self._decode_tiles(code)
        elif self.use_slicing:
            rows = [None] * len(code) if noise is None else noise.split(1)
            pairs = zip(code.split(1), rows, strict=True)
            image = torch.cat([self.net.decoder(*pair) for pair in pairs])
        else:
            image = self.net.decoder(code, noise)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def _noise(self, code: Tensor, generator: torch.Generator | None) -> Tensor | None:
        if not self.net.config.generative:
            return None
        if generator is None:
            return sample_noise([0] * len(code), code.shape[1:], code).to(code.dtype)
        drawn = torch.randn(code.shape, generator=generator, device=generator.device)
        return drawn.to(code)

    def _decode_tiles(self, code: Tensor) -> Tensor:
        tokenizer = self._whole()
        ids = self.net.quantizer.code_to_ids(code.detach())
        factor = self.net.config.factor
        size = (code.shape[2] * factor, code.shape[3] * factor)
        tokens = Tokens(ids.cpu(), size, tokenizer.ref, self.net.config.group_bits)
        image: Tensor = tokenizer.decode(
            tokens, output="float", tiles=self.tiles, precision="float32"
        )
        return image.to(code)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """There and back."""
        (posterior,) = self.encode(sample, return_dict=False)
        return self.decode(posterior.mode(), return_dict, generator)

    def enable_slicing(self) -> None:
        """One image at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Batches as they come."""
        self.use_slicing = False

    def enable_tiling(self, mode: Mode = "exact") -> None:
        """Large images in strips, with the same result ("exact"), or in tiles ("fast").

        Raises:
            WetokError: the weights are not float32, which pieces are computed in.
        """
        if self.dtype != torch.float32:
            raise WetokError(f"tiling needs weights in float32, not {self.dtype}")
        self.tiles = mode

    def disable_tiling(self) -> None:
        """Images as a whole."""
        self.tiles = "off"

    def _whole(self) -> Tokenizer:
        """The tokenizer itself, around the same weights."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.net, self.config["name"])
        return self._tokenizer


def _signs(latent: Tensor) -> Tensor:
    return (latent.detach() > 0).to(latent.dtype) * 2 - 1
