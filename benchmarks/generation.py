"""Generation: does it show what it was asked for, and how fast is sampling?

    python benchmarks/generation.py classes --real data/shapes --samples samples.npz
    python benchmarks/generation.py speed             # cached against whole passes; JSON, saved
    python benchmarks/generation.py speed --quick     # a smaller generator, writes nothing

`classes` trains a small convolutional classifier on real images (a folder a class; `--held-out` is
another such folder, or else a tenth of these), and tells which share of the samples it takes for
the class they were asked for: `samples.npz` is what `wetok generate -o samples.npz` wrote. The
classifier sees no samples in training.

`speed` samples 256 positions of 2 groups of 8 bits with guidance three ways: by
`wetok.generate.sampling.sample`; with caches that grow by `torch.cat`, the usual code; and with the
whole sequence passed through the network for every id. All draw the same ids. Times are the
process's processor time, the least of three (whole passes: one), as other work shares the machine.
The last line printed is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
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
    """Five convolutions and a mean over positions; half a minute of training for drawn shapes."""
    widths, strides = (3, 32, 48, 64, 96, 96), (2, 2, 2, 1, 2)
    layers: list[nn.Module] = []
    for before, after, stride in zip(widths, widths[1:], strides, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(384, classes))


def to_float(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [N,H,W,3] -> [N,3,H,W] in [-1,1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def read(folder: Path, names: list[str]) -> tuple[np.ndarray, torch.Tensor]:
    """All images of a folder a class, and the numbers of their classes."""
    images, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((folder / name).iterdir()):
            images.append(np.asarray(Image.open(path).convert("RGB")))
            labels.append(label)
    return np.stack(images), torch.tensor(labels)


def moved(x: torch.Tensor) -> torch.Tensor:
    """Images [B,3,H,W] shifted together by up to a sixteenth of their side, edges repeated."""
    reach = x.shape[-1] // 16
    down, across = torch.randint(2 * reach + 1, (2,)).tolist()
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    return padded[..., down : down + x.shape[-2], across : across + x.shape[-1]]


def trained(
    pixels: np.ndarray, labels: torch.Tensor, classes: int, epochs: int, seed: int
) -> nn.Module:
    """A classifier of real images."""
    torch.manual_seed(seed)
    network, batch = classifier(classes), 64
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    steps = epochs * -(-len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(labels)).split(batch):
            optimizer.zero_grad()
            x = moved(to_float(pixels[part.numpy()]))
            F.cross_entropy(network(x), labels[part]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def taken_for(network: nn.Module, pixels: np.ndarray) -> torch.Tensor:
    """The class that the classifier takes each image for."""
    parts = np.array_split(pixels, -(-len(pixels) // 64))
    return torch.cat([network(to_float(part)).argmax(1) for part in parts])


def classes(
    real: Path, held: Path | None, samples: list[Path], epochs: int, seed: int
) -> dict[str, Any]:
    names = sorted(one.name for one in real.iterdir() if one.is_dir())
    pixels, labels = read(real, names)
    if held is not None:
        held_pixels, held_labels = read(held, names)
    else:  # a tenth of them
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        apart, used = order[: len(order) // 10], order[len(order) // 10 :]
        held_pixels, held_labels = pixels[apart.numpy()], labels[apart]
        pixels, labels = pixels[used.numpy()], labels[used]
    network = trained(pixels, labels, len(names), epochs, seed)
    right = taken_for(network, held_pixels) == held_labels
    result: dict[str, Any] = {
        "benchmark": "generation-classes",
        **about(),
        "classes": len(names),
        "real_images": len(labels),
        "held_out": len(held_labels),
        "accuracy_on_held_out": round(right.float().mean().item(), 4),
        "samples": {},
    }
    for path in samples:
        arrays = np.load(path)
        asked = torch.from_numpy(arrays["arr_1"])
        taken = taken_for(network, arrays["arr_0"])
        hit = taken == asked
        result["samples"][path.stem] = {
            "count": len(asked),
            "taken_for_their_class": round(hit.float().mean().item(), 4),
            "by_class": {
                name: round(hit[asked == label].float().mean().item(), 3)
                for label, name in enumerate(names)
                if bool((asked == label).any())
            },
            "mistaken_for": {
                f"{name} for {names[other]}": int(((asked == label) & (taken == other)).sum())
                for label, name in enumerate(names)
                for other in range(len(names))
                if other != label and int(((asked == label) & (taken == other)).sum())
            },
        }
    return result


# --- speed


@torch.inference_mode()
def whole_passes(
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


class Grown:
    """Keys and values as most code keeps them: a longer tensor with every place."""

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def append(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys = k if self.keys is None else torch.cat([self.keys, k], dim=2)
        self.values = v if self.values is None else torch.cat([self.values, v], dim=2)
        return self.keys, self.values


@torch.inference_mode()
def growing_caches(
    generator: AutoregressiveGenerator, seeds: list[int], labels: list[int], options: Sampling
) -> torch.Tensor:
    """Caches over the positions that grow; the groups of a position are passed anew for each."""
    config = generator.config
    uniform = uniforms(seeds, (config.positions, config.groups))
    known = torch.tensor([*labels, *([config.classes] * len(labels))])
    caches = [Grown() for _ in generator.blocks]
    x = generator.condition(known)[:, None]
    positions = []
    for position in range(config.positions):
        for block, cache in zip(generator.blocks, caches, strict=True):
            turns = generator.rotation[position : position + 1]
            x = block(x, turns, causal=True, cache=cache)
        inner, drawn = x, []
        for group in range(config.groups):
            y = inner
            for block in generator.group_blocks:
                y = block(y, generator.group_rotation[: group + 1], causal=True)
            logits = generator.heads[group](generator.norm(y[:, -1]))
            both = mixed(logits, options.guidance_at(position / (config.positions - 1)))
            drawn.append(draw(both, uniform[:, position, group], options))
            embedded = generator.embeddings[group](drawn[-1])[:, None]
            inner = torch.cat([inner, embedded.repeat(2, 1, 1)], dim=1)
        x = inner[:, 1:].sum(1, keepdim=True)
        positions.append(torch.stack(drawn, dim=1))
    return torch.stack(positions, dim=2).unflatten(2, config.grid)


@torch.inference_mode()
def logits_apart(generator: AutoregressiveGenerator, ids: torch.Tensor, label: int) -> float:
    """The largest difference between cached logits and those of a whole pass."""
    labels = torch.full((len(ids),), label)
    wanted, decoding, worst = generator(ids, labels), generator.decoding(labels), 0.0
    for position in range(generator.config.positions):
        for group in range(generator.config.groups):
            apart = decoding.logits() - wanted[:, position, group]
            worst = max(worst, apart.abs().max().item())
            decoding.take(ids[:, group].flatten(1)[:, position])
    return worst


def speed(quick: bool) -> dict[str, Any]:
    side = 4 if quick else 16
    shape = GeneratorConfig(
        groups=2,
        group_bits=8,
        grid=(side, side),
        classes=10,
        width=64 if quick else 128,
        depth=2 if quick else 6,
        group_depth=1,
        heads=4,
    )
    torch.manual_seed(0)
    generator = AutoregressiveGenerator(shape).eval()
    for head in generator.heads:  # of a fresh generator they are zero, and all ids as likely
        nn.init.normal_(head.weight, std=0.1)  # type: ignore[arg-type]
    options, seeds, labels = Sampling(guidance=2.0), [1], [3]
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "wetok": sample,
        "growing_caches": growing_caches,
        "whole_passes": whole_passes,
    }
    seconds: dict[str, float] = {}
    made: dict[str, torch.Tensor] = {}
    for name, way in ways.items():
        times = []
        for _ in range(1 if name == "whole_passes" else 3):
            began = time.process_time()
            made[name] = way(generator, seeds, labels, options)
            times.append(time.process_time() - began)
        seconds[name] = min(times)
    return {
        "benchmark": "generation-speed",
        **about(),
        "positions": shape.positions,
        "groups": shape.groups,
        "width": shape.width,
        "blocks": [shape.depth, shape.group_depth],
        "guidance": options.guidance,
        "parameters": sum(p.numel() for p in generator.parameters()),
        "same_ids": all(bool(torch.equal(one, made["wetok"])) for one in made.values()),
        "logits_apart": logits_apart(generator, made["wetok"], labels[0]),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "times_as_fast_as": {
            name: round(value / seconds["wetok"], 2)
            for name, value in seconds.items()
            if name != "wetok"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("classes", "speed"))
    parser.add_argument("--real", type=Path)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--samples", type=Path, nargs="+")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.what == "classes":
        if options.real is None or options.samples is None:
            parser.error("classes needs --real and --samples")
        result = classes(
            options.real, options.held_out, options.samples, options.epochs, options.seed
        )
    else:
        result = speed(options.quick)
        if not options.quick:
            name = f"generation-speed-{result['hardware']}-{result['date']}.json"
            (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
