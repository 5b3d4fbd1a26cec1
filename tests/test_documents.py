"""The documents' Python runs as it stands; what it needs beforehand is laid out here."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import wetok
from tests import documents
from tests.documents import ELSEWHERE, PAGES, ROOT, blocks, named, python_of, run

SHOWING = [named(page) for page in PAGES if blocks(page.read_text("utf-8"), "python")]
OWN = {
    *("docs/extending.md", "docs/other-tokenizers.md", "docs/released.md", "docs/weights.md"),
    "README.md",
}
"""Run below, or in tests/test_readme.py, by what they need."""
PLAIN = [page for page in SHOWING if page not in ELSEWHERE and page not in OWN]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with photographs."""
    monkeypatch.chdir(tmp_path)
    documents.photographs(tmp_path)
    return tmp_path


def test_no_page_is_left_out() -> None:
    assert {"docs/quickstart.md", "docs/entropy.md", "docs/faq.md"} <= set(PLAIN)
    for page, test in ELSEWHERE.items():
        if page not in SHOWING:
            continue
        text = (ROOT / test).read_text("utf-8")
        by_hand = Path(page).name in text and "exec(compile(" in text
        assert f'run("{page}"' in text or f'python_of("{page}")' in text or by_hand, page
    assert set(SHOWING) >= OWN


def test_no_page_waits_for_something() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        found = re.search(r"@@\w+@@|^[A-Z]{5,}$|\b(?:TODO|TBD|FIXME|XXX)\b", text, re.MULTILINE)
        assert not found, f"{named(page)}: {found[0]}"


@pytest.mark.parametrize("page", PLAIN)
def test_python_runs(page: str, workplace: Path) -> None:
    Image.new("RGB", (80, 64), "teal").save("huge.png")
    run(page)


def test_extensions_are_short_and_leave_what_they_say(workplace: Path) -> None:
    """Under 60 lines each, as is said of them; the folder that the loss leaves is a model."""
    shown = python_of("docs/extending.md")
    assert len(shown) == 3 and all(len(block.splitlines()) < 60 for block in shown)
    names = run("docs/extending.md")
    assert (workplace / "runs/codebook/checkpoints/step-00000004").is_dir()
    assert wetok.load("models/edges").name == "edges"
    judged = names["result"].terms
    weights = {"l1": 1.0, "commitment": 0.25, "edges": 0.5, "token_entropy": 0.1}
    told = sum(weight * judged[name] for name, weight in weights.items())
    assert judged["loss"] == pytest.approx((told - 0.1 * judged["codebook_entropy"]).item())
    assert list(names["batches"].failures) == ["photos.zip: broken.jpg"]


def test_a_released_checkpoint_is_read(workplace: Path, fixtures_dir: Path) -> None:
    Path("WeTok.ckpt").symlink_to(fixtures_dir / "released" / "tiny_gd.ckpt")
    names = run("docs/released.md")
    assert names["released"].network.config.groups == 4


def test_a_function_is_a_tokenizer(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wetok.evaluate.others import open_system

    function, *rest = python_of("docs/other-tokenizers.md")
    Path("mytokenizer.py").write_text(function)
    monkeypatch.syspath_prepend(str(workplace))
    system = open_system("mytokenizer:open", "cpu")
    again = system.reconstruct(torch.zeros(1, 3, 16, 24), [0])
    assert again.images[0].shape == (1, 3, 16, 24) and again.bits
    for block in rest:
        exec(compile(block, "other-tokenizers.md", "exec"), {"__name__": "snippet"})


def published_layout(tensors: dict[str, torch.Tensor], slices: list[list[int]]) -> nn.Module:
    """A stand-in for lpips.LPIPS: slices of the trunk, and heads behind a dropout."""
    published = nn.Module()
    published.net = nn.Module()
    for number, layers in enumerate(slices):
        part = nn.Sequential()
        for index in layers:
            weight = tensors[f"features.{index}.weight"]
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2])
            layer.weight, layer.bias = (
                nn.Parameter(tensors[f"features.{index}.{kind}"]) for kind in ("weight", "bias")
            )
            part.extend([layer, nn.ReLU()])
        published.net.add_module(f"slice{number + 1}", part)
    heads = []
    for index in range(5):
        weight = tensors[f"lin.{index}.weight"]
        head = nn.Conv2d(weight.shape[1], 1, 1, bias=False)
        head.weight = nn.Parameter(weight)
        outer = nn.Module()
        outer.model = nn.Sequential(nn.Dropout(), head)
        heads.append(outer)
    published.lins = nn.ModuleList(heads)
    return published


def test_lpips_from_its_package(
    workplace: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is joined is the published file's tensors, and `wetok weights import` takes it."""
    from wetok.weights import cached, import_from

    slices = {
        "vgg": [[0, 1], [2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]],
        "alex": [[0], [1], [2], [3], [4]],
    }
    files = {name: weights_dir / f"lpips_{name}.safetensors" for name in slices}
    package = types.ModuleType("lpips")
    package.LPIPS = lambda net: published_layout(load_file(files[net]), slices[net])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setenv("WETOK_CACHE", str(workplace / "cache"))
    run("docs/weights.md")
    for name, file in files.items():
        made, known = load_file(f"lpips_{name}.safetensors"), load_file(file)
        assert made.keys() == known.keys()
        assert all(torch.equal(made[key], known[key]) for key in known)
        (part,) = import_from(f"lpips_{name}.safetensors")
        assert part.name == f"lpips-{name}"
        assert cached(f"lpips-{name}") is not None
