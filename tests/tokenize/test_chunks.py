"""A part in pieces gives what the whole part gives."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenize.job import SIDE, planned, write_pictures
from wetok.model.tokenizer import Tokenizer
from wetok.tokenize import chunks as module
from wetok.tokenize.chunks import Gathering, chunks, encode, largest_chunk, smallest_chunk
from wetok.tokenize.inputs import Inputs, Item, open_inputs
from wetok.tokenize.plan import Part, Plan
from wetok.tokenize.views import Preprocessing
from wetok.tokenize.work import PartWork, Result, decode


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("chunks") / "pictures"
    write_pictures(folder, 23, broken=4)
    return open_inputs([folder])


def equal(one: Result, other: Result) -> bool:
    alike = all(
        a.key == b.key and a.view == b.view and a.size == b.size and np.array_equal(a.ids, b.ids)
        for a, b in zip(one.records, other.records, strict=True)
    )
    return alike and one._replace(records=[]) == other._replace(records=[])


@pytest.mark.parametrize(
    ("batch", "views"), [(1, "center"), (1, "flip"), (5, "center"), (4, "ten-crop"), (6, "flip")]
)
def test_in_any_order_and_twice(
    inputs: Inputs, tokenizer: Tokenizer, batch: int, views: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = Preprocessing(SIDE, views)
    plan = planned(inputs, tokenizer, 23, batch=batch, preprocessing=preprocessing)
    part = plan.part(inputs, 0)
    outcomes = [decode(item, inputs.reader, preprocessing) for item in part.items]
    whole = PartWork(part, plan, tokenizer)
    for index, outcome in enumerate(outcomes):
        whole.add(index, outcome)

    monkeypatch.setattr(module, "IMAGES", 7)
    pieces = list(chunks(part, largest_chunk(plan)))
    assert len(pieces) > 2
    done = [
        encode(chunk, outcomes[chunk.start : chunk.start + len(chunk.items)], plan, tokenizer)
        for chunk in pieces
    ]
    # One is lost, and worked on again in the smallest pieces, together with some that are there.
    lost = pieces[1]
    wanted = range(lost.start, lost.start + len(lost.items))
    again = list(chunks(part, smallest_chunk(plan), [*wanted, 0]))
    some = [
        encode(chunk, outcomes[chunk.start : chunk.start + len(chunk.items)], plan, tokenizer)
        for chunk in again
    ]
    arrived = [*done[:1], *done[2:], *done[2:]]
    random.Random(batch).shuffle(arrived)
    gathering = Gathering(part, plan)
    counts = [gathering.add(one) for one in arrived]
    assert gathering.missing() == list(wanted) and not gathering.done
    counts += [gathering.add(one) for one in some]
    assert gathering.done and gathering.missing() == []
    assert tuple(map(sum, zip(*counts, strict=True))) == (23, 4)
    assert equal(gathering.result(), whole.result())


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 400),
    st.sampled_from(["center", "flip", "ten-crop"]),
    st.integers(1, 1500),
    st.sampled_from([16, 64, 256, 1024]),
)
def test_chunks_begin_where_batches_do(batch: int, views: Any, images: int, size: int) -> None:
    plan = object.__new__(Plan)
    object.__setattr__(plan, "batch", batch)
    object.__setattr__(plan, "preprocessing", Preprocessing(size, views))
    count = len(plan.preprocessing.names)
    least, length = smallest_chunk(plan), largest_chunk(plan)
    assert least * count % batch == 0 and length % least == 0
    assert all(n * count % batch for n in range(1, least)), "none smaller would do"
    pixels = 3 * size * size * count
    assert length == least or (length <= module.IMAGES and length * pixels <= module.BYTES)
    items = [Item(str(n), 0, ()) for n in range(images)]
    pieces = list(chunks(Part(3, items), length))
    assert [item for chunk in pieces for item in chunk.items] == items
    assert [chunk.start for chunk in pieces] == list(range(0, images, length))


def test_whole_images_go_one_by_one(inputs: Inputs, tokenizer: Tokenizer) -> None:
    plan = planned(inputs, tokenizer, preprocessing=Preprocessing(None))
    assert largest_chunk(plan) == smallest_chunk(plan) == 1
