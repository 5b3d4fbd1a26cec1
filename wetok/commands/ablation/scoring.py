"""Scores trained variants, all of them together: each photograph is looked at only once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from wetok import checkpoint
from wetok.commands.ablation.runs import WEIGHTS, Job
from wetok.commands.ablation.variants import STAND_INS, stand_in
from wetok.config import WetokError
from wetok.data.images import find_images
from wetok.evaluate.evaluation import Evaluation, score_together
from wetok.evaluate.networks import FD_VGG, Networks
from wetok.evaluate.protocols import protocol
from wetok.evaluate.systems import Reconstruction, System, TokenizerSystem
from wetok.losses.perceptual import LPIPS
from wetok.model.network import TokenizerNetwork
from wetok.weights import find, here

PROTOCOL = "modern-256"
BYTES = 2
SCORES = ("psnr", "ssim", "lpips-vgg", "lpips-alex", FD_VGG)


class InBytes:
    """A system whose 16 bits a position are counted as two bytes, however it groups them itself.

    Usage and entropy of 2^16 codes can't be told from a few ten thousand positions, nor compared
    with those of 2^8; of two bytes they can.
    """

    code_shape = (BYTES, 8)

    def __init__(self, system: System, group_bits: int) -> None:
        self.system, self.group_bits = system, group_bits
        self.name, self.fingerprint = system.name, system.fingerprint
        self.generative, self.device = system.generative, system.device

    def reconstruct(self, image: Tensor, seeds: Sequence[int]) -> Reconstruction:
        result = self.system.reconstruct(image, seeds)
        assert result.ids is not None
        return replace(result, ids=as_bytes(result.ids, self.group_bits))


def as_bytes(ids: Tensor, group_bits: int) -> Tensor:
    """ids [B,g,h,w] of d' bits a group, 16 in all -> [B,2,h,w], the first group lowest."""
    word = torch.zeros_like(ids[:, 0], dtype=torch.int64)
    for group in range(ids.shape[1]):
        word |= ids[:, group].long() << (group * group_bits)
    return torch.stack([word & 255, word >> 8 & 255], 1)


class StandInSystem:
    """A network with another package's quantizer, as a `System`."""

    generative = False
    device = torch.device("cpu")

    def __init__(self, job: Job) -> None:
        config = job.config
        quantizer = stand_in(job.variant.name, config)
        self.network = TokenizerNetwork(config.model, quantizer)
        path = job.folder / WEIGHTS
        self.network.load_state_dict(load_file(path))
        self.network.eval()
        self.name, self.bits = job.folder.name, config.model.bits
        self.code_shape = config.model.groups, config.model.group_bits
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    @torch.no_grad()
    def reconstruct(self, image: Tensor, seeds: Sequence[int]) -> Reconstruction:
        again, quantized = self.network(image)
        ids = quantized.ids
        return Reconstruction([again.clamp(-1, 1)], bits=ids[0, 0].numel() * self.bits, ids=ids)


def networks() -> Networks:
    """LPIPS and the features of fd-vgg, those whose weights are on this machine.

    LPIPS-alex is what the variants are trained with, so LPIPS-vgg is the one to judge by.
    """
    nets = [net for net in ("vgg", "alex") if here(f"lpips-{net}")]
    found = {net: LPIPS.from_file(find(f"lpips-{net}"), net) for net in nets}  # type: ignore[arg-type]
    return Networks(list(found.values()), vgg=found.get("vgg"))


def score(
    jobs: Sequence[Job], photos: Path, looks: Networks, step: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """One record a job, with its scores on `photos`; a generative decoder's are of seed 0.

    Raises:
        WetokError: a photograph can't be scored; results that leave some out can't be compared.
    """
    evaluations = [Evaluation(_system(job), protocol(PROTOCOL), looks) for job in jobs]
    score_together(evaluations, find_images([photos]), step)
    records = []
    for job, evaluation in zip(jobs, evaluations, strict=True):
        if evaluation.failures:
            raise WetokError(f"{job.folder}: {evaluation.failures[0]}")
        summary = evaluation.summary()
        about = {
            "variant": job.variant.name,
            "seed": job.seed,
            "fingerprint": summary["fingerprint"],
            "steps": job.config.run.steps,
            "seconds": job.seconds(),
        }
        own = {name: summary[name] for name in SCORES if name in summary}
        codes = {"byte_usage": summary["usage"], "byte_entropy": summary["token_entropy"]}
        records.append({**about, **own, **codes, "dead_bits": summary["dead_bits"]})
        protocol_of = {
            name: summary[name]
            for name in (
                "protocol",
                "protocol_description",
                "preprocessing_hash",
                "lpips_weights",
                "frechet_weights",
                "images",
                "image_list_hash",
                "versions",
            )
        }
        records[-1]["scored"] = protocol_of
    return records


def _system(job: Job) -> System:
    if job.variant.name in STAND_INS:
        inner: System = StandInSystem(job)
    else:
        inner = TokenizerSystem(checkpoint.load(job.folder / "model"))
    assert inner.code_shape is not None
    return InBytes(inner, inner.code_shape[1])
