"""The FID InceptionV3: the network whose pooled features the Frechet inception distance compares.

It is TensorFlow's `inception-2015-12-05` graph, as Heusel et al. used it ("GANs Trained by a Two
Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017). Against the InceptionV3
of the papers: batch norms have eps 0.001, average pooling leaves the padding out, and the last
block pools with a maximum. Modules are named as in the published PyTorch weights, `pt_inception-
2015-12-05-6726825d.pth`, so that those load by name.

Before the network comes a resize to 299 x 299, and there are two conventions:

- `pytorch-fid`: values in [0,1], bilinear with half-pixel centers, not antialiased, then 2x - 1.
- `torch-fidelity`: 8-bit values, bilinear as TensorFlow 1 did it (output position i looks at input
  position i * in / out, without half-pixel centers), then (x - 128) / 128.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wetok.config import WetokError
from wetok.data.images import to_uint8
from wetok.weights import PARTS

Convention = Literal["pytorch-fid", "torch-fidelity"]
SIDE = 299
DIMS = 2048


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(channels_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.bn(self.conv(x)))

    def fold(self) -> None:
        """Takes the batch norm into the convolution: one pass over the image less, same values."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()


def _mean3(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _max3(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


class _BlockA(nn.Module):
    """35 x 35 positions."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(channels, 64, 1)
        self.branch5x5_1 = _Unit(channels, 48, 1)
        self.branch5x5_2 = _Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Unit(channels, 64, 1)
        self.branch3x3dbl_2 = _Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, padding=1)
        self.branch_pool = _Unit(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean3(x))], 1)


class _BlockB(nn.Module):
    """35 x 35 positions to 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Unit(channels, 384, 3, 2)
        self.branch3x3dbl_1 = _Unit(channels, 64, 1)
        self.branch3x3dbl_2 = _Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class _BlockC(nn.Module):
    """17 x 17 positions; 7 x 7 windows as a row and a column."""

    def __init__(self, width: int) -> None:
        super().__init__()
        row: tuple[tuple[int, int], tuple[int, int]] = ((1, 7), (0, 3))
        column: tuple[tuple[int, int], tuple[int, int]] = ((7, 1), (3, 0))
        self.branch1x1 = _Unit(768, 192, 1)
        self.branch7x7_1 = _Unit(768, width, 1)
        self.branch7x7_2 = _Unit(width, width, row[0], padding=row[1])
        self.branch7x7_3 = _Unit(width, 192, column[0], padding=column[1])
        self.branch7x7dbl_1 = _Unit(768, width, 1)
        self.branch7x7dbl_2 = _Unit(width, width, column[0], padding=column[1])
        self.branch7x7dbl_3 = _Unit(width, width, row[0], padding=row[1])
        self.branch7x7dbl_4 = _Unit(width, width, column[0], padding=column[1])
        self.branch7x7dbl_5 = _Unit(width, 192, row[0], padding=row[1])
        self.branch_pool = _Unit(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean3(x))], 1)


