"""The documentation builds as a site without a warning; the site loads nothing from elsewhere."""

from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml

from tests.documents import ROOT

DOCS = ROOT / "docs"
BUILDING = DOCS / "building"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        mkdocs = pytest.importorskip("mkdocs.commands.build", reason="the site needs mkdocs")
        config = pytest.importorskip("mkdocs.config")
        folder = tmp_path_factory.mktemp("site")
        loaded = config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        loaded.plugins.on_startup(command="build", dirty=False)
        warnings: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("mkdocs").addHandler(handler)
        try:
            mkdocs.build(loaded)
        finally:
            logging.getLogger("mkdocs").removeHandler(handler)
        assert not warnings
    return folder


class Page(HTMLParser):
    """What a page links to, what it loads, and which anchors it has."""

    LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in self.LOADED and self.LOADED[tag] in found:
            self.loaded.append(found[self.LOADED[tag]])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}


def test_every_page_is_there(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file(), page
    for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG", "recipes/tiny/tiny-48x.yaml"):
        assert (site / "repository" / f"{name}.html").is_file(), name


def test_links_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    count = 0
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert goal.exists(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and goal in pages:
                fragment = unquote(parts.fragment)
                assert fragment in pages[goal].anchors, f"{path.relative_to(site)}: {link}"
            count += 1
    assert count > 1000


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.loaded:
            assert not urlsplit(address).netloc, f"{path.relative_to(site)}: {address}"
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"url\(['\"]?([^)'\"]+)", sheet.read_text("utf-8")):
            assert not urlsplit(address).netloc or address.startswith("data:"), address


def counted(rendered: str) -> dict[str, int]:
    """How many there are of what the two readings of Markdown may differ in."""
    tags = ("<li", "<tr", "<td", "<pre", "<ol", "<em>", "<strong>", "<h2", "<h3")
    return {tag: len(re.findall(rf"{tag}\b" if ">" not in tag else tag, rendered)) for tag in tags}


def test_pages_read_as_in_the_repository(site: Path) -> None:
    """Lists, tables and code are found where CommonMark, the forges' reading, finds them."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    for page in DOCS.rglob("*.md"):
        if page.parent.name == "api":  # filled at build
            continue
        rendered = (site / page.relative_to(DOCS).with_suffix(".html")).read_text("utf-8")
        article = re.search(r"<article[^>]*>(.*?)</article>", rendered, re.DOTALL)
        assert article
        assert counted(reader.render(page.read_text("utf-8"))) == counted(article[1]), page


def test_drawings_take_the_pages_colours(site: Path) -> None:
    text = (site / "concepts.html").read_text("utf-8")
    assert text.count('<div class="drawing"') == len(list((DOCS / "drawings").glob("*.svg")))
    assert "var(--drawing-ink)" in text and "#1f2933" not in text
    assert 'src="drawings/' not in text
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', text)
    assert len(labels) == 7 and all(len(label) > 40 for label in labels)


def test_the_reference_has_the_public_names_and_only_these(site: Path) -> None:
    import wetok

    text = (DOCS / "api" / "index.md").read_text("utf-8")
    named = re.findall(r"heading: wetok\.(\w+)|^## `wetok\.(\w+)`", text, re.MULTILINE)
    assert {one or other for one, other in named} == set(wetok.__all__)
    shown = Page((site / "api" / "index.html").read_text("utf-8")).anchors
    for name in ("encode", "decode", "to", "save_pretrained"):
        if name in vars(wetok.Tokenizer):
            assert f"wetok.model.tokenizer.Tokenizer.{name}" in shown
    told = [anchor for anchor in shown if anchor.startswith("wetok.")]
    assert len(told) > 20 and not [name for name in told if re.search(r"\._[^_]", name)]


def test_settings_are_all_told(site: Path) -> None:
    from wetok.config import GanConfig, TrainConfig

    text = (site / "api" / "settings.html").read_text("utf-8")
    for block in TrainConfig.model_fields:
        assert f'id="{block}"' in text
    assert all(f"<code>{name}</code>" in text for name in GanConfig.model_fields)
    assert "Annotated" not in text and "<td><code>1e-05</code></td>" in text


def test_the_navigation_has_every_document() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in DOCS.rglob("*.md"):
        assert f" {page.relative_to(DOCS).as_posix()}\n" in text, f"add {page} to mkdocs.yml"


def test_drawings_are_those_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    pinned = re.search(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if not pinned or matplotlib.__version__ != pinned[1]:
        pytest.skip(f"matplotlib {matplotlib.__version__} may draw other bytes than the pinned one")
    monkeypatch.syspath_prepend(str(BUILDING))
    import drawings

    drawings.write_all(tmp_path)
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text("utf-8") for path in (DOCS / "drawings").iterdir()}
    assert made.keys() == kept.keys()
    for name in made:
        assert made[name] == kept[name], f"run python docs/building/drawings.py ({name})"


def test_the_joint_that_is_drawn_has_the_entropy_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers in the drawing, read from it, against `entropies` on the same latents."""
    import numpy as np
    import torch

    from wetok.model.entropy import entropies

    monkeypatch.syspath_prepend(str(BUILDING))
    import drawings

    svg = (DOCS / "drawings" / "joint.svg").read_text("utf-8")
    shown = [float(text) for text in re.findall(r">(\.\d\d)</text>", svg)]
    mean = np.array(shown[-16:])
    latent = torch.tensor(drawings.POSITIONS, dtype=torch.float64)
    _, ours = entropies(latent, 1, eps=0.0)
    assert mean.sum() == pytest.approx(1, abs=0.04)
    assert -(mean * np.log(mean)).sum() == pytest.approx(ours.item(), abs=0.1)
    high, low = np.array(shown[:12]).reshape(4, 3), np.array(shown[12:24]).reshape(3, 4)
    assert (high @ low / 3).ravel() == pytest.approx(mean, abs=0.008)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the script's, small, and its texts come out again."""
    monkeypatch.syspath_prepend(str(BUILDING))
    import notebook

    kept = nbformat.read(notebook.TARGET, as_version=4)
    assert [cell.source for cell in kept.cells] == list(notebook.CELLS), (
        "run python docs/building/notebook.py"
    )
    assert notebook.TARGET.stat().st_size < 150_000
    again = notebook.run(notebook.notebook(), tmp_path)

    def told(book: nbformat.NotebookNode) -> list[str]:
        outputs = [one for cell in book.cells for one in cell.get("outputs", [])]
        return [one["text"] for one in outputs if one["output_type"] == "stream"]

    def pictures(book: nbformat.NotebookNode) -> int:
        outputs = [one for cell in book.cells for one in cell.get("outputs", [])]
        return sum("image/jpeg" in one.get("data", {}) for one in outputs)

    numbers = [re.findall(r"\d+\.?\d*", text) for text in (*told(kept), *told(again))]
    assert numbers and told(again)[0] == told(kept)[0]
    assert not any("site-packages" in text for text in told(kept)), "a warning was kept"
    assert pictures(again) == pictures(kept) == 3


def test_the_citation() -> None:
    import wetok

    tree = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert tree["cff-version"] == "1.2.0" and tree["type"] == "software"
    assert tree["version"] == wetok.__version__ and tree["license"] == "Apache-2.0"
    (paper,) = tree["references"]
    assert paper["url"].endswith("2508.05599") and len(paper["authors"]) == 9
