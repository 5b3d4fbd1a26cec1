"""A tokenizer to a folder of programs that need no wetok, and a manifest that tells of them.

    programs, traced -> a hidden folder inside -> loaded again, held against the model -> moved out

What differs from the model is never moved out. manifest.json is moved last.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wetok import __version__
from wetok.config import ModelConfig, WetokError
from wetok.export import formats, parity
from wetok.export.formats import FORMATS, Format
from wetok.export.programs import PARTS, Part, Shape, ports, program
from wetok.model.tokenizer import Tokenizer

MANIFEST = "manifest.json"
_LIMIT = 1 << 20  # bytes of a manifest; a real one has a few thousand

Export = dict[str, Any]
"""One program, as the manifest tells of it."""


def export(
    tokenizer: Tokenizer,
    out: Path,
    wanted: Sequence[Format] = ("onnx",),
    parts: Sequence[Part] = PARTS,
    shape: Shape | None = None,
    *,
    allow_bits: int = 0,
    force: bool = False,
    step: Callable[[], object] = lambda: None,
) -> list[Export]:
    """Writes programs of a tokenizer, float32 for the CPU, each held against the model first.

    Args:
        tokenizer: on the CPU.
        out: a folder. One with programs of the same model takes further ones.
        wanted: "torch" (torch.export), "aoti" (compiled for this machine), "onnx".
        shape: sides that are set; by default any batch and size.
        allow_bits: how many bits of the encoder's ids may differ by rounding.
        force: replaces programs that are there, and those of another model.
        step: called after each program.

    Returns:
        The new programs, as the manifest tells of them, with "seconds" that each took.

    Raises:
        ModuleNotFoundError: a package of the extra `export` is missing.
        WetokError: ids or pixels differ from the model's; no compiler; files in the way.
    """
    shape = shape or Shape()
    _check(tokenizer, wanted, parts, shape)
    for format in wanted:
        formats.check_tools(format)
    kept, stale = _kept(out, tokenizer, wanted, parts, force)
    exports = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".wetok-", suffix=".tmp", dir=out) as hidden:
            beside = Path(hidden)
            for format in wanted:
                for part in parts:
                    exports.append(_one(tokenizer, part, format, shape, beside, allow_bits))
                    step()
            told = [{k: v for k, v in one.items() if k != "seconds"} for one in exports]
            manifest = _manifest(tokenizer, [*kept, *told])
            (beside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
            (out / MANIFEST).unlink(missing_ok=True)
            for name in stale:
                (out / name).unlink(missing_ok=True)
            for path in sorted(beside.iterdir(), key=lambda path: path.name == MANIFEST):
                os.replace(path, out / path.name)
    except OSError as error:
        raise WetokError(f"{out}: can't be written: {error.strerror or error}") from None
    return exports


def _check(tokenizer: Tokenizer, wanted: Sequence[str], parts: Sequence[str], shape: Shape) -> None:
    for name, given, known in (("format", wanted, FORMATS), ("part", parts, PARTS)):
        for one in given:
            if one not in known:
                raise WetokError(f"{name}={one!r} must be one of {', '.join(known)}")
        if not given or len(set(given)) < len(given):
            raise WetokError(f"{name}={list(given)!r}: name at least one, and each once")
    shape.check(tokenizer.config.factor)
    if tokenizer.device.type != "cpu":
        raise WetokError(f"the model is on {tokenizer.device}: programs are written for the CPU")


def _one(
    tokenizer: Tokenizer, part: Part, format: Format, shape: Shape, folder: Path, allow_bits: int
) -> Export:
    """Writes one program into `folder`, loads it again and holds it against the model."""
    config = tokenizer.config
    path = folder / formats.file_name(part, format)
    start = time.perf_counter()
    made = program(tokenizer.model, part)
    formats.write(made, config, part, format, shape, path)
    try:
        cases = parity.check(tokenizer, part, formats.load(path, format), shape, allow_bits)
    except (RuntimeError, AssertionError) as error:  # the runtimes' own
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WetokError(f"the {part} as {format} fails on a sample: {line}") from error
    files = formats.beside(path)
    return {
        "part": part,
        "format": format,
        "file": path.name,
        "files": {one.name: _digest(one) for one in files},
        "bytes": sum(one.stat().st_size for one in files),
        **_interface(config, part, shape),
        **({"opset": formats.OPSET} if format == "onnx" else {}),
        **({"machine": f"{platform.system()} {platform.machine()}"} if format == "aoti" else {}),
        "versions": dict(_versions(format)),
        "checks": [case.told() for case in cases],
        "seconds": time.perf_counter() - start,
    }


def _interface(config: ModelConfig, part: Part, shape: Shape) -> dict[str, Any]:
    inputs, output = ports(config, part, shape)
    return {
        "inputs": [port._asdict() for port in inputs],
        "outputs": [output._asdict()],
    }


def _versions(format: Format) -> Iterator[tuple[str, str]]:
    yield "wetok", __version__
    for package in ("torch", *(("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ())):
        try:
            yield package, version(package)
        except PackageNotFoundError:  # under another name, as onnxruntime-gpu
            continue


def _manifest(tokenizer: Tokenizer, exports: list[Export]) -> dict[str, Any]:
    config = tokenizer.config
    return {
        "wetok_export": 1,
        "model": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "factor": config.factor,
            "bits": config.bits,
            "groups": config.groups,
            "group_bits": config.group_bits,
            "generative": config.generative,
        },
        "programs": sorted(exports, key=lambda one: (one["format"], one["part"])),
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is none.

    Raises:
        WetokError: it can't be read, or is no manifest of ours.
    """
    path = folder / MANIFEST
    try:
        with open(path, encoding="utf-8") as file:
            tree = json.loads(file.read(_LIMIT))
        if tree["wetok_export"] != 1 or not isinstance(tree["model"]["fingerprint"], str):
            raise ValueError
        for one in tree["programs"]:
            if not all(Path(name).name == name for name in one["files"]):
                raise ValueError
        return dict(tree)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise WetokError(f"{path}: is no manifest of an export; name another folder") from None


def _kept(
    out: Path, tokenizer: Tokenizer, wanted: Sequence[str], parts: Sequence[str], force: bool
) -> tuple[list[Export], list[str]]:
    """Of the programs in `out`: those that stay, and files that must go.

    Raises:
        WetokError: programs are in the way, and `force` is not given.
    """
    if out.exists() and not out.is_dir():
        raise WetokError(f"--out {out}: is a file; name a folder")
    manifest = read_manifest(out)
    if manifest is None:
        return [], []
    same = manifest["model"]["fingerprint"] == tokenizer.fingerprint
    if not same and not force:
        raise WetokError(
            f"{out} holds programs of {manifest['model'].get('name')!r}: give --force to replace "
            "them, or another --out"
        )
    kept: list[Export] = []
    gone: list[Export] = []
    for one in manifest["programs"]:
        again = one["part"] in parts and one["format"] in wanted
        if same and again and not force:
            raise WetokError(
                f"{out}/{one['file']} exists: give --force to overwrite it, or another --out"
            )
        (gone if again or not same else kept).append(one)
    return kept, [name for one in gone for name in one["files"]]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
