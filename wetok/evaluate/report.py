"""A page about one evaluation: scores and all they depend on, pictures, codes; in one HTML file.

Nothing on it comes from elsewhere: styles, scripts and pictures are inside. The same scores give
the same bytes, for no date or time of writing is on it.
"""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from wetok.checkpoint import written_beside
from wetok.config import WetokError
from wetok.evaluate import charts, receipt
from wetok.evaluate.codes import CodeStatistics
from wetok.evaluate.colours import coloured, legend
from wetok.evaluate.evaluation import is_lower_better
from wetok.evaluate.pictures import Gallery, Picture, values
from wetok.evaluate.rows import Rows
from wetok.evaluate.wording import digits_of, number, score_rows, title_of

PAGE, SCORES, IMAGES = "index.html", "scores.json", "images.csv"
LISTED = 2000
_ASSETS = Path(__file__).parent.parent / "assets" / "report"
_MARK = '<meta name="generator" content="wetok eval --report">'
_TOPS = (4, 8, 16, 32, 64, 128, 255)  # levels that a map's brightest colour may stand for

Summary = Mapping[str, Any]


def check_folder(folder: Path) -> None:
    """Makes `folder`, before a scoring that may take hours.

    Raises:
        WetokError: it can't be made, or holds a page that is not a report.
    """
    page = folder / PAGE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if page.exists() and _MARK not in page.read_text("utf-8", errors="replace")[:4096]:
            raise WetokError(f"--report {folder}: {page} is not a report; give another folder")
    except OSError as error:
        raise WetokError(f"--report {folder}: can't be written: {error.strerror}") from None


def write_report(
    folder: Path,
    summary: Summary,
    arguments: Mapping[str, Any],
    rows: Rows,
    gallery: Gallery,
    codes: CodeStatistics | None = None,
    failures: Sequence[str] = (),
) -> Path:
    """Writes the page, the receipt and the table of all images; each is whole or absent.

    Args:
        summary, arguments: as for `wetok.evaluate.receipt.write`.
        rows: the scores of every image.
        gallery: the pictures to show.
        codes: what was counted of the codes, where there are any.
        failures: a line for every image that could not be scored.

    Returns:
        The page's path.

    Raises:
        WetokError: the folder can't be written.
    """
    check_folder(folder)
    receipt.write(folder / SCORES, summary, arguments)
    with written_beside(folder / IMAGES) as beside:
        _write_table(beside, rows)
    page = _page(summary, arguments, rows, gallery, codes, failures)
    with written_beside(folder / PAGE) as beside:
        beside.write_text(page, "utf-8", errors="backslashreplace", newline="\n")
    return folder / PAGE


def _page(
    summary: Summary,
    arguments: Mapping[str, Any],
    rows: Rows,
    gallery: Gallery,
    codes: CodeStatistics | None,
    failures: Sequence[str],
) -> str:
    sections = {
        "scores": ("Scores", _scores(summary, arguments)),
        "failed": ("Images that failed", _failed(failures)),
        "distribution": ("Over the images", _distributions(rows)),
        "pictures": ("Worst and best", _pictures(gallery, summary)),
        "codes": ("Codes", _codes(summary, codes)),
        "images": ("Every image", _images(rows, gallery.score)),
    }
    sections = {key: section for key, section in sections.items() if section[1]}
    heading = f"{summary['model']} on {_counted(summary['images'], 'image')}"
    return Template((_ASSETS / "page.html").read_text("utf-8")).substitute(
        title=_text(heading),
        heading=_text(heading),
        lead=f"Protocol {_text(summary['protocol'])}: {_text(summary['protocol_description'])}.",
        nav=" ".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items()),
        style=(_ASSETS / "page.css").read_text("utf-8"),
        script=(_ASSETS / "page.js").read_text("utf-8"),
        version=_text(summary["versions"]["wetok"]),
        main="".join(
            f'<section id="{key}" aria-labelledby="{key}-title">\n'
            f'<h2 id="{key}-title">{title}</h2>\n{body}\n</section>\n'
            for key, (title, body) in sections.items()
        ),
    )


