"""Puts a run's model into the package: rounded, with coding tables, scores and its card.

    python tools/ship.py runs/tiny-24x --train photos/train --val photos/val
    python tools/ship.py runs/tiny-48x-gd --stage1 tiny-48x --val photos/val
    python tools/ship.py --table    # docs/models.md's table anew, from the cards

The run's folder has the model's name. Weights keep 6 significant bits, which costs 0.015 dB
and lets a wheel compress them to two thirds. A second stage shares its first stage's encoder, and
with it the tables and the right to read its tokens (`decodes`).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from wetok import checkpoint
from wetok.config import WetokError, load_train_config
from wetok.model.network import TokenizerNetwork, parameter_count

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
SCORES = ("PSNR", "SSIM", "LPIPS-alex", "LPIPS-vgg", "FD-vgg")
SIGNIFICANT = 6


def rounded(network: TokenizerNetwork, bits: int = SIGNIFICANT) -> None:
    """Rounds every weight to `bits` significant bits that float16 holds, in place."""
    with torch.no_grad():
        for parameter in network.parameters():
            mantissa, exponent = torch.frexp(parameter)
            short = torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)
            parameter.copy_(short.half())


def wetok(*words: str) -> str:
    """What a command of ours prints."""
    done = subprocess.run(
        [sys.executable, "-m", "wetok", *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def scores(folder: Path, photos: Path) -> dict[str, Any]:
    """`wetok eval --json` with both LPIPS, where both are at hand."""
    told = wetok("eval", "-m", str(folder), "--data", str(photos), "--json")
    found: dict[str, Any] = json.loads(told)
    return found


def card(run: Path, name: str, folder: Path, found: dict[str, Any], stage1: str | None) -> str:
    """The model's README."""
    config = checkpoint.read_config(folder)
    shape = config.network
    network, _ = checkpoint.load_network(folder)
    recipe = ROOT / "recipes" / "tiny" / f"{name}.yaml"
    settings = yaml.safe_load((run / "config.json").read_text("utf-8"))
    gan = f" + {settings['gan']['weight']:g} x PatchGAN" if settings["gan"] else ""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    last = [line for line in log if "seconds" in line][-1]
    stage = (
        f"Second training stage: the generative decoder of [{stage1}](../{stage1}/README.md), whose "
        "encoder it shares. It reads that model's tokens, and the noise's seed is its second input."
        if stage1
        else "Deterministic decoder, first training stage (no GAN)."
    )
    tables = (folder / checkpoint.TABLES).stat().st_size / 1e6
    size = (folder / checkpoint.WEIGHTS).stat().st_size / 1e6
    rows = [
        ("PSNR", f"{found['psnr']:.2f} dB"),
        ("SSIM", f"{found['ssim']:.4f}"),
        *((f"LPIPS-{kind}", f"{found[f'lpips-{kind}']:.4f}") for kind in ("alex", "vgg")),
        ("FD-vgg", f"{found['fd-vgg']:.1f}"),
        ("usage of each group's codes", ", ".join(f"{u:.1%}" for u in found["usage"])),
        ("dead bits", f"{found['dead_bits']} of {shape.bits}"),
        ("bits a pixel, fixed length", f"{shape.bpp:.3f}"),
    ]
    loss = settings["loss"]
    crops = [config.data for _, config in load_train_config(recipe, []).stretches()]
    shown = ", then ".join(dict.fromkeys(f"{d.batch} of {d.crop} x {d.crop}" for d in crops))
    return (
        f"""---
license: apache-2.0
library_name: wetok
tags: [image-tokenizer, wetok]
---
# {name}

A small discrete image tokenizer, trained by wetok's own code and shipped in its package: {shape.factor} x {shape.factor} pixels become {shape.bits} bits (f = {shape.factor}, d = {shape.bits}, g = {shape.groups} groups of {shape.group_bits} bits), {shape.ratio:.0f} times less than RGB. {stage}

```python
import wetok

tok = wetok.load("{name}")
```

| what | |
|---|---|
| networks | convolutional, `patch: {shape.patch}`; encoder {parameter_count(network.encoder):,} parameters, decoder {parameter_count(network.decoder):,} |
| stored | float16 of {SIGNIFICANT} significant bits, {size:.1f} MB; computed in float32 |
| tables for entropy coding | `coding.safetensors`, {tables:.1f} MB, by `wetok coding --data PHOTOS/train` |
| started from | `{Path(settings["run"]["init"]).parent.name}`, see docs/models.md |
| data | 209 photographs and textures, crops, flips, slight colour jitter |
| steps | {last["step"]:,}; crops a step: {shown}; {settings["optimizer"]["kind"].capitalize()}, bf16 autocast; {loss["reconstruction_weight"]:g} x {loss["reconstruction"].upper()} + {loss["perceptual_weight"]:g} x LPIPS-{loss["perceptual"]}{gan} |
| weights | exponential moving average at the end of the run |
| hardware, duration | one thread of two CPU cores (AMD EPYC) shared with other work, {last["seconds"] / 60:.0f} minutes |
| command | `wetok train {recipe.relative_to(ROOT)} data.train=PHOTOS/train data.val=PHOTOS/val` |

## Scores

31 photographs that were not trained on, but that chose between tries. Protocol `modern-256`: shorter side to 256 (bicubic, antialiased), center crop, reconstruction rounded to 8 bits. Reproduce with `wetok eval -m {name} --data PHOTOS/val`, after `wetok weights import` for LPIPS-vgg.

| score | value |
|---|---|
"""
        + "\n".join(f"| {key} | {value} |" for key, value in rows)
        + f"""

Model fingerprint {config.fingerprint}. LPIPS-{loss["perceptual"]} is the network of the objective: judge by the others too.

## Limits

Letters under about 16 pixels can't be read; small faces lose their features; leaves, fur and grain soften. Trained on few photographs for a short time on a CPU: a demonstration, not a rival of the published models. Pictures of that, and the curves of the run: docs/models.md of the project.

## Credits

The photographs come from these Debian packages, mostly CC BY-SA and GPL: gcompris-qt-data, lomiri-wallpapers-16.04, lomiri-wallpapers-20.04, mate-backgrounds, opencv-doc, plasma-workspace-wallpapers, ufoai-textures. None of them is contained here. LPIPS in the objective: BSD-2-Clause (lpips), BSD-3-Clause (ImageNet features). The weights of this model: Apache-2.0.
"""
    )


