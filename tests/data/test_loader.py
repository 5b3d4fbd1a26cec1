"""The training stream: the same whatever the workers, the processes, the restarts and the files."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wetok.config import WetokError
from wetok.data.images import load_image, to_tensor
from wetok.data.loader import TrainLoader
from wetok.data.order import shuffled
from wetok.data.sources import Draft, ImageFolder
from wetok.data.transforms import RandomCrop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images of different sizes."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(11):
        array = rng.integers(0, 256, (30 + index, 50 - index, 3), np.uint8)
        Image.fromarray(array).save(path / f"{index}.png")
    return path


@pytest.fixture
def damaged(tmp_path: Path, folder: Path) -> Path:
    """The same with three files that can't be decoded."""
    for file in folder.iterdir():
        data = file.read_bytes()
        broken = {"3.png": b"", "4.png": data[:200], "9.png": b"not an image"}
        (tmp_path / file.name).write_bytes(broken.get(file.name, data))
    return tmp_path


def take(loader: TrainLoader[int], count: int) -> list[torch.Tensor]:
    with loader:
        return list(islice(loader, count))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_stream_is_what_the_documentation_says(folder: Path) -> None:
    source = ImageFolder(folder)
    crop = RandomCrop(16)
    wanted = []
    for number, index in enumerate(islice(shuffled(11, 7), 24)):
        image = load_image(source.paths[index])
        wanted.append(to_tensor(crop(image, np.random.default_rng((7, 1, number)))))
    batches = take(TrainLoader(source, 6, 16, seed=7), 4)
    for batch in batches:
        assert batch.shape == (6, 3, 16, 16) and batch.dtype == torch.float32
        assert batch.is_contiguous() and batch.min() >= -1 and batch.max() <= 1
    assert torch.equal(torch.cat(batches), torch.stack(wanted))


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_do_not_matter(folder: Path, workers: int, cache: bool) -> None:
    wanted = take(TrainLoader(ImageFolder(folder), 3, 16, seed=1), 9)
    source = ImageFolder(folder, cache=cache)
    assert same(take(TrainLoader(source, 3, 16, seed=1, workers=workers), 9), wanted)
    assert not same(take(TrainLoader(source, 3, 16, seed=2, workers=workers), 9), wanted)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    before=st.integers(0, 9),
    workers=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    batch=st.integers(1, 5),
    prefetch=st.integers(1, 3),
)
def test_resume_is_bit_identical(
    damaged: Path, before: int, workers: tuple[int, int], batch: int, prefetch: int
) -> None:
    source = ImageFolder(damaged)
    wanted = take(TrainLoader(source, batch, 8, seed=4), before + 4)
    with TrainLoader(source, batch, 8, seed=4, workers=workers[0], prefetch=prefetch) as first:
        start = list(islice(first, before))
        state = first.state_dict()
    assert state == {"samples": before * batch}
    second = TrainLoader(source, batch, 8, seed=4, workers=workers[1])
    second.load_state_dict(state)
    assert same(start + take(second, 4), wanted)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_back_and_forth(folder: Path, workers: int) -> None:
    with TrainLoader(ImageFolder(folder), 4, 8, workers=workers) as loader:
        first = list(islice(loader, 5))
        loader.load_state_dict({"samples": 8})
        assert same(list(islice(loader, 3)), first[2:])
        loader.load_state_dict({"samples": 0})
        assert same(list(islice(loader, 5)), first)