def _scores(summary: Summary, arguments: Mapping[str, Any]) -> str:
    plain = receipt.finite(summary)
    heads = ["Score", "Value"]
    if summary["samples"] > 1:
        heads += [f"{what} of {summary['samples']}" for what in ("Mean", "Best")] + ["Spread"]
    body = "".join(
        f'<tr><th scope="row">{_text(name)}</th>'
        + "".join(f"<td>{_text(one)}</td>" for one in values)
        + "<td></td>" * (len(heads) - 1 - len(values))
        + "</tr>\n"
        for name, *values in score_rows(plain)
    )
    table = (
        "<table><thead><tr>"
        + "".join(f'<th scope="col">{head}</th>' for head in heads)
        + f"</tr></thead>\n<tbody>\n{body}</tbody></table>"
    )
    note = ""
    if summary["samples"] > 1:  # five columns are more than a small phone is wide
        around = '<div class="across" role="region" tabindex="0" aria-label="Scores">'
        table = f"{around}{table}</div>"
        note = (
            '<p class="note">Values are of the first seed. Of the samples of each image: their '
            "mean, the best, and the standard deviation over seeds; then the mean over images. For "
            "a Fréchet distance: over the distances of the seeds.</p>"
        )
    return f'<div class="two"><div>{table}{note}</div><div>{_facts(plain, arguments)}</div></div>'


def _facts(summary: Summary, arguments: Mapping[str, Any]) -> str:
    """Everything on the receipt that the scores depend on."""
    facts = {
        "Model": summary["model"],
        "Fingerprint": summary["fingerprint"],
        "Protocol": summary["protocol"],
        "Preprocessing hash": summary["preprocessing_hash"],
        **{f"LPIPS-{net} weights": one for net, one in summary["lpips_weights"].items()},
        **{f"{title_of(name)} weights": one for name, one in summary["frechet_weights"].items()},
        **{f"Reference {name}": one for name, one in summary.get("reference", {}).items()},
        "Images": summary["images"],
        "Failed": summary["failed"],
        "Image list hash": summary["image_list_hash"],
        "Seed": summary["seed"],
        "Samples": summary["samples"],
        "Device": summary["device"],
        "Versions": ", ".join(f"{name} {one}" for name, one in summary["versions"].items()),
        **{f"--{name}": _argument(one) for name, one in arguments.items() if one},
    }
    body = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td><code>{_text(one)}</code></td></tr>\n'
        for name, one in facts.items()
    )
    return f'<table class="facts"><caption>Measured with</caption>\n<tbody>\n{body}</tbody></table>'


