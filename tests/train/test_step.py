"""One step: the right update, the same every time, and none at all where a loss is NaN."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.train.tiny import Recipe, batch, build
from wetok.config import WetokError
from wetok.train.step import StepResult, train_step

GAN = {"gan": {"width": 8, "depth": 1}}


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def run(recipe: Recipe, steps: int, changes: dict[str, Any] | None = None, seed: int = 0) -> Any:
    config = recipe(changes)
    state, objective = build(config, seed)
    results = [train_step(state, objective, config, batch(step)) for step in range(steps)]
    return state, results


def test_a_step_is_adam_on_the_objective(recipe: Recipe) -> None:
    config = recipe({"loss.entropy": "grouped"})
    state, objective = build(config)
    reference, _ = build(config)
    ((image, _),) = batch(0)
    again = reference.network(image)
    quantized = again.quantized
    difference = (again.image - image).abs().mean()
    loss = (
        difference
        + 0.25 * quantized.commitment
        + 0.1 * (quantized.token_entropy - quantized.codebook_entropy)
    )
    loss.backward()
    result = train_step(state, objective, config, batch(0))
    assert isinstance(result, StepResult)
    assert result.rate == config.optimizer.lr and state.step == 1
    assert torch.equal(result.ids, quantized.ids)
    terms = {name: term.item() for name, term in result.terms.items()}
    assert list(terms) == [
        *("loss", "l1", "commitment", "token_entropy", "codebook_entropy", "gradient_norm")
    ]
    assert terms["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert terms["l1"] == pytest.approx(difference.item(), rel=1e-6)
    gradients = [p.grad for p in reference.network.parameters()]
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
    assert terms["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    pairs = zip(state.network.parameters(), reference.network.parameters(), strict=True)
    for (name, average), (moved, still) in zip(state.ema.average.items(), pairs, strict=True):
        assert still.grad is not None, name
        # The first step of Adam: g / (|g| + eps), whatever the betas.
        g = still.grad.double()
        expected = still.detach().double() - 1e-3 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(moved.detach().double(), expected, rtol=1e-5, atol=2e-6)
        mean = still.detach() + (1 - 2 / 11) * (moved.detach() - still.detach())
        torch.testing.assert_close(average, mean, rtol=1e-5, atol=1e-7)


def test_the_loss_falls(recipe: Recipe) -> None:
    config = recipe({"loss.entropy_weight": 0})
    state, objective = build(config)
    losses = [
        float(train_step(state, objective, config, batch(0)).terms["loss"]) for _ in range(40)
    ]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_seed_gives_the_same_weights_to_the_bit(recipe: Recipe, precision: str) -> None:
    changes: dict[str, Any] = {"run.precision": precision, "optimizer.clip": 0.5}
    (one, first), (two, _) = (run(recipe, 4, changes) for _ in range(2))
    assert equal(weights(one.network), weights(two.network))
    assert equal(list(one.ema.average.values()), list(two.ema.average.values()))
    assert not equal(weights(one.network), weights(run(recipe, 4, changes, seed=1)[0].network))
    for result in first:
        finite = {name: bool(term.isfinite()) for name, term in result.terms.items()}
        assert all(finite.values()), finite
    assert all(weight.isfinite().all() for weight in weights(one.network))
    assert all(weight.dtype == torch.float32 for weight in weights(one.network))


def test_half_precision_is_near_float32(recipe: Recipe) -> None:
    (_, (exact,)), (_, (bf16,)), (_, (fp16,)) = (
        run(recipe, 1, {"run.precision": precision}) for precision in ("fp32", "bf16", "fp16")
    )
    for name in ("l1", "commitment", "gradient_norm"):
        expected = exact.terms[name].item()
        assert bf16.terms[name].item() == pytest.approx(expected, rel=0.1), name
        # Unscaled: the log tells the gradient itself, not 65536 times it.
        assert fp16.terms[name].item() == pytest.approx(expected, rel=0.1), name
    assert bf16.terms["l1"].item() != exact.terms["l1"].item(), "autocast was on"


@pytest.mark.parametrize("term", ["l1", "commitment", "token_entropy", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_leaves_the_weights_untouched(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, term: str, value: float
) -> None:
    config = recipe({**GAN, "run.max_skipped": 2})
    state, objective = build(config)
    train_step(state, objective, config, batch(0))
    before, averages = weights(state.network), weights_of_average(state)
    judge = weights(state.adversary)
    forward = objective.forward

    def spoiled(image: torch.Tensor, again: torch.Tensor, *losses: Any) -> Any:
        given = list(losses)
        if term == "l1":
            again = again * value
        elif term == "gradient_norm":
            again.register_hook(lambda gradient: gradient * value)
        else:
            index = ("commitment", "token_entropy").index(term)
            given[index] = given[index] * value
        return forward(image, again, *given)

    monkeypatch.setattr(objective, "forward", spoiled)
    remembered = state.adversary.remembered()
    assert train_step(state, objective, config, batch(1)).broken == term
    assert equal(weights(state.network), before)
    assert equal(weights(state.adversary), judge)
    assert equal(state.adversary.remembered(), remembered)
    assert equal(weights_of_average(state), averages)
    assert (state.step, state.ema.updates) == (2, 1)
    assert (state.skipped, state.skipped_in_a_row) == (1, 1)
    with pytest.raises(WetokError, match=f"^{term} is NaN or infinite at step 2,.*optimizer.lr"):
        train_step(state, objective, config, batch(1))

    # And the next good batch goes on from there, as if nothing had been.
    monkeypatch.undo()
    assert train_step(state, objective, config, batch(1)).broken is None
    assert (state.skipped, state.skipped_in_a_row) == (2, 0)
    whole = run(recipe, 2, GAN)[0]
    assert equal(weights(state.network), weights(whole.network))
    assert equal(weights(state.adversary), weights(whole.adversary))
    assert equal(state.adversary.remembered(), whole.adversary.remembered())


def weights_of_average(state: Any) -> list[torch.Tensor]:
    return [average.clone() for average in state.ema.average.values()]


def test_an_overflowing_gradient_is_skipped_in_fp16(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe({"run.precision": "fp16"})
    state, objective = build(config)
    before, scale = weights(state.network), state.scaler.get_scale()
    forward = objective.forward

    def spoiled(image: torch.Tensor, again: torch.Tensor, *losses: Any) -> Any:
        again.register_hook(lambda gradient: gradient * math.inf)
        return forward(image, again, *losses)

    monkeypatch.setattr(objective, "forward", spoiled)
    result = train_step(state, objective, config, batch(0))
    assert not result.terms["gradient_norm"].isfinite()
    assert equal(weights(state.network), before) and state.step == 1
    assert state.scaler.get_scale() == scale / 2


def test_clipping_bounds_the_gradient(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, (free,) = run(recipe, 1)
    norm = free.terms["gradient_norm"].item()
    limit = norm / 3
    seen: list[float] = []

    def watch(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        parts = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append(math.sqrt(sum(float(g.double().square().sum()) for g in parts)))

    config = recipe({"optimizer.clip": limit})
    state, objective = build(config)
    state.optimizer.register_step_pre_hook(watch)
    result = train_step(state, objective, config, batch(0))
    assert seen == [pytest.approx(limit, rel=1e-4)]
    assert result.terms["gradient_norm"].item() == pytest.approx(norm, rel=1e-6), "as it was"

    wide = run(recipe, 1, {"optimizer.clip": 10 * norm})[0]
    assert equal(weights(wide.network), weights(plain.network)), "a small gradient is left alone"


def test_the_rate_follows_the_schedule(recipe: Recipe) -> None:
    changes = {"optimizer.warmup": 2, "optimizer.schedule": "cosine", "run.steps": 5}
    _, results = run(recipe, 5, changes)
    rates = [result.rate for result in results]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4, 0])


def test_a_rate_of_nothing_moves_nothing(recipe: Recipe) -> None:
    """The schedule's rate is what Adam uses."""
    config = recipe({"optimizer.schedule": "cosine", "run.steps": 2})
    state, objective = build(config)
    train_step(state, objective, config, batch(0))
    before = weights(state.network)
    assert train_step(state, objective, config, batch(1)).rate == 0
    assert equal(weights(state.network), before)
