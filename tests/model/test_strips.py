"""The exact mode: every latent and every pixel as the whole image gives them, to the last bit."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model.test_stages import network
from wetok.config import WetokError
from wetok.model import strips
from wetok.model.layers import code_statistics, space_to_depth
from wetok.model.network import TokenizerNetwork
from wetok.model.running import bf16_is_fast, in_bf16
from wetok.model.stages import decoder_stages, encoder_stages
from wetok.model.strips import Activation, cut, in_strips, scratch_bytes

CPU = torch.device("cpu")


class Held:
    """A plane in memory."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.shape = (x.shape[1], x.shape[2], x.shape[3])

    def read(self, top: int, bottom: int, left: int = 0, right: int | None = None) -> Tensor:
        return self.x[:, :, top:bottom, left:right].contiguous()


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def joined(bands: Iterator[tuple[int, Tensor]]) -> Tensor:
    parts, rows = [], 0
    for top, band in bands:
        assert top == rows
        parts.append(band.clone())
        rows += band.shape[2]
    return torch.cat(parts, 2)


def emulated() -> bool:
    return not bf16_is_fast(CPU)


@torch.no_grad()
def check(
    both: TokenizerNetwork, height: int, width: int, strip_bytes: int, bf16: bool = False
) -> int:
    """The encoder's and the decoder's output against the whole image's; the strips it took."""
    factor, patch = both.config.factor, both.config.patch
    image = torch.rand(1, 3, height * factor, width * factor) * 2 - 1
    if bf16:
        both.encoder, both.decoder = in_bf16(both.encoder), in_bf16(both.decoder)
    stem = space_to_depth(image, patch)
    latent = both.encoder(image)
    code = torch.where(latent > 0, 1.0, -1.0)
    noise = torch.randn(code.shape) if both.config.generative else None
    entry = code if noise is None else torch.cat([code, noise], 1)
    pixels = both.decoder(code, noise)
    condition = code_statistics(code)
    one, two = encoder_stages(both.encoder), decoder_stages(both.decoder)
    got = joined(in_strips(one, Held(stem), CPU, strip_bytes=strip_bytes))
    again = joined(in_strips(two, Held(entry), CPU, condition, strip_bytes=strip_bytes))
    assert got.dtype == latent.dtype == (torch.bfloat16 if bf16 else torch.float32)
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and not (bf16 and emulated()):
        assert torch.equal(got, latent)
        assert torch.equal(again, pixels)
    else:
        far = 0.1 if bf16 else 1e-4
        torch.testing.assert_close(got, latent, rtol=0, atol=far)
        torch.testing.assert_close(again, pixels, rtol=0, atol=far)
    count = 0
    for stages, shape in ((one, Held(stem).shape), (two, Held(entry).shape)):
        for stage in stages:
            count = max(count, len(list(cut(stage, shape, strip_bytes))))
            shape = strips.output_shape(stage, shape)
    return count


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_network_and_size(data: st.DataObject) -> None:
    torch.set_num_threads(data.draw(st.sampled_from([1, 2, 3]), "threads"))
    mults = data.draw(st.sampled_from([(1,), (1, 2), (1, 2, 3), (2, 1)]), "mults")
    changes: dict[str, Any] = {
        "channels": data.draw(st.sampled_from([8, 24, 32, 40, 64]), "channels"),
        "mults": mults,
        "blocks": data.draw(st.integers(1, 2), "blocks"),
        "patch": data.draw(st.sampled_from([1, 2, 3]), "patch"),
        "generative": data.draw(st.booleans(), "generative"),
        "decoder_channels": data.draw(st.sampled_from([None, 16, 48]), "decoder channels"),
    }
    both = network(changes, data.draw(st.integers(0, 99), "weights"))
    size = (data.draw(st.integers(1, 40), "height"), data.draw(st.integers(1, 40), "width"))
    strip_bytes = 1 << data.draw(st.integers(10, 18), "strip bytes")
    check(both, *size, strip_bytes, data.draw(st.booleans(), "bf16"))


