"""LPIPS against the values of the published package, its gradient, and what it refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wetok.config import WetokError
from wetok.losses.perceptual import LPIPS, _unit_length

Net = Literal["alex", "vgg"]
NETS: tuple[Net, ...] = ("alex", "vgg")


@pytest.fixture(scope="module")
def published(weights_dir: Path) -> Callable[[Net], LPIPS]:
    return lambda net: LPIPS.from_file(weights_dir / f"lpips_{net}.safetensors", net)


@pytest.fixture(scope="module")
def vectors(fixtures_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(fixtures_dir / "metrics" / "metrics.npz"))


def random_lpips(net: Net, seed: int = 0) -> LPIPS:
    torch.manual_seed(seed)
    lpips = LPIPS(net)
    for head in lpips.lin.parameters():
        head.abs_()  # as the published ones, so that a distance is none below 0
    return lpips


def images(shape: tuple[int, ...] = (2, 3, 40, 36), seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def as_input(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize(("net", "pairs"), [("alex", 6), ("vgg", 3)])
def test_the_published_distances(
    net: Net, pairs: int, published: Callable[[Net], LPIPS], vectors: dict[str, Any]
) -> None:
    lpips = published(net)
    a, b = as_input(vectors["image_a"]), as_input(vectors["image_b"])
    with torch.no_grad():
        measured = lpips(a[:pairs], b[:pairs]).numpy()
        assert measured == pytest.approx(vectors[f"lpips_{net}"][:pairs], abs=1e-5)
        assert lpips(b[:1], a[:1]).numpy() == pytest.approx(measured[:1], abs=1e-6)
        other = lpips(a[:1], a[3:4]).numpy()
        assert other == pytest.approx(vectors[f"lpips_{net}_pair2"][:1], abs=1e-5)
        assert lpips(a[:1], a[:1]).item() == 0


def test_the_hash_is_of_the_file(weights_dir: Path) -> None:
    path = weights_dir / "lpips_alex.safetensors"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert LPIPS.from_file(path, "alex").weights_hash == expected
    assert LPIPS("alex").weights_hash is None


@pytest.mark.parametrize("net", NETS)
def test_the_gradient_is_the_slope(net: Net) -> None:
    """Central differences along random directions, in float64."""
    lpips = random_lpips(net).double()
    image, reference = images(seed=1).double(), images(seed=2).double()
    probe = image.clone().requires_grad_()
    distance = lpips(probe, reference)
    assert distance.dtype == torch.float64
    (gradient,) = torch.autograd.grad(distance.sum(), probe)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = torch.randn(image.shape, generator=generator, dtype=torch.float64)
        step = 1e-7 * direction  # so small that hardly a ReLU changes sides
        slope = (lpips(image + step, reference) - lpips(image - step, reference)).sum() / 2e-7
        tolerance = 1e-4 * gradient.norm().item()
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), abs=tolerance)


@pytest.mark.parametrize("fires", [False, True], ids=["neither fires", "the reference fires"])
def test_the_gradient_is_finite_where_no_feature_fires(fires: bool) -> None:
    """The gradient of a root at 0 is infinite, and times 0 it would be NaN."""
    lpips = random_lpips("vgg")
    for name, weight in lpips.features.named_parameters():
        if name.endswith("bias"):
            weight.fill_(-1e-3)
    dark = lpips.shift.expand(1, 3, 32, 32).clone()
    image = dark.clone().requires_grad_()
    assert all(not taps.any() for taps in lpips.taps(dark))
    distance = lpips(image, images((1, 3, 32, 32)) if fires else dark)
    assert (distance.item() > 0) is fires
    distance.sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()


def test_a_position_without_features_has_no_direction() -> None:
    """At the features themselves, where no ReLU hides a NaN."""
    features = torch.zeros(1, 4, 1, 2)
    features[..., 1] = torch.tensor([3.0, 0.0, 4.0, 0.0])[:, None]
    features.requires_grad_()
    unit = _unit_length(features)
    assert unit[0, :, 0].T.tolist() == [[0, 0, 0, 0], pytest.approx([0.6, 0, 0.8, 0])]
    unit.sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_distances_are_float32(
    dtype: torch.dtype, published: Callable[[Net], LPIPS], vectors: dict[str, Any]
) -> None:
    lpips = published("alex")
    a = as_input(vectors["image_a"])[:2].requires_grad_()
    b = as_input(vectors["image_b"])[:2]
    with torch.autocast("cpu", dtype):
        distance = lpips(a, b)
    assert distance.dtype == torch.float32
    assert distance.tolist() == pytest.approx(vectors["lpips_alex"][:2].tolist(), rel=0.05)
    distance.sum().backward()
    assert a.grad is not None and a.grad.dtype == torch.float32 and a.grad.isfinite().all()


def test_only_the_image_gets_a_gradient() -> None:
    lpips = random_lpips("alex").train()
    assert not lpips.training
    image, reference = images().requires_grad_(), images(seed=1).requires_grad_()
    lpips(image, reference).sum().backward()
    assert image.grad is not None and image.grad.any()
    assert reference.grad is None
    assert all(p.grad is None and not p.requires_grad for p in lpips.parameters())


@pytest.mark.parametrize(("net", "side"), [("alex", 31), ("vgg", 16)])
def test_the_smallest_side(net: Net, side: int) -> None:
    lpips = random_lpips(net)
    image = images((1, 3, side, side + 3))
    assert lpips(image, -image).item() > 0
    small = images((1, 3, side + 3, side - 1))
    with pytest.raises(WetokError, match=f"{side + 3}x{side - 1}.*at least {side} pixels"):
        lpips(small, small)


@pytest.mark.parametrize(
    ("one", "other"),
    [((2, 3, 40, 40), (1, 3, 40, 40)), ((3, 40, 40), (3, 40, 40)), ((1, 1, 40, 40),) * 2],
)
def test_other_shapes_are_refused(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(WetokError, match="two batches"):
        random_lpips("alex")(images(one), images(other))


def test_a_wrong_file_ends_in_one_line(tmp_path: Path) -> None:
    alex, junk, half = (tmp_path / name for name in ("alex.safetensors", "junk", "half"))
    save_file(random_lpips("alex").state_dict(), alex)
    junk.write_bytes(b"not weights at all")
    half.write_bytes(alex.read_bytes()[:5000])
    wrong: list[tuple[Path, Net]] = [(alex, "vgg"), (junk, "alex"), (half, "alex")]
    for path, net in [*wrong, (tmp_path / "no", "alex")]:
        with pytest.raises(WetokError, match=f"not the weights of LPIPS {net}") as caught:
            LPIPS.from_file(path, net)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(LPIPS.from_file(alex, "alex"), LPIPS)
    with pytest.raises(WetokError, match="net='squeeze'"):
        LPIPS("squeeze")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("net", NETS)
def test_what_is_computed_again_in_backward_changes_nothing(net: Net, dtype: torch.dtype) -> None:
    """Distance and gradient are those of all taps compared at the end, for less memory."""
    lpips = random_lpips(net)
    image, reference = images(seed=1).requires_grad_(), images(seed=2)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 4 and len(tensor) == len(image):  # no weights
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    found = []
    for function in (lpips, lambda a, b: lpips.between(lpips.taps(a), lpips.taps(b))):
        kept.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), hooks:
            distance = function(image, reference)
        (gradient,) = torch.autograd.grad(distance.sum(), image)
        found.append((distance, gradient, sum(kept.values())))
    (one, its_gradient, less), (other, other_gradient, more) = found
    assert torch.equal(one, other)
    # In float32 three parts of a tap's gradient are summed, in another order.
    error = (its_gradient - other_gradient).abs().max() / other_gradient.abs().max()
    assert error <= (1e-6 if dtype == torch.float32 else 0)
    assert less < (1 if dtype == torch.float32 else 0.75) * more
