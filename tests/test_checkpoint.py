"""Model folders: whole or absent, exact, and every broken one refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from wetok import checkpoint
from wetok.checkpoint import (
    CARD,
    CONFIG,
    WEIGHTS,
    find_folder,
    fingerprint,
    load,
    load_network,
    read_config,
    save_folder,
    written_beside,
)
from wetok.config import ModelConfig, WetokError
from wetok.model.network import TokenizerNetwork

SHAPE = ModelConfig(bits=4, groups=2, channels=32, mults=(1, 1), blocks=1)


def make(seed: int = 0) -> TokenizerNetwork:
    torch.manual_seed(seed)
    return TokenizerNetwork(SHAPE)


@pytest.fixture(scope="module")
def network() -> TokenizerNetwork:
    return make()


@pytest.fixture(scope="module")
def saved(network: TokenizerNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_folder(folder, network, "small")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change_config(folder: Path, **change: Any) -> None:
    tree = json.loads((folder / CONFIG).read_text())
    tree.update(change)
    (folder / CONFIG).write_text(json.dumps(tree))


def test_loading_gives_the_same_network(network: TokenizerNetwork, saved: Path) -> None:
    again, name = load_network(saved)
    assert name == "small"
    assert again.config == network.config
    assert not again.training
    want, got = network.state_dict(), again.state_dict()
    assert want.keys() == got.keys()
    for key in want:
        assert got[key].dtype == torch.float32
        assert torch.equal(got[key], want[key]), key
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    network.eval()
    with torch.no_grad():
        assert torch.equal(again(image).image, network(image).image)
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))


def test_a_loaded_network_needs_its_file_no_more(folder: Path) -> None:
    again, _ = load_network(folder)
    with open(folder / WEIGHTS, "rb+") as file:
        file.truncate(1000)
    assert fingerprint(again) == fingerprint(make())


def test_load_gives_the_facade(saved: Path, network: TokenizerNetwork) -> None:
    tokenizer = load(saved)
    assert tokenizer.name == "small"
    assert tokenizer.fingerprint == fingerprint(network)
    with pytest.raises(WetokError, match="device='cuda:97' can't be used"):
        load(saved, device="cuda:97")
    with pytest.raises(WetokError, match="device='tractor' can't be used"):
        load(saved, device="tractor")


def test_loading_needs_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_network(saved)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_stored_half_and_loaded_whole(
    precision: str, network: TokenizerNetwork, saved: Path, tmp_path: Path
) -> None:
    save_folder(tmp_path / "half", network, "small", precision=precision)
    size = (tmp_path / "half" / WEIGHTS).stat().st_size
    assert size < 0.6 * (saved / WEIGHTS).stat().st_size
    again, _ = load_network(tmp_path / "half")
    for key, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor.to(getattr(torch, precision)).float())
    # Rounded weights are another model; stored again in any precision they are the same one.
    assert fingerprint(again) != fingerprint(network)
    save_folder(tmp_path / "whole", again, "small", precision="float32")
    save_folder(tmp_path / "again", again, "small", precision=precision)
    whole, half = load_network(tmp_path / "whole")[0], load_network(tmp_path / "again")[0]
    assert fingerprint(whole) == fingerprint(half) == fingerprint(again)


def test_fingerprint_by_its_specification(saved: Path, network: TokenizerNetwork) -> None:
    # From the files alone, in plain Python, as docs/formats.md has it.
    defaults = {
        "decoder_channels": None,
        "decoder_mults": None,
        "decoder_blocks": None,
        "patch": 1,
        "generative": False,
    }
    settings = json.loads((saved / CONFIG).read_text())["network"]
    settings = {k: v for k, v in settings.items() if k not in defaults or v != defaults[k]}
    assert set(settings) == {"bits", "groups", "channels", "mults", "blocks"}
    told = json.dumps(settings, sort_keys=True).replace(" ", "").encode()
    raw = (saved / WEIGHTS).read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items()):
        assert entry["dtype"] == "F32"
        first, last = entry["data_offsets"]
        shape = "x".join(map(str, entry["shape"]))
        told += f"\n{name} f32 {shape}\n".encode() + raw[start + first : start + last]
    assert hashlib.sha256(told).hexdigest()[:16] == fingerprint(network)


def test_fingerprint_sees_every_change_and_nothing_else(network: TokenizerNetwork) -> None:
    one = fingerprint(network)
    assert fingerprint(make()) == one
    assert fingerprint(make().train()) == one
    assert fingerprint(make().to(memory_format=torch.channels_last)) == one
    assert fingerprint(make().double()) == one
    for key, tensor in network.state_dict().items():
        other = make()
        flat = other.state_dict()[key].view(-1)
        flat[-1] = torch.nextafter(tensor.reshape(-1)[-1], torch.tensor(9.0))
        assert fingerprint(other) != one, key
    other = make()
    other.config = SHAPE.model_copy(update={"groups": 4})
    assert fingerprint(other) != one


def test_a_number_and_an_integer_tensor_have_a_fingerprint() -> None:
    def of(state: dict[str, torch.Tensor]) -> str:
        return checkpoint.fingerprint_of(SHAPE, state)

    settings = b'{"bits":4,"blocks":1,"channels":32,"groups":2,"mults":[1,1]}'
    want = settings + b"\na i64 2\n" + struct.pack("<qq", 1, -2) + b"\nb f32 \n"
    want += struct.pack("<f", 0.5)
    state = {"b": torch.tensor(0.5), "a": torch.tensor([1, -2], dtype=torch.int32)}
    assert of(state) == hashlib.sha256(want).hexdigest()[:16]


def test_the_card(network: TokenizerNetwork, tmp_path: Path) -> None:
    save_folder(tmp_path, network, "small")
    plain = (tmp_path / CARD).read_text()
    assert plain.startswith("---\nlibrary_name: wetok\n")
    count = sum(parameter.numel() for parameter in network.parameters())
    assert f"{count:,}" in plain
    assert fingerprint(network) in plain
    (tmp_path / CARD).write_text("mine")
    save_folder(tmp_path, network, "small")
    assert (tmp_path / CARD).read_text() == "mine"
    save_folder(tmp_path, network, "small", card="given")
    assert (tmp_path / CARD).read_text() == "given"


def test_files_can_be_read_by_those_who_may_read_others(saved: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    for name in (CONFIG, WEIGHTS, CARD):
        assert stat.S_IMODE((saved / name).stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize(
    ("what", "call"),
    [("fsync", 1), ("fsync", 3), ("replace", 1), ("replace", 2), ("replace", 3)],
)
def test_saving_that_stops_leaves_the_old_model_or_none(
    what: str, call: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the new files are written, or when one is moved into place."""
    (folder / "notes.txt").write_text("mine")
    real, calls = getattr(os, what), []

    def fail(*args: Any) -> None:
        calls.append(args)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, what, fail)
        with pytest.raises(WetokError, match="model can't be written: No space left on device"):
            save_folder(folder, make(1), "new", card="new")
    assert not list(folder.glob(".*"))
    assert (folder / "notes.txt").read_text() == "mine"
    if what == "fsync":
        again, name = load_network(folder)
        assert (name, fingerprint(again)) == ("small", fingerprint(make(0)))
        assert (folder / CARD).read_text() != "new"
    else:
        with pytest.raises(WetokError, match="it has no config.json"):
            load_network(folder)
    save_folder(folder, make(1), "new")
    assert load_network(folder)[1] == "new"


