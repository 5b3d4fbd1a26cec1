"""The folder of a job: shards, and beside them what was promised, what is done, what failed.

    OUT/tokens-00000.parquet     one shard a part
    OUT/failed.jsonl             {"key", "reason"} of each input without tokens
    OUT/summary.json             counts, and how much of the codes is in use
    OUT/_wetok/plan.json         the job (`wetok.tokenize.plan.Plan`)
    OUT/_wetok/parts/00000.json  the receipt of a part: it is done when this is there
    OUT/_wetok/lock              held by the process at work

`failed.jsonl` and `summary.json` are made from the receipts, whenever a process ends in order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wetok.checkpoint import written_beside
from wetok.config import WetokError
from wetok.data.tokens import About, to_parquet
from wetok.locking import locked
from wetok.tokenize.plan import Plan
from wetok.tokenize.work import Failure, Result, Usage

PLAN, LOCK, RECEIPTS = "plan.json", "lock", "parts"
FAILED, SUMMARY = "failed.jsonl", "summary.json"


@dataclass(frozen=True)
class Receipt:
    """What came of a part; the same bytes whoever did it."""

    part: int
    shard: str
    bytes: int
    sha256: str
    """Of the shard."""
    inputs: int
    records: int
    keys_hash: str
    """Of the part's keys, as `wetok.tokenize.plan.Part.keys_hash`."""
    failures: list[Failure]
    usage: Usage

    def to_json(self) -> str:
        tree = {name: getattr(self, name) for name in self.__dataclass_fields__}
        tree["failures"] = [failure._asdict() for failure in self.failures]
        tree["usage"] = self.usage.to_json()
        return json.dumps(tree, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, about: About) -> Receipt:
        """Raises ValueError, KeyError or TypeError for what `to_json` does not give."""
        tree = json.loads(text)
        tree["failures"] = [Failure(**failure) for failure in tree["failures"]]
        tree["usage"] = Usage.from_json(tree["usage"], about)
        for name in ("part", "bytes", "inputs", "records"):
            if not isinstance(tree[name], int):
                raise ValueError(name)
        return cls(**tree)


@dataclass
class Totals:
    """Sums over receipts."""

    parts: int
    inputs: int
    records: int
    failed: int
    bytes: int
    usage: Usage


