"""Tokens: what is checked, and that a file gives back exactly what was saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wetok.codec.file import encode
from wetok.codec.tokens import ModelRef, Tokens
from wetok.config import WetokError
from wetok.model.quantizer import id_dtype

REF = ModelRef("tiny", "0123456789abcdef")


def some_tokens(**change: object) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (2, 4, 5, 7), generator=generator)
    return Tokens(**{"ids": ids, "size": (40, 50), "model": REF, "group_bits": 8, **change})


@st.composite
def tokens(draw: st.DrawFn) -> Tokens:
    bits, factor = draw(st.integers(1, 62)), draw(st.sampled_from([1, 2, 8, 16, 32]))
    size = (draw(st.integers(1, 6 * factor)), draw(st.integers(1, 6 * factor)))
    latent = (-(-size[0] // factor), -(-size[1] // factor))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), *latent)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**40)))
    ids = torch.randint(0, 2**bits, shape, generator=generator)
    dtype = draw(st.sampled_from([t for t in DTYPES if torch.iinfo(t).max >= 2**bits - 1]))
    return Tokens(ids.to(dtype), size, ModelRef(draw(NAMES), draw(FINGERPRINTS)), bits)


DTYPES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64)
NAMES = st.text(min_size=1, max_size=30).filter(str.isprintable)
FINGERPRINTS = st.text("0123456789abcdef", min_size=16, max_size=16)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens())
def test_load_gives_back_what_was_saved(tmp_path: Path, saved: Tokens) -> None:
    path = tmp_path / "a.wetok"
    saved.save(path)
    loaded = Tokens.load(path)
    assert loaded == saved
    assert loaded.ids.dtype == saved.ids.dtype
    assert torch.equal(loaded.ids, saved.ids)
    assert (loaded.size, loaded.model, loaded.group_bits) == (
        saved.size,
        saved.model,
        saved.group_bits,
    )
    assert path.read_bytes() == encode(loaded._header(), loaded.ids.numpy())


def test_tokens_that_are_not_contiguous_are_saved_in_order(tmp_path: Path) -> None:
    wide = torch.arange(2 * 4 * 7 * 5).reshape(2, 4, 7, 5) % 256
    turned = some_tokens(ids=wide.transpose(2, 3))
    turned.save(tmp_path / "a.wetok")
    assert torch.equal(Tokens.load(tmp_path / "a.wetok").ids.long(), wide.transpose(2, 3))


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [(8, torch.uint8), (9, torch.int16), (16, torch.int32), (31, torch.int32), (32, torch.int64)],
)
def test_ids_are_kept_in_the_smallest_type(bits: int, dtype: torch.dtype) -> None:
    ids = torch.full((1, 1, 1, 1), 2**bits - 1)
    assert Tokens(ids, (1, 1), REF, bits).ids.dtype == dtype
    assert Tokens(ids, (1, 1), REF, bits).ids.item() == 2**bits - 1


def test_the_type_is_the_quantizers() -> None:
    for bits in range(1, 63):
        ids = torch.zeros(1, 1, 1, 1, dtype=id_dtype(bits))
        assert Tokens(ids, (1, 1), REF, bits).ids.dtype == ids.dtype


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": [[[[1]]]]}, "must be a tensor .* not a list"),
        ({"ids": torch.zeros(4, 5, 7, dtype=torch.int64)}, r"not of shape \[4, 5, 7\]"),
        ({"ids": torch.zeros(2, 4, 5, 7)}, "not torch.float32"),
        ({"ids": torch.zeros(2, 4, 5, 7, dtype=torch.bool)}, "not torch.bool"),
        ({"ids": torch.full((2, 4, 5, 7), 256)}, r"256\.\.256, outside \[0, 2\^8\)"),
        ({"ids": torch.full((2, 4, 5, 7), -1)}, r"-1\.\.-1, outside"),
        ({"ids": torch.zeros(0, 4, 5, 7, dtype=torch.int64)}, "image count 0"),
        ({"ids": torch.zeros(2, 0, 5, 7, dtype=torch.int64)}, "groups=0"),
        ({"ids": torch.zeros(2, 4, 0, 7, dtype=torch.int64)}, "latent size 0"),
        ({"size": (40, 70)}, "40x70 and 5x7 positions do not go together"),
        ({"size": (0, 50)}, "size 0"),
        ({"size": 40}, "size=40 must be"),
        ({"size": (40.0, 50.0)}, "must be .height, width."),
        ({"size": (40, 50, 3)}, "must be .height, width."),
        ({"group_bits": 0}, "group_bits=0"),
        ({"group_bits": 63}, "group_bits=63"),
        ({"model": "tiny"}, "name, fingerprint"),
        ({"model": ("tiny", "nonsense")}, "16 hex digits"),
        ({"model": ("", "0123456789abcdef")}, "model name ''"),
    ],
)
def test_bad_tokens_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(WetokError, match=said) as caught:
        some_tokens(**change)
    assert "\n" not in str(caught.value)


def test_equality() -> None:
    one = some_tokens()
    assert one == some_tokens()
    assert one == some_tokens(model=tuple(REF), size=[40, 50])
    other = one.ids.clone()
    other[1, 3, 4, 6] ^= 1
    assert one != some_tokens(ids=other)
    assert one != some_tokens(ids=one.ids[:1])
    assert one != some_tokens(size=(39, 50))
    assert one != some_tokens(model=("tiny", "0123456789abcdee"))
    assert one != some_tokens(model=("other", "0123456789abcdef"))
    assert one != some_tokens(group_bits=9)
    assert one != "tokens"
    with pytest.raises(TypeError):
        hash(one)


def test_length_bits_and_repr() -> None:
    one = some_tokens()
    assert len(one) == 2
    assert one.bpp == pytest.approx(4 * 8 * 5 * 7 / (40 * 50))
    assert repr(one) == (
        "Tokens(2 x 40x50 pixels, 5x7 positions, 4 groups of 8 bits, 0.56 bpp, "
        "tiny 0123456789abcdef)"
    )


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    path = tmp_path / "a.wetok"
    some_tokens().save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WetokError, match=r"a\.wetok: truncated"):
        Tokens.load(path)
    with pytest.raises(WetokError, match="No such file"):
        Tokens.load(tmp_path / "absent.wetok")


def test_importing_the_codec_does_not_import_torch() -> None:
    code = "import sys, wetok.codec.tokens; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
