"""The published models' shapes by name, and the small ones that this project trains."""

from __future__ import annotations

from wetok.config import ModelConfig, WetokError, near

_F8 = (1, 2, 2, 4)
_F16 = (1, 1, 2, 2, 4)
_F32 = (1, 1, 2, 2, 4, 8)

_TINY = ModelConfig(
    bits=32,
    groups=4,
    channels=64,
    mults=(1, 2, 2),
    blocks=1,
    decoder_channels=64,
    decoder_mults=(1, 2, 3),
    patch=2,
)
_TINY_F16 = _TINY.model_copy(update={"mults": (1, 2, 2, 2), "decoder_mults": (1, 2, 3, 2)})
_GENERATIVE = {"generative": True}

PRESETS: dict[str, ModelConfig] = {
    "general-24x": ModelConfig(bits=64, groups=8, channels=256, mults=_F8, blocks=4),
    "general-48x": ModelConfig(bits=32, groups=4, channels=256, mults=_F8, blocks=4),
    "general-192x": ModelConfig(bits=32, groups=4, channels=256, mults=_F16, blocks=4),
    "general-768x": ModelConfig(
        bits=32, groups=4, channels=256, mults=_F32, blocks=4, generative=True
    ),
    "imagenet-f8": ModelConfig(bits=32, groups=4, channels=256, mults=_F8, blocks=4),
    "imagenet-f16": ModelConfig(bits=32, groups=4, channels=256, mults=_F16, blocks=4),
    "open-magvit2-f16": ModelConfig(bits=18, groups=1, channels=128, mults=_F16, blocks=4),
    "tiny-24x": _TINY.model_copy(update={"bits": 64, "groups": 8}),
    "tiny-48x": _TINY,
    "tiny-48x-gd": _TINY.model_copy(update=_GENERATIVE),
    "tiny-192x": _TINY_F16,
    "tiny-192x-gd": _TINY_F16.model_copy(update=_GENERATIVE),
}
"""Name -> shape. The published ones follow the paper's table of models."""


def preset(name: str) -> ModelConfig:
    """The shape called `name`.

    Raises:
        WetokError: no such preset; the nearest names are given.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise WetokError(f"no preset is called {name!r}{near(name, list(PRESETS))}") from None
