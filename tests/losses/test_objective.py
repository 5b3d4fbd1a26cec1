"""The objective's terms and total against plain arithmetic in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wetok.config import LossConfig, WetokError, validate
from wetok.losses.objective import Objective, ReconstructionObjective, first_broken
from wetok.losses.perceptual import LPIPS

COMMITMENT, TOKEN, CODEBOOK = 0.5, 0.25, 9.0


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    torch.manual_seed(0)
    random = LPIPS("alex")
    for head in random.lin.parameters():
        head.abs_()  # as the published ones, so that a distance is none below 0
    return random


def images(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 36, generator=torch.Generator().manual_seed(seed)) * 2 - 1


Loss = Callable[..., Objective]


@pytest.fixture
def loss(lpips: LPIPS) -> Loss:
    """loss(step=..., setting=...): the objective on two fixed images."""

    def run(
        step: int = 0,
        entropies: tuple[Any, Any] = (torch.tensor(TOKEN), torch.tensor(CODEBOOK)),
        again: Tensor | None = None,
        **settings: Any,
    ) -> Objective:
        objective = ReconstructionObjective(validate(LossConfig, settings), lpips)
        reconstruction = images(1) if again is None else again
        commitment = torch.tensor(COMMITMENT)
        result: Objective = objective(images(0), reconstruction, commitment, *entropies, step)
        return result

    return run


def difference(power: int) -> float:
    delta = images(0).double().numpy() - images(1).double().numpy()
    return float(np.mean(np.abs(delta) ** power))


def test_the_defaults_are_the_released_weights(loss: Loss, lpips: LPIPS) -> None:
    """Open-MAGVIT2's and WeTok's: 1 L1 + 1 LPIPS + 0.25 commitment + 0.1 (token - 1 codebook)."""
    total, _, terms = loss()
    distance = lpips(images(1), images(0)).double().mean().item()
    expected = difference(1) + distance + 0.25 * COMMITMENT + 0.1 * (TOKEN - CODEBOOK)
    assert total.item() == pytest.approx(expected, abs=1e-6)
    assert {name: term.item() for name, term in terms.items()} == {
        "l1": pytest.approx(difference(1), rel=1e-6),
        "lpips": pytest.approx(distance, rel=1e-6),
        "commitment": COMMITMENT,
        "token_entropy": TOKEN,
        "codebook_entropy": CODEBOOK,
    }
    config = LossConfig()
    assert (config.entropy, config.perceptual) == ("pooled", "vgg")
    assert (config.temperature, config.epsilon) == (0.01, 1e-5)


def test_every_weight_weighs_its_term(loss: Loss, lpips: LPIPS) -> None:
    total, _, terms = loss(
        reconstruction="l2",
        reconstruction_weight=2,
        perceptual_weight=3,
        commitment_weight=5,
        entropy_weight=7,
        codebook_weight=11,
    )
    assert terms["l2"].item() == pytest.approx(difference(2), rel=1e-6)
    assert "l1" not in terms
    expected = (
        2 * difference(2)
        + 3 * lpips(images(1), images(0)).double().mean().item()
        + 5 * COMMITMENT
        + 7 * (TOKEN - 11 * CODEBOOK)
    )
    assert total.item() == pytest.approx(expected, rel=1e-6)


def test_a_sure_choice_and_a_full_codebook_are_rewarded(loss: Loss) -> None:
    """The token entropy is to fall and the codebook entropy to rise."""
    token = torch.tensor(TOKEN, requires_grad=True)
    codebook = torch.tensor(CODEBOOK, requires_grad=True)
    total, _, terms = loss(entropies=(token, codebook), codebook_weight=2)
    total.backward()
    assert token.grad is not None and codebook.grad is not None
    assert token.grad.item() == pytest.approx(0.1)
    assert codebook.grad.item() == pytest.approx(-0.2)
    assert not any(term.requires_grad for term in terms.values())


def test_without_entropies(loss: Loss) -> None:
    total, _, terms = loss(entropies=(None, None), perceptual_weight=0)
    assert total.item() == pytest.approx(difference(1) + 0.25 * COMMITMENT, rel=1e-6)
    assert terms.keys() == {"l1", "commitment"}


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_lpips_now_and_then_keeps_its_mean_weight(loss: Loss, every: int) -> None:
    always = loss(perceptual_weight=0.5)
    never = loss(perceptual_weight=0)
    steps = range(30)
    results = [loss(step, perceptual_weight=0.5, perceptual_every=every) for step in steps]
    turns = [step for step in steps if "lpips" in results[step].terms]
    assert turns == [step for step in steps if step % every == 0]
    mean = sum(result.total.double().item() for result in results) / len(steps)
    assert mean == pytest.approx(always.total.item(), rel=1e-5)
    assert never.total < always.total
    shown = {results[step].terms["lpips"].item() for step in turns}
    assert shown == {always.terms["lpips"].item()}, "the log tells the distance itself"


def test_the_gradient_reaches_the_reconstruction(loss: Loss) -> None:
    again = images(1).requires_grad_()
    loss(again=again, perceptual_weight=0).total.backward()
    sign = torch.sign(images(1) - images(0)) / images(0).numel()
    assert again.grad is not None
    torch.testing.assert_close(again.grad, sign)
    (both,) = torch.autograd.grad(loss(again=again).total, again)
    assert both.isfinite().all() and not torch.equal(both, sign)


def test_a_half_precision_reconstruction_is_compared_in_float32(loss: Loss) -> None:
    again = images(1).to(torch.bfloat16)
    total, _, terms = loss(again=again, perceptual_weight=0)
    assert total.dtype == terms["l1"].dtype == torch.float32
    expected = (images(0).double() - again.double()).abs().mean().item()
    assert terms["l1"].item() == pytest.approx(expected, rel=1e-6)


def test_lpips_must_be_there_where_it_weighs() -> None:
    with pytest.raises(WetokError, match="perceptual_weight=1.0 needs the LPIPS vgg"):
        ReconstructionObjective(LossConfig(), None)
    ReconstructionObjective(LossConfig(perceptual_weight=0), None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_broken_term_is_named(value: float) -> None:
    fine = {"l1": torch.tensor(1.0), "lpips": torch.tensor(2.0).bfloat16(), "z": torch.tensor(3.0)}
    assert first_broken(fine) is None
    assert first_broken({**fine, "lpips": torch.tensor(value), "z": torch.tensor(value)}) == "lpips"
    assert first_broken({**fine, "z": torch.tensor(value, dtype=torch.float64)}) == "z"
