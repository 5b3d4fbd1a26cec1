"""The first steps of the recipes that ran on a CPU, against the losses that they once gave.

    python tools/golden.py --photos photos                    # 200 steps of each: half an hour
    python tools/golden.py tiny-48x --steps 20 --photos photos
    python tools/golden.py --photos photos --write            # make the files anew

PHOTOS holds train/. The files are recipes/golden/NAME.json: every step's losses, and where they
come from. A recipe that starts from a run of another starts here from a shipped model instead, so
that nothing has to be trained before. On the machine that wrote them the losses come again to the
last digit; elsewhere a sum is ordered otherwise, and bf16 makes more of that with every step. So
the first steps are held to 1%, and means of 20 steps to 10%.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch

from wetok import checkpoint
from wetok.config import TrainConfig, load_train_config
from wetok.train.loop import Run

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "recipes" / "golden"
RECIPES = {
    path.stem: path for kind in ("quick", "tiny") for path in (ROOT / "recipes" / kind).glob("*")
}
TERMS = ("loss", "l1", "l2", "lpips", "commitment", "token_entropy", "codebook_entropy")
STARTS = {
    "tiny-48x": "tiny-48x",
    "tiny-24x": "tiny-48x",
    "tiny-192x": "tiny-48x",
    "tiny-48x-gd": "tiny-48x",
    "tiny-192x-gd": "tiny-192x",
    "quick-48x-gd": "quick",
}
"""Recipe -> what it starts from here; "quick" stands for weights by chance, of its own shape."""
FIRST, WINDOW = 5, 20
CLOSE, NEAR = 0.01, 0.1
"""Relative, of each of the first steps and of a window's mean."""


class _Enough(Exception):
    pass


class _Losses:
    """A watcher that keeps the losses of the first steps and ends the run then."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.kept: dict[str, list[float]] = {}

    def step(self, record: dict[str, Any]) -> None:
        for term in TERMS:
            if term in record:
                self.kept.setdefault(term, []).append(record[term])
        if record["step"] >= self.steps:
            raise _Enough

    def event(self, text: str) -> None:
        pass


def losses(name: str, photos: Path, weights: Path | None, steps: int) -> dict[str, list[float]]:
    """Term -> its value at each of the first steps of a recipe."""
    kept = _Losses(steps)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(settings(name, photos, weights, Path(folder)), Path(folder) / name, kept)
        with suppress(_Enough):
            run.train()
    if len(kept.kept.get("loss", ())) < steps:  # such as by a signal, after which a run ends well
        sys.exit(f"{name}: ended early")
    return kept.kept


def settings(name: str, photos: Path, weights: Path | None, scratch: Path) -> TrainConfig:
    """A recipe's own, but for paths, what it starts from, and what it writes."""
    overrides = [f"data.train={photos / 'train'}", "data.val=null", "run.log_every=1"]
    start = STARTS.get(name)
    if start == "quick":
        start = str(_by_chance("quick-48x", scratch))
    if start:
        overrides.append(f"run.init={start}")
    config = load_train_config(RECIPES[name], overrides)
    if weights is not None:
        file = weights / f"lpips_{config.loss.perceptual}.safetensors"
        config = load_train_config(RECIPES[name], [*overrides, f"loss.perceptual_weights={file}"])
    return config


def _by_chance(name: str, scratch: Path) -> Path:
    """A folder of a recipe's network before its first step."""
    from wetok.model.network import TokenizerNetwork

    torch.manual_seed(0)
    network = TokenizerNetwork(load_train_config(RECIPES[name], []).model)
    checkpoint.save_folder(scratch / "init", network, name, card="")
    return scratch / "init"


def differences(found: dict[str, list[float]], golden: dict[str, list[float]]) -> Iterable[str]:
    """A line for each term and stretch of steps that is not near enough."""
    for term, wanted in golden.items():
        mine = found.get(term, [])
        size = max(abs(value) for value in wanted)
        for step, (a, b) in enumerate(zip(mine[:FIRST], wanted, strict=False), 1):
            if abs(a - b) > CLOSE * max(abs(b), size / 10):
                yield f"{term}, step {step}: {a:.6g} instead of {b:.6g}"
        for begin in range(0, len(mine) - WINDOW + 1, WINDOW):
            a, b = (sum(each[begin : begin + WINDOW]) / WINDOW for each in (mine, wanted))
            if abs(a - b) > NEAR * max(abs(b), size / 10):
                yield f"{term}, steps {begin + 1} to {begin + WINDOW}: {a:.6g} instead of {b:.6g}"
    if missing := golden.keys() - found.keys():
        yield f"no {', '.join(sorted(missing))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="names; all of them")
    parser.add_argument("--photos", type=Path, required=True, help="folder with train/")
    parser.add_argument("--weights", type=Path, help="folder with the LPIPS networks")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="write the files instead")
    given = parser.parse_args()
    torch.set_num_threads(1)  # what the order of a sum depends on
    failed = False
    for name in given.recipes or sorted(RECIPES):
        found = losses(name, given.photos, given.weights, given.steps)
        file = GOLDEN / f"{name}.json"
        if given.write:
            told = {
                "recipe": RECIPES[name].relative_to(ROOT).as_posix(),
                "starts_from": STARTS.get(name),
                "steps": given.steps,
                "hardware": f"cpu{os.cpu_count()}, one thread",
                "torch": torch.__version__,
                "date": date.today().isoformat(),
                "losses": found,
            }
            GOLDEN.mkdir(exist_ok=True)
            with checkpoint.written_beside(file) as beside:
                beside.write_text(json.dumps(told, indent=1).replace(",\n   ", ", ") + "\n")
            print(f"{name}: written", flush=True)
            continue
        wrong = list(differences(found, json.loads(file.read_text())["losses"]))
        failed |= bool(wrong)
        print(f"{name}: {'; '.join(wrong) or f'{given.steps} steps as they were'}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
