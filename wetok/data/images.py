"""Images in and out: files of any kind to RGB, and RGB to the tensors the model works on."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError

from wetok.config import WetokError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | IO[bytes]
Color = tuple[int, int, int]
Size = tuple[int, int]

# Pillow itself refuses anything larger, so a higher default would be an empty promise.
MAX_PIXELS = 178_956_970

# fmt: off
SUFFIXES = frozenset((
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".tga", ".tif",
    ".tiff", ".webp",
))
# fmt: on

_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags


def find_images(path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The image files that `path` names: a file, a folder, or several of either.

    A file is taken whatever its suffix. A folder is searched with its subfolders for the suffixes
    in `SUFFIXES` in any case, without hidden files and folders, in natural order (`a2` before
    `a10`). A file named twice is returned once.

    Raises:
        WetokError: a path does not exist or can't be read, or no image is found at all.
    """
    given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    found: dict[str, Path] = {}
    for one in map(Path, given):
        if one.is_dir():
            files = _walk(one)
        elif one.exists():
            files = [one]
        else:
            raise WetokError(f"path {str(one)!r} does not exist: name an image file or a folder")
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    if not found:
        names = ", ".join(repr(str(one)) for one in given) or "an empty list"
        raise WetokError(f"path {names} holds no images: expected files such as .jpg, .png, .webp")
    return list(found.values())