class _BlockD(nn.Module):
    """17 x 17 positions to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Unit(768, 192, 1)
        self.branch3x3_2 = _Unit(192, 320, 3, 2)
        self.branch7x7x3_1 = _Unit(768, 192, 1)
        self.branch7x7x3_2 = _Unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Unit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Unit(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)


class _BlockE(nn.Module):
    """8 x 8 positions; the first of the two pools with a mean, the last with a maximum."""

    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = _Unit(channels, 320, 1)
        self.branch3x3_1 = _Unit(channels, 384, 1)
        self.branch3x3_2a = _Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Unit(channels, 448, 1)
        self.branch3x3dbl_2 = _Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Unit(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = _max3(x) if self.last else _mean3(x)
        return torch.cat(
            [
                self.branch1x1(x),
                *(self.branch3x3_2a(three), self.branch3x3_2b(three)),
                *(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)),
                self.branch_pool(pooled),
            ],
            1,
        )


class Inception(nn.Module):
    """Images to the 2048 features that FID compares; weights start random (`from_file`).

        [B,3,H,W] in [-1,1] -> 299 x 299 -> stem -> blocks A, B, C, D, E -> mean -> [B,2048]

    Frozen, always in evaluation mode. Of the classifier of the published file the weights are kept,
    where they are there: the Inception score looks through them, without the bias.
    """

    classifier: Tensor | None

    weights_hash: str | None = None
    """The first 16 hex digits of the SHA-256 of the weights' file."""
    published: bool = False
    """Whether the weights are byte for byte the published file, so that the distance may be FID."""

    def __init__(self, convention: Convention = "pytorch-fid") -> None:
        super().__init__()
        if convention not in ("pytorch-fid", "torch-fidelity"):
            raise WetokError(f"convention={convention!r} must be 'pytorch-fid' or 'torch-fidelity'")
        self.convention = convention
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3)
        self.Mixed_5b = _BlockA(192, 32)
        self.Mixed_5c = _BlockA(256, 64)
        self.Mixed_5d = _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(128)
        self.Mixed_6c = _BlockC(160)
        self.Mixed_6d = _BlockC(160)
        self.Mixed_6e = _BlockC(192)
        self.Mixed_7a = _BlockD()
        self.Mixed_7b = _BlockE(1280, last=False)
        self.Mixed_7c = _BlockE(2048, last=True)
        self.register_buffer("classifier", None, persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_file(cls, path: str | Path, convention: Convention = "pytorch-fid") -> Inception:
        """The network with the weights in a `.pth` file as published, or a safetensors file.

        Raises:
            WetokError: the file can't be read or holds another network.
        """
        with torch.device("meta"):  # the weights come from the file, so none need be drawn
            network = cls(convention)
        try:
            data = Path(path).read_bytes()
            state = _read(data)
            network.load_state_dict(_needed(state), assign=True)
            network.classifier = _classifier(state)
        except (
            *(OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError),
            *(pickle.UnpicklingError, AttributeError, TypeError),
        ) as error:
            reason = " ".join(str(error).split())[:200]
            raise WetokError(f"{path}: not the weights of the FID Inception: {reason}") from None
        digest = hashlib.sha256(data).hexdigest()
        network.weights_hash = digest[:16]
        network.published = digest == PARTS["inception-fid"].sha256
        return network.fold()

    def fold(self) -> Inception:
        """Batch norms into their convolutions, and the layout that CPUs convolve fastest in."""
        for module in self.modules():
            if isinstance(module, _Unit):
                module.fold()
        self.requires_grad_(False)
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> Inception:
        """Stays in evaluation mode: these weights are a ruler."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1] to features [B,2048]; any size from 1 x 1 on."""
        x = resized(images, self.convention).contiguous(memory_format=torch.channels_last)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((-2, -1))

    def logits(self, features: Tensor) -> Tensor:
        """Of features [B,2048] the 1008 classes, without the bias: [B,1008].

        So the published Inception scores are computed: the graph's own product leaves it out.

        Raises:
            WetokError: the weights came without the classifier.
        """
        if self.classifier is None:
            raise WetokError("these weights of the FID Inception hold no classifier (fc.weight)")
        return features @ self.classifier.T


def resized(images: Tensor, convention: Convention) -> Tensor:
    """[B,3,H,W] in [-1,1] to the network's input [B,3,299,299], by the convention."""
    if convention == "torch-fidelity":
        return (_resize_as_tensorflow1(to_uint8(images).float()) - 128) / 128
    x = F.interpolate((images + 1) / 2, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * x - 1


def _resize_as_tensorflow1(image: Tensor) -> Tensor:
    """[B,C,H,W] to [B,C,299,299]: output i lies at input i * size / 299; rows after columns."""
    for axis in (-1, -2):
        size = image.shape[axis]
        # In float32, as TensorFlow computed the positions.
        place = torch.arange(SIDE, device=image.device) * torch.tensor(size / SIDE)
        low = place.floor().long().clamp_max(size - 1)
        share = place - low
        high = (low + 1).clamp_max(size - 1)
        share = share if axis == -1 else share[:, None]
        one, other = image.index_select(axis, low), image.index_select(axis, high)
        image = one + (other - one) * share
    return image


def _read(data: bytes) -> dict[str, Tensor]:
    if data[:2] in (b"PK", b"\x80\x02"):  # a zip archive or a bare pickle, as torch.save writes
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    return load(data)


def _classifier(state: dict[str, Tensor]) -> Tensor | None:
    """[1008,2048], where the file holds it."""
    weight = state.get("fc.weight")
    if weight is not None and (weight.ndim != 2 or weight.shape[1] != DIMS):
        raise ValueError(f"fc.weight is {list(weight.shape)}, not [1008,{DIMS}]")
    return None if weight is None else weight.float()


def _needed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the classifier; with the counters of batch norm that the published file lacks."""
    kept = {name: tensor.float() for name, tensor in state.items() if not name.startswith("fc.")}
    for name in list(kept):
        if name.endswith("running_var"):
            kept.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return kept
