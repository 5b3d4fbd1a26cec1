"""Evaluation: memory over many images, and speed against the released evaluation's way.

    python benchmarks/evaluation.py memory                  # 10,000 synthetic images; plot, JSON
    python benchmarks/evaluation.py speed --data photos     # both ways on photographs; JSON
    python benchmarks/evaluation.py speed --data photos --images 8 --quick    # writes nothing

`memory` runs `Evaluation` (PSNR, SSIM, LPIPS-alex, codes, a Frechet distance) on a tiny random
model and samples the process's resident set. The distance's features are 2048 pixels, as many as
FID's: they cost no time, and what is kept of them is the same.

`speed` scores the shipped model's reconstructions, made beforehand, with PSNR, SSIM, LPIPS-alex,
LPIPS-vgg and the Frechet inception distance, under `paper-256`:

- ours: `wetok.evaluate.Evaluation`;
- released: batches of four, the networks as they are published (batch norm by itself), scikit-image
  for every pair, all features kept, numpy's covariance and scipy's `sqrtm` of the product.

Both read the same files in one process, in turns; a round's time is split into what grows with the
images and what the distance costs at the end, for the latter weighs little in a long evaluation.
Times are the process's processor time, which other work on the machine moves little; with one
thread (OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1) it is what a clock would show on a free core.
`together` is ours for four systems at once (`score_together`), per system.
The Inception's weights are random where the published ones are not given: the time is the same.
The last line printed is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import wetok
from wetok.config import ModelConfig
from wetok.data.images import find_images
from wetok.evaluate.evaluation import Evaluation, score_together
from wetok.evaluate.frechet import Moments, frechet_distance
from wetok.evaluate.inception import DIMS, Inception
from wetok.evaluate.networks import Looked, Networks
from wetok.evaluate.protocols import protocol
from wetok.evaluate.systems import Reconstruction
from wetok.losses.perceptual import LPIPS
from wetok.model.network import TokenizerNetwork
from wetok.model.tokenizer import Tokenizer
from wetok.weights import find, here

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PLOT = ROOT / "docs" / "images" / "evaluation-memory.png"
SIDE = 32


def resident() -> float:
    """Resident set of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("benchmarks/evaluation.py memory needs Linux to measure memory")


def about() -> dict[str, Any]:
    return {
        "hardware": f"cpu{os.cpu_count()}",
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "load_average": os.getloadavg()[0],
    }


def lpips(net: str) -> LPIPS:
    """With the published weights where they are here, for time and memory are the same."""
    known = here(f"lpips-{net}")
    return LPIPS.from_file(known, net) if known else LPIPS(net)  # type: ignore[arg-type]


# --- memory


class Pixels(Networks):
    """Networks whose Frechet distance, `fd-pixels`, is of 2048 pixel values."""

    @property
    def dims(self) -> dict[str, int]:
        return {**super().dims, "fd-pixels": DIMS}

    @property
    def hashes(self) -> dict[str, str | None]:
        return {**super().hashes, "fd-pixels": None}

    def look(self, images: torch.Tensor) -> Looked:
        looked = super().look(images)
        return looked._replace(features={"fd-pixels": images.flatten(1)[:, :DIMS]})


def memory(images: int, every: int) -> dict[str, Any]:
    config = ModelConfig(bits=8, groups=2, channels=8, mults=(1, 1), blocks=1, patch=2)
    tokenizer = Tokenizer(TokenizerNetwork(config), "random")
    networks = Pixels([lpips("alex")])
    evaluation = Evaluation(tokenizer, protocol("original"), networks)
    samples: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for index in range(images):
            paths.append(Path(folder) / f"{index:06}.png")
            coarse = np.random.default_rng(index).integers(0, 256, (6, 6, 3), np.uint8)
            picture = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            picture.save(paths[-1], compress_level=1)

        def step() -> None:
            count = len(evaluation.images)
            if count % every == 0:
                samples.append((count, resident()))

        began = time.perf_counter()
        evaluation.add_all(paths, step)
        seconds = time.perf_counter() - began
    summary = evaluation.summary()
    assert summary["images"] == images and not evaluation.failures
    # By then every buffer has its full size: 2048 features, and the tables they are folded into.
    quarter = next(mb for count, mb in samples if count >= images / 4)
    return {
        "benchmark": "evaluation-memory",
        **about(),
        "images": images,
        "side": SIDE,
        "seconds": round(seconds, 1),
        "mb_after_a_quarter": round(quarter, 1),
        "mb_at_the_end": round(samples[-1][1], 1),
        "growth_mb": round(samples[-1][1] - quarter, 2),
        "growth_bytes_an_image": round((samples[-1][1] - quarter) * 2**20 / (0.75 * images)),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "samples": [(count, round(mb, 1)) for count, mb in samples],
    }


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts, sizes = zip(*result["samples"], strict=True)
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot(counts, sizes, label="resident set")
    kept = [sizes[0] + 2 * DIMS * 4 * count / 2**20 for count in counts]
    axes.plot(
        counts, kept, "--", color="grey", label="if 2048 features were kept in float32 (computed)"
    )
    axes.set(
        xlabel="images scored", ylabel="MB", ylim=(0, 1.25 * max(*sizes, *kept)), xlim=(0, None)
    )
    axes.set_title("Memory of an evaluation: PSNR, SSIM, LPIPS-alex, Frechet distance, codes")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


