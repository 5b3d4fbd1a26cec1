"""Published generators: their layout read back, the numbers those of the code that wrote it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wetok.cli import main
from wetok.config import WetokError
from wetok.generate.config import sized
from wetok.generate.folder import build, load_generator
from wetok.released.generator import is_generator, read_generator

WIDTH, HEADS, GROUPS, CODES, CLASSES, GRID = 32, 2, 3, 16, 5, (4, 4)
HIDDEN = 256


def layout(groups: int = GROUPS, seed: int = 0) -> dict[str, Tensor]:
    """A `state_dict` as the released training code would write it, small."""
    torch.manual_seed(seed)
    names = ["pre_emb", "post_emb"] if groups == 2 else [f"{k}_emb" for k in range(groups)]
    state = {f"{name}.weight": torch.randn(CODES, WIDTH) for name in names}
    state["class_emb.embedding_table.weight"] = torch.randn(CLASSES + 1, WIDTH)
    for blocks, count in (("spatial_blocks", 2), ("factorized_blocks", 1)):
        for number in range(count):
            prefix = f"{blocks}.{number}."
            state |= {
                f"{prefix}attention.wqkv.weight": torch.randn(3 * WIDTH, WIDTH) * 0.3,
                f"{prefix}attention.wo.weight": torch.randn(WIDTH, WIDTH) * 0.3,
                f"{prefix}feed_forward.w1.weight": torch.randn(HIDDEN, WIDTH) * 0.3,
                f"{prefix}feed_forward.w3.weight": torch.randn(HIDDEN, WIDTH) * 0.3,
                f"{prefix}feed_forward.w2.weight": torch.randn(WIDTH, HIDDEN) * 0.3,
                f"{prefix}attention_norm.weight": torch.rand(WIDTH) + 0.5,
                f"{prefix}ffn_norm.weight": torch.rand(WIDTH) + 0.5,
            }
    state["norm.weight"] = torch.rand(WIDTH) + 0.5
    state |= {f"head.{k}.weight": torch.randn(CODES, WIDTH) for k in range(groups)}
    return {f"transformer.{name}": value for name, value in state.items()}


def checkpoint(path: Path, state: dict[str, Any], **rest: Any) -> Path:
    torch.save({"state_dict": state, "global_step": 1234, **rest}, path)
    return path


def by_hand(state: dict[str, Tensor], ids: np.ndarray, label: int) -> np.ndarray:
    """Logits [h w,g,2^d'] of ids [g,h w], from the names in the file, in float64.

    The class's place has rotations of zero, there and among the groups, where place k > 0 is
    turned as position k - 1 is: so the public code does it.
    """
    weight = {key.removeprefix("transformer."): v.double().numpy() for key, v in state.items()}
    groups = ids.shape[0]
    names = ["pre_emb", "post_emb"] if groups == 2 else [f"{k}_emb" for k in range(groups)]
    size = WIDTH // HEADS

    turns = [np.zeros(size // 2, complex)]
    for position in range(GRID[0] * GRID[1]):
        row, column = divmod(position, GRID[1])
        speeds = 10000.0 ** (-np.arange(0, size // 2, 2) / (size // 2))
        turns.append(np.exp(1j * np.concatenate([row * speeds, column * speeds])))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean = (x * x).mean(-1, keepdims=True)
        return x / np.sqrt(mean + 1e-5) * weight[f"{name}.weight"]

    def turned(x: np.ndarray) -> np.ndarray:  # [T,size]
        z = (x[:, 0::2] + 1j * x[:, 1::2]) * np.stack(turns[: len(x)])
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    def through(x: np.ndarray, name: str) -> np.ndarray:  # [T,WIDTH]
        y = norm(x, f"{name}.attention_norm")
        q, k, v = np.split(y @ weight[f"{name}.attention.wqkv.weight"].T, 3, axis=1)
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = turned(q[:, part]) @ turned(k[:, part]).T / np.sqrt(size)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            scores = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
        x = x + np.concatenate(heads, 1) @ weight[f"{name}.attention.wo.weight"].T
        y = norm(x, f"{name}.ffn_norm")
        gate = y @ weight[f"{name}.feed_forward.w1.weight"].T
        up = y @ weight[f"{name}.feed_forward.w3.weight"].T
        return x + (gate / (1 + np.exp(-gate)) * up) @ weight[f"{name}.feed_forward.w2.weight"].T

    embedded = np.stack([weight[f"{name}.weight"][ids[k]] for k, name in enumerate(names)])
    first = weight["class_emb.embedding_table.weight"][label]
    x = np.concatenate([first[None], embedded.sum(0)[:-1]])
    for number in range(2):
        x = through(x, f"spatial_blocks.{number}")
    logits = []
    for position, context in enumerate(x):
        inner = np.concatenate([context[None], embedded[:-1, position]])
        inner = norm(through(inner, "factorized_blocks.0"), "norm")
        logits.append([weight[f"head.{k}.weight"] @ inner[k] for k in range(groups)])
    return np.array(logits)


@pytest.mark.parametrize("groups", [2, 3])
def test_logits_are_those_of_the_layout(tmp_path: Path, groups: int) -> None:
    state = layout(groups)
    extra = {"first_stage_model.encoder.conv_in.weight": torch.zeros(1)}
    path = checkpoint(tmp_path / "ar.ckpt", {**state, **extra})
    assert is_generator(path)
    released = read_generator(path, GRID, HEADS)
    assert released.used == len(state) and released.step == 1234
    assert released.set_aside == {"tensors of the tokenizer": 1}
    ids = torch.randint(CODES, (2, groups, *GRID), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, CLASSES])
    logits = released.generator.double()(ids, labels).detach().numpy()
    for image in range(2):
        flat = ids[image].flatten(1).numpy()
        wanted = by_hand(state, flat, int(labels[image]))
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(logits[image] / scale, wanted / scale, rtol=0, atol=1e-6)


def test_published_shapes_are_recognised(tmp_path: Path) -> None:
    """Size B's names and shapes, without its weights' size: two of its 24 blocks."""
    config = sized("B", groups=4, group_bits=8, grid=(16, 16), classes=1000, silent_class=True)
    config = config.model_copy(update={"depth": 2})
    back = {
        "embeddings.(.)": r"\1_emb",
        "condition.table": "class_emb.embedding_table",
        "group_blocks": "factorized_blocks",
        "(?<!_)blocks": "spatial_blocks",
        "attention.qkv": "attention.wqkv",
        "attention.out": "attention.wo",
        "feed.gate": "feed_forward.w1",
        "feed.up": "feed_forward.w3",
        "feed.down": "feed_forward.w2",
        "feed_norm": "ffn_norm",
        "heads": "head",
    }
    state = {}
    for name, value in build(config).state_dict().items():
        for ours, theirs in back.items():
            name, changed = re.subn(ours, theirs, name)
            if changed and "blocks" not in ours:
                break
        state[f"transformer.{name}"] = value.half()
    released = read_generator(checkpoint(tmp_path / "b.ckpt", state))
    assert released.generator.config == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "1 missing: norm.weight"),
        ({"spatial_blocks.0.extra.weight": torch.zeros(1)}, "1 unexpected: transformer.spatial"),
        ({"norm.weight": torch.zeros(3)}, r"transformer.norm.weight \[3\] instead of \[32\]"),
        ({"norm.weight": torch.full((32,), torch.nan)}, "norm.weight holds NaN or Inf"),
        ({"head.1.weight": torch.zeros(8, 32)}, r"heads have \[16, 8, 16\] codes"),
        ({"class_emb.embedding_table.weight": None}, "so it is no released generator"),
    ],
)
def test_what_is_amiss_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    state = layout()
    for name, value in change.items():
        if value is None:
            del state[f"transformer.{name}"]
        else:
            state[f"transformer.{name}"] = value
    with pytest.raises(WetokError, match=message):
        read_generator(checkpoint(tmp_path / "ar.ckpt", state), GRID, HEADS)


def test_a_tokenizer_is_no_generator(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "t.ckpt", {"encoder.conv_in.weight": torch.zeros(1)})
    assert not is_generator(path)
    with pytest.raises(WetokError, match="no released generator"):
        read_generator(path)
    with pytest.raises(WetokError, match="no such file"):
        read_generator(tmp_path / "none.ckpt")


def test_import_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "ar.ckpt", layout())
    with pytest.raises(SystemExit) as ended:
        main(["import", str(path), "-o", str(tmp_path / "ar")])
    assert not ended.value.code, capsys.readouterr().err
    assert "5 classes, 3 groups of 4 bits, 32 wide, 2 + 1 blocks" in capsys.readouterr().out
    generator, name = load_generator(tmp_path / "ar")
    assert name == "ar" and generator.config.grid == (16, 16)
    with pytest.raises(SystemExit) as ended:
        main(["import", str(path), "-o", str(tmp_path / "b"), "--groups", "3"])
    assert ended.value.code == 2 and "a generator needs neither" in capsys.readouterr().err
