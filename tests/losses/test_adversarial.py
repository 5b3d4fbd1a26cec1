"""Adversarial losses against released values and plain formulas; a GAN step in two processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.two_processes import run_rank
from wetok.config import WetokError
from wetok.losses.adversarial import (
    DISCRIMINATOR_LOSSES,
    LeCam,
    adaptive_weight,
    frozen,
    hinge_discriminator_loss,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
    vanilla_discriminator_loss,
    warmup_factor,
)
from wetok.losses.discriminator import DistributedBatchNorm2d, PatchDiscriminator

few = settings(max_examples=25, deadline=None)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture(scope="module")
def vectors(fixtures_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(fixtures_dir / "released" / "losses.npz"))


# The losses.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_released_values(vectors: dict[str, Any], dtype: torch.dtype) -> None:
    real, fake = (torch.from_numpy(vectors[name]).to(dtype) for name in ("real", "fake"))
    measured = {
        "hinge_d": hinge_discriminator_loss(real, fake),
        "vanilla_d": vanilla_discriminator_loss(real, fake),
        "non_saturate_d": non_saturating_discriminator_loss(real, fake),
        "non_saturate_g": non_saturating_generator_loss(fake),
    }
    for name, loss in measured.items():
        assert loss.dtype == dtype and loss.shape == ()
        assert loss.item() == pytest.approx(float(vectors[name]), rel=3e-7), name


def test_the_released_lecam(vectors: dict[str, Any]) -> None:
    real, fake = (torch.from_numpy(vectors[name]) for name in ("real", "fake"))
    lecam = LeCam(decay=0.9)
    lecam.update(real, fake)
    lecam.update(2 * real, fake - 1)
    assert lecam.real.item() == pytest.approx(float(vectors["lecam_real_ema"]), abs=1e-8)
    assert lecam.fake.item() == pytest.approx(float(vectors["lecam_fake_ema"]), abs=1e-8)
    assert lecam(real, fake).item() == pytest.approx(float(vectors["lecam"]), rel=2e-7)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def by_hand(name: str, real: Tensor, fake: Tensor) -> float:
    """Number by number, in Python's floats."""
    if name in ("non_saturating", "generator"):
        reals, fakes = (
            [math.fsum(i) / len(i) for i in x.flatten(1).tolist()] for x in (real, fake)
        )
    else:
        reals, fakes = real.flatten().tolist(), fake.flatten().tolist()
    if name == "hinge":
        ones, others = [max(0.0, 1 - x) for x in reals], [max(0.0, 1 + x) for x in fakes]
    else:
        ones, others = [softplus(-x) for x in reals], [softplus(x) for x in fakes]
    if name == "generator":
        return math.fsum(softplus(-x) for x in fakes) / len(fakes)
    total = math.fsum(ones) / len(ones) + math.fsum(others) / len(others)
    return total if name == "non_saturating" else total / 2


def loss_of(name: str, real: Tensor, fake: Tensor) -> Tensor:
    if name == "generator":
        return non_saturating_generator_loss(fake)
    return DISCRIMINATOR_LOSSES[name](real, fake)


NAMES = ("hinge", "vanilla", "non_saturating", "generator")


@few
@given(
    st.sampled_from(NAMES),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    st.floats(-3, 4),
    st.floats(-1e3, 1e3),
)
def test_against_numbers_by_hand(
    name: str, shape: tuple[int, int, int], power: float, shift: float
) -> None:
    batch, height, width = shape
    real = 10**power * randn(batch, 1, height, width) + shift
    fake = 10**power * randn(batch, 1, height, width, seed=1) - shift
    expected = by_hand(name, real, fake)
    assert loss_of(name, real, fake).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_by_finite_differences(name: str) -> None:
    inputs = [2 * randn(3, 1, 4, 3, seed=seed) for seed in range(2)]
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: loss_of(name, *t), inputs)


