"""Scores of a tokenizer or another system on photographs, image by image, in constant memory."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

import wetok
from wetok.config import WetokError
from wetok.distributed import rank, world_size
from wetok.evaluate.codes import CodeStatistics
from wetok.evaluate.frechet import FeatureStatistics, Moments, frechet_distance
from wetok.evaluate.networks import Looked, Networks
from wetok.evaluate.pixels import psnr, ssim
from wetok.evaluate.processes import gathered
from wetok.evaluate.protocols import Protocol, preprocessing_hash
from wetok.evaluate.rows import Rows
from wetok.evaluate.systems import Reconstruction, System, TokenizerSystem
from wetok.losses.perceptual import LPIPS
from wetok.model.tokenizer import Tokenizer

LOWER_IS_BETTER = ("lpips-", "rfid", "fd-", "fid")
_AHEAD = 2  # images that are read while another is scored


class _Loaded(NamedTuple):
    name: str
    path: Path
    image: Image.Image
    content: bytes


class _Original(NamedTuple):
    """What every system's reconstruction of an image is compared with."""

    image: Tensor
    """[1,3,H,W] in [-1,1], on a CPU: what systems get."""
    pixels: Tensor
    looked: Looked


class Scored(NamedTuple):
    """One image with its scores, for whoever watches an evaluation."""

    place: int
    """In the list of images."""
    row: dict[str, Any]
    original: Tensor
    samples: list[Tensor]
    """One a seed; like the original uint8 [1,3,H,W], the pixels that PSNR saw."""


