"""Validation scores against numpy, and the network left as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train.tiny import Recipe, batch, build, write_pictures
from wetok.config import WetokError
from wetok.data.images import to_tensor
from wetok.data.transforms import center_crop
from wetok.losses.perceptual import LPIPS
from wetok.train.validate import ValidationSet, evenly, reconstruct


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("val"), 2)


def test_scores_are_means_over_the_images(folder: Path, recipe: Recipe) -> None:
    network = build(recipe())[0].network
    torch.manual_seed(0)
    lpips = LPIPS("alex")
    psnrs, l1s, distances = [], [], []
    for name in ("0.png", "1.png"):
        with Image.open(folder / name) as image:
            crop = np.array(center_crop(image.convert("RGB"), 256))
        original = to_tensor(crop)[None]
        with torch.no_grad():
            again = network.eval()(original).image.clamp(-1, 1)
            distances.append(lpips(again, original).item())
        error = np.rint((again.double().numpy() + 1) * 127.5) - np.moveaxis(crop[None], -1, 1)
        psnrs.append(10 * np.log10(255**2 / np.mean(error**2)))
        l1s.append(np.abs((again - original).double().numpy()).mean())
    network.train()
    validation = ValidationSet(folder, 4)
    assert len(validation) == 2
    scores = validation.score(network, lpips)
    assert scores == {
        "psnr": pytest.approx(np.mean(psnrs), abs=1e-3),
        "l1": pytest.approx(np.mean(l1s), rel=1e-5),
        "lpips": pytest.approx(np.mean(distances), rel=1e-5),
        "score": pytest.approx(np.mean(l1s) + np.mean(distances), rel=1e-5),
    }
    assert network.training
    assert validation.score(network, None)["score"] == scores["l1"]


def test_a_perfect_reconstruction_has_a_finite_score(
    folder: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wetok.train.validate.reconstruct", lambda network, images, **_: images)
    scores = ValidationSet(folder, 4).score(build(recipe())[0].network, None)
    assert scores["l1"] == 0 and 140 < scores["psnr"] < 160


def test_the_side_is_a_multiple_of_the_factor(folder: Path) -> None:
    assert ValidationSet(folder, 4).examples(8).shape == (2, 3, 256, 256)
    assert ValidationSet(folder, 12).examples(1).shape == (1, 3, 264, 264)


def test_one_image_does_not_change_another_and_training_goes_on(recipe: Recipe) -> None:
    network = build(recipe())[0].network
    images = torch.cat([batch(0)[0].image, batch(1)[0].image])
    together = reconstruct(network, images)
    assert torch.equal(together[2:3], reconstruct(network, images[2:3]))
    assert together.abs().max() <= 1 and not together.requires_grad
    assert network.training
    with pytest.raises(WetokError):
        reconstruct(network, torch.full((1, 3, 16, 16), float("nan")))
    assert network.training, "after an error too"


def test_evenly() -> None:
    assert evenly(range(5), 8) == [0, 1, 2, 3, 4]
    assert evenly(range(1000), 4) == [0, 250, 500, 750]
    assert evenly(range(7), 3) == [0, 2, 4]
    assert len(set(evenly(range(1234), 1000))) == 1000
