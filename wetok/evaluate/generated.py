"""How samples compare with real images as a set: Frechet distance, precision, recall; scores."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wetok.config import WetokError
from wetok.data.images import find_images
from wetok.evaluate.evaluation import versions
from wetok.evaluate.frechet import FeatureStatistics, Moments, frechet_distance
from wetok.evaluate.inception import Inception
from wetok.evaluate.networks import Networks, frechet_name
from wetok.evaluate.protocols import Protocol, preprocessing_hash

NEIGHBOURS = 3
"""k of precision and recall."""
SPLITS = 10
"""Parts of the samples that an Inception score is the mean of."""
_ORDER = 2020  # seed of the order that they are split in, as torch-fidelity's
_BLOCK = 1024  # rows of a table of distances


class Images:
    """A set of images: a folder of files, or arr_0 [N,H,W,3] of uint8 in an .npz file.

    Raises:
        WetokError: no such file or folder, no images, or an array of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.array: np.ndarray | None = None
        if self.path.suffix.lower() != ".npz":
            self.files = find_images(self.path)
            return
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                self.array = arrays["arr_0"]
        except FileNotFoundError:
            raise WetokError(f"samples {str(path)!r}: there is no such file") from None
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:150]
            raise WetokError(f"samples {str(path)!r}: no arr_0 can be read: {reason}") from None
        if self.array.dtype != np.uint8 or self.array.ndim != 4 or self.array.shape[-1] != 3:
            raise WetokError(
                f"samples {str(path)!r}: arr_0 is {self.array.dtype} {list(self.array.shape)}, not "
                "uint8 [N,H,W,3]"
            )

    def __len__(self) -> int:
        return len(self.files) if self.array is None else len(self.array)

    def read(self, protocol: Protocol) -> Iterator[tuple[Image.Image, bytes]]:
        """RGB images, and a hash of each one's content; files as the protocol reads them.

        Raises:
            WetokError: a file can't be read: a set with holes is another set.
        """
        if self.array is not None:
            for one in self.array:
                yield Image.fromarray(one), hashlib.sha256(one.tobytes()).digest()
            return
        for file in self.files:
            yield protocol.load(file), hashlib.sha256(file.read_bytes()).digest()


class Seen:
    """What the networks made of a set of images.

    Args:
        keep: whether single features are kept, for precision and recall: 2 kB (`fd-vgg`) or 8 kB
            an image.
        classes: whether what the FID network takes images for is kept, for the Inception score:
            4 kB an image.
    """

    def __init__(
        self, networks: Networks, protocol: Protocol, keep: bool, classes: bool = False
    ) -> None:
        self.networks, self.protocol, self.keep = networks, protocol, keep
        self.judge = judge(networks) if classes else None
        self.logits: list[Tensor] = []
        self.statistics = {name: FeatureStatistics(width) for name, width in networks.dims.items()}
        self.features: dict[str, list[Tensor]] = {name: [] for name in networks.dims}
        self.count = 0
        self._digest = hashlib.sha256()

    def add(self, images: Images, step: Callable[[], None] = lambda: None) -> Seen:
        """Looks at every image; returns this object.

        Raises:
            WetokError: an image can't be read, or is too small for a network.
        """
        for image, content in images.read(self.protocol):
            x = self.protocol.to_float(self.protocol.prepare(image))[None]
            looked = self.networks.look(self.protocol.seen(x))
            for name, feature in looked.features.items():
                self.statistics[name].update(feature)
                if self.keep:
                    self.features[name].append(feature.cpu())
            if self.judge is not None:
                feature = looked.features[frechet_name(self.judge)]
                self.logits.append(self.judge.logits(feature).cpu())
            self._digest.update(content)
            self.count += 1
            step()
        return self

    @property
    def content_hash(self) -> str:
        """16 hex digits over all images, in their order."""
        return self._digest.hexdigest()[:16]


