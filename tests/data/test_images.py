"""Files of every kind in, RGB out as a person would expect it, or one line that says why not."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from wetok.config import WetokError
from wetok.data.images import find_images, load_image, to_pil, to_tensor, to_uint8

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(source: object, **options: object) -> np.ndarray:
    """uint8 [H,W,3] of what load_image makes of it."""
    image = load_image(source, **options)  # type: ignore[arg-type]
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def photo(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth and colourful, so that lossy formats keep it."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 9 + y / 7))
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def one_line(error: pytest.ExceptionInfo[WetokError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


# Formats and modes


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "TGA", "JPEG2000"])
def test_lossless_formats_are_exact(format: str) -> None:
    array = noise(13, 17)
    options = {"irreversible": False} if format == "JPEG2000" else {}
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(array), format, **options)), array)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("MPO", {"quality": 95}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
        ("GIF", {}),
    ],
)
def test_lossy_formats_are_near(format: str, options: dict[str, object]) -> None:
    try:
        data = encoded(photo(), format, **options)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {format}")
    difference = pixels(data).astype(float) - np.asarray(photo())
    assert np.sqrt((difference**2).mean()) < 12


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    seed=st.integers(0, 999),
    mode=st.sampled_from(["1", "L", "LA", "RGB", "RGBA", "I;16"]),
)
def test_png_of_every_mode(height: int, width: int, seed: int, mode: str) -> None:
    """Against the arithmetic written out: grey to three channels, alpha over white."""
    array = noise(height, width, 4, seed)
    opaque = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4}.get(mode, 1)
    if mode == "I;16":
        deep = array[..., 0].astype(np.uint16) * 256 + array[..., 1]
        image, wanted = Image.fromarray(deep), np.rint(deep / 257)[..., None].repeat(3, -1)
    elif mode == "1":
        image = Image.fromarray(array[..., 0] > 127)
        wanted = np.where(array[..., :1] > 127, 255, 0).repeat(3, -1)
    else:
        image = Image.fromarray(
            array[..., :opaque].squeeze(-1) if mode == "L" else array[..., :opaque]
        )
        color = array[..., :1].repeat(3, -1) if mode in ("L", "LA") else array[..., :3]
        alpha = array[..., opaque - 1 : opaque] / 255 if mode in ("LA", "RGBA") else 1.0
        wanted = color * alpha + 255 * (1 - alpha)
    assert image.mode == mode
    result = pixels(encoded(image, "PNG"))
    assert result.shape == (height, width, 3)
    tolerance = 1 if mode in ("LA", "RGBA") else 0
    np.testing.assert_allclose(result.astype(float), wanted, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(pixels(image), result)  # the same without a file


def test_alpha_ends_and_background() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert pixels(image).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert pixels(image, background=(1, 2, 3)).tolist() == [[[10, 20, 30], [1, 2, 3]]]
    with pytest.raises(WetokError, match="background"):
        load_image(image, background=(0, 0, 256))


def test_premultiplied_alpha() -> None:
    straight = Image.new("RGBA", (1, 1), (200, 100, 50, 128))
    wanted = pixels(straight).astype(int)
    assert abs(pixels(straight.convert("RGBa")).astype(int) - wanted).max() <= 1
    grey = Image.new("LA", (1, 1), (200, 128))
    assert abs(pixels(grey.convert("La")).astype(int) - pixels(grey)).max() <= 1


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    assert pixels(encoded(image, "PNG")).tolist() == [[[*RED], [*GREEN], [*BLUE]]]
    assert pixels(encoded(image, "PNG", transparency=1)).tolist() == [[[*RED], [*WHITE], [*BLUE]]]
    assert pixels(encoded(image, "GIF", transparency=1)).tolist() == [[[*RED], [*WHITE], [*BLUE]]]
    halves = encoded(image, "PNG", transparency=bytes((255, 128, 0)))
    result = pixels(halves, background=(0, 0, 0)).tolist()
    assert result == [[[*RED], [0, 128, 0], [0, 0, 0]]]


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "1"])
def test_one_transparent_color(mode: str) -> None:
    keys: dict[str, tuple[object, object]] = {
        "L": (7, 8), "RGB": (RED, GREEN), "I;16": (700, 25700), "1": (0, 255),
    }  # fmt: skip
    clear, solid = keys[mode]
    image = Image.new(mode, (2, 1), clear)  # type: ignore[arg-type]
    image.putpixel((1, 0), solid)  # type: ignore[arg-type]
    result = pixels(encoded(image, "PNG", transparency=clear), background=(1, 2, 3))
    shown = {"L": [8] * 3, "RGB": [*GREEN], "I;16": [100] * 3, "1": [255] * 3}[mode]
    assert result.tolist() == [[[1, 2, 3], shown]]


def test_cmyk() -> None:
    """Also as JPEG, where Adobe's convention stores the inks inverted."""
    inks = {(0, 0, 0, 0): WHITE, (255, 0, 0, 0): (0, 255, 255), (0, 0, 0, 255): (0, 0, 0)}
    for ink, color in inks.items():
        image = Image.new("CMYK", (16, 16), ink)
        for source in (image, encoded(image, "TIFF"), encoded(image, "JPEG", quality=100)):
            assert abs(pixels(source).astype(int) - color).max() <= 2


