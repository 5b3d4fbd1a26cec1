"""The adversarial terms: what the discriminator learns from, and what the tokenizer does.

Logits are the maps [B,1,h,w] of a discriminator, real above 0; every loss is a scalar in float32
(float64 for float64 logits), whatever autocast made of the logits. Averages of a loss are over
this rank's images: gradients are averaged over ranks by whoever trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wetok.config import WetokError
from wetok.distributed import all_reduce_mean

DiscriminatorLoss = Literal["hinge", "vanilla", "non_saturating"]


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(E max(0, 1 - real) + E max(0, 1 + fake)) / 2: WeTok's and Open-MAGVIT2's default.

    Source: Lim and Ye, "Geometric GAN", 2017.
    """
    return 0.5 * (F.relu(1 - _wide(real)).mean() + F.relu(1 + _wide(fake)).mean())


def vanilla_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(E -log sigmoid(real) + E -log sigmoid(-fake)) / 2: cross entropy of every patch.

    Source: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014 (eq. 1).
    """
    return -0.5 * (F.logsigmoid(_wide(real)).mean() + F.logsigmoid(-_wide(fake)).mean())


def non_saturating_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Cross entropy of every image's mean logit; the halves are summed, not averaged.

    E -log sigmoid(real) + E -log sigmoid(-fake), as the released code has it.
    """
    return -F.logsigmoid(_image_logits(real)).mean() - F.logsigmoid(-_image_logits(fake)).mean()


DISCRIMINATOR_LOSSES: dict[DiscriminatorLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": hinge_discriminator_loss,
    "vanilla": vanilla_discriminator_loss,
    "non_saturating": non_saturating_discriminator_loss,
}
"""By the names of the settings; each takes (real, fake) logits."""


def non_saturating_generator_loss(fake: Tensor) -> Tensor:
    """E -log sigmoid(mean logit of an image): what the tokenizer minimises.

    The released code pairs it with every discriminator loss, the hinge one too. Source: Goodfellow
    et al., NeurIPS 2014 (section 3), of the mean over an image's patches.
    """
    return -F.logsigmoid(_image_logits(fake)).mean()


class LeCam(nn.Module):
    """LeCam regularisation: logits are kept near the running averages of the opposite kind.

    E max(0, real - average fake)^2 + E max(0, average real - fake)^2, the form of MAGVIT-v2 and of
    the released code. The averages are over the images of all processes, start at 0 and lie in the
    state dict, so that a resumed run goes on with them.

    Source: Tseng et al., "Regularizing Generative Adversarial Networks under Limited Data",
    CVPR 2021 (eq. 6).

    Raises:
        WetokError: `decay` is outside [0, 1).
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise WetokError(f"decay={decay}: LeCam's averages need one in [0, 1), e.g. 0.999")
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Moves the averages towards these logits; every rank must call it.

        Non-finite logits of any rank leave them as they are: a step that is skipped for them must
        not spoil all that follow.
        """
        means = torch.stack([_wide(real).mean(), _wide(fake).mean()])
        means = all_reduce_mean(means, count=len(real)).to(self.real.dtype)
        old = torch.stack([self.real, self.fake])
        new = torch.where(means.isfinite().all(), old.lerp(means, 1 - self.decay), old)
        self.real.copy_(new[0])
        self.fake.copy_(new[1])

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The regularisation of these logits, before its weight; call `update` first."""
        above = F.relu(_wide(real) - self.fake).square().mean()
        below = F.relu(self.real - _wide(fake)).square().mean()
        return above + below


def adaptive_weight(
    reconstruction_loss: Tensor,
    generator_loss: Tensor,
    last_layer: Tensor,
    weight: float = 1.0,
    scale: float = 1.0,
) -> Tensor:
    """The adversarial weight at which both losses pull the last layer equally hard, times `weight`.

    weight * clamp(|grad reconstruction| / (|grad generator| + 1e-4), 0, 1e4), gradients with
    respect to `last_layer` (the decoder's last convolution) and averaged over the ranks, each of
    which must call it. A detached scalar in float32; the losses can still be differentiated.

    With fp16, `scale` is the gradient scaler's: gradients are taken of losses that much larger,
    lest they vanish on their way, and then divided by it.

    Source: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021
    (eq. 7), with the released code's 1e-4 and limit.

    Raises:
        WetokError: a loss does not depend on the last layer, or the layer is not trained.
    """
    gradients = [
        _gradient(name, loss, last_layer, scale)
        for name, loss in (
            ("reconstruction_loss", reconstruction_loss),
            ("generator_loss", generator_loss),
        )
    ]
    norms = torch.linalg.vector_norm(all_reduce_mean(torch.stack(gradients)), dim=1)
    return weight * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4)


def _gradient(name: str, loss: Tensor, layer: Tensor, scale: float) -> Tensor:
    gradient = None
    if layer.requires_grad and loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss * scale, layer, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise WetokError(
            f"{name} has no gradient at the last layer, which the adaptive weight compares: it is "
            "frozen, sharded or not used; set a fixed weight"
        )
    return gradient.detach().float().flatten() / scale


def warmup_factor(step: int, start: int, ramp: int = 0) -> float:
    """By how much the adversarial terms count at `step` (0 is the first): 0 before `start`, then 1.

    With `ramp` steps of linear rise: 1/ramp at `start`, 1 from the ramp-th step on.
    """
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / max(1, ramp))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within the block no gradient is kept for the parameters of `module`; it still lets them by.

    For the tokenizer's update: run the discriminator's forward pass in it, and the backward pass,
    wherever it runs, computes nothing for the discriminator's own weights.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _image_logits(logits: Tensor) -> Tensor:
    """Mean over an image's patches: [B,1,h,w] -> [B]."""
    return _wide(logits).flatten(1).mean(1)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
