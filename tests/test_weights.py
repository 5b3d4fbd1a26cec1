"""Pretrained parts: found, imported and downloaded, or told in one line what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from wetok import weights
from wetok.config import WetokError
from wetok.weights import PARTS, Part, cache_dir, cached, find, here, import_from


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WETOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def tiny_file(path: Path, value: float = 0.0, **shapes: tuple[int, ...]) -> Path:
    shapes = shapes or {"a": (2, 3), "b": (4,)}
    save_file({key: np.full(shape, value, np.float32) for key, shape in shapes.items()}, path)
    return path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a part of its own, `tiny`, in a folder of its own."""
    (tmp_path / "given").mkdir()
    path = tiny_file(tmp_path / "given" / "tiny.safetensors")
    data = path.read_bytes()
    part = Part(
        filename="tiny.safetensors",
        used_by="tests",
        licence="none",
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        tensors={"a": (2, 3), "b": (4,)},
    )
    monkeypatch.setitem(PARTS, "tiny", part)
    return path


def test_the_table_describes_the_published_files(weights_dir: Path, cache: Path) -> None:
    got = import_from(weights_dir)
    assert [(one.name, one.known) for one in got] == [("lpips-alex", True), ("lpips-vgg", True)]
    for name, path, _ in got:
        source = weights_dir / PARTS[name].filename
        assert path == cache / PARTS[name].filename
        assert find(name) == cached(name) == path
        assert path.read_bytes() == source.read_bytes()
        assert path.stat().st_size == PARTS[name].size
        assert hashlib.sha256(source.read_bytes()).hexdigest() == PARTS[name].sha256


def test_importing_a_file_and_importing_again(tiny: Path, cache: Path) -> None:
    for _ in range(2):
        assert import_from(tiny) == [("tiny", cache / "tiny.safetensors", True)]
    assert import_from(cache) == [("tiny", cache / "tiny.safetensors", True)]
    assert os.listdir(cache) == ["tiny.safetensors"]
    assert find("tiny").read_bytes() == tiny.read_bytes()


def test_any_file_name_will_do_and_another_content_is_told(tiny: Path, cache: Path) -> None:
    tiny_file(tiny, value=1.0)
    other = tiny.rename(tiny.with_name("other.safetensors"))
    assert import_from(other) == [("tiny", cache / "tiny.safetensors", False)]
    assert find("tiny").read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["a.safetensors", "z.safetensors"])
def test_of_two_files_the_known_one_wins(name: str, tiny: Path) -> None:
    known = tiny.read_bytes()
    tiny_file(tiny.with_name(name), value=1.0)
    assert [(one.name, one.known) for one in import_from(tiny.parent)] == [("tiny", True)]
    assert find("tiny").read_bytes() == known


def test_other_files_in_a_folder_are_passed_over(tiny: Path) -> None:
    tiny_file(tiny.with_name("unknown.safetensors"), c=(1,))
    tiny.with_name("broken.safetensors").write_bytes(b"\xff" * 50)
    tiny.with_name("notes.txt").write_text("hello")
    assert [one.name for one in import_from(tiny.parent)] == ["tiny"]


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"a": (2, 3)}, "is named like tiny, but differs in 1 tensors, the first b"),
        ({"a": (3, 2), "b": (4,)}, "differs in 1 tensors, the first a"),
        ({"a": (2, 3), "b": (4,), "c": (1,)}, "differs in 1 tensors, the first c"),
    ],
)
def test_a_parts_name_on_other_tensors(
    shapes: dict[str, Any], said: str, tiny: Path, cache: Path
) -> None:
    tiny_file(tiny, **shapes)
    for source in (tiny, tiny.parent):
        with pytest.raises(WetokError, match=said):
            import_from(source)
    assert not cache.exists()


