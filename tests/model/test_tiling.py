"""Large images through the facade and the command line: what is promised of each mode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import wetok
from tests.command_lines import check, command_lines
from tests.model.test_stages import network
from wetok.cli import main
from wetok.config import WetokError
from wetok.data.images import load_image
from wetok.model import strips, tiling
from wetok.model.decoder import sample_noise
from wetok.model.layers import code_statistics
from wetok.model.stages import decoder_stages, encoder_stages, reach
from wetok.model.tiling import Tiling, whole_bytes
from wetok.model.tokenizer import Tokenizer


def make(seed: int = 0, **changes: Any) -> Tokenizer:
    shape = {"channels": 16, "mults": (1, 2), "blocks": 1, "patch": 2}
    return Tokenizer(network({**shape, **changes}, seed), "test")


def pixels(height: int, width: int, batch: int | None = None, seed: int = 0) -> np.ndarray:
    shape = (height, width, 3) if batch is None else (batch, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def small_strips(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Strips of a few rows, so that small images take many."""
    monkeypatch.setitem(strips.in_strips.__kwdefaults__ or {}, "strip_bytes", 1 << 14)
    monkeypatch.setattr(strips.in_strips, "__defaults__", (None, None, 1 << 14))
    yield


# --- exact


@pytest.mark.usefixtures("small_strips")
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_exact_ids_and_pixels_are_the_whole_images(data: st.DataObject) -> None:
    tok = make(
        data.draw(st.integers(0, 99), "weights"),
        channels=data.draw(st.sampled_from([8, 16, 24]), "channels"),
        patch=data.draw(st.sampled_from([1, 2]), "patch"),
        generative=data.draw(st.booleans(), "generative"),
    )
    size = data.draw(st.integers(1, 100), "height"), data.draw(st.integers(1, 100), "width")
    image = pixels(*size, seed=data.draw(st.integers(0, 99), "image"))
    whole = tok.encode(image, margins=True, tiles="off")
    exact = tok.encode(image, margins=True, tiles="exact")
    assert exact == whole and exact.size == size
    assert exact.margins is not None and whole.margins is not None
    assert torch.equal(exact.margins, whole.margins)
    seed = data.draw(st.integers(0, 2**32), "seed")
    for output in ("uint8", "float"):
        expected = tok.decode(whole, seed, output, tiles="off")
        assert torch.equal(tok.decode(whole, seed, output, tiles="exact"), expected)


def test_every_kind_of_image_and_batches(tmp_path: Path) -> None:
    tok = make(generative=True)
    images = pixels(37, 50, batch=3)
    Image.fromarray(images[1]).save(tmp_path / "a.png")
    as_float = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    whole = tok.encode(images, tiles="off")
    for given_ in (
        images,
        as_float,
        [images[0], tmp_path / "a.png", Image.fromarray(images[2])],
    ):
        assert tok.encode(given_, tiles="exact") == whole
    seeds = [5, 6, 7]
    for output in ("uint8", "float"):
        expected = tok.decode(whole, seeds, output, tiles="off")
        assert torch.equal(tok.decode(whole, seeds, output, tiles="exact"), expected)
    pictures = tok.decode(whole, seeds, tiles="exact")
    expected = tok.decode(whole, seeds, tiles="off")
    assert [np.array(p).tolist() for p in pictures] == [np.array(p).tolist() for p in expected]


def test_a_coarse_look_from_the_first_groups(tmp_path: Path) -> None:
    tok = make(bits=8, groups=4)
    tokens = tok.encode(pixels(40, 32))
    tokens.save(tmp_path / "a.wetok")
    coarse = wetok.Tokens.load(tmp_path / "a.wetok", groups=2)
    whole = tok.decode(coarse, output="float", tiles="off")
    assert not torch.equal(whole, tok.decode(tokens, output="float"))
    assert torch.equal(tok.decode(coarse, output="float", tiles="exact"), whole)
    fast = Tiling("fast", tile=128, windows=1000)
    torch.testing.assert_close(
        tok.decode(coarse, output="float", tiles=fast, precision="float32"),
        tok.decode(coarse, output="float", tiles="off", precision="float32"),
        rtol=0,
        atol=1e-3,
    )


