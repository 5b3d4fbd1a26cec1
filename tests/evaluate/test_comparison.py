"""Comparisons: budgets, sums and totals by hand, what fails, which crops are kept, plots."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from tests.evaluate.test_evaluation import Halved, count_looks, make
from wetok.config import WetokError
from wetok.data.images import load_image
from wetok.evaluate.codecs import Encodings, codec
from wetok.evaluate.comparison import Comparison
from wetok.evaluate.crops import WINDOW, Crops
from wetok.evaluate.evaluation import Evaluation, Scored
from wetok.evaluate.networks import Networks
from wetok.evaluate.plots import draw_rate_distortion
from wetok.evaluate.protocols import protocol
from wetok.evaluate.systems import Reconstruction
from wetok.losses.perceptual import LPIPS
from wetok.weights import find

SIZES = [(120, 99), (88, 131), (150, 70)]
ORIGINAL = protocol("original")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    for index, size in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8))
        paths.append(folder / f"{index}.png")
        coarse.resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks([LPIPS.from_file(find("lpips-alex"), "alex")])


class Sized(Halved):
    """`Halved` of another name, with a file of so many bytes for the n-th image."""

    def __init__(self, name: str, sizes: Sequence[int | None], bits: int | None = None) -> None:
        super().__init__()
        self.name = name  # type: ignore[misc]
        self.sizes, self.bits = list(sizes), bits

    def reconstruct(self, image: torch.Tensor, seeds: Sequence[int]) -> Reconstruction:
        size = self.sizes.pop(0)
        if size == -1:
            raise WetokError("no, thank you")
        return Reconstruction([image / 2], coded_bytes=size, bits=self.bits)


def compared(
    photos: Sequence[Path], *models: Any, codecs: Sequence[str] = ("jpeg", "webp"), **options: Any
) -> Comparison:
    comparison = Comparison(models, [codec(name) for name in codecs], ORIGINAL, **options)
    comparison.add_all(photos)
    return comparison


def test_equal_bytes_by_hand(photos: list[Path], networks: Networks) -> None:
    """Brute force over all qualities, Pillow's own decode, scikit-image, sums in plain Python."""
    budgets = [900, 700, 1600]
    tokenizer = make()
    comparison = compared(photos, Sized("a", budgets), tokenizer, networks=networks)
    results = comparison.results()
    webp = codec("webp")
    for contest, wanted in zip(results["contests"], (budgets, None), strict=True):
        if wanted is None:
            wanted = [len(tokenizer.encode(path).to_bytes()) for path in photos]
        sizes, psnrs = [], []
        for path, budget in zip(photos, wanted, strict=True):
            image = load_image(path)
            files = [webp.encode(image, quality) for quality in range(101)]
            fitting = [file for file in files if len(file) <= budget]
            file = fitting[-1] if fitting else min(files, key=len)
            sizes.append(len(file))
            again = np.array(webp.decode(file))
            psnrs.append(peak_signal_noise_ratio(np.array(image), again))
        row = contest["codecs"][1]
        assert (row["model"], row["title"], row["images"]) == ("webp", "WebP", 3)
        assert contest["model"]["bytes"] == row["budget"] == pytest.approx(sum(wanted) / 3)
        assert row["bytes"] == pytest.approx(sum(sizes) / 3)
        assert row["bytes_ratio"] == pytest.approx(sum(sizes) / sum(wanted))
        assert row["too_large"] == sum(s > b for s, b in zip(sizes, wanted, strict=True))
        assert row["psnr"] == pytest.approx(np.mean(psnrs), abs=1e-9)
        pixels = sum(w * h for w, h in SIZES)
        assert row["coded_bpp"] == pytest.approx(8 * sum(sizes) / pixels)
        assert 0 < row["payload_bpp"] < row["coded_bpp"] and row["lpips-alex"] > 0
        assert row["library"].startswith("Pillow ") and row["settings"] == [{"method": 6}]
    first = results["contests"][0]
    assert [one["model"] for one in first["codecs"]] == ["jpeg", "webp"] and not first["no_size"]
    assert not comparison.failures and json.dumps(results, allow_nan=False)
    hashes = {one["image_list_hash"] for one in (first["model"], *first["codecs"])}
    assert len(hashes) == 1


def test_a_codec_that_can_not_get_so_small(photos: list[Path]) -> None:
    results = compared(photos, Sized("a", [50, 60, 9000])).results()
    row = results["contests"][0]["codecs"][0]
    smallest = [len(Encodings(codec("jpeg"), load_image(p)).at_bytes(1).file) for p in photos[:2]]
    last = len(Encodings(codec("jpeg"), load_image(photos[2])).at_bytes(9000).file)
    assert row["too_large"] == 2 and smallest[0] > 60
    assert row["bytes_ratio"] == pytest.approx((sum(smallest) + last) / 9110)


