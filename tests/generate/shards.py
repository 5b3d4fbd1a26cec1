"""Token shards small enough for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wetok.data.tokens import About, Record, to_parquet
from wetok.model.tokenizer import Tokenizer


def write(
    folder: Path, tokenizer: Tokenizer, count: int, labels: list[Any], seed: int = 0, side: int = 32
) -> Path:
    """`count` records in two shards, ids that follow from the label but for one in ten."""
    import pyarrow as pa

    config = tokenizer.config
    about = About(
        tokenizer.name,
        tokenizer.fingerprint,
        config.groups,
        config.group_bits,
        config.factor,
        (side, side),
        ("center",),
        "none",
        "0" * 16,
        "test",
    )
    random = np.random.default_rng(seed)
    records = []
    for number in range(count):
        label = labels[number % len(labels)]
        shape = (config.groups, side // config.factor, side // config.factor)
        usual = np.random.default_rng(number % len(labels)).integers(0, 2**config.group_bits, shape)
        other = random.integers(0, 2**config.group_bits, shape)
        ids = np.where(random.random(shape) < 0.1, other, usual)
        records.append(
            Record(f"image-{number}", "center", ids, (side, side), {"label": label, "empty": None})
        )
    kind = pa.string() if isinstance(labels[0], str) else pa.int64()
    extras = pa.schema([("label", kind), ("empty", pa.int64())])
    folder.mkdir()
    half = count // 2
    for part, rows in enumerate((records[:half], records[half:])):
        (folder / f"tokens-{part:05}.parquet").write_bytes(to_parquet(rows, about, extras))
    return folder