def test_other_crop_and_batch_go_on_from_the_same_sample(folder: Path) -> None:
    source = ImageFolder(folder)
    with TrainLoader(source, 4, 8) as first:
        list(islice(first, 3))
        state = first.state_dict()
    second = TrainLoader(source, 6, 16)
    second.load_state_dict(state)
    crop = RandomCrop(16)
    wanted = [
        to_tensor(crop(source[index], np.random.default_rng((0, 1, 12 + number))))
        for number, index in enumerate(islice(shuffled(11, 0, 12), 6))
    ]
    assert torch.equal(take(second, 1)[0], torch.stack(wanted))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_one_stream(damaged: Path, world: int, workers: int) -> None:
    source = ImageFolder(damaged)
    whole = torch.cat(take(TrainLoader(source, 2 * world, 8), 6))
    loaders = [
        TrainLoader(source, 2, 8, rank=rank, world=world, workers=workers) for rank in range(world)
    ]
    parts = [torch.cat(list(islice(loader, 4))) for loader in loaders]
    interleaved = torch.stack(parts, 1).flatten(0, 1)
    assert torch.equal(interleaved, whole[: 8 * world])
    states = [loader.state_dict() for loader in loaders]
    assert all(state == {"samples": 8 * world} for state in states)
    for loader in loaders:
        loader.close()
    alone = TrainLoader(source, 4 * world, 8)  # another number of processes goes on from there
    alone.load_state_dict(states[0])
    assert torch.equal(take(alone, 1)[0], whole[8 * world :])