def test_codes_of_fixed_length_where_there_is_no_file(photos: list[Path]) -> None:
    results = compared(photos, Sized("a", [None] * 3, bits=8 * 800 + 1), codecs=["webp"]).results()
    (contest,) = results["contests"]
    assert contest["model"]["bytes"] == contest["codecs"][0]["budget"] == 801
    assert contest["codecs"][0]["bytes"] <= 801
    neither = compared(photos, Sized("a", [None] * 3), Sized("b", [900] * 3), codecs=["webp"])
    found = neither.results()["contests"]
    assert found[0]["no_size"] and not found[0]["codecs"] and found[0]["model"]["bytes"] is None
    assert len(found[1]["codecs"]) == 1 and neither.failures == []


def test_what_fails(photos: list[Path], tmp_path: Path) -> None:
    """A file fails once, not for each system; where a model fails, its codecs don't count."""
    (tmp_path / "empty.png").write_bytes(b"")
    paths = [photos[0], tmp_path / "empty.png", *photos[1:]]
    comparison = compared(paths, Sized("a", [900, -1, 900]), Sized("b", [700, 700, 700]))
    assert len(comparison.failures) == 2
    assert "empty.png" in comparison.failures[0] and "no, thank you" in comparison.failures[1]
    first, second = comparison.results()["contests"]
    assert [one["images"] for one in (first["model"], *first["codecs"])] == [2, 2, 2]
    assert [one["images"] for one in (second["model"], *second["codecs"])] == [3, 3, 3]
    assert first["model"]["image_list_hash"] == first["codecs"][0]["image_list_hash"]
    assert first["codecs"][1]["budget"] == 900


def test_curves(photos: list[Path]) -> None:
    results = compared(photos, Sized("a", [900] * 3), codecs=["webp"], curves=True).results()
    (name,) = results["curves"]
    points = results["curves"]["webp"]
    assert name == "webp" and [p["quality"] for p in points] == list(codec("webp").curve)
    assert [p["bytes"] for p in points] == sorted(p["bytes"] for p in points)
    assert [p["psnr"] for p in points] == sorted(p["psnr"] for p in points)
    sizes = [len(codec("webp").encode(load_image(p), points[3]["quality"])) for p in photos]
    assert points[3]["bytes"] == pytest.approx(sum(sizes) / 3)


def test_each_image_is_looked_at_once(photos: list[Path], networks: Networks) -> None:
    looks = count_looks(networks)
    compared(photos, Sized("a", [900] * 3), codecs=["webp"], networks=networks, curves=True)
    assert len(looks) == 3 * (1 + 1 + 1 + len(codec("webp").curve))


def test_budget_of(photos: list[Path]) -> None:
    models = [Sized("a", [900] * 3), Sized("b", [700] * 3)]
    first, second = compared(photos, *models, budget_of=["b"]).results()["contests"]
    assert first["codecs"] == [] and len(second["codecs"]) == 2 and not first["no_size"]


def test_mistakes() -> None:
    one = Sized("a", [])
    with pytest.raises(WetokError, match=r"budget_of='toi' is none of the models.*'toy'"):
        Comparison([make()], [], ORIGINAL, budget_of=["toi"])
    with pytest.raises(WetokError, match="model 'a' is given twice"):
        Comparison([one, Sized("a", [])], [], ORIGINAL)
    with pytest.raises(WetokError, match="name at least one"):
        Comparison([], [], ORIGINAL)
    with pytest.raises(WetokError, match="no image could be scored"):
        Comparison([one], [], ORIGINAL).results()


def scored(place: int, lpips: float, size: int, pixels: torch.Tensor | None = None) -> Scored:
    original = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    row = {
        "image": f"{place}.png",
        "psnr": 20.0 + lpips,
        "coded_bytes": size,
        "lpips-alex": lpips,
        "bits": None,
    }
    return Scored(place, row, original, [original + 5 if pixels is None else pixels])


def test_which_crops_are_kept() -> None:
    """As sorting all of them would have it; a rival whose file is larger is no rival."""
    rng = np.random.default_rng(0)
    crops, wanted = Crops(3, Networks()), []
    for place in range(40):
        own, avif, webp = (float(x) for x in rng.random(3))
        crops.offer(
            ("toy", scored(place, own, 100)),
            [
                ("AVIF", scored(place, avif, 99)),
                ("JPEG", scored(place, 0.0, 101)),
                ("WebP", scored(place, webp, 100)),
                ("none", None),
            ],
        )
        wanted.append((own - min(avif, webp), place, "AVIF" if avif < webp else "WebP"))
    crops.offer(("toy", None), [("AVIF", scored(99, 1, 1))])
    crops.offer(("toy", scored(99, -9, 1)), [("none", None)])
    wanted.sort()
    best, worst = crops.strips()
    told = [[(one.difference, one.place, one.rival) for one in strips] for strips in (best, worst)]
    assert told == [wanted[:3], wanted[:-4:-1]]
    cells = best[0].cells
    assert [cell.title for cell in cells] == ["original", "toy", "AVIF", "JPEG", "WebP"]
    assert [cell.size for cell in cells] == [None, 100, 99, 101, 100]
    assert cells[1].psnr == pytest.approx(20 * math.log10(255 / 5)) and cells[0].psnr is None
    assert [one["image"] for one in crops.about()] == [
        f"{p}.png" for _, p, _ in (*told[0], *told[1])
    ]


