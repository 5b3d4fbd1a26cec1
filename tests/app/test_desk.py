"""What the page computes, against the package's own commands and against plain numpy."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.app.toys import photo, save_maker, save_model, saved, tokenizer
from wetok.app import words
from wetok.app.damage import FLIP, RANDOM, SWAP, ZERO
from wetok.app.desk import Desk
from wetok.app.making import maker_for
from wetok.app.maps import difference, invented, mapped
from wetok.app.models import Models
from wetok.app.photos import Limits
from wetok.app.rivals import usable
from wetok.app.seen import closeness
from wetok.checkpoint import load
from wetok.cli import main
from wetok.codec.tokens import Tokens
from wetok.config import WetokError
from wetok.generate.folder import load_generator
from wetok.losses.perceptual import LPIPS
from wetok.weights import find


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    return LPIPS.from_file(find("lpips-alex"), "alex")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("desk")


@pytest.fixture(scope="module")
def desk(folder: Path, lpips: LPIPS) -> Desk:
    """A deterministic and a generative model, two samples, no generator."""
    names = [
        save_model(folder / "plain", "plain"),
        save_model(folder / "gd", "gd", generative=True),
    ]
    models = Models(load(str(name), precision="float32") for name in names)
    models.warm_up()
    samples = [saved(folder / "a.png", 1), saved(folder / "b.png", 2)]
    return Desk(models, Limits(), samples, lpips)


def test_numbers_are_those_of_the_commands(
    desk: Desk, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "a.png"
    seen = desk.photo(file, "gd", 3)
    arguments = ("-m", folder / "gd", "--device", "cpu", "--seed", 3)
    run(
        *("eval", "-d", file, *arguments, "--protocol", "original", "--json"),
        *("--lpips", "alex", "--frechet", "none"),
    )
    summary = json.loads(capsys.readouterr().out)
    near = seen.closeness
    assert near is not None and near.ssim is not None and near.lpips is not None
    assert near.psnr == pytest.approx(summary["psnr"], abs=1e-9)
    assert near.ssim == pytest.approx(summary["ssim"], abs=1e-9)
    assert near.lpips == pytest.approx(summary["lpips-alex"], rel=1e-5)
    assert (seen.bpp, seen.coded_bpp) == (summary["bpp"], summary["coded_bpp"])
    assert seen.file_bytes == file.stat().st_size and seen.size == (44, 61)

    run("reconstruct", file, *arguments, "--precision", "float32", "-o", folder / "back")
    assert np.array_equal(np.asarray(Image.open(folder / "back/a.png")), np.asarray(seen.again))
    run("encode", file, *arguments[:4], "-o", folder / "tokens")
    assert (folder / "tokens/a.wetok").read_bytes() == seen.file

    told = words.facts(seen) + words.all_numbers(seen)
    for value in (f"{summary['psnr']:.2f}", f"{summary['coded_bpp']:.3f}", f"{len(seen.file):,}"):
        assert value in told


def test_samples_are_computed_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    first = desk.sample(0, "plain", 5)
    assert desk.sample(0, "plain", 9) is first  # the decoder has no use for a seed
    one = desk.sample(0, "gd", 5)
    other = desk.sample(0, "gd", 6)
    assert one is not other and one.seed == 5
    assert not np.array_equal(np.asarray(one.again), np.asarray(other.again))
    assert desk.sample(0, "gd", 5) is one
    for index in (-1, 2):
        with pytest.raises(WetokError, match="no such sample"):
            desk.sample(index, "plain")


def test_a_visitor_names_no_path_as_a_model(desk: Desk, folder: Path) -> None:
    for label in (str(folder / "plain"), "tiny-48x", "", None, ["plain"]):
        with pytest.raises(WetokError, match="no such model on this page"):
            desk.photo(folder / "a.png", label)


def test_another_model_or_seed(desk: Desk, folder: Path) -> None:
    seen = desk.photo(folder / "a.png", "gd", 1)
    assert desk.again(seen, "gd", 1) is seen
    other = desk.again(seen, "gd", 2)
    whole = desk.photo(folder / "a.png", "gd", 2)
    assert other.seed == 2 and other.tokens == seen.tokens and other.file == seen.file
    assert np.array_equal(np.asarray(other.again), np.asarray(whole.again))
    assert other.closeness == whole.closeness
    plain = desk.again(seen, "plain", 7)
    direct = desk.photo(folder / "a.png", "plain")
    assert plain.label == "plain" and plain.tokens == direct.tokens
    assert np.array_equal(np.asarray(plain.again), np.asarray(direct.again))


def test_a_file_of_tokens_comes_back(desk: Desk, folder: Path) -> None:
    seen = desk.photo(folder / "a.png", "gd", 4)
    (folder / "x.wetok").write_bytes(seen.file)
    found = desk.tokens(folder / "x.wetok", 4)
    assert found.label == "gd" and found.original is None and found.tokens == seen.tokens
    assert found.file == seen.file and found.closeness is None and found.encode_seconds is None
    assert np.array_equal(np.asarray(found.again), np.asarray(seen.again))
    assert "PSNR" not in words.facts(found) + words.all_numbers(found)
    with pytest.raises(WetokError, match="no other model can decode"):
        desk.again(found, "plain")
    with pytest.raises(WetokError, match="no original"):
        list(desk.rivals(found))
    hurt = desk.hurt(found, ZERO, group=1)
    assert hurt.to_original is None
    told = words.after_damage(hurt.result, None, hurt.to_again, None)
    assert "against the original" not in told


def test_grey_stays_grey(desk: Desk, folder: Path) -> None:
    photo(3).convert("L").save(folder / "grey.png")
    seen = desk.photo(folder / "grey.png", "plain")
    assert seen.tokens.grey
    (folder / "grey.wetok").write_bytes(seen.file)
    again = np.asarray(desk.tokens(folder / "grey.wetok").again)
    run(
        "decode",
        folder / "grey.wetok",
        "-m",
        folder / "plain",
        "-o",
        folder / "grey-back",
        "--precision",
        "float32",
    )
    expected = np.asarray(Image.open(folder / "grey-back/grey.png"))
    assert expected.ndim == 2 and (again == expected[..., None]).all()


def test_codecs_take_no_more_bytes(desk: Desk, folder: Path) -> None:
    seen = desk.photo(folder / "a.png", "plain")
    assert seen.original is not None
    found = {one.title: one for one in desk.rivals(seen)}
    assert list(found) == [codec.title for codec in usable()] and "JPEG" in found
    # By brute force, with Pillow alone: the best JPEG of all qualities and both colour settings.
    fitting, every = [], []
    for subsampling in ("4:2:0", "4:4:4"):
        for quality in range(1, 101):
            stream = io.BytesIO()
            settings = {"optimize": True, "progressive": True, "subsampling": subsampling}
            seen.original.save(stream, "JPEG", quality=quality, **settings)
            every.append(stream.tell())
            if stream.tell() <= len(seen.file):
                error = np.asarray(Image.open(stream), float) - np.asarray(seen.original, float)
                fitting.append(10 * math.log10(255**2 / np.square(error).mean()))
    jpeg = found["JPEG"]
    if fitting:
        assert jpeg.coded.fits and len(jpeg.coded.file) <= len(seen.file)
        assert jpeg.closeness.psnr == pytest.approx(max(fitting), abs=0.3)
    else:
        assert not jpeg.coded.fits and len(jpeg.coded.file) == min(every)
    for one in found.values():
        assert one.coded.fits == (len(one.coded.file) <= len(seen.file))
        reread = Image.open(io.BytesIO(one.coded.file)).convert("RGB")
        assert np.array_equal(np.asarray(reread), np.asarray(one.coded.image))
    table = words.rivals(seen, found.values())
    assert all(f"{len(one.coded.file):,}" in table for one in found.values())


def test_a_codec_that_fits(desk: Desk, folder: Path) -> None:
    """With a budget that is large enough the quality is the highest that fits."""
    from dataclasses import replace

    seen = desk.photo(folder / "a.png", "plain")
    assert seen.original is not None
    budget = 1500
    jpeg = next(iter(desk.rivals(replace(seen, file=bytes(budget)))))
    assert jpeg.coded.fits and len(jpeg.coded.file) <= budget
    stream = io.BytesIO()
    settings = {"optimize": True, "progressive": True}
    subsampling = ("4:2:0", "4:4:4")[jpeg.coded.variant]
    higher = jpeg.coded.quality + 1
    seen.original.save(stream, "JPEG", quality=higher, subsampling=subsampling, **settings)
    assert stream.tell() > budget


def test_maps(desk: Desk, folder: Path) -> None:
    seen = desk.photo(folder / "a.png", "gd", 2)
    assert seen.original is not None
    a, b = (np.asarray(image).astype(float) for image in (seen.original, seen.again))
    expected = np.abs(a - b).mean(-1)
    found = difference(seen.original, seen.again)
    assert found.mean == pytest.approx(expected.mean(), abs=1e-4)
    assert found.most == pytest.approx(expected.max(), abs=1e-4)
    assert np.percentile(expected, 98) <= found.top < 2 * np.percentile(expected, 98) + 4
    assert found.picture.size == seen.original.size
    assert f"<span>{found.top}+</span>" in words.difference_scale(found)

    pictures = [np.asarray(desk.photo(folder / "a.png", "gd", s).again) for s in (2, 3, 4)]
    spread = np.sqrt(np.stack(pictures).astype(float).var(0, ddof=1).mean(-1))
    made = desk.invent(seen, 3)
    assert made.mean == pytest.approx(spread.mean(), abs=1e-4) and made.mean > 1
    assert made.most == pytest.approx(spread.max(), abs=1e-3)
    with pytest.raises(WetokError, match="2 to 8"):
        desk.invent(seen, 9)
    with pytest.raises(WetokError, match="deterministic"):
        desk.invent(desk.photo(folder / "a.png", "plain"), 4)
    nothing = mapped(np.zeros((3, 4), np.float32))
    assert nothing.top == 4 and np.asarray(nothing.picture).max() == 0
    assert invented(desk.models.get("gd"), seen, 2).top <= 255


def test_damage_is_decoded(desk: Desk, folder: Path) -> None:
    seen = desk.photo(folder / "a.png", "gd", 2)
    for kind, options in (
        (RANDOM, {"percent": 20, "seed": 1}),
        (FLIP, {"percent": 3.5}),
        (ZERO, {"group": 2}),
        (SWAP, {"box": (0, 0, 50, 100), "other": folder / "b.png"}),
    ):
        hurt = desk.hurt(seen, kind, **options)  # type: ignore[arg-type]
        (again,) = desk.models.get("gd").decode(hurt.result.tokens, seed=2)
        assert np.array_equal(np.asarray(again), np.asarray(hurt.picture))
        assert hurt.result.changed > 0 and hurt.to_original is not None
        assert seen.original is not None
        assert hurt.to_original == closeness(seen.original, hurt.picture, desk.lpips)
        assert hurt.to_again.psnr < 60
    # The whole of another photo is that photo's reconstruction.
    whole = desk.hurt(seen, SWAP, other=folder / "b.png")
    other = desk.photo(folder / "b.png", "gd", 2)
    assert np.array_equal(np.asarray(whole.picture), np.asarray(other.again))
    with pytest.raises(WetokError, match="another photo"):
        desk.hurt(seen, SWAP)
    for wrong in ({"percent": None}, {"percent": math.nan}, {"seed": 0.5}, {"seed": "1"}):
        with pytest.raises(WetokError, match="number"):
            desk.hurt(seen, RANDOM, **wrong)  # type: ignore[arg-type]
    with pytest.raises(WetokError, match="no damage called"):
        desk.hurt(seen, "__import__")


def test_nothing_is_looked_at(desk: Desk) -> None:
    for action in (
        lambda: desk.photo(None, "plain"),
        lambda: desk.tokens(None),
        lambda: desk.again(None, "plain"),
        lambda: desk.invent(None, 3),
        lambda: desk.hurt(None, RANDOM),
        lambda: next(desk.rivals(None)),
    ):
        with pytest.raises(WetokError, match="Choose a photo first"):
            action()
    with pytest.raises(WetokError, match="no generator"):
        desk.make("any", 1, 0, 1, 1)


def test_a_picture_smaller_than_any_window(desk: Desk, folder: Path) -> None:
    seen = desk.photo(saved(folder / "dot.png", 4, (1, 1)), "plain")
    near = seen.closeness
    assert near is not None and near.ssim is None and near.lpips is None
    assert "<td>-</td>" in words.all_numbers(seen) and "LPIPS" not in words.facts(seen)


def test_new_pictures_are_those_of_generate(folder: Path) -> None:
    own = load(str(folder / "plain"))
    place = save_maker(folder / "maker", own)
    models = Models([own])
    generator, name = load_generator(place)
    maker = maker_for(name, generator, models)
    made = Desk(models, Limits(), [], None, maker).make("night", 3, 7, 0.9, 1.5)
    options = ("--seed", 7, "--temperature", 0.9, "--guidance", 1.5, "--classes", "night")
    out = folder / "made.npz"
    run("generate", place, "-n", 3, *options, "--tokenizer", folder / "plain", "-o", out)
    assert np.array_equal(np.load(out)["arr_0"], np.stack([np.asarray(one) for one in made]))
    with pytest.raises(WetokError, match="no such class"):
        Desk(models, Limits(), [], None, maker).make("dusk", 3, 7, 1, 1)
    with pytest.raises(WetokError, match="1 to 9"):
        Desk(models, Limits(), [], None, maker).make("any", 10, 7, 1, 1)
    with pytest.raises(WetokError, match="which is not loaded: give that model"):
        maker_for(name, generator, Models([tokenizer("other", bits=10)]))


def test_two_models_of_one_name() -> None:
    a, b = tokenizer("same"), tokenizer("same", bits=10)
    models = Models([a, b, a])
    assert models.labels == ["same", f"same ({b.fingerprint[:6]})"]
    assert models.get(models.labels[1]) is b and models.label_of(a.fingerprint) == "same"
    with pytest.raises(WetokError, match="at least one"):
        Models([])


def test_words_escape_what_comes_from_outside(desk: Desk, folder: Path) -> None:
    from dataclasses import replace

    name = "<img src=x onerror=alert(1)> ${1+1} \udce9.png"
    seen = replace(desk.photo(folder / "a.png", "plain"), name=name, note="<b>&")
    told = words.facts(seen) + words.all_numbers(seen)
    assert "<img" not in told and "<b>" not in told and "&lt;b&gt;&amp;" in told
    assert words.kilobytes(999) == "999 bytes" and words.kilobytes(5254) == "5.25 kB"
    assert words.kilobytes(12_000_000) == "12 MB"


def test_tokens_of_several_images_show_the_first(desk: Desk, folder: Path) -> None:
    own = desk.models.get("plain")
    both = own.encode([photo(1), photo(2)])
    both.save(folder / "two.wetok")
    found = desk.tokens(folder / "two.wetok")
    assert "2 images" in found.note and len(found.tokens) == 1
    assert torch.equal(found.tokens.ids, both.ids[:1])
    assert isinstance(found.tokens, Tokens)
