"""Settings of a generator's training run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from wetok.config import RunSettings, Settings, WetokError, validate
from wetok.data.tokens import About
from wetok.generate.config import GeneratorConfig, sized


class GeneratorShape(Settings):
    """The generator, but for what follows from the tokens: groups, bits, positions.

    Either `size` (B, L, XL: the released ones) or `width`, `depth` and `heads`.
    """

    kind: Literal["autoregressive", "masked"] = "autoregressive"
    size: Literal["B", "L", "XL"] | None = None
    width: int | None = Field(None, ge=8)
    depth: int | None = Field(None, ge=1, description="blocks over the positions")
    group_depth: int | None = Field(None, ge=0, description="autoregressive: over the groups")
    heads: int | None = Field(None, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    class_dropout: float = Field(0.1, ge=0, lt=1)
    source: Literal["bits", "ids"] = Field("bits", description="masked: what it reads")
    smoothing: float = Field(
        0.1, ge=0, lt=1, description="masked: share of a target spread over all codes"
    )

    @model_validator(mode="after")
    def _one_way(self) -> GeneratorShape:
        given = [name for name in ("width", "depth", "heads") if getattr(self, name) is not None]
        if self.size and given:
            raise ValueError(
                f"size={self.size!r} sets {', '.join(given)} too; give one or the other"
            )
        if not self.size and len(given) < 3:
            raise ValueError("give size (B, L or XL), or width, depth and heads")
        return self

    def of(self, about: About, classes: int, names: tuple[str, ...]) -> GeneratorConfig:
        """The whole of the settings, for tokens of which `about` tells.

        Raises:
            WetokError: tokens that no generator can be made for, or a shape that can't be.
        """
        if about.grid is None:
            raise WetokError(
                "tokens.train: images of several sizes; a generator makes one size: tokenise with "
                "--size"
            )
        rest: dict[str, Any] = {
            "groups": about.groups,
            "group_bits": about.group_bits,
            "grid": about.grid,
            "classes": classes,
            "class_names": names,
            "dropout": self.dropout,
            "class_dropout": self.class_dropout,
            "source": self.source,
            "smoothing": self.smoothing,
            "tokenizer": about.model,
            "fingerprint": about.fingerprint,
        }
        if self.size:
            return sized(self.size, kind=self.kind, **rest)
        depth = self.group_depth
        if depth is None:
            depth = int(self.kind == "autoregressive" and about.groups > 1)
        own = {"width": self.width, "depth": self.depth, "heads": self.heads}
        return validate(GeneratorConfig, {"kind": self.kind, "group_depth": depth, **own, **rest})


class TokensConfig(Settings):
    """Token shards, as `wetok tokenize` writes them."""

    train: str | tuple[str, ...] = Field(description="shards, or folders of them")
    val: str | tuple[str, ...] | None = None
    batch: int = Field(16, ge=1, description="images a step, over all processes")
    label: str | None = Field("label", description="column of the class; null: unconditional")
    classes: int | None = Field(None, ge=1, description="of labels that are numbers; else counted")
    tokenizer: str | None = Field(
        None, description="model to show samples with, where its name alone does not find it"
    )


class GeneratorTrainConfig(RunSettings):
    """A generator's training run; `wetok train RECIPE.yaml` reads one where it says `generator`."""

    generator: GeneratorShape
    tokens: TokensConfig

    @model_validator(mode="after")
    def _fits(self) -> GeneratorTrainConfig:
        run = self.run
        if self.gan is not None or run.freeze or run.init or run.init_partial:
            raise ValueError("gan, run.freeze and run.init are for tokenizers; leave them out")
        if self.optimizer.kind != "adam":
            raise ValueError(f"optimizer.kind={self.optimizer.kind!r} must be adam for a generator")
        if run.activation_checkpointing or run.channels_last:
            raise ValueError(
                "run.activation_checkpointing and run.channels_last are for tokenizers; leave them "
                "out"
            )
        if self.tokens.batch % run.accumulate:
            raise ValueError(
                f"run.accumulate={run.accumulate} must divide tokens.batch={self.tokens.batch}"
            )
        return self
