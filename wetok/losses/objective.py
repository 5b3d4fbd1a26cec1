"""The objective without its adversarial term: reconstruction, LPIPS, commitment, two entropies."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wetok.config import LossConfig, WetokError
from wetok.distributed import all_reduce_sum_
from wetok.losses.perceptual import LPIPS


class Objective(NamedTuple):
    """The number to minimise, and what it is made of."""

    total: Tensor
    reconstruction: Tensor
    """The part of it that compares images; the adaptive adversarial weight looks at this one."""
    terms: dict[str, Tensor]
    """Each term before its weight, detached; the names are those of the log."""


class ReconstructionObjective(nn.Module):
    """L = w_r |x - y| + w_p LPIPS + w_c commitment + w_e (token - w_b codebook entropy).

    w_e is enlarged at the start of a run where `entropy_boost` says so, see `entropy_weight`. With
    a frozen encoder the quantizer has no losses, and only the first two terms are left (the
    released second stage).

    Source: WeTok's total loss without its adversarial term; defaults of `LossConfig` are the
    released weights. The entropy part is often negative: it falls as the codebook entropy,
    which is wanted large, grows.
    """

    def __init__(self, config: LossConfig, lpips: LPIPS | None) -> None:
        super().__init__()
        if config.perceptual_weight and lpips is None:
            raise WetokError(
                f"loss.perceptual_weight={config.perceptual_weight} needs the LPIPS "
                f"{config.perceptual} network; import it with `wetok weights import` or set the "
                "weight to 0"
            )
        self.config = config
        self.lpips = lpips

    def forward(
        self,
        image: Tensor,
        reconstruction: Tensor,
        commitment: Tensor | None,
        token_entropy: Tensor | None,
        codebook_entropy: Tensor | None,
        step: int,
    ) -> Objective:
        """image and reconstruction [B,3,H,W] in [-1,1]; the quantizer's losses are scalars.

        `step` decides whether LPIPS has its turn; a term that has none is not in `terms`.
        """
        config = self.config
        difference = F.l1_loss if config.reconstruction == "l1" else F.mse_loss
        terms: dict[str, Tensor] = {
            config.reconstruction: difference(reconstruction.float(), image.float())
        }
        compared = config.reconstruction_weight * terms[config.reconstruction]
        if self.lpips and config.perceptual_weight and step % config.perceptual_every == 0:
            terms["lpips"] = self.lpips(reconstruction, image).mean()
            # Weighed up for the steps that go without, so that its mean weight is as set.
            every = config.perceptual_every
            compared = compared + config.perceptual_weight * every * terms["lpips"]
        total = compared
        if commitment is not None:
            terms["commitment"] = commitment
            total = total + config.commitment_weight * commitment
        if token_entropy is not None and codebook_entropy is not None:
            terms["token_entropy"] = token_entropy
            terms["codebook_entropy"] = codebook_entropy
            total = total + entropy_weight(config, step) * (
                token_entropy - config.codebook_weight * codebook_entropy
            )
        return Objective(total, compared, {name: term.detach() for name, term in terms.items()})


def entropy_weight(config: LossConfig, step: int) -> float:
    """Weight of the entropy part at `step`: (1 + boost (1 - step / boost steps)) times its own.

    The released code's early enlargement, by `entropy_boost` = 3 over 2000 steps there (and off in
    its published settings, as here).
    """
    rest = max(0.0, 1 - step / config.entropy_boost_steps)
    return config.entropy_weight * (1 + config.entropy_boost * rest)


def first_broken(terms: dict[str, Tensor]) -> str | None:
    """The name of the first scalar that is NaN or infinite on any rank; one read from the device.

    Every rank must call it, with the same names.
    """
    values = torch.stack([term.detach().float() for term in terms.values()])
    broken = all_reduce_sum_((~values.isfinite()).float()).tolist()
    return next((name for name, ranks in zip(terms, broken, strict=True) if ranks), None)
