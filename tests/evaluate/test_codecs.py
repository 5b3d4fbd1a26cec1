"""Codecs against Pillow by hand, the search against all qualities, files taken apart."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from skimage.metrics import peak_signal_noise_ratio

from wetok.codec.tokens import ModelRef, Tokens
from wetok.config import WetokError
from wetok.data.images import load_image, to_tensor
from wetok.evaluate import codecs
from wetok.evaluate.codec_systems import NO_SIZE, AtBytes, AtQuality, Encoder
from wetok.evaluate.codecs import Encodings, codec, codecs_here, highest_within, why_not
from wetok.evaluate.containers import payload_bytes
from wetok.evaluate.evaluation import Evaluation
from wetok.evaluate.protocols import protocol

ROOT = Path(__file__).resolve().parent.parent.parent
CPU = torch.device("cpu")
HERE = codecs_here()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    cat = load_image(ROOT / "wetok/assets/photos/cat.jpg")
    return cat.crop((100, 60, 308, 228)).resize((104, 84), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str, **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **settings)
    return stream.getvalue()


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def jpeg(image: Image.Image, quality: int, subsampling: str) -> bytes:
    options = {"optimize": True, "progressive": True, "subsampling": subsampling}
    return saved(image, "JPEG", quality=quality, **options)


def webp(image: Image.Image, quality: int) -> bytes:
    return saved(image, "WEBP", quality=quality, method=6)


def avif(image: Image.Image, quality: int) -> bytes:
    options = {"codec": "aom", "advanced": {"tune": "ssim"}, "autotiling": False}
    return saved(
        image, "AVIF", quality=quality, subsampling="4:4:4", speed=2, max_threads=1, **options
    )


def jpeg2000(image: Image.Image, tenths: int) -> bytes:
    options = {"irreversible": True, "mct": 1, "no_jp2": True}
    layers = [tenths / 10]
    return saved(image, "JPEG2000", quality_mode="dB", quality_layers=layers, **options)


BY_HAND: dict[str, tuple[Callable[[Image.Image, int], bytes], list[int]]] = {
    "webp": (webp, [0, 30, 100]),
    "avif": (avif, [0, 20, 60]),
    "jpeg2000": (jpeg2000, [150, 263, 450]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_files_are_those_pillow_writes(name: str, photo: Image.Image) -> None:
    if name not in HERE:
        pytest.skip(f"{name}: {why_not(name)}")
    by_hand, qualities = BY_HAND[name]
    for quality in qualities:
        file = by_hand(photo, quality)
        assert codec(name).encode(photo, quality) == file
        coded = Encodings(codec(name), photo).at_quality(quality)
        assert coded.file == file and coded.quality == quality
        assert np.array_equal(coded.image, opened(file))


def test_both_colour_samplings_of_jpeg(photo: Image.Image) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (28, 33, 3), np.uint8)
    colourful = Image.fromarray(blocks).resize((99, 84), Image.Resampling.NEAREST)
    sampled = set()
    for image, quality in ((photo, 1), (photo, 20), (photo, 95), (colourful, 20), (colourful, 70)):
        plain = jpeg(image, quality, "4:2:0")
        assert codec("jpeg").encode(image, quality, 0) == plain
        full = [jpeg(image, q, "4:4:4") for q in range(1, 101)]
        fitting = [file for file in full if len(file) <= len(plain)]
        assert len(fitting) < 100
        files = [plain, *fitting[-1:]]
        psnrs = [peak_signal_noise_ratio(np.array(image), np.array(opened(f))) for f in files]
        best = int(np.argmax(psnrs))
        coded = Encodings(codec("jpeg"), image).at_quality(quality)
        assert coded.file == files[best] and coded.variant == best
        sampled.add(best)
    assert sampled == {0, 1}, "either is the better one somewhere"


@pytest.mark.parametrize("name", HERE)
def test_scores_are_of_the_decoded_file(name: str, photo: Image.Image) -> None:
    """PSNR by scikit-image of what Pillow decodes; bytes of the file as it would lie on a disk."""
    known = codec(name)
    quality = known.curve[2]
    evaluation = Evaluation(AtQuality(Encoder(known), quality, CPU), protocol("original"))
    row = evaluation.add_image(photo, "photo")
    coded = Encodings(known, photo).at_quality(quality)
    wanted = peak_signal_noise_ratio(np.array(photo), np.array(opened(coded.file)))
    assert row["psnr"] == pytest.approx(wanted, abs=1e-9)
    assert row["coded_bytes"] == len(coded.file) and row["bits"] is None
    assert row["payload_bytes"] == payload_bytes(coded.file)
    assert row["encode_seconds"] > 0 and row["decode_seconds"] > 0
    summary = evaluation.summary()
    assert summary["coded_bpp"] == pytest.approx(8 * len(coded.file) / (104 * 84))
    assert summary["bpp"] is None and "usage" not in summary


@pytest.mark.parametrize("name", [name for name in HERE if name != "jxl"])
def test_the_search_finds_what_all_qualities_show(name: str, photo: Image.Image) -> None:
    known = codec(name)
    small = photo.crop((20, 10, 60, 42))
    qualities = known.qualities if name != "jpeg2000" else range(150, 601)
    for variant in range(len(known.variants)):
        sizes = {q: len(known.encode(small, q, variant)) for q in qualities}
        budgets = np.geomspace(min(sizes.values()) + 1, max(sizes.values()) + 9, 25).astype(int)
        assert len({*sizes.values()}) > 30
        for budget in [*budgets.tolist(), min(sizes.values()), max(sizes.values())]:
            wanted = max(q for q in qualities if sizes[q] <= budget)
            found = highest_within(sizes.__getitem__, known.qualities, budget, known.ahead)
            assert found == wanted, (variant, budget)


def test_at_bytes(photo: Image.Image) -> None:
    """Of JPEG's two samplings the one of higher PSNR, each at its best within the budget."""
    files = {
        (q, v): jpeg(photo, q, sampling)
        for q in range(1, 101)
        for v, sampling in enumerate(("4:2:0", "4:4:4"))
    }
    encodings = Encodings(codec("jpeg"), photo)
    for budget in (1100, 1500, 4000, 12000):
        best = []
        for variant in range(2):
            fits = [q for q in range(1, 101) if len(files[q, variant]) <= budget]
            if fits:
                file = files[max(fits), variant]
                best.append(
                    (peak_signal_noise_ratio(np.array(photo), np.array(opened(file))), file)
                )
        coded = encodings.at_bytes(budget)
        assert coded.fits and coded.file == max(best)[1] and len(coded.file) <= budget
    tight = encodings.at_bytes(300)
    smallest = min(files.values(), key=len)
    assert not tight.fits and tight.file == smallest and len(tight.file) > 300


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.integers(-5, 300),
    st.integers(-3, 40),
)
def test_the_search_on_growing_sizes(steps: list[int], budget: int, first: int) -> None:
    sizes = np.cumsum(steps).tolist()
    qualities = range(first, first + len(sizes))
    asked: list[int] = []

    def size(quality: int) -> int:
        asked.append(quality)
        return int(sizes[quality - first])

    fits = [q for q in qualities if sizes[q - first] <= budget]
    assert highest_within(size, qualities, budget) == (max(fits) if fits else None)
    assert len(asked) <= np.ceil(np.log2(len(sizes) + 1))


