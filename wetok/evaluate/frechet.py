"""Frechet distance of two sets of features, from statistics gathered in constant memory.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
NeurIPS 2017, equation 6: with means m, n and covariances S, T,

    d = |m - n|^2 + tr S + tr T - 2 tr (S T)^(1/2)

The last trace needs no root of the product S T, which is not symmetric, and which `scipy.linalg.
sqrtm` takes minutes for and loses half the digits of where S is singular. For any A, B with
S = A A' and T = B B', the eigenvalues of S T are those of (A'B)(A'B)', so the trace of the root is
the sum of the singular values of A'B. A is the centered features themselves while they are few,
and V sqrt(L) from the symmetric eigendecomposition S = V L V' otherwise.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wetok.checkpoint import written_beside
from wetok.config import WetokError
from wetok.evaluate.processes import gathered, summed


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean [D] and covariance [D,D] of a set of features, in float64."""

    mean: Tensor
    count: int | None
    """Size of the set, where known."""
    about: dict[str, Any] = field(default_factory=dict)
    """What was measured, as JSON would hold it: the feature network, the images."""
    given: Tensor | None = None
    """The covariance, where it is at hand."""
    centered: Tensor | None = None
    """Otherwise all features less their mean, [count, D]."""

    def check(self, name: str, width: int, **made: str | None) -> None:
        """Raises WetokError unless these are statistics of `width` features, made as `made` tells.

        What a file does not tell of (pytorch-fid's tell nothing) is taken to be right.
        """
        if len(self.mean) != width:
            raise WetokError(
                f"reference for {name!r} has {len(self.mean)} values, not {width}: it is of "
                "another network"
            )
        for key, value in {"features": name, **made}.items():
            if self.about.get(key, value) != value:
                raise WetokError(
                    f"reference for {name!r} has {key} {self.about[key]}, not {value}: numbers "
                    "made differently can't be compared"
                )

    @property
    def covariance(self) -> Tensor:
        """[D,D], divided by count - 1."""
        if self.given is not None:
            return self.given
        assert self.centered is not None and self.count is not None
        return self.centered.T @ self.centered / (self.count - 1)

    @cached_property
    def root(self) -> Tensor:
        """[D,r] A such that the covariance is A A'."""
        if self.centered is not None and self.count is not None:
            return self.centered.T / (self.count - 1) ** 0.5
        values, vectors = torch.linalg.eigh(self.covariance)
        if self.count is not None and self.count <= len(values):
            values[: len(values) - self.count + 1] = 0  # the rank is below the count
        # What rounding makes of zeros: their roots would count, 2^-26 of the largest each.
        noise = values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
        kept = values > noise
        root: Tensor = vectors[:, kept] * values[kept].sqrt()
        return root

    @property
    def trace(self) -> Tensor:
        """Of the covariance."""
        if self.given is not None:
            return self.given.trace()
        return self.root.square().sum()

    def save(self, path: str | Path) -> None:
        """Writes a `.npz` file with `mu` and `sigma`, as pytorch-fid does, and with `about`."""
        about = json.dumps({**self.about, "count": self.count}, ensure_ascii=False)
        with written_beside(Path(path)) as beside, open(beside, "wb") as stream:
            np.savez(
                stream, mu=self.mean.numpy(), sigma=self.covariance.numpy(), about=np.array(about)
            )

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """What `save` or pytorch-fid wrote; the latter says nothing of count and network.

        Raises:
            WetokError: the file can't be read, or holds no such statistics.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                mean, covariance = (np.asarray(file[key], np.float64) for key in ("mu", "sigma"))
                about = json.loads(str(file["about"])) if "about" in file else {}
            if mean.ndim != 1 or covariance.shape != mean.shape * 2 or not len(mean):
                raise ValueError(f"mu is {mean.shape} and sigma {covariance.shape}")
            if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
                raise ValueError("it holds NaN or infinity")
            if not isinstance(about, dict):
                raise ValueError("its description is not a JSON object")
            if np.abs(covariance - covariance.T).max() > 1e-6 * np.abs(covariance).max():
                raise ValueError("sigma is not symmetric")
        except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise WetokError(
                f"{path}: not statistics of features (an .npz file with mu and sigma): {reason}"
            ) from None
        count = about.pop("count", None)
        return cls(
            torch.from_numpy(mean),
            count if isinstance(count, int) else None,
            about,
            torch.from_numpy((covariance + covariance.T) / 2),
        )


def frechet_distance(one: Moments, other: Moments) -> float:
    """The distance of two sets; 0 for equal mean and covariance.

    Raises:
        WetokError: features of two widths.
    """
    if one.mean.shape != other.mean.shape:
        raise WetokError(
            f"the features have {len(one.mean)} and {len(other.mean)} values: a distance needs one "
            "feature network"
        )
    shift = (one.mean - other.mean).square().sum()
    overlap = torch.linalg.svdvals(one.root.T @ other.root).sum()
    # The true value is never negative; equal sets may round to a little below 0.
    return max(0.0, (shift + one.trace + other.trace - 2 * overlap).item())


class FeatureStatistics:
    """Gathers mean and covariance of features [B,D] from batch to batch.

    Up to D features are kept as they are; more are folded, D at a time, into a mean and a sum of
    outer products by Chan, Golub and LeVeque's update (1979), which does not cancel as the running
    sum of squares does. So memory never grows beyond two D x D tables of float64.
    """

    def __init__(self, dims: int) -> None:
        if dims < 1:
            raise WetokError(f"dims={dims} must be at least 1")
        self.dims = dims
        self.count = 0
        self._kept = 0  # rows of the buffer in use
        self._rows = torch.empty(0, dims, dtype=torch.float64)
        self._mean = torch.zeros(dims, dtype=torch.float64)
        self._scatter: Tensor | None = None  # [D,D] of the features that were folded

    def update(self, features: Tensor) -> None:
        """Counts features [B,D] of any floating type and device.

        Raises:
            WetokError: another shape, or a value that is not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dims:
            raise WetokError(f"features have shape {list(features.shape)}, not [B, {self.dims}]")
        rows = features.detach().cpu().double()  # in this order: some devices have no float64
        if not rows.isfinite().all():
            raise WetokError("features hold NaN or infinity: there is no mean of them")
        while len(rows):
            if self._kept == self.dims:
                self._fold()
            taken = min(len(rows), self.dims - self._kept)
            self._reserve(self._kept + taken)
            self._rows[self._kept : self._kept + taken] = rows[:taken]
            self._kept += taken
            self.count += taken
            rows = rows[taken:]

    def moments(self, **about: Any) -> Moments:
        """Of everything counted so far; `about` is kept with it.

        Raises:
            WetokError: fewer than two features were counted.
        """
        if self.count < 2:
            raise WetokError(f"{self.count} images: a Frechet distance needs at least two")
        if self._scatter is None:
            rows = self._rows[: self._kept]
            mean = rows.mean(0)
            return Moments(mean, self.count, about, centered=rows - mean)
        mean, scatter = self._folded()
        return Moments(mean, self.count, about, scatter / (self.count - 1))

    def total(self) -> FeatureStatistics:
        """What all processes have counted, each feature once; every rank must call it."""
        total = FeatureStatistics(self.dims)
        counts = summed(torch.tensor([self.count, int(self._scatter is not None)]))
        if counts[1] == 0 and counts[0] <= self.dims:
            for rows in gathered(self._rows[: self._kept].numpy()):
                total.update(torch.from_numpy(rows))
            return total
        # Chan's merge for any number of parts: all move to the common mean.
        total.count = int(counts[0])
        mean, scatter = self._folded()
        total._mean = summed(mean * self.count) / total.count
        shift = mean - total._mean
        total._scatter = summed(scatter + self.count * torch.outer(shift, shift))
        return total

    def _reserve(self, size: int) -> None:
        if size > len(self._rows):
            grown = torch.empty(min(self.dims, 2 * size), self.dims, dtype=torch.float64)
            grown[: self._kept] = self._rows[: self._kept]
            self._rows = grown

    def _fold(self) -> None:
        self._mean, self._scatter = self._folded()
        self._kept = 0

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Mean and scatter of everything; nothing is changed."""
        scatter = self._scatter
        if scatter is None:
            scatter = torch.zeros(self.dims, self.dims, dtype=torch.float64)
        if not self._kept:
            return self._mean, scatter
        rows = self._rows[: self._kept]
        mean = rows.mean(0)
        rows = rows - mean
        before = self.count - self._kept
        shift = mean - self._mean
        scatter = torch.addmm(scatter, rows.T, rows)
        scatter.addr_(shift, shift, alpha=before * self._kept / self.count)
        return self._mean + shift * (self._kept / self.count), scatter
