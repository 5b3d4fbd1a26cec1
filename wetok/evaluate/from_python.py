"""A system that is a few lines of the user's own Python, named as `module:function`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wetok.config import WetokError
from wetok.evaluate.foreign import Options, hash_of_files, hash_of_state, image_like, told
from wetok.evaluate.systems import Reconstruction, System
from wetok.model.tokenizer import pad_to_multiple


class CallableSystem:
    """A function from an image to its reconstruction.

    Args:
        function: [1,3,H,W] in [-1,1] on `device` -> the same, or that and the size in bits.
        multiple: images are padded by reflection to multiples of it, and cut off again.
    """

    generative = False
    code_shape: tuple[int, int] | None = None

    def __init__(
        self,
        name: str,
        function: Callable[[Tensor], Any],
        fingerprint: str,
        device: torch.device,
        multiple: int = 1,
    ) -> None:
        self.name, self.function, self.fingerprint = name, function, fingerprint
        self.device, self.multiple = device, multiple

    def reconstruct(self, image: Tensor, seeds: Sequence[int]) -> Reconstruction:
        height, width = image.shape[-2:]
        with told(self.name, f"failed on an image of {height}x{width}"):
            padded = pad_to_multiple(image.to(self.device), self.multiple)
            output = self.function(padded.clone())
        bits = None
        if isinstance(output, tuple) and len(output) == 2:
            output, bits = output
            if isinstance(bits, bool) or not isinstance(bits, int) or bits < 1:
                raise WetokError(f"{self.name}: bits={bits!r} must be a whole number above 0")
        again = image_like(output, padded, self.name)[..., :height, :width]
        return Reconstruction([again.to(self.device)], bits=bits)


def open_python(
    spec: str, module: str, function: str, options: Mapping[str, str], device: torch.device
) -> System:
    """What `function(device)` of `module` returns: a `System`, or a function for `CallableSystem`.

    The module is imported, which runs it; the current folder is searched first.

    Raises:
        WetokError: no such module or function, it fails, or returns neither.
    """
    kinds = "folder, diffusers or torchscript"
    multiple = int(Options(spec, options, ("multiple",)).number("multiple", int, 1) or 1)
    with told(f"model={spec!r}", f"{module!r} can't be imported (and is not {kinds})"):
        sys.path.insert(0, str(Path.cwd()))
        try:
            loaded = importlib.import_module(module)
        finally:
            sys.path.remove(str(Path.cwd()))
    opener = getattr(loaded, function, None)
    if not callable(opener):
        raise WetokError(f"model={spec!r}: {module!r} has no function {function!r}")
    with told(f"model={spec!r}", f"{function}(device) failed"):
        made = opener(device)
    if isinstance(made, torch.nn.Module):
        made = made.to(device).eval()
    if hasattr(made, "reconstruct"):
        needed = ("name", "fingerprint", "generative", "code_shape", "device")
        missing = [one for one in needed if not hasattr(made, one)]
        if missing:
            raise WetokError(f"model={spec!r}: the system lacks {', '.join(missing)}")
        system: System = made
        return system
    if not callable(made):
        raise WetokError(
            f"model={spec!r}: {function}(device) gave {type(made).__name__}, which can't be "
            "called; return a function from image to image, or a System"
        )
    return CallableSystem(spec, made, _fingerprint(opener, made, spec), device, multiple)


def _fingerprint(opener: Callable[..., Any], made: Any, spec: str) -> str:
    """Over the source file and, where a network was returned, its weights."""
    try:
        source = inspect.getsourcefile(inspect.unwrap(opener))
    except TypeError:
        source = None
    code = hash_of_files(spec, {"source": Path(source)} if source else {})
    return hash_of_state(code, made.state_dict()) if isinstance(made, torch.nn.Module) else code
