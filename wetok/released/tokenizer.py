"""Reads the published WeTok and Open-MAGVIT2 checkpoints.

The layout, as those projects' training code writes it: a pickled dict whose `state_dict` holds
`encoder.*` and `decoder.*`, `loss.*` (discriminator, LPIPS), and `model_ema.*`: the averaged
weights, named by the parameters' names with the dots removed. A model trained in a second stage
has its encoder frozen, so that the averages hold the decoder only. Settings stand in a YAML file
beside it, or follow from the tensors' shapes (all but the number of groups).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from wetok.config import ModelConfig, WetokError, validate
from wetok.model.network import TokenizerNetwork
from wetok.released.pickles import listed, load_pickled, plain, state_dict_of

HALVES = ("encoder", "decoder")

_EMA = "model_ema."
_QUANTIZER_BUFFER = re.compile(r"quantize\.(mask(_\d+)?|pre_mask|post_mask|zero|codebook)")
_METRICS = ("inception_model.", "lpips_alex.", "lpips_vgg.", "colorize")


@dataclass(frozen=True)
class ImportReport:
    """What became of a checkpoint's tensors; `used` and `set_aside` together are all of them."""

    used: int
    """Tensors that the network was made of."""
    set_aside: dict[str, int]
    """Tensors that it has no use for, counted by what they are."""
    encoder: Literal["ema", "raw"]
    """Which of its weights the encoder was given."""
    decoder: Literal["ema", "raw"]
    ema_decay: float | None
    """Decay of the averages; None where the file has none."""
    ema_updates: int | None
    """Updates that the averages saw; None where they weren't counted (as published)."""
    step: int | None
    """Training step at which the file was written, where it says so."""


@dataclass(frozen=True)
class ReleasedModel:
    """A published model as this package's network (float32, in eval mode), and its report."""

    network: TokenizerNetwork
    report: ImportReport


@dataclass(frozen=True)
class _Sorted:
    """A state dict by what its tensors are for."""

    raw: dict[str, Tensor]
    """`encoder.*` and `decoder.*`, by those names."""
    ema: dict[str, Tensor]
    """Their averages, by the names without dots (and without `model_ema.`)."""
    aside: Counter[str]
    unexpected: list[str]


def read_released(
    path: str | Path,
    config: str | Path | ModelConfig | None = None,
    groups: int | None = None,
    weights: Literal["ema", "raw"] = "ema",
) -> ReleasedModel:
    """The network in the published checkpoint at `path`.

    Args:
        config: the released YAML beside it, or settings; None reads them off the tensors.
        groups: g, which no tensor tells: needed without `config`, and checked against it.
        weights: "ema" for the averaged weights (what the published scores are of), "raw" for
            the last step's.

    Raises:
        WetokError: no checkpoint, one that holds more than plain data, settings that are missing
            or contradict it, and tensors that are missing, unexpected, of another shape or not
            finite, by their names.
    """
    path = Path(path)
    if weights not in ("ema", "raw"):
        raise WetokError(f"weights={weights!r} must be 'ema' or 'raw'")
    checkpoint = load_pickled(path)
    sort = _sort(state_dict_of(checkpoint, path))
    if not sort.raw and not sort.ema:
        raise WetokError(
            f"checkpoint={path}: no encoder.* or decoder.* tensors in it, so it is no WeTok or "
            "Open-MAGVIT2 tokenizer"
        )
    if config is None:
        config = infer_config(_shapes(sort), groups, path)
    elif not isinstance(config, ModelConfig):
        config = read_config(Path(config))
    if groups is not None and groups != config.groups:
        raise WetokError(f"groups={groups} contradicts the settings' {config.groups}; leave it out")

    with torch.device("meta"):  # its weights come from the file
        network = TokenizerNetwork(config)
    sources = {half: _source(half, weights, sort, path) for half in HALVES}
    chosen = _match(network, sort, sources, path)
    for half in HALVES:
        prefix = f"{half}."
        state = {
            name.removeprefix(prefix): plain(name, tensor, path)
            for name, tensor in chosen.items()
            if name.startswith(prefix)
        }
        getattr(network, half).load_state_dict(state, assign=True)
    return ReleasedModel(network.eval(), _report(checkpoint, sort, sources, len(chosen)))


