"""What a training step needs of memory, found without any: the real step on tensors of no content.

`train_step` itself runs once, forward and backward, on fake tensors, which have shapes and types
but no numbers. Every tensor is counted from its birth to its end, by what it is for, so that
whatever the step does is in the estimate: autocast, activation checkpointing, frozen parts,
accumulation, LPIPS, the discriminator, the blocks that the entropies work in.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from wetok.config import TrainConfig
from wetok.losses.objective import ReconstructionObjective
from wetok.losses.perceptual import LPIPS
from wetok.model.layers import GroupNorm, ResidualBlock, Upsample
from wetok.model.network import TokenizerNetwork
from wetok.model.quantizer import GroupedQuantizer
from wetok.train.adversary import Adversary
from wetok.train.state import TrainState
from wetok.train.step import DTYPES, Batch, train_step

WEIGHTS, AVERAGES, MOMENTS = "weights", "averages", "moments"
GRADIENTS, ACTIVATIONS, ENTROPIES = "gradients", "activations", "entropies"
_COUNTED = (WEIGHTS, AVERAGES, MOMENTS, GRADIENTS, ACTIVATIONS, ENTROPIES)


class Memory(NamedTuple):
    """Bytes of one process at the fullest moment of a step, by what they are for."""

    weights: int
    """Of all networks: the tokenizer, the discriminator, LPIPS."""
    averages: int
    moments: int
    """Of both optimizers."""
    gradients: int
    """That are there at this moment. Where activations fill the memory, few are."""
    activations: int
    """Kept for backward or in use: images, feature maps, their gradients, autocast's weights."""
    entropies: int
    """Of the quantizer, with its code and ids."""
    exchange: int
    """Among processes: buckets of gradients (DDP), or gathered weights (FSDP)."""
    allocator: int
    """What the C library can't use again in time: on the CPU, a third of the activations."""

    @property
    def total(self) -> int:
        return sum(self)


def step_memory(config: TrainConfig, processes: int = 1, device: str = "cpu") -> Memory:
    """What a step with these settings takes, in steady state, at its fullest.

    Every loss of the settings has its turn in it, as at the first step of a run: LPIPS has one,
    the adversarial terms have where `gan.start` is 0. (`wetok.train.plan` takes the phases apart.)

    Left out: the program itself with its libraries (0.3 to 0.6 GB), decoded images, validation,
    and on an accelerator what its allocator fragments. With `run.compile` less is kept than is
    said here. Convolutions are taken to reorder their arguments and results, which the CPU does
    and accelerators without `run.channels_last`. Of `run.sharded` the gathered weights are
    reckoned: what lies outside the residual blocks, and two blocks with their gradients.

    Args:
        processes: that share the batch.
        device: `cpu`, or anything else for the rules of autocast on an accelerator.

    Raises:
        WetokError: crops are too small for a network.
    """
    on_cpu = device.split(":")[0] == "cpu"
    # The third part and all that follow do what the second does.
    parts = min(2, config.run.accumulate)
    more = config.run.accumulate - parts
    each = config.data.batch // (processes * config.run.accumulate)
    counter = _Counter(reorders=on_cpu or not config.run.channels_last)
    with FakeTensorMode(), counter:
        state, objective = _build(config, counter, processes if config.run.sharded else 1)
        if not on_cpu and config.run.precision != "fp32":
            for network in (state.network, state.adversary):
                _cast_as_accelerators(network)
        batches = [_batch(config, each) for _ in range(parts)]
        counter.restart()
        train_step(state, objective, config, batches)
        exchange = _exchange(state, config, processes)
        kept = [*batches[0], batches[0].image.to(DTYPES[config.run.precision])]
    at = counter.at_peak
    at[ACTIVATIONS] += more * _bytes(tensor for tensor in kept if tensor is not None)
    allocator = at[ACTIVATIONS] // 3 if on_cpu else 0
    return Memory(**{name: at[name] for name in _COUNTED}, exchange=exchange, allocator=allocator)


