"""Which keys there are, cut into numbered parts, as fixed when a job is first started.

How a job is divided, for whoever writes an engine:

    plan      `Plan`: settings, and how many inputs in how many parts; in OUT/_wetok/plan.json
    part      `Plan.part(inputs, n)`: keys and what their reader needs; can be sent anywhere
    work      `wetok.tokenize.work`: part -> records and failures, a pure function of the part, the
              model and the plan; the same bytes whoever does it, however often
    commit    `wetok.tokenize.output.Output.commit`: the part's shard, then its receipt, each
              written beside and renamed. With the receipt the part is done; before, it is as if
              nothing had happened. Committing a part twice changes nothing.
    verify    `wetok.tokenize.verify`: shards, receipts, failures and the plan agree

An engine decides who works on which part, and when, and nothing else. `wetok.tokenize.local` is the
one for a single machine. It holds `Output.locked()`, works on `Output.missing(plan)`, and ends with
`Output.finish(plan)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from wetok.config import WetokError
from wetok.data.tokens import About
from wetok.tokenize.inputs import Inputs, Item
from wetok.tokenize.views import Preprocessing

Format: TypeAlias = Literal["parquet", "webdataset"]
SUFFIX = {"parquet": ".parquet", "webdataset": ".tar"}
FORMAT = 1
PART_SIZE = 1024
_LISTED = 4096  # items listed at a time


class Part(NamedTuple):
    """A unit of work, and one shard of the output."""

    number: int
    items: list[Item]

    @property
    def keys_hash(self) -> str:
        """SHA-256 of its keys, each followed by a line break."""
        return hashlib.sha256("".join(f"{i.key}\n" for i in self.items).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """A job as it was first started. A resumed one must be equal, or is refused."""

    inputs: tuple[str, ...]
    """The sources, as they were given."""
    keep: tuple[str, ...]
    labels: str | None
    preprocessing: Preprocessing
    output: Format
    batch: int
    """Images that pass the network together; the ids may depend on it in their last bits."""
    part_size: int
    images: int
    keys_hash: str
    """SHA-256 of all keys, each followed by a line break."""
    inputs_hash: str
    """SHA-256 of all keys with the sizes of their files."""
    left_out: dict[str, str]
    about: About
    format: int = field(default=FORMAT)

    @property
    def parts(self) -> int:
        """How many parts there are, numbered from 0."""
        return -(-self.images // self.part_size)

    def shard(self, number: int) -> str:
        """The file name of a part's shard."""
        return f"tokens-{number:05d}{SUFFIX[self.output]}"

    def part(self, inputs: Inputs, number: int) -> Part:
        """Part `number`, of the inputs that this plan was made of."""
        start = number * self.part_size
        return Part(number, inputs.items(start, min(self.images, start + self.part_size)))

    def size_of(self, number: int) -> int:
        """How many inputs part `number` has."""
        return min(self.part_size, self.images - number * self.part_size)

    def to_json(self) -> str:
        tree = asdict(self)
        tree["about"] = json.loads(self.about.to_json())
        return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Plan:
        """Raises WetokError, which speaks of `where`, for anything that `to_json` does not give."""
        try:
            tree = json.loads(text)
            if tree["format"] > FORMAT:
                raise WetokError(f"{where} has format {tree['format']}: update wetok")
            given = {one.name: tree[one.name] for one in fields(cls)}
            for name in ("inputs", "keep"):
                given[name] = tuple(given[name])
            given["preprocessing"] = Preprocessing(**given["preprocessing"])
            given["about"] = About.from_json(json.dumps(given["about"]), where)
            if given["output"] not in get_args(Format) or given["part_size"] < 1:
                raise ValueError("output or part_size")
            return cls(**given)
        except WetokError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WetokError(f"{where} is damaged: {error!r}; start in another folder") from None

    def check_same(self, now: Plan, out: str) -> None:
        """Raises WetokError where a job that is to go on in `out` is not the one begun there."""
        told = {
            "about": "the model or wetok's version",
            "inputs_hash": "the list of inputs, or the size of a file,",
            "keys_hash": "the list of inputs",
            "images": "the number of inputs",
            "left_out": "what can't be read of the inputs",
            "output": "--format",
            "part_size": "--shard-size",
            "preprocessing": "--size or --views",
        }
        if now.images != self.images:
            was, is_ = f"{self.images:,}", f"{now.images:,}"
            raise WetokError(
                f"{out} was begun with {was} inputs, and now there are {is_}: bring them back, or "
                "start in another folder"
            )
        order = ("preprocessing", *(one.name for one in fields(self)))
        for name in order:
            old, new = getattr(self, name), getattr(now, name)
            if name in ("inputs", "format") or old == new:  # a source may have moved
                continue
            if name == "about":
                for one in fields(old):
                    if getattr(old, one.name) != getattr(new, one.name):
                        name, old, new = one.name, getattr(old, one.name), getattr(new, one.name)
                        break
            what = told.get(name, f"{name}={new!r}")
            values = "" if name in told and name.endswith(("hash", "out")) else f" ({old} -> {new})"
            raise WetokError(
                f"{out} was begun otherwise: {what} has changed{values}; put it back, or start in "
                "another folder"
            )


