"""What scores look through: LPIPS in one pass, `fd-vgg` as documented, names that are true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from wetok.config import WetokError
from wetok.evaluate.frechet import FeatureStatistics, frechet_distance
from wetok.evaluate.inception import Inception
from wetok.evaluate.networks import Networks, frechet_name
from wetok.losses.perceptual import LPIPS
from wetok.weights import find


@pytest.fixture(scope="module")
def vgg(weights_dir: Path) -> LPIPS:
    return LPIPS.from_file(weights_dir / "lpips_vgg.safetensors", "vgg")


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "fixtures" / "metrics" / "metrics.npz"))


def pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1


def test_recorded_distances(recorded: dict[str, np.ndarray], vgg: LPIPS, weights_dir: Path) -> None:
    alex = LPIPS.from_file(weights_dir / "lpips_alex.safetensors", "alex")
    networks = Networks([alex, vgg])
    a, b = (networks.look(pixels(recorded[f"image_{name}"][:2])) for name in "ab")
    distances = networks.distances(b, a)
    for net in ("alex", "vgg"):
        wanted = recorded[f"lpips_{net}"][:2]
        np.testing.assert_allclose(distances[f"lpips-{net}"].numpy(), wanted, rtol=0, atol=1e-5)
    assert networks.hashes == {"lpips-alex": alex.weights_hash, "lpips-vgg": vgg.weights_hash}


def test_the_weights_in_the_package(recorded: dict[str, np.ndarray]) -> None:
    """Half precision but for the first layer, biases and heads: below 5e-5 from the published."""
    networks = Networks([LPIPS.from_file(find("lpips-alex"), "alex")])
    a, b = (networks.look(pixels(recorded[f"image_{name}"])) for name in "ab")
    far = networks.distances(b, a)["lpips-alex"].numpy() - recorded["lpips_alex"]
    shifted = networks.look(pixels(recorded["image_a"][3:]))
    first = networks.look(pixels(recorded["image_a"][:3]))
    pair2 = networks.distances(first, shifted)["lpips-alex"].numpy() - recorded["lpips_alex_pair2"]
    assert 0 < np.abs([*far, *pair2]).max() < 5e-5, "as docs/evaluation.md says"


def test_fd_vgg_is_what_the_documents_say(vgg: LPIPS, weights_dir: Path) -> None:
    """relu5_3 of VGG16, the mean over positions, images as they are: written out from the file."""
    images = torch.rand(2, 3, 48, 65, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state = load_file(weights_dir / "lpips_vgg.safetensors")
    mean = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    x = (images - mean) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    for index in range(13):
        if index in (2, 4, 7, 10):
            x = F.max_pool2d(x, 2)
        x = F.conv2d(
            x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1
        ).relu()
    wanted = x.flatten(2).mean(2)
    networks = Networks(vgg=vgg)
    assert networks.dims == {"fd-vgg": 512} and networks.hashes == {"fd-vgg": vgg.weights_hash}
    torch.testing.assert_close(networks.look(images).features["fd-vgg"], wanted, rtol=0, atol=1e-4)
    assert networks.distances(networks.look(images), networks.look(images)) == {}


def test_fd_vgg_grows_with_the_damage(recorded: dict[str, np.ndarray], vgg: LPIPS) -> None:
    networks = Networks(vgg=vgg)
    images = pixels(recorded["image_a"])[..., :64, :64]

    def moments(batch: torch.Tensor) -> FeatureStatistics:
        counted = FeatureStatistics(512)
        counted.update(networks.look(batch).features["fd-vgg"])
        return counted

    reference = moments(images).moments()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    distances = [
        frechet_distance(moments((images + level * noise).clamp(-1, 1)).moments(), reference)
        for level in (0.02, 0.1, 0.4)
    ]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_vgg_runs_once_for_both(vgg: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    taps = LPIPS.taps
    monkeypatch.setattr(LPIPS, "taps", lambda self, x: calls.append(1) or taps(self, x))
    networks = Networks([vgg], vgg=vgg)
    looked = networks.look(torch.zeros(1, 3, 32, 32))
    assert len(calls) == 1 and set(looked.taps) == {"vgg"} and set(looked.features) == {"fd-vgg"}


def test_only_the_published_network_is_called_fid() -> None:
    with torch.device("meta"):
        networks = [Inception(), Inception("torch-fidelity")]
    assert [frechet_name(one) for one in networks] == [
        *("fd-inception", "fd-inception-torch-fidelity")
    ]
    for network in networks:
        network.published = True
    assert [frechet_name(one) for one in networks] == ["rfid", "rfid-torch-fidelity"]


def test_mistakes(vgg: LPIPS) -> None:
    with pytest.raises(WetokError, match="given twice"):
        Networks([vgg, vgg])
    with pytest.raises(WetokError, match="fd-vgg needs LPIPS's vgg"):
        Networks(vgg=LPIPS("alex"))
    with pytest.raises(WetokError, match="15x40: LPIPS vgg needs at least 16"):
        Networks(vgg=vgg).look(torch.zeros(1, 3, 15, 40))
