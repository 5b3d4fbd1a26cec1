"""The generative decoder's noise in training: each sample of a run has its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from wetok.model.decoder import sample_noise

NOISE, DROPOUT = 5, 6
"""What random numbers of a sample are for: the second word of a seed (order and crops: 0 to 4)."""


def sample_seed(seed: int, use: int, number: int) -> int:
    """In [0, 2^63): its own for every run's seed, use and number of a sample."""
    word = np.random.SeedSequence((seed, use, number)).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))


def training_noise(seed: int, numbers: Sequence[int], shape: Sequence[int], like: Tensor) -> Tensor:
    """Noise [len(numbers), *shape] for the samples of these numbers in a run with this seed.

    A pure function of both: a resumed run, or one with more processes, draws the same.
    """
    return sample_noise([sample_seed(seed, NOISE, one) for one in numbers], shape, like)
