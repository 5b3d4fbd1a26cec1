"""Tables on standard output: as wide as the terminal, or whole where there is none."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def show(table: Table) -> None:
    """Print `table`; into a pipe or a file it is never cut to a width."""
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def show_json(value: Any) -> None:
    """Print `value` as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
