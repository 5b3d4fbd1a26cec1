"""Fixtures of these tests."""

from __future__ import annotations

import pytest

from tests.tokenize.job import network
from wetok.model.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A small model of random weights."""
    return Tokenizer(network(), "toy")
