"""Frechet distance against recorded numbers, scipy, closed forms; statistics against numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from wetok.config import WetokError
from wetok.evaluate.frechet import FeatureStatistics, Moments, frechet_distance


def statistics(features: np.ndarray, *cuts: int) -> FeatureStatistics:
    """Of `features` [N,D], counted in the batches that `cuts` make."""
    result = FeatureStatistics(features.shape[1])
    for part in np.split(features, cuts):
        result.update(torch.from_numpy(part))
    return result


def by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """As everybody computes it: the root of the product of the covariances."""
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(linalg.sqrtm(s @ t))
    shift = x.mean(0) - y.mean(0)
    return float(shift @ shift + np.trace(s) + np.trace(t) - 2 * np.trace(root))


def test_recorded_number(shared: Path) -> None:
    recorded = np.load(shared / "fixtures" / "metrics" / "metrics.npz")
    x, y = recorded["fd_x"].astype(np.float64), recorded["fd_y"].astype(np.float64)
    assert len(x) > x.shape[1], "so that features are folded"
    distance = frechet_distance(statistics(x).moments(), statistics(y).moments())
    assert distance == pytest.approx(float(recorded["fd"]), abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dims=st.integers(1, 12),
    counts=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    cut=st.integers(0, 60),
)
def test_statistics_are_numpys(
    seed: int, dims: int, counts: tuple[int, int], offset: float, cut: int
) -> None:
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(offset, 1, (n, dims)) @ rng.normal(0, 1, (dims, dims)) for n in counts)
    one, other = statistics(x, min(cut, len(x))).moments(), statistics(y).moments()
    scale = max(1.0, np.abs(x).max())
    np.testing.assert_allclose(one.mean.numpy(), x.mean(0), rtol=0, atol=1e-13 * scale)
    wanted = np.atleast_2d(np.cov(x, rowvar=False))
    np.testing.assert_allclose(one.covariance.numpy(), wanted, rtol=0, atol=1e-11 * scale)
    assert one.trace.item() == pytest.approx(np.trace(wanted), rel=1e-9)
    np.testing.assert_allclose((one.root @ one.root.T).numpy(), wanted, atol=1e-10 * scale)

    # However singular the covariances are: the singular values of the features themselves.
    halves = [(z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y)]
    overlap = np.linalg.svd(halves[0] @ halves[1].T, compute_uv=False).sum()
    shift = x.mean(0) - y.mean(0)
    traces = sum(np.square(half).sum() for half in halves)
    expected = shift @ shift + traces - 2 * overlap
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-7, abs=1e-6)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-7, abs=1e-6)


def test_same_as_scipy() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (400, 40)) @ rng.normal(0, 1, (40, 40))
    y = 0.3 + rng.normal(0, 1, (90, 40)) @ rng.normal(0, 1, (40, 40))
    distance = frechet_distance(statistics(x, 7, 333).moments(), statistics(y).moments())
    assert distance == pytest.approx(by_scipy(x, y), rel=1e-9)


def test_closed_form() -> None:
    """Covariances that commute: tr (S T)^(1/2) is the sum of the roots of the products."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
    values = np.geomspace(1e-8, 10, 30), np.geomspace(5, 1e-6, 30)
    one, other = (
        Moments(
            torch.full((30,), mean, dtype=torch.float64),
            None,
            given=torch.from_numpy((basis * value) @ basis.T),
        )
        for value, mean in zip(values, (0.0, 0.1), strict=True)
    )
    wanted = 30 * 0.01 + np.square(np.sqrt(values[0]) - np.sqrt(values[1])).sum()
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_of_a_set_and_itself_it_is_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(9, 20))
    assert 0 <= frechet_distance(statistics(x).moments(), statistics(x, 4).moments()) < 1e-12


def test_a_large_mean_does_not_cancel() -> None:
    """A running sum of squares would lose all digits here."""
    x = np.random.default_rng(0).normal(size=(500, 4))
    moments = statistics(x + 1e8, 100).moments()
    np.testing.assert_allclose(moments.covariance.numpy(), np.cov(x, rowvar=False), rtol=1e-6)


def test_memory_is_bounded() -> None:
    counted = FeatureStatistics(16)
    for _ in range(50):
        counted.update(torch.randn(7, 16))
        tensors = [value for value in vars(counted).values() if isinstance(value, torch.Tensor)]
        assert sum(tensor.numel() for tensor in tensors) <= 2 * 16 * 16 + 16
    assert counted.count == 350


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 6))
    path = tmp_path / "stats.npz"
    statistics(x).moments(features="rfid", weights="abc").save(path)
    again = Moments.load(path)
    assert (again.count, again.about) == (50, {"features": "rfid", "weights": "abc"})
    with np.load(path) as file:  # as pytorch-fid reads it
        np.testing.assert_allclose(file["mu"], x.mean(0), atol=1e-14)
        np.testing.assert_allclose(file["sigma"], np.cov(x, rowvar=False), atol=1e-14)
        assert json.loads(str(file["about"]))["count"] == 50
    other = statistics(x + 0.5).moments()
    assert frechet_distance(again, other) == pytest.approx(6 * 0.25, rel=1e-9)


def test_a_file_of_pytorch_fid(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 6))
    np.savez(tmp_path / "fid.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    loaded = Moments.load(tmp_path / "fid.npz")
    assert (loaded.count, loaded.about) == (None, {})
    assert frechet_distance(loaded, statistics(x).moments()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.zeros((2, 2))},
        {"mu": np.full(2, np.nan), "sigma": np.eye(2)},
        {"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.0, 1.0]])},
        {"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array("[1]")},
        {"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array("not json")},
    ],
)
def test_other_files_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    np.savez(path, **arrays)
    with pytest.raises(WetokError, match="not statistics of features") as caught:
        Moments.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "junk", tmp_path / "text", tmp_path / "absent"):
        with pytest.raises(WetokError, match="not statistics of features"):
            Moments.load(path)


def test_mistakes() -> None:
    with pytest.raises(WetokError, match="dims=0"):
        FeatureStatistics(0)
    counted = FeatureStatistics(3)
    counted.update(torch.ones(1, 3))
    with pytest.raises(WetokError, match="1 images: a Frechet distance needs at least two"):
        counted.moments()
    with pytest.raises(WetokError, match=r"\[2, 4\], not \[B, 3\]"):
        counted.update(torch.ones(2, 4))
    with pytest.raises(WetokError, match="NaN or infinity"):
        counted.update(torch.full((1, 3), torch.nan))
    assert counted.count == 1
    x = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(WetokError, match="3 and 2 values"):
        frechet_distance(statistics(x).moments(), statistics(x[:, :2]).moments())
