"""Evaluation: means by hand, what fails is told and counts nowhere, protocols."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from wetok.codec.tokens import Tokens
from wetok.config import ModelConfig, WetokError
from wetok.data.images import load_image
from wetok.data.transforms import center_crop
from wetok.evaluate.evaluation import Evaluation, score_together
from wetok.evaluate.frechet import Moments
from wetok.evaluate.networks import Looked, Networks
from wetok.evaluate.protocols import PROTOCOLS, protocol
from wetok.evaluate.systems import Reconstruction
from wetok.losses.perceptual import LPIPS
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer

SIZES = [(40, 33), (57, 38), (35, 64)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    for index, size in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        paths.append(folder / f"{index}.png")
        coarse.resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def make(**changes: Any) -> Tokenizer:
    shape = {"bits": 8, "groups": 2, "channels": 8, "mults": (1, 1), "blocks": 1, "patch": 2}
    torch.manual_seed(0)
    return Tokenizer(TokenizerNetwork(ModelConfig(**{**shape, **changes})), "toy")


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    torch.manual_seed(0)
    return LPIPS("alex")


def test_means_by_hand(photos: list[Path], lpips: LPIPS) -> None:
    tokenizer = make(generative=True)
    evaluation = Evaluation(tokenizer, protocol("original"), [lpips], seed=3)
    steps: list[int] = []
    evaluation.add_all(photos, lambda: steps.append(1))
    summary = evaluation.summary()

    psnrs, ssims, distances, bits, seen = [], [], [], 0, []
    for path in photos:
        original = np.array(load_image(path))
        tokens = tokenizer.encode(path)
        (picture,) = tokenizer.decode(tokens, seed=3, precision="float32")
        again = np.array(picture)
        psnrs.append(peak_signal_noise_ratio(original, again))
        ssims.append(structural_similarity(original, again, channel_axis=-1))
        with torch.no_grad():
            pair = (torch.from_numpy(np.moveaxis(i, -1, 0)[None]) for i in (again, original))
            distances.append(lpips(*(p.float() / 127.5 - 1 for p in pair)).item())
        bits += tokens.ids.numel() * 4
        seen.append(tokens.ids[0].flatten(1))
    ids = torch.cat(seen, 1)
    usage = [len(group.unique()) / 16 for group in ids]
    dead = sum(len({(int(i) >> k) & 1 for i in group}) == 1 for group in ids for k in range(4))

    assert len(steps) == 3
    assert summary["psnr"] == pytest.approx(np.mean(psnrs), rel=1e-9)
    assert summary["ssim"] == pytest.approx(np.mean(ssims), rel=1e-6)
    assert summary["lpips-alex"] == pytest.approx(np.mean(distances), rel=1e-5)
    assert summary["bpp"] == pytest.approx(bits / sum(w * h for w, h in SIZES))
    assert summary["usage"] == pytest.approx(usage)
    assert summary["dead_bits"] == dead
    assert summary["encode_seconds"] > 0 and summary["decode_seconds"] > 0
    assert {key: summary[key] for key in ("model", "fingerprint", "seed", "images", "failed")} == {
        **{"model": "toy", "fingerprint": tokenizer.fingerprint},
        **{"seed": 3, "images": 3, "failed": 0},
    }
    assert [row["image"] for row in evaluation.images] == ["0.png", "1.png", "2.png"]
    assert [(row["width"], row["height"]) for row in evaluation.images] == SIZES


def test_a_score_names_what_it_was_measured_with(photos: list[Path], weights_dir: Path) -> None:
    network = LPIPS.from_file(weights_dir / "lpips_alex.safetensors", "alex")
    evaluation = Evaluation(make(), protocol("original"), [network])
    evaluation.add_all(photos[:1])
    summary = evaluation.summary()
    assert summary["protocol"] == "original"
    assert "own size" in summary["protocol_description"]
    assert summary["lpips_weights"] == {"alex": network.weights_hash}
    assert network.weights_hash is not None


def test_what_fails_is_listed_and_counts_nowhere(
    photos: list[Path], lpips: LPIPS, tmp_path: Path
) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (9, 5)).save(tmp_path / "tiny.png")  # too small for SSIM
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")  # too small for LPIPS-alex
    bad = [tmp_path / name for name in ("empty.png", "missing.png", "tiny.png", "small.png")]
    evaluation = Evaluation(make(), protocol("original"), [lpips])
    evaluation.add_all([bad[0], photos[0], *bad[1:], photos[1]])
    clean = Evaluation(make(), protocol("original"), [lpips])
    clean.add_all(photos[:2])

    assert len(evaluation.failures) == 4
    for line, path in zip(evaluation.failures, bad, strict=True):
        assert path.name in line and "\n" not in line
    summary, expected = evaluation.summary(), clean.summary()
    assert (summary["images"], summary["failed"]) == (2, 4)
    for key in ("psnr", "ssim", "lpips-alex", "bpp", "usage", "dead_bits"):
        assert summary[key] == expected[key], key


def test_nothing_scored_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    evaluation = Evaluation(make(), protocol("original"))
    evaluation.add_all([tmp_path / "empty.png"])
    with pytest.raises(WetokError, match="no image could be scored"):
        evaluation.summary()


def test_the_protocols(photos: list[Path]) -> None:
    image = load_image(photos[1])
    assert np.array_equal(
        np.array(protocol("modern-256").prepare(image)), np.array(center_crop(image, 256))
    )
    assert protocol("original").prepare(image) is image
    assert all(known.name == name for name, known in PROTOCOLS.items())
    with pytest.raises(WetokError, match="protocol='modern'.*modern-256"):
        protocol("modern")
    evaluation = Evaluation(make(), protocol("modern-256"))
    evaluation.add(photos[0])
    assert (evaluation.images[0]["width"], evaluation.images[0]["height"]) == (256, 256)
    assert evaluation.summary()["bpp"] == make().config.bpp


class Halved:
    """A system without codes: half the values, and a size of its own choosing."""

    name, fingerprint, generative, code_shape = "halved", "none", False, None
    device = torch.device("cpu")

    def __init__(self, crop: int = 0) -> None:
        self.crop = crop

    def reconstruct(self, image: torch.Tensor, seeds: Sequence[int]) -> Reconstruction:
        height = image.shape[-2] - self.crop
        return Reconstruction([image[..., :height, :] / 2], coded_bytes=100)


def test_another_system(photos: list[Path]) -> None:
    evaluation = Evaluation(Halved(), protocol("original"))
    evaluation.add_all(photos)
    summary = evaluation.summary()
    original = np.array(load_image(photos[0]))
    again = np.rint((original / 127.5 - 1) / 2 * 127.5 + 127.5).astype(np.uint8)
    wanted = peak_signal_noise_ratio(original, again)
    assert evaluation.images[0]["psnr"] == pytest.approx(wanted, abs=0.01)
    assert summary["bpp"] is None and summary["ratio"] is None and "usage" not in summary
    assert summary["coded_bpp"] == pytest.approx(2400 / sum(w * h for w, h in SIZES))
    assert summary["coded_ratio"] == pytest.approx(24 / summary["coded_bpp"])
    assert (summary["model"], summary["fingerprint"]) == ("halved", "none")
    other = Evaluation(Halved(crop=1), protocol("original"))
    with pytest.raises(WetokError, match=r"'halved' made \[1, 3, 32, 40\] of \[1, 3, 33, 40\]"):
        other.add(photos[0])


def test_images_in_memory(photos: list[Path]) -> None:
    from_files, in_memory = (Evaluation(make(), protocol("original")) for _ in range(2))
    from_files.add_all(photos)
    for path in photos:
        in_memory.add_image(load_image(path), path.name)
    one, other = from_files.summary(), in_memory.summary()
    for key in ("psnr", "ssim", "bpp", "usage", "token_entropy", "bit_ones"):
        assert one[key] == other[key], key
    assert one["image_list_hash"] != other["image_list_hash"], "of files, and of pixels"


def test_sizes_and_codes(photos: list[Path]) -> None:
    evaluation = Evaluation(make(), protocol("original"))
    evaluation.add_all(photos)
    summary = evaluation.summary()
    seen = torch.cat([make().encode(path).ids[0].flatten(1) for path in photos], 1)
    for group in range(2):
        share = torch.bincount(seen[group].long(), minlength=16).double() / seen.shape[1]
        wanted = -(share[share > 0] * share[share > 0].log2()).sum().item()
        assert summary["token_entropy"][group] == pytest.approx(wanted)
        ones = [((seen[group].long() >> bit) & 1).double().mean().item() for bit in range(4)]
        assert summary["bit_ones"][group] == pytest.approx(ones)
    assert summary["positions"] == seen.shape[1] and summary["usage_exact"]
    assert summary["ratio"] == pytest.approx(24 / summary["bpp"])


def test_a_size_after_entropy_coding_is_told_where_there_is_one(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokens, "to_bytes", lambda self: b"x" * 77, raising=False)
    evaluation = Evaluation(make(), protocol("original"))
    evaluation.add_all(photos)
    pixels = sum(w * h for w, h in SIZES)
    assert evaluation.summary()["coded_bpp"] == pytest.approx(8 * 77 * 3 / pixels)
    assert evaluation.images[0]["coded_bytes"] == 77


def test_what_the_paper_protocol_compares(photos: list[Path], lpips: LPIPS) -> None:
    """The released evaluation's own lines, on the model's output."""
    tokenizer = make()
    evaluation = Evaluation(tokenizer, protocol("paper-256"), [lpips])
    row = evaluation.add(photos[2])
    with Image.open(photos[2]) as opened:
        resized = opened.convert("RGB").resize((256, 468), Image.Resampling.BILINEAR)
    array = np.asarray(resized)[106:362]
    image = torch.from_numpy((array / 127.5 - 1.0).astype(np.float32)).permute(2, 0, 1)[None]
    again = tokenizer.decode(tokenizer.encode(image), output="float", precision="float32")
    with torch.no_grad():
        assert row["lpips-alex"] == pytest.approx(lpips(image, again).item(), rel=1e-5)
    first, second = (
        ((x + 1) / 2).mul_(255).permute(0, 2, 3, 1).to(torch.uint8)[0].numpy()
        for x in (image, again)
    )
    assert (first != array).any(), "some values are lost on the way"
    assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(first, second), abs=1e-9)
    ssim = structural_similarity(first, second, data_range=255, channel_axis=-1)
    assert row["ssim"] == pytest.approx(ssim, abs=1e-9)


def test_frechet_distance_by_hand(photos: list[Path]) -> None:
    """All features kept, numpy and scipy, against running statistics."""
    torch.manual_seed(0)
    vgg = LPIPS("vgg")
    tokenizer = make(generative=True)
    evaluation = Evaluation(tokenizer, protocol("original"), Networks(vgg=vgg), 5, samples=2)
    evaluation.add_all(photos)
    summary = evaluation.summary()

    def features(image: torch.Tensor) -> np.ndarray:
        seen = image.float() / 127.5 - 1
        return vgg.taps(seen)[-1].mean((-2, -1))[0].double().numpy()

    originals, first, second = [], [], []
    for path in photos:
        original = torch.from_numpy(np.array(load_image(path)).transpose(2, 0, 1))[None]
        originals.append(features(original))
        tokens = tokenizer.encode(path)
        first.append(
            features(tokenizer.decode(tokens, seed=5, output="uint8", precision="float32"))
        )
        second.append(
            features(tokenizer.decode(tokens, seed=6, output="uint8", precision="float32"))
        )
    wanted = [by_features(np.array(again), np.array(originals)) for again in (first, second)]
    assert summary["fd-vgg"] == pytest.approx(wanted[0], rel=1e-4)
    of = summary["of_samples"]["fd-vgg"]
    assert of["mean"] == pytest.approx(np.mean(wanted), rel=1e-4)
    assert of["best"] == pytest.approx(min(wanted), rel=1e-4)
    assert of["spread"] == pytest.approx(np.std(wanted, ddof=1), rel=1e-2)
    assert summary["frechet_weights"] == {"fd-vgg": None}


def by_features(x: np.ndarray, y: np.ndarray) -> float:
    halves = [(z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y)]
    overlap = np.linalg.svd(halves[0] @ halves[1].T, compute_uv=False).sum()
    shift = x.mean(0) - y.mean(0)
    return float(shift @ shift + sum(np.square(h).sum() for h in halves) - 2 * overlap)


def test_samples_by_hand(photos: list[Path], lpips: LPIPS) -> None:
    tokenizer = make(generative=True)
    evaluation = Evaluation(tokenizer, protocol("original"), [lpips], seed=7, samples=3)
    evaluation.add_all(photos)
    single = []
    for seed in (7, 8, 9):
        one = Evaluation(tokenizer, protocol("original"), [lpips], seed=seed)
        one.add_all(photos)
        single.append(one)
    of = evaluation.summary()["of_samples"]
    for name, best in (("psnr", np.max), ("ssim", np.max), ("lpips-alex", np.min)):
        table = np.array([[row[name] for row in one.images] for one in single])
        assert [row[name] for row in evaluation.images] == table[0].tolist()
        assert of[name]["mean"] == pytest.approx(table.mean())
        assert of[name]["best"] == pytest.approx(best(table, 0).mean())
        assert of[name]["spread"] == pytest.approx(table.std(0, ddof=1).mean())
    with pytest.raises(WetokError, match="samples=2: the decoder of 'toy' is deterministic"):
        Evaluation(make(), protocol("original"), samples=2)
    with pytest.raises(WetokError, match="samples=0 must be at least 1"):
        Evaluation(make(), protocol("original"), samples=0)


def test_a_reference_must_fit(photos: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = Networks(vgg=LPIPS("vgg"))
    evaluation = Evaluation(make(), protocol("original"), networks)
    evaluation.add_all(photos)
    evaluation.moments("fd-vgg").save(tmp_path / "stats.npz")
    again = Moments.load(tmp_path / "stats.npz")
    assert again.about["image_list_hash"] == evaluation.summary()["image_list_hash"]
    same = Evaluation(make(), protocol("original"), networks, reference={"fd-vgg": again})
    same.add_all(photos)
    wanted = evaluation.summary()["fd-vgg"]
    assert same.summary()["fd-vgg-to-reference"] == pytest.approx(wanted, rel=1e-6)
    for name, known, message in (
        ("rfid", protocol("original"), "'rfid', which is not measured"),
        ("fd-vgg", protocol("modern-256"), "preprocessing_hash"),
    ):
        with pytest.raises(WetokError, match=message):
            Evaluation(make(), known, networks, reference={name: again})
    narrow = Moments(torch.zeros(3), 9, given=torch.eye(3))
    with pytest.raises(WetokError, match="has 3 values, not 512"):
        Evaluation(make(), protocol("original"), networks, reference={"fd-vgg": narrow})
    with pytest.raises(WetokError, match="'rfid' is not measured"):
        evaluation.moments("rfid")


def test_several_systems_together(photos: list[Path], tmp_path: Path, lpips: LPIPS) -> None:
    """The numbers of each by itself; what one can't take fails for that one."""
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    paths = [*photos, tmp_path / "empty.png", tmp_path / "small.png"]
    networks, known = Networks([lpips]), protocol("original")
    systems = [make(), Halved(), Halved(crop=1)]
    together = [Evaluation(system, known, networks) for system in systems]
    looks = count_looks(networks)
    steps: list[int] = []
    score_together(together, paths, lambda: steps.append(1))
    assert len(steps) == 5
    assert len(looks) == 1 + 3 + 3 + 3, "small one once; three originals, two systems that go well"
    for index, system in enumerate(systems[:2]):
        alone = Evaluation(system, known, networks)
        alone.add_all(paths)
        assert alone.failures == together[index].failures and len(alone.failures) == 2
        for key, value in alone.summary().items():
            if not key.endswith("_seconds"):
                assert together[index].summary()[key] == value, key
    assert len(together[2].failures) == 5 and not together[2].images
    other = Evaluation(Halved(), protocol("modern-256"), networks)
    with pytest.raises(WetokError, match="can't be scored together"):
        score_together([together[0], other], paths)


def count_looks(networks: Networks) -> list[int]:
    """Grows by one with every look through `networks`."""
    looks: list[int] = []
    look = networks.look

    def counting(images: torch.Tensor) -> Looked:
        looks.append(1)
        return look(images)

    networks.look = counting  # type: ignore[method-assign]
    return looks
