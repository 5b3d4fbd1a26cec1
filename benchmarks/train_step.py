"""A training step against the same networks and losses written the straightforward way.

    python benchmarks/train_step.py            # all cases; writes benchmarks/results/train_step-*
    python benchmarks/train_step.py --quick    # one case, one round, writes nothing
    python benchmarks/train_step.py --device cuda            # also a full-size model
    python benchmarks/train_step.py --only "tiny-48x, 64"    # cases by the start of their name

Straightforward is what `Straightforward` below does: entropies over a table of all 2^d' codes for
every position, float32, torch.optim.Adam, averages parameter by parameter. Networks, LPIPS and
discriminator are the very same modules with the same first weights, and the first losses are
compared. Ours is `wetok.train.step.train_step` with all that a run does in it (gradient norms, the
guard against NaN, averages), with bf16 unless a variant says otherwise.

Every measurement runs in a process of its own, the variants in turn, several rounds of them, so
that other work on the machine hits all alike. A round's time is the median over its steps; the
speed-up is the median of the rounds' ratios (also by processor time, which with `--threads 1` can
be trusted on a busy machine). Memory is the growth of the process's resident set
during three steps, above what it had with the networks built (`mb`) and before (`mb_in_all`); on
a GPU, of the allocated memory. Losses use LPIPS with random weights, which cost what others do.
The last line printed is one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PLAIN, OURS = "straightforward", "ours, bf16"

TINY = {"preset": "tiny-48x"}
LFQ = {**TINY, "bits": 16, "groups": 1}
MIDDLE = {"preset": "imagenet-f16", "channels": 64, "blocks": 2}
FULL = {"preset": "imagenet-f16"}


class Case(NamedTuple):
    name: str
    model: dict[str, Any]
    crop: int
    batch: int
    gan: bool
    """With LPIPS and a discriminator, or with neither."""


CASES = [
    Case(f"{name}, {crop} x {batch}{', LPIPS and GAN' if gan else ''}", model, crop, batch, gan)
    for name, model, crop, batch in (
        ("tiny-48x", TINY, 64, 8),
        ("tiny-48x", TINY, 128, 4),
        ("LFQ d=16", LFQ, 64, 8),
        ("f16 C=64", MIDDLE, 256, 1),
    )
    for gan in (False, True)
]
ON_GPU = [
    Case("imagenet-f16, 256 x 4, LPIPS and GAN", FULL, 256, 4, True),
    Case("tiny-48x, 128 x 32", TINY, 128, 32, False),
]

VARIANTS: dict[str, dict[str, Any]] = {
    "ours, fp32": {"precision": "fp32"},
    "ours, bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "ours, bf16, checkpointing": {"precision": "bf16", "activation_checkpointing": True},
    "ours, bf16, tensors mapped": {"precision": "bf16"},
    "ours, bf16, heap kept": {"precision": "bf16"},
    "straightforward, bf16": {},
}
"""Beside the two that every case has, for the cases of `MEANS`."""
MEANS = CASES[:1]
ON_GPU_VARIANTS: dict[str, dict[str, Any]] = {
    "straightforward, fp16": {},
    "ours, fp32": {"precision": "fp32"},
    "ours, bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "ours, bf16, compile": {"precision": "bf16", "compile": True},
    "ours, bf16, compile, channels_last": {
        "precision": "bf16",
        "compile": True,
        "channels_last": True,
    },
    "ours, bf16, checkpointing": {"precision": "bf16", "activation_checkpointing": True},
}
ENVIRONMENTS = {
    "ours, bf16, tensors mapped": {"MALLOC_MMAP_THRESHOLD_": "262144"},
    "ours, bf16, heap kept": {
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
    },
}
"""glibc gives larger tensors back to the system when they end; or holds on to all it ever had."""


# --- the straightforward way


class Straightforward:
    """The same step as directly as it can be written."""

    def __init__(self, config: Any, network: Any, adversary: Any, lpips: Any, dtype: Any) -> None:
        import torch

        self.config, self.network, self.lpips, self.dtype = config, network, lpips, dtype
        self.judge = adversary.discriminator if adversary else None
        adam = config.optimizer
        # The network alone: its quantizer has no weights.
        self.optimizer = torch.optim.Adam(network.parameters(), lr=adam.lr, betas=adam.betas)
        if self.judge:
            parameters = self.judge.parameters()
            self.judge_optimizer = torch.optim.Adam(parameters, lr=adam.lr, betas=adam.betas)
        self.average = [p.detach().clone() for p in network.parameters()]
        self.real_mean = self.fake_mean = 0.0
        half = dtype == torch.float16
        self.scaler, self.judge_scaler = (torch.amp.GradScaler(enabled=half) for _ in range(2))
        bits, groups = config.model.bits, config.model.groups
        self.groups, each = groups, bits // groups
        ids = torch.arange(2**each, device=self.average[0].device)
        self.codes = 2.0 * ((ids[:, None] >> torch.arange(each, device=ids.device)) & 1) - 1

    def entropies(self, latent: Any) -> Any:
        """Token and codebook entropy as the released code has them: pooled over the groups."""
        loss = self.config.loss
        rows = latent.float().permute(0, 2, 3, 1).reshape(-1, latent.shape[1] // self.groups)
        logits = 2 / loss.temperature * rows @ self.codes.T
        probs = logits.softmax(-1)
        token = -(probs * logits.log_softmax(-1)).sum(-1).mean()
        mean = probs.mean(0)
        return token, -(mean * (mean + loss.epsilon).log()).sum()

    def step(self, image: Any) -> Any:
        """One step for both networks; the tokenizer's loss."""
        import torch
        import torch.nn.functional as F

        config, network, judge = self.config, self.network, self.judge
        kind = image.device.type
        autocast = torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32)
        with autocast:
            latent = network.encoder(image)
            code = torch.where(latent > 0, 1.0, -1.0)
            commitment = F.mse_loss(latent.float(), code)
            with torch.autocast(kind, enabled=False):
                token, codebook = self.entropies(latent)
            again = network.decoder(latent + (code - latent).detach())
            loss = F.l1_loss(again, image)
            if self.lpips:
                loss = loss + self.lpips(again, image).mean()
            loss = loss + config.loss.commitment_weight * commitment
            loss = loss + config.loss.entropy_weight * (token - codebook)
            if judge:
                judge.requires_grad_(False)
                fooled = -F.logsigmoid(judge(again).float().mean((1, 2, 3))).mean()
                loss = loss + config.gan.weight * fooled
                judge.requires_grad_(True)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for average, parameter in zip(self.average, network.parameters(), strict=True):
                average.sub_((1 - config.run.ema) * (average - parameter))
        if judge:
            with autocast:
                real, fake = judge(image).float(), judge(again.detach()).float()
                self.real_mean += 0.001 * (real.detach().mean() - self.real_mean)
                self.fake_mean += 0.001 * (fake.detach().mean() - self.fake_mean)
                lecam = F.relu(real - self.fake_mean).square().mean()
                lecam = lecam + F.relu(self.real_mean - fake).square().mean()
                told = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
            self.judge_optimizer.zero_grad()
            self.judge_scaler.scale(told + config.gan.lecam_weight * lecam).backward()
            self.judge_scaler.step(self.judge_optimizer)
            self.judge_scaler.update()
        return loss.detach()


