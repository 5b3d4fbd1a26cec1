"""Drawing ids: temperature, top-k, top-p, guidance, and a seed for each image.

Random numbers are drawn for every image from its own seed, so an image does not change with the
images beside it (but for logits that differ in their last bits between sizes of a batch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wetok.config import WetokError
from wetok.generate.autoregressive import AutoregressiveGenerator
from wetok.generate.masked import MaskedGenerator

Schedule = Literal["constant", "linear", "cosine"]
Step = Callable[[], None]


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn from logits. A single number goes for all groups, several are one each.

    temperature   logits are divided by it; 0: the likeliest id
    top_k         keep this many codes; 0: all
    top_p         keep the likeliest codes that together have this probability; 1: all
    guidance      none + (class - none) * guidance; 1: none
    schedule      of guidance from the first id to the last: constant, or rising from 1 to its
                  value, linear or by half a cosine
    rounds        masked generators: how often all hidden ids are guessed
    noise         masked generators: temperature of the choice which guesses stay, falling to 0
    """

    temperature: float | tuple[float, ...] = 1.0
    top_k: int | tuple[int, ...] = 0
    top_p: float | tuple[float, ...] = 1.0
    guidance: float | tuple[float, ...] = 1.0
    schedule: Schedule = "constant"
    rounds: int = 16
    noise: float = 4.5

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, math.inf),
            ("top_k", 0, math.inf),
            ("top_p", 0.0, 1.0),
            ("guidance", 0.0, math.inf),
            ("noise", 0.0, math.inf),
        ):
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if not low <= value <= high or math.isinf(value):
                    limit = f"in [{low}, {high}]" if high < math.inf else f"finite, {low} or more"
                    raise WetokError(f"{name}={value!r} must be {limit}")
        if self.top_p == 0 or (isinstance(self.top_p, tuple) and 0 in self.top_p):
            raise WetokError("top_p=0 keeps no code at all; give more, or temperature=0")
        if self.schedule not in ("constant", "linear", "cosine"):
            raise WetokError(f"schedule={self.schedule!r} must be constant, linear or cosine")
        if self.rounds < 1:
            raise WetokError(f"rounds={self.rounds} must be at least 1")

    def of_group(self, group: int, groups: int) -> Sampling:
        """The same with a single number each: those of one group.

        Raises:
            WetokError: another number of values than there are groups.
        """
        own = {}
        for name in ("temperature", "top_k", "top_p", "guidance"):
            values = getattr(self, name)
            if isinstance(values, tuple):
                if len(values) != groups:
                    raise WetokError(
                        f"{name}={values!r}: {len(values)} values for {groups} groups; give one, "
                        "or one a group"
                    )
                own[name] = values[group]
        return self if not own else Sampling(**{**self.__dict__, **own})

    def guidance_at(self, progress: float) -> float:
        """The scale at a point in [0, 1] from the first id to the last; for one group."""
        assert not isinstance(self.guidance, tuple)
        if self.schedule == "constant":
            return self.guidance
        rise = progress if self.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return 1 + (self.guidance - 1) * rise


@torch.inference_mode()
def sample(
    generator: AutoregressiveGenerator | MaskedGenerator,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    step: Step = lambda: None,
) -> Tensor:
    """Ids [B,g,h,w] of new images.

    Args:
        seeds: one an image, in [0, 2^63).
        labels: classes, one an image; None, or `config.classes`, for no class.
        sampling: how to draw; plain draws by default.
        step: called after each position (or round, of a masked generator).

    Raises:
        WetokError: seeds or labels that don't fit; guidance of an unconditional generator.
    """
    config, sampling = generator.config, sampling or Sampling()
    by_group = [sampling.of_group(group, config.groups) for group in range(config.groups)]
    device = next(generator.parameters()).device
    if not seeds:
        raise WetokError("seeds=[]: give one an image")
    if any(not 0 <= seed < 2**63 for seed in seeds):
        raise WetokError(f"seeds={list(seeds)!r} must lie in [0, 2^63)")
    if labels is not None and len(labels) != len(seeds):
        raise WetokError(f"labels: {len(labels)} labels for {len(seeds)} seeds; give one each")
    guided = any(one.guidance != 1 for one in by_group)
    if guided and not config.classes:
        raise WetokError(
            f"guidance={sampling.guidance!r}: this generator knows no classes; leave it at 1"
        )
    wanted = torch.tensor(list(labels) if labels is not None else [config.classes] * len(seeds))
    was_training = generator.training
    generator.eval()
    try:
        draw = _autoregressive if isinstance(generator, AutoregressiveGenerator) else _masked
        return draw(generator, wanted.to(device), seeds, by_group, guided, step)  # type: ignore[arg-type]
    finally:
        generator.train(was_training)


