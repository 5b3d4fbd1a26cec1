"""LPIPS v0.1: how different two images look, by the features of an ImageNet network.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
CVPR 2018 (eq. 1), with the linear heads that its authors published.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wetok.config import WetokError

# Mean and deviation of ImageNet in [0,1] RGB, carried over to images in [-1,1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class _Layer(NamedTuple):
    """One convolution (always followed by ReLU) and what stands around it."""

    channels_in: int
    channels_out: int
    kernel: int
    stride: int
    padding: int
    pool: tuple[int, int] | None
    """Kernel and stride of the max pooling before it."""
    tap: bool
    """Whether its features, after the ReLU, are compared."""


_ALEX = (
    _Layer(3, 64, 11, 4, 2, None, True),
    _Layer(64, 192, 5, 1, 2, (3, 2), True),
    _Layer(192, 384, 3, 1, 1, (3, 2), True),
    _Layer(384, 256, 3, 1, 1, None, True),
    _Layer(256, 256, 3, 1, 1, None, True),
)


def _vgg() -> tuple[_Layer, ...]:
    layers: list[_Layer] = []
    before = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for index in range(count):
            pool = (2, 2) if index == 0 and layers else None
            layers.append(_Layer(before, width, 3, 1, 1, pool, index == count - 1))
            before = width
    return tuple(layers)


_NETS = {"alex": _ALEX, "vgg": _vgg()}
_BAND = 1 << 18
"""Values of a band of feature maps that stays in a processor's cache; measured."""
_SMALLEST = {"alex": 31, "vgg": 16}
"""Side below which a pooling layer has nothing left to pool."""


class LPIPS(nn.Module):
    """Learned perceptual distance of image pairs; 0 for equal images, lower is more alike.

        [B,3,H,W] in [-1,1] -> 5 feature maps, each scaled to unit length per position
            -> squared difference, weighted per channel, mean over positions, summed -> [B]

    Weights are frozen and start random: `from_file` fills them. Distances are taken in float32
    (float64 for a float64 network) from whatever autocast makes of the convolutions.
    """

    shift: Tensor
    scale: Tensor
    weights_hash: str | None = None
    """The first 16 hex digits of the SHA-256 of the weights' file; scores are told with it."""

    def __init__(self, net: Literal["alex", "vgg"] = "vgg") -> None:
        super().__init__()
        if net not in _NETS:
            raise WetokError(f"net={net!r}: LPIPS knows 'alex' and 'vgg'")
        self.net = net
        self.layers = _NETS[net]
        self.smallest = _SMALLEST[net]
        self.features = nn.ModuleList(
            nn.Conv2d(la.channels_in, la.channels_out, la.kernel, la.stride, la.padding)
            for la in self.layers
        )
        self.lin = nn.ModuleList(
            nn.Conv2d(la.channels_out, 1, 1, bias=False) for la in self.layers if la.tap
        )
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_file(cls, path: str | Path, net: Literal["alex", "vgg"] = "vgg") -> LPIPS:
        """The network with the weights in a safetensors file.

        Raises:
            WetokError: the file can't be read or holds another network.
        """
        lpips = cls(net)
        try:
            data = Path(path).read_bytes()
            state = load(data)
            lpips.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise WetokError(f"{path}: not the weights of LPIPS {net}: {reason}") from None
        lpips.weights_hash = hashlib.sha256(data).hexdigest()[:16]
        return lpips

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation mode: these weights are a ruler, not a student."""
        return super().train(False)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance [B] of image and reference, [B,3,H,W] in [-1,1] each; grads reach `image`.

        Raises:
            WetokError: shapes differ, or the images are too small for the network.
        """
        if image.shape != reference.shape or image.ndim != 4 or image.shape[1] != 3:
            raise WetokError(
                f"image {tuple(image.shape)} and reference {tuple(reference.shape)}: LPIPS takes "
                "two batches [B,3,H,W] of one shape"
            )
        if min(image.shape[-2:]) < self.smallest:
            raise WetokError(
                f"image {image.shape[-2]}x{image.shape[-1]}: LPIPS {self.net} needs at least "
                f"{self.smallest} pixels a side"
            )
        with torch.no_grad():
            wanted = self._features(reference)
        # Each tap is compared as soon as it is there, so that backward is through with a tap
        # before it comes to the larger ones; and only the features are kept for it.
        distances: list[Tensor] = []
        heads = list(self.lin.parameters())
        x = self._enter(image)
        for layer, convolution in zip(self.layers, self.features, strict=True):
            x = _apply(layer, convolution, x)
            if layer.tap:
                number = len(distances)
                given = (heads[number], x, wanted[number])
                if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                    distance = checkpoint(
                        _distance, *given, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    distance = _distance(*given)
                distances.append(distance)
        return _sum(distances)

    def taps(self, image: Tensor) -> list[Tensor]:
        """The compared features, after their ReLU, of [B,3,H,W] in [-1,1]: five maps [B,C,h,w]."""
        return [_wide(tap) for tap in self._features(image)]

    def between(self, image: list[Tensor], reference: list[Tensor]) -> Tensor:
        """Distance [B] of two batches whose `taps` are at hand; `forward` checks, this does not."""
        given = zip(self.lin.parameters(), image, reference, strict=True)
        return _sum([_distance_in_bands(*each) for each in given])

    def _features(self, image: Tensor) -> list[Tensor]:
        x, taps = self._enter(image), []
        for layer, convolution in zip(self.layers, self.features, strict=True):
            x = _apply(layer, convolution, x)
            if layer.tap:
                taps.append(x)
        return taps

    def _enter(self, image: Tensor) -> Tensor:
        return (image - self.shift) / self.scale


def _apply(layer: _Layer, convolution: nn.Module, x: Tensor) -> Tensor:
    if layer.pool:
        x = F.max_pool2d(x, *layer.pool)
    return F.relu_(convolution(x))


def _distance(head: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """[B], of one tap of two batches, [B,C,h,w] each."""
    # The head is a 1x1 convolution to one channel, written out so that autocast leaves it.
    difference = _unit_length(_wide(one)) - _unit_length(_wide(other))
    return (difference.square() * head[0]).sum(1).mean((-2, -1))


def _distance_in_bands(head: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`_distance`, on a CPU by as many rows at a time as stay in its cache."""
    if one.device.type != "cpu":
        return _distance(head, one, other)
    rows = max(1, _BAND // (one[0].numel() // one.shape[-2]))
    total = torch.zeros(len(one), dtype=head.dtype, device=one.device)
    for top in range(0, one.shape[-2], rows):
        band = slice(top, top + rows)
        distance = _distance(head, one[..., band, :], other[..., band, :])
        total += distance * one[..., band, :].shape[-2]
    return total / one.shape[-2]


def _sum(distances: list[Tensor]) -> Tensor:
    total = torch.zeros_like(distances[0])
    for distance in distances:
        total = total + distance
    return total


def _wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _unit_length(features: Tensor) -> Tensor:
    """[B,C,h,w] divided by their length over C; zeros stay zeros, with a finite gradient."""
    # Clamped, for the gradient of a root at 0 (a position no feature fires at) is infinite.
    length = features.square().sum(1, keepdim=True).clamp_min(1e-24).sqrt()
    return features / (length + 1e-10)
