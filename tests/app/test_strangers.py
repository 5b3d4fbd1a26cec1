"""Files and requests from strangers: what passes, what is refused, and in which words."""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.app.toys import photo, saved, tokenizer
from wetok.app.guard import Guard
from wetok.app.models import Models
from wetok.app.photos import Limits, open_photo, within
from wetok.app.tokenfiles import open_tokens
from wetok.config import WetokError
from wetok.data.images import load_image

SMALL = Limits(max_bytes=100_000, max_pixels=5000)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says so many pixels."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(tag, one) for tag, one in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


# Photographs


def test_a_photo_within_the_limits_is_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    found = open_photo(path, Limits())
    assert np.array_equal(np.asarray(found.image), np.asarray(load_image(path)))
    assert found[1:] == ("a.png", path.stat().st_size, "")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_large_photo_is_made_smaller(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    photo(1, (150, 100)).save(path)
    found = open_photo(path, SMALL)
    assert found.image.size == (86, 57) and "150 x 100" in found.note and "86 x 57" in found.note
    expected = load_image(path).resize((86, 57), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(found.image, int) - np.asarray(expected, int)).mean() < 2


def test_a_turned_photo_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(1, (150, 100)).save(tmp_path / "a.jpg", exif=exif)
    found = open_photo(tmp_path / "a.jpg", SMALL)
    assert found.image.size == (57, 86)


@given(
    st.integers(1, 70_000), st.integers(1, 70_000), st.sampled_from([1, 7, 5000, 4_000_000, 10**9])
)
def test_sizes_within(width: int, height: int, most: int) -> None:
    w, h = within((width, height), most)
    assert 1 <= w <= width and 1 <= h <= height and w * h <= most
    if width * height <= most:
        assert (w, h) == (width, height)
    else:  # not much smaller than need be
        assert (w + 1) * (h + 1) > most or min(w, h) == 1


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.png", b"no image at all", "not an image of a known format"),
        ("a.png", b"", "empty"),
        ("a.png", png_claiming(60, 50), "truncated or damaged"),
        ("a.png", png_claiming(300, 200), "has 300 x 200 pixels; this page takes 0.04 megapixels"),
        ("a.png", png_claiming(2**30, 2**30), "a.png"),
        ("a.txt", bytes(100_001), "a.txt has 0.1 MB; this page takes 0.1"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "a.eps"),
    ],
)
def test_what_is_no_photo(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WetokError) as error:
        open_photo(tmp_path / name, SMALL)
    assert told in str(error.value) and str(tmp_path) not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_photo(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(WetokError, match="^image 'a.png' is truncated or damaged"):
        open_photo(path, SMALL)
    with pytest.raises(WetokError, match="no longer here"):
        open_photo(tmp_path / "gone.png", SMALL)


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """A PNG of 100 kB that would be 300 MB of pixels; and a JPEG of 60 million."""
    bomb = tmp_path / "bomb.png"
    Image.new("1", (30_000, 10_000)).save(bomb)
    assert bomb.stat().st_size < 100_000
    Image.new("L", (10_000, 6_000)).save(tmp_path / "large.jpg")
    code = (
        "import resource, sys\n"
        "from wetok.app.photos import Limits, open_photo\n"
        "from wetok.config import WetokError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try: open_photo({str(bomb)!r}, Limits()); sys.exit('taken')\n"
        "except WetokError as error: assert '300' in str(error) or '30000' in str(error)\n"
        "refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"found = open_photo({str(tmp_path / 'large.jpg')!r}, Limits())\n"
        "assert found.image.width * found.image.height <= 4_000_000, found\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print((refused - before) / 1024, (after - before) / 1024)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    refused, taken = map(float, result.stdout.split())
    assert refused < 20 and taken < 200, result.stdout  # MB


def test_limits() -> None:
    for wrong in ({"max_bytes": 0}, {"max_pixels": 0}):
        with pytest.raises(WetokError, match="must be at least 1"):
            Limits(**wrong)


# Files of tokens


@pytest.fixture(scope="module")
def models() -> Models:
    return Models([tokenizer("plain"), tokenizer("gd", generative=True)])


def test_tokens_of_a_known_model(tmp_path: Path, models: Models) -> None:
    expected = models.get("gd").encode(photo(1))
    expected.save(tmp_path / "a.wetok")
    found = open_tokens(tmp_path / "a.wetok", models, SMALL)
    assert found.tokens == expected and found.label == "gd" and found.note == ""


def test_tokens_that_are_refused(tmp_path: Path, models: Models) -> None:
    tokenizer("stranger", bits=10).encode(photo(1)).save(tmp_path / "foreign.wetok")
    models.get("plain").encode(photo(1, (100, 60))).save(tmp_path / "large.wetok")
    whole = (tmp_path / "large.wetok").read_bytes()
    (tmp_path / "short.wetok").write_bytes(whole[:-9])
    altered = bytearray(whole)
    altered[-20] ^= 1
    (tmp_path / "altered.wetok").write_bytes(altered)
    (tmp_path / "photo.wetok").write_bytes(png_claiming(9, 9))
    (tmp_path / "empty.wetok").write_bytes(b"")
    (tmp_path / "heavy.wetok").write_bytes(bytes(SMALL.max_bytes + 1))
    for name, told in (
        ("foreign", "made by the model 'stranger'"),
        ("large", "100 x 60 pixels"),
        ("short", "truncated"),
        ("altered", "checksum"),
        ("photo", "not a .wetok file"),
        ("empty", "truncated"),
        ("heavy", "larger than 0.1 MB"),
        ("gone", "no longer here"),
    ):
        with pytest.raises(WetokError) as error:
            open_tokens(tmp_path / f"{name}.wetok", models, SMALL)
        assert told in str(error.value) and str(tmp_path) not in str(error.value), name


def test_a_forged_header(tmp_path: Path, models: Models) -> None:
    """Tokens under a known model's fingerprint, of which it has far more groups or positions."""
    from dataclasses import replace

    own = models.get("plain")
    others = tokenizer("wide", bits=64, groups=8).encode(photo(1))
    forged = replace(others, model=own.ref, tables=None)
    forged.save(tmp_path / "a.wetok")
    with pytest.raises(WetokError, match="header does not go with the model"):
        open_tokens(tmp_path / "a.wetok", models, SMALL)


# Requests


class Inner:
    """Stands for Gradio: notes what comes through."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.seen.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def ask(
    folder: Path,
    path: str,
    method: str = "GET",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    most: int = 1000,
) -> tuple[int | None, dict[bytes, bytes], Inner]:
    inner, sent = Inner(), []
    pieces = [body[start : start + 50_000] for start in range(0, max(1, len(body)), 50_000)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    listed = [(key.encode(), value.encode()) for key, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": listed}
    asyncio.run(Guard(inner, folder, most)(scope, receive, send))
    status = sent[0]["status"] if sent else None
    return status, dict(sent[0]["headers"]) if sent else {}, inner


def test_what_the_page_needs_passes(tmp_path: Path) -> None:
    file = tmp_path / "files/abc/a b.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    for path in (
        *("/", "/config", "/theme.css", "/assets/index-1.js", "/static/js/a.js", "/favicon.ico"),
        *("/gradio_api/queue/data", "/gradio_api/heartbeat/ab12", "/gradio_api/info"),
        f"/gradio_api/file={file}",
    ):
        status, headers, inner = ask(tmp_path, path)
        assert (status, len(inner.seen)) == (200, 1), path
        assert b"connect-src 'self'" in headers[b"content-security-policy"]
        assert headers[b"x-content-type-options"] == b"nosniff"
    body = json.dumps({"data": [{"path": str(file), "url": "http://x"}, 3]}).encode()
    status, _, inner = ask(tmp_path, "/gradio_api/queue/join", "POST", body)
    assert status == 200 and inner.seen == [("/gradio_api/queue/join", body)]
    status, _, inner = ask(tmp_path, "/gradio_api/upload", "POST", bytes(1000))
    assert status == 200 and inner.seen == [("/gradio_api/upload", bytes(1000))]


def test_no_other_file_is_served(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "own-not").write_text("secret")
    (own / "link").symlink_to("/etc/passwd")
    for path in (
        *("/etc/passwd", "//etc/passwd", "../../etc/passwd", "pyproject.toml", ".", ""),
        *(f"{own}/../own-not", f"{own}-not", f"{own}/link", f"{own}/%2e%2e/own-not", str(own)),
        *("http://example.org/", "https://169.254.169.254/", "file:///etc/passwd", "\0"),
        *(f"{own}/\0", "%2fetc%2fpasswd", "~/.bashrc"),
    ):
        status, _, inner = ask(own, f"/gradio_api/file={path}")
        assert status == 403 and inner.seen == [], path


def test_other_routes_are_closed(tmp_path: Path) -> None:
    for method, path in (
        *(("GET", f"/gradio_api/{one}") for one in ("proxy=http://x", "vibe-code", "runs")),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/custom_component/1/server/component/x.py"),
        *(("GET", path) for path in ("/monitoring", "/docs", "/openapi.json", "/assets/../x")),
        *(("POST", f"/gradio_api/{one}") for one in ("vibe-edit", "run/predict", "api/predict")),
        *(("POST", f"/gradio_api/{one}") for one in ("component_server", "stream/x", "queue/data")),
        *((method, "/") for method in ("POST", "PUT", "DELETE", "OPTIONS")),
    ):
        status, _, inner = ask(tmp_path, path, method)
        assert status == 404 and inner.seen == [], path


@pytest.mark.parametrize(
    "data",
    [
        {"path": "/etc/passwd"},
        {"path": "http://169.254.169.254/latest", "meta": {"_type": "gradio.FileData"}},
        [{"a": [{"path": "relative.png"}]}],
        {"path": ["x"]},
        {"path": 7},
    ],
)
def test_a_request_names_no_other_file(tmp_path: Path, data: Any) -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/call/reconstruct"):
        body = json.dumps({"data": [data], "session_hash": "x"}).encode()
        status, _, inner = ask(tmp_path, path, "POST", body)
        assert status == 400 and inner.seen == []


def test_what_is_no_json_or_too_deep(tmp_path: Path) -> None:
    for body in (b"{", b"[" * 100_000, b"\xff\xfe"):
        status, _, inner = ask(tmp_path, "/gradio_api/queue/join", "POST", body)
        assert status == 400 and inner.seen == []


def test_large_requests_stop(tmp_path: Path) -> None:
    for path, size in (("/gradio_api/upload", 70_000), ("/gradio_api/queue/join", 1_100_000)):
        claimed = {"content-length": str(size)}
        status, _, inner = ask(tmp_path, path, "POST", bytes(size), claimed)
        assert status == 413 and inner.seen == []
        # Unannounced, it is cut off where the limit is.
        status, _, inner = ask(tmp_path, path, "POST", bytes(size))
        assert status in (413, None) and inner.seen == []
    status, _, _ = ask(tmp_path, "/gradio_api/upload", "POST", b"", {"content-length": "-1"})
    assert status == 413


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x, max_size=4)))
def test_any_json_without_a_path_passes(value: Any) -> None:
    body = json.dumps({"data": value}).encode()
    status, _, inner = ask(Path("/nowhere"), "/gradio_api/queue/join", "POST", body)
    assert status == 200 and inner.seen[0][1] == body