def table() -> str:
    """Of docs/models.md: a line for each model, by its folder and its card."""
    lines = [
        f"| model | f | bits a position | ratio | parameters | {' | '.join(SCORES)} |",
        "|" + "---|" * (5 + len(SCORES)),
    ]
    for name in checkpoint.shipped():
        folder = checkpoint.SHIPPED / name
        network, _ = checkpoint.load_network(folder)
        shape, card = network.config, (folder / checkpoint.CARD).read_text("utf-8")
        millions = (parameter_count(part) / 1e6 for part in (network.encoder, network.decoder))
        told = [re.findall(rf"^\| {score} \| ([^|]+) \|", card, re.MULTILINE) for score in SCORES]
        lines.append(
            f"| [{name}](../wetok/assets/models/{name}/README.md) | {shape.factor} | "
            f"{shape.bits} = {shape.groups} x {shape.group_bits} | {shape.ratio:.0f}x | "
            f"{' + '.join(f'{count:.1f}' for count in millions)} M | "
            f"{' | '.join(found[0] for found in told)} |"
        )
    return "\n".join(lines)


def write_table() -> None:
    head, rest = PAGE.read_text("utf-8").split(BEGIN)
    with checkpoint.written_beside(PAGE) as beside:
        beside.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="run folder, of the model's name")
    parser.add_argument("--table", action="store_true", help="only write docs/models.md's table")
    parser.add_argument("--train", type=Path, help="photographs to learn the coding tables from")
    parser.add_argument("--val", type=Path, help="photographs to score on")
    parser.add_argument("--stage1", help="the shipped model whose encoder this one shares")
    given = parser.parse_args()
    if given.table:
        return write_table()
    if given.run is None or given.val is None:
        parser.error("RUN and --val are needed, or --table")
    name = given.run.resolve().name
    target = checkpoint.SHIPPED / name
    network, _ = checkpoint.load_network(given.run / "model")
    rounded(network)
    if given.stage1:
        first, _ = checkpoint.load_network(given.stage1)
        theirs = first.encoder.state_dict()
        if any(not torch.equal(t, theirs[key]) for key, t in network.encoder.state_dict().items()):
            raise WetokError(f"--stage1 {given.stage1} has another encoder than {given.run}")
        network.decodes = (checkpoint.fingerprint(first), *first.decodes)
    checkpoint.save_folder(target, network, name, card="to be written", precision="float16")
    if given.stage1:
        shutil.copy(checkpoint.find_folder(given.stage1) / checkpoint.TABLES, target)
    elif given.train:
        wetok("coding", "-m", str(target), "--data", str(given.train), "--force")
    found = scores(target, given.val)
    text = card(given.run, name, target, found, given.stage1)
    with checkpoint.written_beside(target / checkpoint.CARD) as beside:
        beside.write_text(text, encoding="utf-8")
    shutil.copy(given.run / "curves.png", ROOT / "docs" / "images" / f"{name}-curves.png")
    write_table()
    print(json.dumps({"name": name, **{k: found[k] for k in ("psnr", "lpips-alex", "fd-vgg")}}))


if __name__ == "__main__":
    main()
