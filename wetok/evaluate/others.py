"""Any system by one name: ours, another's model, or a folder of what another's model made.

    tiny-48x, a folder, user/model            a tokenizer of ours
    folder:DIR                                reconstructions that lie in files
    package.module:function                   Python code that the user names
    diffusers:FOLDER_OR_HUB_ID?subfolder=vae  an autoencoder in diffusers' layout
    torchscript:DIR                           encoder.jit and decoder.jit

`docs/other-tokenizers.md` tells each one's options, which follow a `?` as `key=value&key=value`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from wetok import checkpoint
from wetok.config import WetokError, near
from wetok.evaluate.systems import System, TokenizerSystem

Opener = Callable[[str, str, Mapping[str, str], torch.device], System]
SCHEMES = ("folder", "diffusers", "torchscript")


def open_system(spec: str, device: str | torch.device = "auto") -> System:
    """The system called `spec`, on `device`.

    Args:
        spec: as above. A folder, a shipped name or a Hub id is always a tokenizer of ours.
        device: "auto" is the GPU where there is one.

    Raises:
        WetokError: no such system, an unknown option, a file that is broken, no such device.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not is_other(spec):
        return TokenizerSystem(checkpoint.load(spec, str(device)))
    scheme, _, rest = spec.partition(":")
    place, options = _split(spec, rest)
    where = _device(device)
    if scheme == "folder":
        from wetok.evaluate.from_folder import open_folder

        return open_folder(spec, place, options, where)
    if scheme == "diffusers":
        from wetok.evaluate.from_diffusers import open_diffusers

        return open_diffusers(spec, place, options, where)
    if scheme == "torchscript":
        from wetok.evaluate.from_torchscript import open_torchscript

        return open_torchscript(spec, place, options, where)
    from wetok.evaluate.from_python import open_python

    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", scheme) or not place.isidentifier():
        raise WetokError(
            f"model={spec!r} is no model, no module:function, and {scheme!r} no kind of system"
            f"{near(scheme, SCHEMES)}"
        )
    return open_python(spec, scheme, place, options, where)


def is_other(spec: str) -> bool:
    """Whether `spec` names another's system, not a tokenizer of ours."""
    return ":" in spec and not Path(spec).exists() and not re.match(r"[A-Za-z]:[\\/]", spec)


def _split(spec: str, rest: str) -> tuple[str, dict[str, str]]:
    """Place and options of `place?key=value&key=value`."""
    place, _, query = rest.rpartition("?") if "?" in rest else (rest, "", "")
    options = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise WetokError(f"model={spec!r}: {pair!r} must be key=value")
        if key in options:
            raise WetokError(f"model={spec!r}: option {key!r} is given twice")
        options[key] = value
    if not place:
        raise WetokError(f"model={spec!r}: a place must follow the colon")
    return os.path.expanduser(place), options


def _device(device: str | torch.device) -> torch.device:
    try:
        where = torch.device(device)
        torch.zeros(1, device=where)
        return where
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        line = str(error).splitlines()[0]
        raise WetokError(f"device={str(device)!r} can't be used: {line}; try 'cpu'") from None
