"""What the page can do for a visitor, without the page: plain values in, plain values out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from wetok.app import making
from wetok.app.damage import SWAP, Box, Damaged, damaged
from wetok.app.making import Maker
from wetok.app.maps import Map, invented
from wetok.app.models import Models
from wetok.app.photos import Limits, Photo, open_photo
from wetok.app.rivals import Rival, rivals
from wetok.app.seen import Closeness, Seen, closeness, look, look_at_tokens
from wetok.app.tokenfiles import open_tokens
from wetok.config import WetokError
from wetok.losses.perceptual import LPIPS

_KEPT = 32
_CHOOSE = "Choose a photo first, or open a .wetok file."
MOST_SEED = 2**31 - 1


class Hurt(NamedTuple):
    """A picture after damage to its tokens."""

    result: Damaged
    picture: Image.Image
    to_again: Closeness
    to_original: Closeness | None


class Desk:
    """Everything behind the page: models, limits, samples, and a generator where there is one.

    Whatever computes holds the models' lock, so that one visitor at a time has the processor.
    What a model makes of the sample photographs is kept, for most visitors begin with them.

    Args:
        samples: photographs to choose from.
        lpips: LPIPS-alex, or None where there is none.
    """

    def __init__(
        self,
        models: Models,
        limits: Limits,
        samples: list[Path],
        lpips: LPIPS | None = None,
        maker: Maker | None = None,
    ) -> None:
        self.models, self.limits, self.samples = models, limits, samples
        self.lpips, self.maker = lpips, maker
        self._kept: dict[tuple[int, str, int], Seen] = {}
        self._keeping = threading.Lock()

    def sample(self, index: int, label: object, seed: object = 0) -> Seen:
        """A sample photograph through a model.

        Raises:
            WetokError: no such sample, model or seed.
        """
        tokenizer, own_seed = self.models.get(label), self._seed(label, seed)
        if not 0 <= index < len(self.samples):
            raise WetokError("There is no such sample.")
        key = (index, str(label), own_seed)
        with self._keeping:
            known = self._kept.get(key)
        if known is not None:
            return known
        with self.models.lock:
            photo = open_photo(self.samples[index], self.limits)
            seen = look(tokenizer, str(label), photo, own_seed, self.lpips)
        with self._keeping:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = seen
        return seen

    def photo(self, path: str | Path | None, label: object, seed: object = 0) -> Seen:
        """A visitor's photograph through a model.

        Raises:
            WetokError: not a photograph that this page takes; no such model or seed.
        """
        if not path:
            raise WetokError(_CHOOSE)
        tokenizer, own_seed = self.models.get(label), self._seed(label, seed)
        with self.models.lock:
            photo = open_photo(path, self.limits)
            return look(tokenizer, str(label), photo, own_seed, self.lpips)

    def tokens(self, path: str | Path | None, seed: object = 0) -> Seen:
        """A visitor's `.wetok` file, decoded by the model that made it.

        Raises:
            WetokError: not such a file, by a model that is not here, or too large.
        """
        if not path:
            raise WetokError(_CHOOSE)
        with self.models.lock:
            tokens, label, note = open_tokens(path, self.models, self.limits)
            own_seed = self._seed(label, seed)
            name = Path(path).name
            return look_at_tokens(self.models.get(label), label, tokens, name, own_seed, note)

    def again(self, seen: Seen | None, label: object, seed: object = 0) -> Seen:
        """What a visitor looks at, by another model or with another seed.

        Raises:
            WetokError: nothing is looked at; tokens without an original, by another model.
        """
        seen = _given(seen)
        tokenizer, own_seed = self.models.get(label), self._seed(label, seed)
        if (seen.label, seen.seed) == (label, own_seed):
            return seen
        with self.models.lock:
            if seen.label == label:
                own = look_at_tokens(tokenizer, seen.label, seen.tokens, seen.name, own_seed)
                if seen.original is None:
                    return replace(own, note=seen.note)
                near = closeness(seen.original, own.again, self.lpips)
                return replace(
                    seen,
                    again=own.again,
                    seed=own_seed,
                    decode_seconds=own.decode_seconds,
                    closeness=near,
                )
            if seen.original is None:
                raise WetokError(
                    f"{seen.name} holds tokens of {seen.label}, which no other model can decode."
                )
            photo = Photo(seen.original, seen.name, seen.file_bytes or 0, seen.note)
            return look(tokenizer, str(label), photo, own_seed, self.lpips)

    def invent(self, seen: Seen | None, count: object) -> Map:
        """What a generative decoder made up, over `count` seeds.

        Raises:
            WetokError: nothing is looked at, or its decoder is deterministic.
        """
        seen = _given(seen)
        with self.models.lock:
            return invented(self.models.get(seen.label), seen, _whole(count))

    def rivals(self, seen: Seen | None) -> Iterator[Rival]:
        """Codecs in the bytes of its tokens, one after the other.

        Raises:
            WetokError: nothing is looked at, or it has no original.
        """
        found = rivals(_given(seen), self.lpips)
        while True:
            with self.models.lock:  # between two codecs others may go on
                one = next(found, None)
            if one is None:
                return
            yield one

    def hurt(
        self,
        seen: Seen | None,
        kind: object,
        *,
        percent: object = 0,
        group: object = 1,
        box: tuple[object, object, object, object] = (0, 0, 100, 100),
        other: str | Path | None = None,
        seed: object = 0,
    ) -> Hurt:
        """What its picture becomes when something happens to the tokens.

        Args:
            percent: of tokens or bits.
            group: from 1 on.
            box: left, top, width, height in percent.
            other: another photograph, cut to the same size, for its tokens.

        Raises:
            WetokError: nothing is looked at, or a value outside its range.
        """
        seen = _given(seen)
        tokenizer = self.models.get(seen.label)
        with self.models.lock:
            others = None
            if kind == SWAP and other:
                photo = open_photo(other, self.limits).image
                size = (seen.size[1], seen.size[0])
                others = tokenizer.encode(ImageOps.fit(photo, size, Image.Resampling.LANCZOS))
            result = damaged(
                seen.tokens,
                str(kind),
                share=_number(percent) / 100,
                group=_whole(group) - 1,
                box=Box(*(_number(one) / 100 for one in box)),
                other=others,
                seed=_whole(seed),
            )
            (picture,) = tokenizer.decode(result.tokens, seed=seen.seed)
            if seen.original is None:
                return Hurt(result, picture, closeness(seen.again, picture), None)
            near = closeness(seen.original, picture, self.lpips)
            return Hurt(result, picture, closeness(seen.again, picture), near)

    def make(
        self, wanted: object, count: object, seed: object, temperature: object, guidance: object
    ) -> list[Image.Image]:
        """New pictures by the generator.

        Raises:
            WetokError: there is none, or a value outside its range.
        """
        if self.maker is None:
            raise WetokError("This page has no generator.")
        with self.models.lock:
            return making.make(
                self.maker,
                self.models,
                wanted=str(wanted),
                count=_whole(count),
                seed=_seed(seed),
                temperature=_number(temperature),
                guidance=_number(guidance),
            )

    def _seed(self, label: object, seed: object) -> int:
        """0 for a deterministic decoder, which has no use for one."""
        return _seed(seed) if self.models.get(label).config.generative else 0


def _given(seen: Seen | None) -> Seen:
    if not isinstance(seen, Seen):
        raise WetokError(_CHOOSE)
    return seen


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise WetokError("Please fill in every number.")
    return float(value)


def _whole(value: object) -> int:
    number = _number(value)
    if number != int(number) or abs(number) > MOST_SEED:
        raise WetokError(f"{number:g} must be a whole number.")
    return int(number)


def _seed(value: object) -> int:
    seed = _whole(value)
    if seed < 0:
        raise WetokError(f"The seed {seed} must be 0 or more.")
    return seed
