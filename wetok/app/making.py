"""New pictures from a generator, where the page was given one."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image

from wetok.app.models import Models
from wetok.config import WetokError
from wetok.data.images import to_pil
from wetok.generate.folder import Generator
from wetok.generate.pictures import decode_ids
from wetok.generate.sampling import Sampling, sample

MOST = 9
ANY = "any"


class Maker(NamedTuple):
    """A generator with the model that its tokens are of."""

    name: str
    generator: Generator
    label: str
    """Of its tokenizer on the page."""

    @property
    def classes(self) -> list[str]:
        """What can be asked for; empty for an unconditional generator."""
        config = self.generator.config
        if not config.classes:
            return []
        return list(config.class_names) or [str(number) for number in range(config.classes)]


def maker_for(name: str, generator: Generator, models: Models) -> Maker:
    """The generator joined with its tokenizer, which must be among `models`.

    Raises:
        WetokError: it is not, or makes ids of another shape.
    """
    config = generator.config
    label = models.label_of(config.fingerprint) if config.fingerprint else config.tokenizer
    if label is None or label not in models.labels:
        raise WetokError(
            f"generator {name!r} makes tokens of {config.tokenizer!r} ({config.fingerprint}), "
            "which is not loaded: give that model, too, with --model"
        )
    own = models.get(label).config
    if (own.groups, own.group_bits) != (config.groups, config.group_bits):
        raise WetokError(
            f"generator {name!r} makes {config.groups} groups of {config.group_bits} bits; "
            f"{label!r} has {own.groups} of {own.group_bits}"
        )
    return Maker(name, generator, label)


def make(
    maker: Maker,
    models: Models,
    *,
    wanted: str = ANY,
    count: int = 4,
    seed: int = 0,
    temperature: float = 1.0,
    guidance: float = 1.0,
) -> list[Image.Image]:
    """New pictures, as `wetok generate` makes them with the same seeds (seed, seed + 1, ...).

    Args:
        wanted: one of `maker.classes`, or `ANY` for no class.

    Raises:
        WetokError: no such class, or a value outside its range.
    """
    if not 1 <= count <= MOST:
        raise WetokError(f"The number of pictures must lie in 1 to {MOST}.")
    labels = None
    if wanted != ANY:
        if wanted not in maker.classes:
            raise WetokError("There is no such class.")
        labels = [maker.classes.index(wanted)] * count
    seeds = list(range(seed, seed + count))
    sampling = Sampling(temperature=temperature, guidance=guidance)
    ids = sample(maker.generator, seeds, labels, sampling).cpu()
    return to_pil(decode_ids(models.get(maker.label), ids, None, seeds))
