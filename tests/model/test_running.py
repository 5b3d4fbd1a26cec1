"""How a model runs: the choice for each device and direction, and what bfloat16 changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wetok
from tests.model.test_tiling import make, pixels
from wetok.config import WetokError
from wetok.data.images import load_image, to_tensor
from wetok.model import running
from wetok.model.layers import AdaptiveGroupNorm, GroupNorm, depth_to_space
from wetok.model.running import chosen, in_bf16
from wetok.model.tiling import Tiling

CPU = torch.device("cpu")


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, decode in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(running, "bf16_is_fast", lambda device, fast=fast: fast)
        assert chosen("encode", CPU).precision == "float32", "ids don't depend on the machine"
        assert chosen("decode", CPU).precision == decode
        for asked in running.PRECISIONS:
            assert chosen("encode", CPU, asked).precision == asked
            assert chosen("decode", CPU, asked).precision == asked
    assert chosen("decode", CPU, "bf16").memory_format == "channels_last"
    assert str(chosen("encode", CPU)).startswith("float32, contiguous, eager, ")


def test_a_cpu_without_the_instructions_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not running.bf16_is_fast(CPU)
    assert make().way("decode").precision == "float32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert running.bf16_is_fast(CPU) == torch.backends.mkldnn.is_available()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert not running.bf16_is_fast(CPU)


def test_unknown_precisions_are_refused() -> None:
    tok = make()
    tokens = tok.encode(pixels(16, 16))
    for call in (
        lambda: tok.encode(pixels(16, 16), precision="fp8"),
        lambda: tok.decode(tokens, precision="fp8"),
        lambda: wetok.load("tiny-48x", precision="fp8"),
    ):
        with pytest.raises(WetokError, match="precision='fp8' must be one of auto, float32, bf16"):
            call()


def test_the_tokenizers_own_precision_and_a_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    tok = wetok.load("tiny-48x", precision="bf16")
    assert tok.way("encode").precision == tok.way("decode").precision == "bf16"
    assert tok.way("encode", "float32").precision == "float32"
    assert tok.encode(pixels(32, 32)).uncertain is not None
    assert tok.encode(pixels(32, 32), precision="float32").uncertain is None


def test_float32_is_the_network_itself_to_the_last_bit() -> None:
    tok = make()
    image = torch.rand(1, 3, 40, 32) * 2 - 1
    with torch.no_grad():
        latent = tok.model.encoder(image)
        pixels_ = tok.model.decoder(torch.where(latent > 0, 1.0, -1.0))
    tokens = tok.encode(image)
    assert torch.equal(tokens.ids, tok.model.quantizer(latent).ids)
    decoded = tok.decode(tokens, output="float", precision="float32")
    assert torch.equal(decoded, pixels_.clamp(-1, 1))


@pytest.mark.parametrize("tiles", ["off", "exact", Tiling("fast", tile=64, windows=1000)])
def test_bf16_is_near_float32_and_not_it(tiles: Any) -> None:
    tok = make(generative=True)
    tokens = tok.encode(pixels(64, 48))
    exact = tok.decode(tokens, 3, "float", tiles=tiles, precision="float32")
    near = tok.decode(tokens, 3, "float", tiles=tiles, precision="bf16")
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().mean() < 0.03


def test_pixels_in_bf16_do_not_depend_on_neighbours() -> None:
    tok = make(generative=True)
    tokens = tok.encode(pixels(30, 22, batch=3))
    both = tok.decode(tokens, [1, 2, 3], "float", precision="bf16")
    for number in range(3):
        one = tok.encode(pixels(30, 22, batch=3)[number])
        alone = tok.decode(one, number + 1, "float", precision="bf16")
        assert torch.equal(alone, both[number : number + 1])


def test_new_weights_are_used() -> None:
    tok = make()
    tokens = tok.encode(pixels(16, 16))
    before = tok.decode(tokens, output="float", precision="bf16")
    assert torch.equal(tok.decode(tokens, output="float", precision="bf16"), before)
    with torch.no_grad():
        tok.model.decoder.conv_out.weight.mul_(1.5)
    assert not torch.equal(tok.decode(tokens, output="float", precision="bf16"), before)


def test_only_convolutions_are_rounded() -> None:
    part = make().model.decoder
    for module in in_bf16(part).modules():
        for parameter in module.parameters(recurse=False):
            wanted = torch.bfloat16 if isinstance(module, nn.Conv2d) else torch.float32
            assert parameter.dtype == wanted
    assert all(parameter.dtype == torch.float32 for parameter in part.parameters())


def test_the_shipped_model_on_photographs(photos_dir: Path) -> None:
    """Decoded in bf16: 45 dB at least; encoded: every bit that differs counted as uncertain."""
    tok = wetok.load("tiny-48x")
    for path in sorted((photos_dir / "val").iterdir())[:3]:
        image = to_tensor(load_image(path).crop((0, 0, 256, 256)))[None]
        exact = tok.encode(image)
        a, b = (tok.decode(exact, output="float", precision=p) for p in ("float32", "bf16"))
        assert 10 * math.log10(4 / (a - b).square().mean().item()) > 55
        rough = tok.encode(image, precision="bf16", margins=True)
        assert rough.uncertain is not None and rough.margins is not None
        differ = flips(exact.ids, rough.ids)
        assert 0 < differ <= rough.uncertain < 0.1


def flips(a: Tensor, b: Tensor) -> float:
    """The share of 8-bit groups' bits that differ."""
    different = a.int() ^ b.int()
    return sum(((different >> k) & 1).sum().item() for k in range(8)) / (8 * a.numel())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_place_and_folded_forms_are_the_plain_ones(layout: torch.memory_format) -> None:
    x = torch.randn(1, 24, 6, 5).contiguous(memory_format=layout)
    before = x.clone()
    norm, adaptive = GroupNorm(24), AdaptiveGroupNorm(8, 24)
    mean, deviation = torch.randn(1, 8), torch.rand(1, 8)
    trained = adaptive(x, mean, deviation)
    with torch.no_grad():
        assert torch.equal(norm.silu(x), F.silu(norm(x)))
        torch.testing.assert_close(adaptive(x, mean, deviation), trained, rtol=1e-5, atol=1e-5)
        half = x.to(torch.bfloat16)
        assert half.is_contiguous(memory_format=layout)
        torch.testing.assert_close(
            adaptive(half, mean, deviation).float(), trained, rtol=2e-2, atol=2e-2
        )
        assert torch.equal(depth_to_space(half, 2), depth_to_space(half.contiguous(), 2))
        assert depth_to_space(half, 2).is_contiguous(memory_format=layout)
        assert depth_to_space(x, 2).is_contiguous(), "planes in float32, whatever came"
    assert torch.equal(x, before)
