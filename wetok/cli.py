"""The command table. Nothing heavy is imported here: a command's module is, when it is called.

`wetok --help` reads only COMMANDS, so it answers at once. `main` turns whatever goes wrong into
what a person should see: one line and an exit code, or the traceback with `--debug`.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

COMMANDS = {
    "demo": "Send the sample photographs through the shipped models; see numbers and a picture.",
    "models": "List the shipped models and the published shapes.",
    "info": "Show what is in a model, a .wetok file or a photograph.",
    "reconstruct": "Send photographs to tokens and back; write PNGs.",
    "encode": "Turn photographs into .wetok files.",
    "decode": "Turn .wetok files back into photographs.",
    "coding": "Learn tables by which a model's .wetok files get smaller.",
    "export": "Write a model as ONNX, torch.export or AOTInductor programs.",
    "import": "Read a published checkpoint into a model folder.",
    "push": "Upload a model to the Hugging Face Hub.",
    "train": "Train a tokenizer, or a generator, from a recipe.",
    "tokenize": "Turn a data set into token shards.",
    "detokenize": "Turn token shards back into images.",
    "generate": "Make new images with a trained generator.",
    "shapes": "Draw a small class-labelled set to try generators on.",
    "eval": "Score a model on a folder of photographs.",
    "compare": "Compare models with one another and with JPEG, WebP, AVIF at equal bytes.",
    "app": "Show a page in the browser: drop a photo, see what its tokens keep.",
    "ablate": "The paper's tables in miniature: entropies and trained variants, with seeds.",
    "bench": "Measure how fast a model is on this machine, in each precision.",
    "weights": "List, import and find pretrained parts.",
}
"""Name -> what it does, in the order of the help; the code is in `wetok.commands.<name>`."""

OK, SOME_FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
_MODULES = {"import": "import_"}  # `import` can't name a Python module

# Newer versions of typer carry their own copy of click, so the class is found through typer.
_UsageProblem: type[Any] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class _LazyGroup(TyperGroup):
    """Shows COMMANDS in its help, and imports a command's module only to run it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else _load(name), rest


def _load(name: str) -> Any:
    """The typer command behind `name`: its module's `app`, or its function `command`."""
    module = import_module(f"wetok.commands.{_MODULES.get(name, name)}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name)(module.command)
    command = typer.main.get_command(app)
    command.name = name
    return command


def _version(wanted: bool) -> None:
    if wanted:
        from wetok import __version__

        print(f"wetok {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_LazyGroup,
    help="Photographs to a few discrete tokens and back.",
    epilog="A MODEL is a shipped name, a model folder or a Hub id. Start with: wetok demo",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (after any command).")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print errors only, and what --json asks for.")
    ] = False,
) -> None:
    pass


def _only_in_the_table() -> None:
    raise AssertionError("a command runs from its own module")


for _name, _line in COMMANDS.items():
    app.command(_name, help=_line)(_only_in_the_table)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 some inputs failed, 2 a mistake, 130 Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name need not be text that the terminal can show; it is no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args[: args.index("--") if "--" in args else None]
    if debug:
        args.remove("--debug")
    try:
        with _quiet(args):
            code = _run(args or ["--help"])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader has left (`wetok models | head -1`); Python's own flush at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = SOME_FAILED
    except Exception as error:
        line = _in_one_line(error, args)
        if line is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"wetok: {line}", file=sys.stderr)
        code = MISTAKE
    if code == INTERRUPTED:
        print("wetok: stopped", file=sys.stderr)
    sys.exit(code)


@contextmanager
def _quiet(args: list[str]) -> Iterator[None]:
    """Nothing on stdout inside, and no bars, if `--quiet` before the command or WETOK_QUIET asks
    for it; JSON that is asked for is printed all the same."""
    before = os.environ.get("WETOK_QUIET", "0")
    wanted = before not in ("", "0") or (bool(args) and args[0] in ("-q", "--quiet"))
    if not wanted or "_WETOK_COMPLETE" in os.environ:
        yield
        return
    os.environ["WETOK_QUIET"] = "1"  # for bars, and for processes that a command starts
    try:
        if "--json" in args:
            yield
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield
    finally:
        os.environ["WETOK_QUIET"] = before


def _run(args: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(args=args, prog_name="wetok", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else OK


def _in_one_line(error: Exception, args: list[str]) -> str | None:
    """What to tell the user about `error`; None for a bug of ours, whose traceback is wanted."""
    if isinstance(error, _UsageProblem):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "wetok"
        return f"{_flat(error.format_message())} (see {path} --help)"
    if isinstance(error, ModuleNotFoundError):
        return _missing_extra(error, args)
    from wetok.config import WetokError

    if isinstance(error, WetokError):
        return _flat(str(error))
    if isinstance(error, OSError) and error.filename is not None:
        # Files of the user's: no permission, no space, a folder where a file should be.
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return None


def _flat(text: str) -> str:
    return " ".join(text.split())


def _missing_extra(error: ModuleNotFoundError, args: list[str]) -> str | None:
    """The line for a package that only an extra of ours brings, e.g. `pip install wetok[train]`."""
    import re
    from importlib.metadata import PackageNotFoundError, requires

    package = (error.name or "").split(".")[0]
    try:
        wanted = requires("wetok") or []
    except PackageNotFoundError:
        return None
    extras = [
        match.group(2)
        for match in (re.match(r"([\w-]+).*extra == ['\"](\w+)['\"]", line) for line in wanted)
        if match and match.group(1).replace("-", "_").lower() == package.lower()
    ]
    if not extras:
        return None
    extra = next((name for name in extras if name in args), extras[0])
    return (
        f"this needs the package {package!r}, which is not installed: pip install 'wetok[{extra}]'"
    )
