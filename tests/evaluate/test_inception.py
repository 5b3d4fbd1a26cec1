"""The FID Inception against recorded features, its resizes against plain loops, its files."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.evaluate.inception_weights import drawn_weights, published_layout
from wetok.config import WetokError
from wetok.evaluate.inception import SIDE, Inception, resized
from wetok.weights import PARTS


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "fixtures" / "metrics" / "metrics.npz"))


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return drawn_weights(Inception())


@pytest.fixture(scope="module")
def pth(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn weights in the layout of the published file."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(published_layout(weights), path)
    return path


def pixels(recorded: dict[str, np.ndarray], name: str) -> torch.Tensor:
    return torch.from_numpy(recorded[name].transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1


def test_recorded_features(recorded: dict[str, np.ndarray], pth: Path) -> None:
    """Asked are 1e-3; 2e-6 was seen, with the batch norms folded into the convolutions."""
    network = Inception.from_file(pth)
    for name in ("a", "b"):
        features = network(pixels(recorded, f"image_{name}"))
        assert features.dtype == torch.float32
        wanted = recorded[f"inception_{name}"]
        np.testing.assert_allclose(features.numpy(), wanted, rtol=0, atol=2e-5)


def test_folding_changes_nothing(
    recorded: dict[str, np.ndarray], weights: dict[str, torch.Tensor]
) -> None:
    with torch.device("meta"):
        network = Inception()
    network.load_state_dict(weights, assign=True)
    one = pixels(recorded, "image_b")[:1]
    before = network(one)
    assert not any("running_mean" in name for name in network.fold().state_dict())
    torch.testing.assert_close(network(one), before, rtol=0, atol=2e-5)


def tensorflow1_resize(image: np.ndarray) -> np.ndarray:
    """[H,W,C] to [299,299,C] as TensorFlow 1's kernel goes about it, row by row."""
    height, width = image.shape[:2]
    result = np.empty((SIDE, SIDE, image.shape[2]), np.float32)
    scale = np.float32(height / SIDE), np.float32(width / SIDE)
    x = np.arange(SIDE, dtype=np.float32) * scale[1]
    left = x.astype(int)
    right = np.minimum(left + 1, width - 1)
    across = (x - left)[:, None]
    for row in range(SIDE):
        y = np.float32(row) * scale[0]
        top = int(y)
        first, second = image[top], image[min(top + 1, height - 1)]
        upper = first[left] + (first[right] - first[left]) * across
        lower = second[left] + (second[right] - second[left]) * across
        result[row] = upper + (lower - upper) * (y - top)
    return result


@pytest.mark.parametrize("size", [(40, 57), (400, 310), (299, 299), (1, 5)])
def test_the_resize_of_torch_fidelity(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 127.5 - 1
    wanted = (tensorflow1_resize(image.astype(np.float32)) - 128) / 128
    given = resized(batch, "torch-fidelity")[0].permute(1, 2, 0)
    np.testing.assert_allclose(given.numpy(), wanted, rtol=0, atol=1e-6)


def test_the_resize_of_pytorch_fid() -> None:
    """Half-pixel centers and no antialiasing, in float64 by hand."""
    image = np.random.default_rng(0).random((41, 700, 3))
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None] * 2 - 1

    def weights(size: int) -> np.ndarray:
        place = np.clip((np.arange(SIDE) + 0.5) * size / SIDE - 0.5, 0, None)
        low = np.minimum(place.astype(int), size - 1)
        matrix = np.zeros((SIDE, size))
        np.add.at(matrix, (np.arange(SIDE), low), 1 - (place - low))
        np.add.at(matrix, (np.arange(SIDE), np.minimum(low + 1, size - 1)), place - low)
        return matrix

    wanted = 2 * np.einsum("ih,hwc,jw->ijc", weights(41), image, weights(700), optimize=True) - 1
    given = resized(batch, "pytorch-fid")[0].permute(1, 2, 0)
    np.testing.assert_allclose(given.numpy(), wanted, rtol=0, atol=1e-9)


def test_the_two_conventions_differ(recorded: dict[str, np.ndarray], pth: Path) -> None:
    one = pixels(recorded, "image_a")[:1]
    first, second = Inception.from_file(pth), Inception.from_file(pth, "torch-fidelity")
    assert (first(one) - second(one)).abs().max() > 1e-3
    with pytest.raises(WetokError, match="convention='clean-fid' must be"):
        Inception("clean-fid")  # type: ignore[arg-type]


def test_only_the_published_file_is_the_published_file(
    pth: Path,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = hashlib.sha256(pth.read_bytes()).hexdigest()
    network = Inception.from_file(pth)
    assert (network.weights_hash, network.published) == (digest[:16], False)
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.train().training

    other = tmp_path / "inception.safetensors"
    state = published_layout(weights)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, other)
    same = Inception.from_file(other)
    image = torch.rand(1, 3, 30, 30) * 2 - 1
    assert torch.equal(same(image), network(image)) and same.weights_hash != network.weights_hash

    known = dataclasses.replace(PARTS["inception-fid"], sha256=digest)
    monkeypatch.setitem(PARTS, "inception-fid", known)
    assert Inception.from_file(pth).published and not Inception.from_file(other).published


def test_a_wrong_file_ends_in_one_line(pth: Path, tmp_path: Path) -> None:
    half, junk, another = (tmp_path / name for name in ("half", "junk", "another"))
    half.write_bytes(pth.read_bytes()[:5000])
    junk.write_bytes(b"not weights at all")
    torch.save({"a": torch.zeros(1)}, another)
    for path in (half, junk, another, tmp_path / "absent"):
        with pytest.raises(WetokError, match="not the weights of the FID Inception") as caught:
            Inception.from_file(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
