"""From ids to images: through the tokenizer, and onto a sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from wetok.codec.tokens import Tokens
from wetok.model.tokenizer import Tokenizer

_GAP = 4


def as_tokens(tokenizer: Tokenizer, ids: Tensor, size: tuple[int, int] | None = None) -> Tokens:
    """Ids [B,g,h,w] as if `tokenizer` had made them of images of `size` (by default h f, w f)."""
    factor = tokenizer.config.factor
    return Tokens(
        ids.cpu(),
        size or (ids.shape[-2] * factor, ids.shape[-1] * factor),
        tokenizer.ref,
        tokenizer.config.group_bits,
        tables=tokenizer.tables,
    )


def decode_ids(
    tokenizer: Tokenizer, ids: Tensor, size: tuple[int, int] | None, seeds: Sequence[int]
) -> Tensor:
    """Images [B,3,H,W] in [-1,1] of generated ids, one by one; `seeds` are of the decoder's noise.

    Raises:
        WetokError: ids of another tokenizer's shape.
    """
    images = [
        tokenizer.decode(as_tokens(tokenizer, one, size), seed=seed, output="float")
        for one, seed in zip(ids.split(1), seeds, strict=True)
    ]
    return torch.cat(images)


def sheet(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Images of one size on a sheet, row by row; by default about as many rows as columns."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    whole = Image.new(
        "RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white"
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        whole.paste(image, (column * (width + _GAP), row * (height + _GAP)))
    return whole
