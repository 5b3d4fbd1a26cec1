"""Ids to one vocabulary and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wetok.config import WetokError
from wetok.generate.vocabulary import Vocabulary


@given(
    groups=st.integers(1, 5),
    bits=st.integers(1, 10),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    base=st.sampled_from([0, 7, 32000]),
    rows=st.booleans(),
    seed=st.integers(0, 99),
)
def test_there_and_back(
    groups: int, bits: int, height: int, width: int, base: int, rows: bool, seed: int
) -> None:
    vocabulary = Vocabulary(groups, bits, base, rows)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2**bits, (2, groups, height, width), generator=generator)
    sequence = vocabulary.encode(ids)
    assert sequence.shape == (2, vocabulary.length(height, width))
    assert base <= sequence.min() and sequence.max() < base + vocabulary.size
    assert torch.equal(vocabulary.decode(sequence, None if rows else width), ids)


def test_the_order_written_out() -> None:
    ids = torch.tensor([[[[0, 1], [2, 3]], [[3, 2], [1, 0]]]])  # 2 groups of 2 bits
    assert Vocabulary(2, 2, base=100).encode(ids).tolist() == [
        [108, 100, 107, 101, 106, 110, 102, 105, 103, 104, 110, 109]
    ]
    assert Vocabulary(2, 2, rows=False).encode(ids).tolist() == [[8, 0, 7, 1, 6, 2, 5, 3, 4, 9]]


@pytest.mark.parametrize(
    ("place", "token", "message"),
    [
        (0, 3, r"token 3 where there should be begin of image \(8\)"),
        (11, 3, r"token 3 where there should be end of image \(9\)"),
        (10, 3, r"token 3 where there should be end of row \(10\)"),
        (1, 5, "token 5 where there should be an id of its own group"),
        (2, 2, "token 2 where there should be an id of its own group"),
        (5, 1, "not whole rows"),
    ],
)
def test_a_wrong_token_is_named(place: int, token: int, message: str) -> None:
    vocabulary = Vocabulary(2, 2)
    sequence = vocabulary.encode(torch.zeros(1, 2, 2, 2, dtype=torch.long))
    sequence[0, place] = token
    with pytest.raises(WetokError, match=message):
        vocabulary.decode(sequence)


def test_what_can_not_be_mapped() -> None:
    with pytest.raises(WetokError, match="must be below 4"):
        Vocabulary(1, 2).encode(torch.full((1, 1, 1, 1), 4))
    with pytest.raises(WetokError, match=r"must be \[B,2,h,w\]"):
        Vocabulary(2, 2).encode(torch.zeros(1, 1, 1, 1))
    with pytest.raises(WetokError, match="width of the image is unknown"):
        Vocabulary(1, 2, rows=False).decode(torch.tensor([[4, 0, 5]]))
    with pytest.raises(WetokError, match="base of 0 or more"):
        Vocabulary(1, 2, base=-1)


@pytest.mark.parametrize("rows", [True, False])
def test_what_is_allowed_is_what_decodes(rows: bool) -> None:
    vocabulary = Vocabulary(groups=2, group_bits=3, base=7, rows=rows)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, (5, 2, 3, 4), generator=generator)
    length = vocabulary.length(3, 4)
    for place, tokens in enumerate(vocabulary.encode(ids).T):
        assert set(tokens.tolist()) <= set(vocabulary.allowed(place, 3, 4))
    for _ in range(20):  # any choice among them is an image, and comes back
        chosen = []
        for place in range(length):
            some = vocabulary.allowed(place, 3, 4)
            chosen.append(some[int(torch.randint(len(some), (1,), generator=generator))])
        sequence = torch.tensor([chosen])
        assert torch.equal(vocabulary.encode(vocabulary.decode(sequence, width=4)), sequence)
    everything = {token for place in range(length) for token in vocabulary.allowed(place, 3, 4)}
    assert everything == set(range(7, 7 + vocabulary.size))
    for place in (-1, length):
        with pytest.raises(WetokError, match=rf"place={place} must lie in \[0, {length}\)"):
            vocabulary.allowed(place, 3, 4)
