"""What the page says, as HTML: everything from outside is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from wetok.app.damage import Damaged
from wetok.app.groups import Group
from wetok.app.maps import Map
from wetok.app.rivals import AVIF_SPEED, Rival
from wetok.app.seen import Closeness, Seen
from wetok.evaluate.colours import legend
from wetok.evaluate.wording import number, title_of
from wetok.model.tokenizer import Tokenizer


def about(tokenizer: Tokenizer) -> str:
    """A model in one line."""
    config = tokenizer.config
    kind = "generative decoder" if config.generative else "deterministic decoder"
    return _note(
        f"{config.ratio:.0f} times smaller than RGB before entropy coding: {config.groups} groups "
        f"of {config.group_bits} bits for every {config.factor} x {config.factor} pixels; {kind}."
    )


def facts(seen: Seen) -> str:
    """The numbers of a picture that matter most, in large."""
    near = seen.closeness
    large = [
        (f"{24 / seen.coded_bpp:.0f}x", "smaller than RGB"),
        (kilobytes(len(seen.file)), "as a .wetok file"),
    ]
    if near is not None:
        large.append((f"{number(near.psnr, 1)} dB", "PSNR"))
        if near.lpips is not None:
            large.append((number(near.lpips, 3), "LPIPS, lower is nearer"))
    tiles = "".join(
        f"<div><strong>{_text(value)}</strong><span>{_text(what)}</span></div>"
        for value, what in large
    )
    note = _note(seen.note) if seen.note else ""
    return f'{note}<div class="figures">{tiles}</div>'


def all_numbers(seen: Seen) -> str:
    """Everything that is known of a picture, as a table."""
    height, width = seen.size
    _, groups, rows, columns = seen.tokens.ids.shape
    near = seen.closeness
    table = [
        ("Picture", f"{width} x {height} pixels, {kilobytes(3 * seen.pixels)} as RGB"),
        (
            "Tokens",
            f"{columns} x {rows} places x {groups} groups = {seen.tokens.ids.numel():,}, "
            f"each of {seen.tokens.group_bits} bits",
        ),
        (
            "Fixed length",
            f"{seen.bpp:.3f} bits a pixel, {24 / seen.bpp:.1f} : 1, "
            f"{kilobytes(-(-seen.bits // 8))}",
        ),
        (
            "Entropy-coded, whole file",
            f"{seen.coded_bpp:.3f} bits a pixel, {24 / seen.coded_bpp:.1f} : 1, "
            f"{len(seen.file):,} bytes",
        ),
    ]
    if seen.file_bytes is not None:
        table.append(("The photo's own file", kilobytes(seen.file_bytes)))
    if near is not None:
        scores = [("psnr", near.psnr, 2), ("ssim", near.ssim, 4), ("lpips-alex", near.lpips, 4)]
        table += [(title_of(name), number(value, digits)) for name, value, digits in scores]
    if seen.encode_seconds is not None:
        table.append(("Time to encode", f"{seen.encode_seconds:.2f} s"))
    table.append(("Time to decode", f"{seen.decode_seconds:.2f} s"))
    body = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
        for name, value in table
    )
    caption = f"{seen.name} by {seen.label}"
    return f"<table><caption>{_text(caption)}</caption>{body}</table>"


def scale(found: Map, words: str) -> str:
    """The legend of a map: its colours, what they stand for, mean and maximum."""
    ticks = "".join(f"<span>{found.top * step / 4:g}</span>" for step in range(4))
    more = "" if found.top == 255 else "+"
    return (
        f'<figure class="scale"><img alt="From 0, black, to {found.top}, cream" '
        f'src="{_picture(legend())}"><div>{ticks}<span>{found.top}{more}</span></div>'
        f"<figcaption>{_text(words)} Mean {found.mean:.2f}, at most {found.most:.1f}."
        "</figcaption></figure>"
    )


def difference_scale(found: Map) -> str:
    return scale(
        found,
        "Absolute difference of 8-bit values, the mean of red, green and blue: levels of 255.",
    )


def invented_scale(found: Map, seeds: int) -> str:
    return scale(
        found,
        f"Standard deviation of 8-bit values over {seeds} seeds, in levels of 255. What is bright "
        "changes from seed to seed: the tokens did not tell it.",
    )


def groups(found: Sequence[Group], bits: int) -> str:
    """Pictures of the tokens, drawn as large as the page is wide, each pixel a square."""
    figures = "".join(
        f'<figure><img alt="Tokens of group {index}" src="{_picture(_png(one.picture))}">'
        f"<figcaption><b>Group {index}</b> {one.distinct:,} of {2**bits:,} ids, "
        f"{one.entropy:.1f} of {bits} bits</figcaption></figure>"
        for index, one in enumerate(found, 1)
    )
    note = _note(
        "A square is a token, a colour an id: ids that share bits have similar colours. Below: "
        "how many ids occur, and their entropy in this picture."
    )
    return f'{note}<div class="groups">{figures}</div>'


def rivals(seen: Seen, found: Iterable[Rival], missing: Iterable[str] = ()) -> str:
    """A table of the model and the codecs."""
    rows = [_row(seen.label, len(seen.file), "", seen.closeness)]
    for one in found:
        how = f"quality {one.coded.quality}"
        how += "" if one.coded.fits else ": its smallest, which is larger"
        rows.append(_row(one.title, len(one.coded.file), how, one.closeness))
    heads = "".join(
        f'<th scope="col">{head}</th>' for head in ("", "Bytes", "PSNR (dB)", "LPIPS", "")
    )
    left = "".join(f" {_text(one)} is on its way." for one in missing)
    return (
        f'<table class="rivals"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f"</table>"
        + _note(
            "Each codec has its highest quality in no more bytes than the whole .wetok file; "
            f"AVIF at speed {AVIF_SPEED}.{left}"
        )
    )


def _row(title: str, size: int, how: str, near: Closeness | None) -> str:
    psnr = number(None if near is None else near.psnr, 2)
    lpips = number(None if near is None else near.lpips, 4)
    cells = "".join(f"<td>{_text(one)}</td>" for one in (f"{size:,}", psnr, lpips, how))
    return f'<tr><th scope="row">{_text(title)}</th>{cells}</tr>'


def after_damage(
    result: Damaged, to_original: Closeness | None, to_again: Closeness, before: Closeness | None
) -> str:
    """What was done, and what it did."""
    tokens, bits = result.tokens.ids.numel(), result.tokens.ids.numel() * result.tokens.group_bits
    told = (
        f"{result.changed:,} of {tokens:,} tokens changed ({result.changed / tokens:.1%}), "
        f"{result.flipped:,} of {bits:,} bits ({result.flipped / bits:.1%}). "
        f"PSNR {number(to_again.psnr, 2)} dB against the undamaged picture"
    )
    if to_original is not None and before is not None:
        told += (
            f"; against the original {number(to_original.psnr, 2)} dB instead of "
            f"{number(before.psnr, 2)} dB"
        )
    return _note(f"{told}.")


def plain(text: str) -> str:
    """A sentence."""
    return _note(text)


def kilobytes(count: int) -> str:
    """Bytes for people, 1 kB being 1,000."""
    for size, unit in ((1e6, "MB"), (1e3, "kB")):
        if count >= size:
            value = count / size
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    return f"{count} bytes"


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _picture(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _text(value: object) -> str:
    return escape(str(value).encode("utf-8", "backslashreplace").decode(), quote=True)
