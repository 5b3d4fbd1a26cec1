"""The report: its pictures, maps and numbers recomputed, its bytes, and what may not get in."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.color import rgb2lab

from wetok.config import ModelConfig, WetokError
from wetok.data.images import load_image
from wetok.evaluate import charts, receipt
from wetok.evaluate.colours import coloured, legend, palette
from wetok.evaluate.evaluation import Evaluation, Scored
from wetok.evaluate.pictures import LARGEST, Gallery, make_picture, spread_of, values
from wetok.evaluate.protocols import protocol
from wetok.evaluate.report import LISTED, check_folder, write_report
from wetok.evaluate.rows import Rows
from wetok.evaluate.wording import score_rows
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer

NAME = "a <b>&\"'</b> \u00e9\u6f22.png"


def picture_of(seed: int, size: tuple[int, int] = (40, 33)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def noisy(**changes: Any) -> Tokenizer:
    """A small generative tokenizer whose noise has random weights, so that seeds differ."""
    shape = {"bits": 8, "groups": 2, "channels": 8, "mults": (1, 1), "blocks": 1, "patch": 2}
    torch.manual_seed(0)
    network = TokenizerNetwork(ModelConfig(**{**shape, "generative": True, **changes}))
    with torch.no_grad():
        network.decoder.conv_in.weight[:, 8:].normal_(std=0.2)
    return Tokenizer(network, "toy <gd>")


def reported(
    tokenizer: Tokenizer, folder: Path, names: list[str], samples: int = 1
) -> tuple[str, Evaluation, Gallery]:
    gallery = Gallery(kept=2)
    evaluation = Evaluation(
        tokenizer, protocol("original"), samples=samples, watch=gallery.offer, seed=3
    )
    for index, name in enumerate(names):
        evaluation.add_image(picture_of(index), name)
    page = write_report(
        folder,
        evaluation.summary(),
        {"data": ["photos"], "model": "toy"},
        evaluation.images,
        gallery,
        evaluation.codes,
        ["<i>broken</i>.png: can't be read"],
    )
    return page.read_text("utf-8"), evaluation, gallery


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], "tags are not closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br", "input", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def images(self) -> dict[str, Image.Image]:
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                kind, _, data = (attributes["src"] or "").partition(";base64,")
                assert kind in ("data:image/webp", "data:image/png")
                found[attributes["alt"] or ""] = Image.open(io.BytesIO(base64.b64decode(data)))
        return found


# The page


def test_pictures_are_the_pixels_that_were_scored(tmp_path: Path) -> None:
    tokenizer = noisy()
    text, evaluation, gallery = reported(tokenizer, tmp_path, ["a.png", "b.png", "c.png"], 3)
    page = Page(text)
    images = page.images()
    best = sorted(range(3), key=lambda index: -evaluation.images[index]["psnr"])
    assert [one.place for one in gallery.worst] == best[::-1][:2]
    assert [one.place for one in gallery.best] == best[:1]  # the other is among the worst

    for one in (*gallery.worst, *gallery.best):
        name = one.row["image"]
        original = np.array(picture_of(one.place))
        tokens = tokenizer.encode(picture_of(one.place))
        again = [
            np.array(tokenizer.decode(tokens, seed=seed, precision="float32")[0])
            for seed in (3, 4, 5)
        ]
        assert np.array_equal(np.array(images[f"Original of {name}"].convert("RGB")), original)
        assert np.array_equal(
            np.array(images[f"Reconstruction of {name}"].convert("RGB")), again[0]
        )
        for seed in (4, 5):
            shown = images[f"Seed {seed}, of {name}"].convert("RGB")
            assert np.array_equal(np.array(shown), again[seed - 3])
        difference = np.abs(original.astype(int) - again[0]).mean(-1)
        assert np.abs(values(one.difference) - difference).max() <= 0.5
        invented = np.sqrt(np.stack(again).astype(float).var(0, ddof=1).mean(-1))
        assert (
            invented.max() > 3
            and np.abs(values(one.spread) / 4 - invented.clip(max=63.75)).max() <= 0.126
        )

    (top,) = re.findall(r"<span>(\d+)\+</span></div><figcaption>Difference", text)
    brightest = images[f"Difference map of {gallery.worst[0].row['image']}"]
    index = np.asarray(brightest).astype(float)
    wanted = (values(gallery.worst[0].difference) * 255 / int(top)).clip(0, 255)
    assert brightest.mode == "P" and np.abs(index - wanted).max() <= 0.5


def test_numbers_are_those_of_the_summary(tmp_path: Path) -> None:
    text, evaluation, _ = reported(noisy(), tmp_path, ["a.png", NAME], 2)
    summary = receipt.finite(evaluation.summary())
    words = Page(text).words
    for row in score_rows(summary):
        assert all(value in words for value in row)
    for key in ("fingerprint", "preprocessing_hash", "image_list_hash", "protocol_description"):
        assert summary[key] in words
    for name, version in summary["versions"].items():
        assert f"{name} {version}" in words
    assert f"psnr {summary['psnr']}" not in words
    assert "usage" in summary and all(f"{one:.1%} in use" in words for one in summary["usage"])

    scores = receipt.read(tmp_path / "scores.json")
    assert {key: scores[key] for key in summary} == summary and scores["arguments"][
        "model"
    ] == "toy"
    with open(tmp_path / "images.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == ["a.png", NAME]
    assert [float(row["psnr"]) for row in table] == [row["psnr"] for row in evaluation.images]


def test_names_are_no_markup(tmp_path: Path) -> None:
    text, _, _ = reported(noisy(), tmp_path, [NAME, "</script><script>alert(1)</script>"])
    page = Page(text)
    assert page.words.count(NAME) >= 2 and "toy <gd> on 2 images" in page.words
    assert "<i>broken</i>.png: can't be read" in page.words
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not {tag for tag, _ in page.tags} & {"b", "i"}


def test_names_that_are_no_text(tmp_path: Path) -> None:
    text, _, _ = reported(noisy(), tmp_path, ["caf\udce9.png", "b.png"])
    assert "caf\\udce9.png" in text
    assert "caf\\udce9.png" in (tmp_path / "images.csv").read_text("utf-8")


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    text, _, _ = reported(noisy(), tmp_path, ["a.png", "b.png"])
    page = Page(text)
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    style = (Path(charts.__file__).parent.parent / "assets/report/page.css").read_text("utf-8")
    assert "url(" not in style and "@import" not in style
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for folder in ("one", "two"):
        gallery = Gallery(kept=1)
        evaluation = Evaluation(noisy(), protocol("original"), watch=gallery.offer)
        for index in range(2):
            evaluation.add_image(picture_of(index), f"{index}.png")
        summary = {**evaluation.summary(), "encode_seconds": 1.0, "decode_seconds": 2.0}
        page = write_report(tmp_path / folder, summary, {}, evaluation.images, gallery)
        written.append(page.read_bytes())
    assert written[0] == written[1]


def test_a_system_without_codes_or_a_finite_psnr(tmp_path: Path) -> None:
    from wetok.evaluate.from_python import CallableSystem

    same = CallableSystem("same", lambda image: image, "0" * 16, torch.device("cpu"))
    gallery = Gallery()
    evaluation = Evaluation(same, protocol("original"), watch=gallery.offer)
    evaluation.add_image(picture_of(0), "a.png")
    page = write_report(tmp_path, evaluation.summary(), {}, evaluation.images, gallery)
    text = page.read_text("utf-8")
    assert 'id="codes"' not in text and "on 1 image<" in text
    assert ">inf</td>" in text and 'data-value="Infinity"' in text
    Page(text)


def test_long_lists_are_cut_to_the_worst_and_the_best(tmp_path: Path) -> None:
    rows = Rows()
    rng = np.random.default_rng(0)
    psnrs = rng.permutation(LISTED + 7) / 100
    sizes = {"width": 8, "height": 8, "bits": None, "coded_bytes": None}
    for index, psnr in enumerate(psnrs):
        rows.append(index, f"{index}.png", b"", {**sizes, "psnr": psnr})
    evaluation = Evaluation(noisy(), protocol("original"))
    evaluation.add_image(picture_of(0), "a.png")
    gallery = Gallery()
    gallery.score = "psnr"
    page = write_report(tmp_path, evaluation.summary(), {}, rows, gallery)
    shown = re.findall(r'<th scope="row" data-value="(\d+).png">', page.read_text("utf-8"))
    left_out = set(range(len(psnrs))) - {int(one) for one in shown}
    half = LISTED // 2
    assert sorted(psnrs[index] for index in left_out) == [(half + k) / 100 for k in range(7)]
    assert len((tmp_path / "images.csv").read_text().splitlines()) == LISTED + 8


def test_a_page_of_anothers_stays(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>mine</p>")
    with pytest.raises(WetokError, match="is not a report; give another folder"):
        check_folder(tmp_path)
    with pytest.raises(WetokError, match="--report .*: can't be written"):
        check_folder(tmp_path / "index.html" / "deeper")
    reported(noisy(), tmp_path / "new", ["a.png"])
    check_folder(tmp_path / "new")


# Pictures


def shown(place: int, score: float) -> Scored:
    pixels = torch.full((1, 3, 4, 4), place % 256, dtype=torch.uint8)
    row = {"image": str(place), "width": 4, "height": 4, "psnr": 20.0, "lpips-alex": score}
    return Scored(place, row, pixels, [pixels])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 4), st.randoms())
def test_a_gallery_keeps_what_sorting_all_would(scores: list[int], kept: int, random: Any) -> None:
    gallery = Gallery(kept)
    offered = [shown(place, float(score)) for place, score in enumerate(scores)]
    random.shuffle(offered)
    for one in offered:
        gallery.offer(one)
    places = range(len(scores))
    worst = sorted(places, key=lambda place: (-scores[place], place))[:kept]
    best = sorted(places, key=lambda place: (scores[place], place))[:kept]
    assert gallery.score == "lpips-alex"
    assert [one.place for one in gallery.worst] == worst
    assert [one.place for one in gallery.best] == [one for one in best if one not in worst]
    assert len(gallery._best) <= kept and len(gallery._worst) <= kept


def test_galleries_of_all_processes_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0]
    whole, parts = Gallery(2), [Gallery(2), Gallery(2), Gallery(2)]
    for place, score in enumerate(scores):
        whole.offer(shown(place, score))
        parts[place % 2].offer(shown(place, score))  # the third has seen nothing
    monkeypatch.setattr("wetok.evaluate.pictures.gathered", lambda _: parts)
    joined = parts[2]
    joined.gather()
    assert (joined.worst, joined.best, joined.score) == (whole.worst, whole.best, "lpips-alex")


def test_large_pictures_are_shown_smaller_and_differ_as_they_did() -> None:
    rng = np.random.default_rng(0)
    original = torch.from_numpy(rng.integers(0, 256, (1, 3, 2 * LARGEST, 400), np.uint8))
    again = original.clone()
    again[..., :100, :100] ^= 32
    row = {"image": "x", "width": 400, "height": 2 * LARGEST, "psnr": 9.0}
    picture = make_picture(Scored(0, row, original, [again]))
    assert picture.shown == (200, LARGEST)
    assert Image.open(io.BytesIO(picture.original)).size == (200, LARGEST)
    difference = values(picture.difference)
    assert (difference[:49, :49] == 32).all() and (difference[51:] == 0).all()


def test_spread_in_one_pass() -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (5, 3, 6, 7), np.uint8)
    expected = np.sqrt(samples.astype(float).var(0, ddof=1).mean(0))
    found = spread_of([torch.from_numpy(one) for one in samples])
    assert np.allclose(found, expected, atol=1e-4)


# Colours and charts


def test_lightness_rises_evenly() -> None:
    """By scikit-image's CIELAB, another model of sight than the map is made in."""
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
    lightness = rgb2lab(colours[None] / 255)[0, :, 0]
    assert lightness[0] == 0 and lightness[-1] > 90
    steps = np.diff(lightness[::15])
    assert steps.min() > 4 and steps.max() < 7.5, steps
    assert len({*map(tuple, colours.tolist())}) > 240


