"""What the documents show is true: snippets run, commands exist, links lead somewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.command_lines import check, command_lines
from tests.documents import PAGES as DOCUMENTS
from tests.documents import ROOT, blocks
from wetok.config import load_train_config

README = (ROOT / "README.md").read_text("utf-8")


PYTHON = blocks(README, "python")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a photograph; the model is the shipped one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "wetok/assets/photos/cat.jpg", "cat.jpg")
    return tmp_path


def test_there_are_snippets() -> None:
    assert len(PYTHON) >= 3


@pytest.mark.parametrize("snippet", PYTHON, ids=lambda text: text.strip().splitlines()[-1][:30])
def test_python_snippets_run(snippet: str, workplace: Path) -> None:
    exec(compile(snippet, "README.md", "exec"), {"__name__": "snippet"})


def test_the_first_snippet_does_what_it_says(workplace: Path) -> None:
    from PIL import Image

    names: dict[str, object] = {}
    exec(PYTHON[0], names)
    assert Image.open("back.png").size == Image.open("cat.jpg").size
    positions = -(-451 // 8) * -(-300 // 8)
    assert 2 * positions < Path("cat.wetok").stat().st_size < 3 * positions


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    for block in [*blocks(text, "sh"), *blocks(text, "bash")]:
        for words in command_lines(block):
            check(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shown_trainings_name_all_their_folders(document: Path) -> None:
    """A recipe's own folders are placeholders; a command that is shown must replace each."""
    for block in blocks(document.read_text("utf-8"), "sh"):
        for words in command_lines(block):
            if words[0] != "train" or "RECIPE" in words[1]:
                continue
            if words[1].startswith("recipes/generate/"):  # tests/test_generation_doc.py
                continue
            given = [word for word in words[2:] if "=" in word]
            load_train_config(ROOT / words[1], given)
            keys = {word.partition("=")[0] for word in given}
            assert {"data.train", "data.val"} <= keys, " ".join(words)


def test_the_readme_shows_every_command() -> None:
    from wetok.cli import COMMANDS

    shown = {words[0] for block in blocks(README, "sh") for words in command_lines(block)}
    assert shown >= set(COMMANDS)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        for block in blocks(document.read_text("utf-8"), "sh"):
            for line in block.splitlines():
                if line.startswith("make "):
                    words = [word for word in line.split("#")[0].split()[1:] if "=" not in word]
                    assert targets >= {word for word in words if word.isalpha()}, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"<!--.*?-->", "", document.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            assert (document.parent / target.split("#")[0]).exists(), target