def _autoregressive(
    generator: AutoregressiveGenerator,
    labels: Tensor,
    seeds: Sequence[int],
    sampling: list[Sampling],
    guided: bool,
    step: Step,
) -> Tensor:
    config, batch = generator.config, len(labels)
    uniform = uniforms(seeds, (config.positions, config.groups)).to(labels.device)
    both = _with_none(labels, config.classes) if guided else labels
    decoding = generator.decoding(both)
    ids = labels.new_empty(batch, config.positions, config.groups)
    for position in range(config.positions):
        progress = position / max(1, config.positions - 1)
        for group, options in enumerate(sampling):
            logits = decoding.logits()
            if guided:
                logits = mixed(logits, options.guidance_at(progress))
            drawn = draw(logits, uniform[:, position, group], options)
            ids[:, position, group] = drawn
            decoding.take(torch.cat([drawn, drawn]) if guided else drawn)
        step()
    return ids.transpose(1, 2).unflatten(2, config.grid)


def _masked(
    generator: MaskedGenerator,
    labels: Tensor,
    seeds: Sequence[int],
    sampling: list[Sampling],
    guided: bool,
    step: Step,
) -> Tensor:
    """MaskGIT's rounds: guess all, keep the surest, hide the rest again by a cosine schedule."""
    config, batch, rounds = generator.config, len(labels), sampling[0].rounds
    count = config.positions * config.groups
    rounds = min(rounds, count)
    shape = (batch, config.groups, *config.grid)
    # Two numbers an id and round: for the guess, and for whether it stays.
    uniform = uniforms(seeds, (rounds, 2, config.groups, config.positions)).to(labels.device)
    both = _with_none(labels, config.classes) if guided else labels
    ids = labels.new_zeros(shape)
    hidden = torch.ones(shape, dtype=torch.bool, device=labels.device)
    for number in range(rounds):
        progress = number / max(1, rounds - 1)
        twice = 2 if guided else 1
        logits = generator(ids.repeat(twice, 1, 1, 1), hidden.repeat(twice, 1, 1, 1), both)
        guesses, sureness = [], []
        for group, options in enumerate(sampling):
            own = logits[:, :, group]
            if guided:
                own = mixed(own, options.guidance_at(progress))
            guess = draw(own, uniform[:, number, 0, group], options)
            guesses.append(guess)
            sureness.append(own.double().log_softmax(-1).gather(-1, guess[..., None])[..., 0])
        guessed = torch.stack(guesses, 1).view(shape)
        ids = torch.where(hidden, guessed, ids)
        left = math.floor(count * math.cos(math.pi / 2 * (number + 1) / rounds))
        left = max(0, min(left, count - (number + 1)))  # each round settles one at least
        gumbel = -(-uniform[:, number, 1].clamp_min(1e-300).log()).clamp_min(1e-300).log()
        sure = torch.stack(sureness, 1) + sampling[0].noise * (1 - (number + 1) / rounds) * gumbel
        sure = sure.flatten(1).masked_fill(~hidden.flatten(1), math.inf)  # settled ones stay so
        order = sure.argsort(dim=1).argsort(dim=1)
        hidden = (order < left).view(shape)
        step()
    return ids


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Ids [...] drawn from logits [...,K] by random numbers [...] in [0, 1): inverse of the CDF."""
    wide = logits.double()
    if sampling.temperature == 0:
        return wide.argmax(-1)
    assert not isinstance(sampling.temperature, tuple)
    kept = filtered(wide / sampling.temperature, sampling)
    mass = kept.softmax(-1).cumsum(-1)
    total = mass[..., -1:]
    index = torch.searchsorted(mass, uniform.to(mass.dtype)[..., None] * total, right=True)
    return torch.minimum(index, (mass < total).sum(-1, keepdim=True))[..., 0]


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits [...,K] with -inf where top-k and then top-p leave a code out.

    Of equally likely codes at the border top-k keeps all. Top-p keeps the likeliest codes up to
    the first with which they reach `top_p` (Holtzman et al., ICLR 2020), so at least one.
    """
    assert not isinstance(sampling.top_k, tuple) and not isinstance(sampling.top_p, tuple)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True, stable=True)
        share = ordered.softmax(-1)
        before = share.cumsum(-1) - share
        out = (before >= sampling.top_p).scatter(-1, places, before >= sampling.top_p)
        logits = logits.masked_fill(out, -math.inf)
    return logits


def mixed(logits: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance of logits [2B,...], with class and then without: [B,...]."""
    known, none = logits.chunk(2)
    return none + (known - none) * guidance


def uniforms(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """float64 [B,...] in [0, 1), each image's from its own seed, on the CPU."""
    drawn = [
        torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(drawn)


def _with_none(labels: Tensor, classes: int) -> Tensor:
    return torch.cat([labels, torch.full_like(labels, classes)])
