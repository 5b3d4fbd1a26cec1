"""One photograph through a model and back, with what that takes and how near it comes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from wetok.app.photos import Photo
from wetok.codec.tokens import Tokens
from wetok.commands.picture import is_grey
from wetok.commands.scores import Score, score
from wetok.data.images import to_tensor, to_uint8
from wetok.evaluate.systems import now
from wetok.losses.perceptual import LPIPS
from wetok.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Closeness:
    """How near a picture comes to its original."""

    psnr: float
    """dB; infinite for equal pictures."""
    ssim: float | None
    lpips: float | None
    """LPIPS-alex. Either is None for a picture that is too small for it."""


@dataclass(frozen=True)
class Seen:
    """What a visitor looks at: tokens, the picture they give and, if known, the original."""

    name: str
    label: str
    """Of the model on the page."""
    tokens: Tokens
    """Of one image."""
    again: Image.Image
    """Decoded with `seed`: RGB."""
    seed: int
    file: bytes
    """The `.wetok` file."""
    decode_seconds: float
    encode_seconds: float | None = None
    original: Image.Image | None = None
    """RGB; None where only a `.wetok` file was given."""
    file_bytes: int | None = None
    """Of the photograph's own file."""
    closeness: Closeness | None = None
    note: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.tokens.size

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def bits(self) -> int:
        """Of the ids, in fixed length."""
        return self.tokens.ids.numel() * self.tokens.group_bits

    @property
    def bpp(self) -> float:
        """Bits a pixel in fixed length."""
        return self.bits / self.pixels

    @property
    def coded_bpp(self) -> float:
        """Bits a pixel of the whole file, entropy-coded."""
        return 8 * len(self.file) / self.pixels


def look(
    tokenizer: Tokenizer, label: str, photo: Photo, seed: int = 0, lpips: LPIPS | None = None
) -> Seen:
    """Sends a photograph through `tokenizer` and measures what comes back.

    The numbers are those of `wetok eval --protocol original`, the file that of `wetok encode`.

    Raises:
        WetokError: a seed outside [0, 2^63).
    """
    began = now(tokenizer.device)
    tokens = tokenizer.encode(photo.image)
    encoded = now(tokenizer.device)
    (again,) = tokenizer.decode(tokens, seed=seed)
    decoded = now(tokenizer.device)
    tokens = replace(tokens, grey=is_grey(photo.image))
    return Seen(
        photo.name,
        label,
        tokens,
        again,
        seed,
        tokens.to_bytes(),
        decode_seconds=decoded - encoded,
        encode_seconds=encoded - began,
        original=photo.image,
        file_bytes=photo.file_bytes,
        closeness=closeness(photo.image, again, lpips),
        note=photo.note,
    )


def look_at_tokens(
    tokenizer: Tokenizer, label: str, tokens: Tokens, name: str, seed: int = 0, note: str = ""
) -> Seen:
    """Decodes tokens that came without their original.

    Raises:
        WetokError: the tokens are another model's.
    """
    began = now(tokenizer.device)
    (again,) = tokenizer.decode(tokens, seed=seed)
    seconds = now(tokenizer.device) - began
    if tokens.grey:
        again = again.convert("L").convert("RGB")
    return Seen(name, label, tokens, again, seed, tokens.to_bytes(), seconds, note=note)


def closeness(original: Image.Image, again: Image.Image, lpips: LPIPS | None = None) -> Closeness:
    """Scores of two RGB images of one size."""
    near: Score = score(original, again)
    distance = None
    if lpips is not None and min(original.size) >= lpips.smallest:
        device = next(lpips.parameters(), torch.empty(0)).device
        with torch.no_grad():
            pair = [to_tensor(image)[None].to(device) for image in (again, original)]
            distance = lpips(*pair).item()
    return Closeness(near.psnr, near.ssim, distance)


def pixels_of(image: Image.Image) -> Tensor:
    """uint8 [3,H,W] of an RGB image."""
    return to_uint8(to_tensor(image))
