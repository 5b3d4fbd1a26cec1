"""wetok turns photographs into a few discrete tokens and back.

>>> import wetok
>>> tok = wetok.load("tiny-48x")
>>> tokens = tok.encode("cat.jpg")
>>> (image,) = tok.decode(tokens)

`import wetok` itself is cheap: a name is imported, with torch behind it, when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wetok.checkpoint import load
    from wetok.codec.tokens import Tokens
    from wetok.config import WetokError
    from wetok.model.quantizer import GroupedQuantizer
    from wetok.model.tokenizer import Tokenizer

__version__ = "0.1.0"  # pyproject.toml reads it from here

__all__ = [
    "GroupedQuantizer",
    "Tokenizer",
    "Tokens",
    "WetokError",
    "__version__",
    "load",
]

_HOME = {
    "GroupedQuantizer": "wetok.model.quantizer",
    "Tokenizer": "wetok.model.tokenizer",
    "WetokAutoencoder": "wetok.adapters.diffusers",  # pipelines of diffusers look for it here
    "Tokens": "wetok.codec.tokens",
    "WetokError": "wetok.config",
    "load": "wetok.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562) and keep it, so the next look-up is plain."""
    if name not in _HOME:
        raise AttributeError(f"module 'wetok' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
