"""Evaluation: means by hand, what fails is told and counts nowhere, protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from wetok.config import ModelConfig, WetokError
from wetok.data.images import load_image
from wetok.data.transforms import center_crop
from wetok.evaluate.evaluation import Evaluation
from wetok.evaluate.protocols import PROTOCOLS, protocol
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
        (picture,) = tokenizer.decode(tokens, seed=3)
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