def read_config(path: Path) -> ModelConfig:
    """The settings in a released YAML file: the block that holds `ddconfig`, wherever it stands.

    WeTok's and Open-MAGVIT2's files keep it under `model.init_args`, their generators' under
    `first_stage_config.params`.

    Raises:
        WetokError: no readable YAML, a setting missing or of the wrong kind, or another model's.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WetokError(f"config={path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WetokError(f"config={path}: not YAML: {' '.join(str(error).split())}") from None
    blocks = list(_model_blocks(tree, ""))
    if len(blocks) != 1:
        raise WetokError(
            f"config={path}: {len(blocks)} blocks hold a ddconfig, where the released YAML of a "
            "tokenizer has one"
        )
    name, block = blocks[0]
    shape = block["ddconfig"]
    bits, latent = _whole(block, "embed_dim", path), _whole(shape, "z_channels", path)
    codes = _whole(block, "n_embed", path)
    groups = _whole(block, "num_codebooks", path) if "num_codebooks" in block else 1
    if bits != latent or groups < 1 or bits % groups or codes != 2 ** (bits // groups):
        raise WetokError(
            f"config={path}: embed_dim={bits}, z_channels={latent}, n_embed={codes}, "
            f"num_codebooks={groups}: a lookup-free quantizer has embed_dim = z_channels and "
            "n_embed = 2^(embed_dim/num_codebooks)"
        )
    for key in ("in_channels", "out_ch"):
        if shape.get(key, 3) != 3:
            raise WetokError(f"config={path}: {key}={shape[key]!r} must be 3, for RGB images")
    settings = {
        "bits": bits,
        "groups": groups,
        "channels": _whole(shape, "ch", path),
        "mults": shape.get("ch_mult"),
        "blocks": _whole(shape, "num_res_blocks", path),
        # The pretraining code of the generative decoder is a class of its own instead.
        "generative": block.get("gan_decoder", "gan_decoder" in name),
    }
    try:
        return validate(ModelConfig, settings)
    except WetokError as error:
        raise WetokError(f"config={path}: {error}") from None


def infer_config(
    shapes: Mapping[str, tuple[int, ...]], groups: int | None, path: Path
) -> ModelConfig:
    """The settings that tensors of these shapes follow from; keys are names without dots.

    Raises:
        WetokError: `groups` not given, or shapes that are not such a tokenizer's.
    """

    def shape(name: str) -> tuple[int, ...]:
        try:
            found = shapes[name.replace(".", "")]
        except KeyError:
            raise WetokError(
                f"{path}: no {name} in it, so it is no WeTok or Open-MAGVIT2 tokenizer"
            ) from None
        if len(found) != 4:
            raise WetokError(
                f"{path}: {name} has shape {list(found)}, where a tokenizer of images has four "
                "sides (a video tokenizer has five)"
            )
        return found

    bits = shape("encoder.conv_out.weight")[0]
    if groups is None:
        raise WetokError(
            f"{path}: groups is missing, and no tensor tells it: the file has {bits} bits a "
            f"position; give its YAML (--config) or groups (--groups), in WeTok {max(bits // 8, 1)}"
            " for 8 bits each, in Open-MAGVIT2 1"
        )
    channels = shape("encoder.conv_in.weight")[0]
    index = re.compile(r"encoderdown(\d+)block(\d+)conv1weight")
    found = [match for match in map(index.fullmatch, shapes) if match]
    # Counted rather than read off the highest, so that a stray number can't ask for billions.
    levels, blocks = (max(len({match[part] for match in found}), 1) for part in (1, 2))
    widths = [shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)]
    if any(width % channels for width in widths):
        raise WetokError(
            f"{path}: levels {widths} wide must be multiples of encoder.conv_in's {channels}"
        )
    entering = shape("decoder.conv_in.weight")[1]
    if entering not in (bits, 2 * bits):
        raise WetokError(
            f"{path}: decoder.conv_in.weight takes {entering} channels, which must be the "
            f"encoder's {bits} bits or, with noise beside them, {2 * bits}"
        )
    return validate(
        ModelConfig,
        {
            "bits": bits,
            "groups": groups,
            "channels": channels,
            "mults": tuple(width // channels for width in widths),
            "blocks": blocks,
            "generative": entering == 2 * bits,
        },
    )


def _sort(state: Mapping[str, Any]) -> _Sorted:
    raw: dict[str, Tensor] = {}
    ema: dict[str, Tensor] = {}
    aside: Counter[str] = Counter()
    unexpected: list[str] = []
    for key, value in state.items():
        average = key.removeprefix(_EMA)
        if not isinstance(value, Tensor):
            unexpected.append(key)
        elif key.startswith(tuple(f"{half}." for half in HALVES)):
            raw[key] = value
        elif key.startswith("loss."):
            aside["losses"] += 1
        elif key.startswith(_METRICS):
            aside["metrics"] += 1
        elif _QUANTIZER_BUFFER.fullmatch(key):
            aside["quantizer tables"] += 1
        elif key in (f"{_EMA}decay", f"{_EMA}num_updates"):
            aside["EMA counters"] += 1
        elif average != key and average.startswith(HALVES):
            ema[average] = value
        elif average != key and average.startswith("loss"):
            aside["EMA of the losses"] += 1
        else:
            unexpected.append(key)
    return _Sorted(raw, ema, aside, unexpected)


def _source(half: str, weights: str, sort: _Sorted, path: Path) -> Literal["ema", "raw"]:
    averaged = any(name.startswith(half) for name in sort.ema)
    plain = any(name.startswith(half) for name in sort.raw)
    if weights == "raw":
        if not plain and averaged:
            raise WetokError(f"{path}: weights='raw', but its {half} is there as 'ema' only")
        return "raw"
    if averaged:
        return "ema"
    if not sort.ema:
        raise WetokError(f"{path}: weights='ema', but it has no averaged weights; take 'raw'")
    # The second stage freezes the encoder, and frozen weights have no average.
    return "raw" if half == "encoder" else "ema"


def _match(
    network: TokenizerNetwork, sort: _Sorted, sources: Mapping[str, str], path: Path
) -> dict[str, Tensor]:
    """The file's tensor for every one of the network's, each used once; or all that is amiss."""
    expected = {
        f"{half}.{name}": tensor.shape
        for half in HALVES
        for name, tensor in getattr(network, half).state_dict().items()
    }
    undotted = {name.replace(".", ""): name for name in expected}
    if len(undotted) != len(expected):  # no such settings are known
        raise WetokError(f"{path}: names without dots don't tell its parameters apart; take 'raw'")
    unexpected = [*sort.unexpected, *(name for name in sort.raw if name not in expected)]
    unexpected += [_EMA + name for name in sort.ema if name not in undotted]

    chosen: dict[str, Tensor] = {}
    missing, misshapen = [], []
    for name, shape in expected.items():
        if sources[name.partition(".")[0]] == "ema":
            key, tensor = _EMA + name.replace(".", ""), sort.ema.get(name.replace(".", ""))
        else:
            key, tensor = name, sort.raw.get(name)
        if tensor is None:
            missing.append(key)
        elif tensor.shape != shape:
            misshapen.append(f"{key} {list(tensor.shape)} instead of {list(shape)}")
        else:
            chosen[name] = tensor
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    wrong = [f"{len(keys)} {kind}: {listed(keys)}" for kind, keys in kinds.items() if keys]
    if wrong:
        raise WetokError(
            f"{path}: its tensors aren't {_told(network.config)}{_instead(network.config, sort)}; "
            + "; ".join(wrong)
        )
    return chosen


def _told(config: ModelConfig) -> str:
    mults = "-".join(str(mult) for mult in config.mults)
    kind = "generative" if config.generative else "deterministic"
    return (
        f"a {kind} model's of {config.bits} bits, {config.channels} channels, mults {mults}, "
        f"{config.blocks} blocks a level"
    )


def _instead(config: ModelConfig, sort: _Sorted) -> str:
    """What the tensors look like, if that is another model than `config`."""
    try:
        found = infer_config(_shapes(sort), config.groups, Path())
    except WetokError:
        return " (damaged, or another model's)"
    return " (incomplete?)" if found == config else f" but {_told(found)}; check the config"


def _report(
    checkpoint: Mapping[str, Any], sort: _Sorted, sources: Mapping[str, Any], used: int
) -> ImportReport:
    state = checkpoint.get("state_dict", checkpoint)
    decay, updates = state.get(f"{_EMA}decay"), state.get(f"{_EMA}num_updates")
    step = checkpoint.get("global_step")
    aside = Counter(sort.aside)
    for kind, names in (("raw", sort.raw), ("ema", sort.ema)):
        for half in HALVES:
            if sources[half] != kind:
                count = sum(name.startswith(half) for name in names)
                aside[f"{'EMA' if kind == 'ema' else 'raw weights'} of the {half}"] += count
    return ImportReport(
        used=used,
        set_aside={kind: count for kind, count in aside.items() if count},
        encoder=sources["encoder"],
        decoder=sources["decoder"],
        ema_decay=float(decay) if isinstance(decay, Tensor) else None,
        # Counting is off where the number is negative.
        ema_updates=int(updates) if isinstance(updates, Tensor) and updates >= 0 else None,
        step=step if isinstance(step, int) else None,
    )


def _shapes(sort: _Sorted) -> dict[str, tuple[int, ...]]:
    tensors = {name.replace(".", ""): tensor for name, tensor in sort.raw.items()} | sort.ema
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _model_blocks(tree: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The blocks of a YAML tree that hold a `ddconfig`, with the class that each is for."""
    if isinstance(tree, dict):
        if isinstance(tree.get("ddconfig"), dict):
            yield name, tree
            return
        name = str(tree.get("class_path", tree.get("target", "")))
    for part in tree.values() if isinstance(tree, dict) else ():
        yield from _model_blocks(part, name)


def _whole(block: Mapping[str, Any], key: str, path: Path) -> int:
    value = block.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise WetokError(f"config={path}: {key}={value!r} must be a whole number")
    return value