def test_the_search_passes_a_fall() -> None:
    sizes = [10, 20, 30, 29, 40]
    assert highest_within(sizes.__getitem__, range(5), 29) == 1
    assert highest_within(sizes.__getitem__, range(5), 29, ahead=1) == 3


def test_what_an_image_carries_is_not_written(photo: Image.Image) -> None:
    heavy = photo.copy()
    heavy.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    heavy.info["exif"] = b"Exif\0\0" + b"x" * 400
    heavy.info["comment"] = b"y" * 300
    for name in HERE:
        known = codec(name)
        assert known.encode(heavy, known.curve[2]) == known.encode(photo, known.curve[2]), name


def test_mistakes(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WetokError, match=r"codec='webm' is not known.*did you mean 'webp'"):
        codec("webm")
    with pytest.raises(WetokError, match=r"quality=0 of jpeg must lie in 1\.\.100"):
        codec("jpeg").encode(photo, 0)
    with pytest.raises(WetokError, match="codec 'webp' can't write 16384 x 1 pixels"):
        codec("webp").encode(Image.new("RGB", (16384, 1)), 5)
    with pytest.raises(WetokError, match="codec 'jpeg' can't read its own file"):
        codec("jpeg").decode(webp(photo, 5))
    Image.init()
    monkeypatch.delitem(Image.SAVE, "WEBP")
    codecs.why_not.cache_clear()
    try:
        with pytest.raises(WetokError, match=r"codec='webp' can't be used here: .*WEBP.*libwebp"):
            codec("webp")
        assert "webp" not in codecs_here() and "jpeg" in codecs_here()
    finally:
        codecs.why_not.cache_clear()


