"""The facade: every kind of image in, every kind out, exact sizes, seeds, names and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import wetok
from wetok import checkpoint
from wetok.codec.tokens import Tokens
from wetok.config import ModelConfig, WetokError
from wetok.data.images import to_pil, to_uint8
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer, pad_to_multiple


def make(seed: int = 0, name: str = "test", **changes: Any) -> Tokenizer:
    """A small network with random weights, as they are all one needs here."""
    shape = {"bits": 8, "groups": 2, "channels": 8, "mults": (1, 1), "blocks": 1, "patch": 2}
    torch.manual_seed(seed)
    return Tokenizer(TokenizerNetwork(ModelConfig(**{**shape, **changes})), name)


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return make()


@pytest.fixture(scope="module")
def generative() -> Tokenizer:
    return make(generative=True)


def pixels(height: int, width: int, batch: int | None = None, seed: int = 0) -> np.ndarray:
    shape = (height, width, 3) if batch is None else (batch, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def as_float(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(array, -1, -3).astype(np.float32) / 127.5 - 1)


def test_every_kind_of_image_gives_the_same_tokens(tok: Tokenizer, tmp_path: Path) -> None:
    array = pixels(19, 27)
    path = tmp_path / "image.png"
    Image.fromarray(array).save(path)
    expected = tok.encode(Image.fromarray(array))
    assert expected.ids.shape == (1, 2, 5, 7)
    assert expected.size == (19, 27)
    assert expected.model == ("test", tok.fingerprint)
    assert expected.group_bits == 4
    kinds: list[Any] = [
        str(path),
        path,
        array,
        torch.from_numpy(array),
        as_float(array),
        as_float(array).double(),
        as_float(array).numpy(),
    ]
    for kind in [*kinds, array[None], torch.from_numpy(array[None]), as_float(array[None])]:
        assert tok.encode(kind) == expected
        assert tok.encode([kind, kind]).ids.tolist() == expected.ids.tolist() * 2
    assert tok.encode(tuple(kinds)).ids.tolist() == expected.ids.tolist() * len(kinds)


def test_the_tokens_are_those_of_the_network(tok: Tokenizer) -> None:
    image = as_float(pixels(16, 24))
    with torch.no_grad():
        latent = tok.model.encoder(image[None])
    bits = (latent > 0).long().unflatten(1, (2, 4))
    ids = (bits * torch.tensor([1, 2, 4, 8])[:, None, None]).sum(2)
    assert tok.encode(image).ids.tolist() == ids.tolist()
    with torch.no_grad():
        again = tok.model.decoder(torch.where(latent > 0, 1.0, -1.0)).clamp(-1, 1)
    assert torch.equal(tok.decode(tok.encode(image), output="float", precision="float32"), again)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (4, 4), (5, 3), (13, 31), (2, 40)])
@pytest.mark.parametrize("changes", [{}, {"generative": True}, {"patch": 1, "mults": (1, 1, 1)}])
def test_any_size_comes_back(size: tuple[int, int], changes: dict[str, Any]) -> None:
    tok = make(**changes)
    tokens = tok.encode(pixels(*size, batch=2))
    factor = tok.config.factor
    assert tokens.size == size
    assert tokens.ids.shape == (2, 2, -(-size[0] // factor), -(-size[1] // factor))
    pictures = tok.decode(tokens)
    assert [(p.mode, p.height, p.width) for p in pictures] == [("RGB", *size)] * 2
    assert tok.decode(tokens, output="uint8").shape == (2, 3, *size)
    assert tok.decode(tokens, output="float").shape == (2, 3, *size)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    factor=st.sampled_from([1, 2, 4, 8, 16]),
)
def test_padding_is_numpys_reflection(height: int, width: int, factor: int) -> None:
    image = np.random.default_rng(0).standard_normal((2, 3, height, width)).astype(np.float32)
    missing = [(0, 0), (0, 0), (0, -height % factor), (0, -width % factor)]
    expected = np.pad(image, missing, mode="reflect")
    assert np.array_equal(pad_to_multiple(torch.from_numpy(image), factor).numpy(), expected)


def test_padding_happens_before_the_encoder(tok: Tokenizer) -> None:
    image = pixels(6, 10)
    whole = np.pad(image, [(0, 2), (0, 2), (0, 0)], mode="reflect")
    assert torch.equal(tok.encode(image).ids, tok.encode(whole).ids)


@pytest.mark.parametrize("changes", [{}, {"generative": True}], ids=["plain", "generative"])
def test_an_image_does_not_depend_on_its_neighbours(changes: dict[str, Any]) -> None:
    """To the last bit: kernels sum in another order for another batch size."""
    tok = make(channels=32, **changes)
    images = pixels(33, 40, batch=5)
    together = tok.encode(images)
    seeds = [3, 1, 4, 1, 5]
    decoded = tok.decode(together, seed=seeds, output="float")
    for index, image in enumerate(images):
        alone = tok.encode(image)
        assert torch.equal(alone.ids, together.ids[index : index + 1])
        again = tok.decode(alone, seed=seeds[index], output="float")
        assert torch.equal(again, decoded[index : index + 1])


def test_seeds_of_a_generative_decoder(generative: Tokenizer) -> None:
    tokens = generative.encode(np.repeat(pixels(8, 8, batch=1), 3, axis=0))

    def floats(seed: Any) -> torch.Tensor:
        image: torch.Tensor = generative.decode(tokens, seed=seed, output="float")
        return image

    one = floats(7)
    assert torch.equal(one[0], one[1]) and torch.equal(one, floats(7))
    assert torch.equal(floats(np.int64(7)), one) and torch.equal(floats(np.array([7, 7, 7])), one)
    assert not torch.equal(floats(8)[0], one[0])
    mixed = floats([7, 8, 7])
    assert torch.equal(mixed[0], one[0]) and torch.equal(mixed[2], one[0])
    assert torch.equal(mixed[1], floats(8)[0])
    torch.manual_seed(99)
    assert torch.equal(floats(7), one), "the global generator has no say"


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ([1, 2], "2 seeds for 3 images"),
        ([], "0 seeds"),
        (1.5, "must be an integer"),
        ("7", "must be an integer"),
        (-1, r"\[0, 2\^63\)"),
        (2**63, r"\[0, 2\^63\)"),
    ],
)
def test_wrong_seeds(generative: Tokenizer, seed: Any, message: str) -> None:
    with pytest.raises(WetokError, match=message):
        generative.decode(generative.encode(pixels(4, 4, batch=3)), seed=seed)


def test_a_deterministic_decoder_has_no_use_for_seeds(tok: Tokenizer) -> None:
    tokens = tok.encode(pixels(9, 9))
    assert torch.equal(tok.decode(tokens, 1, "float"), tok.decode(tokens, 2, "float"))


def test_the_kinds_of_output_agree(tok: Tokenizer) -> None:
    tokens = tok.encode(pixels(9, 14, batch=2))
    image = tok.decode(tokens, output="float")
    assert image.dtype == torch.float32 and image.abs().max() <= 1 and not image.requires_grad
    small = tok.decode(tokens, output="uint8")
    assert small.dtype == torch.uint8 and torch.equal(small, to_uint8(image))
    pictures = tok.decode(tokens)
    assert isinstance(pictures, list)
    assert [np.array(p).tolist() for p in pictures] == [np.array(p).tolist() for p in to_pil(image)]
    with pytest.raises(WetokError, match="output='png'"):
        tok.decode(tokens, output="png")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bits", "groups", "dtype"),
    [
        (8, 8, torch.uint8),
        (8, 1, torch.uint8),
        (9, 1, torch.int16),
        (15, 1, torch.int16),
        (16, 1, torch.int32),
        (31, 1, torch.int32),
        (32, 1, torch.int64),
    ],
)
def test_ids_have_the_smallest_type(bits: int, groups: int, dtype: torch.dtype) -> None:
    tok = make(bits=bits, groups=groups)
    tokens = tok.encode(pixels(8, 8))
    assert tokens.ids.dtype == dtype and tokens.ids.device.type == "cpu"
    assert int(tokens.ids.max()) < 2 ** (bits // groups)
    assert len(tok.decode(tokens)) == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 8, 8), float("nan")), "nan"),
        (torch.full((3, 8, 8), 1.5), r"\[-1, 1\]"),
        (torch.zeros(1, 8, 8), r"\[3,H,W\]"),
        (np.zeros((8, 8), np.uint8), r"\[H,W,3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"\[H,W,3\]"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        ([], "at least one image"),
        ([pixels(4, 4), pixels(4, 5), pixels(8, 8)], "one size, not 3"),
        (None, "NoneType"),
        ({"image": 1}, "dict"),
        ("missing.png", "missing.png"),
    ],
)
def test_what_is_no_image_ends_in_one_line(tok: Tokenizer, image: Any, message: str) -> None:
    with pytest.raises(WetokError, match=message) as caught:
        tok.encode(image)
    assert "\n" not in str(caught.value)


def test_nan_weights_are_told_from_a_code(tok: Tokenizer) -> None:
    broken = make()
    broken.model.encoder.conv_out.weight.fill_(float("nan"))
    with pytest.raises(WetokError, match="NaN"):
        broken.encode(pixels(8, 8))


def test_tokens_of_another_model_are_refused(tok: Tokenizer) -> None:
    other = make(seed=1, name="other")
    assert other.fingerprint != tok.fingerprint
    with pytest.raises(WetokError, match="'other'.*can't be decoded by 'test'"):
        tok.decode(other.encode(pixels(8, 8)))


def test_tokens_that_are_none_are_refused(tok: Tokenizer) -> None:
    with pytest.raises(WetokError, match="type PosixPath: give Tokens"):
        tok.decode(Path("cat.wetok"))  # type: ignore[arg-type]
    # Two positions could stand for 14 pixels at another factor.
    wrong = Tokens(torch.zeros(1, 2, 2, 2).long(), (14, 14), tok.ref, 4)
    with pytest.raises(WetokError, match=r"\[2, 2\] positions for an image of \[14, 14\]"):
        tok.decode(wrong)


def test_the_network_is_taken_over() -> None:
    tok = make()
    assert not tok.model.training
    assert not any(parameter.requires_grad for parameter in tok.model.parameters())
    assert tok.config is tok.model.config
    assert tok.to("cpu") is tok and tok.device.type == "cpu"


def test_a_folder_and_back(tok: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    assert tok.save_pretrained(folder) is None
    assert {file.name for file in folder.iterdir()} >= {"config.json", "model.safetensors"}
    tokens = tok.encode(pixels(9, 12))
    expected = tok.decode(tokens, output="float")
    for back in (
        Tokenizer.from_pretrained(folder),
        Tokenizer.from_pretrained(pretrained_model_name_or_path=str(folder)),
        wetok.load(folder),
        wetok.load(str(folder), device="cpu"),
    ):
        assert (back.name, back.fingerprint, back.config) == ("test", tok.fingerprint, tok.config)
        assert torch.equal(back.decode(tokens, output="float"), expected)
    tok.save_pretrained(folder)  # over the old one
    assert wetok.load(folder).fingerprint == tok.fingerprint


def test_push_to_hub_goes_through_the_mixin(
    tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            seen["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            seen["private"] = options["private"]
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
            seen["fingerprint"] = wetok.load(folder_path).fingerprint
            seen["card"] = (folder_path / "README.md").read_text()
            seen["message"] = options["commit_message"]
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    options: dict[str, Any] = {"private": True, "token": "t", "commit_message": "first"}
    assert tok.push_to_hub("user/model", **options) == "https://hub/user/model"
    assert seen["fingerprint"] == tok.fingerprint
    assert (seen["private"], seen["token"], seen["message"]) == (True, "t", "first")
    assert "library_name: wetok" in seen["card"]
    url = tok.save_pretrained(tmp_path / "there", push_to_hub=True, repo_id="user/other")
    assert url == "https://hub/user/other"


def test_a_shipped_name(tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_folder(tmp_path / "tiny-test", tok.model, "tiny-test")
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    shipped = wetok.load("tiny-test")
    assert shipped.name == "tiny-test" and shipped.fingerprint == tok.fingerprint
    assert shipped.ref == Tokenizer.from_pretrained("tiny-test").ref
    with pytest.raises(WetokError, match="did you mean.*tiny-test"):
        wetok.load("tiny-tst")


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_decoding_from_a_file_is_decoding_from_memory(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    groups = data.draw(st.integers(1, 4), "groups")
    bits = groups * data.draw(st.integers(1, 20), "group bits")
    tok = make(
        data.draw(st.integers(0, 9), "weights"),
        bits=bits,
        groups=groups,
        generative=data.draw(st.booleans(), "generative"),
        patch=data.draw(st.sampled_from([1, 2]), "patch"),
    )
    size = (data.draw(st.integers(1, 17), "height"), data.draw(st.integers(1, 17), "width"))
    images = pixels(*size, batch=data.draw(st.integers(1, 3), "images"))
    tokens = tok.encode(images)
    path = tmp_path_factory.mktemp("tokens") / "a.wetok"
    tokens.save(path)
    loaded = Tokens.load(path)
    assert loaded == tokens and loaded.ids.dtype == tokens.ids.dtype
    seed = data.draw(st.integers(0, 2**32), "seed")
    for output in ("float", "uint8"):
        assert torch.equal(tok.decode(loaded, seed, output), tok.decode(tokens, seed, output))


def test_a_tokenizer_shows_what_it_is() -> None:
    shown = repr(wetok.load("tiny-48x"))
    assert shown.startswith("Tokenizer('tiny-48x', factor=8, bits=32, groups=4, deterministic")
