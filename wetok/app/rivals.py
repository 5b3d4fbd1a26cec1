"""Classical codecs beside a model: the same photograph in no more bytes than its tokens take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from wetok.app.seen import Closeness, Seen, closeness
from wetok.config import WetokError
from wetok.evaluate.codecs import CODECS, Codec, Coded, Encodings, why_not
from wetok.losses.perceptual import LPIPS

NAMES = ("jpeg", "webp", "avif")
AVIF_SPEED = 6
"""`wetok compare` takes 2, which is some twenty times slower and about 0.35 dB better."""


@dataclass(frozen=True)
class Rival:
    """A codec's file for a photograph."""

    title: str
    coded: Coded
    closeness: Closeness


def rivals(seen: Seen, lpips: LPIPS | None = None) -> Iterator[Rival]:
    """One after the other, those that can be used here, the quick ones first.

    Raises:
        WetokError: there is no original to encode.
    """
    if seen.original is None:
        raise WetokError("There is no original here to give to the codecs: choose a photo.")
    for codec in usable():
        coded = Encodings(codec, seen.original).at_bytes(len(seen.file))
        yield Rival(codec.title, coded, closeness(seen.original, coded.image, lpips))


def usable() -> list[Codec]:
    """The codecs of the page, as it uses them."""
    return [_quick(CODECS[name]) for name in NAMES if why_not(name) is None]


def _quick(codec: Codec) -> Codec:
    if codec.name != "avif":
        return codec
    variants = tuple({**one, "speed": AVIF_SPEED} for one in codec.variants)
    return replace(codec, variants=variants)
