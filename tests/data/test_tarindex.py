"""Positions in tar files, held to Python's own tarfile and to webdataset."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wetok.data import tarindex
from wetok.data.tarindex import TarIndex, read_member, scan

LONG = "folder-of-a-long-name/" * 12
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def pack(members: dict[str, bytes], format: int = tarfile.PAX_FORMAT, mtime: float = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), mtime  # type: ignore[assignment]
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def members_of(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


def scanned(tmp_path: Path, data: bytes) -> TarIndex:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    return scan(path)


def contents(data: bytes, index: TarIndex) -> list[bytes]:
    return [data[at : at + size] for at, size, _ in index.entries.tolist()]


def names(data: bytes, index: TarIndex) -> list[str]:
    found = []
    for at, _, blocks in index.entries.tolist():
        member = read_member(io.BytesIO(data), at - 512 * blocks)
        assert member is not None and member.data == at
        found.append(member.name)
    return found


NAMES = st.text(st.sampled_from("abä/é.0 -_\u4e00"), min_size=1, max_size=30)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stems=st.lists(NAMES, min_size=1, max_size=6),
    deep=st.booleans(),
    kind=st.sampled_from(["gnu", "pax"]),
    mtime=st.sampled_from([0, 1.5]),
    sizes=st.lists(st.integers(0, 1600), min_size=6, max_size=6),
)
def test_members_are_those_of_tarfile(
    tmp_path: Path, stems: list[str], deep: bool, kind: str, mtime: float, sizes: list[int]
) -> None:
    members = {
        f"{LONG if deep else ''}n{number}/{stem}.jpg": bytes([number]) * sizes[number]
        for number, stem in enumerate(stems)
    }
    data = pack(members, FORMATS[kind], mtime)
    wanted = members_of(data)
    at = 0
    for member in wanted:
        mine = read_member(io.BytesIO(data), at)
        assert mine is not None and mine.file
        assert (mine.name, mine.data, mine.size) == (member.name, member.offset_data, member.size)
        assert mine.header == member.offset
        at = mine.data + -(-mine.size // 512) * 512
    assert read_member(io.BytesIO(data), at) is None


@pytest.mark.parametrize("kind", FORMATS)
def test_images_by_suffix(tmp_path: Path, kind: str) -> None:
    deep = ("d" * 60 + "/") * 2
    members = {
        "1.jpg": b"one" * 300,
        "1.txt": b"a caption",
        "2.JPEG": b"two",
        "2.cls": b"7",
        f"{deep}3.png": b"",
        f"{deep}3.json": b"{}",
        "4.webp": b"four" * 999,
        "5.avif": b"five",
        "._5.avif": b"a Mac's notes",
        "readme": b"text",
        "6.jpg.gz": b"no",
    }
    data = pack(members, FORMATS[kind])
    index = scanned(tmp_path, data)
    wanted = ["1.jpg", "2.JPEG", f"{deep}3.png", "4.webp", "5.avif"]
    assert contents(data, index) == [members[name] for name in wanted]
    assert names(data, index) == wanted
    assert index.ignored == 6 and index.problem is None


@pytest.mark.parametrize(
    ("given_names", "wanted"),
    [
        (["a.jpg", "a.mask.png", "b.mask.png", "b.jpg"], ["a.jpg", "b.jpg"]),
        (["a.jpg", "a.png", "a.txt"], ["a.jpg"]),
        (["img.2020.01.jpg", "img.2020.02.jpg"], ["img.2020.01.jpg", "img.2020.02.jpg"]),
        (["x/a.jpg", "y/a.jpg", "a.jpg"], ["x/a.jpg", "y/a.jpg", "a.jpg"]),
        (["a.jpg", "b.jpg", "a.png"], ["a.jpg", "b.jpg", "a.png"]),  # neighbours only
        (["a.b/c.jpg", "a.b/d.jpg"], ["a.b/c.jpg", "a.b/d.jpg"]),
    ],
)
def test_one_image_a_sample(tmp_path: Path, given_names: list[str], wanted: list[str]) -> None:
    data = pack({name: name.encode() for name in given_names})
    index = scanned(tmp_path, data)
    assert names(data, index) == wanted
    assert index.ignored == len(given_names) - len(wanted)


def test_links_folders_and_headers_without_bytes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"comment": "global"}) as tar:
        for kind, name in (
            (tarfile.DIRTYPE, "folder.jpg"),
            (tarfile.SYMTYPE, "link.jpg"),
            (tarfile.LNKTYPE, "hard.jpg"),
            (tarfile.FIFOTYPE, "pipe.jpg"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "elsewhere" * 20
            tar.addfile(member)
        member = tarfile.TarInfo("real.jpg")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"data"))
    index = scanned(tmp_path, buffer.getvalue())
    assert names(buffer.getvalue(), index) == ["real.jpg"]
    assert index.ignored == 4 and index.problem is None


def test_sizes_that_octal_digits_can_not_tell(tmp_path: Path) -> None:
    """A header that states 9 GiB; its bytes are a hole in the file."""
    member = tarfile.TarInfo("big.bin")
    member.size = 9 * 2**30
    small = pack({"after.jpg": b"found"})
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        head = member.tobuf(format)
        path = tmp_path / "big.tar"
        with open(path, "wb") as stream:
            stream.write(head)
            stream.seek(len(head) + member.size)
            stream.write(small)
        index = scan(path)
        assert index.problem is None and index.ignored == 1
        at, size, _ = index.entries[0].item()
        assert (at, size) == (len(head) + member.size + 512, 5)
        path.unlink()


def test_same_as_webdataset(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed (extra dev)")
    path = tmp_path / "a.tar"
    with wds.TarWriter(str(path)) as writer:
        for number in range(20):
            image = os.urandom(100 + number)
            writer.write({"__key__": f"d/{number:04d}", "jpg": image, "txt": "t", "cls": number})
    wanted = [
        (sample["__key__"], sample["jpg"])
        for sample in wds.WebDataset(str(path), shardshuffle=False, empty_check=False)
    ]
    data = path.read_bytes()
    index = scan(path)
    keys = [name.removesuffix(".jpg") for name in names(data, index)]
    assert list(zip(keys, contents(data, index), strict=True)) == wanted
    assert len(wanted) == 20 and index.ignored == 40 and index.problem is None


MEMBERS = {f"{number}.{kind}": os.urandom(700) for number in range(4) for kind in ("jpg", "txt")}


@pytest.mark.parametrize("mtime", [0, 1.5])
@pytest.mark.parametrize("cut", [*range(512, 12_000, 611), 513, 1023, 1024, 1536, 2048])
def test_cut_off_anywhere(tmp_path: Path, cut: int, mtime: float) -> None:
    whole = pack(MEMBERS, mtime=mtime)
    inside = [member for member in members_of(whole) if member.offset_data + member.size <= cut]
    index = scanned(tmp_path, whole[:cut])
    wanted = [member.name for member in inside if member.name.endswith("jpg")]
    assert names(whole, index) == wanted
    assert index.ignored == len(inside) - len(wanted)
    complete = members_of(whole)[-1]
    if cut < complete.offset_data + 1024 + 512:
        assert index.problem and ("cut off" in index.problem or "not a tar" in index.problem)
        assert not inside or f"which are used: {len(wanted)})" in index.problem
    else:
        assert index.problem is None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 12_000), junk=st.binary(min_size=1, max_size=600))
def test_damage_never_raises_and_spares_what_is_before(
    tmp_path: Path, at: int, junk: bytes
) -> None:
    whole = pack(MEMBERS, mtime=1.5)
    members = members_of(whole)
    damaged = whole[:at] + junk + whole[at + len(junk) :]
    index = scanned(tmp_path, damaged)
    before = [m for m in members if m.name.endswith("jpg") and m.offset_data + m.size <= at]
    found = [entry["data"] for entry in index.entries]
    assert found[: len(before)] == [member.offset_data for member in before]
    ends = index.entries["data"] + index.entries["size"]
    assert (ends <= len(damaged)).all()


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "empty"),
        (b"\x1f\x8b" + bytes(2000), "gzip"),
        (b"BZh9" + bytes(2000), "bzip2"),
        (b"\xfd7zXZ\0" + bytes(2000), "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(2000), "zstd"),
        (b"<html>" * 400, "not a tar"),
        (b"short", "not a tar"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_not_tar_files(tmp_path: Path, data: bytes, part: str) -> None:
    index = scanned(tmp_path, data)
    assert len(index.entries) == 0 and index.problem and part in index.problem


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.tar"):
        index = scan(path)
        assert len(index.entries) == 0 and index.problem and "can't be read" in index.problem


def test_empty_archive_is_no_problem(tmp_path: Path) -> None:
    index = scanned(tmp_path, pack({}))
    assert (len(index.entries), index.ignored, index.problem) == (0, 0, None)


def test_sparse_members_are_not_misread(tmp_path: Path) -> None:
    data = bytearray(pack({"a.jpg": b"a", "b.jpg": b"b"}, tarfile.USTAR_FORMAT))
    header = tarfile.TarInfo("b.jpg")
    header.type, header.size = tarfile.GNUTYPE_SPARSE, 1
    data[1024:1536] = header.tobuf(tarfile.GNU_FORMAT)
    index = scanned(tmp_path, bytes(data))
    assert len(index.entries) == 1 and index.problem and "sparse" in index.problem


def test_index_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "a.tar", tmp_path / "cache" / "shards"
    path.write_bytes(pack(MEMBERS)[:6000])
    wanted = scan(path)
    assert wanted.problem and len(wanted.entries) == 2

    def same(one: TarIndex, other: TarIndex) -> bool:
        return np.array_equal(one.entries, other.entries) and one[1:] == other[1:]

    assert same(scan(path, cache), wanted) and len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(tarindex, "_scan", lambda *_: pytest.fail("scanned again"))
        assert same(scan(path, cache), wanted)
    path.write_bytes(pack(MEMBERS))  # another size
    assert len(scan(path, cache).entries) == 4 and len(list(cache.iterdir())) == 1
    path.write_bytes(pack({name: data[::-1] for name, data in reversed(MEMBERS.items())}))
    os.utime(path, ns=(1, 1))  # another time
    assert contents(path.read_bytes(), scan(path, cache))[0] == MEMBERS["3.jpg"][::-1]
    (stored,) = cache.iterdir()
    data = stored.read_bytes()
    for broken in (b"", data[:200], data[:400] + b"x" + data[401:], os.urandom(300)):
        stored.write_bytes(broken)
        assert len(scan(path, cache).entries) == 4
        assert stored.read_bytes() != broken  # and is made good


def test_cache_that_can_not_be_written_is_done_without(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(pack(MEMBERS))
    (tmp_path / "file").write_bytes(b"")
    assert len(scan(path, tmp_path / "file").entries) == 4


def test_memory_of_an_entry() -> None:
    assert tarindex.ENTRY.itemsize == 14
