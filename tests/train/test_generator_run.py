"""Generators trained from token shards: they learn, and a stopped run goes on to the bit."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.generate import shards
from wetok.cli import main
from wetok.config import ModelConfig, WetokError, validate
from wetok.data.tokens import TokenShards
from wetok.generate.folder import load_generator
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer
from wetok.train.generator import GeneratorRun
from wetok.train.generator_config import GeneratorTrainConfig
from wetok.train.signals import StopSignal
from wetok.train.state import checkpoints
from wetok.train.token_data import Classes, TokenStream

NAMES = ["ant", "bee", "cat"]


class Silent:
    def step(self, record: dict[str, Any]) -> None:
        pass

    def event(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = ModelConfig(bits=8, groups=2, channels=8, mults=(1, 1), blocks=1, patch=4)
    folder = tmp_path_factory.mktemp("models") / "small"
    Tokenizer(TokenizerNetwork(shape).eval(), "small").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    own = Tokenizer.from_pretrained(tokenizer)
    shards.write(folder / "train", own, 60, NAMES)
    shards.write(folder / "val", own, 12, NAMES, seed=1)
    shards.write(folder / "numbers", own, 12, [0, 1, 4])
    return folder


def recipe(tokens: Path, tokenizer: Path, **changes: Any) -> GeneratorTrainConfig:
    tree: dict[str, Any] = {
        "generator": {"width": 32, "depth": 1, "heads": 4, "dropout": 0.1},
        "tokens": {
            "train": str(tokens / "train"),
            "val": str(tokens / "val"),
            "batch": 6,
            "tokenizer": str(tokenizer),
        },
        "optimizer": {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.05},
        "run": {
            "steps": 6,
            "checkpoint_every": 3,
            "validate_every": 3,
            "sample_every": 100,
            "log_every": 2,
            "device": "cpu",
            "trackers": (),
        },
    }
    for key, value in changes.items():
        block, _, name = key.partition("__")
        tree[block][name] = value
    return validate(GeneratorTrainConfig, tree)


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_a_generator_learns(tmp_path: Path, tokens: Path, tokenizer: Path, kind: str) -> None:
    config = recipe(
        tokens, tokenizer, generator__kind=kind, run__steps=300, run__validate_every=300
    )
    run = GeneratorRun(config, tmp_path / "run", Silent())
    assert run.train()
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    (score,) = (line["validation"] for line in log if "validation" in line)
    # Nine ids in ten follow from the class; guessing costs 2 groups x ln 16 = 5.5 nats.
    assert score["score"] < 3.5 and score["bits"] == pytest.approx(score["score"] / math.log(2))
    first = next(line for line in log if "loss" in line)
    assert first["loss"] == pytest.approx(first["group_0"] + first["group_1"], rel=1e-4)
    generator, name = load_generator(tmp_path / "run/model")
    assert name == "run" and generator.config.class_names == tuple(NAMES)
    assert generator.config.fingerprint == run.shards.about.fingerprint
    assert (tmp_path / "run/samples/step-00000300.png").exists()


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, tokens: Path, tokenizer: Path, kind: str
) -> None:
    config = recipe(tokens, tokenizer, generator__kind=kind)
    GeneratorRun(config, tmp_path / "whole", Silent()).train()
    part = GeneratorRun(config, tmp_path / "part", Silent())
    step = part.watcher.step

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            part._signal.came = True
        step(record)

    part.watcher.step = stop  # type: ignore[method-assign]
    assert not part.train()
    torch.manual_seed(99)  # whatever happened meanwhile
    assert GeneratorRun(config, tmp_path / "part", Silent(), resume=True).train()
    one, other = (
        torch.load(checkpoints(tmp_path / name / "checkpoints")[-1] / "state.pt", weights_only=True)
        for name in ("whole", "part")
    )
    for block in ("network", "ema"):
        flat, again = (_flat(tree[block]) for tree in (one, other))
        assert flat.keys() == again.keys() and len(flat) > 10
        for name, value in flat.items():
            assert torch.equal(value, again[name]), f"{block} {name}"
    logs = []
    for name in ("whole", "part"):
        lines = [
            json.loads(one) for one in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        keep = ("step", "loss", "group_0", "gradient_norm", "validation")
        logs.append([{k: v for k, v in line.items() if k in keep} for line in lines])
    assert logs[0] == logs[1]


def _flat(tree: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    found: dict[str, torch.Tensor] = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        found |= _flat(value, f"{name}.{key}")
    return found


def test_signal_attribute_is_what_the_loop_reads() -> None:
    assert StopSignal().came is False


def test_a_stream_goes_on_and_is_shared(tokens: Path) -> None:
    data = TokenShards(tokens / "train")
    classes = Classes(data, "label")
    whole = TokenStream(data, classes, 12, seed=3)
    first, second = next(whole), next(whole)
    later = next(TokenStream(data, classes, 12, seed=3, start=12))
    assert torch.equal(second.ids, later.ids) and torch.equal(second.labels, later.labels)
    for rank in range(2):
        own = next(TokenStream(data, classes, 6, seed=3, rank=rank, world=2))
        assert torch.equal(own.ids, first.ids[rank::2])
    numbers = {
        record.key: NAMES.index(record.extras["label"])
        for record in map(data.__getitem__, range(60))
    }
    assert sorted(set(numbers.values())) == [0, 1, 2]
    assert first.ids.dtype == first.labels.dtype == torch.int64


def test_labels(tokens: Path) -> None:
    names, numbers = TokenShards(tokens / "train"), TokenShards(tokens / "numbers")
    assert Classes(names, "label").names == tuple(NAMES)
    assert Classes(names, None).count == 0 and Classes(names, None).number({"label": "ant"}) == 0
    assert Classes(numbers, "label").count == 5 and Classes(numbers, "label", 9).count == 9
    assert Classes(names, "label").number({"label": None}) == 3
    for column, count, message in (
        (
            "labels",
            None,
            r"column 'labels' is not in the shards \(passed through: 'label', 'empty'",
        ),
        ("empty", None, "all its cells are empty"),
        ("label", 3, r"label 4 must lie in \[0, 3\)"),
    ):
        with pytest.raises(WetokError, match=message):
            Classes(numbers, column, count)
    with pytest.raises(WetokError, match="label 'dog' is not in tokens.train"):
        Classes(names, "label").number({"label": "dog"})


def test_what_does_not_fit(tmp_path: Path, tokens: Path, tokenizer: Path) -> None:
    with pytest.raises(WetokError, match="give size"):
        recipe(tokens, tokenizer, generator__width=None)
    with pytest.raises(WetokError, match="sets width, depth, heads too"):
        recipe(tokens, tokenizer, generator__size="B")
    with pytest.raises(WetokError, match="run.accumulate=4 must divide tokens.batch=6"):
        recipe(tokens, tokenizer, run__accumulate=4)
    for name in ("activation_checkpointing", "channels_last"):
        with pytest.raises(WetokError, match="are for tokenizers; leave them out"):
            recipe(tokens, tokenizer, **{f"run__{name}": True})
    with pytest.raises(WetokError, match="tokens.train: "):
        GeneratorRun(recipe(tokens, tokenizer, tokens__train="nowhere"), tmp_path / "a", Silent())
    with pytest.raises(WetokError, match="holds no run to --resume"):
        GeneratorRun(recipe(tokens, tokenizer), tmp_path / "a", Silent(), resume=True)
    with pytest.raises(WetokError, match="tokens.tokenizer: .* did not make these tokens"):
        GeneratorRun(recipe(tokens, tokenizer, tokens__tokenizer="tiny-48x"), tmp_path, Silent())
    GeneratorRun(recipe(tokens, tokenizer, run__steps=1), tmp_path / "b", Silent()).train()
    with pytest.raises(WetokError, match="holds a run"):
        GeneratorRun(recipe(tokens, tokenizer), tmp_path / "b", Silent())
    with pytest.raises(WetokError, match="another generator: depth=1 there, 2 here"):
        other = recipe(tokens, tokenizer, generator__depth=2)
        GeneratorRun(other, tmp_path / "b", Silent(), resume=True)


def test_commands(
    tmp_path: Path, tokens: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train by the command line, then generate: a sheet, a folder, arrays, tokens."""
    path = tmp_path / "small.yaml"
    path.write_text(recipe(tokens, tokenizer, run__steps=4).model_dump_json(exclude_defaults=True))

    def wetok(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        told = capsys.readouterr()
        assert not ended.value.code, told.err
        return told.out

    told = wetok("train", str(path), "--dry-run")
    assert "autoregressive generator: 32 wide, 1 + 1 blocks" in told and "3 classes" in told
    out = tmp_path / "run"
    assert f"try: wetok generate {out}/model" in wetok("train", str(path), "-o", str(out), "-q")
    base = ["generate", str(out / "model"), "--tokenizer", str(tokenizer), "-n", "2"]
    wetok(*base, "-o", str(tmp_path / "sheet.png"))
    wetok(*base, "-o", str(tmp_path / "all.npz"), "--batch", "4", "--guidance", "2,1")
    arrays = np.load(tmp_path / "all.npz")
    assert arrays["arr_0"].shape == (6, 32, 32, 3) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [0, 0, 1, 1, 2, 2]
    wetok(*base, "-o", str(tmp_path / "one"), "--classes", "bee,2", "--guidance", "2,1")
    assert sorted(os.listdir(tmp_path / "one")) == [
        "bee-000000.png",
        "bee-000001.png",
        "cat-000002.png",
        "cat-000003.png",
    ]
    wetok(*base, "-o", str(tmp_path / "files"), "--format", "wetok", "--classes", "1")
    token_file = str(tmp_path / "files" / "bee-000000.wetok")
    wetok("decode", token_file, "-m", str(tokenizer), "-o", str(tmp_path / "back"))
    wetok(*base, "-o", str(tmp_path / "same"), "--classes", "1")
    assert (tmp_path / "back/bee-000000.png").stat().st_size
    from PIL import Image

    one, other = (
        np.asarray(Image.open(tmp_path / name / "bee-000000.png")) for name in ("back", "same")
    )
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "dog"], "no class 'dog'"),
        (["--classes", "3"], "must be in 0-2, 3 is not"),
        (["--temperature", "warm"], "--temperature 'warm' must be a number"),
        (["--guidance", "1,2,3"], "3 values for 2 groups"),
        (["--format", "jpg"], "must be png or wetok"),
        (["--tokenizer", "tiny-48x"], "has the fingerprint"),
        (["-o", "nowhere/x.npz"], "there is no folder 'nowhere'"),
    ],
)
def test_generate_is_told_in_one_line(
    tmp_path: Path,
    tokens: Path,
    tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = GeneratorRun(recipe(tokens, tokenizer, run__steps=1), tmp_path / "run", Silent())
    run.export(tmp_path / "model")
    with pytest.raises(SystemExit) as ended:
        main(["generate", "model", "--tokenizer", str(tokenizer), "-n", "1", *words])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and message in err and err.count("\n") == 1