@pytest.mark.parametrize(("count", "height", "width"), [(1, 45, 61), (2, 64, 64), (2, 45, 61)])
def test_many_strips_of_a_wider_network(count: int, height: int, width: int) -> None:
    """128 channels, whose 1x1 convolutions sum in blocks, and sizes with and without tails."""
    torch.set_num_threads(count)
    both = network({"bits": 32, "channels": 64, "mults": (1, 2), "patch": 2, "blocks": 1})
    assert check(both, height, width, 1 << 18) >= 8
    assert check(both, height, width, 1 << 18, bf16=True) >= 8


def test_no_bfloat16_takes_another_silu_at_the_end_of_a_tensor() -> None:
    """Strips need no `kernels.silu` then: by registers or one by one, the results are the same."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    every = every[every.isfinite()]
    alone = torch.cat([F.silu(part.clone(), inplace=True) for part in every.split(8)])
    assert torch.equal(F.silu(every.clone(), inplace=True), alone)


def test_strips_cover_the_output_once() -> None:
    both = network({"channels": 8, "mults": (1, 2), "patch": 1, "blocks": 1})
    for stage in encoder_stages(both.encoder):
        channels = 8 if stage.conv is None else stage.conv.in_channels
        for height in (2, 90, 1000):
            spans = list(cut(stage, (channels, height, 64), 1 << 15))
            assert [top for top, _, _ in spans] == [0, *(bottom for _, bottom, _ in spans[:-1])]
            assert spans[-1][1] == height // stage.stride
            least = min(bottom - top for top, bottom, _ in spans) * stage.stride
            assert len(spans) == 1 or channels * least * 64 > 20480
            assert all(alone == (len(spans) == 1) for _, _, alone in spans)


@pytest.mark.parametrize("blocks", [1, 2])
def test_scratch_bytes_is_what_the_files_hold(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    live: dict[int, int] = {}
    most = 0

    class Watched(Activation):
        def __init__(
            self, shape: tuple[int, int, int], folder: str | Path | None, dtype: torch.dtype
        ) -> None:
            nonlocal most
            super().__init__(shape, folder, dtype)
            live[id(self)] = dtype.itemsize * shape[0] * shape[1] * shape[2]
            most = max(most, sum(live.values()))

        def close(self) -> None:
            super().close()
            live.pop(id(self))

    monkeypatch.setattr(strips, "Activation", Watched)
    both = network({"channels": 16, "mults": (1, 2), "patch": 2, "blocks": blocks})
    code = torch.ones(1, 8, 6, 7)
    for stages, x, condition in (
        (encoder_stages(both.encoder), torch.zeros(1, 12, 12, 14), None),
        (decoder_stages(both.decoder), code, code_statistics(code)),
    ):
        most = 0
        joined(in_strips(stages, Held(x), CPU, condition))
        assert most == scratch_bytes(stages, Held(x).shape) and not live
    # Nor does anything stay behind when the caller has seen enough.
    bands = in_strips(stages, Held(code), CPU, condition)
    next(bands)
    assert live
    bands.close()
    assert not live


def test_an_activation_is_read_as_it_was_written(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 5)
    held = Activation((3, 8, 5), tmp_path)
    assert not list(tmp_path.iterdir()), "a file without a name"
    held.write(4, x[:, :, 4:])
    held.write(0, x[:, :, :4])
    assert torch.equal(held.read(2, 7), x[:, :, 2:7])
    assert torch.equal(held.read(2, 7, 1, 4), x[:, :, 2:7, 1:4])
    assert torch.equal(held.channels(1, 3), x[:, 1:3])
    held.put(3 * 5, torch.arange(7.0))
    assert torch.equal(held.read(0, 8)[0, 0].flatten()[15:22], torch.arange(7.0))
    held.close()


def test_a_folder_that_is_missing_or_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WetokError, match="missing.*name another"):
        Activation((1, 1, 1), tmp_path / "missing")
    held = Activation((1, 2, 2), tmp_path)

    class Full:
        def seek(self, offset: int) -> None: ...

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(held, "_file", Full())
    with pytest.raises(WetokError, match="is full; name another"):
        held.write(0, torch.zeros(1, 1, 2, 2))
