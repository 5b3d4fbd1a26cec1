"""Typed, validated settings: the network's shape, a training run, YAML with `extends`, overrides.

Torch-free, so that `wetok --help` and `wetok models` answer at once.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)


class WetokError(ValueError):
    """A user's mistake, told in one line: the argument, its value, the rule and the remedy."""


Decay = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base of every settings block: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Settings):
    """The shape of a tokenizer's encoder, quantizer and decoder.

    `channels`, `mults` and `blocks` are C, the multipliers of each level and the residual blocks a
    level (WeTok's table of models); the decoder takes the encoder's where its own are None.
    `patch` folds patch x patch pixels into channels before the first convolution (and back after
    the last), so that no level runs at full resolution.
    """

    bits: int = Field(ge=1, description="d: bits a position, the channels of the latent")
    groups: int = Field(ge=1, description="g: groups the bits are cut into")
    channels: int = Field(ge=8, description="C: base channels of the encoder")
    mults: tuple[int, ...] = Field(min_length=1, description="channel multiplier of each level")
    blocks: int = Field(ge=1, description="B: residual blocks a level")
    decoder_channels: int | None = Field(None, ge=8)
    decoder_mults: tuple[int, ...] | None = None
    decoder_blocks: int | None = Field(None, ge=1)
    patch: int = Field(1, ge=1, description="side of the space-to-depth stem and head")
    generative: bool = Field(False, description="the decoder takes noise beside the code")

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.bits % self.groups:
            raise ValueError(f"groups={self.groups} must divide bits={self.bits}")
        if self.bits // self.groups > 62:
            raise ValueError(
                f"bits/groups={self.bits // self.groups} must be at most 62, so that an id fits "
                "int64; use more groups"
            )
        if min(self.mults) < 1:
            raise ValueError(f"mults={self.mults} must be positive")
        if self.decoder_mults is not None and min(self.decoder_mults, default=0) < 1:
            raise ValueError(f"decoder_mults={self.decoder_mults} must be positive")
        if self.decoder_mults is not None and len(self.decoder_mults) != len(self.mults):
            raise ValueError(
                f"decoder_mults={self.decoder_mults} must have as many levels as mults={self.mults}"
            )
        return self

    @property
    def group_bits(self) -> int:
        """d': bits of one group; its ids lie in [0, 2^d')."""
        return self.bits // self.groups

    @property
    def factor(self) -> int:
        """f: the side in pixels of the square that one position stands for."""
        return int(self.patch * 2 ** (len(self.mults) - 1))

    @property
    def bpp(self) -> float:
        """Bits a pixel before entropy coding, d/f^2."""
        return self.bits / self.factor**2

    @property
    def ratio(self) -> float:
        """Compression ratio against 24-bit RGB, 24/bpp."""
        return 24 / self.bpp


class SourceConfig(Settings):
    """A source of training images with options; docs/data.md tells which has which."""

    path: str = Field(min_length=1, description="folder, files, or hub:user/dataset")
    weight: float | None = Field(None, gt=0, description="share in a mixture")
    column: str | None = None
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    stream: bool = False


