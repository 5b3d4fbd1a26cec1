"""A whole job: ids are the facade's, resumes and verification, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tokenize.job import (
    failed,
    files,
    network,
    pixels,
    planned,
    png,
    run,
    write_pictures,
)
from wetok.config import WetokError
from wetok.data.tokens import TokenShards
from wetok.data.tokentars import read_webdataset
from wetok.evaluate.codes import CodeStatistics
from wetok.model.tokenizer import Tokenizer
from wetok.tokenize.inputs import Inputs, open_inputs
from wetok.tokenize.local import tokenize
from wetok.tokenize.output import Output, Receipt
from wetok.tokenize.plan import Plan
from wetok.tokenize.verify import verify
from wetok.tokenize.views import Preprocessing
from wetok.tokenize.work import PartWork, decode

COUNT = 23


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder, COUNT, broken=3)
    return folder


@pytest.fixture(scope="module")
def inputs(photos: Path) -> Inputs:
    return open_inputs([photos], labels="folder")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, inputs: Inputs, tokenizer: Tokenizer) -> Path:
    """A job that is done; not to be changed."""
    out = tmp_path_factory.mktemp("done") / "tokens"
    run(out, inputs, tokenizer)
    return out


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "copy"))


@pytest.mark.parametrize(
    "preprocessing",
    [
        *(Preprocessing(32), Preprocessing(20, "flip"), Preprocessing(16, "ten-crop")),
        Preprocessing(None, "flip"),
    ],
    ids=str,
)
@pytest.mark.parametrize("output", ["parquet", "webdataset"])
def test_ids_are_the_facades(
    tmp_path: Path, tokenizer: Tokenizer, preprocessing: Preprocessing, output: str
) -> None:
    for number in range(7):
        height, width = (32, 32) if preprocessing.size else (20 + number, 31 - number)
        data = png(number, height, width) if number != 4 else b"no"
        (tmp_path / f"{number}.png").write_bytes(data)
    inputs = open_inputs([tmp_path])
    options = {"preprocessing": preprocessing, "part_size": 3, "output": output}
    plan, _ = run(tmp_path / "out", inputs, tokenizer, **options)
    shards = sorted((tmp_path / "out").glob("tokens-*"))
    assert [shard.name for shard in shards] == [plan.shard(number) for number in range(3)]
    records = [
        record
        for shard in shards
        for record in (
            read_webdataset(shard, plan.about)
            if output == "webdataset"
            else map(TokenShards(shard).__getitem__, range(len(TokenShards(shard))))
        )
    ]
    wanted = [n for n in range(7) if n != 4]
    names = preprocessing.names
    assert [(r.key, r.view) for r in records] == [(f"{n}.png", v) for n in wanted for v in names]
    for number, own in zip(wanted, zip(*[iter(records)] * len(names), strict=True), strict=True):
        image = Image.open(tmp_path / f"{number}.png").convert("RGB")
        for record, view in zip(own, preprocessing(image), strict=True):
            tokens = tokenizer.encode(view)
            assert record.size == tokens.size == view.shape[:2]
            assert np.array_equal(record.ids, tokens.ids[0].numpy())
    assert list(failed(tmp_path / "out")) == ["4.png"]
    assert verify(Output(tmp_path / "out"), inputs).ok


def test_every_input_is_there_once(done: Path, inputs: Inputs) -> None:
    shards = TokenShards(done)
    keys = [shards[number].key for number in range(len(shards))]
    bad = failed(done)
    assert len(keys) == COUNT - 3 and len(bad) == 3
    assert sorted([*keys, *bad]) == sorted(item.key for item in inputs.items(0, COUNT))
    assert all(key in bad[key] for key in bad), "a reason names the file"
    assert {shards[n].extras["label"] for n in range(len(shards))} == {"a", "b"}


def test_the_summary_is_of_the_whole_set(done: Path, tokenizer: Tokenizer) -> None:
    told = json.loads((done / "summary.json").read_text())
    shards = TokenShards(done)
    statistics = CodeStatistics(groups=2, group_bits=4)
    for number in range(len(shards)):
        statistics.update(torch.from_numpy(shards[number].ids.astype(np.int64))[None])
    assert told["usage"] == statistics.usage()
    assert told["entropy_bits"] == pytest.approx(statistics.entropy())
    assert 1 < min(told["entropy_bits"]) < 4
    assert told["dead_bits"] == statistics.dead_bits()
    assert told["positions"] == statistics.positions == 20 * 64
    assert (told["done"], told["inputs"], told["records"], told["failed"]) == (True, 23, 20, 3)
    assert told["bytes"] == sum(path.stat().st_size for path in shards.paths)
    assert told["model"] == {"name": "toy", "fingerprint": tokenizer.fingerprint}


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(
    done: Path, inputs: Inputs, tokenizer: Tokenizer, tmp_path: Path, workers: int
) -> None:
    run(tmp_path / "out", inputs, tokenizer, workers)
    assert files(tmp_path / "out") == files(done)


def test_a_job_that_is_ended_anywhere_goes_on(
    done: Path, inputs: Inputs, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    plan, output = planned(inputs, tokenizer), Output(tmp_path / "out")
    for most in (0, 3, 5, 12, 7, 1, 100):
        with output.locked():
            output.begin(plan)
            seen = []
            missing = output.missing(plan)
            tokenize(
                plan, inputs, tokenizer, output, missing,
                tell=seen.append, stop=lambda seen=seen, most=most: len(seen) > most,  # type: ignore[misc]
            )  # fmt: skip
            output.finish(plan)
        done_before = plan.parts - len(missing)
        assert plan.parts - len(output.missing(plan)) >= done_before + min(most // 5, len(missing))
    assert files(tmp_path / "out") == files(done)


def test_committing_twice_changes_nothing(copy: Path, inputs: Inputs, tokenizer: Tokenizer) -> None:
    """As two workers do, of which one was taken for dead; an interface for other engines."""
    output = Output(copy)
    plan, before = output.plan(), files(copy)
    part = plan.part(inputs, 1)
    work = PartWork(part, plan, tokenizer)
    for index in (4, 0, 2, 0, 3, 1):  # in any order, and one of them twice
        work.add(index, decode(part.items[index], inputs.reader, plan.preprocessing))
    assert work.done
    output.commit(plan, work.result(), inputs.schema)
    assert files(copy) == before
    broken = work.result()._replace(records=work.result().records[1:])
    with pytest.raises(WetokError, match="incomplete"):
        output.commit(plan, broken, inputs.schema)


@pytest.mark.parametrize("views", ["center", "flip"])
def test_batches_have_fixed_places(
    inputs: Inputs, tokenizer: Tokenizer, tmp_path: Path, views: Any
) -> None:
    """Ids of a batch are the network's of always the same batch, in whatever order images come."""
    options = {"batch": 4, "part_size": 9, "preprocessing": Preprocessing(32, views)}
    plan = planned(inputs, tokenizer, **options)
    results = []
    for seed in range(3):
        part = plan.part(inputs, 0)
        work = PartWork(part, plan, tokenizer)
        for index in np.random.default_rng(seed).permutation(9):
            work.add(index, decode(part.items[index], inputs.reader, plan.preprocessing))
        assert work.done and not work._waiting, "pixels are let go"
        results.append(work.result())
    for result in results[1:]:
        assert all(
            np.array_equal(a.ids, b.ids)
            for a, b in zip(result.records, results[0].records, strict=True)
        )
    single = planned(inputs, tokenizer, part_size=9, preprocessing=options["preprocessing"])
    work = PartWork(part, single, tokenizer)
    for index, item in enumerate(part.items):
        work.add(index, decode(item, inputs.reader, plan.preprocessing))
    for one, other in zip(work.result().records, results[0].records, strict=True):
        assert np.mean(one.ids != other.ids) < 0.01, "the same but for rounding"
    run(tmp_path / "out", inputs, tokenizer, 2, **options)
    assert verify(Output(tmp_path / "out"), inputs).ok


