"""Entropy-coded ids against readers written from the specification, and its tables."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codec.by_the_book import probability as by_the_book_probability
from tests.codec.by_the_book import read_ids
from wetok.codec.adaptive import AdaptiveModel
from wetok.codec.chunks import written
from wetok.codec.context import (
    HIDDEN,
    Net,
    inputs_of,
    phases,
    probabilities,
    to_ids,
    to_planes,
)
from wetok.codec.file import Part, decode, encode, opened, write_parts
from wetok.codec.header import ADAPTIVE, LEARNED, PACKED, Header
from wetok.codec.packing import id_dtype
from wetok.codec.payload import compress, expand, read_index
from wetok.codec.rangecoder import BITS_A_BYTE, LEAST, ONE, Decoder, Encoder
from wetok.codec.tables import CodingTables
from wetok.config import WetokError


def some_tables(groups: int, bits: int, levels: int = 1, hidden: int = 3, seed: int = 0):
    """Tables that learned nothing: random whole numbers, large ones among them."""
    rng = np.random.default_rng(seed)
    nets = []
    for group in range(groups):
        row = []
        for phase in phases(levels):
            n = inputs_of(group, bits, phase)

            def draw(*shape: int, most: int = 127) -> np.ndarray:
                return rng.integers(-most, most + 1, shape).astype(np.float32)

            row.append(
                Net(
                    first=draw(hidden, n),
                    first_bias=draw(hidden, most=1000),
                    second=draw(bits, hidden, most=9),
                    direct=draw(bits, n, most=40),
                    bias=draw(bits, most=50),
                    within=np.tril(draw(bits, bits), -1),
                )
            )
        nets.append(row)
    return CodingTables.of_nets(nets)


def smooth_ids(shape: tuple[int, ...], bits: int, seed: int = 0) -> np.ndarray:
    """Ids whose bits are like their neighbours', as those of photographs are."""
    rng = np.random.default_rng(seed)
    images, groups, height, width = shape
    waves = rng.standard_normal((images, groups * bits, height + 6, width + 6)).cumsum(2).cumsum(3)
    planes = (waves[:, :, 6:, 6:] > np.median(waves, (2, 3), keepdims=True)).astype(np.uint8)
    return np.stack([to_ids(one, bits) for one in planes])


def header_for(ids: np.ndarray, bits: int) -> Header:
    images, groups, height, width = ids.shape
    return Header("m", "0123456789abcdef", groups, bits, images, (height, width), (height, width))


