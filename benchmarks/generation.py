"""Generation: does it show what it was asked for, and how fast is sampling?

    python benchmarks/generation.py classes --real data/shapes --samples samples.npz
    python benchmarks/generation.py speed             # cached against whole passes; JSON, saved
    python benchmarks/generation.py speed --quick     # a smaller generator, writes nothing

`classes` trains a small convolutional classifier on real images (a folder a class, of which a fifth
is held out), and tells which share of the samples it takes for the class they were asked for:
`samples.npz` is what `wetok generate -o samples.npz` wrote.

`speed` samples 256 positions of 4 groups of 8 bits: by `wetok.generate.sampling.sample`, and the
straightforward way, which passes the whole sequence through the network for every id. Both draw
the same ids. Times are the process's processor time, which other work on the machine moves little.
The last line printed is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from wetok.generate.autoregressive import AutoregressiveGenerator
from wetok.generate.config import GeneratorConfig
from wetok.generate.sampling import Sampling, draw, mixed, sample, uniforms

RESULTS = Path(__file__).resolve().parent / "results"


def about() -> dict[str, Any]:
    return {
        "hardware": f"cpu{os.cpu_count()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "load_average": round(os.getloadavg()[0], 2),
    }


# --- classes


def classifier(classes: int) -> nn.Module:
    widths = (3, 24, 48, 96)
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1536, classes))


def to_float(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [N,H,W,3] -> [N,3,H,W] in [-1,1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def classes(real: Path, samples: Path, epochs: int, seed: int) -> dict[str, Any]:
    names = sorted(one.name for one in real.iterdir() if one.is_dir())
    images, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((real / name).iterdir()):
            images.append(np.asarray(Image.open(path).convert("RGB")))
            labels.append(label)
    x, y = to_float(np.stack(images)), torch.tensor(labels)
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    held, used = order[: len(x) // 5], order[len(x) // 5 :]
    network = classifier(len(names))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(epochs):
        network.train()
        for part in used[torch.randperm(len(used))].split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[part]), y[part]).backward()
            optimizer.step()
    network.eval()
    arrays = np.load(samples)
    asked = torch.from_numpy(arrays["arr_1"])
    with torch.inference_mode():
        right = (network(x[held]).argmax(1) == y[held]).float().mean().item()
        seen = torch.cat([network(part).argmax(1) for part in to_float(arrays["arr_0"]).split(64)])
    hit = seen == asked
    return {
        "benchmark": "generation-classes",
        **about(),
        "classes": len(names),
        "real_images": len(x),
        "accuracy_on_held_out": round(right, 4),
        "samples": len(asked),
        "taken_for_their_class": round(hit.float().mean().item(), 4),
        "by_class": {
            name: round(hit[asked == label].float().mean().item(), 3)
            for label, name in enumerate(names)
            if bool((asked == label).any())
        },
    }


# --- speed


@torch.inference_mode()
def straightforward(
    generator: AutoregressiveGenerator, seeds: list[int], labels: list[int], options: Sampling
) -> torch.Tensor:
    """The whole sequence anew for every id, as sampling is written first."""
    config = generator.config
    uniform = uniforms(seeds, (config.positions, config.groups))
    ids = torch.zeros(len(seeds), config.groups, *config.grid, dtype=torch.long)
    flat = ids.view(len(seeds), config.groups, -1)
    known = torch.tensor([*labels, *([config.classes] * len(labels))])
    for position in range(config.positions):
        for group in range(config.groups):
            logits = generator(torch.cat([ids, ids]), known)[:, position, group]
            both = mixed(logits, options.guidance_at(position / (config.positions - 1)))
            flat[:, group, position] = draw(both, uniform[:, position, group], options)
    return ids


def speed(quick: bool) -> dict[str, Any]:
    side = 8 if quick else 16
    shape = GeneratorConfig(
        groups=4,
        group_bits=8,
        grid=(side, side),
        classes=10,
        width=128 if quick else 256,
        depth=4 if quick else 8,
        group_depth=2,
        heads=4,
    )
    torch.manual_seed(0)
    generator = AutoregressiveGenerator(shape).eval()
    for head in generator.heads:
        nn.init.normal_(head.weight, std=0.02)  # type: ignore[arg-type]
    options, seeds, labels = Sampling(guidance=2.0), [1], [3]
    began = time.process_time()
    ours = sample(generator, seeds, labels, options)
    ended = time.process_time()
    theirs = straightforward(generator, seeds, labels, options)
    last = time.process_time()
    own, other = ended - began, last - ended
    return {
        "benchmark": "generation-speed",
        **about(),
        "positions": shape.positions,
        "groups": shape.groups,
        "width": shape.width,
        "blocks": [shape.depth, shape.group_depth],
        "parameters": sum(p.numel() for p in generator.parameters()),
        "same_ids": bool(torch.equal(ours, theirs)),
        "cached_seconds": round(own, 2),
        "straightforward_seconds": round(other, 2),
        "ratio": round(other / own, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("classes", "speed"))
    parser.add_argument("--real", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.what == "classes":
        if options.real is None or options.samples is None:
            parser.error("classes needs --real and --samples")
        result = classes(options.real, options.samples, options.epochs, options.seed)
    else:
        result = speed(options.quick)
        if not options.quick:
            name = f"generation-speed-{result['hardware']}-{result['date']}.json"
            (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
