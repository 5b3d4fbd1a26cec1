"""`wetok coding`, and how `encode`, `decode` and `info` treat what it learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wetok import checkpoint
from wetok.cli import main
from wetok.codec.tokens import Tokens
from wetok.config import ModelConfig, WetokError
from wetok.model.network import TokenizerNetwork


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and photographs that it can be learned from, in one folder."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    shape = ModelConfig(bits=4, groups=2, channels=32, mults=(1, 1), blocks=1)
    checkpoint.save_folder(folder / "model", TokenizerNetwork(shape), "toy")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(2):
        rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        rough.resize((90, 70), Image.Resampling.BICUBIC).save(folder / f"photos/{number}.png")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


@pytest.fixture
def place(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(toy, tmp_path / "toy"))


def test_learned_tables_make_files_smaller_and_travel_with_the_model(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, photos = place / "model", place / "photos"
    encode = ("encode", photos, "-m", model, "-o")
    assert run(capsys, *encode, "before", "--coding", "packed")[0] == 0
    learn = ("coding", "-m", model, "--data", photos, "--hidden", 4, "--steps", 30)
    code, out, err = run(capsys, *learn)
    assert code == 0, err
    assert str(model / checkpoint.TABLES) in out
    code, _, err = run(capsys, *learn)
    assert code == 2 and "--force" in err
    fingerprint = checkpoint.load(model).fingerprint

    assert run(capsys, *encode, "after", "--coding", "entropy")[0] == 0
    for number in range(2):
        before, after = (Path(folder, f"{number}.wetok") for folder in ("before", "after"))
        assert after.stat().st_size < before.stat().st_size
        facts = json.loads(run(capsys, "info", after, "--json")[1])
        tables = checkpoint.find_tables(model)
        assert tables is not None
        assert (facts["coding"], facts["tables"]) == ("learned", tables.digest.hex())
        assert facts["packed_bytes"] == -(-(2 * 2 * 35 * 45) // 8)
        with pytest.raises(WetokError, match="none were given"):
            Tokens.load(after)
        # By a folder, a path or the tables themselves; the same ids as before.
        for given in (str(model), model, tables):
            loaded = Tokens.load(after, given)
            assert loaded == Tokens.load(before)
        loaded.save("again.wetok", "entropy")
        assert Path("again.wetok").read_bytes() == after.read_bytes()

    assert run(capsys, "decode", "after", "-m", model, "-o", "a")[0] == 0
    assert run(capsys, "decode", "before", "-m", model, "-o", "b")[0] == 0
    for number in range(2):
        assert Path(f"a/{number}.png").read_bytes() == Path(f"b/{number}.png").read_bytes()

    tokenizer = checkpoint.load(model)
    tokenizer.save_pretrained(place / "copy")
    assert (place / "copy" / checkpoint.TABLES).read_bytes() == tokenizer.tables.data
    again = type(tokenizer).from_pretrained(place / "copy")
    assert again.tables == tokenizer.tables and again.fingerprint == fingerprint
    # Other weights in the same folder leave the tables where they are.
    torch.manual_seed(1)
    checkpoint.save_folder(model, TokenizerNetwork(tokenizer.config), "toy")
    assert checkpoint.load(model).tables == tables


def test_mistakes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, photos = place / "model", place / "photos"
    for arguments, said in (
        (("coding", "-m", model, "--data", photos, "-o", photos), "not a model folder"),
        (("coding", "-m", "tiny-48", "--data", photos), "tiny-48x"),
        (("coding", "-m", model, "--data", place / "nowhere"), "nowhere"),
        (("encode", photos, "-m", model, "--coding", "zip"), "auto, packed, entropy"),
        (("decode", photos / "0.png", "-m", model, "--groups", 0), "--groups"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and said in err and err.count("\n") == 1, err
    (model / checkpoint.TABLES).write_bytes(b"broken")
    code, _, err = run(capsys, "encode", photos, "-m", model)
    assert code == 2 and "coding.safetensors: not coding tables" in err


def test_coding_by_option(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for coding, kind in (("packed", "packed"), ("entropy", "adaptive")):
        command = ("encode", place / "photos/0.png", "-m", place / "model", "-o", f"{coding}.wetok")
        assert run(capsys, *command, "--coding", coding)[0] == 0
        facts = json.loads(run(capsys, "info", f"{coding}.wetok", "--json")[1])
        assert facts["coding"] == kind
    assert Tokens.load("packed.wetok") == Tokens.load("entropy.wetok")


def test_the_first_groups_only(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = checkpoint.load(place / "model")
    tokens = tokenizer.encode(place / "photos/0.png")
    for coding in ("packed", "entropy"):
        tokens.save("a.wetok", coding)
        first = Tokens.load("a.wetok", groups=1)
        assert first == tokens.first_groups(1) and first != tokens
        assert torch.equal(first.ids[:, 0], tokens.ids[:, 0]) and not first.ids[:, 1].any()
        assert Tokens.load("a.wetok", groups=2) == tokens
        assert "first 1 known" in repr(first)
    # The unknown bits are neither sign.
    code = tokenizer.model.quantizer.ids_to_code(tokens.ids)
    code[:, 2:] = 0
    with torch.no_grad():
        want = tokenizer.model.decode(code)[..., :70, :90].clamp(-1, 1)
    assert torch.equal(tokenizer.decode(first, output="float", precision="float32"), want)
    for folder, options in (("one", ("--groups", 1)), ("all", ())):
        command = ("decode", "a.wetok", "-m", place / "model", "-o", folder)
        assert run(capsys, *command, *options)[0] == 0
    shown = np.asarray(Image.open("one/a.png"))
    assert (shown == np.asarray(tokenizer.decode(first)[0])).all()
    assert (shown != np.asarray(Image.open("all/a.png"))).any()
    with pytest.raises(WetokError, match="only the first 1 groups are known can't be saved"):
        first.save("b.wetok")
    for groups in (0, 3):
        with pytest.raises(WetokError, match=f"groups={groups} must lie in 1..2"):
            tokens.first_groups(groups)
        with pytest.raises(WetokError, match=f"groups={groups} must lie in 1..2"):
            Tokens.load("a.wetok", groups=groups)
    with pytest.raises(WetokError, match=r"groups=2 must lie in 1\.\.1"):
        first.first_groups(2)


def test_grey_photographs_come_back_grey(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = place / "model"
    Image.open(place / "photos/0.png").convert("L").save("grey.png")
    assert run(capsys, "encode", "grey.png", place / "photos/1.png", "-m", model)[0] == 0
    assert Tokens.load("out/grey.wetok").grey and not Tokens.load("out/1.wetok").grey
    assert run(capsys, "decode", "out", "-m", model, "-o", "back")[0] == 0
    assert [Image.open(f"back/{name}.png").mode for name in ("grey", "1")] == ["L", "RGB"]


def test_several_sizes_margins_and_metadata(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = checkpoint.load(place / "model")
    image = Image.open(place / "photos/0.png").convert("RGB")
    tokens = [
        tokenizer.encode(image, margins=True),
        tokenizer.encode([image.crop((0, 0, 20, 31)), image.crop((20, 0, 40, 31))]),
    ]
    assert tokens[0].margins is not None
    from wetok.data.images import to_tensor

    with torch.no_grad():
        latent = tokenizer.model.encoder(to_tensor(image)[None])
    assert torch.equal(tokens[0].margins, (latent.abs() * 64).clamp(max=255).to(torch.uint8))
    assert tokens[0] != tokenizer.encode(image)
    Tokens.save_all("both.wetok", tokens, metadata={"from": "0.png"})
    assert Tokens.load_all("both.wetok") == tokens
    with pytest.raises(WetokError, match="2 sizes: read them with Tokens.load_all"):
        Tokens.load("both.wetok")
    facts = json.loads(run(capsys, "info", "both.wetok", "--json")[1])
    assert (facts["images"], facts["sizes"], facts["metadata"]) == (3, 2, {"from": "0.png"})
    assert run(capsys, "decode", "both.wetok", "-m", place / "model", "-o", "back")[0] == 0
    expected = [one for each in tokens for one in tokenizer.decode(each)]
    for name, one in zip(("both", "both.1", "both.2"), expected, strict=True):
        assert (np.asarray(Image.open(f"back/{name}.png")) == np.asarray(one)).all()
    with pytest.raises(WetokError, match="margins must be a uint8 tensor"):
        Tokens(tokens[1].ids, (31, 20), tokens[1].model, 2, margins=tokens[0].margins)
    with pytest.raises(WetokError, match="known=3"):
        Tokens(tokens[1].ids, (31, 20), tokens[1].model, 2, known=3)
