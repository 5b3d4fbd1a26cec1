"""How a model runs: in which precision, memory format and so on, for each device and direction.

The one place that decides, by what was measured (`docs/performance.md`):

    encode           float32: ids must not depend on the machine
    decode           bfloat16 where the device computes it faster, else float32
    float32          planes (contiguous), as trained
    bfloat16         channels last; norms, their statistics and the quantizer stay in float32

Compiling gains nothing on a CPU (docs/performance.md, "What did not help").
"""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor, nn

from wetok.config import WetokError
from wetok.data.images import load_image, to_tensor
from wetok.model.network import TokenizerNetwork

Precision: TypeAlias = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Direction: TypeAlias = Literal["encode", "decode"]

SAMPLES = Path(__file__).parent.parent / "assets" / "photos"
_SAMPLE_SIDE = 192
_PART: dict[Direction, str] = {"encode": "encoder", "decode": "decoder"}
_Network = TypeVar("_Network", bound=nn.Module)


@dataclass(frozen=True)
class Way:
    """How one direction of a model runs."""

    precision: Precision
    memory_format: Literal["contiguous", "channels_last"]
    compiled: bool
    threads: int

    def __str__(self) -> str:
        layout = self.memory_format.replace("_", " ")
        many = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.precision}, {layout}, {'compiled' if self.compiled else 'eager'}, {many}"


def check(precision: str | None) -> Precision | None:
    """`precision` itself, None where it is None or "auto".

    Raises:
        WetokError: neither a precision nor "auto".
    """
    if precision is None or precision == "auto":
        return None
    if precision not in PRECISIONS:
        raise WetokError(f"precision={precision!r} must be one of auto, {', '.join(PRECISIONS)}")
    return precision


def chosen(direction: Direction, device: torch.device, precision: str | None = None) -> Way:
    """How a model runs in `direction` on `device`; `precision` overrides the measured choice.

    Raises:
        WetokError: an unknown precision.
    """
    wanted = check(precision)
    if wanted is None:
        wanted = "bf16" if direction == "decode" and bf16_is_fast(device) else "float32"
    layout: Literal["contiguous", "channels_last"] = (
        "channels_last" if wanted == "bf16" else "contiguous"
    )
    return Way(wanted, layout, compiled=False, threads=torch.get_num_threads())


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware.

    A CPU without such instructions converts to float32 and back, which is slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _BELOW_BF16:
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


_BELOW_BF16 = frozenset(("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"))


class Prepared:
    """A network's parts in other precisions than its own, made when first asked for.

    A part is made anew when the network's weights have changed since.
    """

    def __init__(self, network: TokenizerNetwork) -> None:
        self._network = network
        self._band: tuple[nn.Module, float] | None = None
        self._parts: dict[tuple[Direction, Precision], tuple[tuple[object, ...], nn.Module]] = {}

    def network(self, direction: Direction, way: Way) -> TokenizerNetwork:
        """The network with the part for `direction` as `way` has it; the rest is shared."""
        if way.precision == "float32":
            return self._network
        name = _PART[direction]
        part = getattr(self._network, name)
        state = tuple(_state(part))
        held = self._parts.get((direction, way.precision))
        if held is None or held[0] != state:
            held = state, in_bf16(part)
            self._parts[direction, way.precision] = held
        view = copy.copy(self._network)
        # A module's dictionaries are shared by a shallow copy.
        view._modules = {**self._network._modules, name: held[1]}
        return view

    def band(self) -> float:
        """The largest error of a latent in bf16 that was measured; a bit whose latent is nearer to
        zero than that may come out the other way.

        Measured when first asked for: on the middles of the package's sample photographs, encoded
        in both precisions by this very network on this very device.
        """
        fast = self.network("encode", chosen("encode", torch.device("cpu"), "bf16")).encoder
        if self._band is None or self._band[0] is not fast:
            error = 0.0
            for image in _samples(self._network.config.factor):
                image = image.to(next(fast.parameters()).device)
                exact = self._network.encoder(image)
                error = max(error, (fast(image).float() - exact).abs().max().item())
            self._band = fast, error
        return self._band[1]


def _samples(factor: int) -> Iterator[Tensor]:
    """The middles of the sample photographs, [1,3,side,side], side a multiple of the factor."""
    side = -(-_SAMPLE_SIDE // factor) * factor
    for path in sorted(SAMPLES.glob("*.jpg")):
        image = load_image(path)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        yield to_tensor(image.crop((left, top, left + side, top + side)))[None]


def _state(part: nn.Module) -> Iterator[object]:
    for parameter in part.parameters():
        yield parameter.data_ptr(), parameter.device, parameter._version


def in_bf16(part: _Network) -> _Network:
    """A copy whose convolutions are in bfloat16, channels last; norms and linear maps as they are.

    A convolution adds up in float32 and rounds once; a norm takes bfloat16 and computes in float32.
    """
    memo: dict[int, object] = {}
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            for tensor in (module.weight, module.bias):
                if tensor is not None:
                    memo[id(tensor)] = _rounded(tensor)
    return copy.deepcopy(part, memo)


def _rounded(parameter: Tensor) -> nn.Parameter:
    layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format
    rounded = parameter.detach().to(torch.bfloat16, memory_format=layout)
    return nn.Parameter(rounded, requires_grad=False)
