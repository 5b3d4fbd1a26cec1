"""What `wetok compare` found, into docs/results.md, its pictures, and benchmarks/results/.

    wetok compare -m tiny-24x -m tiny-48x -m tiny-48x-gd -m tiny-192x -m tiny-192x-gd \
        --budget-of tiny-24x --budget-of tiny-48x --budget-of tiny-192x --data photos/val \
        -o compared
    python tools/publish.py compared

Images' names and crops are left out of the numbers. The tables stand between the page's marks, and
tests/evaluate/test_compare_doc.py holds them to the numbers. Folders after the first add models to
its comparison, such as one made later with `--codec none`; the plot is drawn anew.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path
from typing import Any

from PIL import Image

from wetok.checkpoint import written_beside
from wetok.evaluate.plots import draw_rate_distortion

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
KIND = "compare-tiny"
IMAGES = ROOT / "docs" / "images"
SCORES = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 3)}
SCORES |= {"lpips-alex": ("LPIPS-alex", 3), "lpips-vgg": ("LPIPS-vgg", 3), "fd-vgg": ("FD-vgg", 1)}


def newest() -> Path:
    """The last result file."""
    return max(RESULTS.glob(f"{KIND}-cpu*.json"), key=lambda path: path.stem[-len("2026-01-01") :])


def row(one: dict[str, Any]) -> str:
    """A line of a table: a model or a codec."""
    cells = [one.get("title", f"`{one['model']}`") + (" *" if one.get("too_large") else "")]
    cells += [f"{one['bytes']:,.0f}", f"{one['coded_bpp']:.3f}", f"{one['payload_bpp']:.3f}"]
    cells += [f"{one[name]:.{digits}f}" for name, (_, digits) in SCORES.items() if name in one]
    return f"| {' | '.join(cells)} |"


def tables(result: dict[str, Any]) -> str:
    """One for each model whose bytes the codecs were given, its second stage below it."""
    contests = {contest["model"]["model"]: contest for contest in result["contests"]}
    found = []
    for name, contest in contests.items():
        if not contest["codecs"]:
            continue
        second = contests.get(f"{name}-gd")
        models = [contest["model"], *([second["model"]] if second else [])]
        titles = [title for key, (title, _) in SCORES.items() if key in contest["model"]]
        heads = ["", "bytes an image", "bpp", "of that payload", *titles]
        lines = [f"### At the bytes of `{name}`", "", f"| {' | '.join(heads)} |"]
        lines += ["|" + "---|" * len(heads)]
        lines += [row(one) for one in (*models, *contest["codecs"])]
        large = [one for one in contest["codecs"] if one["too_large"]]
        if large:
            lines += [""] + [f"\\* {too_large(one)}" for one in large]
        found.append("\n".join(lines))
    return "\n\n".join(found)


def too_large(one: dict[str, Any]) -> str:
    """Of a codec that can't make files as small as the model's."""
    return (
        f"{one['title']}: its smallest file was larger for {one['too_large']} of {one['images']} "
        f"images; in all {one['bytes_ratio']:.2f} times the model's bytes.  "
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="what `wetok compare --out` wrote")
    given = parser.parse_args()
    results = [json.loads((path / "compare.json").read_text("utf-8")) for path in given.folders]
    result = results[0]
    result["arguments"]["data"] = ["photos/val"]
    for more in results[1:]:
        result["arguments"]["models"] += more["arguments"]["models"]
        result["contests"] += more["contests"]
    for contest in result["contests"]:
        for extra in ("crops", "sheet"):
            contest.pop(extra, None)
        for one in (contest["model"], *contest["codecs"]):
            one.pop("bit_ones", None)
    file = RESULTS / f"{KIND}-cpu{os.cpu_count()}-{date.today().isoformat()}.json"
    with written_beside(file) as beside:
        beside.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    begin, end = f"<!-- {KIND}: begin -->", f"<!-- {KIND}: end -->"
    head, rest = PAGE.read_text("utf-8").split(begin)
    with written_beside(PAGE) as beside:
        beside.write_text(f"{head}{begin}\n{tables(result)}\n{end}{rest.split(end)[1]}", "utf-8")
    draw_rate_distortion(result, IMAGES / "compare-rate-distortion.png")
    for picture in given.folders[0].glob("crops-*.png"):
        with Image.open(picture) as opened:
            opened.save(IMAGES / f"compare-{picture.stem}.webp", quality=85, method=6)
    print(file)


if __name__ == "__main__":
    main()
