"""A system whose reconstructions lie in a folder: whatever made them takes part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from wetok.config import WetokError
from wetok.data.images import find_images
from wetok.evaluate import protocols
from wetok.evaluate.foreign import Options, hash_of_files
from wetok.evaluate.systems import Reconstruction


class FolderSystem:
    """Reconstructions by the stem of the original's name: `cat.jpg` came back as `cat.png`.

    A reconstruction of the protocol's own size is compared as it is; one of the original's size is
    resized and cropped like the original. Lossy formats would add a loss of their own.

    Args:
        name: what people call it.
        files: stem -> reconstruction.
        bpp: bits a pixel, where they are known.
        sizes: stem -> the file that it was decoded from, whose bytes are counted.
    """

    generative = False
    code_shape: tuple[int, int] | None = None

    def __init__(
        self,
        name: str,
        files: Mapping[str, Path],
        device: torch.device,
        bpp: float | None = None,
        sizes: Mapping[str, Path] | None = None,
    ) -> None:
        self.name, self.device, self.bpp = name, device, bpp
        self.files, self.sizes = dict(files), sizes
        self._taken: dict[str, str] = {}
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Over names and contents of all files and what their size is known from."""
        if self._fingerprint is None:
            settings = f"folder bpp={self.bpp}"
            if self.sizes is not None:
                settings += " " + hash_of_files("sizes", self.sizes)
            self._fingerprint = hash_of_files(settings, self.files)
        return self._fingerprint

    def reconstruct(self, image: Tensor, seeds: Sequence[int]) -> Reconstruction:
        raise WetokError(f"{self.name} knows images by their files; this one has none")

    def reconstruct_file(
        self, path: Path, image: Image.Image, protocol: protocols.Protocol
    ) -> Reconstruction:
        stem = path.stem
        if stem not in self.files:
            raise WetokError(
                f"{self.name} has no reconstruction of {path.name!r}: no image file {stem!r}.*"
            )
        if self._taken.setdefault(stem, str(path)) != str(path):
            raise WetokError(
                f"{self.name}: {str(path)!r} and {self._taken[stem]!r} share the stem {stem!r}, so "
                "which one was reconstructed can't be known; rename one"
            )
        scored = protocol.prepare(image)
        again = protocol.load(self.files[stem])
        share = scored.width * scored.height / (again.width * again.height)
        if again.size != scored.size:
            if again.size != image.size:
                raise WetokError(
                    f"{self.name}: {self.files[stem].name!r} has {again.width}x{again.height} "
                    f"pixels; needed are {scored.width}x{scored.height} (what {protocol.name} "
                    f"scores) or {image.width}x{image.height} (the original)"
                )
            again = protocol.prepare(again)
        pixels = scored.width * scored.height
        return Reconstruction(
            [protocol.to_float(again)[None].to(self.device)],
            bits=None if self.bpp is None else round(self.bpp * pixels),
            coded_bytes=None if self.sizes is None else round(self._bytes(stem) * share),
        )

    def _bytes(self, stem: str) -> int:
        assert self.sizes is not None
        if stem not in self.sizes:
            raise WetokError(f"{self.name}: its files have none called {stem!r}.*")
        return self.sizes[stem].stat().st_size


def open_folder(
    spec: str, place: str, options: Mapping[str, str], device: torch.device
) -> FolderSystem:
    """`folder:DIR?bpp=0.5` or `folder:DIR?files=DIR` (compressed files of the same stems).

    Raises:
        WetokError: no such folder, no images in it, or two of one stem.
    """
    chosen = Options(spec, options, ("bpp", "files"))
    bpp = chosen.number("bpp", float, None)
    if not Path(place).is_dir():
        raise WetokError(f"model={spec!r}: there is no folder {place!r}")
    sizes = chosen.text("files")
    if sizes is not None and not Path(sizes).expanduser().is_dir():
        raise WetokError(f"model={spec!r}: files={sizes!r} is no folder")
    compressed = None
    if sizes is not None:
        every = sorted(Path(sizes).expanduser().rglob("*"))
        compressed = _by_stem(
            [one for one in every if one.is_file() and not one.name.startswith(".")], spec
        )
    return FolderSystem(spec, _by_stem(find_images(place), spec), device, bpp, compressed)


def _by_stem(files: Sequence[Path], spec: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(file.stem, file)
        if other is not file:
            raise WetokError(
                f"model={spec!r}: {str(other)!r} and {str(file)!r} share the stem {file.stem!r}; "
                "leave one of them"
            )
    return found
