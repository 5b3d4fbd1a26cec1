"""Reads the published checkpoints of WeTok's autoregressive generators.

The layout, as the public training code writes it: `state_dict` holds `transformer.*`, beside it
`first_stage_model.*`, the tokenizer, which `wetok.released.tokenizer` reads from its own file.

    transformer.0_emb.weight ... (g - 1)_emb.weight   of two groups: pre_emb, post_emb
    transformer.class_emb.embedding_table.weight      the last row: no class
    transformer.spatial_blocks.N.*                    over the positions
    transformer.factorized_blocks.N.*                 over the groups of a position
    transformer.norm.weight, transformer.head.K.weight
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wetok.config import WetokError, validate
from wetok.generate.autoregressive import AutoregressiveGenerator
from wetok.generate.config import GeneratorConfig
from wetok.released.pickles import listed, load_pickled, plain, state_dict_of

HEAD_WIDTH = 64
"""Channels of a head in every published configuration; no tensor tells it."""

_PREFIX = "transformer."
_BLOCKS = {"spatial_blocks": "blocks", "factorized_blocks": "group_blocks"}
_PARTS = {
    "attention.wqkv": "attention.qkv",
    "attention.wo": "attention.out",
    "attention_norm": "attention_norm",
    "feed_forward.w1": "feed.gate",
    "feed_forward.w3": "feed.up",
    "feed_forward.w2": "feed.down",
    "ffn_norm": "feed_norm",
}
# Left behind by sampling, where a checkpoint was written after it.
_CACHES = re.compile(r".*\.kv_cache\.[kv]_cache|freqs_cis|causal_mask")


@dataclass(frozen=True)
class ReleasedGenerator:
    """A published generator as this package's (float32, in eval mode)."""

    generator: AutoregressiveGenerator
    used: int
    """Tensors that it was made of."""
    set_aside: dict[str, int]
    """Tensors that it has no use for, counted by what they are."""
    step: int | None
    """Training step at which the file was written, where it says so."""


def is_generator(path: str | Path) -> bool:
    """Whether a published checkpoint is a generator's.

    Raises:
        WetokError: it can't be read as a checkpoint.
    """
    state = state_dict_of(load_pickled(Path(path)), Path(path))
    return any(key.startswith(f"{_PREFIX}spatial_blocks.") for key in state)


def read_generator(
    path: str | Path,
    grid: tuple[int, int] = (16, 16),
    heads: int | None = None,
    tokenizer: str | None = None,
    fingerprint: str | None = None,
) -> ReleasedGenerator:
    """The generator in the published checkpoint at `path`.

    Args:
        grid: positions down and across, which no tensor tells; the published ones have 16 x 16.
        heads: of attention; as many as give each 64 channels, if not told.
        tokenizer, fingerprint: of the tokenizer whose ids it makes, to go into its settings.

    Raises:
        WetokError: no checkpoint, one that holds more than plain data, another model's, or tensors
            that are missing, unexpected, of another shape or not finite, by their names.
    """
    path = Path(path)
    checkpoint = load_pickled(path)
    state, aside, strange = _sorted(state_dict_of(checkpoint, path))
    settings = _settings(state, path)
    width = settings["width"]
    if heads is None:
        heads = max(1, width // HEAD_WIDTH)
    config = validate(
        GeneratorConfig,
        {
            **settings,
            "grid": grid,
            "heads": heads,
            "silent_class": True,
            "tokenizer": tokenizer,
            "fingerprint": fingerprint,
        },
    )
    with torch.device("meta"):  # its weights come from the file
        generator = AutoregressiveGenerator(config)
    wanted = {name: tuple(value.shape) for name, value in generator.state_dict().items()}
    found = {name: tuple(value.shape) for name, (_, value) in state.items()}
    kinds = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(
            [*strange, *(state[name][0] for name in found.keys() - wanted.keys())]
        ),
        "of another shape": [
            f"{state[name][0]} {list(found[name])} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ],
    }
    wrong = [f"{len(keys)} {kind}: {listed(keys)}" for kind, keys in kinds.items() if keys]
    if wrong:
        raise WetokError(f"{path}: its tensors aren't a released generator's; {'; '.join(wrong)}")
    weights = {name: plain(key, tensor, path) for name, (key, tensor) in state.items()}
    generator.load_state_dict(weights, assign=True)
    step = checkpoint.get("global_step")
    return ReleasedGenerator(
        generator.eval(), len(weights), dict(aside), step if isinstance(step, int) else None
    )


def _sorted(
    state: Mapping[str, object],
) -> tuple[dict[str, tuple[str, Tensor]], Counter[str], list[str]]:
    """Our name -> name in the file and tensor; what is set aside, counted; and what is strange."""
    ours: dict[str, tuple[str, Tensor]] = {}
    aside: Counter[str] = Counter()
    strange: list[str] = []
    for key, value in state.items():
        own = key.removeprefix(_PREFIX)
        name = _name(own) if own != key else None
        if own == key:
            aside["tensors of the tokenizer" if key.startswith("first_stage") else "others"] += 1
        elif _CACHES.fullmatch(own):
            aside["caches of sampling"] += 1
        elif name is None or not isinstance(value, Tensor):
            strange.append(key)
        else:
            ours[name] = (key, value)
    return ours, aside, strange


def _name(key: str) -> str | None:
    """What our generator calls the tensor that the released code calls `key`."""
    if key == "norm.weight":
        return key
    if key == "class_emb.embedding_table.weight":
        return "condition.table.weight"
    if key in ("pre_emb.weight", "post_emb.weight"):
        return f"embeddings.{int(key.startswith('post'))}.weight"
    if match := re.fullmatch(r"(\d+)_emb\.weight", key):
        return f"embeddings.{match[1]}.weight"
    if match := re.fullmatch(r"head\.(\d+)\.weight", key):
        return f"heads.{match[1]}.weight"
    if match := re.fullmatch(r"(\w+_blocks)\.(\d+)\.(.+)\.weight", key):
        blocks, part = _BLOCKS.get(match[1]), _PARTS.get(match[3])
        return f"{blocks}.{match[2]}.{part}.weight" if blocks and part else None
    return None


def _settings(state: Mapping[str, tuple[str, Tensor]], path: Path) -> dict[str, int]:
    """The shape of the generator, read off its tensors."""

    def shape(name: str, told: str) -> tuple[int, int]:
        if name not in state or state[name][1].ndim != 2:
            raise WetokError(f"{path}: no {_PREFIX}{told} in it, so it is no released generator")
        rows, columns = state[name][1].shape
        return rows, columns

    def count(pattern: str) -> int:
        # Counted rather than read off the highest, so that a stray number can't ask for billions.
        return len({match[1] for match in (re.match(pattern, name) for name in state) if match})

    rows, width = shape("condition.table.weight", "class_emb.embedding_table.weight")
    groups = count(r"heads\.(\d+)\.")
    codes = [shape(f"heads.{group}.weight", f"head.{group}.weight")[0] for group in range(groups)]
    if len(set(codes)) != 1 or codes[0] & (codes[0] - 1):
        raise WetokError(
            f"{path}: its heads have {codes} codes; only generators of groups with one number of "
            "bits each can be read"
        )
    return {
        "groups": groups,
        "group_bits": codes[0].bit_length() - 1,
        "classes": rows - 1,
        "width": width,
        "depth": count(r"blocks\.(\d+)\."),
        "group_depth": count(r"group_blocks\.(\d+)\."),
    }
