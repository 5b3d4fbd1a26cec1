"""`python -m wetok` is the command line."""

from __future__ import annotations

from wetok.cli import main

if __name__ == "__main__":
    main()