# --- one measurement, in a process of its own


def measure(variant: str, case: Case, device: str, steps: int) -> dict[str, Any]:
    """Seconds of each step (wall and processor), peak memory, and the first step's loss."""
    import torch

    sys.path.insert(0, str(ROOT))
    # What libraries allocate once, at the first use of each operation, is not the step's.
    small = Case("", {**case.model, "channels": 8, "decoder_channels": 8}, 64, 1, case.gan)
    small.model.update(mults=[1] * _levels(case), decoder_mults=[1] * _levels(case), bits=4)
    small.model["groups"] = 1
    prepare(variant, small, device)()
    gc.collect()
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the start-up
    bare = _now(device)
    step = prepare(variant, case, device)
    built = _now(device)
    losses = [step() for _ in range(2 if steps < 3 else 3)]
    peak = _peak(device)
    wall, processor = [], []
    for _ in range(steps):
        clocks = time.perf_counter(), time.process_time()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - clocks[0])
        processor.append(time.process_time() - clocks[1])
    return {
        "wall": statistics.median(wall),
        "processor": statistics.median(processor),
        "mb": (peak - built) / 1e6,
        "mb_in_all": (peak - bare) / 1e6,
        "loss": losses[0],
    }


def prepare(variant: str, case: Case, device: str) -> Callable[[], float]:
    """The variant's networks, and a function that takes a step with them."""
    import torch

    from wetok.config import TrainConfig, merge, validate
    from wetok.losses.objective import ReconstructionObjective
    from wetok.losses.perceptual import LPIPS
    from wetok.model.network import TokenizerNetwork
    from wetok.model.quantizer import GroupedQuantizer
    from wetok.presets import preset
    from wetok.train.adversary import Adversary
    from wetok.train.state import TrainState
    from wetok.train.step import DTYPES, Batch, train_step

    change = {key: value for key, value in case.model.items() if key != "preset"}
    run: dict[str, Any] = {OURS: {"precision": "bf16"}, **VARIANTS, **ON_GPU_VARIANTS}.get(
        variant, {}
    )
    tree = {
        "model": merge(preset(case.model["preset"]).model_dump(), change),
        "data": {"train": "none", "crop": case.crop, "batch": case.batch},
        "loss": {"perceptual_weight": float(case.gan)},
        "gan": {} if case.gan else None,
        "run": {"steps": 1000, "device": device, **run},
    }
    config = validate(TrainConfig, tree)
    torch.manual_seed(0)
    quantizer = GroupedQuantizer(config.model.bits, config.model.groups, entropy="pooled")
    network = TokenizerNetwork(config.model, quantizer)
    adversary = Adversary(config.gan).to(device) if config.gan else None
    lpips = LPIPS().to(device) if case.gan else None
    image = torch.rand(case.batch, 3, case.crop, case.crop).to(device) * 2 - 1
    network = network.to(device).train()
    if variant.startswith(PLAIN):
        dtype = next((DTYPES[name] for name in DTYPES if variant.endswith(name)), torch.float32)
        plain = Straightforward(config, network, adversary, lpips, dtype)
        return lambda: float(plain.step(image))
    if config.run.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if adversary:
            adversary.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.recompute(config.run.activation_checkpointing)
    state = TrainState(network, config, adversary)
    if config.run.compile:
        for module in (network.encoder, network.decoder, adversary, lpips):
            if module is not None:
                module.compile()
    objective = ReconstructionObjective(config.loss, lpips)
    parts = [Batch(image)]
    return lambda: float(train_step(state, objective, config, parts).terms["loss"])