def test_crops_where_all_rivals_are_larger_and_where_images_are_few() -> None:
    crops = Crops(3, Networks())
    for place in range(3):
        crops.offer(("toy", scored(place, place, 10)), [("JPEG", scored(place, 0.5, 99))])
    best, worst = crops.strips()
    assert [one.place for one in best] == [0, 1] and [one.place for one in worst] == [2]
    assert {one.rival for one in best} == {"JPEG"}


def test_the_window_of_a_large_image(networks: Networks) -> None:
    """Where the model is better: there only the rival is wrong; and the other way round."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1, 3, 300, 700)).astype(np.uint8)
    original = torch.from_numpy(noise)
    own, rival = original.clone(), original.clone()
    rival[..., :200] //= 2  # wrong on the left
    own[..., 500:] //= 2  # wrong on the right
    row = {"image": "wide.png", "coded_bytes": 10, "bits": None}
    for known, name in ((networks, "lpips-alex"), (Networks(), "psnr")):
        crops = Crops(1, known)
        good, bad = (0.1, 0.9) if name == "lpips-alex" else (30.0, 20.0)
        for place, (mine, other) in enumerate(((good, bad), (bad, good))):
            crops.offer(
                ("toy", Scored(place, {**row, name: mine}, original, [own])),
                [("WebP", Scored(place, {**row, name: other}, original, [rival]))],
            )
        best, worst = crops.strips()
        assert best[0].corner[0] == 0 and worst[0].corner[0] == 700 - WINDOW, name
        assert best[0].cells[1].pixels.shape == (WINDOW, WINDOW, 3)
        left, top = best[0].corner
        part = noise[0, :, top : top + WINDOW, left : left + WINDOW]
        assert np.array_equal(best[0].cells[0].pixels, np.moveaxis(part, 0, -1))
        assert best[0].cells[1].psnr == math.inf and best[0].cells[2].psnr < 20
        sheet = crops.sheet()
        assert sheet.width > 3 * WINDOW and sheet.height > 2 * WINDOW
        shown = np.asarray(sheet)
        assert any(
            np.array_equal(shown[y : y + WINDOW, 16 : 16 + WINDOW], best[0].cells[0].pixels)
            for y in range(sheet.height - WINDOW)
        ), "pixels are not scaled"


def test_crops_of_a_comparison(photos: list[Path], networks: Networks) -> None:
    comparison = compared(photos, Sized("a", [900] * 3), networks=networks, crops=1)
    rows = comparison.contests[0].model.images
    rivals = [evaluation.images for evaluation in comparison.contests[0].codecs]
    lead = [
        row["lpips-alex"]
        - min(
            (r[i]["lpips-alex"] for r in rivals if r[i]["coded_bytes"] <= 900),
            default=min(r[i]["lpips-alex"] for r in rivals),
        )
        for i, row in enumerate(rows)
    ]
    best, worst = comparison.crops[0].strips()
    assert best[0].difference == min(lead) and worst[0].difference == max(lead)
    assert [cell.title for cell in best[0].cells] == ["original", "a", "JPEG", "WebP"]
    together = compared(
        photos, Sized("a", [9] * 3), Sized("b", [9] * 3), codecs=[], networks=networks, crops=1
    )
    assert [c.title for c in together.crops[1].best[0].cells] == ["original", "b", "a"]


def test_plots(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every curve and point is drawn where its numbers are."""
    from matplotlib.axes import Axes

    drawn: dict[str, tuple[list[float], list[float]]] = {}
    plot = Axes.plot

    def noting(self: Axes, *values: Any, **options: Any) -> Any:
        lines = plot(self, *values, **options)
        x, y = lines[0].get_data()
        drawn.setdefault(str(options["label"]), (list(np.atleast_1d(x)), list(np.atleast_1d(y))))
        return lines

    monkeypatch.setattr(Axes, "plot", noting)
    comparison = compared(photos, Sized("a", [900] * 3), make(), codecs=["webp"], curves=True)
    results = comparison.results()
    draw_rate_distortion(results, tmp_path / "plot.png")
    points = results["curves"]["webp"]
    assert drawn["WebP"] == ([p["coded_bpp"] for p in points], [p["psnr"] for p in points])
    model = results["contests"][1]["model"]
    assert drawn["toy"] == ([model["coded_bpp"]], [model["psnr"]]) and set(drawn) == {
        "WebP",
        "a",
        "toy",
    }
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(1 << 20)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_results_of_equal_images_are_json() -> None:
    """PSNR of equal images is infinite, which JSON has no number for."""

    class Same(Halved):
        def reconstruct(self, image: torch.Tensor, seeds: Sequence[int]) -> Reconstruction:
            return Reconstruction([image], coded_bytes=70000)

    comparison = Comparison([Same()], [], ORIGINAL)
    flat = Image.new("RGB", (32, 32), (9, 99, 199))
    evaluation = comparison.contests[0].model
    assert isinstance(evaluation, Evaluation)
    evaluation.add_image(flat, "flat")
    results = comparison.results()
    assert results["contests"][0]["model"]["psnr"] == "inf" and json.dumps(results, allow_nan=False)
