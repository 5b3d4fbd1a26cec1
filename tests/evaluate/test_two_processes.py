"""Two processes score a list together: the same numbers, every image once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from tests.two_processes import run_rank
from wetok.config import ModelConfig, WetokError
from wetok.evaluate.evaluation import Evaluation
from wetok.evaluate.frechet import FeatureStatistics
from wetok.evaluate.networks import Networks
from wetok.evaluate.pictures import Gallery
from wetok.evaluate.protocols import protocol
from wetok.losses.perceptual import LPIPS
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer


def evaluate(paths: list[Path], samples: int = 1) -> dict[str, Any]:
    """The summary of a small model on `paths`; alone, or each process its share."""
    torch.manual_seed(0)
    shape = {"bits": 8, "groups": 2, "channels": 8, "mults": (1, 1), "blocks": 1, "patch": 2}
    tokenizer = Tokenizer(TokenizerNetwork(ModelConfig(**shape, generative=samples > 1)), "toy")
    networks = Networks([LPIPS("alex")], vgg=LPIPS("vgg"))
    gallery = Gallery(kept=2)
    evaluation = Evaluation(
        tokenizer, protocol("original"), networks, seed=1, samples=samples, watch=gallery.offer
    )
    evaluation.add_all(paths)
    evaluation.gather()
    gallery.gather()
    again = ""
    try:
        evaluation.gather()
    except WetokError as error:
        again = str(error)
    shown = gallery.worst, gallery.best
    return {
        "summary": evaluation.summary(),
        "failures": sorted(evaluation.failures),
        "images": [row["image"] for row in evaluation.images],
        "again": again,
        "pictures": [[(one.place, one.difference, one.spread) for one in kept] for kept in shown],
    }


def on_rank(rank: int, paths: list[Path], samples: int) -> dict[str, Any]:
    return evaluate(paths, samples)


def share(rank: int, features: np.ndarray, owner: list[int]) -> dict[str, Any]:
    """Statistics of `features`, of which row i was counted by the process `owner[i]`."""
    counted = FeatureStatistics(features.shape[1])
    for row, whose in zip(features, owner, strict=True):
        if whose == rank:
            counted.update(torch.from_numpy(row[None]))
    total = counted.total()
    moments = total.moments()
    return {"count": total.count, "mean": moments.mean, "covariance": moments.covariance}


RNG = np.random.default_rng(0)
FEW, MANY = RNG.normal(1e3, 1, (5, 6)), RNG.normal(1e3, 1, (91, 6))
SHARES = [
    (FEW, [0, 1, 0, 1, 0]),
    (FEW, [0] * 5),
    (MANY, [index % 2 for index in range(91)]),
    (MANY, [int(index < 4) for index in range(91)]),
    (MANY, [1] * 91),
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five photographs, an odd number, of several sizes; and two files that fail."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(5):
        coarse = np.random.default_rng(index).integers(0, 256, (4, 5, 3), np.uint8)
        photo = Image.fromarray(coarse).resize((40 + index, 50 - index), Image.Resampling.BICUBIC)
        photo.save(folder / f"{index}.png")
    (folder / "3x.png").write_bytes(b"no image")
    Image.new("RGB", (20, 20)).save(folder / "9.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, paths: list[Path]) -> list[list[Any]]:
    """What each rank made of each job; one start of processes for all."""
    folder = tmp_path_factory.mktemp("two")
    jobs = [
        (on_rank, paths, 1),
        (on_rank, paths, 2),
        (on_rank, paths[:1], 1),
        *((share, *one) for one in SHARES),
    ]
    mp.spawn(run_rank, args=(str(folder), jobs), nprocs=2)
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for result in results:
        assert isinstance(result, list), result
    return results


@pytest.mark.parametrize(("job", "samples"), [(0, 1), (1, 2)])
def test_the_numbers_of_one_process(
    job: int, samples: int, by_two: list[list[Any]], paths: list[Path]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes, for equality to the last bit
    alone = evaluate(paths, samples)
    torch.set_num_threads(threads)
    summary = alone["summary"]
    assert summary["images"] == 5 and summary["failed"] == 2 and summary["fd-vgg"] > 0
    for rank in range(2):
        together = by_two[rank][job]
        assert together["images"] == alone["images"] == [f"{index}.png" for index in range(5)]
        assert together["failures"] == alone["failures"]
        assert together["pictures"] == alone["pictures"]
        assert [len(kept) for kept in alone["pictures"]] == [2, 2]
        assert "gathered before" in together["again"] and alone["again"] == ""
        for key, value in summary.items():
            if key.endswith("_seconds"):
                continue
            if key == "fd-vgg" or key == "of_samples":
                assert flat(together["summary"][key]) == pytest.approx(flat(value), rel=1e-9), key
            else:
                assert together["summary"][key] == value, key


def flat(value: Any) -> list[float]:
    return (
        [value] if isinstance(value, float) else [x for each in value.values() for x in flat(each)]
    )


def test_a_process_without_an_image(by_two: list[list[Any]], paths: list[Path]) -> None:
    results = [by_two[rank][2]["summary"] for rank in range(2)]
    assert results[0]["images"] == results[1]["images"] == 1
    assert results[0]["psnr"] == results[1]["psnr"] and "fd-vgg" not in results[0]
    assert json.dumps(results[0]["bit_ones"]) == json.dumps(results[1]["bit_ones"])


@pytest.mark.parametrize("index", range(len(SHARES)))
def test_each_feature_counts_once(index: int, by_two: list[list[Any]]) -> None:
    features, _ = SHARES[index]
    for rank in range(2):
        result = by_two[rank][3 + index]
        assert result["count"] == len(features)
        np.testing.assert_allclose(result["mean"].numpy(), features.mean(0), rtol=1e-14)
        wanted = np.cov(features, rowvar=False)
        np.testing.assert_allclose(result["covariance"].numpy(), wanted, rtol=0, atol=1e-12)