def test_a_model_is_replaced_whole(folder: Path) -> None:
    save_folder(folder, make(1), "new")
    again, name = load_network(folder)
    assert (name, fingerprint(again)) == ("new", fingerprint(make(1)))


@pytest.mark.parametrize("name", ["", "n" * 256, "ü" * 128, "two\nlines"])
def test_bad_names_are_refused_before_anything_is_written(
    name: str, network: TokenizerNetwork, tmp_path: Path
) -> None:
    with pytest.raises(WetokError, match="model name .* must be 1 to 255 bytes of printable"):
        save_folder(tmp_path / "model", network, name)
    assert not (tmp_path / "model").exists()


def test_weights_that_overflow_are_refused(tmp_path: Path) -> None:
    network = make()
    with torch.no_grad():
        network.decoder.conv_in.bias[0] = 1e6
    with pytest.raises(WetokError, match=r"decoder\.conv_in\.bias .* overflow float16"):
        save_folder(tmp_path / "model", network, "small", precision="float16")
    assert not (tmp_path / "model").exists()
    with pytest.raises(WetokError, match="precision='float64' must be one of float32, float16"):
        save_folder(tmp_path / "model", make(), "small", precision="float64")
    (tmp_path / "file").write_text("")
    with pytest.raises(WetokError, match="model can't be written: File exists"):
        save_folder(tmp_path / "file", make(), "small")


def drop(folder: Path, name: str) -> None:
    (folder / name).unlink()


def cut_weights(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-100] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def edit_weights(folder: Path, **change: torch.Tensor | None) -> None:
    state = load_file(folder / WEIGHTS)
    for key, tensor in change.items():
        state.pop(key.replace("__", "."), None)
        if tensor is not None:
            state[key.replace("__", ".")] = tensor
    save_file({key: tensor.clone() for key, tensor in state.items()}, folder / WEIGHTS)