def compare(samples: Seen, real: Seen | Mapping[str, Moments]) -> dict[str, Any]:
    """Scores of `samples` against real images, or against statistics of them.

    `fid`, `fid-torch-fidelity` and `fd-vgg-to-reference` are Frechet distances, as `wetok eval`
    names them; `precision-...` the share of samples among the real images' neighbours,
    `recall-...` of real images among the samples' (Kynkaanniemi et al., "Improved Precision and
    Recall Metric for Assessing Generative Models", NeurIPS 2019, k = 3); these need `real` as
    images, with features kept on both sides.

    `inception_score_mean` and `_std` are torch-fidelity's (`inception_score`), of samples whose
    classes were kept; with other than the published weights they are called
    `other_inception_score_...`. Where there are none, `inception_score_missing` says why.

    Raises:
        WetokError: fewer than two images, statistics of another network or protocol, or of none
            that is measured.
    """
    if samples.count < 2 or (isinstance(real, Seen) and real.count < 2):
        raise WetokError("a distance of sets needs at least two images on either side")
    networks, protocol = samples.networks, samples.protocol
    result: dict[str, Any] = {
        "protocol": protocol.name,
        "protocol_description": protocol.description,
        "preprocessing_hash": preprocessing_hash(protocol),
        "frechet_weights": {name: networks.hashes[name] for name in networks.dims},
        "samples": samples.count,
        "samples_hash": samples.content_hash,
    }
    if isinstance(real, Seen):
        result |= {"real": real.count, "real_hash": real.content_hash}
    result |= _scored(samples)
    for name, counted in samples.statistics.items():
        if isinstance(real, Seen):
            moments = real.statistics[name].moments()
        elif name in real:
            moments = real[name]
            moments.check(
                name,
                counted.dims,
                weights=networks.hashes[name],
                preprocessing_hash=result["preprocessing_hash"],
            )
        else:
            continue
        called = name.replace("rfid", "fid") if "rfid" in name else f"{name}-to-reference"
        result[called] = frechet_distance(counted.moments(), moments)
        if isinstance(real, Seen) and real.keep and samples.keep:
            a, b = (torch.cat(seen.features[name]).double() for seen in (samples, real))
            kind = name.replace("rfid", "inception").replace("fd-", "")
            result[f"precision-{kind}"] = covered(a, b)
            result[f"recall-{kind}"] = covered(b, a)
    if not any(name.startswith(("fid", "fd-")) for name in result):
        listed = ", ".join(real) if not isinstance(real, Seen) else ""
        raise WetokError(f"--reference is of {listed}, which is not measured; give --frechet")
    return {**result, "versions": versions()}


def judge(networks: Networks) -> Inception | None:
    """The network of torch-fidelity's convention, if it is there with its classifier."""
    for network in networks.inceptions.values():
        if network.convention == "torch-fidelity" and network.classifier is not None:
            return network
    return None


def _scored(samples: Seen) -> dict[str, Any]:
    if samples.judge is None:
        conventions = {one.convention for one in samples.networks.inceptions.values()}
        return {
            "inception_score_missing": "the FID network's weights are missing (wetok weights)"
            if not conventions
            else "it needs --frechet rfid-torch-fidelity"
            if "torch-fidelity" not in conventions
            else "the weights hold no classifier"
        }
    if samples.count < SPLITS:
        return {"inception_score_missing": f"it needs {SPLITS} samples at least"}
    mean, spread = inception_score(torch.cat(samples.logits))
    called = "inception_score" if samples.judge.published else "other_inception_score"
    return {f"{called}_mean": mean, f"{called}_std": spread}


def inception_score(logits: Tensor, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and standard deviation, over the splits, of exp E[KL(p(y|x) || p(y))].

    Salimans et al., "Improved Techniques for Training GANs" (NeurIPS 2016), in torch-fidelity's
    convention: the samples' order is drawn anew (NumPy's RandomState(2020)) before they are split.

    Args:
        logits: [N,K], N >= splits.
    """
    order = np.random.RandomState(_ORDER).permutation(len(logits))
    logs = logits[torch.from_numpy(order)].double().log_softmax(1)
    scores = []
    for split in range(splits):
        own = logs[split * len(logs) // splits : (split + 1) * len(logs) // splits]
        overall = own.logsumexp(0) - math.log(len(own))
        divergence = (own.exp() * (own - overall)).sum(1)
        scores.append(divergence.mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def covered(points: Tensor, among: Tensor) -> float:
    """The share of `points` [N,D] that lie in a ball around one of `among` [M,D].

    Each ball reaches to the k-th nearest of the others of `among`.
    """
    nearest = min(NEIGHBOURS, len(among) - 1)
    radii = []
    for start in range(0, len(among), _BLOCK):
        distances = torch.cdist(among[start : start + _BLOCK], among)
        radii.append(distances.kthvalue(nearest + 1, dim=1).values)  # the nearest is itself
    reach = torch.cat(radii)
    inside = 0
    for start in range(0, len(points), _BLOCK):
        distances = torch.cdist(points[start : start + _BLOCK], among)
        inside += int((distances <= reach).any(1).sum())
    return inside / len(points)
