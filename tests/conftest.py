"""Fixtures that every test may use: where the reference vectors and photographs lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# A loaded machine is slow, and no fault of what is tested.
settings.register_profile("wetok", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wetok")


def _existing(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{what} not found at {folder}; set WETOK_SHARED to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data: $WETOK_SHARED, or `shared` beside the repository."""
    return _existing(Path(os.environ.get("WETOK_SHARED") or ROOT.parent / "shared"), "shared data")


@pytest.fixture(scope="session")
def fixtures_dir(shared: Path) -> Path:
    """Reference vectors: `released/`, `metrics/`."""
    return _existing(shared / "fixtures", "reference vectors")


@pytest.fixture(scope="session")
def photos_dir(shared: Path) -> Path:
    """Photographs: `train/`, `val/`."""
    return _existing(shared / "photos", "photographs")


@pytest.fixture(scope="session")
def weights_dir(shared: Path) -> Path:
    """Pretrained parts, such as `lpips_alex.safetensors`."""
    return _existing(shared / "weights", "pretrained weights")
