"""Tar shards as a training source: right counts, exact streams, damage told and passed over."""

from __future__ import annotations

import io
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.streams import batches, check_stream, encoded, numbers_of, picture
from wetok.config import WetokError
from wetok.data.loader import TrainLoader
from wetok.data.order import shuffled
from wetok.data.shards import TarShards


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def samples(numbers: range) -> dict[str, bytes]:
    """Images of several formats with a caption and a class each."""
    result: dict[str, bytes] = {}
    for number in numbers:
        kind = ("png", "webp")[number % 2]
        result[f"{number:03d}.txt"] = b"a caption"
        result[f"{number:03d}.{kind}"] = encoded(number) if kind == "png" else lossless_webp(number)
        result[f"{number:03d}.cls"] = b"1"
    return result


def lossless_webp(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "webp", lossless=True)
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [
        write_tar(tmp_path / f"shard-{index}.tar", samples(numbers))
        for index, numbers in enumerate([range(7), range(7, 8), range(8, 21)])
    ]


@pytest.fixture
def damaged(tmp_path: Path, shards: list[Path]) -> list[Path]:
    """The same, with what goes wrong in practice."""
    cut = shards[2].read_bytes()
    with tarfile.open(shards[2]) as tar:
        members = {member.name: member for member in tar.getmembers()}
    broken = members["010.png"]
    at = broken.offset_data + broken.size // 2
    cut = cut[:at] + bytes(40) + cut[at + 40 :]  # an image damaged inside
    last = members["018.png"]
    shards[2].write_bytes(cut[: last.offset_data + 10])  # and the file cut off in another
    junk = samples(range(30, 33)) | {"031.webp": b"", "032.png": b"<html>404</html>"}
    (tmp_path / "zipped.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    return [*shards, write_tar(tmp_path / "junk.tar", junk), tmp_path / "zipped.tar"]


def test_images_in_the_order_of_the_files(shards: list[Path]) -> None:
    source = TarShards(shards)
    assert len(source) == 21 and source.ignored == 42 and not source.skipped
    assert numbers_of(source, 21) == list(range(21))
    assert source.name(0) == f"{shards[0]}: 000.png"
    assert source.name(7) == f"{shards[1]}: 007.webp"
    assert source.name(20) == f"{shards[2]}: 020.png"


@pytest.mark.parametrize("whole", [100, 0])
def test_stream(shards: list[Path], whole: int) -> None:
    check_stream(lambda: TarShards(shards, whole=whole, run=3, lanes=3))


@pytest.mark.parametrize("whole", [100, 0])
def test_stream_of_damaged_shards(damaged: list[Path], whole: int) -> None:
    check_stream(lambda: TarShards(damaged, whole=whole, run=3, lanes=2), broken=3)


def test_damage_is_counted_and_listed(damaged: list[Path]) -> None:
    source = TarShards(damaged)
    assert len(source) == 7 + 1 + 10 + 3
    assert source.ignored == 2 * 8 + (2 * 10 + 1) + 2 * 3
    assert sorted(map(Path, source.skipped)) == sorted([damaged[2], damaged[4]])
    with TrainLoader(source, len(source), 8, workers=2) as loader:
        next(loader)
        failures = dict(loader.failures)
    told = {Path(name).name: reason for name, reason in failures.items()}
    wanted = {
        "shard-2.tar": "cut off within its member '018.png'",
        "zipped.tar": "gzip",
        "shard-2.tar: 010.png": "shard-2.tar: 010.png' is truncated or damaged",
        "junk.tar: 031.webp": "junk.tar: 031.webp' is empty",
        "junk.tar: 032.png": "junk.tar: 032.png' is not an image",
    }
    assert told.keys() == wanted.keys()
    for name, part in wanted.items():
        assert part in told[name] and "\n" not in told[name]


def test_runs_are_near_to_one_another_and_of_nearly_one_size(tmp_path: Path) -> None:
    shards = [
        write_tar(tmp_path / f"{index}.tar", {f"{n}.png": b"x" for n in range(size)})
        for index, size in enumerate([25, 3, 40])
    ]
    source = TarShards(shards, whole=67, run=10, lanes=2)
    order = list(islice(source.order(0, 0), 68))
    assert sorted(order) == list(range(68))
    # Two runs at a time: where each lane reads moves by less than a run, except at its end.
    for lane in (order[0:40:2], order[1:40:2]):
        jumps = [abs(a - b) >= 10 for a, b in zip(lane, lane[1:], strict=False)]
        assert sum(jumps) <= 3
    bounds = np.cumsum([0, 8, 8, 9, 3, 10, 10, 10, 10])
    runs = np.searchsorted(bounds, order[0:40:2], "right")
    assert [run for run, before in zip(runs, [0, *runs], strict=False) if run != before] == list(
        dict.fromkeys(runs)
    )
    together = TarShards(shards, whole=68).order(0, 0)
    assert list(islice(together, 68)) == list(islice(shuffled(68, 0), 68))


def test_draft_reads_jpegs_smaller(tmp_path: Path) -> None:
    y, x = np.mgrid[0:200, 0:240]
    waves = np.stack([128 + 90 * np.sin((x + y) / (20 + 5 * c)) for c in range(3)], -1)
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(waves.astype(np.uint8)).save(buffer, "jpeg", quality=95)
    source = TarShards([write_tar(tmp_path / "a.tar", {"a.jpg": buffer.getvalue()})])
    assert source.read(0, lambda size: (size[0] // 4, size[1] // 4)).size == (60, 50)
    full, quick = (batches(source, 1, draft=draft)[0] for draft in (False, True))
    assert 0 < (full - quick).square().mean().sqrt() < 0.05


def test_file_changed_while_in_use(shards: list[Path]) -> None:
    source = TarShards(shards)
    data = shards[0].read_bytes()
    shards[0].write_bytes(data[:3000])
    with pytest.raises(WetokError, match=r"shard-0\.tar.*shorter"):
        source.read(6)
    assert "member at byte" in source.name(6)
    shards[0].unlink()
    with pytest.raises(WetokError, match=r"shard-0\.tar.*can't be read"):
        source.read(0)
    shards[0].write_bytes(bytes(len(data)))
    with pytest.raises(WetokError, match=r"shard-0\.tar: member"):
        source.read(0)


def test_index_cache_is_used(shards: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = TarShards(shards, cache=cache)
    assert len(list(cache.iterdir())) == 3
    again = TarShards(shards, cache=cache)
    assert torch.equal(batches(first, 1)[0], batches(again, 1)[0])


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(WetokError, match="no tar files"):
        TarShards([])
    text = write_tar(tmp_path / "text.tar", {"a.txt": b"x"})
    with pytest.raises(WetokError, match=r"text\.tar.*has no images"):
        TarShards([text])
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(WetokError, match=r"a\.tar.*gzip.*unpack it \(and 1 more shards\)"):
        TarShards([text, tmp_path / "a.tar"])
