"""The autoregressive generator once more, place by place in float64, from its weights alone."""

from __future__ import annotations

import math

import numpy as np

from wetok.generate.config import GeneratorConfig

Weights = dict[str, np.ndarray]


def angles(config: GeneratorConfig, grid: tuple[int, int]) -> list[np.ndarray | None]:
    """Of each place the angle of every pair of channels; None for the class."""
    pairs = config.width // config.heads // 2
    result: list[np.ndarray | None] = [None]
    for row in range(grid[0]):
        for column in range(grid[1]):
            turn = np.empty(pairs)
            for pair in range(pairs // 2):
                speed = config.rope_base ** (-2 * pair / pairs)
                turn[pair], turn[pair + pairs // 2] = row * speed, column * speed
            result.append(turn)
    return result


def turned(x: np.ndarray, angle: np.ndarray | None, silent: bool) -> np.ndarray:
    """A head's channels [D], as complex numbers."""
    if angle is None:
        return np.zeros_like(x) if silent else x
    z = (x[0::2] + 1j * x[1::2]) * np.exp(1j * angle)
    return np.stack([z.real, z.imag], -1).reshape(-1)


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean() + eps) * weight


def block(
    config: GeneratorConfig,
    weights: Weights,
    prefix: str,
    sequence: list[np.ndarray],
    causal: bool = True,
    grid: tuple[int, int] | None = None,
) -> list[np.ndarray]:
    """[C] each; of place t only the first t + 1 are looked at."""
    width, heads, eps = config.width, config.heads, config.norm_eps
    size = width // heads
    turns = angles(config, grid or config.grid)
    queries, keys, values = [], [], []
    for place, x in enumerate(sequence):
        y = norm(x, weights[f"{prefix}attention_norm.weight"], eps)
        q, k, v = (weights[f"{prefix}attention.qkv.weight"] @ y).reshape(3, heads, size)
        queries.append([turned(one, turns[place], config.silent_class) for one in q])
        keys.append([turned(one, turns[place], config.silent_class) for one in k])
        values.append(v)
    result = []
    for place, x in enumerate(sequence):
        seen = range(place + 1) if causal else range(len(sequence))
        attended = []
        for head in range(heads):
            scores = np.array([queries[place][head] @ keys[s][head] for s in seen])
            scores = np.exp(scores / math.sqrt(size))
            scores /= scores.sum()
            attended.append(sum(s * values[at][head] for s, at in zip(scores, seen, strict=True)))
        x = x + weights[f"{prefix}attention.out.weight"] @ np.concatenate(attended)
        y = norm(x, weights[f"{prefix}feed_norm.weight"], eps)
        gate, up = (weights[f"{prefix}feed.{name}.weight"] @ y for name in ("gate", "up"))
        result.append(x + weights[f"{prefix}feed.down.weight"] @ (gate / (1 + np.exp(-gate)) * up))
    return result


def autoregressive(
    config: GeneratorConfig, weights: Weights, ids: np.ndarray, label: int
) -> np.ndarray:
    """Logits [h w,g,2^d'] of one image's ids [g,h,w]."""
    flat = ids.reshape(config.groups, -1)
    embedded = [
        [weights[f"embeddings.{g}.weight"][flat[g, p]] for g in range(config.groups)]
        for p in range(config.positions)
    ]
    sequence = [weights["condition.table.weight"][label]]
    sequence += [np.sum(parts, axis=0) for parts in embedded[:-1]]
    for number in range(config.depth):
        sequence = block(config, weights, f"blocks.{number}.", sequence)
    logits = np.empty((config.positions, config.groups, config.codes))
    for position, context in enumerate(sequence):
        inner = [context, *embedded[position][:-1]]
        for number in range(config.group_depth):
            row = (1, config.groups)
            inner = block(config, weights, f"group_blocks.{number}.", inner, grid=row)
        for group, x in enumerate(inner):
            y = norm(x, weights["norm.weight"], config.norm_eps)
            logits[position, group] = weights[f"heads.{group}.weight"] @ y
    return logits


def masked(
    config: GeneratorConfig, weights: Weights, ids: np.ndarray, hidden: np.ndarray, label: int
) -> np.ndarray:
    """Logits [h w,g,2^d'] of one image's ids [g,h,w] where `hidden` ones are not seen."""
    flat, unseen = ids.reshape(config.groups, -1), hidden.reshape(config.groups, -1)
    sequence = [weights["condition.table.weight"][label]]
    for position in range(config.positions):
        if config.source == "bits":
            signs = []
            for group in range(config.groups):
                for bit in range(config.group_bits):
                    sign = 1 if flat[group, position] >> bit & 1 else -1
                    signs.append(0 if unseen[group, position] else sign)
            x = weights["bits.weight"] @ np.array(signs, float) + weights["bits.bias"]
        else:
            rows = np.where(unseen[:, position], config.codes, flat[:, position])
            x = sum(weights[f"embeddings.{g}.weight"][row] for g, row in enumerate(rows))
        sequence.append(x + weights["places.weight"][position])
    for number in range(config.depth):
        sequence = block(config, weights, f"blocks.{number}.", sequence, causal=False)
    logits = [
        weights["head.weight"] @ norm(x, weights["norm.weight"], config.norm_eps)
        + weights["head.bias"]
        for x in sequence[1:]
    ]
    return np.stack(logits).reshape(config.positions, config.groups, config.codes)
