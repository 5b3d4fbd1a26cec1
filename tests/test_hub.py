"""`wetok push` against a server on this machine that speaks the Hub's paths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from tests.test_checkpoint_hub import CONFIG, Hub, User, contents, told_fingerprint
from wetok.checkpoint import read_config, save_folder
from wetok.config import WetokError
from wetok.hub import Facts, card, scores_of
from wetok.model.network import TokenizerNetwork


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_folder(tmp_path / "model", TokenizerNetwork(CONFIG), "model", precision="float16")
    return tmp_path / "model"


def push(
    hub: Hub, home: Path, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    given |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_test"}
    given |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "wetok", "push", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=given,
        check=False,
    )


def test_the_files_arrive_as_they_are_and_load(hub: Hub, folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    done = push(hub, tmp_path / "home", folder, "someone/there")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder} -> {hub.url}/someone/there/commit/")
    assert hub.repos["someone/there"]["main"] == before == contents(folder)
    user = User(hub, tmp_path / "other home")
    try:
        want = {"name": "someone/there", "fingerprint": told_fingerprint(folder)}
        assert user("load", "someone/there") == want
    finally:
        user.close()


def test_a_card_of_what_is_told(hub: Hub, folder: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text('{"protocol": "modern-256", "scores": {"psnr": 24.019, "images": 31}}')
    options = ("--licence", "mit", "--data", "Nine photographs.", "--scores", scores)
    done = push(hub, tmp_path / "home", folder, "someone/told", *options)
    assert done.returncode == 0, done.stderr
    text = hub.repos["someone/told"]["main"]["README.md"].decode()
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["license"] == "mit" and metadata["library_name"] == "wetok"
    for part in ("Nine photographs.", "| psnr | 24.02 |", "modern-256", "The weights: mit."):
        assert part in text
    assert 'wetok.load("someone/told")' in text and "not told" not in text


def test_nothing_is_made_up(folder: Path) -> None:
    text = card(read_config(folder), 12_345, "someone/bare", Facts())
    assert "license" not in yaml.safe_load(text.split("---")[1])
    assert text.count("not told by whoever published it") == 3
    assert "12,345" in text and str(read_config(folder).fingerprint) in text
    assert "float16" in text and "2508.05599" in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scores": {"psnr": "high"}}'])
def test_files_without_scores(text: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(WetokError, match="no scores can be read"):
        scores_of(path)


def test_what_can_go_wrong(hub: Hub, folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"

    def line(*arguments: object, **environment: str) -> str:
        done = push(hub, home, *arguments, **environment)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done
        return done.stderr

    assert "user/name" in line(folder, "alone")
    assert "no model" in line(tmp_path / "nothing", "someone/x")
    assert "offline mode is on" in line(folder, "someone/x", HF_HUB_OFFLINE="1")
    hub.refusing = 403
    try:
        assert "the Hub answers 403: log in" in line(folder, "someone/x")
        hub.refusing = 401
        assert "the Hub answers 401: log in" in line(folder, "someone/x")
    finally:
        hub.refusing = None
    unreachable = line(folder, "someone/x", HF_ENDPOINT="http://127.0.0.1:9")
    assert "can't be written" in unreachable
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "README.md").unlink()
    assert "broken weights" in line(folder, "someone/x")
    assert json.loads((folder / "config.json").read_text())["name"] == "model"