def test_the_shipped_model_on_photographs(photos_dir: Path) -> None:
    tok = wetok.load("tiny-48x")
    for name in ("animal_062.jpg", "texture_005.jpg"):
        image = load_image(photos_dir / "val" / name)
        image = image.crop((0, 0, min(image.width, 275), min(image.height, 203)))
        whole = tok.encode(image, tiles="off")
        assert tok.encode(image, tiles="exact") == whole
        expected = tok.decode(whole, output="uint8", tiles="off")
        assert torch.equal(tok.decode(whole, output="uint8", tiles="exact"), expected)
        # Windows over the whole image and the full overlap leave rounding.
        fast = Tiling("fast", tile=224, windows=1000)
        bits = tok.encode(image, tiles=fast).ids ^ whole.ids
        assert sum(((bits >> k) & 1).sum().item() for k in range(8)) <= 3
        expected, near = (
            tok.decode(whole, output="uint8", tiles=way, precision="float32").int()
            for way in ("off", fast)
        )
        near = near - expected
        assert near.abs().max() <= 1 and (near != 0).float().mean() < 0.01


# --- fast


def test_fast_in_one_tile_is_the_whole_image_up_to_rounding() -> None:
    tok = make(generative=True)
    image = pixels(61, 45)
    tiles = Tiling("fast", tile=256, windows=1000)
    latent = torch.cat([z for _, z in tiling.latent_bands(tok.model, image, tiles, "fast")], 2)
    padded = np.pad(image, [(0, 3), (0, 3), (0, 0)], mode="reflect")
    x = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(latent, tok.model.encoder(x), rtol=0, atol=1e-4)
    tokens = tok.encode(image, tiles="off")
    torch.testing.assert_close(
        tok.decode(tokens, 7, "float", tiles=tiles, precision="float32"),
        tok.decode(tokens, 7, "float", tiles="off", precision="float32"),
        rtol=0,
        atol=1e-4,
    )


def test_fast_is_nearer_than_tiles_on_their_own(photos_dir: Path) -> None:
    tok = wetok.load("tiny-48x")
    image = load_image(photos_dir / "val" / "animal_118.jpg").crop((200, 100, 584, 356))
    array = np.asarray(image)
    whole = tok.encode(array, tiles="off").ids
    fast = tok.encode(array, tiles=Tiling("fast", tile=256, windows=12)).ids
    half = [tok.encode(array[:, x : x + 192], tiles="off").ids for x in (0, 192)]

    def share(ids: torch.Tensor) -> float:
        return sum((((ids ^ whole) >> k) & 1).float().mean().item() for k in range(8)) / 8

    assert 0 < share(fast) < share(torch.cat(half, 3)) / 2, "half of the image seen"
    assert share(fast) < 0.03


def test_fast_is_the_same_every_time_and_for_every_kind() -> None:
    tok = make()
    image = pixels(150, 90)
    tiles = Tiling("fast", tile=32, overlap=8, windows=1)
    first = tok.encode(image, tiles=tiles)
    assert tok.encode(Image.fromarray(image), tiles=tiles) == first
    assert tok.encode([image, image], tiles=tiles).ids.tolist() == first.ids.tolist() * 2
    more = tok.encode(image, tiles=Tiling("fast", tile=32, overlap=8, windows=2))
    assert more != first, "the windows decide"


@given(height=st.integers(1, 30), width=st.integers(1, 30), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_counted_statistics_are_the_decoders(height: int, width: int, seed: int) -> None:
    tok = make(seed)
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, 16, (1, 2, height, width)))
    code = tiling._Code(tok.model, ids, None, None)
    expected = code_statistics(tok.model.quantizer.ids_to_code(ids))
    for got in (code.counted(torch.device("cpu")), code.statistics(torch.device("cpu"))):
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 1, 2), (2, 5, 3), (8, 9, 7), (4, 16, 8), (1, 1, 1)])
@pytest.mark.parametrize("draws", [16, 64, 1 << 20])
def test_noise_in_a_file_is_the_whole_images(
    shape: tuple[int, int, int], draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "_DRAWS", draws)
    noise = tiling._noise(11, shape, None)
    assert torch.equal(noise.read(0, shape[1]), sample_noise([11], shape, torch.zeros(1)))
    noise.close()


# --- choosing


def test_auto_changes_memory_and_not_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    tok, image = make(), pixels(60, 80)
    need = whole_bytes(tok.model, (60, 80))
    taken: list[str] = []
    bands = tiling.latent_bands

    def watched(*arguments: Any) -> Any:
        taken.append(arguments[-1])
        return bands(*arguments)

    monkeypatch.setattr("wetok.model.tokenizer.latent_bands", watched)
    for free, modes in ((2 * need, []), (None, []), (need, ["exact"])):
        taken.clear()
        monkeypatch.setattr(tiling, "_free_memory", lambda device, free=free: free)
        assert tok.encode(image) == tok.encode(image, tiles="off")
        assert taken == modes
        tokens = tok.encode(image, tiles="off")
        expected = tok.decode(tokens, output="float", tiles="off")
        assert torch.equal(tok.decode(tokens, output="float"), expected)


