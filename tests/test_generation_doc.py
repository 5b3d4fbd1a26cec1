"""docs/generation.md and the recipes of generators: what they say is so, and loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.command_lines import check, command_lines
from wetok.config import TrainConfig, read_recipe, validate
from wetok.generate.config import sized
from wetok.train.generator_config import GeneratorTrainConfig

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes" / "generate").glob("*.yaml"))


def test_its_commands_would_be_taken() -> None:
    lines = command_lines("\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)))
    assert len(lines) >= 9
    for words in lines:
        check(words)


def test_its_python_runs() -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks[:2]:
        exec(compile(block, "generation.md", "exec"), names)
    pytest.importorskip("transformers", reason="transformers is absent")
    exec(compile(blocks[2], "generation.md", "exec"), names)
    # Most of what the language model makes is what it has learned.
    made, learned = names["vocabulary"].decode(names["generated"]), names["ids"][:2]
    agree = [max((one == other).float().mean().item() for other in learned) for one in made]
    assert min(agree) > 0.4, "chance alone is one in sixteen"


def test_its_sizes() -> None:
    told = re.search(r"\(1024 wide, 24 \+ 2 blocks; 1280, 36 \+ 3; 1536, 48 \+ 4\)", TEXT)
    assert told
    for size, shape in (("B", (1024, 24, 2)), ("L", (1280, 36, 3)), ("XL", (1536, 48, 4))):
        config = sized(size, groups=4, group_bits=8, grid=(16, 16))
        assert (config.width, config.depth, config.group_depth) == shape


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_tell_how_to_run_them(path: Path) -> None:
    tree = read_recipe(path)
    validate(TrainConfig if path.stem.endswith("-tokenizer") else GeneratorTrainConfig, tree)
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(line.removeprefix("#") for line in lines if line.startswith("#"))
    assert header.strip().startswith(f"{path.stem}: ")
    found = command_lines(header.replace("torchrun --nproc-per-node 8 -m ", ""))
    assert any(words[:2] == ["train", f"recipes/generate/{path.name}"] for words in found)
    for words in found:
        check(words)
