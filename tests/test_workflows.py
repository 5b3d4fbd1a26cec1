"""The workflows: YAML that names files and make targets that exist, actions by major version."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NAMES = [path.stem for path in WORKFLOWS]


def steps(path: Path) -> list[dict[str, Any]]:
    tree = yaml.safe_load(path.read_text("utf-8"))
    # YAML 1.1 reads the key `on` as true.
    assert tree["name"] == path.stem and tree[True] and tree["permissions"]
    return [step for job in tree["jobs"].values() for step in job["steps"]]


def test_there_are_three() -> None:
    assert NAMES == ["docs", "release", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_steps(path: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    found = steps(path)
    assert found
    for step in found:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step["uses"]), step
            pins = step.get("with", {}).get("cache-dependency-path")
            assert pins is None or (ROOT / pins).is_file()
            continue
        assert targets >= set(re.findall(r"^make (\w+)", step["run"], re.MULTILINE))
        for name in re.findall(r"[\w/]+\.(?:txt|py|md)\b", step["run"]):
            assert (ROOT / name).is_file(), name
    text = path.read_text("utf-8")
    assert not re.search(r"https?://|\.org\b|secrets\.|password|(?<!id-)token:", text)


def test_the_release_checks_what_the_files_say() -> None:
    """The patterns that the release greps for meet the lines they are meant for."""
    import wetok

    source = (ROOT / "wetok/__init__.py").read_text("utf-8")
    assert re.search(rf'^__version__ = "{wetok.__version__}".*$', source, re.MULTILINE)
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## [{wetok.__version__}] - " in changes
    (job,) = (s for s in steps(ROOT / ".github/workflows/release.yml") if "tag is" in str(s))
    assert "__version__" in job["run"] and "CHANGELOG.md" in job["run"]


def test_only_publishing_may_ask_for_an_identity() -> None:
    for path in WORKFLOWS:
        jobs = yaml.safe_load(path.read_text("utf-8"))["jobs"]
        trusted = [n for n, j in jobs.items() if "id-token" in j.get("permissions", {})]
        assert trusted == ([] if path.stem == "tests" else ["publish"])