@pytest.mark.parametrize("workers", [0, 3])
def test_broken_files_are_replaced_counted_and_listed(
    folder: Path, damaged: Path, workers: int
) -> None:
    with TrainLoader(ImageFolder(damaged), 11, 8, workers=workers) as loader:
        batches = list(islice(loader, 3))
        names = sorted(Path(name).name for name in loader.failures)
        reasons = [loader.failures[str(damaged / name)] for name in names]
    assert names == ["3.png", "4.png", "9.png"]
    for reason, part in zip(reasons, ["empty", "truncated", "not an image"], strict=True):
        assert part in reason and "\n" not in reason
    # Only the broken ones are replaced: every other sample is as it would be without them.
    intact = take(TrainLoader(ImageFolder(folder), 11, 8), 3)
    order = list(islice(shuffled(11, 0), 33))
    source, crop = ImageFolder(folder), RandomCrop(8)
    for number, (mine, other) in enumerate(zip(torch.cat(batches), torch.cat(intact), strict=True)):
        key = order[number]
        if key not in (3, 4, 9):
            assert torch.equal(mine, other)
            continue
        while key in (3, 4, 9):
            key = source.substitute(key)
        assert torch.equal(
            mine, to_tensor(crop(source[key], np.random.default_rng((0, 1, number))))
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_decodable(tmp_path: Path, workers: int) -> None:
    for index in range(5):
        (tmp_path / f"{index}.jpg").write_bytes(b"junk")
    with (
        TrainLoader(ImageFolder(tmp_path), 2, 8, workers=workers) as loader,
        pytest.raises(WetokError, match=r"none of the 5 .*\.jpg"),
    ):
        next(loader)


class Fragile:
    """One image, whose reading fails in a way that is not the file's fault."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        self.error, self.at, self.reads = error, at, 0
        self.skipped: dict[str, str] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return 1

    def order(self, seed: int, start: int) -> Iterator[int]:
        return shuffled(1, seed, start)

    def substitute(self, key: int) -> int:
        return key

    def name(self, key: int) -> str:
        return "one"

    def read(self, key: int, draft: Draft | None = None) -> Image.Image:
        with self.lock:
            self.reads += 1
            if self.reads == self.at:
                raise self.error("broken on purpose")
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_come_through_and_lose_no_sample(
    error: type[BaseException], workers: int
) -> None:
    wanted = take(TrainLoader(Fragile(error, at=-1), 3, 8), 5)
    with TrainLoader(Fragile(error, at=8), 3, 8, workers=workers) as loader:
        got = list(islice(loader, 2))
        with pytest.raises(error, match="on purpose"):
            next(loader)
        assert loader.state_dict() == {"samples": 6} and not loader.failures
        assert same(got + list(islice(loader, 3)), wanted)


class Idle(RandomCrop):
    def sample(self, size: tuple[int, int], rng: np.random.Generator) -> object:  # type: ignore[override]
        raise ZeroDivisionError("a mistake in the transform")


@pytest.mark.parametrize("draft", [False, True])
def test_a_mistake_in_the_transform_is_not_blamed_on_the_files(tmp_path: Path, draft: bool) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg")
    loader = TrainLoader(ImageFolder(tmp_path), 1, 8, transform=Idle(8), draft=draft)
    with loader, pytest.raises(ZeroDivisionError):
        next(loader)


def test_reading_ahead_is_bounded() -> None:
    source = Fragile(RuntimeError, at=-1)
    with TrainLoader(source, 4, 8, workers=3, prefetch=2) as loader:
        next(loader)
        time.sleep(0.2)  # enough to run away
        assert 4 < source.reads <= 4 + 3 * 4
        loader.close()
        reads = source.reads
        time.sleep(0.05)
        assert source.reads == reads


def data_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("wetok-data")]


def test_close(folder: Path) -> None:
    assert not data_threads()
    loader = TrainLoader(ImageFolder(folder), 4, 8, workers=3)
    next(loader)
    assert data_threads()
    loader.close()
    loader.close()
    assert not data_threads()
    with pytest.raises(WetokError, match="closed"):
        next(loader)
    assert loader.state_dict() == {"samples": 4}
    with pytest.raises(ZeroDivisionError), TrainLoader(ImageFolder(folder), 4, 8, workers=3) as it:
        next(it)
        raise ZeroDivisionError
    assert not data_threads()


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize("closing", ["with loader:", "if True:"])
def test_ctrl_c_ends_the_program(folder: Path, closing: str) -> None:
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may ignore it
from wetok.data.sources import ImageFolder
from wetok.data.loader import TrainLoader
loader = TrainLoader(ImageFolder({str(folder)!r}), 64, 32, workers=2)
{closing}
    for number, batch in enumerate(loader):
        if number == 1:
            print("going", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "going\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode in (130, -signal.SIGINT)


def test_draft_gives_nearly_the_same_and_resumes(tmp_path: Path) -> None:
    y, x = np.mgrid[0:300, 0:400]
    for index in range(5):
        waves = [128 + 90 * np.sin((x + y * (index + 1)) / (20 + 5 * c)) for c in range(3)]
        image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
        image.save(tmp_path / f"{index}.jpg", quality=95)
    source = ImageFolder(tmp_path)
    full = torch.cat(take(TrainLoader(source, 5, 24), 4))
    quick = torch.cat(take(TrainLoader(source, 5, 24, draft=True), 4))
    error = (full - quick).square().mean().sqrt().item()
    assert 0 < error < 0.03  # the same parts, decoded at a lower resolution
    loader = TrainLoader(source, 5, 24, draft=True, workers=2)
    loader.load_state_dict({"samples": 10})
    assert torch.equal(torch.cat(take(loader, 2)), quick[10:])


def test_transform_is_used(folder: Path) -> None:
    crop = RandomCrop(8, None, flip=0)
    source = ImageFolder(folder)
    batch = take(TrainLoader(source, 2, 8, transform=crop), 1)[0]
    index = next(shuffled(11, 0))
    wanted = to_tensor(crop(source[index], np.random.default_rng((0, 1, 0))))
    assert torch.equal(batch[0], wanted)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"crop": 0}, "crop=0"),
        ({"seed": -1}, "seed=-1"),
        ({"workers": -1}, "workers=-1"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"world": 0}, "world=0"),
        ({"world": 2, "rank": 2}, "rank=2"),
        ({"rank": -1}, "rank=-1"),
        ({"transform": RandomCrop(9)}, "crop=8"),
    ],
    ids=str,
)
def test_wrong_settings(folder: Path, options: dict[str, object], part: str) -> None:
    with pytest.raises(WetokError, match=part):
        TrainLoader(ImageFolder(folder), **{"batch_size": 2, "crop": 8, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [{}, {"samples": -1}, {"samples": "3"}, {"samples": 1.5}])
def test_wrong_state(folder: Path, state: dict[str, object]) -> None:
    loader = TrainLoader(ImageFolder(folder), 2, 8)
    with pytest.raises(WetokError, match="samples"):
        loader.load_state_dict(state)