class KeyList:
    """Takes keys one by one: their hashes, and whether there is one twice. 8 bytes a key."""

    def __init__(self) -> None:
        self._keys, self._inputs = hashlib.sha256(), hashlib.sha256()
        self._digests: list[np.ndarray] = []
        self.count = 0

    def add(self, items: list[Item]) -> None:
        digests = np.empty(len(items), np.uint64)
        for number, item in enumerate(items):
            key = item.key.encode()
            self._keys.update(key + b"\n")
            self._inputs.update(key + b"\0%d\n" % item.size)
            digests[number] = short_hash(item.key)
        self._digests.append(digests)
        self.count += len(items)

    @property
    def keys_hash(self) -> str:
        return self._keys.hexdigest()

    @property
    def inputs_hash(self) -> str:
        return self._inputs.hexdigest()

    def suspects(self) -> set[int]:
        """`short_hash` of keys that may be there twice."""
        if not self._digests:
            return set()
        values, counts = np.unique(np.concatenate(self._digests), return_counts=True)
        return set(map(int, values[counts > 1]))


def short_hash(key: str) -> int:
    """64 bits: few enough to keep of every key, enough to look closer at hardly any."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def make_plan(
    inputs: Inputs,
    about: About,
    preprocessing: Preprocessing,
    *,
    sources: tuple[str, ...],
    keep: tuple[str, ...] = (),
    labels: str | None = None,
    output: Format = "parquet",
    batch: int = 1,
    part_size: int = PART_SIZE,
) -> Plan:
    """The plan of a job over all of `inputs`.

    Raises:
        WetokError: a key is there twice, or a setting does not fit.
    """
    if output not in get_args(Format):
        raise WetokError(f"format={output!r} must be one of {', '.join(get_args(Format))}")
    for name, value in (("part_size", part_size), ("batch", batch)):
        if value < 1:
            raise WetokError(f"{name}={value} must be at least 1")
    if batch > 1 and preprocessing.size is None:
        raise WetokError(f"batch={batch} takes images of one size: give size, e.g. 256")
    keys = KeyList()
    for items in _all(inputs):
        keys.add(items)
    suspects = keys.suspects()
    seen: set[str] = set()
    for items in _all(inputs) if suspects else ():
        for item in items:
            if short_hash(item.key) in suspects and item.key in seen:
                raise WetokError(
                    f"key {item.key!r} is there twice, so that its tokens could not be told apart: "
                    "rename one, or tokenize the sources one by one"
                )
            seen |= {item.key} if short_hash(item.key) in suspects else set()
    about = replace(
        about,
        size=None if preprocessing.size is None else (preprocessing.size, preprocessing.size),
        views=preprocessing.names,
        preprocessing=str(preprocessing),
        preprocessing_hash=preprocessing.hash,
    )
    return Plan(
        inputs=sources,
        keep=keep,
        labels=labels,
        preprocessing=preprocessing,
        output=output,
        batch=batch,
        part_size=part_size,
        images=keys.count,
        keys_hash=keys.keys_hash,
        inputs_hash=keys.inputs_hash,
        left_out=dict(inputs.left_out),
        about=about,
    )


def _all(inputs: Inputs) -> Iterator[list[Item]]:
    for start in range(0, len(inputs), _LISTED):
        yield inputs.items(start, min(len(inputs), start + _LISTED))


def about_model(tokenizer: Any) -> About:
    """What `tokenizer` (a `wetok.Tokenizer`) says of its ids; of images nothing is known yet."""
    from wetok import __version__

    return About(
        model=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        groups=tokenizer.config.groups,
        group_bits=tokenizer.config.group_bits,
        factor=tokenizer.config.factor,
        size=None,
        views=(),
        preprocessing="",
        preprocessing_hash="",
        wetok=__version__,
    )
