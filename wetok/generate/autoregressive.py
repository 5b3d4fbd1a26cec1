"""The autoregressive generator: position by position, and group by group within a position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wetok.config import WetokError
from wetok.generate.conditioning import ClassEmbedding
from wetok.generate.config import GeneratorConfig
from wetok.generate.layers import Block, Cache, RMSNorm, initialise, rotations, wide


class AutoregressiveGenerator(nn.Module):
    """Images' ids, each from the class and all ids before it.

        class, ids of positions 0 .. t-1 (embeddings of the groups summed)
            -> blocks over positions, causal -> context of position t
        context, ids of groups 0 .. k-1 of position t
            -> blocks over groups, causal -> norm -> head of group k -> logits of its 2^d' codes

    Sources: LlamaGen (Sun et al., 2024) for the blocks; the RQ-Transformer (Lee et al., CVPR 2022)
    for the two levels; WeTok's released generator for both together.

    Args:
        config: of kind "autoregressive".
    """

    rotation: Tensor
    group_rotation: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        if config.kind != "autoregressive":
            raise WetokError(f"kind={config.kind!r}: this generator is autoregressive")
        self.config = config
        width = config.width
        self.embeddings = nn.ModuleList(
            nn.Embedding(config.codes, width) for _ in range(config.groups)
        )
        self.condition = ClassEmbedding(config.classes, width, config.class_dropout)
        self.dropout = nn.Dropout(config.dropout)
        shape = (width, config.heads, config.norm_eps, config.dropout)
        self.blocks = nn.ModuleList(Block(*shape) for _ in range(config.depth))
        self.group_blocks = nn.ModuleList(Block(*shape) for _ in range(config.group_depth))
        self.norm = RMSNorm(width, config.norm_eps)
        self.heads = nn.ModuleList(
            nn.Linear(width, config.codes, bias=False) for _ in range(config.groups)
        )
        turns = (width // config.heads, config.rope_base, config.silent_class)
        self.register_buffer("rotation", rotations(config.grid, *turns), persistent=False)
        # Groups are turned as if they were the class and the first row.
        row = rotations((1, config.groups), *turns)[: config.groups]
        self.register_buffer("group_rotation", row, persistent=False)
        self.apply(initialise)
        for head in self.heads:
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [B,h w,g,2^d'] of all ids [B,g,h,w], each from those before it.

        Args:
            labels: [B] in [0, classes]; `classes` means none, as does leaving them out.

        Raises:
            WetokError: ids of another shape, or labels out of range.
        """
        config = self.config
        if tuple(ids.shape[1:]) != (config.groups, *config.grid):
            raise WetokError(
                f"ids has shape {list(ids.shape)}; this generator takes "
                f"[B,{config.groups},{config.grid[0]},{config.grid[1]}]"
            )
        labels = self.condition.labels(labels, len(ids), ids.device)
        parts = [
            embedding(ids[:, group].flatten(1)) for group, embedding in enumerate(self.embeddings)
        ]
        x = torch.stack(parts).sum(0)
        x = torch.cat([self.condition(labels)[:, None], x[:, :-1]], dim=1)
        x = self.dropout(x)
        rotation = self.rotation[: x.shape[1]]
        for block in self.blocks:
            x = block(x, rotation, causal=True)
        y = torch.stack([x, *parts[:-1]], dim=2).flatten(0, 1)  # [B h w, g, C]
        for block in self.group_blocks:
            y = block(y, self.group_rotation, causal=True)
        y = self.norm(y)
        logits = torch.stack([head(y[:, group]) for group, head in enumerate(self.heads)], dim=1)
        return logits.unflatten(0, x.shape[:2])

    def loss(self, ids: Tensor, labels: Tensor | None = None) -> Tensor:
        """Cross-entropy of each group's ids in nats, the mean over images and positions: [g].

        Their sum is what training minimises, as in the release.
        """
        logits = wide(self(ids, labels))
        targets = ids.flatten(2).transpose(1, 2)  # [B, h w, g]
        nats = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none")
        return nats.view(-1, self.config.groups).mean(0)

    def decoding(self, labels: Tensor) -> Decoding:
        """Begins to decode images of these classes, [B] in [0, classes]."""
        return Decoding(self, labels)


class Decoding:
    """Position after position with all keys and values kept, so that nothing is computed twice.

        decoding = generator.decoding(labels)
        for each position: for each group: logits = decoding.logits(); decoding.take(ids)

    Args:
        labels: [B] in [0, classes].
    """

    def __init__(self, generator: AutoregressiveGenerator, labels: Tensor) -> None:
        self.generator, self.batch = generator, len(labels)
        labels = generator.condition.labels(labels, self.batch, labels.device)
        like = generator.norm.weight
        config = generator.config
        self._shape = (self.batch, config.heads)
        self._head_width = config.width // config.heads
        self._caches = self._new_caches(config.depth, config.positions, like)
        self._group_caches = self._new_caches(config.group_depth, config.groups, like)
        self._position = 0
        self._group = 0
        self._context = self._over(generator.condition(labels)[:, None])
        self._sum: Tensor | None = None
        self._next = self._within(self._context)

    def logits(self) -> Tensor:
        """Of the next id: [B,2^d']."""
        return self.generator.heads[self._group](self.generator.norm(self._next))[:, 0]

    def take(self, ids: Tensor) -> None:
        """Goes on with `ids` [B] as what the logits were for."""
        config = self.generator.config
        embedded = self.generator.embeddings[self._group](ids)[:, None]
        self._sum = embedded if self._sum is None else self._sum + embedded
        self._group += 1
        if self._group < config.groups:
            self._next = self._within(embedded)
            return
        self._group, self._position = 0, self._position + 1
        for cache in self._group_caches:
            cache.length = 0
        if self._position < config.positions:
            assert self._sum is not None
            self._next = self._within(self._over(self._sum))
            self._sum = None

    def _new_caches(self, depth: int, places: int, like: Tensor) -> list[Cache]:
        batch, heads = self._shape
        return [Cache(batch, heads, places, self._head_width, like) for _ in range(depth)]

    def _over(self, x: Tensor) -> Tensor:
        """The context of the position that follows x [B,1,C]."""
        turns = self.generator.rotation[self._position : self._position + 1]
        return _through(self.generator.blocks, self._caches, x, turns)

    def _within(self, x: Tensor) -> Tensor:
        turns = self.generator.group_rotation[self._group : self._group + 1]
        return _through(self.generator.group_blocks, self._group_caches, x, turns)


def _through(blocks: nn.ModuleList, caches: list[Cache], x: Tensor, rotation: Tensor) -> Tensor:
    for block, cache in zip(blocks, caches, strict=True):
        x = block(x, rotation, causal=True, cache=cache)
    return x
