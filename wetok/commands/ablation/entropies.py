"""Memory and time of the entropy terms at 8 to 40 bits, for each way to compute them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from wetok.config import WetokError
from wetok.evaluate.footprint import Method, dense_table
from wetok.model.entropy import MAX_GROUP_BITS

BITS = (8, 16, 24, 32, 40)
POSITIONS = 1024
"""Of four images of 256 x 256 at f = 16."""
TABLES = 8
"""At most as many float32 tables of all codes does the dense way hold at once."""
LONG = 24
"""Bits a group from which on a pass takes seconds: repeated once only."""


@dataclass(frozen=True)
class Form:
    """One way to compute the entropies of a quantizer."""

    name: str
    says: str
    method: Method
    group_bits: int | None
    """None: all of them in one group."""

    def groups(self, bits: int) -> int | None:
        """Of so many bits; None where they can't be cut so."""
        if self.group_bits is None:
            return 1
        return None if bits % self.group_bits else bits // self.group_bits


FORMS = (
    Form("lfq-dense", "LFQ, dense", "dense", None),
    Form("lfq-exact", "LFQ, factored (ours)", "ours", None),
    Form("gq-8-dense", "GQ, d' = 8, dense", "dense", 8),
    Form("gq-8", "GQ, d' = 8, factored", "ours", 8),
    Form("gq-4", "GQ, d' = 4, factored", "ours", 4),
    Form("bsq", "BSQ (d' = 1)", "ours", 1),
)


def measure_all(
    threads: int, most_bytes: int, tell: Callable[[str], None], bits: tuple[int, ...] = BITS
) -> list[dict[str, Any]]:
    """One record for each form and number of bits that can be cut so.

    A record has `seconds` (of processor time) and `bytes`, and `how`: "measured"; "computed",
    scaled from the largest that was measured by the size of its table, where that would take more
    than `most_bytes`; or "refused", without numbers, beyond the bits that we take in one group.

    Raises:
        WetokError: a measurement failed.
    """
    records = []
    for form in FORMS:
        largest: dict[str, Any] | None = None
        for count in bits:
            groups = form.groups(count)
            if groups is None:
                continue
            table = dense_table(count, groups, POSITIONS)
            record: dict[str, Any] = {"form": form.name, "bits": count, "groups": groups}
            if form.method == "ours" and count // groups > MAX_GROUP_BITS:
                record["how"] = "refused"
            elif form.method == "dense" and TABLES * table > most_bytes and largest is not None:
                larger = table / dense_table(largest["bits"], largest["groups"], POSITIONS)
                record |= {
                    "how": "computed",
                    "seconds": largest["seconds"] * larger,
                    "bytes": largest["bytes"] * larger,
                }
            else:
                record |= {"how": "measured", **_measured(form, count, groups, threads)}
                largest = record
            records.append(record)
            tell(_line(form, record))
    return records


def _measured(form: Form, bits: int, groups: int, threads: int) -> dict[str, Any]:
    job = {
        "method": form.method,
        "bits": bits,
        "groups": groups,
        "positions": POSITIONS,
        "eps": 0.0,
        "repeats": 1 if bits // groups >= LONG else 5,
    }
    done = subprocess.run(
        [sys.executable, "-m", "wetok.commands.ablation.measure", json.dumps(job)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed, perhaps for its memory"])[-1]
        raise WetokError(f"{form.says} of {bits} bits can't be measured: {last}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {
        # Of the processor, as other work on the machine hardly changes it.
        "seconds": statistics.median(result["processor"]),
        "wall_seconds": statistics.median(result["wall"]),
        "bytes": result["bytes"],
    }


def _line(form: Form, record: dict[str, Any]) -> str:
    text = f"{form.says}, d = {record['bits']}: {record['how']}"
    if "seconds" in record:
        text += f", {record['seconds'] * 1e3:,.1f} ms, {record['bytes'] / 1e6:,.0f} MB"
    return text


def about() -> dict[str, Any]:
    """What every record has in common."""
    return {"positions": POSITIONS, "eps": 0.0, "forms": [asdict(form) for form in FORMS]}
