"""Reads entropy-coded ids by docs/formats.md alone: one bit at a time, in plain Python."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from safetensors.numpy import load

KNOWN = {
    "D": "-1,-1 -1,1 1,-1 1,1 -1,-3 -1,3 1,-3 1,3 -3,-1 -3,1 3,-1 3,1",
    "B": "0,-1 0,1 -1,0 1,0 -2,-1 -2,1 2,-1 2,1 -1,-2 -1,2 1,-2 1,2",
    "C": "0,-1 0,1 -1,0 1,0 -1,-1 -1,1 1,-1 1,1 -2,-1 -2,1 2,-1 2,1",
}
AROUND = [(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]
T = [32768, 40793, 47911, 53581, 57724, 60569, 62428, 63609, 64347]
T += [64802, 65081, 65252, 65357, 65420, 65459, 65483, 65497, 65497]

Place = tuple[int, int]
Bits = dict[tuple[int, int, int], int]  # (channel, row, column) -> +1 or -1


def phases(levels: int, height: int, width: int) -> Iterator[tuple[list[Place], list[Place]]]:
    """Positions and neighbours of each phase."""
    step = 2**levels
    yield [(y, x) for y in range(0, height, step) for x in range(0, width, step)], []
    for level in range(levels - 1, -1, -1):
        s = 2**level
        for name, (r, c) in (("D", (s, s)), ("B", (0, s)), ("C", (s, 0))):
            places = [(y, x) for y in range(r, height, 2 * s) for x in range(c, width, 2 * s)]
            pairs = (pair.split(",") for pair in KNOWN[name].split())
            yield places, [(int(y) * s, int(x) * s) for y, x in pairs]


def probability(logit: int) -> int:
    if logit < 0:
        return min(65408, max(128, 65536 - unclipped(-logit)))
    return min(65408, max(128, unclipped(logit)))


def unclipped(logit: int) -> int:
    logit = min(1024, logit)
    return T[logit >> 6] + ((T[(logit >> 6) + 1] - T[logit >> 6]) * (logit & 63) >> 6)


class Segment:
    def __init__(self, data: bytes) -> None:
        self.length, self.data = len(data), data + bytes(6)
        self.range, self.code, self.used = 2**48 - 1, int.from_bytes(self.data[:6], "big"), 6

    def bit(self, p: int) -> int:
        bound = (self.range // 65536) * p
        one = self.code < bound
        if one:
            self.range = bound
        else:
            self.code, self.range = self.code - bound, self.range - bound
        if self.range < 2**32:
            two = self.data[self.used : self.used + 2]
            assert len(two) == 2
            self.used, self.range = self.used + 2, self.range * 2**16
            self.code = self.code * 2**16 + int.from_bytes(two, "big")
        return 1 if one else -1

    def end(self) -> None:
        assert self.used - 6 <= self.length <= self.used
        assert self.length == self.used - 6 or self.data[self.length - 1]


def learned(tables: bytes, bits: int) -> Callable[[list[bytes], int, int], Bits]:
    tensors = {name: value.astype(int).tolist() for name, value in load(tables).items()}
    levels = (1 + max(int(name.split(".")[1]) for name in tensors)) // 3

    def block(segments: list[bytes], height: int, width: int) -> Bits:
        known: Bits = {}
        for group, data in enumerate(segments):
            segment = Segment(data)
            for number, (places, neighbours) in enumerate(phases(levels, height, width)):
                get = {k: tensors[f"{group}.{number}.{k}"] for k in PARTS}
                logits = {}
                for y, x in places:
                    inputs = [
                        known.get((c, y + dy, x + dx), 0)
                        for dy, dx in (AROUND if group else [])
                        for c in range(group * bits)
                    ] + [
                        known.get((group * bits + c, y + dy, x + dx), 0)
                        for dy, dx in neighbours
                        for c in range(bits)
                    ]
                    z = [
                        min(1023, max(0, dot(row, inputs) + b))
                        for row, b in zip(get["first"], get["first_bias"], strict=True)
                    ]
                    shifted = [dot(row, z) >> 5 for row in get["second"]]
                    logits[y, x] = [
                        dot(get["direct"][c], inputs) + get["bias"][c] + shifted[c]
                        for c in range(bits)
                    ]
                for c in range(bits):
                    for y, x in places:
                        earlier = [known[group * bits + b, y, x] for b in range(c)]
                        logit = logits[y, x][c] + dot(get["within"][c][:c], earlier)
                        known[group * bits + c, y, x] = segment.bit(probability(logit))
            segment.end()
        return known

    return block


PARTS = ("first", "first_bias", "second", "direct", "bias", "within")


def dot(one: list[int], other: list[int]) -> int:
    return sum(a * b for a, b in zip(one, other, strict=True))


def adaptive(bits: int) -> Callable[[list[bytes], int, int], Bits]:
    def block(segments: list[bytes], height: int, width: int) -> Bits:
        known: Bits = {}
        for group, data in enumerate(segments):
            segment = Segment(data)
            p: dict[tuple[int, int, int, int], int] = {}
            seen: dict[tuple[int, int, int, int], int] = {}
            for number, (places, neighbours) in enumerate(phases(3, height, width)):
                for c in range(group * bits, group * bits + bits):
                    for y, x in places:
                        values = [known.get((c, y + dy, x + dx), 0) for dy, dx in neighbours[:8]]
                        a, far = sum(values[:4]), sum(values[4:])
                        b = (far > 0) - (far < 0)
                        context = (c, min(number, 1), a, b)
                        now = p.get(context, probability(45 * a + 40 * b))
                        n = seen.get(context, 0)
                        bit = known[c, y, x] = segment.bit(now)
                        rate = 131072 // (2 * n + 11)
                        if bit > 0:
                            now += (65408 - now) * rate >> 16
                        else:
                            now -= (now - 128) * rate >> 16
                        p[context], seen[context] = now, min(127, n + 1)
            segment.end()
        return known

    return block


def read_ids(
    payload: bytes, shape: tuple[int, int, int, int], bits: int, tables: bytes | None
) -> list[int]:
    """Ids in C order from what follows the sizes in a chunk IMGS."""
    if tables is not None:
        assert payload[:8] == hashlib.sha256(tables).digest()[:8]
        payload = payload[8:]
    decode = adaptive(bits) if tables is None else learned(tables, bits)
    images, groups, height, width = shape
    side, wide = int.from_bytes(payload[:2], "little"), payload[2]
    corners = [
        (image, top, left)
        for image in range(images)
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    count = len(corners) * groups
    lengths = [
        int.from_bytes(payload[3 + wide * i : 3 + wide * (i + 1)], "little") for i in range(count)
    ]
    at = 3 + wide * count + (4 * len(corners) + 4 if len(corners) > 1 else 0)
    found: dict[tuple[int, int, int, int], int] = {}
    for number, (image, top, left) in enumerate(corners):
        segments = []
        for length in lengths[number * groups : (number + 1) * groups]:
            segments.append(payload[at : at + length])
            at += length
        tall, broad = min(side, height - top), min(side, width - left)
        for (channel, y, x), value in decode(segments, tall, broad).items():
            where = (image, channel // bits, top + y, left + x)
            found[where] = found.get(where, 0) | (value > 0) << channel % bits
    assert at == len(payload)
    return [found[where] for where in sorted(found)]
