"""Images in the columns of tables: Parquet files and data sets of the `datasets` library."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from wetok.config import WetokError, near
from wetok.data.images import load_image
from wetok.data.sources import Draft, NamedBytes

# What image columns are called where a table has several columns of bytes, the likeliest first.
_USUAL = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixel_values", "bytes")


def scale_package(name: str, purpose: str) -> Any:
    """A module of the extra `scale`, imported when it is needed.

    Raises:
        WetokError: it, or a package it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = (error.name or name).partition(".")[0]
        raise WetokError(
            f"{purpose} needs the package {package!r}, which is not installed: "
            "pip install 'wetok[scale]'"
        ) from None


def image_column(schema: Any, column: str | None, where: str) -> str:
    """The column of an Arrow `schema` that holds images.

    That is `column` if given. Otherwise the one that `datasets` has marked as Image, or the only
    one of bytes or of structs with `bytes`, or of several the one with a usual name, e.g. `image`.

    Args:
        where: what the table is called in errors.

    Raises:
        WetokError: no such column, none with images, or several that are as likely.
    """
    able = [field.name for field in schema if _holds_bytes(field.type)]
    listed = ", ".join(map(repr, schema.names)) or "none"
    if column is not None:
        if column in able:
            return column
        if column in schema.names:
            kind = schema.field(column).type
            raise WetokError(
                f"column={column!r} of {where} has the type {kind}: expected image files as bytes, "
                "or structs of bytes and path"
            )
        raise WetokError(f"column={column!r} is not in {where}{near(column, schema.names)}")
    likely = [name for name in _marked(schema) if name in able] or able
    if not likely:
        raise WetokError(f"{where} has no column of images (its columns: {listed})")
    if len(likely) == 1:
        return likely[0]
    usual = [name for wanted in _USUAL for name in likely if name.lower() == wanted]
    if not usual:
        names = ", ".join(map(repr, likely))
        raise WetokError(f"{where} has several columns of bytes ({names}): name one with column=")
    return usual[0]


def _holds_bytes(kind: Any) -> bool:
    types = scale_package("pyarrow", "reading tables").types
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or (hasattr(types, "is_binary_view") and types.is_binary_view(kind))
    )


def _marked(schema: Any) -> Sequence[str]:
    """The columns that `datasets` wrote as images."""
    with suppress(Exception):  # absent, or of a layout that is yet to come
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [name for name, one in features.items() if one.get("_type") == "Image"]
    return []


def load_cell(cell: Any, name: str, folder: Path | None, draft: Draft | None) -> Image.Image:
    """RGB image from a cell: bytes, or a dict of `bytes` and `path`, of which one may be missing.

    Args:
        name: what errors call the image.
        folder: what a relative path is relative to; without it, no path is followed.

    Raises:
        WetokError: the cell is empty, or its image can't be decoded.
    """
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if data is not None:
        return load_image(NamedBytes(data, name), draft=draft)
    if path and folder is not None:
        try:
            return load_image(os.path.join(folder, path), draft=draft)
        except WetokError as error:
            raise WetokError(f"{name}: {error}") from None
    raise WetokError(f"image {name!r} is missing: its cell is empty")
