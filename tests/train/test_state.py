"""Checkpoints: everything comes back to the bit, and a folder holds complete ones only."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.tiny import Recipe, batch, build
from wetok.config import WetokError
from wetok.train.state import TrainState, best_checkpoint, checkpoints
from wetok.train.step import train_step


def trained(
    recipe: Recipe, changes: dict[str, Any] | None = None, steps: int = 3, seed: int = 0
) -> TrainState:
    config = recipe(changes)
    state, objective = build(config, seed)
    for step in range(steps):
        train_step(state, objective, config, batch(step))
    state.samples, state.seconds, state.best = 2 * steps, 1.5, 0.25
    return state


def same(one: Any, other: Any) -> bool:
    """Whether two trees of dicts, lists and tensors are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_everything_comes_back_to_the_bit(recipe: Recipe, tmp_path: Path, precision: str) -> None:
    state = trained(recipe, {"run.precision": precision})
    torch.manual_seed(123)
    torch.rand(7)
    path = state.save(tmp_path, keep=2)
    assert path == tmp_path / "step-00000003"
    expected = state.tree()
    expected_draw = torch.rand(5)

    other = trained(recipe, {"run.precision": precision}, steps=1, seed=9)
    assert not same(other.tree(), expected)
    other.load(path)
    assert torch.equal(torch.rand(5), expected_draw), "the generator goes on where it was"
    torch.set_rng_state(expected["rng"])  # type: ignore[arg-type]
    assert same(other.tree(), expected)
    assert (other.step, other.samples, other.seconds, other.best) == (3, 6, 1.5, 0.25)

    # And both go on alike.
    config = recipe({"run.precision": precision})
    for one in (state, other):
        train_step(one, build(config)[1], config, batch(3))
    torch.set_rng_state(expected["rng"])  # type: ignore[arg-type]
    assert same(state.tree(), other.tree())


def test_the_layout_on_disk_does_not_change(recipe: Recipe, tmp_path: Path) -> None:
    """Runs under way are resumed by later versions."""
    path = trained(recipe).save(tmp_path, keep=1) / "state.pt"
    tree = torch.load(path, weights_only=True)
    assert tree.keys() == {
        *("network", "ema", "optimizer", "scaler", "rng"),
        *("step", "samples", "seconds", "best", "skipped", "skipped_in_a_row"),
        "decodes",
    }
    assert tree["ema"].keys() == {"average", "updates"}
    assert "encoder.down.0.block.0.conv1.weight" in tree["network"]
    assert tree["network"].keys() == tree["ema"]["average"].keys()


def test_the_last_ones_and_the_best_are_kept(recipe: Recipe, tmp_path: Path) -> None:
    state = trained(recipe)
    for step in range(1, 7):
        state.step = step
        state.save(tmp_path, keep=2, best=step in (1, 3))
        expected = [n for n in range(1, step + 1) if n > step - 2 or n == (3 if step >= 3 else 1)]
        assert [int(path.name[5:]) for path in checkpoints(tmp_path)] == expected
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000003"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.json",
        *(f"step-{step:08d}" for step in (3, 5, 6)),
    ]


def test_the_same_step_twice(recipe: Recipe, tmp_path: Path) -> None:
    state = trained(recipe)
    state.save(tmp_path, keep=1)
    state.samples = 99
    path = state.save(tmp_path, keep=1)
    assert checkpoints(tmp_path) == [path]
    other = trained(recipe, steps=0)
    other.load(path)
    assert other.samples == 99


def test_a_half_written_folder_is_never_picked_up(recipe: Recipe, tmp_path: Path) -> None:
    """What a kill or a power cut leaves: a folder without its file, or with a part of it."""
    state = trained(recipe)
    whole = state.save(tmp_path, keep=2)
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "step-00000009" / ".wetok-0123.tmp").write_bytes(b"half")
    (tmp_path / "best.json").write_text('{"step": 9}')
    assert checkpoints(tmp_path) == [whole]
    assert best_checkpoint(tmp_path) is None
    state.step += 1
    state.save(tmp_path, keep=2)
    assert not (tmp_path / "step-00000009").exists(), "cleared away by the next one"


@pytest.mark.parametrize("marked", ["", "null", "[1]", "{}", '{"step": "x"}', '{"step": null}'])
def test_a_damaged_mark_of_the_best_is_no_mark(tmp_path: Path, marked: str) -> None:
    (tmp_path / "best.json").write_text(marked)
    assert best_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
    ids=["OSError", "RuntimeError"],
)
def test_a_full_disk_leaves_the_older_ones(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    state = trained(recipe)
    older = state.save(tmp_path, keep=1)
    before = (older / "state.pt").read_bytes()

    def full(tree: object, path: Path) -> None:
        path.write_bytes(b"the first kilobytes")
        raise error

    monkeypatch.setattr(torch, "save", full)
    for step in (3, 4):  # over the older one, and beside it
        state.step = step
        with pytest.raises(WetokError, match="can't be written .*--resume") as caught:
            state.save(tmp_path, keep=1, best=True)
        assert "\n" not in str(caught.value)
        assert checkpoints(tmp_path) == [older]
        assert (older / "state.pt").read_bytes() == before
        assert [path.name for path in tmp_path.rglob("*")] == [older.name, "state.pt"]


def test_a_folder_that_can_not_be_written(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WetokError, match="can't be written"):
        trained(recipe, steps=0).save(tmp_path / "file" / "checkpoints", keep=1)


def test_a_damaged_file_ends_in_one_line(recipe: Recipe, tmp_path: Path) -> None:
    state = trained(recipe)
    path = state.save(tmp_path, keep=1)
    data = (path / "state.pt").read_bytes()
    torch.save(torch.zeros(3), tmp_path / "tensor")
    torch.save({"network": {}}, tmp_path / "other")
    torch.save({**state.tree(), "ema": {"average": 1, "updates": 2}}, tmp_path / "average")
    torch.save({**state.tree(), "rng": torch.zeros(3)}, tmp_path / "rng")
    wrong = [data[:-100], data[: len(data) // 2], data[:100], b"", b"junk" * 1000, b"\x80\x02."]
    flipped = bytearray(data)
    flipped[data.index(state.network.encoder.conv_in.weight.detach().numpy().tobytes())] ^= 1
    wrong.append(bytes(flipped))
    wrong += [(tmp_path / name).read_bytes() for name in ("tensor", "other", "average", "rng")]
    for damaged in wrong:
        (path / "state.pt").write_bytes(damaged)
        with pytest.raises(WetokError, match="damaged, or not a checkpoint of this run") as caught:
            trained(recipe, steps=0).load(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_in_a_checkpoint_is_executed(recipe: Recipe, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    path = trained(recipe).save(tmp_path, keep=1)
    torch.save({"network": Trap()}, path / "state.pt")
    with pytest.raises(WetokError):
        trained(recipe, steps=0).load(path)
    assert not (tmp_path / "sprung").exists()


def test_another_networks_checkpoint_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    path = trained(recipe).save(tmp_path, keep=1)
    with pytest.raises(WetokError, match="size mismatch"):
        trained(recipe, {"model.bits": 12}, steps=0).load(path)


@pytest.mark.parametrize(("before", "after"), [("bf16", "fp16"), ("fp16", "fp32")])
def test_the_precision_may_change_on_the_way(
    recipe: Recipe, tmp_path: Path, before: str, after: str
) -> None:
    path = trained(recipe, {"run.precision": before}).save(tmp_path, keep=1)
    config = recipe({"run.precision": after})
    state, objective = build(config)
    state.load(path)
    train_step(state, objective, config, batch(3))
    assert state.step == 4
