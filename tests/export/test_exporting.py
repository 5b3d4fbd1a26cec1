"""Exports against the model itself, in every format's own runtime."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.export.small import small
from wetok.config import WetokError
from wetok.export import formats, parity
from wetok.export.exporting import MANIFEST, export
from wetok.export.formats import Format, load
from wetok.export.programs import DecoderProgram, EncoderProgram, Shape, ports, program
from wetok.model.decoder import sample_noise
from wetok.model.layers import code_statistics
from wetok.model.tokenizer import Tokenizer

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
COMPILER = pytest.mark.skipif(
    not (os.environ.get("WETOK_INDUCTOR") and shutil.which("g++")),
    reason="slow; set WETOK_INDUCTOR=1, with g++ at hand",
)
ONE_LEVEL: dict[str, Any] = {"mults": (1,), "patch": 4}
"""Less to trace: the shipped model and `generative` have more."""
FORMATS = ["torch", "onnx", pytest.param("aoti", marks=COMPILER)]


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return small()


@pytest.fixture(scope="module")
def generative() -> Tokenizer:
    return small(1, generative=True)


Exported = Callable[[Format], Path]


@pytest.fixture(scope="module")
def exported(generative: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A folder with both parts of `generative` in a format, made once each."""
    made: dict[str, Path] = {}

    def folder(format: Format) -> Path:
        if format not in made:
            made[format] = tmp_path_factory.mktemp(format)
            export(generative, made[format], [format])
        return made[format]

    return folder


