"""Models from the Hub and to it, against a server on this machine that speaks its paths.

huggingface_hub reads its settings when it is imported, so a child process plays the user.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.codec.test_entropy_coding import some_tables
from wetok.checkpoint import fingerprint, load_network, save_folder
from wetok.config import ModelConfig
from wetok.model.network import TokenizerNetwork

CONFIG = ModelConfig(bits=4, groups=2, channels=32, mults=(1, 1), blocks=1)


class Hub(ThreadingHTTPServer):
    """Repositories as {name: {revision: {file: bytes}}}; every request is noted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.seen: list[str] = []
        self.cut: set[str] = set()
        """Files whose bodies break off halfway."""
        self.refusing: int | None = None
        """The status that writers get."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Puts `files` at a new commit, and at `revision`."""
        told = b"".join(name.encode() + data for name, data in sorted(files.items()))
        commit = hashlib.sha1(told).hexdigest()
        versions = self.repos.setdefault(repo, {})
        versions[revision] = versions[commit] = files
        return commit


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if headers.get("X_Cut"):
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def answer_json(self, tree: Any) -> None:
        self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        user, name, _, revision, file = (self.path.split("?")[0].strip("/").split("/", 4) + [""])[
            :5
        ]
        repo = f"{user}/{name}"
        if name == "gated":
            return self.answer(403, X_Error_Code="GatedRepo")
        if repo not in self.server.repos:
            return self.answer(401, X_Error_Code="RepoNotFound")
        versions = self.server.repos[repo]
        if revision not in versions:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        files = versions[revision]
        commit = next(key for key in versions if len(key) == 40 and versions[key] is files)
        if file not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        extra = {"X_Cut": "1"} if file in self.server.cut else {}
        etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
        return self.answer(200, files[file], ETag=etag, X_Repo_Commit=commit, **extra)

    def do_POST(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refusing:
            return self.answer(self.server.refusing)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            self.server.repos.setdefault(repo, {})
            return self.answer_json({"url": f"{self.server.url}/{repo}", "name": repo, "id": "1"})
        if self.path == "/api/validate-yaml":
            return self.answer_json({"errors": [], "warnings": []})
        _, _, user, name, action, _ = self.path.strip("/").split("/")
        if action == "preupload":
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer_json({"files": modes})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = self.server.commit(f"{user}/{name}", files)
        url = f"{self.server.url}/{user}/{name}/commit/{commit}"
        return self.answer_json({"commitUrl": url, "commitOid": commit, "success": True})


CHILD = """
import json, sys, traceback
import wetok
from wetok.checkpoint import find_tables, fingerprint, load_network, tables_at_hand
from wetok.model.tokenizer import Tokenizer

for line in sys.stdin:
    action, args, options = json.loads(line)
    try:
        if action == "load":
            network, name = load_network(*args, **options)
            told = {"name": name, "fingerprint": fingerprint(network)}
        elif action == "pretrained":
            tokenizer = Tokenizer.from_pretrained(*args, **options)
            told = {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}
        elif action == "tables":
            found = [find_tables(*args, **options), tables_at_hand(*args)]
            told = {"tables": [one and one.digest.hex() for one in found]}
        else:
            told = {"url": str(wetok.load(args[0]).push_to_hub(args[1], **options))}
    except wetok.WetokError as error:
        told = {"error": str(error)}
    except Exception:
        told = {"crash": traceback.format_exc()}
    print(json.dumps(told), flush=True)
"""


class User:
    """A process whose Hub is ours, with a cache of its own."""

    def __init__(self, hub: Hub, home: Path, **environment: str) -> None:
        given = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        given |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_test"}
        given |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=given,
            text=True,
        )

    def __call__(self, action: str, *args: str, **options: Any) -> dict[str, str]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([action, args, options]) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        assert "crash" not in told, told["crash"]
        return told

    def error(self, action: str, *args: str, **options: Any) -> str:
        told = self(action, *args, **options)
        assert set(told) == {"error"}, told
        assert "\n" not in told["error"]
        return told["error"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def user(hub: Hub, home: Path) -> Iterator[User]:
    child = User(hub, home)
    yield child
    child.close()


@pytest.fixture(scope="module")
def offline_user(hub: Hub, home: Path) -> Iterator[User]:
    """Shares the cache of `user`."""
    child = User(hub, home, HF_HUB_OFFLINE="1")
    yield child
    child.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of one shape and different weights."""
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        path = tmp_path_factory.mktemp(f"model-{seed}")
        save_folder(path, TokenizerNetwork(CONFIG), f"model-{seed}")
        made.append(path)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def told_fingerprint(folder: Path) -> str:
    return fingerprint(load_network(folder)[0])


def test_download_revisions_and_the_cache(
    hub: Hub, user: User, offline_user: User, folders: list[Path]
) -> None:
    old, new = (told_fingerprint(folder) for folder in folders)
    first = hub.commit("someone/model", contents(folders[0]))
    # Tokens carry the Hub id, by which others find the model, not the folder's own name.
    assert user("load", "someone/model") == {"name": "someone/model", "fingerprint": old}
    # Weights are asked for at the commit that the settings came from, whatever main is by now.
    assert f"GET /someone/model/resolve/{first}/model.safetensors" in hub.seen
    assert offline_user("load", "someone/model")["fingerprint"] == old

    hub.commit("someone/model", contents(folders[1]))
    assert user("load", "someone/model")["fingerprint"] == new
    assert user("load", "someone/model", revision=first)["fingerprint"] == old
    assert user("pretrained", "someone/model", revision=first)["fingerprint"] == old
    assert offline_user("pretrained", "someone/model") == {
        "name": "someone/model",
        "fingerprint": new,
    }
    assert user("load", "someone/model", local_files_only=True)["fingerprint"] == new

    error = user.error("load", "someone/model", revision="v9")
    assert error == "model 'someone/model' at revision 'v9': the Hub has no such revision"


def test_push_and_load_again(hub: Hub, user: User, folders: list[Path]) -> None:
    told = user("push", str(folders[0]), "someone/pushed", commit_message="First")
    assert told["url"].startswith(f"{hub.url}/someone/pushed/")
    assert set(hub.repos["someone/pushed"]["main"]) == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    want = {"name": "someone/pushed", "fingerprint": told_fingerprint(folders[0])}
    assert user("load", "someone/pushed") == want
    assert user("pretrained", "someone/pushed") == want


def test_coding_tables_travel_with_a_model(
    hub: Hub, user: User, offline_user: User, folders: list[Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[0], tmp_path / "model"))
    tables = some_tables(2, 2)
    (folder / "coding.safetensors").write_bytes(tables.data)
    user("push", str(folder), "someone/coded", commit_message="First")
    assert hub.repos["someone/coded"]["main"]["coding.safetensors"] == tables.data
    for one in (user, offline_user):
        assert one("tables", "someone/coded") == {"tables": [tables.digest.hex()] * 2}
    hub.commit("someone/plain", contents(folders[0]))
    user("load", "someone/plain")
    assert user("tables", "someone/plain") == {"tables": [None, None]}
    assert offline_user("tables", "someone/nowhere") == {"tables": [None, None]}


def test_what_can_go_wrong(hub: Hub, user: User, offline_user: User, folders: list[Path]) -> None:
    assert "private one" in user.error("load", "someone/absent")
    assert "gated" in user.error("load", "someone/gated")
    assert "not in the Hub's cache" in user.error("load", "someone/never", local_files_only=True)
    error = offline_user.error("load", "someone/never")
    assert "the Hub can't be reached (offline mode is on)" in error
    assert "no Hub id" in user.error("load", "someone/-bad-")

    hub.commit("someone/empty", {"README.md": b""})
    assert "it has no config.json" in user.error("load", "someone/empty")

    files = contents(folders[0])
    hub.commit("someone/half", {"config.json": files["config.json"]})
    assert "it has no model.safetensors" in user.error("load", "someone/half")

    hub.commit("someone/gpt2", {**files, "config.json": b'{"model_type": "gpt2"}'})
    assert "model_type is 'gpt2', not 'wetok'" in user.error("load", "someone/gpt2")
    assert not any("gpt2" in line and "safetensors" in line for line in hub.seen)

    other = contents(folders[1])
    hub.commit("someone/mixed", {**files, "config.json": other["config.json"]})
    assert "do not belong together" in user.error("load", "someone/mixed")


def test_a_download_that_breaks_off_leaves_nothing_behind(
    hub: Hub, user: User, folders: list[Path]
) -> None:
    hub.commit("someone/cut", contents(folders[0]))
    hub.cut.add("model.safetensors")
    try:
        assert "can't be downloaded" in user.error("load", "someone/cut")
    finally:
        hub.cut.clear()
    assert user("load", "someone/cut")["fingerprint"] == told_fingerprint(folders[0])
