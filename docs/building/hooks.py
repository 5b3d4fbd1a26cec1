"""What MkDocs does not do by itself: pages of repository files, and drawings in the page's colours.

The Markdown files of docs/ are read in two places, in the repository and on the site. They link
to recipes, model cards and other files by relative paths, which lead nowhere on a site that holds
docs/ alone. So each file that is linked becomes a page below repository/, and links are turned
to it.
"""

from __future__ import annotations

import html
import posixpath
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
HOME = {"README.md": "docs/index.md"}
"""Repository files that have a page of their own under another name."""
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s]+)(\))")
CODE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
SETTINGS = "<!-- settings -->"
COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
DRAWING = re.compile(
    r'<p><img alt="(?P<alt>[^"]*)" src="(?P<src>[^"]*drawings/[^"]+\.svg)"\s*/?></p>'
)
INK, PAPER, FAINT = "#1f2933", "#fffffe", "#9aa5b1"
"""Colours of the drawings (docs/building/paper.py) that stand for the page's own."""

_sources: dict[str, str] = {}
"""src_uri of a page -> path in the repository of what it shows."""


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each repository file that a page links to, and for what these link to."""
    _sources.clear()
    waiting = []
    for file in files.documentation_pages():
        _sources[file.src_uri] = f"docs/{file.src_uri}"
        waiting.append(f"docs/{file.src_uri}")
    for path in _in_nav(config["nav"]):
        if path.startswith("repository/"):
            waiting.append(path.removeprefix("repository/").removesuffix(".md") + _suffix(path))
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            _add(path, files, config)
        if not path.endswith(".md"):
            continue
        for target in _targets((ROOT / path).read_text("utf-8")):
            goal = _resolved(path, target)
            if goal is None or goal in seen or goal.startswith("docs/") or goal in HOME:
                continue
            if not (ROOT / goal).is_file():
                raise PluginError(f"{path}: the link to {target} leads to no file")
            seen.add(goal)
            waiting.append(goal)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns relative links between repository files to links between pages."""
    here = _sources.get(page.file.src_uri)
    if here is None:
        return markdown

    def turned(match: re.Match[str]) -> str:
        goal = _resolved(here, match[2])
        if goal is None:
            return match[0]
        goal = HOME.get(goal, goal)
        place = goal.removeprefix("docs/") if goal.startswith("docs/") else _page(goal)
        fragment = match[2].partition("#")[1:]
        start = posixpath.dirname(page.file.src_uri) or "."
        return match[1] + posixpath.relpath(place, start) + "".join(fragment) + match[3]

    if SETTINGS in markdown:
        markdown = markdown.replace(SETTINGS, _settings())
    parts = CODE.split(COMMENT.sub("", markdown))
    return "".join(part if odd % 2 else LINK.sub(turned, part) for odd, part in enumerate(parts))


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Puts drawings into the page itself, so that they take its colours, light or dark."""

    def inlined(match: re.Match[str]) -> str:
        # The page is not at its place yet: its links are still those of the Markdown file.
        inside = posixpath.join(posixpath.dirname(page.file.dest_uri), match["src"])
        svg = (ROOT / "docs" / posixpath.normpath(inside)).read_text("utf-8")
        svg = svg[svg.index("<svg") :]
        for colour, name in ((INK, "ink"), (PAPER, "paper"), (FAINT, "faint")):
            svg = svg.replace(colour, f"var(--drawing-{name})")
        label = html.escape(html.unescape(match["alt"]))
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
        return f'<div class="drawing" tabindex="0">{svg}</div>'

    return DRAWING.sub(inlined, content)


def _settings() -> str:
    """Tables of all settings of a recipe. wetok.config knows them without torch."""
    sys.path.insert(0, str(ROOT))
    from wetok import config

    blocks: dict[str, Any] = {
        "model": config.ModelConfig,
        "data": config.DataConfig,
        "loss": config.LossConfig,
    }
    blocks |= {"optimizer": config.OptimizerConfig, "gan": config.GanConfig}
    blocks |= {"run": config.RunConfig, "phases": config.Phase}
    lines = []
    for name, block in blocks.items():
        lines += [f"## `{name}`", "", _first_line(block), "", "| setting | | default | type |"]
        lines += ["|---|---|---|---|"]
        for key, field in block.model_fields.items():
            kind = re.sub(r"\bAnnotated\[(\w+),.*?\]\)?\]", r"\1", str(block.__annotations__[key]))
            default = "needed" if field.is_required() else f"`{_plain(field.get_default())}`"
            if field.default_factory is not None:
                default = "empty"
            told = (field.description or "").replace("|", "\\|")
            kind = kind.replace(" | None", " or None")
            lines.append(f"| `{key}` | {told} | {default} | `{kind}` |")
        lines.append("")
    return "\n".join(lines)


def _first_line(block: type) -> str:
    return (block.__doc__ or "").strip().splitlines()[0]


def _plain(value: Any) -> str:
    """A default as a recipe has it."""
    if hasattr(value, "model_dump"):
        changed = value.model_dump(exclude_unset=True)
        return str(changed) if changed else "its defaults"
    if isinstance(value, tuple):
        return str(list(value))
    if value is None or isinstance(value, bool):  # not by ==, as 1 == True
        return "none" if value is None else str(value).lower()
    return str(value)


def _in_nav(nav: Any) -> list[str]:
    """All paths of the navigation."""
    if isinstance(nav, str):
        return [nav]
    if isinstance(nav, dict):
        nav = list(nav.values())
    return [path for entry in nav or [] for path in _in_nav(entry)]


def _suffix(path: str) -> str:
    """The suffix that `_page` put behind: none where the name has one, as `a.yaml.md`."""
    return "" if Path(path.removesuffix(".md")).suffix else ".md"


def _page(path: str) -> str:
    """Where the page of a repository file is, below docs/."""
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def _add(path: str, files: Files, config: Any) -> None:
    page = _page(path)
    if page in _sources:
        return
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".md"):
        text = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.DOTALL | re.MULTILINE)
    else:
        language = {".yaml": "yaml", ".py": "python"}.get(Path(path).suffix, "text")
        # Searchers want what is told of a setting before the recipes that have it.
        text = (
            f"---\nsearch: {{boost: 0.1}}\n---\n# `{path}`\n\n```{language}\n{text.rstrip()}\n```\n"
        )
    files.append(File.generated(config, page, content=text))
    _sources[page] = path


def _targets(markdown: str) -> list[str]:
    prose = CODE.split(COMMENT.sub("", markdown))[::2]
    return [match[2] for part in prose for match in LINK.finditer(part)]


def _resolved(here: str, target: str) -> str | None:
    """The repository path that a relative link in the file `here` means; None for others."""
    path = unquote(target.partition("#")[0])
    if not path or ":" in path or path.startswith("/"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
