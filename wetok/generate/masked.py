"""The masked generator: all positions and groups at once, more of them certain each round."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wetok.config import WetokError
from wetok.generate.conditioning import ClassEmbedding
from wetok.generate.config import GeneratorConfig
from wetok.generate.layers import Block, RMSNorm, initialise, rotations, wide


class MaskedGenerator(nn.Module):
    """Images' ids, those that are hidden from the class and those that are not.

        signs of known bits, 0 for hidden ones, [B,h w,d] -> linear (or an embedding an id)
            -> plus a vector of the position -> class in front
            -> blocks, each place looking at all -> norm
            -> linear -> logits of the 2^d' codes of every group of every position

    Every group of a position is hidden or known by itself. Positions have vectors of their own
    beside the turns: where all is hidden, places that look alike could tell themselves apart by
    the turn against the class only.

    Sources: MaskGIT (Chang et al., CVPR 2022) for training and schedule; MaskBit (Weber et al.,
    TMLR 2024) for reading bits without an embedding, and for hiding groups of bits one by one.

    Args:
        config: of kind "masked".
    """

    rotation: Tensor
    powers: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        if config.kind != "masked":
            raise WetokError(f"kind={config.kind!r}: this generator is masked")
        self.config = config
        width = config.width
        self.embeddings = nn.ModuleList()
        self.bits: nn.Linear | None = None
        if config.source == "bits":
            self.bits = nn.Linear(config.groups * config.group_bits, width)
        else:  # the last of each means "hidden"
            self.embeddings.extend(
                nn.Embedding(config.codes + 1, width) for _ in range(config.groups)
            )
        self.places = nn.Embedding(config.positions, width)
        self.condition = ClassEmbedding(config.classes, width, config.class_dropout)
        self.dropout = nn.Dropout(config.dropout)
        shape = (width, config.heads, config.norm_eps, config.dropout)
        self.blocks = nn.ModuleList(Block(*shape) for _ in range(config.depth))
        self.norm = RMSNorm(width, config.norm_eps)
        self.head = nn.Linear(width, config.groups * config.codes)
        turned = rotations(
            config.grid, width // config.heads, config.rope_base, config.silent_class
        )
        self.register_buffer("rotation", turned, persistent=False)
        powers = 2 ** torch.arange(config.group_bits, device="cpu")
        self.register_buffer("powers", powers, persistent=False)
        self.apply(initialise)
        nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [B,h w,g,2^d'] of every id.

        Args:
            ids: [B,g,h,w]; what is hidden may be anything.
            hidden: [B,g,h,w], true where an id is not to be seen.
            labels: [B] in [0, classes]; `classes` means none, as does leaving them out.

        Raises:
            WetokError: ids or hidden of another shape, or labels out of range.
        """
        config = self.config
        for name, given in (("ids", ids), ("hidden", hidden)):
            if tuple(given.shape[1:]) != (config.groups, *config.grid):
                raise WetokError(
                    f"{name} has shape {list(given.shape)}; this generator takes "
                    f"[B,{config.groups},{config.grid[0]},{config.grid[1]}]"
                )
        labels = self.condition.labels(labels, len(ids), ids.device)
        x = self._read(ids.flatten(2).transpose(1, 2), hidden.flatten(2).transpose(1, 2))
        x = x + self.places.weight
        x = torch.cat([self.condition(labels)[:, None], x], dim=1)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, self.rotation, causal=False)
        logits = self.head(self.norm(x[:, 1:]))
        return logits.unflatten(-1, (config.groups, config.codes))

    def loss(self, ids: Tensor, labels: Tensor | None = None) -> Tensor:
        """Cross-entropy in nats of ids hidden at random (`hide`), the mean over each group's: [g].

        In training targets are smoothed by `config.smoothing`. A group of which none was hidden
        counts 0.
        """
        config, hidden = self.config, self.hide(ids)
        logits = wide(self(ids, hidden, labels)).permute(0, 2, 1, 3)  # [B,g,h w,2^d']
        nats = F.cross_entropy(
            logits.flatten(0, 2),
            ids.flatten(),
            reduction="none",
            label_smoothing=config.smoothing if self.training else 0.0,
        ).view(len(ids), config.groups, -1)
        chosen = hidden.flatten(2).to(nats.dtype)
        return (nats * chosen).sum((0, 2)) / chosen.sum((0, 2)).clamp_min(1)

    def hide(self, ids: Tensor) -> Tensor:
        """Which of the ids [B,g,h,w] are hidden in training.

        Of every image it is a share cos(pi u / 2), u ~ U(0, 1), and at least one id.
        """
        count = self.config.positions * self.config.groups
        share = torch.cos(math.pi / 2 * torch.rand(len(ids), device=ids.device))
        number = (share * count).ceil().clamp(1, count)
        order = torch.rand(len(ids), count, device=ids.device).argsort(dim=1).argsort(dim=1)
        return (order < number[:, None]).view(ids.shape)

    def _read(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """[B,h w,g] each -> [B,h w,C]."""
        if self.bits is not None:
            signs = (ids[..., None] & self.powers).ne(0).to(self.bits.weight.dtype) * 2 - 1
            return self.bits((signs * ~hidden[..., None]).flatten(-2))
        seen = torch.where(hidden, self.config.codes, ids)
        parts = [embedding(seen[..., group]) for group, embedding in enumerate(self.embeddings)]
        return torch.stack(parts).sum(0)