class Evaluation:
    """Runs images through a system and keeps means, statistics and each image's scores.

        file -> protocol -> system -> reconstruction, one a seed
        both ends -> PSNR, SSIM (8-bit), LPIPS, features -> running statistics

    Scores: PSNR (dB) and SSIM (scikit-image's definition) on 8-bit values, LPIPS of each network
    given, Frechet distances, usage and entropy of every group's codes, the balance of every bit,
    sizes and times. With several processes each takes every n-th image, and `gather` joins them.

    Args:
        system: a tokenizer of ours, or any `System`.
        protocol: how images are read, cropped and made 8-bit.
        lpips: networks for LPIPS; or `Networks`, which also hold those of Frechet distances.
        seed: of a generative decoder's noise.
        samples: how many reconstructions a generative decoder makes of each image, with seeds
            seed, seed + 1, ...; scores are those of the first, beside mean, best and spread.
        reference: Frechet distance -> statistics to compare with instead of the originals';
            the scores are then called `fid` for `rfid`, and `...-to-reference` for the others.
        watch: is shown every image once it is scored, and nothing is kept for it.

    Raises:
        WetokError: several samples of a deterministic decoder, or a reference for a distance that
            is not measured or of another network, protocol or width.
    """

    def __init__(
        self,
        system: Tokenizer | System,
        protocol: Protocol,
        lpips: Sequence[LPIPS] | Networks = (),
        seed: int = 0,
        samples: int = 1,
        reference: Mapping[str, Moments] | None = None,
        watch: Callable[[Scored], None] | None = None,
    ) -> None:
        self.system: System = TokenizerSystem(system) if isinstance(system, Tokenizer) else system
        self.protocol, self.seed, self.watch = protocol, seed, watch
        if samples < 1:
            raise WetokError(f"samples={samples} must be at least 1")
        if samples > 1 and not self.system.generative:
            raise WetokError(
                f"samples={samples}: the decoder of {self.system.name!r} is deterministic, so all "
                "would be the same; leave samples at 1"
            )
        self.seeds = range(seed, seed + samples)
        networks = lpips if isinstance(lpips, Networks) else Networks(lpips)
        self.networks = networks.to(self.system.device)
        self.codes = CodeStatistics(*self.system.code_shape) if self.system.code_shape else None
        self.images = Rows()
        self.failures: list[str] = []
        dims = networks.dims
        self.originals = {name: FeatureStatistics(width) for name, width in dims.items()}
        self.reconstructions = {
            name: [FeatureStatistics(width) for _ in self.seeds] for name, width in dims.items()
        }
        self.reference = dict(reference or {})
        for name, moments in self.reference.items():
            self._check_reference(name, moments)
        self._gathered = False

    def add(self, path: Path) -> dict[str, Any]:
        """Scores the image at `path`.

        Raises:
            WetokError: it can't be read, or is too small for a score; it then counts nowhere.
        """
        loaded = self._load(path)
        return self._score(len(self.images), loaded, self._original(loaded))

    def add_image(self, image: Image.Image, name: str) -> dict[str, Any]:
        """Scores an RGB image in memory; the protocol's way of reading files does not apply.

        Raises:
            WetokError: as for `add`.
        """
        content = hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).digest()
        loaded = _Loaded(name, Path(name), image, content)
        return self._score(len(self.images), loaded, self._original(loaded))

    def add_all(self, paths: Iterable[Path], step: Callable[[], None] = lambda: None) -> None:
        """Scores every image; what fails is listed in `failures`, one line each, the rest go on.

        Of several processes, each takes its share: every one must be given the same list.
        """
        score_together([self], paths, step)

    def gather(self) -> None:
        """Joins what all processes have scored; afterwards each of them has the whole.

        Every process must call it, once, after its last image. Alone it does nothing.
        """
        if world_size() == 1:
            return
        if self._gathered:
            raise WetokError("this evaluation was gathered before: images would count twice")
        self._gathered = True
        self.images = Rows.merged(gathered(self.images))
        self.failures = [line for lines in gathered(self.failures) for line in lines]
        if self.codes is not None:
            self.codes = self.codes.total()
        self.originals = {name: one.total() for name, one in self.originals.items()}
        self.reconstructions = {
            name: [one.total() for one in ones] for name, ones in self.reconstructions.items()
        }

    def summary(self) -> dict[str, Any]:
        """Means over the images and totals, with what is needed to know what they mean.

        Raises:
            WetokError: no image was scored.
        """
        if not self.images:
            raise WetokError("no image could be scored; see the failures listed above")
        about = {
            "model": self.system.name,
            "fingerprint": self.system.fingerprint,
            "protocol": self.protocol.name,
            "protocol_description": self.protocol.description,
            "preprocessing_hash": preprocessing_hash(self.protocol),
            "lpips_weights": {
                net: network.weights_hash for net, network in self.networks.lpips.items()
            },
            "frechet_weights": {name: self.networks.hashes[name] for name in self.originals},
            "images": len(self.images),
            "image_list_hash": self.images.list_hash(),
            "failed": len(self.failures),
            "seed": self.seed,
            "samples": len(self.seeds),
        }
        names = [
            name
            for name in self.images.columns
            if name in ("psnr", "ssim")
            or (name.startswith("lpips-") and ":" not in name)  # those are in "of_samples"
            or name.endswith("_seconds")
        ]
        precision = getattr(self.system, "precision", None)
        return {
            **about,
            **self._sizes(),
            **{name: self.images.mean(name) for name in names},
            **self._frechet(),
            **self._codes(),
            **({"of_samples": self._of_samples()} if len(self.seeds) > 1 else {}),
            "device": self.system.device.type,
            **({"precision": precision} if precision is not None else {}),
            "versions": versions(),
        }

    def moments(self, name: str, originals: bool = True) -> Moments:
        """Statistics of a Frechet distance's features, fit to be a `reference` elsewhere.

        Raises:
            WetokError: fewer than two images, or no such distance is measured.
        """
        if name not in self.originals:
            raise WetokError(f"frechet={name!r} is not measured here")
        counted = self.originals[name] if originals else self.reconstructions[name][0]
        return counted.moments(
            features=name,
            weights=self.networks.hashes[name],
            protocol=self.protocol.name,
            preprocessing_hash=preprocessing_hash(self.protocol),
            image_list_hash=self.images.list_hash(),
            of="originals" if originals else f"{self.system.name} {self.system.fingerprint}",
        )

    def _load(self, path: Path) -> _Loaded:
        image = self.protocol.load(path)
        return _Loaded(path.name, path, image, hashlib.sha256(path.read_bytes()).digest())

    def _ahead(self, paths: Iterator[Path]) -> Iterator[_Loaded | WetokError]:
        """What is at each path, or why not, read while the images before it are scored."""

        def load(path: Path) -> _Loaded | WetokError:
            try:
                return self._load(path)
            except WetokError as error:
                return error
            except OSError as error:
                return WetokError(f"image {str(path)!r} can't be read: {error.strerror}")

        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(load, path) for path in islice(paths, _AHEAD)]
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(load, path) for path in islice(paths, 1)]

    def _original(self, loaded: _Loaded) -> _Original:
        image = self.protocol.to_float(self.protocol.prepare(loaded.image))[None]
        original = image.to(self.system.device)
        looked = self.networks.look(self.protocol.seen(original))
        return _Original(image, self._pixels(original), looked)

    def _pixels(self, image: Tensor) -> Tensor:
        """What PSNR and SSIM compare: uint8, where float64 can be computed with."""
        pixels = self.protocol.to_8bit(image)
        return pixels.cpu() if pixels.device.type == "mps" else pixels

    def _reconstruct(self, loaded: _Loaded, image: Tensor) -> Reconstruction:
        by_file = getattr(self.system, "reconstruct_file", None)  # of a `FileSystem`
        if by_file is None:
            return self.system.reconstruct(image, self.seeds)
        again: Reconstruction = by_file(loaded.path, loaded.image, self.protocol)
        return again

    def _score(self, place: int, loaded: _Loaded, original: _Original) -> dict[str, Any]:
        image, pixels, looked = original
        result = self._reconstruct(loaded, image)
        samples, features, shown = [], [], []
        for again in result.images:
            if again.shape != image.shape:
                raise WetokError(
                    f"{self.system.name!r} made {list(again.shape)} of {list(image.shape)}"
                )
            seen, again_pixels = self.networks.look(self.protocol.seen(again)), self._pixels(again)
            samples.append(
                {
                    "psnr": psnr(again_pixels, pixels).item(),
                    "ssim": ssim(again_pixels, pixels).item(),
                    **{
                        name: value.item()
                        for name, value in self.networks.distances(seen, looked).items()
                    },
                }
            )
            features.append(seen.features)
            if self.watch is not None:
                shown.append(again_pixels)
        values: dict[str, float | None] = {
            "width": image.shape[-1],
            "height": image.shape[-2],
            "bits": result.bits,
            "coded_bytes": result.coded_bytes,
            "payload_bytes": result.payload_bytes,
            **samples[0],
            **(_of_one(samples) if len(samples) > 1 else {}),
            "encode_seconds": result.encode_seconds,
            "decode_seconds": result.decode_seconds,
        }
        # Nothing is counted before everything has gone well.
        for name, counted in self.originals.items():
            counted.update(looked.features[name])
            for sample, one in enumerate(self.reconstructions[name]):
                one.update(features[sample][name])
        if self.codes is not None and result.ids is not None:
            self.codes.update(result.ids)
        self.images.append(place, loaded.name, loaded.content, values)
        row = self.images[-1]
        if self.watch is not None:
            self.watch(Scored(place, row, pixels, shown))
        return row

    def _sizes(self) -> dict[str, float | None]:
        rows = self.images
        sides = zip(rows.columns["width"], rows.columns["height"], strict=True)
        pixels = sum(width * height for width, height in sides)
        bits, coded, payload = map(rows.sum, ("bits", "coded_bytes", "payload_bytes"))
        bpp = None if bits is None else bits / pixels
        coded_bpp = None if coded is None else 8 * coded / pixels
        return {
            "bpp": bpp,
            "ratio": 24 / bpp if bpp else None,
            "coded_bpp": coded_bpp,
            "coded_ratio": 24 / coded_bpp if coded_bpp else None,
            "payload_bpp": None if payload is None else 8 * payload / pixels,
        }

    def _frechet(self) -> dict[str, float]:
        """Distances, of the first sample; left out below two images."""
        if len(self.images) < 2:
            return {}
        return {
            self._frechet_name(name): self._distance(name, self.reconstructions[name][0])
            for name in self.originals
        }

    def _frechet_name(self, name: str) -> str:
        if name not in self.reference:
            return name
        return name.replace("rfid", "fid") if "rfid" in name else f"{name}-to-reference"

    def _distance(self, name: str, counted: FeatureStatistics) -> float:
        reference = self.reference.get(name) or self.originals[name].moments()
        return frechet_distance(counted.moments(), reference)

    def _codes(self) -> dict[str, Any]:
        if self.codes is None:
            return {}
        return {
            "usage": self.codes.usage(),
            "usage_exact": self.codes.exact,
            "dead_bits": self.codes.dead_bits(),
            "token_entropy": self.codes.entropy(),
            "bit_ones": self.codes.bit_ones(),
            "positions": self.codes.positions,
        }

    def _of_samples(self) -> dict[str, dict[str, float | None]]:
        """Score -> mean, best and spread over the samples; means over the images of each."""
        result: dict[str, dict[str, float | None]] = {}
        for column in self.images.columns:
            name, _, what = column.rpartition(":")
            if name:
                result.setdefault(name, {})[what] = self.images.mean(column)
        if len(self.images) >= 2:
            for name, counted in self.reconstructions.items():
                values = [self._distance(name, one) for one in counted]
                result[self._frechet_name(name)] = {
                    "mean": fmean(values),
                    "best": min(values),
                    "spread": _spread(values),
                }
        return result

    def _check_reference(self, name: str, moments: Moments) -> None:
        if name not in self.originals:
            raise WetokError(f"reference for {name!r}, which is not measured here")
        moments.check(
            name,
            self.originals[name].dims,
            weights=self.networks.hashes[name],
            preprocessing_hash=preprocessing_hash(self.protocol),
        )


