"""The error of the grouped codebook entropy, against brute force and against what is proved."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wetok.config import WetokError
from wetok.evaluate.approximation import approximations, divisors


def brute_force(latent: Tensor, parts: list[list[int]], temperature: float) -> float:
    """Sum over `parts` of the bits of the entropies of their marginals, from the whole joint.

    The joint is the mean over positions of a softmax over all codes, in numpy and float64; the
    marginals are sums over its axes. None of it is factored.
    """
    x = latent.double().numpy()
    bits = x.shape[1]
    codes = np.array(list(itertools.product([-1.0, 1.0], repeat=bits)))
    logits = 2 / temperature * x @ codes.T
    weights = np.exp(logits - logits.max(1, keepdims=True))
    joint = (weights / weights.sum(1, keepdims=True)).mean(0).reshape([2] * bits)
    total = 0.0
    for part in parts:
        others = tuple(axis for axis in range(bits) if axis not in part)
        share = joint.sum(axis=others)
        share = share[share > 0]
        total -= float((share * np.log(share)).sum())
    return total


def contiguous(bits: int, groups: int) -> list[list[int]]:
    size = bits // groups
    return [list(range(start, start + size)) for start in range(0, bits, size)]


def latents(positions: int, bits: int, seed: int, scale: float = 0.01) -> Tensor:
    """Correlated ones: a mixture of a few directions and noise."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(positions, 3, generator=generator, dtype=torch.float64)
    mix = torch.randn(3, bits, generator=generator, dtype=torch.float64)
    noise = torch.randn(positions, bits, generator=generator, dtype=torch.float64)
    return scale * (few @ mix + noise)


@pytest.mark.parametrize("scale", [0.002, 0.01, 1.0])
@pytest.mark.parametrize("bits", [1, 4, 6, 9])
def test_all_groupings_agree_with_brute_force(bits: int, scale: float) -> None:
    x = latents(50, bits, seed=bits, scale=scale)
    results = approximations(x)
    assert [result.groups for result in results] == divisors(bits)
    exact = brute_force(x, [list(range(bits))], 0.01)
    for result in results:
        assert result.exact == pytest.approx(exact, abs=1e-10)
        wanted = brute_force(x, contiguous(bits, result.groups), 0.01)
        assert result.grouped == pytest.approx(wanted, abs=1e-10)
        assert result.error == pytest.approx(wanted - exact, abs=1e-10)


def test_the_temperature_is_that_of_the_soft_assignment() -> None:
    x = latents(40, 4, seed=0)
    (result,) = approximations(x, groups=[2], temperature=0.05)
    assert result.grouped == pytest.approx(brute_force(x, contiguous(4, 2), 0.05), abs=1e-10)


def test_images_are_as_their_positions() -> None:
    x = latents(24, 6, seed=0)
    image = x.reshape(2, 3, 4, 6).permute(0, 3, 1, 2)
    for one, other in zip(approximations(image), approximations(x), strict=True):
        assert one.grouped == pytest.approx(other.grouped, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 6, 8, 12]),
    positions=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1e-2, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_errors_are_never_negative_and_grow_as_groups_are_cut(
    bits: int, positions: int, scale: float, seed: int
) -> None:
    """Subadditivity: sum of H(P_G) - H(P) is a total correlation, and refining adds to it."""
    error = {one.groups: one.error for one in approximations(latents(positions, bits, seed, scale))}
    assert error[1] == 0
    for coarse, fine in itertools.permutations(error, 2):
        assert error[coarse] >= -1e-9
        if fine % coarse == 0:
            assert error[coarse] <= error[fine] + 1e-9
    assert max(error.values()) == pytest.approx(error[bits]), "BSQ's is the largest"


def test_numbers_of_groups_that_do_not_nest_may_fall() -> None:
    """Two groups of three cut a pair of equal bits in two; three groups of two do not."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(4000, 3, generator=generator).repeat_interleave(2, dim=1)
    error = {one.groups: one.error for one in approximations(pairs)}
    assert error[2] == pytest.approx(math.log(2), abs=0.03), "the middle pair is cut"
    assert error[3] < 0.01 and error[6] == pytest.approx(3 * math.log(2), abs=0.09)


def test_independent_bits_have_no_error_but_that_of_few_positions() -> None:
    """Every combination of signs once: the mean joint is uniform and a product."""
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)))
    assert all(abs(one.error) < 1e-12 for one in approximations(signs))
    few = approximations(signs[torch.randperm(64)[:16]])
    assert few[-1].error > 0.5, "16 positions can't show 6 bits as independent"


def test_too_many_bits_and_groups_that_divide_nothing() -> None:
    with pytest.raises(WetokError, match="latent has 32 channels: .* at most 30 bits; choose"):
        approximations(torch.zeros(4, 32))
    with pytest.raises(WetokError, match="groups=3 must divide"):
        approximations(torch.zeros(4, 4), groups=[3])
