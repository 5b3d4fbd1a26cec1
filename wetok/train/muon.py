"""Muon: steps of orthogonal matrices for the hidden layers, Adam's for everything else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

ITERATIONS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before each step, with Nesterov's look ahead.

        m <- 0.95 m + G
        W <- (1 - lr decay) W - lr 0.2 sqrt(max(r, c)) orthogonal(G + 0.95 m)

    A kernel is the matrix [out, in x height x width]; one with four times as many outputs as
    inputs (an upsampling by sub-pixels) is the four matrices of its sub-pixels. The factor gives a
    step the size of Adam's, so both go by one rate. Vectors and `others` take Adam's steps, as
    torch's AdamW does.

    Args:
        matrices: parameters of two dimensions or more.
        others: the rest, of any shape.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with
    the scale of Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982).
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "orthogonal": True},
            {"params": list(others), "orthogonal": False},
        ]
        defaults = {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step by the gradients that are there."""
        for group in self.param_groups:
            update = self._orthogonal if group["orthogonal"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, group)

    def _orthogonal(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"].mul_(_MOMENTUM).add_(gradient)
        rows, inputs = parameter.shape[:2]
        parts = 4 if rows == 4 * inputs else 1
        ahead = gradient.add(momentum, alpha=_MOMENTUM).reshape(parts, rows // parts, -1)
        size = 0.2 * math.sqrt(max(ahead.shape[1:]))
        step = orthogonal(ahead).to(parameter.dtype).view_as(parameter)
        parameter.add_(step, alpha=-group["lr"] * size)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        taken, (beta1, beta2) = state["step"], group["betas"]
        first: Tensor = state["exp_avg"].lerp_(gradient, 1 - beta1)
        second: Tensor = (
            state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        )
        spread = (second / (1 - beta2**taken)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(first, spread, value=-group["lr"] / (1 - beta1**taken))


def orthogonal(matrices: Tensor) -> Tensor:
    """The matrices [n,r,c] with all their singular values brought near 1 (0.7 to 1.2).

    Five steps of an odd polynomial of degree five (Newton-Schulz, with Jordan's coefficients), in
    bfloat16 where the device multiplies it fast: nothing is gained by more exactness.
    """
    turned = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if turned else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.to(_dtype(matrices))
    a, b, c = _QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if turned else x


def _dtype(like: Tensor) -> torch.dtype:
    if like.dtype == torch.float64:
        return torch.float64
    fast = like.device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
