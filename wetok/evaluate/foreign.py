"""What systems that are not ours share: sizes, weights' hashes, and errors of others' code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from wetok.config import WetokError, near
from wetok.evaluate.systems import Reconstruction, now
from wetok.model.tokenizer import pad_to_multiple

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Options:
    """What stands behind the `?` of a system's name: `key=value` pairs, taken out one by one."""

    def __init__(self, spec: str, values: Mapping[str, str], known: Iterable[str]) -> None:
        self.spec, self.values, known = spec, dict(values), list(known)
        for key in self.values:
            if key not in known:
                raise WetokError(f"model={spec!r}: option {key!r} is not known{near(key, known)}")

    def text(self, key: str, default: str | None = None) -> str | None:
        """As it was written."""
        return self.values.get(key, default)

    def number(
        self, key: str, kind: type[int] | type[float], default: float | None
    ) -> float | None:
        """A number above zero.

        Raises:
            WetokError: it is none.
        """
        text = self.values.get(key)
        if text is None:
            return default
        try:
            value = kind(text)
            if not 0 < value < float("inf"):
                raise ValueError
        except ValueError:
            what = "whole number" if kind is int else "number"
            raise WetokError(
                f"model={self.spec!r}: {key}={text!r} must be a {what} above 0"
            ) from None
        return value

    def dtype(self) -> torch.dtype | None:
        """Option `dtype`.

        Raises:
            WetokError: no type to compute with.
        """
        name = self.values.get("dtype")
        if name is None:
            return None
        if name not in DTYPES:
            raise WetokError(f"model={self.spec!r}: dtype={name!r} must be {', '.join(DTYPES)}")
        return DTYPES[name]


@contextmanager
def told(name: str, doing: str) -> Iterator[None]:
    """Turns whatever goes wrong in another's code into one line, and stops gradients."""
    try:
        with torch.no_grad():
            yield
    except WetokError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        # TorchScript puts its own traceback first, and the error's text last.
        line = lines[-1] if lines[0].startswith("The following operation failed") else lines[0]
        raise WetokError(f"{name}: {doing}: {type(error).__name__}: {line}".rstrip(": ")) from error


def image_like(output: object, wanted: Tensor, name: str) -> Tensor:
    """`output` as float32 [1,3,H,W] in [-1,1].

    Raises:
        WetokError: no floating-point tensor, or of another size than `wanted`.
    """
    if isinstance(output, Tensor) and output.ndim == 3:
        output = output[None]
    if not isinstance(output, Tensor) or not output.is_floating_point():
        what = str(output.dtype) if isinstance(output, Tensor) else type(output).__name__
        raise WetokError(f"{name}: gave {what}, not a floating-point tensor [1,3,H,W] in [-1,1]")
    if output.shape != wanted.shape:
        raise WetokError(
            f"{name}: gave {list(output.shape)} for an image {list(wanted.shape)}; the size must "
            "stay"
        )
    return output.detach().float().clamp(-1, 1)


def there_and_back(
    image: Tensor,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    multiple: int,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
) -> tuple[Reconstruction, Tensor]:
    """An image through another's encoder and decoder, with times; and the latent.

        image -> padded by reflection to multiples -> encode -> latent -> decode -> cropped

    Raises:
        WetokError: they fail on this image.
    """
    height, width = image.shape[-2:]
    with told(name, f"failed on an image of {height}x{width}"):
        padded = pad_to_multiple(image.to(device, dtype), multiple)
        began = now(device)
        latent = encode(padded)
        encoded = now(device)
        decoded = decode(latent)
        ended = now(device)
    again = image_like(decoded, padded, name)[..., :height, :width]
    return (
        Reconstruction([again], encode_seconds=encoded - began, decode_seconds=ended - encoded),
        latent,
    )


def hash_of_state(settings: str, state: Mapping[str, Tensor]) -> str:
    """16 hex digits over `settings` and every tensor: name, type, shape and bytes."""
    digest = hashlib.sha256(settings.encode())
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"\n{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def hash_of_files(settings: str, files: Mapping[str, Path]) -> str:
    """16 hex digits over `settings` and every file's name and content.

    Raises:
        WetokError: one can't be read.
    """
    digest = hashlib.sha256(settings.encode())
    for name in sorted(files):
        content = hashlib.sha256()
        try:
            with open(files[name], "rb") as file:
                while block := file.read(1 << 20):
                    content.update(block)
        except OSError as error:
            raise WetokError(f"{files[name]}: can't be read: {error.strerror}") from None
        digest.update(f"\n{name} {content.hexdigest()}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