def eager(tokenizer: Tokenizer, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ids, noise and pixels by the network, one image at a time."""
    rows = []
    with torch.no_grad():
        for seed, one in enumerate(image.split(1)):
            quantized = tokenizer.model.quantizer(tokenizer.model.encoder(one))
            noise = sample_noise([seed], quantized.code.shape[1:], quantized.code)
            given = noise if tokenizer.config.generative else None
            pixels = tokenizer.model.decoder(quantized.code, given).clamp(-1, 1)
            rows.append((quantized.ids.long(), noise, pixels))
    ids, noise, pixels = (torch.cat(row) for row in zip(*rows, strict=True))
    return ids, noise, pixels


@pytest.mark.parametrize("format", FORMATS)
def test_any_batch_and_size(format: Format, generative: Tokenizer, exported: Exported) -> None:
    folder = exported(format)
    encode = load(folder / formats.file_name("encoder", format), format)
    decode = load(folder / formats.file_name("decoder", format), format)
    generator = torch.Generator().manual_seed(0)
    for batch, rows, columns in ((1, 1, 1), (1, 1, 9), (2, 6, 1), (3, 2, 2), (4, 5, 7), (1, 17, 3)):
        image = torch.rand(batch, 3, 4 * rows, 4 * columns, generator=generator) * 2 - 1
        ids, noise, pixels = eager(generative, image)
        assert torch.equal(encode(image), ids)
        given = decode(ids, noise)
        torch.testing.assert_close(given, pixels, atol=2e-5, rtol=0)
        if rows * columns > 4:  # of a few positions, the norms leave nothing
            assert (decode(ids, -noise) - given).abs().max() > 1e-3
            assert (decode(ids ^ 1, noise) - given).abs().max() > 1e-3


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_exactly_zero_is_bit_zero(format: Format, tmp_path: Path) -> None:
    """Also -0, and the smallest numbers on either side of it."""
    tokenizer = small(2, **ONE_LEVEL)
    tiny = float(np.finfo(np.float32).tiny)  # the smallest that is not flushed to zero
    biases = [0.0, -0.0, tiny, -tiny, 1.0, -1.0] * 2
    last = tokenizer.model.encoder.conv_out
    with torch.no_grad():
        last.weight.zero_()
        assert last.bias is not None
        last.bias.copy_(torch.tensor(biases))
    path = tmp_path / "encoder"
    shape = Shape()
    made = program(tokenizer.model, "encoder")
    formats.write(made, tokenizer.config, "encoder", format, shape, path)
    ids = load(path, format)(torch.rand(2, 3, 8, 12) * 2 - 1)
    assert ids.unique().tolist() == [0b010100]
    assert torch.equal(ids.to(torch.uint8), tokenizer.encode(torch.zeros(2, 3, 8, 12)).ids)


def test_the_manifest_tells_what_is_there(exported: Exported, generative: Tokenizer) -> None:
    folder = exported("onnx")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["model"]["fingerprint"] == generative.fingerprint
    assert manifest["model"]["group_bits"] == 6
    for told in manifest["programs"]:
        path = folder / told["file"]
        assert told["bytes"] == path.stat().st_size
        assert told["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
        assert told["opset"] == 20 and told["versions"]["onnxruntime"] == onnxruntime.__version__
        session = onnxruntime.InferenceSession(path)
        sides = (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))
        for key, given in sides:
            found = [{"name": p.name, "dtype": p.type, "shape": p.shape} for p in given]
            kinds = {"float32": "tensor(float)", "int64": "tensor(int64)"}
            assert found == [{**port, "dtype": kinds[port["dtype"]]} for port in told[key]]
    decoder, encoder = manifest["programs"]
    names = ["cat.jpg", "coffee.jpg", "rocket.jpg", "batch", "strip", "smallest"]
    assert [case["name"] for case in encoder["checks"]] == names
    assert all(case["bits_differing"] == 0 for case in encoder["checks"])
    positions = sum(
        case["shape"][0] * case["shape"][2] * case["shape"][3] // 16 for case in encoder["checks"]
    )
    assert sum(case["bits"] for case in encoder["checks"]) == 12 * positions
    assert [case["name"] for case in decoder["checks"]] == names
    assert all(case["pixel_difference"] < 2e-5 for case in decoder["checks"])
    assert sorted(path.name for path in folder.iterdir()) == [
        *("decoder.onnx", "encoder.onnx", MANIFEST),
    ]


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_fixed_sizes(format: Format, plain: Tokenizer, tmp_path: Path) -> None:
    (told,) = export(plain, tmp_path, [format], ["encoder"], Shape(2, 12, 20))
    assert told["inputs"][0]["shape"] == (2, 3, 12, 20)
    assert told["outputs"][0]["shape"] == (2, 2, 3, 5)
    run = load(tmp_path / told["file"], format)
    image = torch.rand(2, 3, 12, 20) * 2 - 1
    assert torch.equal(run(image), eager(plain, image)[0])
    with pytest.raises(Exception, match="(?i)shape|dimension|guard|size"):
        run(torch.zeros(2, 3, 16, 20))


def test_a_size_with_any_batch(plain: Tokenizer, tmp_path: Path) -> None:
    (told,) = export(plain, tmp_path, ["torch"], ["decoder"], Shape(None, 80, 600))
    assert told["inputs"][0]["shape"] == ("batch", 2, 20, 150)
    # Photographs smaller than the size are repeated, larger ones cut.
    assert [case["shape"] for case in told["checks"]] == [[1, 3, 80, 600]] * 3 + [[3, 3, 80, 600]]


def test_statistics_without_a_branch(plain: Tokenizer) -> None:
    from wetok.export.programs import _statistics

    for sides in ((1, 1), (1, 2), (5, 7)):
        code = torch.randn(3, 12, *sides, dtype=torch.float64)
        for given, wanted in zip(_statistics(code), code_statistics(code), strict=True):
            torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


def test_ids_of_many_bits(tmp_path: Path) -> None:
    """Beyond what float32 counts exactly, or int32 holds."""
    tokenizer = small(3, bits=62, groups=1, **ONE_LEVEL)
    image = torch.rand(1, 3, 24, 24) * 2 - 1
    wanted = tokenizer.encode(image).ids
    assert int(wanted.max()) > 2**53
    encoder = EncoderProgram(tokenizer.model)
    decoder = DecoderProgram(tokenizer.model)
    with torch.no_grad():
        assert torch.equal(encoder(image), wanted)
        code = tokenizer.model.quantizer.ids_to_code(wanted)
        torch.testing.assert_close(
            decoder(wanted), tokenizer.model.decoder(code).clamp(-1, 1), atol=1e-5, rtol=0
        )
    shape = Shape(1, 24, 24)
    formats.write(encoder, tokenizer.config, "encoder", "onnx", shape, tmp_path / "encoder")
    assert torch.equal(load(tmp_path / "encoder", "onnx")(image), wanted)
    formats.write(decoder, tokenizer.config, "decoder", "onnx", shape, tmp_path / "decoder")
    torch.testing.assert_close(
        load(tmp_path / "decoder", "onnx")(wanted), decoder(wanted), atol=1e-5, rtol=0
    )


# --- what is refused ----------------------------------------------------------------------------


def test_wrong_ids_are_not_written(
    plain: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that is wrong in one bit of one image."""

    def spoiled(path: Path, format: Format) -> formats.Runner:
        run = load(path, format)

        def wrong(image: Tensor) -> Tensor:
            ids = run(image)
            if len(image) == 3:
                latent = plain.model.encoder(image)[1].abs()
                channel = latent.flatten(1).max(1).values.argmax()
                at = latent[channel].argmax()
                ids[1, channel // 6].view(-1)[at] ^= 1 << int(channel % 6)
            return ids

        return wrong

    monkeypatch.setattr(formats, "load", spoiled)
    with pytest.raises(WetokError, match="differ from the model's on batch: 1 of .* too far from"):
        export(plain, tmp_path / "out", ["torch"], ["encoder"], allow_bits=99)
    assert list((tmp_path / "out").iterdir()) == []


def test_bits_that_rounding_flips_are_counted(plain: Tokenizer) -> None:
    """Flip the bits whose latents are nearest to zero: noise, if they are near enough."""
    cases = parity.inputs(4, Shape())
    latents = {name: parity._latent(plain, image) for name, image in cases}

    def flipping(count: int) -> formats.Runner:
        def run(image: Tensor) -> Tensor:
            ids = plain.encode(image).ids.long()
            name = next(n for n, i in cases if i.shape == image.shape and torch.equal(i, image))
            if name != "cat.jpg":
                return ids
            for at in latents[name].abs().flatten().argsort()[:count].tolist():
                channel, rest = divmod(at, latents[name][0, 0].numel())
                ids[0, channel // 6].view(-1)[rest] ^= 1 << (channel % 6)
            return ids

        return run

    near = latents["cat.jpg"].abs().flatten().sort().values
    noise = parity.NOISE * latents["cat.jpg"].square().mean().sqrt()
    count = int((near < noise).sum())
    assert 0 < count < 200  # of 102,600: the test would show nothing otherwise
    with pytest.raises(WetokError, match=rf"on cat.jpg: {count} of \d+ bits, by rounding"):
        parity.check(plain, "encoder", flipping(count), Shape(), allow_bits=count - 1)
    told = parity.check(plain, "encoder", flipping(count), Shape(), allow_bits=count)
    assert [case.bits_differing for case in told] == [count, 0, 0, 0, 0, 0]
    assert told[0].flipped_latent == pytest.approx(float(near[count - 1]))
    assert told[0].least_latent == pytest.approx(float(near[0]))
    with pytest.raises(WetokError, match="too far from 0 for rounding"):
        parity.check(plain, "encoder", flipping(count + 1), Shape(), allow_bits=9999)


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_wrong_pixels_are_not_written(
    error: float, generative: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(path: Path, format: Format) -> formats.Runner:
        run = load(path, format)

        def wrong(*inputs: Tensor) -> Tensor:
            image = run(*inputs)
            image[0, 1, 2, 3] += error
            return image

        return wrong

    monkeypatch.setattr(formats, "load", spoiled)
    with pytest.raises(WetokError, match="pixels differ from the model's on cat.jpg by"):
        export(generative, tmp_path, ["torch"], ["decoder"], Shape(None, 16, 16))
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_the_old_one(
    exported: Exported, generative: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(exported("onnx"), tmp_path / "copy"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*args: Any) -> None:
        raise RuntimeError("no room\nand more")

    monkeypatch.setattr(formats, "_write_onnx", fail)
    with pytest.raises(WetokError, match="^the encoder can't be exported as onnx: no room$"):
        export(generative, folder, ["onnx"], force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_in_the_way(
    exported: Exported, plain: Tokenizer, generative: Tokenizer, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported("onnx"), tmp_path / "copy"))
    with pytest.raises(WetokError, match="decoder.onnx exists: give --force"):
        export(generative, folder, ["onnx"], ["decoder"])
    with pytest.raises(WetokError, match="holds programs of 'small': give --force"):
        export(plain, folder, ["torch"])
    # Another format of the same model joins.
    export(generative, folder, ["torch"], ["encoder"], Shape(1, 16, 16))
    programs = json.loads((folder / MANIFEST).read_text())["programs"]
    files = {"decoder.onnx", "encoder.onnx", "encoder.torch.pt2"}
    assert {one["file"] for one in programs} == files
    # Another model replaces them all.
    export(plain, folder, ["torch"], ["decoder"], Shape(1, 16, 16), force=True)
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.torch.pt2", MANIFEST]
    for text in ("[]", "{}", '{"wetok_export": 1, "model": {}}', "\0"):
        (folder / MANIFEST).write_text(text)
        with pytest.raises(WetokError, match="no manifest of an export"):
            export(plain, folder, ["torch"], force=True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"wanted": ["tflite"]}, "format='tflite' must be one of torch, aoti, onnx"),
        ({"wanted": []}, "name at least one"),
        ({"wanted": ["onnx", "onnx"]}, "each once"),
        ({"parts": ["head"]}, "part='head' must be one of encoder, decoder"),
        ({"shape": Shape(None, 10, 12)}, "size=10,12 must be multiples of the model's factor, 4"),
        ({"shape": Shape(0)}, "batch=0 must be at least 1"),
    ],
)
def test_mistakes(given: dict[str, Any], told: str, plain: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(WetokError, match=told) as error:
        export(plain, tmp_path / "out", **given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_no_compiler(plain: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    def none() -> str:
        raise RuntimeError("No working C++ compiler found\nin PATH")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(
        WetokError, match="^format='aoti' needs a C\\+\\+ compiler, such as g\\+\\+"
    ):
        export(plain, tmp_path / "out", ["aoti"])


def test_a_missing_package(
    plain: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match="onnxscript"):
        export(plain, tmp_path / "out", ["onnx"])
    assert not (tmp_path / "out").exists()


def test_large_weights_lie_beside(
    plain: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A protobuf file ends at 2 GiB."""
    monkeypatch.setattr(formats, "_INLINE", 0)
    (told,) = export(plain, tmp_path, ["onnx"], ["encoder"], Shape(1, 8, 8))
    assert set(told["files"]) == {"encoder.onnx", "encoder.onnx.data"}
    assert {path.name for path in tmp_path.iterdir()} == {*told["files"], MANIFEST}
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    run = load(tmp_path / "encoder.onnx", "onnx")
    assert torch.equal(run(image), plain.encode(image).ids.long())


def test_ports_of_a_deterministic_model(plain: Tokenizer) -> None:
    inputs, output = ports(plain.config, "decoder", Shape())
    assert [port.name for port in inputs] == ["ids"]
    assert output.shape == ("batch", 3, "4*h", "4*w")
