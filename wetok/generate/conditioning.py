"""The class of an image as a vector, and its dropout for classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wetok.config import WetokError


class ClassEmbedding(nn.Module):
    """Labels [B] in [0, classes], of which the last means "no class", to vectors [B,C].

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance" (2022): in training, a share of
    the labels is replaced by "no class".

    Args:
        classes: 0 for an unconditional generator, whose only label is "no class".
    """

    def __init__(self, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.classes, self.dropout = classes, dropout
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        if self.training and self.dropout:
            dropped = torch.rand(labels.shape, device=labels.device) < self.dropout
            labels = torch.where(dropped, self.classes, labels)
        return self.table(labels)

    def labels(self, given: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """`given`, or "no class" for every image.

        Raises:
            WetokError: not a label for each image, or one that is out of range.
        """
        if given is None:
            return torch.full((batch,), self.classes, device=device)
        if given.shape != (batch,):
            raise WetokError(f"labels has shape {list(given.shape)}; give {batch}, one an image")
        low, high = int(given.min()), int(given.max())
        if low < 0 or high > self.classes:
            wrong = low if low < 0 else high
            raise WetokError(
                f"label {wrong} must lie in [0, {self.classes}); {self.classes} means no class"
                if self.classes
                else f"label {wrong}: this generator is unconditional; leave labels out"
            )
        return given.to(device)
