"""Samples against real images: distances, precision and recall by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluate.inception_weights import drawn_weights, published_layout
from wetok.cli import main
from wetok.config import WetokError
from wetok.evaluate.frechet import FeatureStatistics, frechet_distance
from wetok.evaluate.generated import Images, Seen, compare, covered, inception_score
from wetok.evaluate.inception import Inception
from wetok.evaluate.networks import Networks
from wetok.evaluate.protocols import protocol
from wetok.losses.perceptual import LPIPS


def by_hand(points: np.ndarray, among: np.ndarray, k: int) -> float:
    inside = 0
    for point in points:
        for index, center in enumerate(among):
            others = sorted(np.linalg.norm(among - center, axis=1)[np.arange(len(among)) != index])
            if np.linalg.norm(point - center) <= others[k - 1]:
                inside += 1
                break
    return inside / len(points)


@pytest.mark.parametrize("shift", [0.0, 0.7, 5.0])
def test_precision_by_hand(shift: float) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(40, 5)), random.normal(size=(30, 5)) + shift
    for points, among in ((a, b), (b, a)):
        wanted = by_hand(points, among, 3)
        assert covered(torch.from_numpy(points), torch.from_numpy(among)) == wanted
    assert covered(torch.from_numpy(a), torch.from_numpy(a)) == 1


def test_blocks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, 4, dtype=torch.float64, generator=random) for _ in range(2))
    whole = covered(a, b)
    monkeypatch.setattr("wetok.evaluate.generated._BLOCK", 7)
    assert covered(a, b) == whole and 0 < whole < 1


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks(vgg=LPIPS("vgg"))


def pictures(folder: Path, count: int, seed: int) -> np.ndarray:
    folder.mkdir()
    arrays = np.random.default_rng(seed).integers(0, 256, (count, 24, 24, 3), np.uint8)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number:03}.png")
    return arrays


def test_a_set_from_files_or_an_array(tmp_path: Path, networks: Networks) -> None:
    arrays = pictures(tmp_path / "a", 6, 1)
    np.savez(tmp_path / "a.npz", arrays)
    pictures(tmp_path / "b", 5, 2)
    chosen = protocol("original")
    sets = {
        name: Seen(networks, chosen, keep=True).add(Images(tmp_path / name))
        for name in ("a", "a.npz", "b")
    }
    result = compare(sets["a"], sets["b"])
    again = compare(sets["a.npz"], sets["b"])
    for name in ("fd-vgg-to-reference", "precision-vgg", "recall-vgg"):
        assert result[name] == again[name]
    assert result["samples"] == 6 and result["real"] == 5
    features = [FeatureStatistics(512) for _ in range(2)]
    for counted, name in zip(features, ("a", "b"), strict=True):
        for feature in sets[name].features["fd-vgg"]:
            counted.update(feature)
    wanted = frechet_distance(features[0].moments(), features[1].moments())
    assert result["fd-vgg-to-reference"] == pytest.approx(wanted, rel=1e-9)
    moments = (
        sets["b"]
        .statistics["fd-vgg"]
        .moments(features="fd-vgg", preprocessing_hash=result["preprocessing_hash"])
    )
    from_file = compare(sets["a"], {"fd-vgg": moments})
    assert from_file["fd-vgg-to-reference"] == pytest.approx(wanted, rel=1e-9)
    assert "precision-vgg" not in from_file
    same = compare(sets["a"], sets["a.npz"])
    assert same["fd-vgg-to-reference"] == pytest.approx(0, abs=1e-6)
    assert same["precision-vgg"] == same["recall-vgg"] == 1


def score_by_hand(logits: np.ndarray) -> tuple[float, float]:
    """Image by image, by the definition: exp of the mean divergence from the split's mean."""
    shuffled = logits[np.random.RandomState(2020).permutation(len(logits))]
    scores = []
    for split in range(10):
        rows = shuffled[split * len(logits) // 10 : (split + 1) * len(logits) // 10]
        shares = []
        for row in rows.astype(np.float64):
            powers = np.exp(row - row.max())
            shares.append(powers / powers.sum())
        overall = sum(shares) / len(shares)
        divergences = [
            sum(p * np.log(p / q) for p, q in zip(share, overall, strict=True) if p > 0)
            for share in shares
        ]
        scores.append(np.exp(np.mean(divergences)))
    return float(np.mean(scores)), float(np.std(scores))


@pytest.mark.parametrize("count", [10, 37])
def test_inception_score_by_hand(count: int) -> None:
    logits = np.random.default_rng(count).normal(size=(count, 6)).astype(np.float32) * 3
    wanted = score_by_hand(logits)
    assert inception_score(torch.from_numpy(logits)) == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    # Of images alike it is 1; of one sure image a class in every split, as many as classes.
    assert inception_score(torch.zeros(20, 5)) == pytest.approx((1, 0))
    sure = torch.eye(4).repeat(10, 1) * 1000
    mean, _ = inception_score(sure, splits=1)
    assert mean == pytest.approx(4)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-in weights of the FID network, with a classifier that tells images apart."""
    state = published_layout(drawn_weights(Inception()))
    random = torch.Generator().manual_seed(0)
    state["fc.weight"] = torch.randn(1008, 2048, generator=random)
    state["fc.bias"] = torch.full((1008,), 1e4).index_fill(0, torch.tensor([1]), -1e4)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return path


def test_inception_score_of_samples(
    tmp_path: Path, judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files to the number: torch-fidelity's resize, no bias, its order, its splits."""
    arrays = pictures(tmp_path / "a", 12, 1)
    pictures(tmp_path / "b", 2, 2)
    words = ["eval", "--generated", str(tmp_path / "a"), "--data", str(tmp_path / "b")]
    words += ["--fid-weights", str(judged), "--protocol", "original"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--frechet", "rfid-torch-fidelity", "--json"])
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    scores = json.loads(told.out)
    network = Inception.from_file(judged, "torch-fidelity")
    images = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
    features = torch.cat([network(one) for one in images.split(1)]).numpy()
    weight = torch.load(judged, weights_only=True)["fc.weight"].numpy()
    mean, spread = score_by_hand(features @ weight.T)
    assert 1 < mean < 1008
    assert scores["other_inception_score_mean"] == pytest.approx(mean, rel=1e-4)
    assert scores["other_inception_score_std"] == pytest.approx(spread, rel=1e-3, abs=1e-6)
    assert "inception_score_mean" not in scores, "not the published weights"


def test_why_there_is_no_inception_score(
    tmp_path: Path, judged: Path, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "a", 2, 1)
    chosen, images = protocol("original"), Images(tmp_path / "a")

    def missing(networks: Networks) -> str:
        seen = Seen(networks, chosen, keep=True, classes=True).add(images)
        reason: str = compare(seen, seen)["inception_score_missing"]
        return reason

    assert "weights are missing" in missing(networks)
    fidelity = Inception.from_file(judged, "torch-fidelity")
    monkeypatch.setattr(fidelity, "forward", lambda x: x.mean((-2, -1)).repeat(1, 1000)[:, :2048])
    assert missing(Networks(inceptions=[fidelity])) == "it needs 10 samples at least"
    fidelity.classifier = None
    assert missing(Networks(inceptions=[fidelity])) == "the weights hold no classifier"
    fidelity.convention = "pytorch-fid"
    assert "--frechet rfid-torch-fidelity" in missing(Networks(inceptions=[fidelity]))
    with pytest.raises(WetokError, match="no classifier"):
        fidelity.logits(torch.zeros(1, 2048))


def test_what_can_not_be_compared(tmp_path: Path, networks: Networks) -> None:
    pictures(tmp_path / "one", 1, 1)
    pictures(tmp_path / "two", 2, 1)
    chosen = protocol("original")
    one, two = (
        Seen(networks, chosen, keep=True).add(Images(tmp_path / name)) for name in ("one", "two")
    )
    with pytest.raises(WetokError, match="at least two images"):
        compare(one, two)
    other = two.statistics["fd-vgg"].moments(features="fd-vgg", preprocessing_hash="0" * 16)
    with pytest.raises(WetokError, match="preprocessing_hash"):
        compare(two, {"fd-vgg": other})
    with pytest.raises(WetokError, match="which is not measured"):
        compare(two, {"rfid": other})
    with pytest.raises(WetokError, match="there is no such file"):
        Images(tmp_path / "none.npz")
    np.savez(tmp_path / "float.npz", np.zeros((2, 8, 8, 3)))
    with pytest.raises(WetokError, match=r"arr_0 is float64 \[2, 8, 8, 3\]"):
        Images(tmp_path / "float.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(WetokError, match="no arr_0 can be read"):
        Images(tmp_path / "text.npz")


def test_command(
    tmp_path: Path,
    weights_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WETOK_CACHE", str(tmp_path / "cache"))
    pictures(tmp_path / "a", 4, 1)
    pictures(tmp_path / "b", 4, 2)

    def wetok(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    samples, real = str(tmp_path / "a"), str(tmp_path / "b")
    code, _, err = wetok("eval", "--generated", samples, "--data", real)
    assert code == 2 and "needs a feature network" in err
    assert wetok("weights", "import", str(weights_dir))[0] == 0
    receipt = str(tmp_path / "receipt.json")
    code, out, err = wetok(
        "eval", "--generated", samples, "--data", real, "--json", "--receipt", receipt
    )
    assert code == 0, err
    scores = json.loads(out)
    assert scores["fd-vgg-to-reference"] > 0 and 0 <= scores["precision-vgg"] <= 1
    assert json.loads(Path(receipt).read_text())["arguments"]["generated"] == samples
    code, out, err = wetok("eval", "--generated", samples, "--data", real)
    assert code == 0 and "4 samples against 4 images" in out and "precision-vgg" in out
    assert "no Inception score: the FID network's weights are missing" in out
    for words, message in (
        (["--data", real, "-m", "tiny-48x"], "-m means nothing with --generated"),
        ([], "needs --data (real images) or --reference, one of the two"),
    ):
        code, _, err = wetok("eval", "--generated", samples, *words)
        assert code == 2 and message in err and err.count("\n") == 1