def network_of(**change: Any) -> dict[str, Any]:
    return {**SHAPE.model_dump(mode="json"), **change}


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (lambda f: drop(f, CONFIG), "not a model folder: it has no config.json"),
        (lambda f: drop(f, WEIGHTS), "incomplete model folder: it has no model.safetensors"),
        (cut_weights, "broken weights: .*copy the file again"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), "broken weights"),
        (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 100), "broken weights"),
        (flip_a_bit, "do not belong together, or one was altered"),
        (
            lambda f: edit_weights(f, decoder__conv_in__bias=None),
            "model.safetensors lacks decoder.conv_in.bias$",
        ),
        (
            lambda f: edit_weights(f, extra=torch.zeros(1)),
            "model.safetensors has unknown extra$",
        ),
        (
            lambda f: edit_weights(f, decoder__conv_in__bias=torch.zeros(7)),
            r"decoder.conv_in.bias has shape \[7\] in model.safetensors, config.json asks for \[32",
        ),
        (lambda f: (f / CONFIG).write_text("{"), "not JSON"),
        (lambda f: (f / CONFIG).write_text("[" * 5000), "not JSON"),
        (lambda f: (f / CONFIG).write_text("[]"), "not a JSON object"),
        (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe"), "can't be read"),
        (lambda f: (f / CONFIG).write_text(" " * (2 << 20)), "more than 1048576 characters"),
        (lambda f: change_config(f, model_type="gpt2"), "model_type is 'gpt2', not 'wetok'"),
        (lambda f: change_config(f, format=2), "format 2 is newer than 1: update wetok"),
        (lambda f: change_config(f, format=0), "format"),
        (lambda f: change_config(f, colour="red"), "unknown setting 'colour'"),
        (lambda f: change_config(f, precision="int3"), "precision"),
        (lambda f: change_config(f, fingerprint="short"), "fingerprint"),
        (lambda f: change_config(f, network=network_of(bit=4)), "did you mean 'bits'"),
        (lambda f: change_config(f, network=network_of(groups=3)), "groups=3 must divide"),
        (lambda f: change_config(f, network=network_of(channels=64)), "asks for"),
        (lambda f: change_config(f, network=network_of(generative=True)), "conv_in.weight has sh"),
        (lambda f: change_config(f, network=network_of(blocks=2)), "lacks .* more"),
        (lambda f: change_config(f, network=network_of(blocks=10**9)), "1000000000 blocks"),
        (lambda f: change_config(f, network=network_of(decoder_blocks=10**9)), "1000000000 blo"),
        (lambda f: change_config(f, network=network_of(channels=2**40)), "config.json: no network"),
        (lambda f: change_config(f, network=network_of(mults=[1, 2**62])), "config.json: no net"),
        (lambda f: change_config(f, network=network_of(patch=2**40)), "config.json: no network"),
    ],
)
def test_broken_folders(breaking: Any, said: str, folder: Path) -> None:
    breaking(folder)
    with pytest.raises(WetokError, match=said) as caught:
        load_network(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_the_fingerprint_in_config_can_be_left_out(folder: Path) -> None:
    change_config(folder, fingerprint=None)
    flip_a_bit(folder)
    assert fingerprint(load_network(folder)[0]) != fingerprint(make())


def test_names_that_are_no_model(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    assert checkpoint.shipped() == []
    shutil.copytree(saved, tmp_path / "models" / "tiny-48x")
    assert checkpoint.shipped() == ["tiny-48x"]
    assert find_folder("tiny-48x") == tmp_path / "models" / "tiny-48x"
    # A folder of that name does not hide the shipped model; a Path or ./ means the folder.
    shutil.copytree(saved, tmp_path / "tiny-48x")
    assert find_folder("tiny-48x") == tmp_path / "models" / "tiny-48x"
    assert find_folder("./tiny-48x") == Path("tiny-48x")
    assert find_folder(Path("tiny-48x")) == Path("tiny-48x")
    (tmp_path / "photo").mkdir()
    (tmp_path / "photo" / "cat.jpg").write_text("")
    for name, said in (
        ("tiny-48", "did you mean 'tiny-48x'"),
        ("general-48x", "a preset whose weights are not shipped .shipped: tiny-48x."),
        ("zzz", "known: .*tiny-48x"),
        ("photo/cat.jpg", "is a file; a model is a folder"),
        ("/absent/model", "no model '/absent/model'"),
        ("a/b/c", "no model 'a/b/c'"),
        ("", "no model ''"),
    ):
        with pytest.raises(WetokError, match=said) as caught:
            load_network(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(WetokError, match="revision='v1' is for Hub ids"):
        load_network("tiny-48x", revision="v1")


def test_read_config_tells_what_was_saved(saved: Path, network: TokenizerNetwork) -> None:
    config = read_config(saved)
    assert (config.name, config.network, config.precision) == ("small", SHAPE, "float32")
    assert config.fingerprint == fingerprint(network)


def test_written_beside_keeps_the_old_file_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)  # the longest names leave no room for a suffix
    path.write_text("old")
    with written_beside(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
        assert beside.parent == tmp_path
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), written_beside(path) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == [path.name]