def test_other_color_spaces() -> None:
    image = Image.new("RGB", (4, 4), (200, 60, 90))
    for mode in ("YCbCr", "HSV"):
        assert abs(pixels(image.convert(mode)).astype(int) - (200, 60, 90)).max() <= 3
    lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    converted = ImageCms.applyTransform(image, lab)
    assert converted is not None and converted.mode == "LAB"
    assert abs(pixels(encoded(converted, "TIFF")).astype(int) - (200, 60, 90)).max() <= 3


# More than 8 bits


def deep_tiff(values: np.ndarray, bits: int, photometric: int = 1, kind: int = 1) -> bytes:
    """A little-endian grey TIFF by hand. kind: 1 unsigned, 2 signed, 3 float."""
    height, width = values.shape
    if bits == 12:
        pairs = values.astype(np.uint32).reshape(-1, 2)
        first, second = pairs[:, 0], pairs[:, 1]
        packed = np.stack((first >> 4, (first & 15) << 4 | second >> 8, second & 255), -1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = values.astype({1: "<u", 2: "<i", 3: "<f"}[kind] + str(bits // 8)).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data), 339: kind}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + table + struct.pack("<I", 0)


RAMP16 = np.linspace(0, 65535, 256).astype(np.uint16).reshape(8, 32)
RAMP8 = np.arange(256).reshape(8, 32)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (deep_tiff(RAMP16, 16), RAMP8),
        (deep_tiff(RAMP16, 16, photometric=0), 255 - RAMP8),
        (deep_tiff(RAMP16 // 16, 12), RAMP8),
        (deep_tiff(RAMP16.astype(np.int64) - 32768, 16, kind=2), RAMP8),
        (deep_tiff(RAMP16, 32), RAMP8),
        (deep_tiff(RAMP16.astype(np.int64) * 1000, 32, kind=2), RAMP8),
        (deep_tiff(RAMP16 / 65535, 32, kind=3), RAMP8),
        (deep_tiff(RAMP8, 32, kind=3), RAMP8),
        (deep_tiff(RAMP16 - 3e5, 32, kind=3), RAMP8),
        (encoded(Image.fromarray(RAMP16), "PNG"), RAMP8),
        (encoded(Image.fromarray(RAMP16), "TIFF"), RAMP8),
        (b"P5 32 8 65535\n" + RAMP16.astype(">u2").tobytes(), RAMP8),
        (b"P5 32 8 1023\n" + (RAMP16 // 64).astype(">u2").tobytes(), RAMP8),
    ],
    ids=[
        *("u16", "u16-white-is-zero", "u12", "i16", "u32", "i32", "f01", "f255", "f-any"),
        *("png16", "tiff16", "pgm16", "pgm10"),
    ],
)
def test_deep_grey_is_scaled_not_clipped(data: bytes, wanted: np.ndarray) -> None:
    result = pixels(data)
    assert (result == result[..., :1]).all()
    assert abs(result[..., 0].astype(int) - wanted).max() <= 1


def test_big_endian_and_constant_deep_grey() -> None:
    assert (
        pixels(Image.fromarray(RAMP16.astype(">u2"))).tolist()
        == pixels(Image.fromarray(RAMP16)).tolist()
    )
    assert pixels(Image.fromarray(np.full((1, 1), 300.0, np.float32))).tolist() == [[[0, 0, 0]]]
    assert pixels(Image.fromarray(np.full((1, 1), 1.0, np.float32))).tolist() == [[[255] * 3]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_float_image_that_is_not_finite(bad: float) -> None:
    with pytest.raises(WetokError) as error:
        load_image(Image.fromarray(np.array([[0.5, bad]], np.float32)))
    one_line(error, "NaN or infinite")


# Orientation, frames, profiles

STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    # EXIF 2.3, tag 0x0112: where row 0 and column 0 of the stored picture belong when it is shown
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0, 2),
    6: lambda shown: np.rot90(shown, 1),  # row 0 is the right side, column 0 the top
    7: lambda shown: np.rot90(shown, 2).transpose(1, 0, 2),
    8: lambda shown: np.rot90(shown, -1),  # row 0 is the left side, column 0 the bottom
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_orientation(orientation: int, format: str) -> None:
    shown = noise(6, 9)
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](shown)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(image, format, exif=exif, **options)
    np.testing.assert_array_equal(pixels(data), shown)
    again = load_image(load_image(data))  # not turned twice
    np.testing.assert_array_equal(np.asarray(again), shown)


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_broken_exif_is_ignored(exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_image(encoded(photo(), "JPEG", exif=exif)).size == (96, 64)


@pytest.mark.parametrize("value", [0, 9, 60000])
def test_unknown_orientation_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    np.testing.assert_array_equal(pixels(encoded(photo(), "PNG", exif=exif)), np.asarray(photo()))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (20, 10), color) for color in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == RED).all()


def swapped_profile() -> bytes:
    """sRGB with the red and green primaries exchanged, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"????"), (b"gXYZ", b"rXYZ"), (b"????", b"gXYZ")):
        assert profile.count(old) == 1
        profile = profile.replace(old, new)
    return profile.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_embedded_profile_is_converted(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(photo(), format, icc_profile=swapped_profile(), **options)
    wanted = np.asarray(photo())[..., [1, 0, 2]].astype(int)
    assert abs(pixels(data) - wanted).max() <= 2
    assert abs(np.asarray(load_image(load_image(data))) - wanted).max() <= 2  # not twice


def test_embedded_profile_with_alpha_and_palette() -> None:
    image = Image.new("RGBA", (2, 1), (250, 10, 30, 255))
    image.putpixel((1, 0), (250, 10, 30, 0))
    result = pixels(encoded(image, "PNG", icc_profile=swapped_profile())).astype(int)
    assert abs(result - [[(10, 250, 30), WHITE]]).max() <= 2
    palette = Image.new("P", (1, 1))
    palette.putpalette([250, 10, 30])
    result = pixels(encoded(palette, "PNG", icc_profile=swapped_profile())).astype(int)
    assert abs(result - (10, 250, 30)).max() <= 2


def test_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    array = noise(9, 9)
    data = encoded(Image.fromarray(array), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(pixels(data), array)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize(
    "profile",
    [
        b"junk",
        swapped_profile()[:200],
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
    ids=["junk", "cut", "wrong-space"],
)
def test_broken_profile_is_ignored(mode: str, profile: bytes) -> None:
    image = photo().convert(mode)
    with_profile = encoded(image, "TIFF", icc_profile=profile)
    np.testing.assert_array_equal(pixels(with_profile), pixels(encoded(image, "TIFF")))


# What can't be read


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 0.9))
def test_truncated_file(format: str, options: dict[str, object], share: float) -> None:
    data = encoded(Image.fromarray(noise(40, 50)), format, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(WetokError) as error:
            load_image(data[: int(share * len(data))])
    one_line(error, "image")


@settings(max_examples=60, deadline=None)
@given(
    format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_altered_file_is_an_image_or_one_line(
    format: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(encoded(photo(32, 24), format))
    for where, value in changes:
        data[min(int(where * len(data)), len(data) - 1)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = load_image(bytes(data), max_pixels=2**22)
        except WetokError as error:
            assert "\n" not in str(error)
        else:
            assert image.mode == "RGB" and min(image.size) >= 1


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(WetokError) as error:
        load_image(data)
    one_line(error)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not an image\nat all\n")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "cut.jpg").write_bytes(encoded(photo(), "JPEG")[:-400])
    for name, reason in {
        "empty.jpg": "empty file",
        "text.png": "not an image of a known format",
        "folder.jpg": "is a folder",
        "missing.jpg": "does not exist",
        "cut.jpg": "truncated or damaged",
    }.items():
        with pytest.raises(WetokError) as error:
            load_image(tmp_path / name)
        one_line(error, name, reason)
        assert isinstance(error.value, ValueError)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret.png"
    photo().save(file)

    def refuse(path: object) -> Image.Image:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)  # permissions do not hold for root
    with pytest.raises(WetokError) as error:
        load_image(file)
    one_line(error, "secret.png", "Permission denied")


def test_postscript_is_not_handed_to_ghostscript() -> None:
    with pytest.raises(WetokError) as error:
        load_image(encoded(photo(), "EPS"))
    one_line(error, "PostScript")


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be large; only its header is real."""
    data = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WetokError) as error:
        load_image(encoded(photo(), "PNG"), max_pixels=96 * 64 - 1)
    one_line(error, "96 x 64", "max_pixels")
    assert load_image(encoded(photo(), "PNG"), max_pixels=96 * 64).size == (96, 64)
    with pytest.raises(WetokError) as error:
        load_image(bomb(60000, 60000))
    one_line(error, "too large")
    with warnings.catch_warnings():  # between Pillow's warning and its error
        warnings.simplefilter("ignore")
        with pytest.raises(WetokError) as error:
            load_image(bomb(12000, 10000), max_pixels=10**8)
        one_line(error, "12000 x 10000")
        warnings.simplefilter("error")
        with pytest.raises(WetokError) as error:
            load_image(bomb(12000, 10000))
    one_line(error, "too large")


# Sources


def test_every_kind_of_source(tmp_path: Path) -> None:
    file = tmp_path / "a photo.png"
    photo().save(file)
    wanted = np.asarray(photo())
    for source in (file, str(file), file.read_bytes(), bytearray(file.read_bytes()), photo()):
        np.testing.assert_array_equal(pixels(source), wanted)
    with file.open("rb") as opened:
        np.testing.assert_array_equal(pixels(opened), wanted)
        assert not opened.closed
    with pytest.raises(WetokError, match="list"):
        load_image([1, 2])  # type: ignore[arg-type]
    with pytest.raises(WetokError, match="binary"):
        load_image(io.StringIO("text"))  # type: ignore[arg-type]


def test_the_callers_image_stays_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = Image.open(io.BytesIO(encoded(photo(), "PNG", exif=exif)))
    assert load_image(opened).size == (64, 96)
    assert opened.size == (96, 64) and "exif" in opened.info
    plain = photo()
    result = load_image(plain)
    result.putpixel((0, 0), (9, 9, 9))
    assert plain.getpixel((0, 0)) != (9, 9, 9)


def test_result_of_a_file_can_be_used_freely(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    photo().save(file)
    image = load_image(file)
    file.unlink()
    assert image.copy().crop((1, 1, 5, 5)).size == (4, 4)
    assert type(image) is Image.Image and image.info == {}


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_is_smaller_but_never_too_small(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(640, 400), "JPEG", exif=exif)
    full = load_image(data)
    seen = []

    def half(size: tuple[int, int]) -> tuple[int, int]:
        seen.append(size)
        return size[0] // 2 - 5, size[1] // 2 - 3

    small = load_image(data, draft=half)
    assert seen == [full.size] and small.size == (full.width // 2, full.height // 2)
    assert load_image(data, draft=lambda size: (size[0] // 2 + 1, 1)).size == full.size
    assert load_image(encoded(photo(), "PNG"), draft=half).size == (96, 64)


# Folders


def test_find_images(tmp_path: Path) -> None:
    names = ["a10.jpg", "a2.JPG", "b/c1.png", "b/.hidden/x.png", ".dot.png", "notes.txt"]
    names += ["Bc.WebP", "z.tiff"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["a2.JPG", "a10.jpg", str(Path("b/c1.png")), "Bc.WebP", "z.tiff"]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # named outright
    listed = find_images([tmp_path / "z.tiff", str(tmp_path / "b"), tmp_path / "z.tiff"])
    assert listed == [tmp_path / "z.tiff", tmp_path / "b" / "c1.png"]


def test_find_images_errors(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "holds no images"), (tmp_path / "no", "does not exist")):
        with pytest.raises(WetokError) as error:
            find_images(path)
        one_line(error, str(path), reason)
    with pytest.raises(WetokError, match="empty list"):
        find_images([])


def test_find_images_with_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    try:
        (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    assert find_images(tmp_path) == [tmp_path / "a" / "1.png"]


# Tensors


def test_every_uint8_value_comes_back() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).repeat(1, 1, 3)
    tensor = to_tensor(values)
    wanted = values.permute(2, 0, 1).double() / 127.5 - 1
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert (tensor.double() - wanted).abs().max() < 1e-7
    assert tensor.min() == -1 and tensor.max() == 1
    assert torch.equal(to_uint8(tensor), values.permute(2, 0, 1))
    assert torch.equal(to_uint8(tensor.double()), values.permute(2, 0, 1))


def test_to_uint8_rounds_half_to_even_and_clamps() -> None:
    near = np.arange(255, dtype=np.float32)[:, None] + np.float32(0.5)
    near = near / np.float32(127.5) - 1 + np.arange(-20, 21, dtype=np.float32) * np.float32(2**-24)
    levels = (near + 1) * np.float32(127.5)
    assert (levels % 2 == 0.5).any()  # exact halves that rounding up would get wrong
    wanted = np.rint(levels).astype(np.uint8)
    np.testing.assert_array_equal(to_uint8(torch.from_numpy(near)).numpy(), wanted)
    extremes = torch.tensor([-torch.inf, -7.0, 1.001, torch.inf])
    assert to_uint8(extremes).tolist() == [0, 0, 255, 255]
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]
    given_one = torch.tensor([2.0])
    to_uint8(given_one)
    assert given_one.tolist() == [2.0]
    with pytest.raises(WetokError, match="NaN"):
        to_uint8(torch.tensor([0.0, torch.nan]))
    with pytest.raises(WetokError, match="uint8"):
        to_uint8(torch.zeros(1, dtype=torch.uint8))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
    numpy=st.booleans(),
)
def test_forms_of_an_image_agree(
    batch: int, height: int, width: int, seed: int, numpy: bool
) -> None:
    """batch 0 stands for a single image."""
    array = noise(max(batch, 1) * height, width, seed=seed).reshape(-1, height, width, 3)
    wanted = torch.from_numpy(array.transpose(0, 3, 1, 2) / 127.5 - 1).float()
    if batch == 0:
        array, wanted = array[0], wanted[0]
    given_one = array if numpy else torch.from_numpy(array)
    result = to_tensor(given_one)
    assert result.shape == wanted.shape and torch.allclose(result, wanted, rtol=0, atol=1e-7)
    assert torch.equal(to_tensor(result.numpy() if numpy else result), result)
    assert torch.equal(to_tensor(result.double()), result)
    images = to_pil(result)
    assert len(images) == max(batch, 1) and images[0].size == (width, height)
    back = torch.stack([to_tensor(image) for image in images])
    assert torch.equal(back.reshape(result.shape), result)
    assert [image.tobytes() for image in to_pil(to_uint8(result))] == [
        image.tobytes() for image in images
    ]


def test_to_tensor_leaves_its_input_alone_and_takes_odd_memory() -> None:
    array = noise(4, 6)
    mirrored = array[:, ::-1]
    assert torch.equal(to_tensor(mirrored), to_tensor(array).flip(-1))
    array.flags.writeable = False
    before = array.copy()
    to_tensor(array).zero_()
    np.testing.assert_array_equal(array, before)
    tensor = torch.from_numpy(before)
    to_tensor(tensor)
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_to_tensor_converts_pil_modes() -> None:
    assert torch.equal(to_tensor(Image.new("RGBA", (2, 3), (0, 0, 0, 0))), torch.ones(3, 3, 2))


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        (torch.full((3, 2, 2), 1.5), ("[1.5, 1.5]", "[-1, 1]")),
        (torch.tensor([[[0.0]], [[torch.nan]], [[0.0]]]), ("nan", "[-1, 1]")),
        (torch.full((3, 2, 2), 200.0), ("[200, 200]",)),
        (torch.zeros(2, 2, 3), ("[2, 2, 3]", "[3,H,W]")),
        (torch.zeros(3, 0, 2), ("[3, 0, 2]",)),
        (torch.zeros(1, 1, 3, 2, 2), ("[1, 1, 3, 2, 2]",)),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), ("[3, 2, 2]", "[H,W,3]")),
        (torch.zeros(2, 2, dtype=torch.uint8), ("[2, 2]",)),
        (torch.zeros(2, 2, 4, dtype=torch.uint8), ("[2, 2, 4]",)),
        (torch.zeros(2, 2, 3, dtype=torch.int64), ("int64", "uint8 or float")),
        (np.zeros((2, 2, 3), np.uint16), ("uint16", "uint8 or float")),
        (np.zeros((2, 2, 3), object), ("object", "uint8 or float")),
        ("photo.jpg", ("str",)),
    ],
    ids=str,
)
def test_to_tensor_errors(image: object, parts: tuple[str, ...]) -> None:
    with pytest.raises(WetokError) as error:
        to_tensor(image)  # type: ignore[arg-type]
    one_line(error, *parts)


def test_to_pil_errors() -> None:
    for wrong in (torch.zeros(2, 2, 3), torch.zeros(2, 2), torch.zeros(1, 1, 3, 2, 2)):
        with pytest.raises(WetokError, match=r"\[3,H,W\]"):
            to_pil(wrong)
    assert to_pil(torch.zeros(0, 3, 4, 4)) == []