def test_a_plugin_that_is_not_installed() -> None:
    if "jxl" in HERE:
        pytest.skip("JPEG XL's plugin is installed")
    with pytest.raises(WetokError, match="no module 'pillow_jxl'; pip install pillow-jxl-plugin"):
        codec("jxl")


def test_fingerprints() -> None:
    webp, jpeg = codec("webp"), codec("jpeg")
    assert webp.fingerprint != jpeg.fingerprint and len(webp.fingerprint) == 16
    quicker = dataclasses.replace(webp, variants=({"method": 4},))
    assert quicker.fingerprint != webp.fingerprint
    encoder = Encoder(webp)
    systems = [
        AtQuality(encoder, 5, CPU),
        AtQuality(encoder, 6, CPU),
        AtQuality(Encoder(quicker), 5, CPU),
        AtBytes(encoder, lambda: 5, ("a", "0" * 16), CPU),
        AtBytes(encoder, lambda: 5, ("a", "1" * 16), CPU),
    ]
    assert len({system.fingerprint for system in systems}) == 5
    assert "libjpeg" in jpeg.version and "webp 1" in webp.version


def test_a_budget_that_changes_from_image_to_image(photo: Image.Image) -> None:
    budgets: list[int | None] = [1500, 3000, None]
    system = AtBytes(Encoder(codec("webp")), lambda: budgets[0], ("toy", "0" * 16), CPU)
    image = to_tensor(photo)[None]
    sizes = []
    for _ in range(2):
        result = system.reconstruct(image, [0])
        sizes.append(result.coded_bytes or 0)
        assert np.array_equal(
            result.images[0], to_tensor(opened(webp(photo, _quality(photo, budgets[0] or 0))))[None]
        )
        budgets.pop(0)
    assert 1000 < sizes[0] <= 1500 < sizes[1] <= 3000
    with pytest.raises(WetokError, match=f"{NO_SIZE}: 'toy'"):
        system.reconstruct(image, [0])


def _quality(photo: Image.Image, budget: int) -> int:
    return max(q for q in range(101) if len(webp(photo, q)) <= budget)


def test_what_is_payload(photo: Image.Image) -> None:
    """Each format taken apart another way: by what is the same in files of two images."""
    file = webp(photo, 40)
    assert (
        payload_bytes(file)
        == int.from_bytes(file[16:20], "little")
        in (len(file) - 20, len(file) - 21)
    )
    file = jpeg2000(photo, 300)
    assert payload_bytes(file) == len(file) - file.index(b"\xff\x90") - 2
    boxed = saved(
        photo, "JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[30], mct=1
    )
    assert payload_bytes(boxed) == payload_bytes(file) and len(boxed) > len(file)
    if "avif" in HERE:
        file = avif(photo, 30)
        at = file.index(b"mdat")
        length = int.from_bytes(file[at - 4 : at], "big")
        assert payload_bytes(file) == length - 8 and at - 4 + length == len(file)
    other = photo.transpose(Image.Transpose.ROTATE_180)
    for quality in (5, 60):
        around = set()
        for image in (photo, other):
            for progressive in (False, True):
                file = saved(image, "JPEG", quality=quality, optimize=True, progressive=progressive)
                around.add(len(file) - (payload_bytes(file) or 0))
        # SOI, JFIF, two tables of 64, SOF of three channels, EOI
        assert around == {2 + 18 + 2 * 69 + 19 + 2}
    assert payload_bytes(saved(photo, "PNG")) is None


def test_payload_of_our_files() -> None:
    ids = torch.arange(2 * 5 * 7).reshape(1, 2, 5, 7) % 16
    tokens = Tokens(ids, (40, 56), ModelRef("toy", "0123456789abcdef"), 4)
    assert payload_bytes(tokens.to_bytes("packed")) == 2 * 5 * 7 * 4 // 8
    coded = tokens.to_bytes("entropy")
    other = tokens.to_bytes("packed")
    assert len(coded) - (payload_bytes(coded) or 0) == len(other) - (payload_bytes(other) or 0)
    assert 0 < (payload_bytes(coded) or 0) < len(coded)