@pytest.mark.parametrize("name", NAMES)
def test_which_way_they_push(name: str) -> None:
    """Minimising raises real and lowers fake logits; the generator's raises fake ones."""
    real, fake = (randn(2, 1, 3, 3, seed=seed).clamp(-0.9, 0.9) for seed in range(2))
    real.requires_grad_()
    fake.requires_grad_()
    loss_of(name, real, fake).backward()
    assert name == "generator" or (real.grad < 0).all()
    assert (fake.grad < 0).all() if name == "generator" else (fake.grad > 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-30, 30.0, 1e4, 1e30])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_logits_stay_finite(name: str, size: float, sign: int) -> None:
    real, fake = (torch.full((2, 1, 2, 2), sign * s * size).requires_grad_() for s in (1, -1))
    loss = loss_of(name, real, fake)
    loss.backward()
    assert loss.isfinite() and fake.grad.isfinite().all()
    assert name == "generator" or real.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_widened(name: str, dtype: torch.dtype) -> None:
    real, fake = (5 * randn(4, 1, 31, 31, seed=seed, dtype=dtype) for seed in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(name, real, fake)
        penalty = LeCam()(real, fake)
    assert loss.dtype == penalty.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(name, real.double(), fake.double()), rel=1e-5)
    expected = real.double().relu().square().mean() + (-fake.double()).relu().square().mean()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-5)


# LeCam.


@few
@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=8),
    st.floats(0, 0.9999),
)
def test_lecam_averages(means: list[tuple[float, float]], decay: float) -> None:
    lecam = LeCam(decay)
    averages = [0.0, 0.0]
    noise = randn(2, 1, 3, 3)
    noise -= noise.mean()
    for step in means:
        lecam.update(noise + step[0], noise + step[1])
        averages = [decay * a + (1 - decay) * m for a, m in zip(averages, step, strict=True)]
    assert [lecam.real.item(), lecam.fake.item()] == pytest.approx(averages, rel=1e-5, abs=1e-5)
    real, fake = randn(2, 1, 3, 3, seed=1), randn(2, 1, 3, 3, seed=2)
    expected = np.mean([max(0, x - averages[1]) ** 2 for x in real.flatten().tolist()])
    expected += np.mean([max(0, averages[0] - x) ** 2 for x in fake.flatten().tolist()])
    assert lecam(real, fake).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_lecam_gradient_is_of_the_logits_alone() -> None:
    lecam = LeCam(0.5).double()
    real, fake = (randn(2, 1, 3, 3, seed=seed).requires_grad_() for seed in range(2))
    lecam.update(real, fake)
    assert not lecam.real.requires_grad and lecam.real != 0
    assert torch.autograd.gradcheck(lecam, (real, fake))
    (slope,) = torch.autograd.grad(lecam(real, fake), real)
    torch.testing.assert_close(slope, 2 * (real - lecam.fake).relu() / real.numel())


def test_lecam_goes_on_after_a_resume() -> None:
    batches = [(randn(2, 1, 4, 4, seed=i), randn(2, 1, 4, 4, seed=9 + i)) for i in range(6)]
    whole, first, second = LeCam(), LeCam(), LeCam()
    for pair in batches:
        whole.update(*pair)
    for pair in batches[:3]:
        first.update(*pair)
    assert set(first.state_dict()) == {"real", "fake"}
    second.load_state_dict(first.state_dict())
    for pair in batches[3:]:
        second.update(*pair)
    assert torch.equal(whole.real, second.real) and torch.equal(whole.fake, second.fake)
    assert not torch.equal(first.real, second.real)
    assert torch.equal(whole(*batches[0]), second(*batches[0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_lecam_survives_a_broken_step(bad: float, place: int) -> None:
    lecam = LeCam(0.9)
    lecam.update(torch.ones(1, 1, 2, 2), -torch.ones(1, 1, 2, 2))
    before = (lecam.real.item(), lecam.fake.item())
    logits = [torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2)]
    logits[place][1, 0, 1, 0] = bad
    lecam.update(*logits)
    assert (lecam.real.item(), lecam.fake.item()) == before == pytest.approx((0.1, -0.1))


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_lecam_decay(decay: float) -> None:
    with pytest.raises(WetokError, match=r"decay=.*\[0, 1\)"):
        LeCam(decay)


# The adaptive weight.


def pulls(size: float, other: float, layer: Tensor) -> tuple[Tensor, Tensor]:
    """Two losses whose gradients at `layer` have these lengths."""
    return size * layer.double().norm(), other * layer.double().sum() / layer.numel() ** 0.5


@few
@given(st.floats(1e-6, 1e6), st.floats(0, 1e6), st.floats(0, 2))
def test_adaptive_weight(size: float, other: float, weight: float) -> None:
    layer = nn.Parameter(randn(3, 5, 3, 3))
    measured = adaptive_weight(*pulls(size, other, layer), layer, weight)
    expected = weight * min(size / (other + 1e-4), 1e4)
    assert measured.item() == pytest.approx(expected, rel=1e-5)
    assert measured.dtype == torch.float32 and not measured.requires_grad


def test_adaptive_weight_limits() -> None:
    layer = nn.Parameter(torch.ones(4))
    assert adaptive_weight(*pulls(1e9, 1, layer), layer, 0.8).item() == pytest.approx(8e3)
    assert adaptive_weight(*pulls(0, 1, layer), layer).item() == 0
    assert adaptive_weight(*pulls(0.5, 0, layer), layer).item() == pytest.approx(5e3)


def test_adaptive_weight_leaves_the_losses_to_be_used() -> None:
    torch.manual_seed(0)
    body, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)
    x = randn(2, 3, 9, 9, dtype=torch.float32)
    image = last(torch.tanh(body(x)))
    losses = image.abs().mean(), (image - 1).square().mean()
    weight = adaptive_weight(*losses, last.weight)
    assert last.weight.grad is None and body.weight.grad is None
    slopes = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0] for loss in losses]
    assert weight.item() == pytest.approx((slopes[0].norm() / slopes[1].norm()).item(), rel=1e-3)
    (losses[0] + weight * losses[1]).backward()
    torch.testing.assert_close(last.weight.grad, slopes[0] + weight * slopes[1])
    assert body.weight.grad.any()


