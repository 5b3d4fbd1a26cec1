"""The networks that scores look through: LPIPS distances, and features for a Frechet distance.

An image goes through each network once, whatever the number of scores that use it: LPIPS-vgg and
`fd-vgg` share their features, and the reference's serve all samples of a generative decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wetok.config import WetokError, near
from wetok.evaluate.inception import DIMS, Inception
from wetok.evaluate.winograd import WinogradConv2d, fits
from wetok.losses.perceptual import LPIPS

FD_VGG = "fd-vgg"
_WIDE = 64  # channels from which on Winograd's convolution is the faster one
FRECHET_NAMES = ("rfid", "rfid-torch-fidelity", FD_VGG)


class Looked(NamedTuple):
    """What the networks made of one batch of images."""

    taps: dict[str, list[Tensor]]
    """LPIPS network -> its compared features."""
    features: dict[str, Tensor]
    """Frechet distance -> features [B,D]."""


class Networks:
    """The LPIPS and feature networks of an evaluation.

    The Frechet distances, by name:

    - `rfid`: the published FID Inception in pytorch-fid's convention; `rfid-torch-fidelity`: in
      torch-fidelity's. With any other weights in that network the names are `fd-inception` and
      `fd-inception-torch-fidelity`, for the number is then no FID.
    - `fd-vgg`: the last features of LPIPS-vgg's trunk, VGG16's relu5_3, averaged over positions
      [B,512]; images at the size at which they are scored, not resized.

    Args:
        lpips: distances to report.
        inceptions: at most one of each convention.
        vgg: LPIPS-vgg for `fd-vgg`; the network given in `lpips` will do, and is then run once.

    Raises:
        WetokError: one network twice.
    """

    def __init__(
        self,
        lpips: Sequence[LPIPS] = (),
        inceptions: Sequence[Inception] = (),
        vgg: LPIPS | None = None,
    ) -> None:
        self.lpips: dict[str, LPIPS] = {network.net: network for network in lpips}
        self.inceptions = {frechet_name(network): network for network in inceptions}
        if len(self.lpips) < len(lpips) or len(self.inceptions) < len(inceptions):
            raise WetokError("a network is given twice; a score has one")
        if vgg is not None and vgg.net != "vgg":
            raise WetokError(f"{FD_VGG} needs LPIPS's vgg network, not {vgg.net}")
        self.vgg = vgg
        self._run: dict[str, LPIPS] = dict(self.lpips)
        if vgg is not None:
            self._run["vgg"] = vgg
        self._quick: dict[str, LPIPS] = {}

    @property
    def dims(self) -> dict[str, int]:
        """Frechet distance -> width of its features."""
        dims = {name: DIMS for name in self.inceptions}
        return {**dims, **({FD_VGG: 512} if self.vgg is not None else {})}

    @property
    def hashes(self) -> dict[str, str | None]:
        """Score -> the first 16 hex digits of its weights' SHA-256, None for other weights."""
        return {
            **{f"lpips-{net}": network.weights_hash for net, network in self.lpips.items()},
            **{name: network.weights_hash for name, network in self.inceptions.items()},
            **({FD_VGG: self.vgg.weights_hash} if self.vgg is not None else {}),
        }

    def to(self, device: torch.device) -> Networks:
        """Moves every network; returns this object."""
        for network in (*self._run.values(), *self._quick.values(), *self.inceptions.values()):
            network.to(device)
        return self

    @torch.no_grad()
    def look(self, images: Tensor) -> Looked:
        """[B,3,H,W] in [-1,1] through every network.

        Raises:
            WetokError: the images are too small for an LPIPS network.
        """
        for net, network in self._run.items():
            if min(images.shape[-2:]) < network.smallest:
                height, width = images.shape[-2:]
                raise WetokError(
                    f"image {height}x{width}: LPIPS {net} needs at least {network.smallest} "
                    "pixels a side"
                )
        taps = {net: self._taps(net, images) for net in self._run}
        features = {name: network(images) for name, network in self.inceptions.items()}
        if self.vgg is not None:
            features[FD_VGG] = taps["vgg"][-1].mean((-2, -1))
        return Looked({net: taps[net] for net in self.lpips}, features)

    def _taps(self, net: str, images: Tensor) -> list[Tensor]:
        if net == "alex" or images.device.type != "cpu":
            return self._run[net].taps(images)
        if net not in self._quick:
            self._quick[net] = _quicker(self._run[net])
        return self._quick[net].taps(images.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def distances(self, image: Looked, reference: Looked) -> dict[str, Tensor]:
        """LPIPS of each network, `lpips-alex` and so on: [B]."""
        return {
            f"lpips-{net}": network.between(image.taps[net], reference.taps[net])
            for net, network in self.lpips.items()
        }


def _quicker(network: LPIPS) -> LPIPS:
    """A copy that computes the same features on a CPU in half the time, to about 1e-5.

    Its convolutions are their own, all else is shared with `network`, which stays as it is.
    """
    quicker = copy.copy(network)
    quicker._modules = dict(network._modules)
    quicker.features = nn.ModuleList(
        WinogradConv2d(one) if fits(one) and one.in_channels >= _WIDE else one  # type: ignore[arg-type, operator]
        for one in network.features
    )
    return quicker


def frechet_name(network: Inception) -> str:
    """What a distance of this network's features may be called."""
    name = "rfid" if network.published else "fd-inception"
    return name if network.convention == "pytorch-fid" else f"{name}-{network.convention}"


def check_frechet_name(name: str) -> str:
    """`name`, which must be one of `FRECHET_NAMES`.

    Raises:
        WetokError: it is not; near names are given.
    """
    if name not in FRECHET_NAMES:
        raise WetokError(f"frechet={name!r} is not known{near(name, list(FRECHET_NAMES))}")
    return name
