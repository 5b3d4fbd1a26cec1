"""Models and codecs on the same images: codecs at each model's own bytes, and their curves.

    file -> protocol -> model A, model B ... -> bytes of each for this image
                     -> codec, at A's bytes; at B's bytes; at some fixed qualities

Every image is read once, and looked at by the networks once, for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wetok.config import WetokError, near
from wetok.evaluate.codec_systems import NO_SIZE, AtBytes, AtQuality, Encoder
from wetok.evaluate.codecs import Codec
from wetok.evaluate.crops import Crops
from wetok.evaluate.evaluation import Evaluation, Scored, score_together
from wetok.evaluate.networks import Networks
from wetok.evaluate.protocols import Protocol
from wetok.evaluate.receipt import finite
from wetok.evaluate.rows import file_size
from wetok.evaluate.systems import System, TokenizerSystem
from wetok.model.tokenizer import Tokenizer

FORMAT = 1


class Contest(NamedTuple):
    """A model, and codecs at its bytes; without codecs where nothing is to match it."""

    model: Evaluation
    codecs: list[Evaluation]


class Comparison:
    """Scores models and codecs together.

    At equal bytes: for each image, a codec gets as many bytes as the model's whole file for that
    very image, and takes its highest quality in them. A model without files counts as its codes of
    fixed length; without codes either, no codec can be set beside it. Where a codec's smallest
    file is larger still, that one is scored, and `results` tell how often and by how much.

    Args:
        models: tokenizers of ours, or any `System`; names must differ.
        codecs: to set beside them.
        protocol: how images are read and compared.
        networks: for LPIPS and Frechet distances.
        seed: of generative decoders' noise.
        budget_of: names of the models to match; all by default.
        curves: also score each codec at its qualities `curve`, over all images.
        crops: how many images to keep for `Crops` where a model beats its rivals, and where not.

    Raises:
        WetokError: no model; two of one name; `budget_of` names none of them.
    """

    def __init__(
        self,
        models: Sequence[Tokenizer | System],
        codecs: Sequence[Codec],
        protocol: Protocol,
        networks: Networks | None = None,
        seed: int = 0,
        budget_of: Sequence[str] | None = None,
        curves: bool = False,
        crops: int = 0,
    ) -> None:
        systems = [TokenizerSystem(m) if isinstance(m, Tokenizer) else m for m in models]
        names = [system.name for system in systems]
        if not names:
            raise WetokError("models: name at least one")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise WetokError(f"model {twice!r} is given twice: their rows could not be told apart")
        for name in budget_of or ():
            if name not in names:
                raise WetokError(f"budget_of={name!r} is none of the models{near(name, names)}")
        device = systems[0].device
        networks = networks or Networks()
        encoders = [Encoder(codec) for codec in codecs]
        self._scored: dict[int, Scored] = {}

        def evaluation(system: System) -> Evaluation:
            made = Evaluation(system, protocol, networks, seed)

            def keep(scored: Scored) -> None:
                # Of a large image the pixels count, and only crops want them.
                self._scored[id(made)] = scored if crops else scored._replace(samples=[])

            made.watch = keep
            return made

        own = [evaluation(system) for system in systems]
        self.contests = [
            Contest(
                model,
                [
                    evaluation(AtBytes(encoder, self._budget(model), _known(model), device))
                    for encoder in (encoders if budget_of is None or name in budget_of else ())
                ],
            )
            for name, model in zip(names, own, strict=True)
        ]
        self.curves = {
            encoder.codec.name: [
                Evaluation(AtQuality(encoder, quality, device), protocol, networks, seed)
                for quality in encoder.codec.curve
            ]
            for encoder in (encoders if curves else ())
        }
        self.codecs = {codec.name: codec for codec in codecs}
        self.crops = [Crops(crops, networks) for _ in self.contests] if crops else []

    @property
    def networks(self) -> Networks:
        """Those given."""
        return self.contests[0].model.networks

    def add_all(self, paths: Iterable[Path], step: Callable[[], None] = lambda: None) -> None:
        """Scores every image; several processes take a share each, as in `Evaluation`."""

        def after_each() -> None:
            for contest, crops in zip(self.contests, self.crops, strict=False):
                crops.offer(
                    self._seen(contest.model), [self._seen(r) for r in self._rivals(contest)]
                )
            self._scored.clear()
            step()

        score_together(list(self._evaluations()), paths, after_each)

    def gather(self) -> None:
        """Joins what all processes have scored; every one of them must call it, once."""
        for evaluation in self._evaluations():
            evaluation.gather()
        for crops in self.crops:
            crops.gather()

    @property
    def failures(self) -> list[str]:
        """What failed, a line each: by a file first, then by a model or codec alone."""
        lines = [line for evaluation in self._evaluations() for line in evaluation.failures]
        return [line for line in dict.fromkeys(lines) if NO_SIZE not in line]

    def results(self) -> dict[str, Any]:
        """All scores, as JSON can hold them.

        `contests`: of each model `model` (an evaluation's summary and `bytes`, the mean of its
        files) and `codecs`, each a summary with `bytes`, `budget` (the mean over the same images),
        `too_large` (how many files were larger than the model's) and `bytes_ratio` (all its bytes
        by all the model's). `curves`: codec -> summaries with `quality`.

        Raises:
            WetokError: a model, or no codec, scored any image.
        """
        contests = []
        for model, codecs in self.contests:
            scored = [codec for codec in codecs if len(codec.images)]
            contests.append(
                {
                    "model": {**model.summary(), "bytes": _mean_bytes(model)},
                    "codecs": [
                        {**codec.summary(), **self._about(codec), **_against(model, codec)}
                        for codec in scored
                    ],
                    "no_size": bool(codecs) and not scored,
                }
            )
        curves = {
            name: [
                {**one.summary(), "bytes": _mean_bytes(one), "quality": _quality(one)}
                for one in points
                if len(one.images)
            ]
            for name, points in self.curves.items()
        }
        found: dict[str, Any] = finite({"format": FORMAT, "contests": contests, "curves": curves})
        return found

    def _about(self, codec: Evaluation) -> dict[str, Any]:
        known = self.codecs[codec.system.name]
        return {"title": known.title, "library": known.version, "settings": list(known.variants)}

    def _evaluations(self) -> Iterator[Evaluation]:
        """Models first: the codecs' sizes depend on theirs."""
        yield from (contest.model for contest in self.contests)
        for contest in self.contests:
            yield from contest.codecs
        for points in self.curves.values():
            yield from points

    def _budget(self, model: Evaluation) -> Callable[[], int | None]:
        def budget() -> int | None:
            scored = self._scored.get(id(model))
            return None if scored is None else file_size(scored.row)

        return budget

    def _rivals(self, contest: Contest) -> list[Evaluation]:
        """Its codecs; where there are none, the other models."""
        others = [one.model for one in self.contests if one is not contest]
        return contest.codecs or others

    def _seen(self, evaluation: Evaluation) -> tuple[str, Scored | None]:
        name = evaluation.system.name
        title = self.codecs[name].title if isinstance(evaluation.system, AtBytes) else name
        return title, self._scored.get(id(evaluation))


def _known(evaluation: Evaluation) -> tuple[str, str]:
    return evaluation.system.name, evaluation.system.fingerprint


def _quality(evaluation: Evaluation) -> int:
    assert isinstance(evaluation.system, AtQuality)
    return evaluation.system.quality


def _mean_bytes(evaluation: Evaluation) -> float | None:
    sizes = [file_size(row) for row in evaluation.images]
    known = [size for size in sizes if size is not None]
    return sum(known) / len(known) if known and len(known) == len(sizes) else None


def _against(model: Evaluation, codec: Evaluation) -> dict[str, Any]:
    """A codec's sizes beside the model's, over the images that the codec could take."""
    rows = dict(zip(model.images.places, model.images, strict=True))
    pairs = [
        (file_size(row), file_size(rows[place]))
        for place, row in zip(codec.images.places, codec.images, strict=True)
    ]
    taken, given = (sum(size or 0 for size in sizes) for sizes in zip(*pairs, strict=True))
    return {
        "bytes": taken / len(pairs),
        "budget": given / len(pairs),
        "too_large": sum((own or 0) > (other or 0) for own, other in pairs),
        "bytes_ratio": taken / given,
    }