def test_adaptive_weight_of_a_half_layer() -> None:
    layer = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    losses = layer.sum(), 3 * layer.float().sum()  # 4096 squares, which bf16 would miscount
    assert adaptive_weight(*losses, layer).item() == pytest.approx(1 / 3, rel=1e-4)
    assert adaptive_weight(*losses, layer).dtype == torch.float32


def test_adaptive_weight_in_fp16_needs_a_scale() -> None:
    layer = nn.Parameter(torch.ones(64))

    def losses() -> tuple[Tensor, Tensor]:
        half = layer.half()  # as autocast does: the gradient passes through fp16
        return 1e-9 * half.float().sum(), 1e-8 * half.float().sum()

    expected = 8e-9 / (8e-8 + 1e-4)
    assert adaptive_weight(*losses(), layer).item() == 0
    scaled = adaptive_weight(*losses(), layer, scale=2.0**16).item()
    assert scaled == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("which", [0, 1])
def test_adaptive_weight_needs_a_trained_layer(which: int) -> None:
    layer, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    names = ("reconstruction_loss", "generator_loss")
    for foreign in (other.sum(), torch.ones(())):
        losses = [layer.sum(), layer.sum()]
        losses[which] = foreign
        with pytest.raises(WetokError, match=f"{names[which]} .* set a fixed weight"):
            adaptive_weight(*losses, layer)
    layer.requires_grad_(False)
    with pytest.raises(WetokError, match="frozen"):
        adaptive_weight(other.sum(), other.sum(), layer)


# The warm-up and the frozen discriminator.


def test_warmup_factor() -> None:
    assert [warmup_factor(step, 0) for step in range(3)] == [1, 1, 1]
    assert [warmup_factor(step, 2) for step in range(4)] == [0, 0, 1, 1]
    assert [warmup_factor(step, 2, 1) for step in range(4)] == [0, 0, 1, 1]
    assert [warmup_factor(step, 2, 4) for step in range(8)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]


@few
@given(st.integers(0, 50), st.integers(0, 50))
def test_warmup_factor_rises(start: int, ramp: int) -> None:
    factors = [warmup_factor(step, start, ramp) for step in range(start + ramp + 2)]
    assert factors == sorted(factors) and factors[-1] == 1
    assert factors.count(0) == start
    assert sum(factors[start : start + ramp]) == pytest.approx((ramp + 1) / 2 if ramp else 0)


