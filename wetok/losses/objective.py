"""The first stage's objective: reconstruction, LPIPS, commitment and the two entropies."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wetok.config import LossConfig, WetokError
from wetok.losses.perceptual import LPIPS


class Objective(NamedTuple):
    """The number to minimise, and what it is made of."""

    total: Tensor
    terms: dict[str, Tensor]
    """Each term before its weight, detached; the names are those of the log."""


class ReconstructionObjective(nn.Module):
    """L = w_r |x - y| + w_p LPIPS + w_c commitment + w_e (token - w_b codebook entropy).

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
        commitment: Tensor,
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
        total = config.reconstruction_weight * terms[config.reconstruction]
        if self.lpips and config.perceptual_weight and step % config.perceptual_every == 0:
            terms["lpips"] = self.lpips(reconstruction, image).mean()
            # Weighed up for the steps that go without, so that its mean weight is as set.
            total = total + config.perceptual_weight * config.perceptual_every * terms["lpips"]
        terms["commitment"] = commitment
        total = total + config.commitment_weight * commitment
        if token_entropy is not None and codebook_entropy is not None:
            terms["token_entropy"] = token_entropy
            terms["codebook_entropy"] = codebook_entropy
            total = total + config.entropy_weight * (
                token_entropy - config.codebook_weight * codebook_entropy
            )
        return Objective(total, {name: term.detach() for name, term in terms.items()})


def first_broken(terms: dict[str, Tensor]) -> str | None:
    """The name of the first scalar that is NaN or infinite, if any; one read from the device."""
    finite = torch.stack([term.detach().float() for term in terms.values()]).isfinite().tolist()
    return next((name for name, fine in zip(terms, finite, strict=True) if not fine), None)
