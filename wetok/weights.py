"""Pretrained parts of losses and scores: where they come from and where they lie.

A part is a file in the cache folder, put there by `wetok weights import` or, where it has an
address, by a download; or it comes with the package. A safetensors file is recognised by its
tensors' names and shapes, any other by its checksum.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from wetok.checkpoint import written_beside
from wetok.config import WetokError, near

_SHIPPED = Path(__file__).parent / "assets" / "weights"
_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 20

_Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """One pretrained part."""

    filename: str
    used_by: str
    licence: str
    size: int
    """Bytes of the known file."""
    sha256: str
    """Of the known file. Another file with the same tensors can be imported, and is told apart."""
    tensors: _Shapes
    """Shape of every tensor, by name. Empty for a file that is known by its checksum alone."""
    url: str | None = None
    """Where the known file can be downloaded, if anywhere."""
    shipped: str | None = None
    """Name of a file in the package that serves until another is imported."""


class Imported(NamedTuple):
    """A part that `import_from` brought into the cache."""

    name: str
    path: Path
    known: bool
    """Whether it is byte for byte the file whose checksum the table has."""


def _lpips(kernels: Sequence[int], widths: Sequence[int], taps: Sequence[int]) -> _Shapes:
    """Tensors of an LPIPS network: convolutions one after the other, a head at each of `taps`."""
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for index, (kernel, width) in enumerate(zip(kernels, widths, strict=True)):
        shapes[f"features.{index}.weight"] = (width, channels, kernel, kernel)
        shapes[f"features.{index}.bias"] = (width,)
        channels = width
    for index, tap in enumerate(taps):
        shapes[f"lin.{index}.weight"] = (1, widths[tap], 1, 1)
    return shapes


_VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_LPIPS_LICENCE = "BSD-2-Clause (LPIPS heads), BSD-3-Clause (torchvision features)"

# No address: these files join the published heads and features, and are handed on as files.
PARTS: dict[str, Part] = {
    "lpips-alex": Part(
        filename="lpips_alex.safetensors",
        used_by="perceptual distance LPIPS-alex: evaluation",
        licence=_LPIPS_LICENCE,
        size=9884848,
        sha256="652ec5212221313c48d02a3b0132c30ec9cf932ef69837bf482d30ba4eb8502d",
        tensors=_lpips((11, 5, 3, 3, 3), (64, 192, 384, 256, 256), range(5)),
        shipped="lpips-alex.safetensors",
    ),
    "lpips-vgg": Part(
        filename="lpips_vgg.safetensors",
        used_by="perceptual distance LPIPS-vgg: training, evaluation; Frechet distance fd-vgg",
        licence=_LPIPS_LICENCE,
        size=58867512,
        sha256="06a9635f81ad7cfec269e28b39cc815a5a1ef34bdafabb543de9c86c701a79e1",
        tensors=_lpips((3,) * 13, _VGG_WIDTHS, (1, 3, 6, 9, 12)),
    ),
    # A pickle, so it is never opened to see what it is.
    "inception-fid": Part(
        filename="pt_inception-2015-12-05-6726825d.pth",
        used_by="Frechet inception distance (rFID): evaluation",
        licence="Apache-2.0 (TensorFlow's inception-2015-12-05, converted by pytorch-fid)",
        size=95628359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        tensors={},
        url=(
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
            "pt_inception-2015-12-05-6726825d.pth"
        ),
    ),
}
"""Name -> what it is."""


def cache_dir() -> Path:
    """Where parts are kept: `weights` in $WETOK_CACHE, or else in ~/.cache/wetok."""
    return Path(os.environ.get("WETOK_CACHE") or "~/.cache/wetok").expanduser() / "weights"


def part(name: str) -> Part:
    """The part called `name`.

    Raises:
        WetokError: there is none; near names are given.
    """
    if name not in PARTS:
        raise WetokError(f"no pretrained part is called {name!r}{near(name, list(PARTS))}")
    return PARTS[name]


def cached(name: str) -> Path | None:
    """Where the part lies in the cache, or None.

    Raises:
        WetokError: no such part.
    """
    path = cache_dir() / part(name).filename
    return path if path.is_file() else None


def here(name: str) -> Path | None:
    """Where the part lies on this machine: in the cache, or else in the package; or None.

    Raises:
        WetokError: no such part.
    """
    if (imported := cached(name)) is not None:
        return imported
    shipped = part(name).shipped
    return None if shipped is None else _SHIPPED / shipped


def find(name: str, path: str | Path | None = None) -> Path:
    """The file of a part: the given one, or what is `here`, or downloaded where it has an address.

    Args:
        name: a key of PARTS.
        path: the file itself, or a folder that holds it under its usual name.

    Raises:
        WetokError: no such part or file, or the part is not on this machine (and what to do), or
            the download failed.
    """
    wanted = part(name)
    if path is not None:
        given = Path(path).expanduser()
        given = given / wanted.filename if given.is_dir() else given
        if not given.is_file():
            raise WetokError(f"{given}: no such file; it was given for the part {name}")
        return given
    if (found := here(name)) is not None:
        return found
    if wanted.url is None:
        raise WetokError(
            f"the pretrained part {name} is not on this machine: get {wanted.filename} "
            "(docs/weights.md says how) and run `wetok weights import FOLDER_OR_FILE` "
            f"(looked in {cache_dir()})"
        )
    return _download(name, wanted, wanted.url)


def import_from(path: str | Path) -> list[Imported]:
    """Copies every part found at `path` into the cache, replacing what is there.

    Args:
        path: a file, or a folder of them (not searched deeper). A safetensors file may have any
            name, for it is recognised by its tensors; another is looked at if it has the suffix of
            a part's file, and taken if it has that part's checksum.

    Returns:
        One entry a part, by name. Where two files hold the same part, the known one wins.

    Raises:
        WetokError: nothing there is a part, a file carries a part's name but not its tensors or
            its checksum, or the cache can't be written.
    """
    source = Path(path).expanduser()
    if source.is_dir():
        suffixes = {Path(part.filename).suffix for part in PARTS.values()} | {".safetensors"}
        files = sorted(f for f in source.iterdir() if f.suffix in suffixes and f.is_file())
    elif source.is_file():
        files = [source]
    else:
        raise WetokError(f"{source}: no such file or folder")
    found: dict[str, tuple[Path, bool]] = {}
    for file in files:
        name = _recognise(file)
        if name is None:
            continue
        known = _sha256(file) == PARTS[name].sha256
        if name not in found or (known and not found[name][1]):
            found[name] = (file, known)
    if not found:
        known_parts = ", ".join(f"{name} ({part.filename})" for name, part in PARTS.items())
        raise WetokError(
            f"{source}: holds no safetensors file with a part's tensors; looked for {known_parts}"
        )
    return [
        Imported(name, _copy(file, cache_dir() / PARTS[name].filename), known)
        for name, (file, known) in sorted(found.items())
    ]


def _recognise(file: Path) -> str | None:
    """The part whose tensors `file` holds, if any."""
    from safetensors import SafetensorError, safe_open

    by_name = next((name for name, p in PARTS.items() if p.filename == file.name), None)
    if file.suffix != ".safetensors":
        size = file.stat().st_size
        for name, candidate in PARTS.items():
            if size == candidate.size and _sha256(file) == candidate.sha256:
                return name
        if by_name is not None:
            raise WetokError(
                f"{file}: is named like {by_name}, but is not the published file ({size} bytes, or "
                f"another checksum; expected {PARTS[by_name].size} bytes); get it again"
            )
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = tensors.keys()
            shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in names}
    except (SafetensorError, OSError) as error:
        if by_name is None:
            return None
        reason = str(error).splitlines()[0]
        raise WetokError(f"{file}: broken safetensors file ({reason}); copy it again") from None
    for name, candidate in PARTS.items():
        if shapes and shapes == candidate.tensors:
            return name
    if by_name is not None:
        differing = sorted(
            key
            for key in shapes.keys() | PARTS[by_name].tensors.keys()
            if shapes.get(key) != PARTS[by_name].tensors.get(key)
        )
        raise WetokError(
            f"{file}: is named like {by_name}, but differs in {len(differing)} tensors, the first "
            f"{differing[0]}"
        )
    return None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _copy(file: Path, target: Path) -> Path:
    _make_cache(target.parent)
    with written_beside(target) as beside:
        shutil.copyfile(file, beside)
    return target


def _download(name: str, wanted: Part, url: str) -> Path:
    """The part, fetched into the cache; nothing is left there unless its checksum is right."""
    target = cache_dir() / wanted.filename
    _make_cache(target.parent)
    digest = hashlib.sha256()
    received = 0
    with written_beside(target) as beside, open(beside, "wb") as stream:
        for block in _blocks(name, url):
            received += len(block)
            if received > wanted.size:
                break  # the checksum can't be right any more
            digest.update(block)
            stream.write(block)
        if received != wanted.size or digest.hexdigest() != wanted.sha256:
            raise WetokError(
                f"the download of {name} from {url} is not the expected file of {wanted.size} "
                "bytes (cut off, or changed there); try again, or `wetok weights import` a copy"
            )
    return target


def _blocks(name: str, url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            while block := answer.read(_BLOCK):
                yield block
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WetokError(
            f"the download of {name} from {url} failed ({reason}); try again, or "
            "`wetok weights import` a copy"
        ) from None


def _make_cache(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WetokError(
            f"{folder}: the cache can't be made ({error.strerror}); set WETOK_CACHE to another "
            "folder"
        ) from None
