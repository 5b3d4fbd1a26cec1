"""Small tokenizers of random weights for the tests of exports."""

from __future__ import annotations

import torch

from wetok.config import ModelConfig
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer


def small(seed: int = 0, **changes: object) -> Tokenizer:
    """Factor 4, 12 bits in 2 groups; deterministic unless told otherwise."""
    shape = {"bits": 12, "groups": 2, "channels": 32, "mults": (1, 1), "blocks": 1, "patch": 2}
    torch.manual_seed(seed)
    network = TokenizerNetwork(ModelConfig.model_validate(shape | changes))
    # At random, the adaptive norms would hardly look at the code: biases make it matter.
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "gamma" in name or "beta" in name:
                weight.normal_(0, 0.5)
    return Tokenizer(network, "small")