def test_what_can_not_be_imported(tiny: Path, tmp_path: Path) -> None:
    data = tiny.read_bytes()
    tiny.write_bytes(data[:-8])
    with pytest.raises(WetokError, match="broken safetensors file .*copy it again"):
        import_from(tiny)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    unknown = tiny_file(tmp_path / "unknown.safetensors", c=(1,))
    for source in (tmp_path / "empty", tmp_path / "notes.txt", unknown):
        with pytest.raises(WetokError, match=r"looked for .*tiny \(tiny\.safetensors\)") as caught:
            import_from(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(WetokError, match="no such file or folder"):
        import_from(tmp_path / "absent")


def test_find(tiny: Path, tmp_path: Path, cache: Path) -> None:
    assert cached("tiny") is None
    with pytest.raises(WetokError, match="`wetok weights import FOLDER_OR_FILE`") as caught:
        find("tiny")
    assert "tiny.safetensors" in str(caught.value)
    assert str(cache) in str(caught.value)
    assert find("tiny", tiny) == find("tiny", tiny.parent) == find("tiny", str(tiny)) == tiny
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(WetokError, match="no such file; it was given for the part tiny"):
            find("tiny", absent)
    for look_up in (find, cached):
        with pytest.raises(WetokError, match="'tinny'.*did you mean 'tiny'"):
            look_up("tinny")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", None):
        monkeypatch.setenv("HOME", "/somewhere")
        monkeypatch.setenv("WETOK_CACHE", "") if value == "" else monkeypatch.delenv("WETOK_CACHE")
        assert cache_dir() == Path("/somewhere/.cache/wetok/weights")
    monkeypatch.setenv("WETOK_CACHE", "~/parts")
    assert cache_dir() == Path("/somewhere/parts/weights")


def test_a_cache_that_can_not_be_made(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WETOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(WetokError, match="the cache can't be made .*set WETOK_CACHE"):
        import_from(tiny)


def test_a_full_disk_leaves_what_was_there(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_from(tiny)
    before = find("tiny").read_bytes()
    tiny_file(tiny, value=1.0)

    def fail(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(WetokError, match="No space left on device"):
        import_from(tiny)
    assert find("tiny").read_bytes() == before
    assert os.listdir(cache) == ["tiny.safetensors"]


class Server(ThreadingHTTPServer):
    """Serves one body at any path but /absent; `cut` breaks it off."""

    body = b""
    cut = False
    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.path == "/absent":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        body = self.server.body
        self.wfile.write(body[: len(body) // 2] if self.server.cut else body)


@pytest.fixture
def server(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Has the part `tiny`, whose address it is."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as running:
        running.body = tiny.read_bytes()
        url = f"{running.url}/tiny.safetensors"
        monkeypatch.setitem(PARTS, "tiny", dataclasses.replace(PARTS["tiny"], url=url))
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_download_once(server: Server, tiny: Path, cache: Path) -> None:
    for _ in range(2):
        assert find("tiny") == cache / "tiny.safetensors"
    assert (cache / "tiny.safetensors").read_bytes() == tiny.read_bytes()
    assert server.requests == 1


def test_downloads_that_are_not_the_file(server: Server, tiny: Path, cache: Path) -> None:
    right = server.body
    for body in (right[:-1], right + b"x", right[:-1] + b"x", right * 100_000, b""):
        server.body = body
        with pytest.raises(WetokError, match="is not the expected file"):
            find("tiny")
        assert os.listdir(cache) == []
    server.body, server.cut = right, True
    with pytest.raises(WetokError, match="download of tiny from http"):
        find("tiny")
    assert os.listdir(cache) == []
    server.cut = False
    assert find("tiny").read_bytes() == right


def test_downloads_that_fail(
    server: Server, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = dataclasses.replace(PARTS["tiny"], url=f"{server.url}/absent")
    monkeypatch.setitem(PARTS, "tiny", part)
    with pytest.raises(WetokError, match=r"download of tiny from .*/absent failed .*404"):
        find("tiny")
    closed = dataclasses.replace(part, url="http://127.0.0.1:1/tiny.safetensors")
    monkeypatch.setitem(PARTS, "tiny", closed)
    with pytest.raises(WetokError, match="refused.*`wetok weights import`") as caught:
        find("tiny")
    assert "\n" not in str(caught.value)
    assert os.listdir(cache) == []


def test_a_silent_server_is_given_up(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_TIMEOUT", 0.2)
    hang = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: hang.wait(10))
    try:
        with pytest.raises(WetokError, match="timed out"):
            find("tiny")
    finally:
        hang.set()
    assert os.listdir(cache) == []


def test_a_part_of_the_package_serves_until_another_is_imported(
    weights_dir: Path, cache: Path
) -> None:
    shipped = find("lpips-alex")
    assert shipped == here("lpips-alex") and cached("lpips-alex") is None
    assert shipped.parent.parent.name == "assets" and shipped.stat().st_size < 5.1e6
    import_from(weights_dir / "lpips_alex.safetensors")
    assert find("lpips-alex") == here("lpips-alex") == cache / "lpips_alex.safetensors"
    assert here("lpips-vgg") is None


def test_the_package_says_whose_weights_it_holds() -> None:
    with safe_open(find("lpips-alex"), framework="numpy") as file:
        about = file.metadata()
    assert about["made_from_sha256"] == PARTS["lpips-alex"].sha256
    assert "BSD-2-Clause" in about["licence"] and "BSD-3-Clause" in about["licence"]
    terms = (find("lpips-alex").parent / "README.md").read_text("utf-8")
    for holder in ("2018, Richard Zhang", "Soumith Chintala 2016"):
        assert holder in terms
    assert terms.count("Redistributions in binary form must reproduce") == 2


@pytest.fixture
def pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A part that is known by its checksum alone; its bytes would not survive being opened."""
    path = tmp_path / "download.pth"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    part = dataclasses.replace(
        PARTS["inception-fid"],
        size=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(PARTS, "inception-fid", part)
    return path


def test_a_pickle_is_known_by_its_checksum(pickled: Path, cache: Path) -> None:
    target = cache / "pt_inception-2015-12-05-6726825d.pth"
    for source in (pickled, pickled.parent):
        assert import_from(source) == [("inception-fid", target, True)]
        assert target.read_bytes() == pickled.read_bytes()
        target.unlink()


def test_another_pickle_is_refused_by_name_and_passed_over_otherwise(
    pickled: Path, cache: Path
) -> None:
    data = bytearray(pickled.read_bytes())
    data[-1] ^= 1
    pickled.write_bytes(data)
    for source in (pickled, pickled.parent):
        with pytest.raises(WetokError, match="holds no safetensors file"):
            import_from(source)
    named = pickled.rename(pickled.with_name("pt_inception-2015-12-05-6726825d.pth"))
    with pytest.raises(WetokError, match="is not the published file .*get it again") as caught:
        import_from(named)
    assert "\n" not in str(caught.value) and not cache.exists()
