"""Proof that a job is done: every input once in the output or among the failed, never in both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from wetok.config import WetokError
from wetok.data.tokens import Record, TokenShards
from wetok.data.tokentars import read_webdataset
from wetok.tokenize.inputs import Inputs, Item
from wetok.tokenize.output import FAILED, SUMMARY, Output, Receipt
from wetok.tokenize.plan import SUFFIX, KeyList, Part, Plan
from wetok.tokenize.work import Usage

_MOST = 20  # problems that are told one by one


@dataclass
class Verification:
    """What was looked at, and what is wrong."""

    shards: int = 0
    inputs: int = 0
    records: int = 0
    failed: int = 0
    with_source: bool = False
    """Whether the keys were compared with the source's own."""
    problems: list[str] = field(default_factory=list)
    more: int = 0
    """Problems beyond those listed."""

    @property
    def ok(self) -> bool:
        return not self.problems

    def add(self, problem: str) -> None:
        if len(self.problems) < _MOST:
            self.problems.append(problem)
        else:
            self.more += 1


def verify(output: Output, inputs: Inputs | None = None) -> Verification:
    """Looks at every byte of a job's output.

    Of each part: its receipt is there; its shard has the receipt's length and SHA-256, can be read,
    is of the plan's model and preprocessing; each key that did not fail has all of its views, once
    and in order; ids are in range, and give the receipt's counts of codes; keys and failures
    together give the receipt's hash of keys. Of all together: the hash of all keys is the plan's,
    none is there twice, failed.jsonl says what the receipts say, and there are no other shards.

    Args:
        inputs: the sources: their keys are compared one by one.

    Raises:
        WetokError: it is no folder of ours, or the plan is damaged.
    """
    plan = output.plan()
    found = Verification(with_source=inputs is not None)
    if inputs is not None and len(inputs) != plan.images:
        found.add(f"the source has {len(inputs):,} images, the plan {plan.images:,}")
    keys = KeyList()
    for number in range(plan.parts):
        try:
            receipt = output.receipt(plan, number)
        except WetokError as error:
            found.add(str(error))
            continue
        if receipt is None:
            found.add(f"part {number} is not done: run wetok tokenize again to go on")
            continue
        part = _part(output, plan, receipt, found)
        if part is None:
            continue
        keys.add(part.items)
        found.inputs += len(part.items)
        if inputs is not None:
            _compare(part, plan, inputs, found)
    if found.inputs == plan.images:
        if keys.keys_hash != plan.keys_hash:
            found.add("the keys are not those of the plan")
        if keys.suspects():
            found.add(f"{len(keys.suspects())} keys are there twice")
    _others(output, plan, found)
    return found


def _part(output: Output, plan: Plan, receipt: Receipt, found: Verification) -> Part | None:
    """The keys of one part as its shard and receipt tell them; None where they can't be told."""
    path = output.path / receipt.shard
    try:
        size = path.stat().st_size
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        found.add(f"shard {receipt.shard} can't be read: {error.strerror}")
        return None
    if size != receipt.bytes:
        found.add(f"shard {receipt.shard} has {size} bytes instead of {receipt.bytes}")
        return None
    if digest.hexdigest() != receipt.sha256:
        found.add(f"shard {receipt.shard} was altered: its SHA-256 is not the receipt's")
        return None
    found.shards += 1
    try:
        keys = _keys(output, plan, receipt, found)
    except WetokError as error:
        found.add(str(error))
        return None
    failed = {failure.number: failure.key for failure in receipt.failures}
    found.failed += len(failed)
    if both := set(failed.values()) & set(keys):
        found.add(f"shard {receipt.shard} has {sorted(both)[0]!r}, which is said to have failed")
    rest = iter(keys)
    total = len(failed) + len(keys)
    own = [failed[n] if n in failed else next(rest, "") for n in range(total)]
    part = Part(receipt.part, [Item(key, 0, ()) for key in own])
    if total != receipt.inputs or total != plan.size_of(receipt.part):
        found.add(f"part {receipt.part} has {total} inputs, not {plan.size_of(receipt.part)}")
    elif part.keys_hash != receipt.keys_hash:
        found.add(f"the keys of part {receipt.part} are not those of its receipt")
    return part


def _keys(output: Output, plan: Plan, receipt: Receipt, found: Verification) -> list[str]:
    """The keys of a shard in order, each once; what is wrong with its records is told."""
    views, keys = plan.about.views, []
    codes: list[np.ndarray] = []
    count = 0
    for count, record in enumerate(_records(output, plan, receipt), 1):
        view = (count - 1) % len(views)
        if view == 0:
            keys.append(record.key)
        if record.key != keys[-1] or record.view != views[view]:
            found.add(
                f"shard {receipt.shard}: record {count - 1} is {record.key!r} {record.view}, "
                f"not {keys[-1]!r} {views[view]}"
            )
        if int(record.ids.max()) >> plan.about.group_bits:
            found.add(f"shard {receipt.shard}: ids of {record.key!r} are out of range")
        else:
            codes.append(record.ids.reshape(plan.about.groups, -1))
    found.records += count
    if count != receipt.records or count % len(views):
        found.add(f"shard {receipt.shard} has {count} records, its receipt {receipt.records}")
    usage = Usage.none(plan.about)
    if codes:
        usage.add_ids(np.concatenate(codes, 1), plan.about)
    if usage != receipt.usage:
        found.add(f"shard {receipt.shard}: the codes counted are not those of its receipt")
    return keys


def _records(output: Output, plan: Plan, receipt: Receipt) -> Iterator[Record]:
    path = output.path / receipt.shard
    if plan.output == "webdataset":
        yield from read_webdataset(path, plan.about)
        return
    shard = TokenShards([path])
    if shard.about != plan.about:
        raise WetokError(f"shard {receipt.shard} is of another model or preprocessing")
    for index in range(len(shard)):
        yield shard[index]


def _compare(part: Part, plan: Plan, inputs: Inputs, found: Verification) -> None:
    wanted = plan.part(inputs, part.number)
    if wanted.keys_hash == part.keys_hash:
        return
    mine, theirs = ({item.key for item in one.items} for one in (part, wanted))
    for name, keys in (("lack", theirs - mine), ("have, unlike the source,", mine - theirs)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            found.add(f"part {part.number}: the tokens {name} {sorted(keys)[0]!r}{more}")
    if mine == theirs:
        found.add(f"part {part.number}: its keys are not in the source's order")


def _others(output: Output, plan: Plan, found: Verification) -> None:
    known = {plan.shard(number) for number in range(plan.parts)}
    for suffix in SUFFIX.values():
        for path in sorted(output.path.glob(f"*{suffix}")):
            if path.name not in known:
                found.add(f"{path.name} is no shard of this job")
    try:
        told = (output.path / FAILED).read_bytes()
        if told != b"".join(output.failed_lines(plan)):
            found.add(f"{FAILED} is not what the receipts say: run wetok tokenize again")
    except OSError as error:
        found.add(f"{FAILED} can't be read: {error.strerror}")
    except WetokError:
        pass  # a damaged receipt, which was told
    if not (output.path / SUMMARY).exists():
        found.add(f"{SUMMARY} is missing: run wetok tokenize again")
