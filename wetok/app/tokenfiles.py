"""`.wetok` files from strangers: whose they are, and how much they claim, before they are read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from wetok.app.models import Models
from wetok.app.photos import Limits, megas
from wetok.codec.file import opened
from wetok.codec.header import Header
from wetok.codec.tokens import ModelRef, Tokens
from wetok.config import ModelConfig, WetokError


class Opened(NamedTuple):
    """One image of a `.wetok` file."""

    tokens: Tokens
    label: str
    """Of its model on the page."""
    note: str


def open_tokens(path: str | Path, models: Models, limits: Limits) -> Opened:
    """The first image in a file.

    Raises:
        WetokError: not a `.wetok` file or a damaged one, by a model that is not here, or too large.
    """
    path = Path(path)
    try:
        if path.stat().st_size > limits.max_bytes:
            raise WetokError(f"{path.name} is larger than {megas(limits.max_bytes)} MB.")
        with opened(path) as file:
            header = file.headers[0]
            label = models.label_of(header.fingerprint)
            if label is None:
                raise WetokError(
                    f"{path.name} was made by the model {header.name!r} ({header.fingerprint}), "
                    "which is not on this page. Whoever runs it can add it: wetok app --model"
                )
            tokenizer = models.get(label)
            _check(header, tokenizer.config, limits)
            ids = file.read(0, tokenizer.tables, images=[0])
            count = sum(one.images for one in file.headers)
    except WetokError as error:
        raise WetokError(str(error).replace(str(path), path.name)) from None
    except OSError:
        raise WetokError("The file is no longer here: please choose it again.") from None
    tokens = Tokens(
        torch.from_numpy(np.ascontiguousarray(ids)),
        header.size,
        ModelRef(header.name, header.fingerprint),
        header.group_bits,
        grey=header.grey,
        tables=tokenizer.tables,
    )
    note = f"The file holds {count} images; this is the first." if count > 1 else ""
    return Opened(tokens, label, note)


def _check(header: Header, config: ModelConfig, limits: Limits) -> None:
    """What a forged header could claim, before any memory is taken for it."""
    height, width = header.size
    if height * width > limits.max_pixels:
        raise WetokError(
            f"The file holds {width} x {height} pixels; this page takes "
            f"{megas(limits.max_pixels)} megapixels."
        )
    positions = tuple(-(-side // config.factor) for side in header.size)
    claimed = (header.groups, header.group_bits, header.latent)
    if claimed != (config.groups, config.group_bits, positions):
        raise WetokError("The file's header does not go with the model that it names.")