def load_image(
    source: ImageSource,
    background: Color = (255, 255, 255),
    *,
    max_pixels: int = MAX_PIXELS,
    draft: Callable[[Size], Size] | None = None,
) -> Image.Image:
    """Decode `source` to a new RGB image, upright, the way an image viewer shows it.

    EXIF orientation is applied, an embedded colour profile is converted to sRGB (a broken one is
    ignored), transparency is laid over `background`, and of several frames the first is taken.
    16-bit grey is scaled by 255/65535 (12-bit TIFF by 255/4095). Integer images beyond 16 bits and
    float images outside [0, 1] and [0, 255] are stretched from their own minimum and maximum.

    Args:
        source: a path, the bytes of a file, an open binary file (left open), or a PIL image.
        background: RGB in 0..255, seen through transparent pixels.
        max_pixels: larger images are refused by their header, before they are decoded.
        draft: for JPEG, given the upright (width, height) in the header, answers the least
            (width, height) that will do; the decoder then halves up to 3 times while the result
            stays at least that large. Faster, and not quite the same pixels.

    Raises:
        WetokError: one line that names the source: missing, empty, a folder, not an image,
            truncated or damaged, too large.
    """
    if len(background) != 3 or not all(0 <= value <= 255 for value in background):
        raise WetokError(
            f"background {background!r} must be three numbers in 0..255 (red, green, blue)"
        )
    name = describe(source)
    try:
        image, opened = _open(source, name)
    except UnidentifiedImageError:
        raise WetokError(
            f"{name} is not an image of a known format: convert it to PNG or JPEG"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise WetokError(f"{name} is too large: {_one_line(error)}") from None
    except WetokError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever a damaged header leads them to
        raise WetokError(f"{name} can't be read: {_one_line(error)}") from None
    try:
        _check_header(image, name, max_pixels)
        if draft is not None and opened and image.format in ("JPEG", "MPO"):
            turned = _orientation(image) >= 5
            least = draft(image.size[::-1] if turned else image.size)
            image.draft(None, least[::-1] if turned else least)
        return _decode(image, background, name)
    finally:
        if opened:
            image.close()


def describe(source: ImageSource) -> str:
    """How error messages call `source`."""
    if isinstance(source, (str, os.PathLike)):
        return f"image {os.fspath(source)!r}"
    if isinstance(source, Image.Image):
        file = getattr(source, "filename", "")
        return f"image {str(file)!r}" if file else f"image ({source.mode} {source.size})"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image of {len(source)} bytes"
    return f"image {str(getattr(source, 'name', 'from a file object'))!r}"


def to_tensor(image: Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
    """Any of the accepted image forms to float32 in [-1, 1]: pixel p becomes p / 127.5 - 1.

    Args:
        image: a PIL image; uint8 [H,W,3] or [B,H,W,3]; float [3,H,W] or [B,3,H,W] in [-1,1]
            (numpy or torch; kept on its device).

    Returns:
        float32 [3,H,W], or [B,3,H,W] where a batch came in; contiguous.

    Raises:
        WetokError: wrong type, shape or range, or NaN.
    """
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode == "RGB" else load_image(image))
    if isinstance(image, np.ndarray):
        # A copy where numpy's memory is read-only or reversed, which torch can't share.
        shareable = image.flags.writeable and all(stride >= 0 for stride in image.strides)
        try:
            image = torch.from_numpy(image if shareable else image.copy())
        except TypeError:
            raise WetokError(f"image has type {image.dtype}: expected uint8 or float") from None
    if not isinstance(image, torch.Tensor):
        raise WetokError(f"image is a {type(image).__name__}: expected PIL, numpy or torch")
    shape = list(image.shape)
    if image.dtype == torch.uint8:
        if len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape:
            raise WetokError(f"uint8 image has shape {shape}: expected [H,W,3] or [B,H,W,3]")
        channels_first = image.movedim(-1, -3)
        return (
            channels_first.to(torch.float32, memory_format=torch.contiguous_format)
            .div_(127.5)
            .sub_(1)
        )
    if not image.is_floating_point():
        raise WetokError(f"image has type {image.dtype}: expected uint8 or float")
    if len(shape) not in (3, 4) or shape[-3] != 3 or 0 in shape:
        raise WetokError(f"float image has shape {shape}: expected [3,H,W] or [B,3,H,W]")
    low, high = (float(value) for value in image.detach().aminmax())
    if not (low >= -1 and high <= 1):  # also true for NaN
        raise WetokError(
            f"float image has values in [{low:g}, {high:g}]: expected [-1, 1]; scale or clamp it"
        )
    return image.to(torch.float32).contiguous()


def to_uint8(image: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1] (values beyond are clamped), any shape, to uint8 of that shape.

    (x + 1) * 127.5, rounded half to even; the inverse of `to_tensor` for every uint8 value.

    Raises:
        WetokError: not a float tensor, or it holds NaN.
    """
    if not image.is_floating_point():
        raise WetokError(f"image has type {image.dtype}: expected float in [-1, 1]")
    if torch.isnan(image).any():
        raise WetokError("image holds NaN: there is no pixel for it")
    wide = image.detach().to(torch.promote_types(image.dtype, torch.float32))
    return wide.clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)


def to_pil(image: torch.Tensor) -> list[Image.Image]:
    """Float in [-1, 1] or uint8, [3,H,W] or [B,3,H,W], to one PIL image each.

    Raises:
        WetokError: another shape or type, or NaN.
    """
    shape = list(image.shape)
    if len(shape) not in (3, 4) or shape[-3] != 3:
        raise WetokError(f"image has shape {shape}: expected [3,H,W] or [B,3,H,W]")
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    batch = pixels.reshape(-1, *shape[-3:]).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [Image.fromarray(one) for one in batch]


def _natural(path: Path) -> tuple[Any, ...]:
    parts = re.split(r"(\d+)", str(path).casefold())
    return (*((int(part), "") if part.isdecimal() else (0, part) for part in parts), (0, str(path)))


def _walk(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise WetokError(f"folder {str(error.filename)!r} can't be read: {error.strerror}")

    files: list[Path] = []
    seen: set[tuple[int, int]] = set()  # links are followed, once
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            Path(root, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    return sorted(files, key=_natural)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__


def _open(source: ImageSource, name: str) -> tuple[Image.Image, bool]:
    """The image by its header only, and whether it is ours to close."""
    if isinstance(source, Image.Image):
        return source, False
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            raise WetokError(f"{name} is a folder: expected an image file")
        if not path.exists():
            raise WetokError(f"{name} does not exist")
        if path.is_file() and path.stat().st_size == 0:
            raise WetokError(f"{name} is an empty file")
        return Image.open(path), True
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise WetokError(f"{name} is not open in binary mode: open it with mode 'rb'")
    else:
        raise WetokError(
            f"image is a {type(source).__name__}: expected a path, bytes, a binary file or PIL"
        )
    if not data:
        raise WetokError(f"{name} is empty")
    return Image.open(io.BytesIO(data)), True


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise WetokError(
            f"{name} is too large: {image.width} x {image.height} is more than "
            f"max_pixels={max_pixels}; make it smaller or raise max_pixels"
        )
    if image.width < 1 or image.height < 1:
        raise WetokError(f"{name} is empty: {image.width} x {image.height} pixels")
    if image.format == "EPS":  # Pillow would hand the file to Ghostscript
        raise WetokError(f"{name} is PostScript, which is not read: convert it to PNG first")


def _decode(image: Image.Image, background: Color, name: str) -> Image.Image:
    try:
        image.load()
        result = _to_rgb(_upright(image), background, name)
        # Neither the caller's own image nor one that is about to be closed.
        result = result.copy() if result is image else result
        result.info = {}  # profile, orientation and transparency are dealt with
        return result
    except WetokError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise WetokError(f"{name} is too large: {_one_line(error)}") from None
    except MemoryError:
        size = f"{image.width} x {image.height}"
        raise WetokError(f"{name} does not fit in memory ({size} pixels)") from None
    except Exception as error:
        raise WetokError(f"{name} is truncated or damaged: {_one_line(error)}") from None


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block does not make the picture unreadable
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TRANSPOSE else 1


def _upright(image: Image.Image) -> Image.Image:
    transpose = _TRANSPOSE.get(_orientation(image))
    if transpose is None:
        return image
    turned = image.transpose(transpose)
    turned.info = image.info
    return turned


def _to_rgb(image: Image.Image, background: Color, name: str) -> Image.Image:
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _deep_to_rgb(image, background, name)
    if image.has_transparency_data or mode in ("RGBa", "La", "PA"):
        straight = image.convert("LA") if mode == "La" else image
        rgba = straight.convert("RGBA")
        color = _to_srgb(rgba.convert("RGB"), image.info)
        canvas = Image.new("RGB", rgba.size, background)
        canvas.paste(color, mask=rgba.getchannel("A"))
        return canvas
    if mode in ("L", "CMYK", "LAB"):  # profiles of these speak of their own channels
        return _to_srgb(image, image.info)
    return _to_srgb(image if mode == "RGB" else image.convert("RGB"), image.info)


def _deep_to_rgb(image: Image.Image, background: Color, name: str) -> Image.Image:
    """Grey of more than 8 bits; Pillow's own conversion would clip it at 255."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise WetokError(f"{name} holds NaN or infinite pixels: there is no shade for them")
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") and tags.get(_BITS_PER_SAMPLE) == (12,):
        bounds = (0.0, 4095.0)
    elif image.mode != "F" and low >= 0 and high <= 65535:
        bounds = (0.0, 65535.0)
    elif image.mode == "F" and low >= 0 and high <= 255:
        bounds = (0.0, 1.0 if high <= 1 else 255.0)
    else:
        bounds = (float(low), float(high))
    scaled = (values.astype(np.float64) - bounds[0]) * (255 / ((bounds[1] - bounds[0]) or 1))
    grey = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    if image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    result = _to_srgb(Image.fromarray(grey), image.info)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        result.paste(background, mask=Image.fromarray((values == clear).astype(np.uint8) * 255))
    return result


def _to_srgb(image: Image.Image, info: Mapping[Any, Any]) -> Image.Image:
    """L, RGB, CMYK or LAB to sRGB, by the embedded profile where it is valid and fits."""
    profile = info.get("icc_profile")
    if image.mode == "LAB":
        profile = b""
    transform = _transform(profile, image.mode) if isinstance(profile, bytes) else None
    if transform is not None:
        with suppress(ImageCms.PyCMSError, ValueError):
            return ImageCms.applyTransform(image, transform) or image
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From `profile` (of LAB where mode is LAB) to sRGB; None where nothing is to be done."""
    try:
        if mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
                return None
        return ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception:  # a broken profile, or one of another colour space: the pixels are as good
        return None