def _sources(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return _source(value)
    if not value:
        raise ValueError("the list of sources is empty; name a folder, files or hub:NAME")
    return tuple(_source(one) for one in value)


def _source(value: Any) -> Any:
    """A mapping as `SourceConfig`, so that what is wrong with it is told of the key itself."""
    if isinstance(value, Mapping):
        return validate(SourceConfig, dict(value))
    if not isinstance(value, (str, SourceConfig)):
        raise ValueError("must be a path, a mapping with a `path`, or a list of these")
    return value


Sources = Annotated[str | SourceConfig | tuple[str | SourceConfig, ...], BeforeValidator(_sources)]


class DataConfig(Settings):
    """Where photographs come from and how crops are cut from them."""

    train: Sources = Field(
        description="training images: a folder, shards, Parquet, a data set, or a list of these"
    )
    val: str | None = Field(None, description="folder of images to choose the best checkpoint by")
    crop: int = Field(256, ge=8, description="side of a training crop, pixels")
    batch: int = Field(16, ge=1, description="crops a step, over all processes")
    scale: tuple[float, float] | None = Field(
        (0.25, 1.0), description="area of a crop as a share of the image's; null never resamples"
    )
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width / height of a crop")
    flip: bool = True
    color: float = Field(0.0, ge=0, lt=1, description="strength of colour jitter")
    workers: int = Field(2, ge=0, description="decoding threads; 0 decodes in the training loop")
    cache: bool = Field(False, description="keep decoded images in memory")

    @model_validator(mode="after")
    def _ranges(self) -> DataConfig:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={list(self.scale)} must be a rising range within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio={list(self.ratio)} must be a rising range above 0")
        return self


class LossConfig(Settings):
    """Terms of the objective and their weights; the defaults are the released ones."""

    reconstruction: Literal["l1", "l2"] = "l1"
    reconstruction_weight: float = Field(1.0, ge=0)
    perceptual: Literal["vgg", "alex"] = "vgg"
    perceptual_weight: float = Field(1.0, ge=0)
    perceptual_every: int = Field(1, ge=1, description="LPIPS on every n-th step only, times n")
    perceptual_weights: str | None = Field(None, description="file of the LPIPS network")
    commitment_weight: float = Field(0.25, ge=0)
    entropy: Literal["grouped", "pooled"] = "pooled"
    entropy_weight: float = Field(0.1, ge=0, description="on token - codebook entropy")
    codebook_weight: float = Field(1.0, ge=0, description="on the codebook entropy within that")
    entropy_boost: float = Field(
        0.0, ge=0, description="enlarges the entropy part by 1 + this at step 0, less and less"
    )
    entropy_boost_steps: int = Field(2000, ge=1, description="steps until it is enlarged no more")
    temperature: float = Field(0.01, gt=0)
    epsilon: float = Field(1e-5, ge=0, description="in log(p + eps) of the codebook entropy")


class OptimizerConfig(Settings):
    """Adam, as released; a constant rate is the default (the paper's finding).

    `muon` learns more from a step and takes longer for it: for tokenizers, in whole processes.
    """

    kind: Literal["adam", "muon"] = "adam"
    lr: float = Field(1e-4, gt=0)
    betas: tuple[Decay, Decay] = (0.5, 0.9)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    final: float = Field(0.0, ge=0, le=1, description="share of lr that a cosine ends at")
    drops: tuple[int, ...] = Field((), description="steps from which on the rate is dropped")
    drop_factor: float = Field(0.1, gt=0, lt=1, description="what a drop multiplies the rate by")
    clip: float | None = Field(None, gt=0, description="largest gradient norm")


class GanConfig(Settings):
    """The adversarial part of a run; the defaults are the released ones."""

    discriminator: Literal["patch", "blur"] = Field("patch", description="PatchGAN, or MaskBit's")
    width: int | None = Field(None, ge=1, description="its first channels; 64 (patch), 128 (blur)")
    depth: int | None = Field(None, ge=1, description="its layers; 3 (patch), 4 (blur)")
    loss: Literal["hinge", "vanilla", "non_saturating"] = Field(
        "hinge", description="the discriminator's; the tokenizer's is always non-saturating"
    )
    weight: float = Field(0.1, ge=0, description="on the tokenizer's adversarial term")
    adaptive: bool = Field(
        False, description="times the ratio of gradients at the decoder's last layer"
    )
    lecam_weight: float = Field(0.05, ge=0)
    lecam_decay: Decay = 0.999
    start: int = Field(0, ge=0, description="step from which on the adversarial term counts")
    ramp: int = Field(0, ge=0, description="steps of its linear rise from there")
    warmup: int = Field(0, ge=0, description="steps before `start` that the discriminator trains")
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _fits(self) -> GanConfig:
        if self.optimizer.kind != "adam":
            raise ValueError(f"optimizer.kind={self.optimizer.kind!r} must be adam for the gan")
        if self.warmup > self.start:
            raise ValueError(f"warmup={self.warmup} must be at most start={self.start}")
        return self


class RunConfig(Settings):
    """How long, how exact, and what is written when."""

    steps: int = Field(ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, ...")
    ema: Decay = Field(0.999, description="decay of the averaged weights")
    init: str | None = Field(None, description="model to start from: shipped name, folder, Hub id")
    init_partial: bool = Field(
        False, description="take what fits of an `init` of another shape: more bits, more levels"
    )
    freeze: Literal["encoder", "decoder"] | None = Field(
        None, description="part that is not trained; the quantizer goes with the encoder"
    )
    accumulate: int = Field(1, ge=1, description="parts a process cuts its share of a batch into")
    sharded: bool = Field(False, description="cut weights over the processes (FSDP)")
    activation_checkpointing: bool = Field(
        False, description="compute activations again in backward instead of keeping them"
    )
    compile: bool = Field(False, description="torch.compile the networks")
    channels_last: bool = Field(False, description="memory format of the networks")
    max_skipped: int = Field(10, ge=1, description="steps in a row with NaN that end the run")
    trackers: tuple[str, ...] = Field(
        ("tensorboard",), description="of Accelerate: tensorboard, wandb, trackio, ..."
    )
    log_every: int = Field(10, ge=1)
    checkpoint_every: int = Field(1000, ge=1)
    keep: int = Field(2, ge=1, description="checkpoints kept besides the best")
    export: Literal["best", "newest"] = Field(
        "best", description="which of the validated models is left in the run's model/"
    )
    sample_every: int = Field(1000, ge=1, description="a picture of reconstructions")
    validate_every: int = Field(1000, ge=1)


_WHOLE_RUN = {
    "data": ("train", "val", "cache"),
    "loss": ("perceptual", "perceptual_weights"),
    "optimizer": ("kind",),
    "gan": ("discriminator", "width", "depth", "lecam_decay"),
}
"""What is opened once, before the first step, and so can't change with a phase."""


class Phase(Settings):
    """A stretch of a run with settings of its own, e.g. `set: {data.crop: 128}`."""

    until: int = Field(ge=1, description="step (of the whole run) at which the phase ends")
    set: dict[str, Any] = Field(default_factory=dict)

    @field_validator("set")
    @classmethod
    def _changeable(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key.split(".")[0] not in ("data", "loss", "optimizer", "gan"):
                raise ValueError(
                    f"a phase may set data.*, loss.*, optimizer.* and gan.*, not {key!r}"
                )
        return value


class RunSettings(Settings):
    """What every training run has, whatever is trained."""

    optimizer: OptimizerConfig = OptimizerConfig()
    gan: GanConfig | None = None
    run: RunConfig


class TrainConfig(RunSettings):
    """A tokenizer's training run; `wetok train RECIPE.yaml` reads one."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    phases: tuple[Phase, ...] = ()

    @model_validator(mode="after")
    def _phases_fit(self) -> TrainConfig:
        if self.run.init_partial and not self.run.init:
            raise ValueError("run.init_partial=True takes what fits of run.init; name that model")
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)):
            raise ValueError(f"phases must end at rising steps, not {ends}")
        if ends and ends[-1] < self.run.steps:
            raise ValueError(
                f"the last phase ends at step {ends[-1]}, before run.steps={self.run.steps}"
            )
        if self.gan and self.gan.adaptive and self.loss.perceptual_every > 1:
            raise ValueError(
                "gan.adaptive=True compares whole gradients and needs loss.perceptual_every=1, not "
                f"{self.loss.perceptual_every}; or set gan.adaptive=false"
            )
        if self.gan and self.gan.adaptive and self.run.freeze == "decoder":
            raise ValueError(
                "gan.adaptive=True looks at the decoder's last layer, which run.freeze='decoder' "
                "keeps from training; set gan.adaptive=false"
            )
        if self.gan and self.gan.adaptive and self.run.sharded:
            raise ValueError(
                "gan.adaptive=True can't see a layer that run.sharded=True cuts up; set "
                "gan.adaptive=false"
            )
        if self.run.sharded and self.optimizer.kind == "muon":
            raise ValueError(
                "optimizer.kind='muon' needs whole matrices, which run.sharded=True cuts up; set "
                "optimizer.kind=adam"
            )
        if self.run.sharded and self.run.precision == "fp16":
            raise ValueError("run.precision='fp16' can't be sharded; set run.precision=bf16")
        if self.data.batch % self.run.accumulate:
            raise ValueError(
                f"run.accumulate={self.run.accumulate} must divide data.batch={self.data.batch}"
            )
        if self.data.crop % self.model.factor:
            raise ValueError(
                f"data.crop={self.data.crop} must be a multiple of the model's factor "
                f"{self.model.factor}"
            )
        for phase in self.phases:
            try:
                self._with(phase)
            except WetokError as error:
                raise ValueError(f"in the phase until {phase.until}: {error}") from None
        return self

    def _with(self, phase: Phase) -> TrainConfig:
        tree = self.model_dump(exclude={"phases"})
        for key, value in phase.set.items():
            change: dict[str, Any] = {}
            assign(change, key, value)  # `data.crop: 128` and `data: {crop: 128}` alike
            tree = merge(tree, change)
        config = validate(TrainConfig, tree)
        for block, names in _WHOLE_RUN.items():
            mine, theirs = getattr(self, block), getattr(config, block)
            if (mine is None) != (theirs is None):
                raise WetokError(f"{block} is of the whole run; set it outside phases too")
            for name in names if mine is not None else ():
                if getattr(mine, name) != getattr(theirs, name):
                    raise WetokError(f"{block}.{name} is of the whole run; set it outside phases")
        return config

    def at(self, step: int) -> TrainConfig:
        """The settings in force at `step` (0 is the first), with that phase's changes applied."""
        for phase in self.phases:
            if step < phase.until:
                return self._with(phase)
        return self._with(self.phases[-1]) if self.phases else self

    def stretches(self) -> list[tuple[int, TrainConfig]]:
        """The run in parts of constant settings: the step at which each ends, and its settings."""
        ends = [phase.until for phase in self.phases if phase.until < self.run.steps]
        return [(end, self.at(end - 1)) for end in (*ends, self.run.steps)]


Model = TypeVar("Model", bound=BaseModel)


def near(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or the list of them all."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; known: " + ", ".join(known)


def validate(kind: type[Model], tree: Any) -> Model:
    """`tree` as a `kind`; the first thing wrong with it as one line that names the key."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise WetokError(_one_line(kind, error)) from None


def _one_line(kind: type[BaseModel], error: ValidationError) -> str:
    errors = error.errors()
    # A mistyped key is also a missing one; the key as written helps more.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    # Positions inside a tuple or list are numbers; the key before them is what the user wrote.
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = list(_fields(kind, path[:-1]))
        return f"unknown setting {key!r}{near(path[-1], known)}{more}"
    if first["type"] == "missing":
        return f"setting {key!r} is missing and has no default{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "model_type":
        message = "must be a block of settings"
    elif first["type"] == "value_error" and isinstance(first["input"], dict):
        # About the block as a whole: it names its settings itself.
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    if not key:
        return f"{message}{more}"
    return f"setting {key}={first['input']!r}: {message}{more}"


def _fields(kind: type[BaseModel], path: Sequence[str]) -> Mapping[str, Any]:
    for part in path:
        field = kind.model_fields.get(part)  # none for a position in a tuple
        for inner in (field.annotation, *get_args(field.annotation)) if field else ():
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                kind = inner
    return kind.model_fields


def assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets the dotted `key` (`data.crop`) in a tree of dicts, in place."""
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise WetokError(f"setting {key!r}: {part!r} is a value, not a block of settings")
    tree[last] = value


def merge(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` on top; blocks merge key by key, anything else is replaced."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
        )
    return merged


def read_yaml(path: Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree in a YAML file, laid over the file that its `extends` names (relative to it)."""
    path = path.resolve()
    if path in _seen:
        raise WetokError(f"{path}: extends itself through {' -> '.join(p.name for p in _seen)}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WetokError(f"{path}: no such recipe; see the recipes folder") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WetokError(f"{path}: can't be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise WetokError(f"{path}: a recipe is a mapping of settings, not {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    return merge(read_yaml(path.parent / str(parent), (*_seen, path)), tree)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in the recipe at `path`, `key=value` overrides (values as YAML) on top.

    `model` may be a preset's name or a block of settings; `{preset: NAME, ...}` changes a preset.

    Raises:
        WetokError: an unreadable file, no such preset, or an override that is none.
    """
    from wetok.presets import preset

    tree = read_yaml(path)
    for item in overrides:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise WetokError(f"override {item!r} must look like key=value, e.g. data.batch=8")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise WetokError(f"override {item!r}: {text!r} is not a YAML value") from None
        if key.startswith("model.") and isinstance(tree.get("model"), str):
            tree["model"] = {"preset": tree["model"]}
        assign(tree, key, value)
    model = tree.get("model")
    if isinstance(model, str):
        tree["model"] = preset(model).model_dump()
    elif isinstance(model, dict) and "preset" in model:
        change = {key: value for key, value in model.items() if key != "preset"}
        tree["model"] = merge(preset(str(model["preset"])).model_dump(), change)
    return tree


def load_train_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The recipe of a tokenizer at `path`, see `read_recipe`.

    Raises:
        WetokError: as `read_recipe`; an unknown key (its nearest is named) or a bad value.
    """
    return validate(TrainConfig, read_recipe(path, overrides))
