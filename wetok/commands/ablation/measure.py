"""One measurement in a process of its own: `python -m wetok.commands.ablation.measure JOB`."""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Prints the footprint of the job in the only argument, JSON of `footprint`'s arguments."""
    from wetok.evaluate.footprint import footprint

    job: dict[str, Any] = json.loads(sys.argv[1])
    print(json.dumps(footprint(**job)._asdict()))


if __name__ == "__main__":
    main()
