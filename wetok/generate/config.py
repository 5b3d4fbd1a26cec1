"""The shape of a generator, and the published sizes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from wetok.config import Settings, WetokError, near, validate

MOST_BITS = 16
"""Bits of a group up to which its codes can be told apart by one output each."""


class GeneratorConfig(Settings):
    """A transformer over the ids of one tokenizer, for images of one size.

    `autoregressive`: positions row by row, and the groups of a position one after the other.
    `masked`: every position and group at once, in a few rounds.
    """

    kind: Literal["autoregressive", "masked"] = "autoregressive"
    groups: int = Field(ge=1, description="g: ids a position")
    group_bits: int = Field(ge=1, le=MOST_BITS, description="d': an id lies in [0, 2^d')")
    grid: tuple[int, int] = Field(description="positions down and across")
    classes: int = Field(0, ge=0, description="classes to ask for; 0: unconditional")
    class_names: tuple[str, ...] = Field((), description="of the classes, where they have any")
    width: int = Field(ge=8, description="channels of the transformer")
    depth: int = Field(ge=1, description="blocks over the positions")
    group_depth: int = Field(0, ge=0, description="autoregressive: blocks over the groups")
    heads: int = Field(ge=1)
    dropout: float = Field(0.1, ge=0, lt=1, description="of every branch and of the embeddings")
    class_dropout: float = Field(0.1, ge=0, lt=1, description="share trained without its class")
    rope_base: float = Field(10_000, gt=1)
    norm_eps: float = Field(1e-5, gt=0)
    silent_class: bool = Field(
        False, description="the class's queries and keys are zero, as in LlamaGen and the release"
    )
    source: Literal["bits", "ids"] = Field(
        "bits", description="masked: what it reads, signs of bits or an embedding of each id"
    )
    smoothing: float = Field(
        0.1, ge=0, lt=1, description="masked: share of a target spread over all codes in training"
    )
    tokenizer: str | None = Field(None, description="name of the tokenizer the ids are of")
    fingerprint: str | None = Field(None, description="and its fingerprint")

    @model_validator(mode="after")
    def _fits(self) -> GeneratorConfig:
        if min(self.grid) < 1:
            raise ValueError(f"grid={self.grid} must be positive")
        if self.width % self.heads or self.width // self.heads % 4:
            raise ValueError(
                f"width={self.width} must be heads={self.heads} times a multiple of 4, for pairs "
                "of channels turn with row and column"
            )
        if self.kind == "autoregressive" and self.groups > 1 and not self.group_depth:
            raise ValueError(
                f"group_depth=0: with groups={self.groups} an autoregressive generator needs "
                "blocks over the groups; give at least 1"
            )
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(
                f"class_names has {len(self.class_names)} names for classes={self.classes}"
            )
        if self.kind == "masked" and self.group_depth:
            raise ValueError(f"group_depth={self.group_depth} is for autoregressive generators")
        return self

    @property
    def positions(self) -> int:
        """h w: positions of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def codes(self) -> int:
        """2^d': codes of a group."""
        return int(2**self.group_bits)


_SHAPES = {"B": (1024, 24, 2, 16), "L": (1280, 36, 3, 20), "XL": (1536, 48, 4, 24)}
"""Size -> width, depth, group_depth, heads, as in the released configurations."""


def sized(
    size: str, *, kind: Literal["autoregressive", "masked"] = "autoregressive", **rest: object
) -> GeneratorConfig:
    """A generator of a published size, B, L or XL; `rest` are `GeneratorConfig`'s other fields.

    Raises:
        WetokError: no such size, or a bad setting.
    """
    if size not in _SHAPES:
        raise WetokError(f"size={size!r} must be B, L or XL{near(size, list(_SHAPES))}")
    width, depth, group_depth, heads = _SHAPES[size]
    settings = {
        "kind": kind,
        "width": width,
        "depth": depth,
        "heads": heads,
        "group_depth": group_depth if kind == "autoregressive" else 0,
    }
    return validate(GeneratorConfig, {**settings, **rest})