def _levels(case: Case) -> int:
    from wetok.presets import preset

    return len(preset(case.model["preset"]).mults)


def _now(device: str) -> int:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return _resident("VmRSS")


def _peak(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return _resident("VmHWM")


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit("benchmarks/train_step.py needs Linux to measure memory")


# --- rounds of measurements


def run(variant: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    steps = 2 if options.quick else options.steps
    job = json.dumps([variant, case, options.device, steps])
    environment = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    environment |= ENVIRONMENTS.get(variant, {})
    command = [sys.executable, __file__, "--job", job]
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(case: Case, variants: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all variants in turn -> one row of results, ratios to the straightforward way."""
    rounds: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for _ in range(options.rounds):
        for variant in variants:
            rounds[variant].append(run(variant, case, options))
    row: dict[str, Any] = {**case._asdict(), "variants": {}}
    plain = rounds[PLAIN]
    for variant, each in rounds.items():
        told = {
            "seconds": statistics.median(r["wall"] for r in each),
            **{key: statistics.median(r[key] for r in each) for key in ("mb", "mb_in_all")},
            "loss": each[0]["loss"],
        }
        if variant != PLAIN:
            for name, key in (("speedup", "wall"), ("processor_time_ratio", "processor")):
                ratios = [a[key] / b[key] for a, b in zip(plain, each, strict=True)]
                told[name] = statistics.median(ratios)
                told[f"{name}_each_round"] = [round(ratio, 2) for ratio in ratios]
            for key in ("mb", "mb_in_all"):
                pairs = zip(each, plain, strict=True)
                told[f"{key}_ratio"] = statistics.median(a[key] / b[key] for a, b in pairs)
            check_loss(case, variant, told["loss"], plain[0]["loss"])
        row["variants"][variant] = told
        print(_line(case, variant, told), flush=True)
    return row


def check_loss(case: Case, variant: str, loss: float, expected: float) -> None:
    """Stops unless the first loss is the straightforward one, as near as the precision has it."""
    near = 1e-4 if variant.endswith("fp32") else 0.05
    if not abs(loss - expected) <= near * max(1.0, abs(expected)):
        raise SystemExit(f"{case.name}: {variant} starts at loss {loss}, not {expected}")


def _line(case: Case, variant: str, told: dict[str, Any]) -> str:
    text = f"{case.name}: {variant:<28} {told['seconds'] * 1e3:7.0f} ms {told['mb']:7,.0f} MB"
    if variant == PLAIN:
        return text
    return (
        f"{text}; {told['speedup']:.2f}x as fast ({told['processor_time_ratio']:.2f}x by processor "
        f"time), {told['mb_ratio']:.2f}x the memory ({told['mb_in_all_ratio']:.2f}x with weights)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one case, writes nothing")
    parser.add_argument("--only", help="cases whose name starts so; writes nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="timed steps a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        variant, case, device, steps = json.loads(options.job)
        print(json.dumps(measure(variant, Case(*case), device, steps)))
        return
    cases, means, variants = CASES, MEANS, VARIANTS
    if options.device == "cuda":
        cases, means, variants = ON_GPU, ON_GPU, ON_GPU_VARIANTS
    if options.quick:
        cases, means, options.rounds = cases[:1], [], 1
    if options.only is not None:
        cases = [case for case in cases if case.name.startswith(options.only)]
    rows = []
    for case in cases:
        more = list(variants) if case in means else []
        rows.append(compare(case, [PLAIN, OURS, *more], options))
    import torch

    hardware = f"cpu{os.cpu_count()}"
    if options.device == "cuda":
        hardware = torch.cuda.get_device_name().lower().replace(" ", "-")
    result = {
        "benchmark": "train_step",
        "hardware": hardware,
        "processor": platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "load_average": os.getloadavg()[0],
        "rounds": options.rounds,
        "cases": rows,
    }
    if not options.quick and options.only is None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"train_step-{hardware}-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