def payload_of(data: bytes) -> bytes:
    """What follows the sizes in the only chunk IMGS."""
    at = data.index(b"IMGS")
    return data[at + 8 + 21 : at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")]


# --- the range coder ----------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(LEAST, ONE - LEAST), st.booleans()), max_size=300))
def test_range_coder_gives_back_any_bits(case: list[tuple[int, bool]]) -> None:
    chances, bits = [p for p, _ in case], [b for _, b in case]
    coder = Encoder()
    coder.encode(chances, bits)
    data = coder.finish()
    back = Decoder(data)
    assert back.decode(chances) == bits
    back.finish()
    assert len(bits) <= BITS_A_BYTE * (len(data) + 6)
    for zeros in (1, 9):
        longer = Decoder(data + bytes(zeros))
        assert longer.decode(chances) == bits
        with pytest.raises(WetokError, match="followed by other bytes"):
            longer.finish()


def test_range_coder_costs_what_the_probabilities_say() -> None:
    rng = np.random.default_rng(0)
    chances = np.clip(rng.beta(0.4, 0.4, 40_000) * ONE, LEAST, ONE - LEAST).astype(int)
    bits = rng.random(40_000) < chances / ONE
    coder = Encoder()
    coder.encode(chances.tolist(), bits.tolist())
    cost = -np.log2(np.where(bits, chances, ONE - chances) / ONE).sum() / 8
    assert cost <= len(coder.finish()) <= cost + 7


def test_runs_of_sure_bits_reach_the_bound_and_a_carry_passes_many_bytes() -> None:
    for chance, bit in ((ONE - LEAST, True), (LEAST, False), (LEAST, True), (ONE - LEAST, False)):
        coder = Encoder()
        coder.encode([chance] * 30_000, [bit] * 30_000)
        data = coder.finish()
        back = Decoder(data)
        assert back.decode([chance] * 30_000) == [bit] * 30_000
        back.finish()
        assert BITS_A_BYTE * (len(data) + 6) >= 30_000
    with pytest.raises(WetokError, match="end too early"):
        Decoder(data[: len(data) // 2]).decode([chance] * 30_000)


def test_probabilities_follow_the_logistic_function() -> None:
    logits = np.arange(-1100, 1101, dtype=np.int32)
    found = probabilities(logits)
    assert found == [by_the_book_probability(int(logit)) for logit in logits]
    exact = ONE / (1 + np.exp(-np.clip(logits, -1024, 1024) / 128))
    assert np.abs(np.array(found) - np.clip(exact, LEAST, ONE - LEAST)).max() < 0.0035 * ONE


# --- ids ----------------------------------------------------------------------------------------


def test_bits_and_ids_are_each_other() -> None:
    for bits in (1, 3, 8, 9, 15, 16, 31, 32, 62):
        ids = np.random.default_rng(bits).integers(0, 2**bits, (2, 3, 4)).astype(id_dtype(bits))
        planes = to_planes(ids, bits)
        for channel in range(2 * bits):
            want = [(int(i) >> channel % bits) & 1 for i in ids[channel // bits].reshape(-1)]
            assert planes[channel].reshape(-1).tolist() == want
        assert np.array_equal(to_ids(planes, bits), ids) and to_ids(planes, bits).dtype == ids.dtype


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_phases_visit_each_position_once_and_look_back_only(levels: int) -> None:
    for height, width in ((1, 1), (2, 3), (9, 16), (17, 5)):
        seen: set[tuple[int, int]] = set()
        for phase in phases(levels):
            places = {
                (y, x)
                for y in range(phase.start[0], height, phase.step)
                for x in range(phase.start[1], width, phase.step)
            }
            assert not places & seen
            for y, x in places:
                for dy, dx in phase.known:
                    inside = 0 <= y + dy < height and 0 <= x + dx < width
                    assert not inside or (y + dy, x + dx) in seen
            seen |= places
        assert len(seen) == height * width


@pytest.mark.parametrize(
    ("groups", "bits", "size", "levels", "hidden"),
    [
        (2, 3, (7, 9), 2, 4),
        (1, 5, (1, 1), 1, 2),
        (3, 1, (5, 2), 0, 0),
        (1, 18, (4, 6), 1, 3),
        (1, 62, (2, 3), 1, 1),
    ],
)
def test_learned_coding_by_the_book(
    groups: int, bits: int, size: tuple[int, int], levels: int, hidden: int
) -> None:
    tables = some_tables(groups, bits, levels, hidden)
    ids = smooth_ids((2, groups, *size), bits)
    data = encode(header_for(ids, bits), ids, "entropy", tables)
    header, back = decode(data, tables=tables)
    assert header.coding == LEARNED and header.tables == tables.digest.hex()
    assert np.array_equal(back, ids) and back.dtype == ids.dtype
    found = read_ids(payload_of(data), ids.shape, bits, tables.data)
    assert found == ids.reshape(-1).tolist()


@pytest.mark.parametrize(
    ("groups", "bits", "size"), [(2, 3, (17, 12)), (1, 1, (1, 9)), (1, 62, (3, 2)), (4, 8, (10, 9))]
)
def test_adaptive_coding_by_the_book(groups: int, bits: int, size: tuple[int, int]) -> None:
    ids = smooth_ids((2, groups, *size), bits)
    data = encode(header_for(ids, bits), ids, "entropy")
    header, back = decode(data)
    assert header.coding == ADAPTIVE and np.array_equal(back, ids)
    assert read_ids(payload_of(data), ids.shape, bits, None) == ids.reshape(-1).tolist()


@pytest.mark.parametrize("side", [1, 2, 5, 256])
@pytest.mark.parametrize("kind", ["adaptive", "learned"])
def test_blocks_by_the_book_and_any_part_of_them(side: int, kind: str) -> None:
    bits, shape = 2, (3, 2, 7, 9)
    ids = smooth_ids(shape, bits, seed=side)
    tables = some_tables(2, bits) if kind == "learned" else None
    model = AdaptiveModel(bits) if tables is None else tables.model
    data = b"".join(compress(ids, bits, model, 7, side))
    digest = b"" if tables is None else tables.digest
    whole = read_ids(digest + data, shape, bits, None if tables is None else tables.data)
    assert whole == ids.reshape(-1).tolist()

    def read(position: int, length: int) -> bytes:
        return data[position : position + length]

    index = read_index(read, len(data), shape, bits, 7)
    rng = np.random.default_rng(side)
    for _ in range(12):
        images = rng.permutation(3)[: rng.integers(1, 4)].tolist()
        (top, bottom), (left, right) = (
            sorted(rng.choice(n + 1, 2, replace=False).tolist()) for n in shape[2:]
        )
        groups = int(rng.integers(1, 3))
        rows, columns = slice(top, bottom), slice(left, right)
        part = expand(read, index, bits, model, images, rows, columns, groups)
        assert np.array_equal(part, ids[images, :groups, top:bottom, left:right])


def test_auto_takes_the_smallest() -> None:
    smooth = smooth_ids((1, 2, 24, 24), 4)
    noise = np.random.default_rng(0).integers(0, 16, (1, 2, 24, 24)).astype(np.uint8)
    nonsense = some_tables(2, 4)
    for ids, tables, want in (
        (smooth, None, ADAPTIVE),
        (noise, None, PACKED),
        (smooth, nonsense, ADAPTIVE),  # tables that make it larger than packed are left aside
        (smooth, some_tables(1, 8), ADAPTIVE),  # as are those for ids of another shape
    ):
        header = header_for(ids, 4)
        data = encode(header, ids, "auto", tables)
        found, back = decode(data, tables=tables)
        assert found.coding == want and np.array_equal(back, ids)
        sizes = [len(encode(header, ids, way, tables)) for way in ("packed", "entropy")]
        assert len(data) == min(*sizes, len(encode(header, ids, "entropy")))
    with pytest.raises(WetokError, match="coding='best' must be one of auto, packed, entropy"):
        encode(header, noise, "best")  # type: ignore[arg-type]


def test_learning_finds_what_there_is() -> None:
    """Bits that copy their left neighbour's, and a second group that copies the first."""
    from wetok.codec.learn import learn

    rng = np.random.default_rng(0)
    samples = []
    for _ in range(6):
        rows = np.repeat(rng.integers(0, 4, (1, 1, 24, 1)), 24, 3)[0]
        samples.append(np.concatenate([rows, rows]).astype(np.uint8))
    tables = learn(samples, 2, hidden=8, levels=1, steps=200)
    ids = np.stack(samples)
    header = header_for(ids, 2)
    data = encode(header, ids, "entropy", tables)
    assert len(payload_of(data)) < 0.5 * header.payload_size
    assert np.array_equal(decode(data, tables=tables)[1], ids)
    with pytest.raises(WetokError, match="samples"):
        learn([], 2)
    with pytest.raises(WetokError, match="steps=19"):
        learn(samples, 2, steps=19)
    few = samples[:1]
    one, again = (learn(few, 2, hidden=2, levels=0, steps=20, seed=3) for _ in range(2))
    assert one.data == again.data


# --- tables -------------------------------------------------------------------------------------


def test_tables_survive_and_are_checked(tmp_path: Path) -> None:
    from safetensors.numpy import load, save

    tables = some_tables(2, 3)
    (tmp_path / "coding.safetensors").write_bytes(tables.data)
    again = CodingTables.read(tmp_path / "coding.safetensors")
    assert again == tables and again.digest == tables.digest and again.fits(2, 3)
    assert not again.fits(2, 4) and not again.fits(3, 3)
    for one, other in zip(tables.nets, again.nets, strict=True):
        for a, b in zip(one, other, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    def changed(**change: np.ndarray | None) -> bytes:
        tensors = load(tables.data)
        for name, value in change.items():
            tensors.pop(name)
            if value is not None:
                tensors[name] = value
        return save(tensors)

    huge = np.full((3, 3), 100, np.int32)
    for data, said in (
        (b"nonsense", "not coding tables"),
        (b"", "not coding tables"),
        (tables.data[:-9], "not coding tables"),
        (save({"x": np.zeros(3, np.int8)}), "unknown tensor 'x'"),
        (changed(**{"0.1.bias": None}), "lacks tensors"),
        (changed(**{"1.3.first": np.zeros((3, 5), np.int8)}), r"1\.3\.first has shape \[3, 5\]"),
        (changed(**{"0.0.within": huge.astype(np.int8)}), "on and above its diagonal"),
        (changed(**{"0.1.bias": np.full(3, 2**24, np.int32)}), "sums reach 2.24"),
        (changed(**{"0.1.bias": np.full(3, 1.0)}), "unknown tensor '0.1.bias' of type F64"),
    ):
        with pytest.raises(WetokError, match=said) as caught:
            CodingTables(data, "here")
        assert str(caught.value).startswith("here: ") and "\n" not in str(caught.value)
    with pytest.raises(WetokError, match="No such file"):
        CodingTables.read(tmp_path / "absent")


def test_other_tables_are_refused() -> None:
    ids = smooth_ids((1, 2, 6, 6), 3)
    tables, other = some_tables(2, 3), some_tables(2, 3, seed=1)
    data = encode(header_for(ids, 3), ids, "entropy", tables)
    with pytest.raises(WetokError, match=f"tables {tables.digest.hex()} of model 'm', and none"):
        decode(data)
    with pytest.raises(WetokError, match=f"those given are {other.digest.hex()}"):
        decode(data, tables=other)


def test_the_largest_weights_stay_exact() -> None:
    """At the limit of the check, float32 equals integer arithmetic."""
    bits, count = 1, 12
    phase = phases(1)[1]
    n = inputs_of(0, bits, phase)
    hidden = (2**24 - 1) // (127 * HIDDEN)
    full = np.full((hidden, n), 127, np.float32)
    net = Net(
        full,
        np.full(hidden, 2**24 - 1 - 127 * n, np.float32),
        np.full((bits, hidden), 127, np.float32),
        np.full((bits, n), 127, np.float32),
        np.full(bits, 2**24 - 1 - 127 * n, np.float32),
        np.zeros((bits, bits), np.float32),
    )
    empty = [inputs_of(0, bits, one) for one in phases(1)]
    nets = [
        net
        if size == n
        else Net(*(np.zeros(s, np.float32) for s in ((0, 0), 0, (1, 0), (1, 0), 1, (1, 1))))
        for size in empty
    ]
    tables = CodingTables.of_nets([nets])
    model = CodingTables(tables.data).model
    from wetok.codec.context import Grid

    grid = Grid(1, (count, count), 1)
    grid.signs[:] = 1
    logits = model._logits(grid, 0, 1, phase)
    want = 127 * n + 2**24 - 1 - 127 * n + (hidden * 127 * HIDDEN >> 5)
    assert (logits == want).all()
    more = net._replace(bias=net.bias + 1)
    with pytest.raises(WetokError, match="sums reach"):
        CodingTables(CodingTables.of_nets([[nets[0], more, *nets[2:]]]).data)


# --- several sizes, margins, metadata, random access --------------------------------------------


def test_several_sizes_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wetok"
    tables = some_tables(2, 3)
    parts = []
    for number, shape in enumerate(((1, 2, 6, 6), (3, 2, 1, 9), (2, 2, 140, 3))):
        ids = smooth_ids(shape, 3, number)
        margins = np.random.default_rng(number).integers(
            0, 256, (shape[0], 6, *shape[2:]), np.uint8
        )
        header = replace(header_for(ids, 3), grey=number == 1)
        parts.append(Part(header, ids, margins if number else None))
    told = {"source": "ä.jpg", "n": [1, 2.5, None]}
    for coding in ("packed", "entropy"):
        write_parts(path, parts, coding, tables, told)
        for verify in (True, False):
            with opened(path, verify=verify) as file:
                assert file.metadata == told
                for number, part in enumerate(parts):
                    header = file.headers[number]
                    assert replace(header, coding=0, tables="") == part.header
                    assert np.array_equal(file.read(number, tables), part.ids)
                    margins = file.margins(number)
                    assert (margins is None) == (part.margins is None)
                    assert part.margins is None or np.array_equal(margins, part.margins)
                some = file.read(2, tables, images=[1, 1, 0], rows=(100, 135), groups=1)
                assert np.array_equal(some, parts[2].ids[[1, 1, 0], :1, 100:135])
        with pytest.raises(WetokError, match="3 sizes: read them with Tokens.load_all"):
            decode(path.read_bytes(), tables=tables)
    with opened(path) as file:
        for change, said in (
            ({"images": [3]}, "images="),
            ({"images": [-1]}, "images="),
            ({"rows": (2, 2)}, "rows="),
            ({"columns": (0, 4)}, "columns="),
            ({"groups": 3}, "groups=3"),
        ):
            with pytest.raises(WetokError, match=said):
                file.read(2, tables, **change)


def test_parts_are_checked_when_written(tmp_path: Path) -> None:
    ids = smooth_ids((1, 2, 6, 6), 3)
    part = Part(header_for(ids, 3), ids)
    other = Part(replace(part.header, name="other"), ids)
    wrong = Part(part.header, ids, np.zeros((1, 2, 6, 6), np.uint8))
    for parts, metadata, said in (
        ([], None, "at least one image"),
        ([part, other], None, "all by one model"),
        ([wrong], None, r"margins must be uint8 \[1, 6, 6, 6\]"),
        ([part], {"x": math.nan}, "JSON"),
        ([part], {"x": object()}, "JSON"),
        ([part], {"x": "y" * (1 << 20)}, "at most 1048576"),
    ):
        with pytest.raises(WetokError, match=said):
            write_parts(tmp_path / "a.wetok", parts, metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_a_block_is_read_and_trusted_without_the_rest(tmp_path: Path) -> None:
    ids = smooth_ids((1, 2, 200, 300), 3)
    path = tmp_path / "a.wetok"
    write_parts(path, [Part(header_for(ids, 3), ids)], "entropy")
    data = bytearray(path.read_bytes())
    data[-30] ^= 1  # in the last block
    path.write_bytes(data)
    with pytest.raises(WetokError, match="altered"), opened(path):
        pass
    with opened(path, verify=False) as file:
        part = file.read(rows=(10, 120), columns=(130, 250))
        assert np.array_equal(part, ids[:, :, 10:120, 130:250])
        with pytest.raises(WetokError, match="checksum of a block"):
            file.read(rows=(150, 151), columns=(299, 300))
    data[-30] ^= 1
    data[data.index(b"IMGS") + 8 + 21 + 5] ^= 1  # in the index
    path.write_bytes(data)
    with pytest.raises(WetokError, match="index's checksum"), opened(path, verify=False):
        pass


def test_lies_of_an_index() -> None:
    """With right checksums, and with little memory."""
    ids = smooth_ids((1, 2, 9, 9), 3)
    payload = payload_of(encode(header_for(ids, 3), ids, "entropy"))
    assert payload[:3] == b"\x80\0\1"
    lengths, segments = list(payload[3:5]), payload[5:]

    def file(
        index: bytes, rest: bytes = segments, sizes: tuple[int, ...] = (1, 9, 9, 9, 9)
    ) -> bytes:
        model = bytes(8) + b"\2\0\3\1m"
        images = b"\2" + np.array(sizes, "<u4").tobytes() + index + rest
        return b"".join(written([(b"MODL", [model]), (b"IMGS", [images])]))

    good = b"\x80\0\1" + bytes(lengths)
    assert np.array_equal(decode(file(good))[1], ids)
    big = 2**32 - 1
    tracemalloc.start()
    for data, said in (
        (file(b"\0\0\1" + bytes(lengths)), "blocks of side 0"),
        (file(b"\1\1\1" + bytes(lengths)), "blocks of side 257"),
        (file(b"\x80\0\0" + bytes(lengths)), "lengths of 0 bytes"),
        (file(b"\x80\0\5" + bytes(lengths)), "lengths of 5 bytes"),
        (file(b"\x80"), "lengths of|truncated"),
        (file(b"", b""), "truncated"),
        (file(b"\x80\0\4\xff\xff\xff\xff\xff\xff\xff\xff"), "tells of 8589934590 bytes"),
        (file(good, segments[:-1]), "tells of"),
        (file(good, segments + b"\0"), "tells of"),
        (file(b"\x80\0\1" + bytes([lengths[0] - 1, lengths[1] + 1])), "end too early|followed"),
        (file(good, sizes=(big, 9, 9, 9, 9)), "index of 4294967295 blocks takes"),
        (file(good, sizes=(1, big, big, big, big)), "blocks takes"),
        (file(good, sizes=(1, 128, 128, 128, 128)), "end too early"),
        (file(b"\0\1\1\0\0", b"", (1, 256, 256, 256, 256)), "fewer bytes of ids"),
        (file(b"\x80\0\1" + bytes(2 * 6), b"", (6, 128, 128, 128, 128)), "index of 6 blocks"),
    ):
        with pytest.raises(WetokError, match=said) as caught:
            decode(data)
        assert "\n" not in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


# --- the same bytes everywhere ------------------------------------------------------------------

SCRIPT = """
import hashlib, sys, numpy as np
sys.path.insert(0, sys.argv[1])
from tests.codec.test_entropy_coding import header_for, smooth_ids, some_tables
from wetok.codec.file import encode
ids = smooth_ids((1, 4, 140, 40), 8)
tables = some_tables(4, 8, 2, 48)
for way, given in (("entropy", tables), ("entropy", None), ("packed", None)):
    print(hashlib.sha256(encode(header_for(ids, 8), ids, way, given)).hexdigest())
import wetok
tokens = wetok.load("tiny-48x").encode(sys.argv[1] + "/wetok/assets/photos/cat.jpg")
print(hashlib.sha256(tokens.to_bytes()).hexdigest())
"""


def test_files_are_the_same_whatever_the_thread_count(repo: Path) -> None:
    found = set()
    for threads, flags in (("1", {}), ("4", {"OPENBLAS_CORETYPE": "Prescott"})):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(repo)],
            env={**os.environ, **dict.fromkeys(names, threads), **flags},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1 and found.pop().count("\n") == 4
