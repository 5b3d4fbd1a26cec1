"""The averaged weights against the recurrence, and the network left as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from wetok.train.ema import EMA


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def shake(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_recurrence_in_float64(decay: float) -> None:
    module = network()
    ema = EMA(module, decay)
    expected = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    for n in range(1, 41):
        shake(module, n)
        ema.update(module)
        now = min(decay, (1 + n) / (10 + n))  # as the released code warms it up
        for name, p in module.named_parameters():
            expected[name] = now * expected[name] + (1 - now) * p.detach().double()
    for name, average in ema.average.items():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_a_decay_of_one_half_forgets_by_halves() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0)
    ema = EMA(module, 0.5)
    ema.updates = 100  # beyond the warm-up
    module.weight.data.fill_(1)
    seen = []
    for _ in range(3):
        ema.update(module)
        seen.append(ema.average["weight"].item())
    assert seen == [0.5, 0.75, 0.875]


def average_of(module: nn.Module) -> EMA:
    ema = EMA(module, 0.9)
    shake(module, 1)
    ema.update(module)
    return ema


def test_within_the_block_the_network_is_the_average() -> None:
    module = network()
    ema = average_of(module)
    own = {name: p.detach().clone() for name, p in module.named_parameters()}
    with ema.applied(module):
        for name, p in module.named_parameters():
            assert torch.equal(p, ema.average[name])
            assert not torch.equal(p, own[name])
    assert all(torch.equal(p, own[name]) for name, p in module.named_parameters())


def test_an_error_in_the_block_gives_the_weights_back_to_the_bit() -> None:
    module = network()
    ema = average_of(module)
    before = [p.detach().clone() for p in module.parameters()]
    kept = {name: average.clone() for name, average in ema.average.items()}

    def fail() -> None:
        with ema.applied(module):
            shake(module, 2)  # whatever was done to them
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), before, strict=True))
    assert all(torch.equal(ema.average[name], average) for name, average in kept.items())


def test_half_precision_weights_are_averaged_in_float32() -> None:
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    module.weight.data.fill_(1)
    ema = EMA(module, 0.999)
    ema.updates = 10**6
    module.weight.data.fill_(1.5)
    ema.update(module)
    # In bfloat16 the step of 0.0005 would be lost.
    assert ema.average["weight"].item() == pytest.approx(1.0005, abs=1e-7)


def test_state_goes_into_another() -> None:
    module = network()
    ema = average_of(module)
    other = EMA(network(5), 0.9)
    other.load_state_dict(ema.state_dict())
    assert other.updates == ema.updates == 1
    assert all(torch.equal(other.average[name], kept) for name, kept in ema.average.items())
    other.update(network(6))
    assert not torch.equal(other.average["0.weight"], ema.average["0.weight"]), "no shared memory"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state["average"].pop("0.bias"),
        lambda state: state["average"].update({"0.bias": torch.zeros(1)}),  # would broadcast
        lambda state: state.update(average=[1, 2]),
        lambda state: state.update(updates=None),
    ],
)
def test_another_networks_state_is_refused(spoil: Callable[[dict], object]) -> None:
    state = EMA(network(), 0.9).state_dict()
    spoil(state)
    with pytest.raises(ValueError, match="averaged weights"):
        EMA(network(), 0.9).load_state_dict(state)
