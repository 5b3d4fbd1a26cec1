"""The whole network as one module: encoder, quantizer, decoder."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wetok.config import ModelConfig, WetokError
from wetok.model.decoder import Decoder
from wetok.model.encoder import Encoder
from wetok.model.entropy import MAX_GROUP_BITS
from wetok.model.layers import ResidualBlock
from wetok.model.quantizer import GroupedQuantizer, Quantized


class Reconstruction(NamedTuple):
    """What a pass through the whole network gives."""

    image: Tensor
    """[B,3,H,W], not clamped."""
    quantized: Quantized
    """Code, ids and, in training, the quantizer's losses."""


class TokenizerNetwork(nn.Module):
    """Encoder, grouped quantizer and decoder.

    image [B,3,H,W] -> encoder -> latent [B,d,h,w] -> quantizer -> code in {-1,+1}, ids [B,g,h,w]
                    -> decoder (+ noise [B,d,h,w] where generative) -> image [B,3,H,W]

    Args:
        quantizer: any module that turns a latent into a `Quantized` of the same shape; by default
            the grouped one that the settings describe. It is handed over as an object: settings,
            and with them a model folder, can't ask for another.
    """

    def __init__(self, config: ModelConfig, quantizer: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        if quantizer is None:
            # Groups too large for entropies still quantize.
            small = config.group_bits <= MAX_GROUP_BITS
            quantizer = GroupedQuantizer(
                config.bits, config.groups, entropy="grouped" if small else None
            )
        # Who trains or decodes from ids meets no other: only a forward pass takes a stand-in.
        self.quantizer: GroupedQuantizer = quantizer  # type: ignore[assignment]
        self.decoder = Decoder(config)
        self.decodes: tuple[str, ...] = ()
        """Fingerprints of the models with this one's encoder, whose tokens it reads too."""

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """image [B,3,H,W] in [-1,1], H and W multiples of the factor."""
        quantized = self.quantizer(self.encoder(image))
        return Reconstruction(self.decoder(quantized.code, noise), quantized)

    def recompute(self, on: bool) -> None:
        """Whether residual blocks compute their activations again in backward (to save memory)."""
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.recompute = on

    @torch.no_grad()
    def decode(self, code: Tensor, noise: Tensor | None = None) -> Tensor:
        """code, noise [B,d,h,w] -> image [B,3,f*h,f*w], one sample at a time.

        Kernels choose their order of summing by the batch size too, so that `decoder` on a batch
        differs in the last bits, and a few bytes in 200,000, from `decoder` on each sample. Here
        a sample's pixels are its own.
        """
        rows = [None] * len(code) if noise is None else noise.split(1)
        return torch.cat([self.decoder(*pair) for pair in zip(code.split(1), rows, strict=True)])

    def to_generative(self) -> TokenizerNetwork:
        """A copy whose decoder also takes noise, through weights that start at zero.

        Until it is trained, its output is this network's to the last bit, for any noise
        (WeTok's second stage).

        Raises:
            WetokError: the decoder is generative already.
        """
        if self.config.generative:
            raise WetokError("generative=True: the decoder takes noise already")
        config = self.config.model_copy(update={"generative": True})
        with torch.device("meta"):
            wide = TokenizerNetwork(config, deepcopy(self.quantizer))
        # Clones keep device, type and memory format, so that the same kernels run.
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        weight = state["decoder.conv_in.weight"]
        state["decoder.conv_in.weight"] = torch.cat([weight, torch.zeros_like(weight)], dim=1)
        wide.load_state_dict(state, assign=True)
        wide.decodes = self.decodes
        return wide.train(self.training)


def parameter_count(module: nn.Module) -> int:
    """Numbers learned by `module`."""
    return sum(parameter.numel() for parameter in module.parameters())
