"""The models in the package: whole, small enough, and as good as their cards say."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import pytest

import wetok
from tools.ship import BEGIN, END, PAGE, table
from wetok import checkpoint
from wetok.data.images import find_images, load_image
from wetok.evaluate.evaluation import Evaluation
from wetok.evaluate.protocols import protocol
from wetok.losses.perceptual import LPIPS
from wetok.presets import PRESETS, preset

NAMES = checkpoint.shipped()
ASSETS = Path(wetok.__file__).parent / "assets"


def card(name: str) -> str:
    return (checkpoint.SHIPPED / name / checkpoint.CARD).read_text("utf-8")


def score_on_card(name: str, score: str) -> float:
    found = re.search(rf"^\| {score} \| ([\d.]+)", card(name), re.MULTILINE)
    assert found, f"the card of {name} has no {score}"
    return float(found[1])


def test_the_family_is_there() -> None:
    assert set(NAMES) == {name for name in PRESETS if name.startswith("tiny-")}
    assert {"tiny-24x", "tiny-48x", "tiny-48x-gd", "tiny-192x", "tiny-192x-gd"} <= set(NAMES)


def test_they_are_told_from_fine_to_coarse() -> None:
    shapes = [preset(name) for name in NAMES]
    assert shapes == sorted(shapes, key=lambda shape: (-shape.bpp, shape.generative))


def test_they_fit_a_wheel_together() -> None:
    """As a wheel has them: deflated."""
    size = 0
    for file in checkpoint.SHIPPED.rglob("*.*"):
        deflate = zlib.compressobj(6)
        size += len(deflate.compress(file.read_bytes())) + len(deflate.flush())
    assert size <= 40e6


def test_the_page_tells_what_the_cards_do() -> None:
    page = PAGE.read_text("utf-8")
    assert f"{BEGIN}\n{table()}\n{END}" in page
    for name in NAMES:
        assert f"images/{name}-curves.png" in page


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-gd")])
def test_a_second_stage_shares_its_firsts_encoder(name: str) -> None:
    first, second = wetok.load(name.removesuffix("-gd")), wetok.load(name)
    theirs = first.model.encoder.state_dict()
    assert second.model.encoder.state_dict().keys() == theirs.keys()
    assert all(t.equal(theirs[key]) for key, t in second.model.encoder.state_dict().items())
    photo = load_image(ASSETS / "photos" / "cat.jpg")
    tokens = first.encode(photo)
    one, other = (second.decode(tokens, seed=seed)[0] for seed in (0, 1))
    assert one.size == photo.size and one.tobytes() != other.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_folder(name: str) -> None:
    folder = checkpoint.SHIPPED / name
    config = checkpoint.read_config(folder)
    assert config.name == name and config.network == preset(name)
    assert (folder / checkpoint.WEIGHTS).stat().st_size <= 12e6
    tokenizer = wetok.load(name)
    assert tokenizer.fingerprint == config.fingerprint and config.fingerprint in card(name)


@pytest.mark.parametrize("name", NAMES)
def test_sample_photographs_come_back(name: str) -> None:
    """Without any file beside the project: a broken model would fall far below these."""
    tokenizer = wetok.load(name)
    evaluation = Evaluation(tokenizer, protocol("modern-256"))
    evaluation.add_all(find_images(ASSETS / "photos"))
    summary = evaluation.summary()
    assert summary["images"] == 3 and summary["psnr"] > 22 and summary["ssim"] > 0.6
    image = load_image(ASSETS / "photos" / "cat.jpg")
    assert tokenizer.decode(tokenizer.encode(image))[0].size == image.size


@pytest.mark.parametrize("name", NAMES)
def test_scores_on_the_card(name: str, photos_dir: Path, shared: Path) -> None:
    lpips = LPIPS.from_file(shared / "weights" / "lpips_alex.safetensors", "alex")
    evaluation = Evaluation(wetok.load(name), protocol("modern-256"), [lpips])
    evaluation.add_all(find_images(photos_dir / "val"))
    summary = evaluation.summary()
    assert summary["images"] == 31 and not evaluation.failures
    assert summary["psnr"] == pytest.approx(score_on_card(name, "PSNR"), abs=0.01)
    assert summary["ssim"] == pytest.approx(score_on_card(name, "SSIM"), abs=0.001)
    assert summary["lpips-alex"] == pytest.approx(score_on_card(name, "LPIPS-alex"), abs=0.001)
    assert min(summary["usage"]) > 0.9 and summary["dead_bits"] == 0


def test_first_model_is_good_enough_to_ship() -> None:
    """The bar that CPU training was set; the card's scores are held to the model above."""
    assert score_on_card("tiny-48x", "PSNR") >= 24
    assert score_on_card("tiny-48x", "LPIPS-alex") <= 0.2