# --- speed


class Recorded:
    """A system whose reconstructions were made before the clock started."""

    name, fingerprint, generative, code_shape = "recorded", "none", False, None
    device = torch.device("cpu")

    def __init__(self, images: list[torch.Tensor]) -> None:
        self.images = iter(images)

    def reconstruct(self, image: torch.Tensor, seeds: Sequence[int]) -> Reconstruction:
        return Reconstruction([next(self.images)])


def ours(
    paths: list[Path], recorded: list[torch.Tensor], networks: Networks, systems: int = 1
) -> dict[str, float]:
    """Scores of the first system, and seconds a system."""
    known = protocol("paper-256")
    evaluations = [Evaluation(Recorded(recorded), known, networks) for _ in range(systems)]
    began = time.process_time()
    score_together(evaluations, paths)
    scored = time.process_time()
    summary = [evaluation.summary() for evaluation in evaluations][0]
    ended = time.process_time()
    (distance,) = (value for name, value in summary.items() if name in ("rfid", "fd-inception"))
    names = ("psnr", "ssim", "lpips-alex", "lpips-vgg")
    return {
        **{name: summary[name] for name in names},
        "fd": distance,
        "images": (scored - began) / systems,
        "end": (ended - scored) / systems,
    }


@torch.no_grad()
def released(
    paths: list[Path], recorded: list[torch.Tensor], nets: list[LPIPS], inception: Inception
) -> dict[str, float]:
    from scipy import linalg
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    known = protocol("paper-256")
    sums = dict.fromkeys(("psnr", "ssim", "lpips-alex", "lpips-vgg"), 0.0)
    features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    began = time.process_time()
    for start in range(0, len(paths), 4):
        batch = [known.to_float(known.prepare(known.load(path))) for path in paths[start:][:4]]
        images = torch.stack(batch)
        again = torch.cat(recorded[start : start + 4])
        for net in nets:
            sums[f"lpips-{net.net}"] += net(images, again).sum().item()
        for kept, batch_of in zip(features, (images, again), strict=True):
            kept.append(inception(batch_of).numpy())
        arrays = [
            ((x + 1) / 2).mul_(255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
            for x in (images, again)
        ]
        for a, b in zip(*arrays, strict=True):
            sums["ssim"] += structural_similarity(a, b, data_range=255, channel_axis=-1)
            sums["psnr"] += peak_signal_noise_ratio(a, b)
    scored = time.process_time()
    x, y = (np.concatenate(kept) for kept in features)
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(s.dot(t))
    if not np.isfinite(root).all():
        offset = np.eye(len(s)) * 1e-6
        root = linalg.sqrtm((s + offset).dot(t + offset))
    shift = x.mean(0) - y.mean(0)
    distance = shift @ shift + np.trace(s) + np.trace(t) - 2 * np.trace(root.real)
    ended = time.process_time()
    means = {name: value / len(paths) for name, value in sums.items()}
    return {**means, "fd": float(distance), "images": scored - began, "end": ended - scored}


def speed(data: Path, count: int, rounds: int, fid_weights: Path | None) -> dict[str, Any]:
    found = find_images(data)
    paths = [found[index % len(found)] for index in range(count)]
    known, tokenizer = protocol("paper-256"), wetok.load("tiny-48x")
    recorded = []
    for path in paths:
        image = known.to_float(known.prepare(known.load(path)))[None]
        recorded.append(tokenizer.decode(tokenizer.encode(image), output="float"))

    nets = [lpips("alex"), lpips("vgg")]
    plain, folded = inceptions(fid_weights)
    networks = Networks(nets, [folded])
    ours(paths[:4], recorded[:4], networks)  # to warm up
    plain(recorded[0])
    table = [
        (
            released(paths, recorded, nets, plain),
            ours(paths, recorded, networks),
            ours(paths, recorded, networks, systems=4),
        )
        for _ in range(rounds)
    ]
    theirs, own, together = ([row[which] for row in table] for which in range(3))

    def middle(rows: list[dict[str, float]], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    # Beyond 2048 images the distance comes from covariances, whatever their number.
    large = seconds_of_large(rounds)
    their_image, own_image = (middle(rows, "images") / count for rows in (theirs, own))
    end = middle(theirs, "end")
    sizes = {1000: middle(own, "end"), 5000: large, 50000: large}
    return {
        "benchmark": "evaluation-speed",
        **about(),
        "images": count,
        "side": 256,
        "released_seconds": [round(row["images"] + row["end"], 2) for row in theirs],
        "ours_seconds": [round(row["images"] + row["end"], 2) for row in own],
        "ratio": round(middle_ratio(theirs, own, "images", "end"), 2),
        "released_images_a_second": round(count / (middle(theirs, "images") + end), 3),
        "ours_images_a_second": round(count / (middle(own, "images") + middle(own, "end")), 3),
        "seconds_an_image": {
            "released": round(their_image, 4),
            "ours": round(own_image, 4),
            "together": round(middle(together, "images") / count, 4),
        },
        "seconds_at_the_end": {
            "released": round(end, 2),
            "ours": round(middle(own, "end"), 2),
            "ours_beyond_2048_images": round(large, 2),
        },
        "ratio_an_image": round(middle_ratio(theirs, own, "images"), 2),
        "ratio_an_image_together": round(middle_ratio(theirs, together, "images"), 2),
        "ratio_computed_for": {
            str(n): round((their_image * n + end) / (own_image * n + own_end), 2)
            for n, own_end in sizes.items()
        },
        "scores": {
            name: {"released": theirs[0][name], "ours": own[0][name]}
            for name in ("psnr", "ssim", "lpips-alex", "lpips-vgg", "fd")
        },
    }


def middle_ratio(theirs: list[dict[str, float]], own: list[dict[str, float]], *keys: str) -> float:
    """Median over the rounds of theirs over ours, of the sum of `keys`."""
    return statistics.median(
        sum(a[key] for key in keys) / sum(b[key] for key in keys)
        for a, b in zip(theirs, own, strict=True)
    )


def inceptions(path: Path | None) -> tuple[Inception, Inception]:
    """One with batch norms of their own, as published; one as we run it; the same weights."""
    if path is not None or here("inception-fid"):
        folded = Inception.from_file(find("inception-fid", path))
        state = torch.load(find("inception-fid", path), map_location="cpu", weights_only=True)
        plain = Inception()
        plain.load_state_dict(state, strict=False)
        return plain, folded
    torch.manual_seed(0)
    plain, folded = Inception(), Inception()
    for module in plain.modules():
        if isinstance(module, torch.nn.Conv2d):  # so that values neither vanish nor explode
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    folded.load_state_dict(plain.state_dict())
    return plain, folded.fold()


def seconds_of_large(rounds: int) -> float:
    """Seconds of a distance between two covariances of 2048 features."""
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(rounds):
        halves = [
            torch.randn(2048, 4096, generator=generator, dtype=torch.float64) for _ in range(2)
        ]
        moments = [
            Moments(torch.zeros(2048).double(), 5000, given=half @ half.T / 4096) for half in halves
        ]
        began = time.process_time()
        frechet_distance(*moments)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["memory", "speed"])
    parser.add_argument("--data", type=Path, help="photographs, for speed")
    parser.add_argument("--images", type=int, help="default: 10000 for memory, 100 for speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fid-weights", type=Path, help="the published FID network")
    parser.add_argument("--quick", action="store_true", help="one round, writes nothing")
    options = parser.parse_args()
    if options.what == "memory":
        images = options.images or 10_000
        result = memory(images, max(1, images // 100))
    else:
        if options.data is None:
            parser.error("speed needs --data, a folder of photographs")
        rounds = 1 if options.quick else options.rounds
        result = speed(options.data, options.images or 100, rounds, options.fid_weights)
    if not options.quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = f"{result['benchmark']}-{result['hardware']}-{result['date']}.json"
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
        if options.what == "memory":
            plot(result, PLOT)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
