"""The models in the package: whole, small enough, and as good as their cards say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import wetok
from wetok import checkpoint
from wetok.data.images import find_images, load_image
from wetok.evaluate.evaluation import Evaluation
from wetok.evaluate.protocols import protocol
from wetok.losses.perceptual import LPIPS
from wetok.presets import preset

NAMES = checkpoint.shipped()
ASSETS = Path(wetok.__file__).parent / "assets"


def card(name: str) -> str:
    return (checkpoint.SHIPPED / name / checkpoint.CARD).read_text("utf-8")


def score_on_card(name: str, score: str) -> float:
    found = re.search(rf"^\| {score} \| ([\d.]+)", card(name), re.MULTILINE)
    assert found, f"the card of {name} has no {score}"
    return float(found[1])


def test_there_is_a_model() -> None:
    assert "tiny-48x" in NAMES


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
    assert score_on_card("tiny-48x", "LPIPS-alex") <= 0.35