def _argument(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _failed(failures: Sequence[str]) -> str:
    if not failures:
        return ""
    more = f"<p>And {len(failures) - LISTED} more.</p>" if len(failures) > LISTED else ""
    lines = "".join(f"<li>{_text(line)}</li>\n" for line in failures[:LISTED])
    return f'<ul class="failures">\n{lines}</ul>{more}'


def _distributions(rows: Rows) -> str:
    parts = []
    for name, column in rows.columns.items():
        base, _, what = name.partition(":")
        if digits_of(base) is None or what not in ("", "spread") or (what and base == "ssim"):
            continue
        kept = [value for value in column if not math.isnan(value)]
        title = title_of(base) + (", spread over seeds" if what else "")
        parts.append(charts.histogram(kept, title, digits_of(base) or 0) if kept else "")
    return (
        '<p class="note">How many images have which score; the dashed line is the median.</p>'
        f'<div class="charts">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'
    )


def _pictures(gallery: Gallery, summary: Summary) -> str:
    every = [*gallery.worst, *gallery.best]
    if not every:
        return ""
    top = _top([values(one.difference) for one in every])
    parts = [
        f"<p>By {title_of(gallery.score)}, of the whole list. Move the slider, or drag on the "
        "picture, to lay the original over the reconstruction.</p>",
        _legend(
            "Difference: |original - reconstruction| of 8-bit values, mean over red, green and "
            "blue",
            top,
        ),
    ]
    spreads = [values(one.spread) / 4 for one in every if one.spread]
    spread_top = _top(spreads) if spreads else 0
    if spreads:
        parts.append(
            _legend(
                f"Invented: standard deviation of 8-bit values over {summary['samples']} seeds; "
                "what is bright differs from seed to seed, so the tokens did not tell it",
                spread_top,
            )
        )
    for title, pictures in (("Worst", gallery.worst), ("Best", gallery.best)):
        cards = "".join(
            _card(f"{title} {index}", one, top, spread_top, summary["seed"])
            for index, one in enumerate(pictures, 1)
        )
        if cards:
            parts.append(f'<h3>{title} first</h3><div class="cards">{cards}</div>')
    return "\n".join(parts)


def _card(title: str, picture: Picture, top: int, spread_top: int, seed: int) -> str:
    row = picture.row
    name = _text(row["image"])
    scores = [f"{row['width']} x {row['height']}"]
    if (row["width"], row["height"]) != picture.shown:
        scores.append(f"shown at {picture.shown[0]} x {picture.shown[1]}")
    for key, value in row.items():
        digits = digits_of(key) if ":" not in key else None
        if digits is not None:
            parts = [number(receipt.finite(value), digits)]
            for what in ("mean", "best", "spread"):
                if f"{key}:{what}" in row:
                    of = number(receipt.finite(row[f"{key}:{what}"]), digits)
                    parts.append(f"{what} {of}")
            scores.append(f"{title_of(key)} {', '.join(parts)}")
    alt = f"of {name}"
    figures = [
        _figure(picture.original, "webp", picture, f"Original {alt}", "Original", "original"),
        _figure(
            picture.samples[0],
            "webp",
            picture,
            f"Reconstruction {alt}",
            "Reconstruction" + (f", seed {seed}" if len(picture.samples) > 1 else ""),
            "again",
        ),
        _figure(
            coloured(values(picture.difference), top),
            "png",
            picture,
            f"Difference map {alt}",
            "Difference",
        ),
    ]
    if picture.spread is not None:
        figures.append(
            _figure(
                coloured(values(picture.spread) / 4, spread_top),
                "png",
                picture,
                f"What was invented, {alt}",
                "Invented",
            )
        )
    for index, sample in enumerate(picture.samples[1:], 1):
        words = f"Seed {seed + index}"
        figures.append(_figure(sample, "webp", picture, f"{words}, {alt}", words))
    small = " small" if max(picture.shown) < 160 else ""
    return (
        f'<article class="card{small}"><h4>{title}: {name}</h4><p>{" · ".join(map(_text, scores))}'
        f'</p><div class="pictures">{"".join(figures)}</div></article>\n'
    )


def _figure(
    data: bytes, kind: str, picture: Picture, alt: str, caption: str, name: str = ""
) -> str:
    width, height = picture.shown
    marked = f' class="{name}"' if name else ""
    return (
        f'<figure><img{marked} width="{width}" height="{height}" alt="{alt}" '
        f'src="{_uri(data, kind)}"><figcaption>{caption}</figcaption></figure>'
    )


def _legend(words: str, top: int) -> str:
    ticks = "".join(f"<span>{top * step / 4:g}</span>" for step in range(4))
    return (
        f'<figure class="legend"><img width="256" height="8" alt="From 0, black, to {top}, cream" '
        f'src="{_uri(legend(), "png")}"><div class="ticks" aria-hidden="true">{ticks}<span>{top}'
        f"{'' if top == 255 else '+'}</span></div><figcaption>{_text(words)}</figcaption>"
        "</figure>"
    )


def _top(maps: Sequence[np.ndarray[Any, Any]]) -> int:
    """The smallest scale that 98% of all pixels on the page lie within."""
    needed = float(np.percentile(np.concatenate([one.ravel() for one in maps]), 98))
    return next(top for top in _TOPS if top >= min(needed, 255))


def _codes(summary: Summary, codes: CodeStatistics | None) -> str:
    if codes is None or not codes.positions:
        return ""
    what = "codes" if codes.exact else "hashed buckets of codes"
    places = f"{codes.positions:,}"
    parts = [
        f'<p class="note">{_counted(codes.groups, "group")} of {codes.group_bits} bits, counted at '
        f"{places} places. How often each of the {what} of a group occurs, sorted; both axes are "
        "logarithmic. Where the line ends before the right edge, the others never occurred.</p>",
        '<div class="charts">',
    ]
    for group in range(codes.groups):
        used, bits = summary["usage"][group], summary["token_entropy"][group]
        chart = charts.rank_counts(codes.counter.counts[group], f"Group {group}")
        parts.append(
            f"<figure>{chart}<figcaption>Group {group}: {used:.1%} in use, entropy {bits:.2f} of "
            f"{codes.group_bits} bits</figcaption></figure>"
        )
    parts.append("</div>")
    dead = summary["dead_bits"]
    parts.append(
        '<figure class="wide"><div class="across" role="region" tabindex="0" '
        f'aria-label="Balance of bits">{charts.bit_balance(summary["bit_ones"])}</div>'
        "<figcaption>How often each bit is 1. "
        "At one half a bit tells most; one that never changes is dead: "
        f"{_counted(dead, 'such bit')}.</figcaption></figure>"
    )
    return "\n".join(parts)


def _images(rows: Rows, score: str) -> str:
    columns = [name for name in rows.columns if digits_of(name.partition(":")[0]) is not None]
    sizes = [name for name in ("bits", "coded_bytes") if rows.sum(name) is not None]
    order = range(len(rows))
    note = ""
    if len(rows) > LISTED:
        ranked = _ranked(rows, score)
        order = sorted(ranked[: LISTED // 2] + ranked[-LISTED // 2 :])  # type: ignore[assignment]
        note = (
            f'<p class="note">The {LISTED // 2} worst and the {LISTED // 2} best by '
            f"{title_of(score)}, of {len(rows):,}; all are in <code>{IMAGES}</code>.</p>"
        )
    heads = ["Image", "Width", "Height"]
    heads += [{"bits": "Bits a pixel", "coded_bytes": "Bytes"}[name] for name in sizes]
    for name in columns:
        base, _, what = name.partition(":")
        heads.append(title_of(base) + (f", {what}" if what else ""))
    body = []
    for index in order:
        row = rows[index]
        cells = [(str(row[name]), str(row[name])) for name in ("width", "height")]
        for name in sizes:
            if name == "bits":
                bpp = row[name] / (row["width"] * row["height"])
                cells.append((f"{bpp:.6g}", f"{bpp:.3f}"))
            else:
                cells.append((str(row[name]), f"{row[name]:,}"))
        for name in columns:
            value = row[name]
            plain = number(receipt.finite(value), digits_of(name.partition(":")[0]) or 0)
            cells.append(("" if value is None else _for_script(value), plain))
        image = _text(row["image"])
        body.append(
            f'<tr><th scope="row" data-value="{image}">{image}</th>'
            + "".join(f'<td data-value="{key}">{_text(text)}</td>' for key, text in cells)
            + "</tr>\n"
        )
    return (
        f'{note}<div class="scroll" role="region" aria-label="Scores of every image" tabindex='
        f'"0"><table class="sortable"><thead><tr>'
        + "".join(f'<th scope="col">{_text(head)}</th>' for head in heads)
        + f"</tr></thead>\n<tbody>\n{''.join(body)}</tbody></table></div>"
    )


def _ranked(rows: Rows, score: str) -> list[int]:
    """Indices from the worst to the best."""
    column = rows.columns[score]
    sign = -1 if is_lower_better(score) else 1
    return sorted(range(len(rows)), key=lambda index: (sign * column[index], index))


def _write_table(path: Path, rows: Rows) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *rows.columns])
        for row in rows:
            table.writerow(["" if value is None else value for value in row.values()])


def _for_script(value: float) -> str:
    """As JavaScript's Number reads it."""
    return json.dumps(value) if math.isfinite(value) else str(value).replace("inf", "Infinity")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _text(value: Any) -> str:
    """For HTML, in text and attributes; names that are no text, with escapes for what is not."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode(), quote=True)
