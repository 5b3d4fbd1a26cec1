"""The ablations' results as Markdown tables; `docs/results.md` holds them between marks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from wetok.checkpoint import written_beside
from wetok.commands.ablation.entropies import FORMS
from wetok.commands.ablation.grouping import KINDS
from wetok.commands.ablation.variants import QUESTIONS, VARIANTS, Claim, Question
from wetok.config import WetokError

LOOK = {  # score -> title, decimals, whether less is better
    "psnr": ("PSNR (dB)", 2, False),
    "ssim": ("SSIM", 3, False),
    "lpips-vgg": ("LPIPS-vgg", 3, True),
    "fd-vgg": ("fd-vgg", 2, True),
}
Result = dict[str, Any]


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1) over the seeds."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(fmean(values), stdev(values) if len(values) > 1 else math.nan)

    def text(self, digits: int, sign: bool = False) -> str:
        mean = f"{self.mean:+.{digits}f}" if sign else f"{self.mean:.{digits}f}"
        return f"{mean} ± {self.deviation:.{digits}f}"


# Training


def values(result: Result, variant: str, score: str) -> dict[int, float]:
    """Seed -> score of the variant's run."""
    return {run["seed"]: run[score] for run in result["runs"] if run["variant"] == variant}


def differences(result: Result, variant: str, baseline: str, score: str) -> list[float]:
    """The variant's score less the baseline's, seed by seed."""
    own, other = values(result, variant, score), values(result, baseline, score)
    return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]


def verdict(changes: Sequence[float], lower_is_better: bool) -> str:
    """`better` or `worse` than the baseline, or `unclear`.

    It is clear where every seed says the same and the mean is above twice its standard error.
    """
    if len(changes) < 2:
        return "unclear"
    mean, deviation = Spread.of(changes)
    same = all(change < 0 for change in changes) or all(change > 0 for change in changes)
    if not same or abs(mean) <= 2 * deviation / math.sqrt(len(changes)):
        return "unclear"
    return "better" if (mean < 0) == lower_is_better else "worse"


def scores_here(result: Result) -> list[str]:
    """Of `LOOK`, those that every run has."""
    return [name for name in LOOK if all(name in run for run in result["runs"])]


def question_table(result: Result, question: Question) -> str:
    """Mean and spread of each variant, and of its differences to the baseline, seed by seed."""
    scores = scores_here(result)
    head = ["variant", *(LOOK[score][0] for score in scores)]
    head += ["bits used of 16", "least used byte"]
    rows = []
    for name in question.variants:
        runs = [run for run in result["runs"] if run["variant"] == name]
        if not runs:
            continue
        cells = [VARIANTS[name].says]
        for score in scores:
            _, digits, lower = LOOK[score]
            own = Spread.of([*values(result, name, score).values()]).text(digits)
            if name != question.baseline:
                changes = differences(result, name, question.baseline, score)
                told = Spread.of(changes).text(digits, sign=True)
                own += f"<br>{told} {verdict(changes, lower)}"
            cells.append(own)
        used = Spread.of([sum(run["byte_entropy"]) for run in runs])
        least = fmean(min(run["byte_usage"]) for run in runs)
        rows.append([*cells, used.text(1), f"{least:.0%}"])
    return markdown(head, rows)


def claim_line(result: Result, claim: Claim) -> str | None:
    """Whether a claim of the paper holds here, score by score; None where it was not tried."""
    judged = []
    for score in claim.scores:
        if score not in scores_here(result):
            continue
        title, digits, lower = LOOK[score]
        changes = differences(result, claim.variant, claim.against, score)
        if not changes:
            return None
        found = verdict(changes, lower)
        agrees = {claim.expected: "agrees", "unclear": "can't be told"}.get(found, "**disagrees**")
        judged.append(f"{title} {Spread.of(changes).text(digits, sign=True)}: {agrees}")
    variant, against = VARIANTS[claim.variant].says, VARIANTS[claim.against].says
    return f"- {variant}, {claim.expected} than {against}? {'; '.join(judged)}."


def answers(result: Result, question: Question) -> str:
    """The table of a question, and below it what became of the paper's claims."""
    lines = [line for claim in question.claims if (line := claim_line(result, claim))]
    table = question_table(result, question)
    return f"{table}\n\nThe paper's claims:\n\n" + "\n".join(lines) if lines else table


