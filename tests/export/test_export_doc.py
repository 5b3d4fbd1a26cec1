"""What docs/export.md and docs/from-vector-quantize-pytorch.md show, run; the shipped model."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wetok
from wetok.export.exporting import export

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def snippets(page: Path) -> list[str]:
    text = page.read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    """A folder with the shipped model, exported, and a photograph."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copy(repo / "wetok/assets/photos/cat.jpg", folder)
    made = export(wetok.load("tiny-48x"), folder / "exported", ["onnx", "torch"])
    for one in made:
        for case in one["checks"]:
            assert case.get("bits_differing", 0) == 0
            assert case.get("pixel_difference", 0) < 2e-5
    return folder


@pytest.mark.parametrize("index", [0, 1], ids=["onnx", "torch"])
def test_the_files_work_without_wetok(index: int, workplace: Path, repo: Path) -> None:
    snippet = snippets(repo / "docs/export.md")[index]
    assert "wetok" not in snippet and len(snippet.splitlines()) <= 22
    barred = "import sys; sys.modules['wetok'] = None\n"
    (workplace / "back.png").unlink(missing_ok=True)
    subprocess.run([sys.executable, "-c", barred + snippet], cwd=workplace, check=True)
    tok = wetok.load("tiny-48x")
    photo = Image.open(workplace / "cat.jpg").convert("RGB")
    photo = photo.crop((0, 0, photo.width // 8 * 8, photo.height // 8 * 8))
    (wanted,) = tok.decode(tok.encode(photo), precision="float32")
    found = np.asarray(Image.open(workplace / "back.png"), np.int16)
    assert abs(found - np.asarray(wanted, np.int16)).max() <= 1


@pytest.mark.parametrize("index", [0, 1])
def test_people_who_come_from_vector_quantize_pytorch(index: int, repo: Path) -> None:
    pytest.importorskip("vector_quantize_pytorch", reason="needs vector-quantize-pytorch")
    snippet = snippets(repo / "docs/from-vector-quantize-pytorch.md")[index]
    assert snippet.count("assert") >= 3
    exec(compile(snippet, "from-vector-quantize-pytorch.md", "exec"), {})


def test_torch_is_enough_for_torch(workplace: Path) -> None:
    """The ids of the exported file are those of the model, to the bit, at another size."""
    encoder = torch.export.load(workplace / "exported/encoder.torch.pt2").module()
    image = torch.rand(3, 3, 40, 72, generator=torch.Generator().manual_seed(5)) * 2 - 1
    assert torch.equal(encoder(image), wetok.load("tiny-48x").encode(image).ids.long())