class Output:
    """The folder `path` of a job."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._own = self.path / "_wetok"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder; another process is refused until this block, or this process, ends.

        Raises:
            WetokError: another process holds it, or it can't be made.
        """
        with locked(self.path, self._own / LOCK):
            (self._own / RECEIPTS).mkdir(parents=True, exist_ok=True)
            yield

    def begin(self, plan: Plan) -> None:
        """Writes the plan, or checks that it is the one that the folder was begun with.

        Raises:
            WetokError: it is another one, the folder has shards that are not ours, or it can't be
                written.
        """
        if (self._own / PLAN).exists():
            self.plan().check_same(plan, str(self.path))
        else:
            others = sorted(self.path.glob("tokens-*"))
            if others:
                raise WetokError(f"{others[0]} is there, but no plan: take an empty folder")
            with written_beside(self._own / PLAN) as beside:
                beside.write_text(plan.to_json(), "utf-8")
        for folder in (self.path, self._own, self._own / RECEIPTS):
            for left in folder.glob(".wetok-*.tmp"):  # by a process that was killed
                left.unlink(missing_ok=True)

    def plan(self) -> Plan:
        """The plan that the folder was begun with.

        Raises:
            WetokError: there is none, or it is damaged.
        """
        path = self._own / PLAN
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            raise WetokError(
                f"{self.path} is no folder of wetok tokenize: it has no plan"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise WetokError(f"{path} can't be read: {error}") from None
        return Plan.from_json(text, str(path))

    def receipt(self, plan: Plan, part: int) -> Receipt | None:
        """The receipt of `part`, None where there is none yet.

        Raises:
            WetokError: it is damaged.
        """
        path = self._receipt(part)
        try:
            found = Receipt.from_json(path.read_text("utf-8"), plan.about)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise WetokError(f"{path} can't be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WetokError(f"{path} is damaged: {error!r}; delete it and go on") from None
        if found.part != part or found.shard != plan.shard(part):
            raise WetokError(f"{path} is the receipt of another part: delete it and go on")
        return found

    def is_done(self, plan: Plan, part: int) -> bool:
        """Whether `part` has a receipt, and its shard is there in full length."""
        found = self.receipt(plan, part)
        try:
            return found is not None and (self.path / found.shard).stat().st_size == found.bytes
        except OSError:
            return False

    def missing(self, plan: Plan) -> list[int]:
        """The parts that are yet to be done, in order."""
        return [part for part in range(plan.parts) if not self.is_done(plan, part)]

    def commit(self, plan: Plan, result: Result, extras: Any = None) -> Receipt:
        """Writes the shard of a part, then its receipt. Doing it again changes nothing.

        Args:
            extras: pyarrow schema of what is passed through.

        Raises:
            WetokError: it can't be written, e.g. as the disk is full; or an input is missing.
        """
        views = len(plan.about.views)
        if len(result.records) + views * len(result.failures) != views * result.inputs:
            raise WetokError(f"part {result.part} is incomplete: this is a fault of wetok")
        if plan.output == "webdataset":
            from wetok.data.tokentars import to_webdataset

            data = to_webdataset(result.records, plan.about, result.part * plan.part_size * views)
        else:
            data = to_parquet(result.records, plan.about, extras)
        receipt = Receipt(
            part=result.part,
            shard=plan.shard(result.part),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            inputs=result.inputs,
            records=len(result.records),
            keys_hash=result.keys_hash,
            failures=result.failures,
            usage=result.usage,
        )
        with written_beside(self.path / receipt.shard) as beside:
            beside.write_bytes(data)
        with written_beside(self._receipt(result.part)) as beside:
            beside.write_text(receipt.to_json(), "utf-8")
        return receipt

    def totals(self, plan: Plan) -> Totals:
        """Sums over what is done so far."""
        totals = Totals(0, 0, 0, 0, 0, Usage.none(plan.about))
        for part in range(plan.parts):
            if receipt := self.receipt(plan, part):
                totals.parts += 1
                totals.inputs += receipt.inputs
                totals.records += receipt.records
                totals.failed += len(receipt.failures)
                totals.bytes += receipt.bytes
                totals.usage.add(receipt.usage)
        return totals

    def finish(self, plan: Plan) -> Totals:
        """Writes failed.jsonl and summary.json from the receipts; returns their sums.

        Raises:
            WetokError: they can't be written.
        """
        with written_beside(self.path / FAILED) as beside, open(beside, "wb") as file:
            for line in self.failed_lines(plan):
                file.write(line)
        totals = self.totals(plan)
        with written_beside(self.path / SUMMARY) as beside:
            text = json.dumps(summary(plan, totals), indent=2, ensure_ascii=False)
            beside.write_text(text + "\n", "utf-8")
        return totals

    def failed_lines(self, plan: Plan) -> Iterator[bytes]:
        """The lines of failed.jsonl, in the order of the inputs."""
        for part in range(plan.parts):
            receipt = self.receipt(plan, part)
            for failure in receipt.failures if receipt else ():
                line = {"key": failure.key, "reason": failure.reason}
                yield json.dumps(line, ensure_ascii=False).encode() + b"\n"

    def _receipt(self, part: int) -> Path:
        return self._own / RECEIPTS / f"{part:05d}.json"


def summary(plan: Plan, totals: Totals) -> dict[str, Any]:
    """What a job has come to, for people and programs."""
    usage, about = totals.usage, plan.about
    return {
        "done": totals.parts == plan.parts,
        "inputs": plan.images,
        "records": totals.records,
        "failed": totals.failed,
        "left_out": plan.left_out,
        "shards": totals.parts,
        "shards_planned": plan.parts,
        "bytes": totals.bytes,
        "model": {"name": about.model, "fingerprint": about.fingerprint},
        "preprocessing": {**asdict(plan.preprocessing), "hash": about.preprocessing_hash},
        "usage": usage.share(),
        "entropy_bits": usage.entropy(),
        "dead_bits": usage.dead_bits() if usage.positions else None,
        "positions": usage.positions,
    }