def test_coloured_maps() -> None:
    ramp = np.array([[0, 8, 16, 17, 400]], np.float32)
    image = Image.open(io.BytesIO(coloured(ramp, 16)))
    assert np.asarray(image).tolist() == [[0, 128, 255, 255, 255]]
    rgb = np.asarray(image.convert("RGB"))[0]
    assert rgb[0].tolist() == [0, 0, 0] and rgb[-1].tolist() == list(palette()[-3:])
    assert np.asarray(Image.open(io.BytesIO(legend())))[0].tolist() == list(range(256))


def test_a_histogram_counts_every_value_once() -> None:
    values = [*np.random.default_rng(0).normal(24, 3, 200), math.inf]
    svg = charts.histogram(values, "PSNR", 2)
    counts = [int(one) for one in re.findall(r": (\d+)</title>", svg)]
    assert sum(counts) == 200
    finite = np.sort(values[:-1])
    assert np.histogram(finite, len(counts))[0].tolist() == counts
    assert f"median {np.median(finite):.2f}, 1 infinite and not shown" in svg
    assert "<title>" in charts.histogram([5.0], "one", 2)
    assert "no finite value" in charts.histogram([math.inf], "none", 2)


def test_ranked_counts() -> None:
    counts = torch.tensor([0, 5, 100, 1, 0, 20, 0, 0])
    svg = charts.rank_counts(counts, "Group 0")
    assert "4 of 8 codes seen, the most frequent 100 times, the least 1" in svg
    (line,) = re.findall(r'polyline class="line" points="([^"]*)"', svg)
    points = [tuple(map(float, one.split(","))) for one in line.split()]
    assert len(points) == 4
    for place, (count, (x, y)) in enumerate(zip([100, 20, 5, 1], points, strict=True), 1):
        share = math.log(place) / math.log(8), math.log(count) / math.log(100)
        room = charts.WIDTH - charts.LEFT - charts.RIGHT
        high = charts.HEIGHT - charts.TOP - charts.BOTTOM
        assert x == pytest.approx(charts.LEFT + share[0] * room, abs=0.01)
        assert y == pytest.approx(charts.HEIGHT - charts.BOTTOM - share[1] * high, abs=0.01)


def test_bits_that_never_change_stand_out() -> None:
    svg = charts.bit_balance([[0.5, 1.0], [0.25, 0.0]])
    assert svg.count('class="bar odd"') == 2 and "group 1, bit 0: 1 in 25.00%" in svg
    tall = [float(one) for one in re.findall(r'width="[\d.]+" height="([\d.]+)"', svg)]
    assert tall == [1.5, 57.5, 29.5, 57.5]


def test_photographs_come_upright(tmp_path: Path) -> None:
    """The page shows what was scored, not the file's own bytes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture_of(0).save(tmp_path / "turned.png", exif=exif)
    gallery = Gallery()
    evaluation = Evaluation(noisy(), protocol("original"), watch=gallery.offer)
    evaluation.add(tmp_path / "turned.png")
    original = np.array(Image.open(io.BytesIO(gallery.worst[0].original)).convert("RGB"))
    assert np.array_equal(original, np.array(load_image(tmp_path / "turned.png")))
    assert original.shape == (40, 33, 3)
    assert json.dumps(gallery.worst[0].row)