def test_what_has_changed_is_refused(
    copy: Path, photos: Path, inputs: Inputs, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def refuse(reason: str, now: Inputs = inputs, model: Tokenizer = tokenizer, **own: Any) -> None:
        before = files(copy)
        with pytest.raises(WetokError, match=reason) as told:
            Output(copy).begin(planned(now, model, **own))
        assert "\n" not in str(told.value) and "another folder" in str(told.value)
        assert files(copy) == before

    refuse("--size or --views has changed", preprocessing=Preprocessing(24))
    refuse(r"--shard-size has changed \(5 -> 6\)", part_size=6)
    refuse("--format has changed", output="webdataset")
    refuse("batch=2 has changed", batch=2)
    refuse("fingerprint='?.* has changed", model=Tokenizer(network(1), "toy"))
    changed = tmp_path / "changed"
    shutil.copytree(photos, changed)
    again = open_inputs([changed], labels="folder")
    Output(copy).begin(planned(again, tokenizer))  # moved, but the same
    (changed / "a" / "00002.png").write_bytes(png(2) + b"more")
    refuse("the size of a file", open_inputs([changed], labels="folder"))
    (changed / "a" / "00002.png").rename(changed / "a" / "00003.png")
    refuse("the list of inputs", open_inputs([changed], labels="folder"))
    (changed / "a" / "00003.png").unlink()
    refuse("begun with 23 inputs, and now there are 22", open_inputs([changed], labels="folder"))


Damage = Callable[[Path], object]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def receipt(out: Path, part: int) -> Path:
    return out / "_wetok" / "parts" / f"{part:05d}.json"


def shard(out: Path, part: int) -> Path:
    return out / f"tokens-{part:05d}.parquet"


def again_as(out: Path, part: int, other: int) -> None:
    """Shard `other` in place of `part`, with a receipt that fits."""
    tree = json.loads(receipt(out, other).read_text())
    tree |= {"part": part, "shard": shard(out, part).name}
    receipt(out, part).write_text(json.dumps(tree))
    shutil.copy(shard(out, other), shard(out, part))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "cut off": (lambda out: shard(out, 1).write_bytes(shard(out, 1).read_bytes()[:-9]), "bytes in"),
    "a bit": (lambda out: flip(shard(out, 2), 300), "was altered"),
    "gone": (lambda out: shard(out, 0).unlink(), "can't be read"),
    "no receipt": (lambda out: receipt(out, 3).unlink(), "part 3 is not done"),
    "bad receipt": (lambda out: receipt(out, 3).write_text("{"), "is damaged"),
    "twice": (lambda out: again_as(out, 2, 3), "2 is|keys of part|keys are not|there twice"),
    "other shard": (lambda out: shutil.copy(shard(out, 1), out / "more.parquet"), "no shard of"),
    "other failed": (lambda out: (out / "failed.jsonl").write_text(""), "failed.jsonl is not"),
    "no summary": (lambda out: (out / "summary.json").unlink(), "summary.json is missing"),
    "usage": (
        lambda out: edit(receipt(out, 1), lambda tree: tree["usage"].update(positions=1)),
        "codes counted are not",
    ),
    "a failure more": (
        lambda out: edit(
            receipt(out, 4),
            lambda tree: tree["failures"].append({"number": 0, "key": "x", "reason": "y"}),
        ),
        "part 4 has",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("with_source", [True, False])
def test_verification_finds(
    copy: Path, inputs: Inputs, tokenizer: Tokenizer, damage: tuple[Damage, str], with_source: bool
) -> None:
    import re

    own = inputs if with_source else None
    assert verify(Output(copy), own).ok
    damage[0](copy)
    found = verify(Output(copy), own)
    assert not found.ok and any(re.search(damage[1], problem) for problem in found.problems)


def test_verification_compares_with_the_source(copy: Path, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    (other / "a" / "00002.png").rename(other / "a" / "00001.png")
    found = verify(Output(copy), open_inputs([other]))
    assert any("the tokens lack 'a/00001.png'" in problem for problem in found.problems)
    assert any("unlike the source, 'a/00002.png'" in problem for problem in found.problems)
    (other / "b" / "00001.png").unlink()
    found = verify(Output(copy), open_inputs([other]))
    assert "the source has 22 images, the plan 23" in found.problems


def test_damage_is_mended_by_the_same_command(
    copy: Path, done: Path, inputs: Inputs, tokenizer: Tokenizer
) -> None:
    shard(copy, 0).unlink()
    shard(copy, 1).write_bytes(b"short")
    receipt(copy, 2).unlink()
    (copy / "failed.jsonl").unlink()
    (copy / ".wetok-0123456789ab.tmp").write_bytes(b"of a process that was killed")
    run(copy, inputs, tokenizer)
    assert files(copy) == files(done)


def test_a_full_disk_is_told_and_gone_on_from(
    done: Path,
    inputs: Inputs,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import errno

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(WetokError, match="can't be written: No space left on device"):
            run(tmp_path / "out", inputs, tokenizer, 1)
    run(tmp_path / "out", inputs, tokenizer, 2)
    assert files(tmp_path / "out") == files(done)


def test_a_folder_of_others_is_refused(
    inputs: Inputs, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokens-00000.parquet").write_bytes(b"another's")
    with pytest.raises(WetokError, match="is there, but no plan"):
        run(tmp_path, inputs, tokenizer)
    with pytest.raises(WetokError, match="no folder of wetok tokenize"):
        verify(Output(tmp_path / "none"))
    (tmp_path / "_wetok").mkdir(exist_ok=True)
    for text in ("{", "[]", '{"format": 99}', '{"format": 1}'):
        (tmp_path / "_wetok" / "plan.json").write_text(text)
        with pytest.raises(WetokError, match="plan.json (is damaged|has format 99)"):
            Output(tmp_path).plan()


def test_plans_and_receipts_come_back(done: Path, inputs: Inputs, tokenizer: Tokenizer) -> None:
    plan = planned(inputs, tokenizer)
    assert Plan.from_json(plan.to_json(), "x") == plan == Output(done).plan()
    one = Output(done).receipt(plan, 0)
    assert one is not None
    assert Receipt.from_json(one.to_json(), plan.about) == one
    assert [plan.size_of(number) for number in range(plan.parts)] == [5, 5, 5, 5, 3]
    assert pixels(0).shape == (32, 32, 3)
