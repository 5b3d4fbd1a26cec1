"""Does a written program do what the model does? Ids to the bit, pixels within a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wetok.config import WetokError
from wetok.data.images import find_images, load_image, to_tensor, to_uint8
from wetok.export.formats import Runner
from wetok.export.programs import Part, Shape
from wetok.model.decoder import sample_noise
from wetok.model.tokenizer import Tokenizer, pad_to_multiple

PHOTOS = Path(__file__).parent.parent / "assets" / "photos"
PIXEL_BOUND = 1e-4
"""Largest difference of a pixel in [-1,1]: an eightieth of a level of 255."""
NOISE = 1e-4
"""A bit may flip by rounding only where its latent is below this part of the latents' root mean
square; kernels that sum in another order differ by some 1e-6 of it."""


@dataclass(frozen=True)
class Case:
    """What one input came to. Encoders tell bits and latents, decoders pixels."""

    name: str
    shape: list[int]
    bits: int | None = None
    bits_differing: int | None = None
    least_latent: float | None = None
    """Smallest |latent|: how near a bit came to flipping."""
    flipped_latent: float | None = None
    """Largest |latent| of a bit that differs."""
    pixel_difference: float | None = None
    """Largest, of values in [-1,1]."""
    levels: int | None = None
    """The same between pixels rounded to 8 bits."""

    def told(self) -> dict[str, Any]:
        """For the manifest: without what the part has not."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def inputs(factor: int, shape: Shape) -> list[tuple[str, Tensor]]:
    """The sample photographs in the sizes and batches that `shape` leaves open.

    Open in all: each photograph whole, a batch of pieces of them, a strip of one position's
    height, and the smallest image of all.
    """
    photos = [(path.name, to_tensor(load_image(path))) for path in find_images(PHOTOS)]
    cases = [(name, _fitted(image, factor, shape)[None]) for name, image in photos]
    if shape.batch is not None:
        rows = [cases[index % len(cases)][1] for index in range(shape.batch)]
        if shape.height is None or shape.width is None:
            small = Shape(1, shape.height or 7 * factor, shape.width or 9 * factor)
            rows = [_fitted(row[0], factor, small)[None] for row in rows]
        return [("batch", torch.cat(rows))]
    small = Shape(1, shape.height or 5 * factor, shape.width or 7 * factor)
    cases.append(("batch", torch.stack([_fitted(image, factor, small) for _, image in photos])))
    if shape.height is None:
        cases.append(("strip", photos[0][1][None, :, :factor, : 9 * factor]))
    if shape.height is None and shape.width is None:
        cases.append(("smallest", photos[1][1][None, :, :factor, :factor]))
    return [(name, image.contiguous()) for name, image in cases]


def _fitted(image: Tensor, factor: int, shape: Shape) -> Tensor:
    """[3,H,W] cut, or continued by reflection, to the sides that are set and to multiples."""
    for axis, side in ((1, shape.height), (2, shape.width)):
        if side is not None:
            have = image.shape[axis]
            if have < side:
                image = image.repeat_interleave(-(-side // have), axis)
            image = image.narrow(axis, (image.shape[axis] - side) // 2, side)
    return pad_to_multiple(image, factor)


def check(
    tokenizer: Tokenizer, part: Part, run: Runner, shape: Shape, allow_bits: int = 0
) -> list[Case]:
    """Holds a loaded program against `tokenizer` on the sample photographs.

    Args:
        allow_bits: how many bits in all may differ, if they are near enough to zero to be noise.

    Raises:
        WetokError: ids or pixels differ by more than is allowed.
    """
    cases = inputs(tokenizer.config.factor, shape)
    if part == "encoder":
        return _check_encoder(tokenizer, run, cases, allow_bits)
    return _check_decoder(tokenizer, run, cases)


def _check_encoder(
    tokenizer: Tokenizer, run: Runner, cases: Sequence[tuple[str, Tensor]], allow_bits: int
) -> list[Case]:
    found = []
    for name, image in cases:
        wanted = tokenizer.encode(image, tiles="off", precision="float32").ids.long()
        given = run(image)
        if given.shape != wanted.shape or given.dtype != torch.int64:
            raise WetokError(
                f"the exported encoder gives {given.dtype} {list(given.shape)} on {name}, not "
                f"int64 {list(wanted.shape)}"
            )
        latent = _latent(tokenizer, image)
        shift = torch.arange(tokenizer.config.group_bits)[:, None, None]
        differ = (((given ^ wanted)[:, :, None] >> shift) & 1).flatten(1, 2).bool()
        flipped = latent.abs()[differ]
        noise = NOISE * float(latent.square().mean().sqrt())
        case = Case(
            name,
            list(image.shape),
            bits=differ.numel(),
            bits_differing=int(differ.sum()),
            least_latent=float(latent.abs().min()),
            flipped_latent=float(flipped.max()) if len(flipped) else None,
        )
        if case.flipped_latent is not None and case.flipped_latent > noise:
            raise WetokError(
                f"the exported encoder's ids differ from the model's on {name}: "
                f"{case.bits_differing} of {case.bits} bits, one where the latent is "
                f"{case.flipped_latent:.2g}, too far from 0 for rounding; nothing was written"
            )
        found.append(case)
    differing = sum(case.bits_differing or 0 for case in found)
    if differing > allow_bits:
        where = ", ".join(case.name for case in found if case.bits_differing)
        raise WetokError(
            f"the exported encoder's ids differ from the model's on {where}: {differing} of "
            f"{sum(case.bits or 0 for case in found)} bits, by rounding where the latent is near "
            f"0; nothing was written (--allow-bits {differing} takes it all the same)"
        )
    return found


def _latent(tokenizer: Tokenizer, image: Tensor) -> Tensor:
    with torch.no_grad():
        rows = [tokenizer.model.encoder(one.to(tokenizer.device)) for one in image.split(1)]
    return torch.cat(rows).cpu()


def _check_decoder(
    tokenizer: Tokenizer, run: Runner, cases: Sequence[tuple[str, Tensor]]
) -> list[Case]:
    found = []
    for name, image in cases:
        tokens = tokenizer.encode(image, tiles="off", precision="float32")
        seeds = list(range(len(tokens)))
        wanted = tokenizer.decode(
            tokens, seed=seeds, output="float", tiles="off", precision="float32"
        ).cpu()
        given_inputs = [tokens.ids.long()]
        if tokenizer.config.generative:
            sides = (tokenizer.config.bits, *tokens.ids.shape[2:])
            given_inputs.append(sample_noise(seeds, sides, torch.zeros(())))
        given = run(*given_inputs)
        if given.shape != wanted.shape:
            raise WetokError(
                f"the exported decoder gives {list(given.shape)} on {name}, not "
                f"{list(wanted.shape)}"
            )
        difference = float((given - wanted).abs().max())
        if not difference <= PIXEL_BOUND:  # NaN is refused, too
            raise WetokError(
                f"the exported decoder's pixels differ from the model's on {name} by "
                f"{difference:.2g} of [-1,1], more than {PIXEL_BOUND:g}; nothing was written"
            )
        levels = (to_uint8(given).short() - to_uint8(wanted).short()).abs()
        found.append(
            Case(
                name,
                list(image.shape),
                pixel_difference=difference,
                levels=int(levels.max()),
            )
        )
    return found
