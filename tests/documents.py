"""Runs what the documents show: every Python block of a page, in order, in one namespace."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.md")),
    *sorted((ROOT / "wetok" / "assets").rglob("*.md")),
]
"""All Markdown files of the project."""


def named(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def python_of(page: str) -> list[str]:
    """The Python blocks of a page, which is named as in `named`."""
    return blocks((ROOT / page).read_text("utf-8"), "python")


def run(page: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs the Python blocks of a page in the current folder; returns the names they leave."""
    names = {"__name__": "snippet"} if names is None else names
    found = python_of(page)
    assert found, f"{page} shows no Python"
    for block in found:
        exec(compile(block, page, "exec"), names)
    return names


def photographs(place: Path) -> None:
    """A photograph, and a folder of all three, as most pages speak of them."""
    samples = ROOT / "wetok" / "assets" / "photos"
    shutil.copy(samples / "cat.jpg", place / "cat.jpg")
    (place / "photos").mkdir()
    for sample in samples.glob("*.jpg"):
        shutil.copy(sample, place / "photos")


ELSEWHERE: dict[str, str] = {
    "docs/compare.md": "tests/evaluate/test_compare_doc.py",
    "docs/data.md": "tests/data/test_data_doc.py",
    "docs/evaluation.md": "tests/evaluate/test_evaluation_doc.py",
    "docs/export.md": "tests/export/test_export_doc.py",
    "docs/from-vector-quantize-pytorch.md": "tests/export/test_export_doc.py",
    "docs/generation.md": "tests/test_generation_doc.py",
    "docs/tokenize.md": "tests/tokenize/test_tokenize_doc.py",
}
"""Pages whose Python is run, by `run`, in a test of their own that also looks at what comes out."""

Prepare = Callable[[Path], None]
