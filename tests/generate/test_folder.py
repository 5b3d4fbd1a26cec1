"""Generators to a folder and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.generate import small
from wetok.checkpoint import load_network
from wetok.config import WetokError
from wetok.generate.config import sized
from wetok.generate.folder import build, load_generator, save_generator
from wetok.generate.sampling import sample


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_there_and_back(tmp_path: Path, kind: str) -> None:
    generator = small.autoregressive() if kind == "autoregressive" else small.masked()
    save_generator(tmp_path, generator, "small")
    again, name = load_generator(tmp_path)
    assert name == "small" and again.config == generator.config and not again.training
    assert torch.equal(sample(generator, [1, 2], [0, 3]), sample(again, [1, 2], [0, 3]))
    assert f"| parameters | {sum(p.numel() for p in generator.parameters()):,} |" in (
        tmp_path / "README.md"
    ).read_text(encoding="utf-8")


def test_what_is_no_generator(tmp_path: Path) -> None:
    with pytest.raises(WetokError, match="there is no such folder"):
        load_generator(tmp_path / "nowhere")
    with pytest.raises(WetokError, match="not a model folder"):
        load_generator(tmp_path)
    save_generator(tmp_path, small.autoregressive(), "small")
    with pytest.raises(WetokError, match="model_type is 'wetok-generator', not 'wetok'"):
        load_network(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"depth": 1}, "has unknown blocks.1"),
        ({"depth": 10**9}, "asks for 1000000000 layers"),
        ({"heads": 3}, "width=32 must be heads=3 times a multiple of 4"),
        ({"dropout": 0.2}, "do not belong together"),
    ):
        altered = {**config, "network": {**config["network"], **change}}
        (tmp_path / "config.json").write_text(json.dumps(altered))
        with pytest.raises(WetokError, match=message):
            load_generator(tmp_path)


def test_published_sizes() -> None:
    """Parameters by the shapes in the released configurations, counted by hand."""
    for size, width, depth, inner in (("B", 1024, 24, 2), ("L", 1280, 36, 3), ("XL", 1536, 48, 4)):
        hidden = -(-(8 * width // 3) // 256) * 256
        block = 4 * width**2 + 3 * width * hidden + 2 * width
        wanted = (depth + inner) * block + width + 1001 * width + 2 * 4 * 256 * width
        with torch.device("meta"):
            config = sized(size, groups=4, group_bits=8, grid=(16, 16), classes=1000)
            assert sum(p.numel() for p in build(config).parameters()) == wanted
    with pytest.raises(WetokError, match="size='M' must be B, L or XL"):
        sized("M", groups=4, group_bits=8, grid=(16, 16))
    with pytest.raises(WetokError, match="group_depth=0"):
        small.config(group_depth=0)
