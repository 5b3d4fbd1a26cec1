"""`wetok --quiet` and WETOK_QUIET: nothing but errors, on every command alike."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.test_cli import NAMES, Run, model, photo, run  # noqa: F401
from wetok.config import WetokError


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_quiet(run: Run, name: str) -> None:  # noqa: F811
    assert run("--quiet", name, "--help") == (0, "", "")
    assert "WETOK_QUIET" not in os.environ or os.environ["WETOK_QUIET"] == "0"


@pytest.mark.parametrize("way", ["-q", "--quiet", "environment"])
def test_work_is_done_in_silence(
    run: Run,  # noqa: F811
    model: Path,  # noqa: F811
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo(Path("cat.png"))
    first = [] if way == "environment" else [way]
    if way == "environment":
        monkeypatch.setenv("WETOK_QUIET", "1")
    assert run(*first, "encode", "cat.png", "-m", model) == (0, "", "")
    assert Path("out/cat.wetok").exists()
    told = run(*first, "info", "out/cat.wetok", "--json")
    assert told.code == 0 and json.loads(told.out)["width"] == 20
    wrong = run(*first, "info", "nothing-here")
    assert wrong.code == 2 and wrong.out == "" and wrong.err.startswith("wetok: no model")


def test_zero_is_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("WETOK_QUIET", "0")
    assert run("--version").out.startswith("wetok ")


def test_exit_codes_are_those_of_the_page(repo: Path) -> None:
    from wetok.cli import INTERRUPTED, MISTAKE, OK, SOME_FAILED

    text = (repo / "docs/command-line.md").read_text("utf-8")
    for code in (OK, SOME_FAILED, MISTAKE, INTERRUPTED):
        assert f"| {code} |" in text
    assert issubclass(WetokError, ValueError)
