"""What is compared: each variant a recipe, each question a baseline and what differs from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wetok.config import TrainConfig, WetokError, load_train_config, near

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Variant:
    """One way to train; its recipe is all there is to it unless it has a stand-in."""

    name: str
    says: str
    """What it is, for a table."""
    recipe: str = ""
    """File name without suffix; by default the variant's own name."""
    stage_one: str | None = None
    """The variant whose model it starts from, of the same seed."""
    settings: tuple[str, ...] = ()
    """Besides the recipe's: only stand-ins have some, as they have no recipe of their own."""

    def config(self, recipes: Path, overrides: list[str]) -> TrainConfig:
        return load_train_config(self.path(recipes), [*self.settings, *overrides])

    def path(self, recipes: Path) -> Path:
        return recipes / f"{self.recipe or self.name}.yaml"


@dataclass(frozen=True)
class Claim:
    """What the paper says of two variants."""

    variant: str
    against: str
    expected: Literal["better", "worse"]
    scores: tuple[str, ...] = ("psnr", "lpips-vgg", "fd-vgg")
    """By which it is judged here; the paper's own is rFID."""


@dataclass(frozen=True)
class Question:
    """A table: the variants, and what the paper says of them."""

    name: str
    title: str
    baseline: str
    others: tuple[str, ...]
    claims: tuple[Claim, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """All of them, in the table's order: the baseline first."""
        return self.baseline, *self.others


BASELINE = "groups-2"
STAND_INS = ("vq", "fsq")
FSQ_LEVELS = (8, 8, 8, 5, 5, 5)  # FSQ's authors' at 16 bits: 64,000 codes
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(BASELINE, "GQ, g = 2 (d' = 8)"),
        Variant("groups-1", "LFQ: g = 1 (d' = 16)"),
        Variant("groups-4", "GQ, g = 4 (d' = 4)"),
        Variant("groups-8", "GQ, g = 8 (d' = 2)"),
        Variant("groups-16", "BSQ: g = 16 (d' = 1)"),
        # VQ-VAE's weight of the commitment term, and no entropies to weigh.
        Variant("vq", "VQ: 2 codebooks of 2^8", BASELINE, None, ("loss.commitment_weight=0.25",)),
        Variant("fsq", "FSQ: 8 x 8 x 8 x 5 x 5 x 5 levels", "groups-1"),
        Variant("size-c16-b1", "C = 16, B = 1"),
        Variant("size-c16-b2", "C = 16, B = 2"),
        Variant("size-c32-b2", "C = 32, B = 2"),
        Variant("rate-cosine", "warm-up and cosine"),
        Variant("decoder-deterministic", "stage 2 without noise", "", BASELINE),
        Variant("decoder-generative", "stage 2 with noise: GD", "", BASELINE),
    )
}
QUESTIONS = (
    Question(
        "quantizer",
        "Quantizers at 16 bits a position",
        BASELINE,
        ("groups-1", "groups-16", *STAND_INS),
        (Claim("groups-1", BASELINE, "worse"), Claim("groups-16", BASELINE, "worse")),
    ),
    Question(
        "groups",
        "Number of groups",
        BASELINE,
        ("groups-1", "groups-4", "groups-8", "groups-16"),
        # Of 4 and 8 groups at the same bits the paper says nothing.
        (Claim("groups-1", BASELINE, "worse"), Claim("groups-16", BASELINE, "worse")),
    ),
    Question(
        "decoder",
        "Generative decoder",
        BASELINE,
        ("decoder-deterministic", "decoder-generative"),
        (
            Claim("decoder-generative", BASELINE, "better", ("lpips-vgg", "fd-vgg")),
            Claim("decoder-generative", "decoder-deterministic", "better", ("lpips-vgg", "fd-vgg")),
        ),
    ),
    Question(
        "size",
        "Size of the network",
        BASELINE,
        ("size-c16-b1", "size-c16-b2", "size-c32-b2"),
        (
            Claim("size-c16-b1", BASELINE, "worse"),
            Claim("size-c16-b2", BASELINE, "worse"),
            Claim("size-c32-b2", BASELINE, "better"),
        ),
    ),
    Question(
        "rate",
        "Learning rate",
        BASELINE,
        ("rate-cosine",),
        (Claim("rate-cosine", BASELINE, "worse"),),
    ),
)


def chosen(names: list[str]) -> list[Variant]:
    """The variants of those names, or all; a stage 2 comes after its stage 1, which comes along.

    Raises:
        WetokError: a name that is none.
    """
    for name in names:
        if name not in VARIANTS:
            raise WetokError(f"only={name!r} is no variant{near(name, list(VARIANTS))}")
    wanted = set(names or VARIANTS)
    wanted |= {stage for name in wanted if (stage := VARIANTS[name].stage_one)}
    return [variant for name, variant in VARIANTS.items() if name in wanted]


def stand_in(name: str, config: TrainConfig) -> nn.Module | None:
    """The quantizer called `name`, for a network of these settings; None for one of ours.

    Its random numbers are its own, so that encoder and decoder begin as they do beside ours.
    """
    import torch

    from wetok.model.outside import FiniteScalarQuantizer, VectorQuantizer

    model = config.model
    if name not in STAND_INS:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)
        if name == "vq":
            return VectorQuantizer(model.bits, model.groups, model.group_bits)
        return FiniteScalarQuantizer(model.bits, FSQ_LEVELS)
