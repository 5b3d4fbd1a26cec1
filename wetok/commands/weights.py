"""`wetok weights`: the pretrained parts that losses and scores need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wetok.commands import options

app = typer.Typer(
    help="List, import and find pretrained parts.\n\nExample: wetok weights import ~/downloads",
    add_completion=False,
)


@app.command("list")
def list_parts(as_json: options.Json = False) -> None:
    """List the parts, what each is for, and whether it is here.

    Example: wetok weights list
    """
    from wetok import weights
    from wetok.commands.tables import show, show_json

    here = {name: weights.here(name) for name in weights.PARTS}
    if as_json:
        show_json(
            [
                {
                    "name": name,
                    "file": part.filename,
                    "bytes": part.size,
                    "sha256": part.sha256,
                    "used_by": part.used_by,
                    "licence": part.licence,
                    "url": part.url,
                    "path": None if here[name] is None else str(here[name]),
                }
                for name, part in weights.PARTS.items()
            ]
        )
        return

    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("here", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("used by")
    for name, part in weights.PARTS.items():
        size = f"{part.size / 1e6:.1f} MB"
        table.add_row(name, "yes" if here[name] else "no", size, part.used_by)
    show(table)
    if not all(here.values()):
        print("To bring in what is missing: wetok weights import FOLDER_OR_FILE")


@app.command("import")
def import_parts(
    source: Annotated[
        Path, typer.Argument(show_default=False, help="A safetensors file or a folder of them.")
    ],
) -> None:
    """Copy the parts found in a folder or file into the cache.

    A part is recognised by its tensors, whatever the file is called.

    Example: wetok weights import ~/downloads
    """
    from wetok import weights

    for part in weights.import_from(source):
        told = "checksum as expected" if part.known else "the checksum is not the known file's"
        print(f"{part.name} -> {part.path}  ({told})")


@app.command("path")
def show_path(
    name: Annotated[str, typer.Argument(show_default=False, help="A part, such as lpips-alex.")],
) -> None:
    """Print where a part's file lies, downloading it first where it has an address.

    Example: wetok weights path lpips-alex
    """
    from wetok import weights

    print(weights.find(name))
