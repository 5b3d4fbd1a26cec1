"""Settings: what is valid, what a mistake is told, recipes, overrides, phases."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wetok.config import (
    ModelConfig,
    TrainConfig,
    WetokError,
    assign,
    load_train_config,
    merge,
    near,
    read_yaml,
    validate,
)
from wetok.presets import PRESETS

MODEL = {"bits": 32, "groups": 4, "channels": 32, "mults": [1, 2, 2], "blocks": 1}
RECIPE: dict[str, Any] = {
    "model": MODEL,
    "data": {"train": "photos", "crop": 64},
    "run": {"steps": 100},
}

KEYS = st.text("abcd", min_size=1, max_size=2)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3))
# Blocks are never empty: whether an empty one replaces a value is nobody's concern.
BLOCKS = st.recursive(
    st.dictionaries(KEYS, LEAVES, min_size=1, max_size=3),
    lambda inner: st.dictionaries(KEYS, st.one_of(LEAVES, inner), min_size=1, max_size=3),
    max_leaves=8,
)
TREES = st.one_of(st.just({}), BLOCKS)


def recipe(**change: Any) -> dict[str, Any]:
    """RECIPE with dotted changes, `data__crop=32` for data.crop."""
    tree = copy.deepcopy(RECIPE)
    for key, value in change.items():
        assign(tree, key.replace("__", "."), value)
    return tree


def write(folder: Path, name: str, tree: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


def told(call: Any, *arguments: Any) -> str:
    with pytest.raises(WetokError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# One block


def test_derived_numbers_of_a_model():
    config = validate(ModelConfig, MODEL | {"patch": 2})
    assert (config.group_bits, config.factor, config.bpp, config.ratio) == (8, 8, 0.5, 48)


@given(
    group_bits=st.integers(1, 62),
    groups=st.integers(1, 8),
    levels=st.integers(1, 6),
    patch=st.integers(1, 4),
)
def test_derived_numbers_hold_together(group_bits, groups, levels, patch):
    bits = group_bits * groups
    config = ModelConfig(
        bits=bits, groups=groups, channels=8, mults=(1,) * levels, blocks=1, patch=patch
    )
    assert config.group_bits == group_bits
    pixels = config.factor**2
    assert pixels == patch**2 * 4 ** (levels - 1)
    assert config.bpp * pixels == pytest.approx(bits)
    assert config.ratio * bits == pytest.approx(24 * pixels)


@pytest.mark.parametrize("name", PRESETS)
def test_a_model_survives_its_own_dump(name):
    assert validate(ModelConfig, PRESETS[name].model_dump(mode="json")) == PRESETS[name]


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        PRESETS["tiny-48x"].bits = 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "groups=3 must divide bits=32"),
        ({"groups": 0}, "setting groups=0: "),
        ({"bits": 63, "groups": 1}, "bits/groups=63 must be at most 62"),
        ({"mults": [1, 0]}, "mults=(1, 0) must be positive"),
        ({"mults": []}, "setting mults=[]: "),
        ({"mults": [1, "two"]}, "setting mults.1='two': "),
        ({"decoder_mults": [1, 2]}, "decoder_mults=(1, 2) must have as many levels as mults="),
        ({"decoder_mults": [1, -1, 2]}, "decoder_mults=(1, -1, 2) must be positive"),
        ({"channels": 4}, "setting channels=4: "),
        ({"patch": 0}, "setting patch=0: "),
        ({"chanels": 4}, "unknown setting 'chanels'; did you mean 'channels'"),
    ],
)
def test_a_wrong_model_is_told_in_one_line(change, message):
    assert told(validate, ModelConfig, MODEL | change).startswith(message)


@pytest.mark.parametrize("key", MODEL)
def test_a_missing_setting_is_named(key):
    rest = {name: value for name, value in MODEL.items() if name != key}
    assert told(validate, ModelConfig, rest).startswith(f"setting '{key}' is missing")


# A whole run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": {}}, "unknown setting 'optimiser'; did you mean 'optimizer'?"),
        ({"data__corp": 8}, "unknown setting 'data.corp'; did you mean 'crop'"),
        (
            {"loss__zzzz": 8},
            "unknown setting 'loss.zzzz'; known: codebook_weight, commitment_weight",
        ),
        ({"model__groups": 5}, "model: groups=5 must divide bits=32"),
        ({"data": "photos"}, "setting data='photos': must be a block of settings"),
        ({"data__crop": 30}, "data.crop=30 must be a multiple of the model's factor 4"),
        ({"run__precision": "bf8"}, "setting run.precision='bf8': "),
        ({"optimizer": {"lr": float("nan")}}, "setting optimizer.lr=nan: "),
        ({"loss": {"entropy_weight": float("inf")}}, "setting loss.entropy_weight=inf: "),
    ],
)
def test_a_wrong_run_is_told_in_one_line(change, message):
    assert told(validate, TrainConfig, recipe(**change)).startswith(message)


def test_several_mistakes_are_counted():
    tree = recipe(model__groups="x", run__steps=0)
    assert told(validate, TrainConfig, tree).endswith("(and 1 more)")


def test_a_mistyped_key_is_told_rather_than_the_key_it_leaves_missing():
    tree = recipe(phases=[{"untill": 100}])
    message = "unknown setting 'phases.0.untill'; did you mean 'until'?"
    assert told(validate, TrainConfig, tree).startswith(message)


# Phases


def test_phases_change_settings_from_their_step_on():
    tree = recipe(
        phases=[
            {"until": 10},
            {"until": 60, "set": {"data.crop": 128, "loss.perceptual_weight": 0.5}},
            {"until": 100, "set": {"optimizer.lr": 1e-5}},
        ]
    )
    config = validate(TrainConfig, tree)
    seen = {step: config.at(step) for step in (0, 9, 10, 59, 60, 99, 1000)}
    assert [c.data.crop for c in seen.values()] == [64, 64, 128, 128, 64, 64, 64]
    assert [c.loss.perceptual_weight for c in seen.values()] == [1, 1, 0.5, 0.5, 1, 1, 1]
    assert [c.optimizer.lr for c in seen.values()] == [1e-4] * 4 + [1e-5] * 3
    assert all(c.model == config.model and c.run == config.run for c in seen.values())


def test_without_phases_the_settings_are_the_runs():
    config = validate(TrainConfig, recipe())
    assert config.at(0) == config.at(99) == config


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{"until": 60}, {"until": 60}], "phases must end at rising steps, not [60, 60]"),
        ([{"until": 70}, {"until": 60}], "phases must end at rising steps, not [70, 60]"),
        ([{"until": 60}], "the last phase ends at step 60, before run.steps=100"),
        ([{"until": 100, "set": {"model.bits": 8}}], "phases.0.set: a phase may set data.*"),
        ([{"until": 100, "set": {"run.steps": 8}}], "phases.0.set: a phase may set data.*"),
        ([{"until": 100, "set": {"data.crop": 30}}], "data.crop=30 must be a multiple"),
        ([{"until": 100, "set": {"data.corp": 32}}], "unknown setting 'data.corp'"),
        ([{"until": 100, "set": {"loss.entropy": "all"}}], "setting loss.entropy='all': "),
        ([{"until": 0}], "setting phases.0.until=0: "),
    ],
)
def test_wrong_phases_are_told_in_one_line(phases, message):
    assert message in told(validate, TrainConfig, recipe(phases=phases))


# Files


def test_a_recipe_extends_another_beside_it_or_elsewhere(tmp_path):
    write(tmp_path, "base/grand.yaml", recipe(optimizer={"lr": 1.0, "warmup": 7}))
    write(tmp_path, "base/parent.yaml", {"extends": "grand.yaml", "optimizer": {"lr": 2.0}})
    child = write(
        tmp_path,
        "child.yaml",
        {"extends": "base/parent.yaml", "model": {"mults": [1, 2]}, "data": {"crop": 128}},
    )
    config = load_train_config(child)
    assert (config.optimizer.lr, config.optimizer.warmup) == (2.0, 7)
    assert (config.data.train, config.data.crop) == ("photos", 128)
    assert config.model.mults == (1, 2) and config.model.bits == 32  # a list is replaced


@pytest.mark.parametrize("length", [1, 2, 4])
def test_recipes_that_extend_in_a_circle_end_in_one_line(tmp_path, length):
    for index in range(length):
        write(tmp_path, f"{index}.yaml", {"extends": f"{(index + 1) % length}.yaml"})
    message = told(read_yaml, tmp_path / "0.yaml")
    assert "extends itself through" in message
    assert all(f"{index}.yaml" in message for index in range(length))


def test_a_chain_may_meet_the_same_file_name_in_another_folder(tmp_path):
    write(tmp_path, "a/recipe.yaml", {"x": 1, "y": 1})
    write(tmp_path, "recipe.yaml", {"extends": "a/recipe.yaml", "y": 2})
    assert read_yaml(tmp_path / "recipe.yaml") == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a recipe is a mapping of settings, not NoneType"),
        ("- 1\n", "a recipe is a mapping of settings, not list"),
        ("a: [1\n", "can't be read as YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "can't be read as YAML"),
        ("extends: none.yaml\n", "none.yaml: no such recipe"),
        (b"\xff\xfe\x00", "can't be read as YAML"),
    ],
)
def test_files_that_are_no_recipes_end_in_one_line(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = told(load_train_config, path)
    assert message in found and str(tmp_path) in found


def test_a_folder_or_an_absent_file_ends_in_one_line(tmp_path):
    assert "can't be read" in told(load_train_config, tmp_path)
    assert "no such recipe" in told(load_train_config, tmp_path / "absent.yaml")


@settings(max_examples=100)
@given(base=TREES, change=TREES)
def test_merge_puts_the_change_on_top(base, change):
    before = copy.deepcopy((base, change))
    merged = merge(base, change)
    assert (base, change) == before
    assert merge(base, {}) == base and merge({}, change) == change
    assert merge(merged, change) == merged

    def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
        if not isinstance(tree, dict):
            return {path: tree}
        return {k: v for key in tree for k, v in leaves(tree[key], (*path, key)).items()}

    # Every leaf of the change is there; of the base, those that it neither replaced nor covered.
    changed, kept = leaves(change), leaves(base)
    covered = {p for p in kept for q in changed if p[: len(q)] == q or q[: len(p)] == p}
    expected = changed | {p: v for p, v in kept.items() if p not in covered}
    assert leaves(merged) == expected


@given(tree=TREES, path=st.lists(KEYS, min_size=1, max_size=3), value=LEAVES)
def test_assign_sets_one_key_and_no_other(tree, path, value):
    before = copy.deepcopy(tree)
    blocked = False
    for depth in range(1, len(path)):
        node: Any = before
        for part in path[:depth]:
            node = node.get(part, {}) if isinstance(node, dict) else None
        blocked |= not isinstance(node, dict)
    if blocked:
        assert "is a value, not a block of settings" in told(assign, tree, ".".join(path), value)
        return
    assign(tree, ".".join(path), value)
    nested: Any = value
    for part in reversed(path):
        nested = {part: nested}
    node = tree
    for part in path:
        node = node[part]
    assert node == value and type(node) is type(value)
    if not isinstance(before.get(path[0]), dict) or len(path) == 1:
        assert tree == before | nested
    else:
        assert tree == merge(before, nested)


# Overrides


@pytest.mark.parametrize(
    ("override", "block", "key", "value"),
    [
        ("data.crop=32", "data", "crop", 32),
        (" data.crop = 32", "data", "crop", 32),
        ("optimizer.lr=1e-3", "optimizer", "lr", 1e-3),
        ("optimizer.lr=0.5", "optimizer", "lr", 0.5),
        ("data.flip=no", "data", "flip", False),
        ("data.val=", "data", "val", None),
        ("data.val=null", "data", "val", None),
        ("data.train=a=b/c", "data", "train", "a=b/c"),
        ("data.train='007'", "data", "train", "007"),
        ("optimizer.betas=[0.1, 0.2]", "optimizer", "betas", (0.1, 0.2)),
        ("model.mults=[1,1,2]", "model", "mults", (1, 1, 2)),
        ("run.precision=bf16", "run", "precision", "bf16"),
    ],
)
def test_overrides_are_yaml_values(tmp_path, override, block, key, value):
    config = load_train_config(write(tmp_path, "recipe.yaml", recipe()), [override])
    found = getattr(getattr(config, block), key)
    assert found == value and type(found) is type(value)


def test_later_overrides_win_and_blocks_can_be_given_whole(tmp_path):
    path = write(tmp_path, "recipe.yaml", recipe())
    config = load_train_config(path, ["data.crop=32", "data.crop=96", "loss={entropy: grouped}"])
    assert (config.data.crop, config.loss.entropy) == (96, "grouped")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.crop", "override 'data.crop' must look like key=value"),
        ("=32", "override '=32' must look like key=value"),
        ("data.crop=[1", "override 'data.crop=[1': '[1' is not a YAML value"),
        ("data.corp=32", "unknown setting 'data.corp'; did you mean 'crop'"),
        ("dta.crop=32", "unknown setting 'dta'; did you mean 'data'?"),
        ("data.crop.x=32", "setting 'data.crop.x': 'crop' is a value, not a block"),
        ("data.crop=large", "setting data.crop='large': "),
        ("model=general", "no preset is called 'general'; did you mean"),
    ],
)
def test_wrong_overrides_are_told_in_one_line(tmp_path, override, message):
    path = write(tmp_path, "recipe.yaml", recipe())
    assert told(load_train_config, path, [override]).startswith(message)


# A model by its name


def test_a_model_may_be_a_presets_name_or_a_change_of_it(tmp_path):
    tiny = PRESETS["tiny-48x"]
    named = write(tmp_path, "named.yaml", recipe(model="tiny-48x"))
    assert load_train_config(named).model == tiny
    halved = tiny.model_copy(update={"bits": 16, "groups": 2})
    changes = ["model.bits=16", "model.groups=2"]
    assert load_train_config(named, changes).model == halved
    assert load_train_config(named, ["model=general-48x"]).model == PRESETS["general-48x"]
    block = {"preset": "tiny-48x", "bits": 16, "groups": 2}
    path = write(tmp_path, "block.yaml", recipe(model=block))
    assert load_train_config(path).model == halved
    child = write(tmp_path, "child.yaml", {"extends": "block.yaml", "model": {"groups": 4}})
    assert load_train_config(child).model == halved.model_copy(update={"groups": 4})


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("tiny-49x", [], "no preset is called 'tiny-49x'; did you mean 'tiny-48x'"),
        ({"preset": "tinny"}, [], "no preset is called 'tinny'"),
        ("tiny-48x", ["model.bit=3"], "unknown setting 'model.bit'; did you mean 'bits'"),
        ([1], [], "setting model=[1]: must be a block of settings"),
        (None, [], "setting model=None: must be a block of settings"),
    ],
)
def test_a_wrong_model_name_gets_the_near_ones(tmp_path, model, changes, message):
    path = write(tmp_path, "recipe.yaml", recipe(model=model))
    assert told(load_train_config, path, changes).startswith(message)


def test_a_recipe_without_a_model_says_what_is_missing(tmp_path):
    tree = {key: value for key, value in RECIPE.items() if key != "model"}
    path = write(tmp_path, "recipe.yaml", tree)
    assert told(load_train_config, path).startswith("setting 'model' is missing")
    assert told(load_train_config, path, ["model.bits=3"]).startswith("setting 'model.groups' is")


# Near names


@given(name=st.sampled_from(sorted(PRESETS)), cut=st.integers(0, 20))
def test_a_name_with_one_letter_lost_is_found(name, cut):
    cut %= len(name)
    assert f"'{name}'" in near(name[:cut] + name[cut + 1 :], list(PRESETS))


def test_a_strange_name_gets_the_whole_list():
    assert near("qqq", ["two", "one"]) == "; known: one, two"
