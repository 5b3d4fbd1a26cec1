"""The import rules of the design: who may know whom, and what must stay cheap to import."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "wetok"

BASE = {"config", "presets", "checkpoint", "weights", "distributed", "hub", "locking", "memory"}
PARTS = {"model", "losses", "data", "codec", "generate"}
JOINS = {"train", "evaluate", "released", "tokenize", "export", "adapters"}
FRONT = {"commands", "app"}
ENTRY = {"", "cli", "__main__"}  # "" is wetok/__init__.py

# What data flow needs between parts: the facade returns Tokens and takes photographs.
PART_TO_PART = {
    "model": {"wetok.codec.tokens", "wetok.codec.tables", "wetok.data.images"},
    "generate": {"wetok.model", "wetok.codec"},
}


class Import(NamedTuple):
    """One import statement of ours: who, at which line, what, and when it runs."""

    file: Path
    line: int
    target: str
    lazy: bool  # in a function or under TYPE_CHECKING

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.target}"


def room(dotted: str) -> str:
    """`wetok.model.entropy` -> `model`."""
    return (dotted.split(".") + [""])[1]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_in(file: Path, source: str | None = None) -> Iterator[Import]:
    """Every import of the package's own modules in `file`, relative ones resolved."""
    name = module_name(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                # `from wetok import config` names a module, `from wetok.config import X` does not.
                full = f"{base}.{alias.name}"
                path = ROOT.joinpath(*full.split("."))
                is_module = path.with_suffix(".py").exists() or path.is_dir()
                yield Import(file, node.lineno, full if is_module else base, lazy)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, True)
            for child in node.orelse:
                yield from walk(child, lazy)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                yield from walk(child, lazy or inside)

    tree = ast.parse(file.read_text("utf-8") if source is None else source)
    yield from (found for found in walk(tree, False) if found.target.split(".")[0] == PACKAGE.name)


def allowed(found: Import) -> bool:
    here, there = room(module_name(found.file)), room(found.target)
    if here == there or there == "":  # `import wetok` gives only the version and lazy names
        return True
    if here in FRONT:
        return there not in ENTRY
    if there in FRONT | ENTRY:
        return here == "__main__" and there == "cli"
    if here == "cli":
        return there in BASE and found.lazy
    if here == "":
        return found.lazy
    if here in BASE:
        return there in BASE or found.lazy
    if here in PARTS:
        return there in BASE or any(
            found.target == known or found.target.startswith(known + ".")
            for known in PART_TO_PART.get(here, ())
        )
    if here in JOINS:
        return there in BASE | PARTS
    return False


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_import_follows_the_rules() -> None:
    broken = [str(found) for file in FILES for found in imports_in(file) if not allowed(found)]
    assert broken == []


def test_every_module_has_a_room() -> None:
    rooms = {room(module_name(file)) for file in FILES}
    assert rooms <= BASE | PARTS | JOINS | FRONT | ENTRY


@pytest.mark.parametrize(
    ("file", "source", "fine"),
    [
        ("config.py", "import wetok.model.network", False),
        ("checkpoint.py", "def f():\n from wetok.model.network import TokenizerNetwork", True),
        ("checkpoint.py", "if TYPE_CHECKING:\n from wetok.model import network", True),
        ("checkpoint.py", "from .model import network", False),
        ("model/encoder.py", "from wetok.codec.tokens import Tokens", True),
        ("model/encoder.py", "from wetok.codec.file import read", False),
        ("model/encoder.py", "from ..losses import perceptual", False),
        ("codec/file.py", "def f():\n import wetok.model.network", False),
        ("data/images.py", "from wetok.losses.perceptual import LPIPS", False),
        ("train/loop.py", "from wetok.model.network import TokenizerNetwork", True),
        ("train/loop.py", "from wetok.evaluate.pixels import psnr", False),
        ("released/tokenizer.py", "import wetok.train.loop", False),
        ("model/encoder.py", "from wetok.commands import demo", False),
        ("cli.py", "from wetok.commands import demo", False),
        ("cli.py", "def f():\n from wetok.config import WetokError", True),
        ("commands/demo.py", "from wetok.evaluate.pixels import psnr", True),
        ("commands/demo.py", "from wetok.cli import main", False),
    ],
)
def test_the_rules_catch(file: str, source: str, fine: bool) -> None:
    (found,) = imports_in(PACKAGE / file, source)
    assert allowed(found) is fine


def test_no_catch_all_files() -> None:
    names = {"utils", "util", "helpers", "misc", "common", "registry"}
    assert [str(file) for file in FILES if file.stem in names] == []


def test_package_files_define_nothing() -> None:
    for file in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(file.read_text("utf-8"))
        defined = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        }
        expected = {"__getattr__", "__dir__"} if file.parent == PACKAGE else set()
        assert defined == expected, file


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


def heavy_after(code: str, heavy: tuple[str, ...] = ("torch", "numpy", "PIL")) -> list[str]:
    """Which of `heavy` Python has imported after running `code`."""
    tail = f"\nimport json, sys\nprint(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    result: list[str] = json.loads(run_python(code + tail).stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    "arguments", [["--help"], [], ["--version"], ["encod"], ["demo", "--help"]]
)
def test_the_command_line_answers_without_torch(arguments: list[str]) -> None:
    code = f"import wetok.cli\ntry: wetok.cli.main({arguments!r})\nexcept SystemExit: pass"
    assert heavy_after(code) == []


def test_importing_wetok_imports_nothing_heavy() -> None:
    assert heavy_after("import wetok; wetok.__version__; dir(wetok)", ("torch", "pydantic")) == []


def test_settings_and_their_errors_need_no_torch() -> None:
    assert heavy_after("import wetok; wetok.WetokError; import wetok.presets") == []


def test_base_and_command_modules_need_no_torch() -> None:
    commands = sorted(file.stem for file in (PACKAGE / "commands").glob("*.py"))
    assert len(commands) > 10
    names = ["config", "presets", "checkpoint", "weights", *(f"commands.{c}" for c in commands)]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module('wetok.' + name)\n"
        "    assert 'torch' not in sys.modules, name"
    )
    run_python(code)


def test_public_names() -> None:
    code = (
        "import wetok\n"
        "assert {n for n in wetok.__all__ if not hasattr(wetok, n)} == set()\n"
        "assert issubclass(wetok.WetokError, ValueError)\n"
        "from wetok.model.quantizer import GroupedQuantizer\n"
        "assert wetok.GroupedQuantizer is GroupedQuantizer\n"
        "try: wetok.nothing\n"
        "except AttributeError as error: print(error)"
    )
    assert run_python(code).stdout == "module 'wetok' has no attribute 'nothing'\n"


def test_help_is_quick() -> None:
    """Under half a second of processor time, which a busy machine stretches little."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "wetok", "--help"],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(4)) < 0.5
