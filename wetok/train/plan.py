"""What a run will take, before it takes it: parameters, memory, steps, data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from wetok.config import TrainConfig
from wetok.data.sources import Source
from wetok.losses.perceptual import LPIPS
from wetok.model.network import TokenizerNetwork
from wetok.train.adversary import Adversary
from wetok.train.memory import Memory, step_memory
from wetok.train.processes import choose_device
from wetok.train.start import check_shares
from wetok.train.state import freeze


class Stretch(NamedTuple):
    """Steps of constant settings; a run without phases is one."""

    first: int
    end: int
    """The step before which it ends."""
    batch: int
    """Crops a step, over all processes."""
    crop: int

    @property
    def samples(self) -> int:
        return (self.end - self.first) * self.batch


@dataclass(frozen=True)
class Plan:
    """A run's needs. Bytes and the share of a batch are those of one process."""

    parameters: Mapping[str, int]
    """Of `encoder`, `decoder` and, where the run has them, `discriminator` and `lpips`."""
    trained: int
    """How many of them learn."""
    memory: Memory
    """Estimated, of the fullest of the stretches; see `wetok.train.memory`."""
    processes: int
    device: str
    precision: str
    stretches: tuple[Stretch, ...]
    adversarial: int | None
    """The first step at which the adversarial term counts, if any."""
    images: int | None
    """Found in the training data; None where nobody looked."""
    left_out: int = 0
    """Files that were left out when the data were opened."""

    @property
    def steps(self) -> int:
        return self.stretches[-1].end

    @property
    def samples(self) -> int:
        """Crops of the whole run."""
        return sum(stretch.samples for stretch in self.stretches)

    @property
    def epochs(self) -> float | None:
        """How often the run sees an image, on average."""
        return self.samples / self.images if self.images else None


def plan(
    config: TrainConfig,
    source: Source[Any] | None = None,
    processes: int = 1,
    device: str | None = None,
) -> Plan:
    """What a run with these settings takes; nothing is read or written, no weights are needed.

    A second or two of work, whatever the size of network and batch.

    Args:
        source: the opened training data.
        processes: that share the batch.
        device: kind to plan for, here or not; by default that of the settings.

    Raises:
        WetokError: the batch can't be shared out, or crops are too small for a network.
    """
    device = device or config.run.device
    device = choose_device(device).type if device == "auto" else device
    with torch.device("meta"):
        network = TokenizerNetwork(config.model)
        freeze(network, config.run.freeze)
        modules = {"encoder": network.encoder, "decoder": network.decoder}
        trained = {*network.parameters()}
        if config.gan:
            modules["discriminator"] = Adversary(config.gan).discriminator
            trained |= {*modules["discriminator"].parameters()}
        if any(stretch.loss.perceptual_weight for _, stretch in config.stretches()):
            modules["lpips"] = LPIPS(config.loss.perceptual)
    first, stretches, adversarial = 0, [], []
    for end, settings in config.stretches():
        stretches.append(Stretch(first, end, settings.data.batch, settings.data.crop))
        if settings.gan and settings.gan.start < end:
            adversarial.append(max(first, settings.gan.start))
        first = end
    return Plan(
        {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
        sum(p.numel() for p in trained if p.requires_grad),
        _memory(config, processes, device),
        processes,
        device,
        config.run.precision,
        tuple(stretches),
        adversarial[0] if adversarial else None,
        None if source is None else len(source),
        0 if source is None else len(source.skipped),
    )


def _memory(config: TrainConfig, processes: int, device: str) -> Memory:
    """Of the fullest stretch; those that another surpasses in everything are not looked at."""
    check_shares(config, processes)
    fullest: dict[tuple[int, ...], TrainConfig] = {}
    for end, settings in config.stretches():
        data, loss, gan = settings.data, settings.loss, settings.gan
        # At its first step the run is now as it is at the stretch's last.
        change: dict[str, Any] = {"loss": loss.model_copy(update={"perceptual_every": 1})}
        if gan:
            start = max(0, gan.start - (end - 1))
            change["gan"] = gan.model_copy(update={"start": start})
        key = (
            data.batch * data.crop**2,
            bool(loss.perceptual_weight),
            bool(loss.entropy_weight),
            loss.entropy == "grouped",
            0 if gan is None else 2 * (end > gan.start) + (end > gan.start - gan.warmup),
        )
        fullest[key] = settings.model_copy(update=change)
    found = [
        step_memory(settings, processes, device)
        for key, settings in fullest.items()
        if not any(_surpasses(other, key) for other in fullest)
    ]
    return max(found, key=lambda memory: memory.total)


def _surpasses(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def table(plan: Plan) -> list[tuple[str, str]]:
    """The plan for a person: what, and how much of it, row by row."""
    each = ", ".join(f"{name} {_count(size)}" for name, size in plan.parameters.items())
    parts = ", ".join(
        f"{name} {size_text(size)}"
        for name, size in plan.memory._asdict().items()
        if size >= 0.005 * plan.memory.total
    )
    where = f"{plan.device}, {plan.precision}"
    if plan.processes > 1:
        where = f"each of {plan.processes} processes, {where}"
    rows = [
        ("parameters", f"{each}; {_count(plan.trained)} are trained"),
        ("memory", f"about {size_text(plan.memory.total)} ({where}) besides the program itself"),
        ("", parts),
        ("steps", f"{plan.steps:,} with {plan.samples:,} crops in all"),
    ]
    for stretch in _joined(plan.stretches):
        whole = (stretch.first, stretch.end) == (0, plan.steps)
        span = "" if whole else f"{stretch.first:,} to {stretch.end:,}: "
        rows.append(("", f"{span}{stretch.batch} crops of {stretch.crop} x {stretch.crop} a step"))
    if plan.adversarial is not None:
        rows.append(("", f"adversarial from step {plan.adversarial:,} on"))
    if plan.images is not None:
        text = f"{plan.images:,} images found"
        if plan.left_out:
            text += f" ({plan.left_out:,} left out)"
        rows.append(("data", f"{text}; each is seen {plan.epochs:,.4g} times"))
    return rows


def _joined(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Stretches that differ only in what a table does not show, as one."""
    joined = [stretches[0]]
    for stretch in stretches[1:]:
        if stretch[2:] == joined[-1][2:]:
            joined[-1] = joined[-1]._replace(end=stretch.end)
        else:
            joined.append(stretch)
    return joined


def lines(plan: Plan) -> list[str]:
    """`table` as text, its columns aligned."""
    rows = table(plan)
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def size_text(size: int) -> str:
    """Bytes for a person, in decimal units: 347 MB, 6.8 GB."""
    value, unit = (size / 1e9, "GB") if size >= 999.5e6 else (size / 1e6, "MB")
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def _count(size: int) -> str:
    return f"{size / 1e6:,.1f} M" if size >= 1e6 else f"{size:,}"
