"""What must hold for the training stream of every source."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wetok.data.images import to_tensor
from wetok.data.loader import TrainLoader
from wetok.data.sources import Source
from wetok.data.transforms import RandomCrop

CROP = 8


def picture(number: int) -> Image.Image:
    """A small image that no other number gives."""
    rng = np.random.default_rng((99, number))
    return Image.fromarray(rng.integers(0, 256, (12 + number % 5, 14, 3), np.uint8))


def encoded(number: int, format: str = "png") -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    picture(number).save(buffer, format)
    return buffer.getvalue()


def batches(source: Source[Any], count: int, batch: int = 3, **options: Any) -> list[torch.Tensor]:
    with TrainLoader(source, batch, CROP, seed=5, **options) as loader:
        return list(islice(loader, count))


def check_stream(opened: Callable[[], Source[Any]], broken: int = 0, steps: int = 8) -> None:
    """Workers, restarts at any step and the number of processes change nothing.

    Args:
        opened: opens the source anew.
        broken: how many of its images can't be decoded.
        steps: batches of 3 to look at.
    """
    source = opened()
    wanted = batches(source, steps)
    check_crops(source, wanted)
    assert all(
        torch.equal(a, b) for a, b in zip(batches(opened(), steps, workers=3), wanted, strict=True)
    )
    for stop in range(steps):
        with TrainLoader(opened(), 3, CROP, seed=5, workers=stop % 3) as loader:
            list(islice(loader, stop))
            state = loader.state_dict()
        with TrainLoader(opened(), 3, CROP, seed=5, workers=(stop + 1) % 3) as loader:
            loader.load_state_dict(state)
            assert torch.equal(next(loader), wanted[stop])
    whole = torch.cat(wanted)
    for world in (2, 3):
        stop = 1 if world == 2 else 0
        parts = []
        for rank in range(world):
            with TrainLoader(opened(), 2, CROP, seed=5, rank=rank, world=world, workers=2) as own:
                own.load_state_dict({"samples": 3 * stop})
                parts.append(torch.cat(list(islice(own, 3))))
        dealt = torch.stack(parts, 1).flatten(0, 1)
        assert torch.equal(dealt, whole[3 * stop : 3 * stop + len(dealt)])
    # An epoch has every image once, whoever of the processes gets it.
    epoch = list(islice(source.order(5, 0), len(source)))
    assert len(set(epoch)) == len(source)
    loader = TrainLoader(source, len(source), CROP, seed=5)
    next(loader)
    assert len(loader.failures) == broken + len(source.skipped)


def check_crops(source: Source[Any], wanted: list[torch.Tensor]) -> None:
    """The images are those of the source's own order, cut as `RandomCrop` does."""
    flat = torch.cat(wanted)
    for number, key in enumerate(islice(source.order(5, 0), len(flat))):
        try:
            image = source.read(key)
        except ValueError:
            continue  # another stands in for it
        crop = RandomCrop(CROP)(image, np.random.default_rng((5, 1, number)))
        assert torch.equal(flat[number], to_tensor(crop))


def numbers_of(source: Source[Any], pictures: int) -> list[int]:
    """Which `picture` each image of the source is, in the order of its keys 0, 1, ..."""
    known = {picture(number).tobytes(): number for number in range(pictures)}
    return [known[source.read(key).tobytes()] for key in range(len(source))]


def write_folder(folder: Path, numbers: range) -> Path:
    folder.mkdir(parents=True)
    for number in numbers:
        (folder / f"{number:03d}.png").write_bytes(encoded(number))
    return folder