def test_the_memory_of_a_whole_image() -> None:
    """Five activations of the widest stage; the shipped model's is 128 channels at half the side,
    where the decoder's finest level begins."""
    tok = wetok.load("tiny-48x")
    assert whole_bytes(tok.model, (1000, 1601)) == 5 * 4 * 128 * 500 * 804
    free = tiling._free_memory(torch.device("cpu"))
    assert free is None or 1 << 20 < free < 1 << 46


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "quick"}, "tiles='quick' must be one of auto, off, fast, exact"),
        ({"tile": 0}, "tile=0"),
        ({"windows": 0}, "windows=0"),
        ({"tile": 100, "overlap": 51}, "overlap=51 must lie in 0..50"),
        ({"overlap": -1}, "overlap=-1"),
    ],
)
def test_what_tiles_can_not_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WetokError, match=message):
        Tiling(**options)


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tok, image = make(), pixels(60, 80)
    with pytest.raises(WetokError, match="missing.*can't be used.*name another"):
        tok.encode(image, tiles=Tiling("exact", scratch=tmp_path / "missing"))
    monkeypatch.setattr(
        "shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000, "folder": folder})
    )
    with pytest.raises(WetokError, match="0.0 GB free.*TMPDIR.*fast") as caught:
        tok.encode(image, tiles="exact")
    assert "\n" not in str(caught.value)


# --- the command line


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_commands_take_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make().save_pretrained("model")
    Image.fromarray(pixels(70, 90)).save("a.png")
    for mode in ("off", "exact", "fast", "auto"):
        assert run("encode", "a.png", "-m", "model", "-o", f"{mode}.wetok", "--tiles", mode) == 0
        more = ("-m", "model", "--tiles", mode)
        assert run("decode", "off.wetok", "-o", f"{mode}.png", *more) == 0
        assert run("reconstruct", "a.png", "-o", f"r-{mode}.png", *more) == 0
    off = wetok.Tokens.load(Path("off.wetok"))
    for mode in ("exact", "auto"):
        assert wetok.Tokens.load(Path(f"{mode}.wetok")) == off
        assert Path(f"{mode}.png").read_bytes() == Path("off.png").read_bytes()
        assert Path(f"r-{mode}.png").read_bytes() == Path("off.png").read_bytes()
    capsys.readouterr()
    assert run("encode", "a.png", "-m", "model", "-o", "x.wetok", "--tiles", "most") == 2
    assert capsys.readouterr().err == (
        "wetok: tiles='most' must be one of auto, off, fast, exact\n"
    )


def test_a_large_reconstruction_is_scored_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    from wetok.commands import scores

    one, other = pixels(1100, 40), pixels(1100, 40, seed=1)
    monkeypatch.setattr(scores, "LARGE", 1000)
    told = scores.score(Image.fromarray(one), Image.fromarray(other))
    assert told.psnr == pytest.approx(peak_signal_noise_ratio(one, other)) and told.ssim is None
    assert scores.score(Image.fromarray(one), Image.fromarray(one)).psnr == float("inf")


# --- the page


def test_the_page_says_what_is_there(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (repo / "docs" / "large-images.md").read_text(encoding="utf-8")
    lines = command_lines(text)
    assert len(lines) >= 2
    for words in lines:
        check(words)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels(70, 90)).save("huge.png")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(snippet, "large-images.md", "exec"), names)
    assert names["image"].size == (90, 70)
    shipped = names["tok"].model
    stages_ = encoder_stages(shipped.encoder), decoder_stages(shipped.decoder)
    assert reach(stages_[0], 2) == 52 and "52 pixels (the shipped encoder)" in text
    assert 8 < reach(stages_[1], 1) <= 9 and "or 9\n  positions of the code" in text
    assert Tiling().windows * tiling._WINDOW**2 == 393216 and "Up to 393,216 pixels" in text
    assert whole_bytes(shipped, (8, 8)) == 64 * 640 and "about 640 bytes of memory a pixel" in text
    for part, shape, told in (
        (stages_[0], (12, 4096, 4096), "192 bytes a pixel to encode"),
        (stages_[1], (32, 1024, 1024), "and 256 to decode"),
    ):
        bytes_ = strips.scratch_bytes(part, shape) / 8192**2
        assert f"{bytes_:.0f}" in told and told in text
