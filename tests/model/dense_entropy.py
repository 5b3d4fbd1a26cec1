"""The brute-force entropies, which the package has for `wetok ablate` to measure."""

from __future__ import annotations

from wetok.evaluate.dense_entropy import all_codes, dense_entropies

__all__ = ["all_codes", "dense_entropies"]
