"""The generative decoder's noise in training: each sample of a run has its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from wetok.model.decoder import sample_noise

_NOISE = 5
"""Second word of each seed; those of order and crops are 0 to 4."""


def training_noise(seed: int, numbers: Sequence[int], shape: Sequence[int], like: Tensor) -> Tensor:
    """Noise [len(numbers), *shape] for the samples of these numbers in a run with this seed.

    A pure function of both: a resumed run, or one with more processes, draws the same.
    """
    words = [np.random.SeedSequence((seed, _NOISE, number)) for number in numbers]
    seeds = [int(word.generate_state(1, np.uint64)[0] >> np.uint64(1)) for word in words]
    return sample_noise(seeds, shape, like)
