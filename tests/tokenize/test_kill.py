"""Jobs whose processes are killed at any moment end with every input once, as if nothing had been.

WETOK_KILLS=10 takes 20,000 crops of 64 x 64 of the shared photographs and the shipped model, and
kills the driver and decoding processes ten times each, instead of two.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

import wetok
from tests.tokenize.job import BROKEN, failed, files, model_folder, write_pictures
from wetok.cli import main

KILLS = int(os.environ.get("WETOK_KILLS", 0))
IMAGES = int(os.environ.get("WETOK_IMAGES", 20_000 if KILLS else 480))
PART = 128 if KILLS else 12
ROOT = Path(wetok.__file__).parent.parent


class Job:
    """`python -m wetok tokenize` in a session of its own."""

    def __init__(self, *words: object, told: Path) -> None:
        self.told = told
        with open(told, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wetok", "tokenize", *map(str, words)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.seen: dict[int, psutil.Process] = {}

    def children(self) -> list[psutil.Process]:
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.seen.update((child.pid, child) for child in found)
        return found

    def decoders(self) -> list[psutil.Process]:
        """They are started by another process, which is the driver's own child."""
        return [child for child in self.children() if _parent(child) != self.process.pid]

    def kill(self) -> None:
        self.children()
        self.process.kill()
        self.process.wait()

    def left(self) -> list[psutil.Process]:
        """Of all processes that it has had, those that are still there."""
        _, alive = psutil.wait_procs(
            list(self.seen.values()), timeout=90
        )  # a start is gone through first
        return [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]

    def wait(self) -> int:
        return self.process.wait(3000)

    def running(self) -> bool:
        return self.process.poll() is None


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.NoSuchProcess:
        return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def job(place: Path, request: pytest.FixtureRequest) -> tuple[list[Any], set[str]]:
    """Words of the command, and the keys that must fail."""
    if not KILLS:
        broken = write_pictures(place / "pictures", IMAGES, broken=9)
        model = model_folder(place / "model")
        return [place / "pictures", "-m", model, "--size", 32, "--shard-size", PART], broken
    photos = request.getfixturevalue("photos_dir")
    broken = write_crops(photos / "train", place / "pictures", IMAGES)
    return [place / "pictures", "--size", 64, "--shard-size", PART], broken


def write_crops(photos: Path, folder: Path, count: int) -> set[str]:
    """Random crops of 64 x 64 pixels as JPEGs; one in 200 is damaged. Returns these' keys."""
    rng, kinds, broken, number = random.Random(0), list(BROKEN.values()), set(), 0
    paths = sorted(photos.iterdir())
    for place, path in enumerate(paths):
        image = Image.open(path).convert("RGB")
        if min(image.size) < 64:
            image = image.resize((max(64, image.width), max(64, image.height)))
        (folder / f"{place:03d}").mkdir(parents=True)
        while number < (place + 1) * count // len(paths):
            x, y = rng.randint(0, image.width - 64), rng.randint(0, image.height - 64)
            stream = io.BytesIO()
            image.crop((x, y, x + 64, y + 64)).save(stream, "JPEG", quality=92)
            key, data = f"{place:03d}/{number:05d}.jpg", stream.getvalue()
            if number % 200 == 77:
                data = kinds[number % 3](number) if number % 400 == 77 else data[:300]
                broken.add(key)
            (folder / key).write_bytes(data)
            number += 1
    return broken


@pytest.fixture(scope="module")
def whole(place: Path, job: tuple[list[Any], set[str]]) -> Path:
    """The output of a run that nothing befell, without decoding processes."""
    out = place / "whole"
    assert here(*job[0], "-o", out, "--workers", 0) == 1
    return out


def here(*words: object) -> int:
    """The exit code of `wetok tokenize` in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["tokenize", *map(str, words)])
    return int(ended.value.code or 0)


def parts(out: Path) -> int:
    return sum(1 for _ in (out / "_wetok" / "parts").glob("[0-9]*.json"))


def wait_for(run: Job, reached: Callable[[], bool]) -> None:
    while run.running() and not reached():
        time.sleep(0.002)


def test_whatever_is_killed_every_input_is_there_once(
    place: Path,
    job: tuple[list[Any], set[str]],
    whole: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, broken = job
    assert set(failed(whole)) == broken
    out, rng = place / "parts", random.Random(1)
    wanted = KILLS or 2
    total = -(-IMAGES // PART)
    drivers = decoders = 0
    moments: list[tuple[str, int]] = []
    run = Job(*words, "-o", out, "--workers", 1, told=place / "parts.txt")
    while drivers < wanted or decoders < wanted:
        assert run.running(), run.told.read_text()
        kind = "driver" if drivers <= decoders and drivers < wanted else "decoder"
        # Spread over the job, and now and then at a driver's very start.
        done = (drivers + decoders + 1) * (total - 8) // (2 * wanted + 1)
        if kind == "driver" and rng.random() < 0.2:
            time.sleep(rng.uniform(0, 3))
        else:
            wait_for(run, lambda done=done: parts(out) >= done)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 0.1))
        if kind == "decoder":
            found = run.decoders()
            while run.running() and not found:
                found = run.decoders()
            if found:
                rng.choice(found).kill()
                decoders += 1
                moments.append((kind, parts(out)))
            continue
        run.kill()
        drivers += 1
        moments.append((kind, parts(out)))
        assert run.left() == [], "no process outlives the driver"
        workers = rng.choice([0, 1, 2, 3]) if decoders >= wanted else rng.choice([1, 2, 3])
        run = Job(*words, "-o", out, "--workers", workers, told=place / "parts.txt")
    assert run.wait() == 1, run.told.read_text()
    assert set(failed(out)) == broken
    mine, theirs = files(out), files(whole)
    assert mine.keys() == theirs.keys(), "nothing half written is left, nothing is missing"
    assert [name for name in mine if mine[name] != theirs[name]] == []
    with capsys.disabled() if KILLS else nullcontext():
        print(f"killed {drivers} drivers and {decoders} decoding processes at parts: {moments}")
    capsys.readouterr()
    assert here("--verify", out, words[0], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["with_source"]
    assert (found["inputs"], found["failed"]) == (IMAGES, len(broken))
    assert found["records"] == IMAGES - len(broken)


@pytest.mark.skipif(bool(KILLS), reason="one campaign at a time")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["terminated", "Ctrl-C"])
def test_a_signal_ends_a_job_in_order(
    place: Path,
    job: tuple[list[Any], set[str]],
    whole: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the folder is in use until then."""
    out = place / number.name
    run = Job(*job[0], "-o", out, "--workers", 1, told=place / f"{number.name}.txt")
    wait_for(run, lambda: parts(out) >= 2)
    if number == signal.SIGTERM:
        run.process.send_signal(signal.SIGSTOP)  # so that it is not done before the other begins
        capsys.readouterr()
        assert here(*job[0], "-o", out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "in use by another process" in line
        run.process.send_signal(signal.SIGCONT)
    run.children()
    run.process.send_signal(number)
    assert run.wait() == 130
    told = run.told.read_text()
    assert "shards are done; the same command goes on" in told and "Traceback" not in told
    assert run.left() == []
    (done,) = {int(word) for word in told.replace(",", "").split() if word.isdecimal()} - {
        -(-IMAGES // PART)
    }
    assert done == parts(out) >= 2
    assert here(*job[0], "-o", out, "--workers", 2) == 1
    assert files(out) == files(whole)