def _build(
    config: TrainConfig, counter: _Counter, shards: int
) -> tuple[TrainState, ReconstructionObjective]:
    """A run's networks and optimizers as they are between two steps."""
    loss, model = config.loss, config.model
    with counter.counting(WEIGHTS, shards):
        quantizer = GroupedQuantizer(
            model.bits,
            model.groups,
            entropy=loss.entropy if loss.entropy_weight else None,
            temperature=loss.temperature,
            eps=loss.epsilon,
        )
        network = TokenizerNetwork(model, quantizer).train()
        network.recompute(config.run.activation_checkpointing)
    with counter.counting(WEIGHTS):
        lpips = LPIPS(loss.perceptual) if loss.perceptual_weight else None
        adversary = None
        if config.gan:
            adversary = Adversary(config.gan, config.run.accumulate).train()
            adversary.check_crop(config.data.crop)
    with counter.counting(AVERAGES, shards):
        state = TrainState(network, config, adversary)
    for optimizer, cut in ((state.optimizer, shards), (state.judge_optimizer, 1)):
        if optimizer is None:
            continue
        for parameter in chain.from_iterable(g["params"] for g in optimizer.param_groups):
            if parameter.requires_grad:
                with counter.counting(GRADIENTS, cut):
                    parameter.grad = torch.empty_like(parameter)
                parameter.register_post_accumulate_grad_hook(partial(counter.note_gradient, cut))
        with counter.counting(MOMENTS, cut):
            optimizer.step()
    quantizer.register_forward_pre_hook(lambda *_: counter.begin(ENTROPIES))
    quantizer.register_forward_hook(lambda *_: counter.begin(ACTIVATIONS))
    return state, ReconstructionObjective(loss, lpips)


def _batch(config: TrainConfig, count: int) -> Batch:
    data, model = config.data, config.model
    noise = None
    if model.generative:
        side = data.crop // model.factor
        noise = torch.empty(count, model.bits, side, side)
    return Batch(torch.empty(count, 3, data.crop, data.crop), noise)


def _exchange(state: TrainState, config: TrainConfig, processes: int) -> int:
    """What DDP or FSDP holds besides."""
    if processes == 1:
        return 0
    networks: list[nn.Module] = [state.network]
    if state.adversary:
        networks.append(state.adversary)
    if not config.run.sharded:
        return sum(_bytes(p for p in net.parameters() if p.requires_grad) for net in networks)
    blocks = [
        _bytes(module.parameters())
        for module in state.network.modules()
        if isinstance(module, (ResidualBlock, Upsample))
    ]
    outside = _bytes(state.network.parameters()) - sum(blocks)
    judge = sum(_bytes(net.parameters()) for net in networks[1:])
    return outside + 4 * max(blocks) + judge


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class _Counter(TorchDispatchMode):
    """Bytes of all tensors alive, by what they are for, now and at the fullest moment."""

    def __init__(self, reorders: bool) -> None:
        super().__init__()
        self._reorders = reorders
        self.alive: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self._peak = 0
        self._known: dict[int, tuple[str, int]] = {}
        self._purpose, self._shards = ACTIVATIONS, 1

    def begin(self, purpose: str) -> None:
        """What tensors born from now on are for."""
        self._purpose = purpose

    @contextmanager
    def counting(self, purpose: str, shards: int = 1) -> Iterator[None]:
        """What tensors born in the block are for, and over how many processes they are cut."""
        before = self._purpose, self._shards
        self._purpose, self._shards = purpose, shards
        yield
        self._purpose, self._shards = before

    def restart(self) -> None:
        """Forgets the fullest moment so far."""
        self._peak, self.at_peak = self.alive.total(), self.alive.copy()

    def note_gradient(self, shards: int, parameter: Tensor) -> None:
        """That what has become a parameter's gradient is one."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        self._enter(storage._cdata, GRADIENTS, storage.nbytes() // shards)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0  # what a fake tensor holds; to the step: no loss is broken
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else (result,)
        for tensor in results:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        if self._reorders and func in _CONVOLUTIONS:
            borrowed = _bytes(t for t in (*args, *results) if isinstance(t, Tensor))
            self._compare(borrowed)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._enter(key, self._purpose, storage.nbytes() // self._shards)
        weakref.finalize(storage, self._leave, key).atexit = False
        self._compare()

    def _compare(self, borrowed: int = 0) -> None:
        total = self.alive.total() + borrowed
        if total > self._peak:
            self._peak, self.at_peak = total, self.alive + Counter({ACTIVATIONS: borrowed})

    def _enter(self, key: int, purpose: str, size: int) -> None:
        if key in self._known:
            self._leave(key)
        self._known[key] = (purpose, size)
        self.alive[purpose] += size

    def _leave(self, key: int) -> None:
        purpose, size = self._known.pop(key)
        self.alive[purpose] -= size


def _cast_as_accelerators(network: nn.Module | None) -> None:
    """Group norm in float32, as autocast has it everywhere but on the CPU.

    The one rule in which they differ for these networks, and it doubles what a norm keeps.
    """
    for module in network.modules() if network else ():
        if isinstance(module, GroupNorm):
            module.widens = True
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, given: (given[0].float(),))
