"""Finds `wetok ...` lines in text and checks that they would be taken, without running them."""

from __future__ import annotations

import re
import shlex

from wetok.cli import COMMANDS, _load


def command_lines(text: str) -> list[list[str]]:
    """The words of every line of `text` that calls wetok, without comments and shell operators."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(r"\s*(?:\$ )?(?:Example: )?(?:python -m )?wetok (?P<rest>.*)", line)
        if match:
            words = shlex.split(match["rest"], comments=True)
            ends = [i for i, word in enumerate(words) if word in ("|", "&&", ">", ";")]
            found.append(words[: ends[0]] if ends else words)
    return found


def check(words: list[str]) -> None:
    """Raise unless the command exists and takes these options and arguments."""
    name, *arguments = words
    if name in ("--help", "--version"):
        return
    assert name in COMMANDS, f"no command {name!r}"
    command = _load(name)
    context = command.make_context(name, list(arguments))
    if hasattr(command, "commands"):  # a group: its own command comes next
        inner, *rest = arguments
        command.commands[inner].make_context(inner, rest, parent=context)