# The entropies


def entropy_table(result: Result) -> str:
    """Megabytes and milliseconds of each form at each number of bits."""
    bits = sorted({record["bits"] for record in result["records"]})
    rows = []
    for form in FORMS:
        own = {
            record["bits"]: record for record in result["records"] if record["form"] == form.name
        }
        if own:
            rows.append([form.says, *(_footprint(own.get(count)) for count in bits)])
    return markdown(["", *(f"d = {count}" for count in bits)], rows)


def _footprint(record: Result | None) -> str:
    if record is None:
        return ""
    if record["how"] == "refused":
        return "refused"
    text = f"{_size(record['bytes'])}<br>{_time(record['seconds'])}"
    return f"*{text}*" if record["how"] == "computed" else text


def _size(count: float) -> str:
    for unit, name in ((1e18, "EB"), (1e15, "PB"), (1e12, "TB"), (1e9, "GB")):
        if count >= unit:
            return f"{count / unit:,.{1 if count < 10 * unit else 0}f} {name}"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else "under 1 MB"


def _time(seconds: float) -> str:
    for unit, name in ((86400 * 365.25, "years"), (86400, "days"), (3600, "hours")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"


# The approximation


def approximation_table(result: Result) -> str:
    """The error in nats for each number of groups; BSQ is the last of each row."""
    counts = sorted({count for record in result["records"] for count in record["groups"]})
    rows = []
    for kind, says in KINDS.items():
        records = [record for record in result["records"] if record["kind"] == kind]
        if not records:
            continue
        exact = Spread.of([record["exact"] for record in records])
        cells = []
        for count in counts:
            own = [
                record["error"][record["groups"].index(count)]
                for record in records
                if count in record["groups"]
            ]
            cells.append(Spread.of(own).text(3) if own and count > 1 else "")
        rows.append([says, str(records[0]["bits"]), exact.text(3), *cells[1:]])
    return markdown(["latents", "d", "exact entropy", *(f"g = {n}" for n in counts[1:])], rows)


class Agreement(NamedTuple):
    """How many samples bear out what is said of the error."""

    samples: int
    never_negative: int
    below_bsq: int
    """Whose error is smaller for every number of groups than for BSQ."""
    rising: int
    """Whose error does not fall from one number of groups to a multiple of it."""


def agreement(records: Iterable[Result], rounding: float = 1e-9) -> Agreement:
    """Counts them, errors of rounding aside."""
    counts = [0, 0, 0, 0]
    for record in records:
        errors = dict(zip(record["groups"], record["error"], strict=True))
        finest = max(errors)
        nested = [(a, b) for a in errors for b in errors if a < b and b % a == 0]
        counts[0] += 1
        counts[1] += all(error >= -rounding for error in errors.values())
        counts[2] += all(errors[g] < errors[finest] for g in errors if g < finest)
        counts[3] += all(errors[a] <= errors[b] + rounding for a, b in nested)
    return Agreement(*counts)


# Documents and plots


def tables(results: dict[str, Result]) -> dict[str, str]:
    """Mark -> Markdown, for each part that there are results of."""
    made: dict[str, str] = {}
    if "entropy" in results:
        made["entropy"] = entropy_table(results["entropy"])
    if "approximation" in results:
        made["approximation"] = approximation_table(results["approximation"])
    if "training" in results:
        for question in QUESTIONS:
            made[question.name] = answers(results["training"], question)
    return made


def insert(text: str, made: dict[str, str]) -> str:
    """`text` with the tables between their marks, `<!-- ablation: NAME -->` and `<!-- end -->`.

    Raises:
        WetokError: a table has no marks.
    """
    for name, table in made.items():
        pattern = re.compile(rf"(<!-- ablation: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise WetokError(f"docs: no marks <!-- ablation: {name} --> ... <!-- end -->; add them")
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)  # type: ignore[misc]
    return text


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_docs(path: Path, results: dict[str, Result]) -> None:
    """Puts the tables into a document.

    Raises:
        WetokError: it can't be read or has no place for them.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WetokError(f"docs={path}: can't be read ({error.strerror})") from None
    with written_beside(path) as beside:
        beside.write_text(insert(text, tables(results)), encoding="utf-8")