def score_together(
    evaluations: Sequence[Evaluation],
    paths: Iterable[Path],
    step: Callable[[], None] = lambda: None,
) -> None:
    """`add_all` for several systems: each image is read, and the original looked at, only once.

    Of the networks' work, which is most of it, nearly half is saved. What one system can't take
    counts as failed for that one. `step` is called after each image.

    Raises:
        WetokError: they differ in protocol, networks or device.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        if (
            other.protocol != first.protocol
            or other.networks is not first.networks
            or other.system.device != first.system.device
        ):
            raise WetokError(
                f"{other.system.name!r} and {first.system.name!r} can't be scored together: they "
                "need one protocol, one Networks object and one device"
            )
    share = list(enumerate(paths))[rank() :: world_size()]
    for (place, path), loaded in zip(share, first._ahead(p for _, p in share), strict=True):
        original: _Original | WetokError
        try:
            if isinstance(loaded, WetokError):
                raise loaded
            original = first._original(loaded)
        except WetokError as error:
            original = error
        for one in evaluations:
            try:
                if isinstance(loaded, WetokError) or isinstance(original, WetokError):
                    raise original  # type: ignore[misc]
                one._score(place, loaded, original)
            except WetokError as error:
                text = str(error)
                one.failures.append(text if path.name in text else f"{path}: {text}")
        step()


def versions() -> dict[str, str]:
    """Of everything whose change may change a score."""
    return {
        "wetok": wetok.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def is_lower_better(score: str) -> bool:
    """Whether less of `score` is better: distances, but not PSNR and SSIM."""
    return score.startswith(LOWER_IS_BETTER)


def _of_one(samples: list[dict[str, float]]) -> dict[str, float]:
    """Mean, best and standard deviation (of the sample) of one image's scores over its samples."""
    result = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        result[f"{name}:mean"] = fmean(values)
        result[f"{name}:best"] = min(values) if is_lower_better(name) else max(values)
        result[f"{name}:spread"] = _spread(values)
    return result


def _spread(values: list[float]) -> float:
    """Standard deviation, from n - 1; NaN where one is infinite."""
    with np.errstate(invalid="ignore"):
        return float(np.std(values, ddof=1))
