"""What a run starts from: its images, networks and checkpoint, from the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from wetok.checkpoint import fingerprint, load_network
from wetok.config import ModelConfig, SourceConfig, TrainConfig, WetokError
from wetok.data.opening import open_source
from wetok.data.sources import Source
from wetok.losses.perceptual import LPIPS
from wetok.model.network import TokenizerNetwork
from wetok.model.quantizer import GroupedQuantizer
from wetok.train.adversary import Adversary
from wetok.train.state import checkpoints
from wetok.weights import find


def newest_checkpoint(folder: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; None for a run that begins.

    Raises:
        WetokError: a run is in the folder and `resume` is not given, or none is and it is.
    """
    found = checkpoints(folder / "checkpoints")
    if found and not resume:
        raise WetokError(
            f"out={folder} holds a run ({found[-1].name}): go on with --resume, or name "
            "another --out"
        )
    if resume and not found:
        raise WetokError(f"out={folder} holds no run to --resume: start without it")
    return found[-1] if resume else None


def check_same_model(config: TrainConfig, folder: Path) -> None:
    """Raises WetokError where the run in `folder` is one of another model."""
    before = _model_of(folder / "config.json")
    if before is not None and before != config.model:
        raise WetokError(
            f"out={folder} holds a run of another model: "
            f"{_differences(before, config.model)}; resume it with its own recipe"
        )


def check_shares(config: TrainConfig, world: int) -> None:
    """Raises WetokError where so many processes can't share a batch out evenly."""
    parts = config.run.accumulate
    for _, stretch in config.stretches():
        if stretch.data.batch % (parts * world):
            raise WetokError(
                f"data.batch={stretch.data.batch} can't be shared out to {world} processes in "
                f"run.accumulate={parts} parts: make it a multiple of {parts * world}"
            )


def open_images(config: TrainConfig) -> Source[Any]:
    """The training images of a run.

    Raises:
        WetokError: they can't be had; `data.train` is named.
    """
    train = config.data.train
    specs = [
        one.model_dump(exclude_defaults=True) if isinstance(one, SourceConfig) else one
        for one in (train if isinstance(train, tuple) else (train,))
    ]
    with naming("data.train"):
        return open_source(specs, cache=config.data.cache)


def perceptual_network(config: TrainConfig) -> LPIPS | None:
    """LPIPS, where any stretch of the run needs it.

    Raises:
        WetokError: its weights can't be had, or crops are too small for it.
    """
    crops = [c.data.crop for _, c in config.stretches() if c.loss.perceptual_weight]
    if not crops:
        return None
    loss = config.loss
    given = Path(loss.perceptual_weights) if loss.perceptual_weights else None
    lpips = LPIPS.from_file(find(f"lpips-{loss.perceptual}", given), loss.perceptual)
    if min(crops) < lpips.smallest:
        raise WetokError(
            f"data.crop={min(crops)}: LPIPS {loss.perceptual} needs at least {lpips.smallest} "
            "pixels; enlarge it, or set loss.perceptual_weight=0"
        )
    return lpips


def tokenizer_network(
    config: TrainConfig, begins: bool, stand_in: nn.Module | None = None
) -> TokenizerNetwork:
    """The network to train, random or, where the run `begins`, from `run.init`.

    A deterministic `run.init` of a generative model is widened, see `to_generative`; one of another
    shape is taken as far as it fits where `run.init_partial` says so, see `take_over`. What is
    trained behind a frozen encoder reads the tokens of `run.init` too.

    Args:
        stand_in: quantizer in place of the settings' own.

    Raises:
        WetokError: a quantizer that can't be, `run.init` can't be had or has another shape.
    """
    # All of them, so that what one of them refuses is told before the first step.
    quantizers = [quantizer(stretch) for _, stretch in config.stretches()]
    network = TokenizerNetwork(config.model, stand_in or quantizers[0])
    if config.run.init and begins:
        start, _ = load_network(config.run.init)
        made = fingerprint(start)
        if config.model.generative and not start.config.generative:
            start = start.to_generative()
        if start.config != config.model and not config.run.init_partial:
            raise WetokError(
                f"run.init={config.run.init!r} is another model: "
                f"{_differences(start.config, config.model)}; run.init_partial=true takes what fits"
            )
        take_over(network, start)
        if config.run.freeze == "encoder" and start.config == config.model:
            network.decodes = (made, *start.decodes)
    network.recompute(config.run.activation_checkpointing)
    return network


def take_over(network: nn.Module, start: nn.Module) -> None:
    """Gives `network` the weights of `start` by name, in place, as far as their shapes fit.

    Where a layer of `network` is larger, the corner that both have is taken. What it gains in
    inputs begins at zero and what it gains in outputs stays as initialised, so that a network of
    more bits or levels begins with what the smaller one can do.

    Raises:
        WetokError: less than half of the weights of `start` have a place.
    """
    theirs = start.state_dict()
    taken = 0
    for name, mine in network.state_dict().items():
        if name not in theirs or theirs[name].ndim != mine.ndim:
            continue
        found = theirs[name]
        corner = tuple(slice(min(a, b)) for a, b in zip(mine.shape, found.shape, strict=True))
        if mine.ndim > 1:
            mine[corner[0], found.shape[1] :] = 0
        mine[corner] = found[corner]
        taken += found[corner].numel()
    weights = sum(tensor.numel() for tensor in theirs.values())
    if 2 * taken < weights:
        raise WetokError(
            f"run.init is too different: {taken:,} of its {weights:,} weights have a place in the "
            "model; choose another, or leave run.init out"
        )


def adversary(config: TrainConfig) -> Adversary | None:
    """The discriminator, where the settings have one.

    Raises:
        WetokError: crops are too small for it.
    """
    if config.gan is None:
        return None
    made = Adversary(config.gan, config.run.accumulate)
    made.check_crop(min(stretch.data.crop for _, stretch in config.stretches()))
    return made


def quantizer(config: TrainConfig) -> GroupedQuantizer:
    """The quantizer with the losses of these settings."""
    loss = config.loss
    return GroupedQuantizer(
        config.model.bits,
        config.model.groups,
        entropy=loss.entropy if loss.entropy_weight else None,
        temperature=loss.temperature,
        eps=loss.epsilon,
    )


@contextmanager
def naming(setting: str) -> Iterator[None]:
    """Puts the setting's name before an error, for its value alone does not tell which it is."""
    try:
        yield
    except WetokError as error:
        raise WetokError(f"{setting}: {error}") from None


def _model_of(path: Path) -> ModelConfig | None:
    try:
        return ModelConfig.model_validate(json.loads(path.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _differences(one: ModelConfig, other: ModelConfig) -> str:
    mine, theirs = one.model_dump(), other.model_dump()
    return ", ".join(f"{k}={mine[k]} there, {theirs[k]} here" for k in mine if mine[k] != theirs[k])
