"""docs/tokenize.md says what is there: its snippets run, its tables are the code's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.documents import python_of
from tests.tokenize.job import model_folder, run, write_pictures
from wetok import checkpoint
from wetok.data.tokens import COLUMNS
from wetok.tokenize import output, plan, pool, views
from wetok.tokenize.inputs import open_inputs

TEXT = (Path(__file__).parents[2] / "docs" / "tokenize.md").read_text(encoding="utf-8")


def test_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "photos", 12, broken=2)
    tokenizer = checkpoint.load(model_folder(tmp_path / "model"))
    inputs = open_inputs([tmp_path / "photos"], labels="folder")
    run(tmp_path / "tokens", inputs, tokenizer, part_size=5)
    without, own = python_of("docs/tokenize.md")
    assert "wetok import" not in without and "from wetok" not in without
    names: dict[str, object] = {}
    exec(compile(without, "tokenize.md", "exec"), names)
    rows, every, ids = names["rows"], names["every"], names["ids"]
    assert isinstance(every, np.ndarray) and every.shape == (10, 2, 8, 8)
    for row, one in zip(rows, every, strict=True):  # type: ignore[call-overload]
        wanted = tokenizer.encode(tmp_path / "photos" / row["key"]).ids[0].numpy()
        assert np.array_equal(one, wanted)
        assert row["label"] == row["key"][0]
    assert np.array_equal(every[0], ids)  # type: ignore[arg-type]
    exec(compile(own, "tokenize.md", "exec"), names)
    record = names["record"]
    assert record.key in set(rows["key"])  # type: ignore[attr-defined, index]


def test_tables() -> None:
    assert all(f"`{column}`" in TEXT for column in COLUMNS)
    for name in (output.FAILED, output.SUMMARY, f"_wetok/{output.PLAN}"):
        assert f"`{name}`" in TEXT
    for kind in ("center", "flip", "ten-crop"):
        own = views.Preprocessing(32, kind).names  # type: ignore[arg-type]
        assert f"| `{kind}` | {len(own)} |" in TEXT
        assert all(f"`{name.removesuffix('-flip')}`" in TEXT for name in own)
    assert views.CROP_RANGE == 1.1 and "1.1 times" in TEXT
    assert pool.SECONDS == 300 and "five minutes" in TEXT
    assert pool.TRIES == 2 and "tried once more" in TEXT
    assert plan.PART_SIZE == 1024


def test_the_speed_is_the_benchmarks() -> None:
    root = Path(__file__).parents[2]
    (file,) = (root / "benchmarks" / "results").glob("tokenization-*.json")
    for one in json.loads(file.read_text("utf-8"))["sets"]:
        row = (
            f"| {one['side']} x {one['side']} | {one['images']:,} | {one['images_per_second']:.1f} "
            f"| {one['alone_images_per_second']:.1f} | {one['share']:.2f} |"
        )
        assert row in TEXT
        assert one["share"] >= 0.85