def test_frozen_lets_gradients_by() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(3, 4, 2)
    network.main[0].bias.requires_grad_(False)
    x = randn(2, 3, 16, 16, dtype=torch.float32)
    gradients = []
    for hold in (True, False):
        image = x.clone().requires_grad_()
        if hold:
            with frozen(network):
                loss = non_saturating_generator_loss(network(image))
        else:
            loss = non_saturating_generator_loss(network(image))
        loss.backward()  # after the block: what counts is where the forward pass ran
        assert all((p.grad is None) == (hold or not p.requires_grad) for p in network.parameters())
        gradients.append(image.grad)
    assert torch.equal(*gradients) and gradients[0].any()
    with pytest.raises(KeyError), frozen(network):
        raise KeyError
    names = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert names == ["main.0.bias"]  # what was frozen before stays so


def test_a_discriminator_learns_and_a_fake_follows() -> None:
    """A few updates of each side with the terms together lower each side's loss."""
    torch.manual_seed(0)
    network, lecam = PatchDiscriminator(3, 8, 2), LeCam(0.9)
    real = 0.2 * randn(8, 3, 16, 16, dtype=torch.float32) + 0.5
    fake = nn.Parameter(0.2 * randn(8, 3, 16, 16, seed=1, dtype=torch.float32) - 0.5)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3, (0.5, 0.9))
    losses = []
    for _ in range(15):
        logits = network(real), network(fake.detach())
        lecam.update(*logits)
        loss = hinge_discriminator_loss(*logits) + 0.05 * lecam(*logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert lecam.real > 0 > lecam.fake
    optimizer = torch.optim.Adam([fake], 0.05, (0.5, 0.9))  # it has a distance of 1 to go
    losses = []
    for _ in range(15):
        with frozen(network):
            loss = non_saturating_generator_loss(network(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# Two processes against one.

DTYPES = (torch.float64, torch.float32)
SHARES = {"even": (2, 2), "uneven": (1, 3)}


Wrap = Callable[[nn.Module], nn.Module]


def alone(module: nn.Module) -> nn.Module:
    return module


def norm_results(rows: slice, dtype: torch.dtype, wrap: Wrap) -> dict[str, Tensor]:
    """Two calls of the norm in training, one backward pass, then one call in evaluation."""
    norm = DistributedBatchNorm2d(3).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(randn(3))
        norm.bias.copy_(randn(3, seed=1))
    model = wrap(norm)
    total = 0
    calls = []
    for call in range(2):
        x = (3 * randn(4, 3, 5, 6, seed=call, dtype=dtype) + 2)[rows].requires_grad_()
        y = model(x)
        weights = randn(4, 3, 5, 6, seed=7 + call, dtype=dtype)[rows]
        # The mean over everyone's images, as DistributedDataParallel's averaging will make it.
        total = total + (y * weights + y**3).sum() / 4 * (1 if wrap is alone else 2)
        calls.append((x, y))
    total.backward()
    share = 1 if wrap is alone else 2
    results = {f"gradient {i}": x.grad / share for i, (x, _) in enumerate(calls)}
    results |= {f"value {i}": y.detach() for i, (_, y) in enumerate(calls)}
    results["evaluation"] = norm.eval()(calls[0][0]).detach()
    results |= {f"grad of {name}": p.grad for name, p in norm.named_parameters()}
    return results | {name: b.clone() for name, b in norm.named_buffers()}


class ToyTokenizer(nn.Module):
    """Two convolutions in the place of encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.conv_out = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv_out(torch.tanh(self.body(image)))


def gan_step(rows: slice, dtype: torch.dtype, kind: str, wrap: Wrap) -> dict[str, Tensor]:
    """The gradients of both sides in one step of training."""
    torch.manual_seed(3)
    toy, network = ToyTokenizer().to(dtype), PatchDiscriminator(3, 4, 2).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5)  # logits that differ from 0
    lecam = LeCam(0.9).to(dtype)
    image = randn(4, 3, 20, 20, dtype=dtype)[rows]
    tokenizer, discriminator = wrap(toy), wrap(network)

    again = tokenizer(image)
    with frozen(network):
        generator = non_saturating_generator_loss(network(again))
    reconstruction = F.l1_loss(again, image)
    weight = adaptive_weight(reconstruction, generator, toy.conv_out.weight, 0.8)
    (reconstruction + weight * generator).backward()

    logits = discriminator(image), discriminator(again.detach())
    lecam.update(*logits)
    lecam.update(logits[0] + 1, logits[1] - 1)
    loss = DISCRIMINATOR_LOSSES[kind](*logits) + 0.5 * lecam(*logits)
    loss.backward()
    results = {"weight": weight, "lecam real": lecam.real, "lecam fake": lecam.fake}
    for name, part in (("tokenizer", toy), ("discriminator", network)):
        results |= {f"{name}.{key}": p.grad for key, p in part.named_parameters()}
    return results | {name: buffer for name, buffer in network.named_buffers()}


def norm_job(rank: int, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return norm_results(rows_of(name)[rank], dtype, DistributedDataParallel)


def gan_job(rank: int, kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return gan_step(rows_of("even")[rank], dtype, kind, DistributedDataParallel)


def lecam_job(rank: int) -> list[list[float]]:
    """Averages after uneven batches, then after a broken logit on rank 1 alone."""
    lecam = LeCam(0.5).double()
    rows = rows_of("uneven")[rank]
    logits = randn(4, 1, 2, 2)[rows], randn(4, 1, 2, 2, seed=1)[rows]
    lecam.update(*logits)
    first = [lecam.real.item(), lecam.fake.item()]
    lecam.update(logits[0] + (math.nan if rank else 0), logits[1])
    return [first, [lecam.real.item(), lecam.fake.item()]]


def rows_of(name: str) -> tuple[slice, slice]:
    own = SHARES[name][0]
    return slice(0, own), slice(own, 4)


NORMS = [(name, dtype) for name in SHARES for dtype in DTYPES]
STEPS = [(kind, dtype) for kind in DISCRIMINATOR_LOSSES for dtype in DTYPES]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple, tuple[Any, Any]]:
    """What each rank got, by job and its arguments."""
    folder = tmp_path_factory.mktemp("gloo")
    jobs = [(norm_job, *case) for case in NORMS] + [(gan_job, *case) for case in STEPS]
    jobs.append((lecam_job,))
    mp.spawn(run_rank, args=(str(folder), jobs), nprocs=2)
    results = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    assert all(isinstance(result, list) for result in results), "\n".join(map(str, results))
    return dict(zip(jobs, zip(*results, strict=True), strict=True))


def assert_close(name: str, mine: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    limit = 1e-10 if dtype == torch.float64 else 1e-5
    error = (mine - expected).abs().max().item()
    assert error <= limit * max(1, expected.abs().max().item()), name


@pytest.mark.parametrize("case", NORMS, ids=str)
def test_batch_norm_of_two_processes(ranks: dict, case: tuple[str, torch.dtype]) -> None:
    name, dtype = case
    expected = norm_results(slice(None), dtype, alone)
    assert expected["num_batches_tracked"] == 2
    for rank, rows in enumerate(rows_of(name)):
        for key, mine in ranks[(norm_job, *case)][rank].items():
            whole = expected[key]
            assert_close(key, mine, whole[rows] if whole.ndim == 4 else whole, dtype)


def test_batch_norms_alone_would_differ() -> None:
    """Each rank's own statistics would not do: the test above tests something."""
    whole = norm_results(slice(None), torch.float64, alone)
    part = norm_results(slice(0, 2), torch.float64, alone)
    assert (part["value 0"] - whole["value 0"][:2]).abs().max() > 0.01


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_gan_step_of_two_processes(ranks: dict, case: tuple[str, torch.dtype]) -> None:
    kind, dtype = case
    expected = gan_step(slice(None), dtype, kind, alone)
    gradients = [key for key in expected if "." in key and "running" not in key]
    assert len(gradients) > 10 and expected["lecam real"] != 0
    for rank in range(2):
        mine = ranks[(gan_job, *case)][rank]
        assert mine.keys() == expected.keys()
        for key, value in mine.items():
            assert_close(key, value, expected[key], dtype)


def test_lecam_of_two_processes(ranks: dict) -> None:
    means = [randn(4, 1, 2, 2, seed=seed).mean().item() / 2 for seed in range(2)]
    for first, second in ranks[(lecam_job,)]:
        assert first == pytest.approx(means, rel=1e-12)
        assert second == first
