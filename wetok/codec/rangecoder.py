"""A binary range coder: bits with given or adaptive probabilities <-> bytes, in integers only.

The interval starts as [0, 2^48). A bit whose probability of being 1 is p / 65536 cuts it at
(range >> 16) * p: 1 takes the lower part, 0 the upper. When the range falls below 2^32, the
topmost two bytes leave. `docs/formats.md` has it step by step; it is the coder of LZMA with wider
numbers, after G. N. N. Martin, "Range encoding" (1979).

The loops are plain Python on purpose: 0.2 microseconds a bit, no compiler, nothing to install.
"""

from __future__ import annotations

from collections.abc import Iterable

from wetok.config import WetokError

ONE = 1 << 16
"""Probabilities are whole numbers of 1/65536."""
LEAST = 128
"""Every probability lies in [LEAST, ONE - LEAST]."""
BITS_A_BYTE = 2900
"""More than any byte can hold: a bit costs at least -log2(1 - LEAST/ONE) = 1/354.5 bits."""

_FULL = 1 << 48
_LOW = 1 << 32  # two bytes leave below this range
RATES = tuple(2 * ONE // (2 * n + 11) for n in range(128))
"""Step of an adaptive probability after n (or more than 127) bits, in 1/65536 of the way."""


class Encoder:
    """Takes bits one run after the other; `finish` gives the bytes."""

    def __init__(self) -> None:
        self._low = 0
        self._range = _FULL - 1
        self._out = bytearray()

    def encode(self, probabilities: Iterable[int], bits: Iterable[int]) -> None:
        """Codes `bits`, each with its probability of being 1 in 1/65536."""
        low, span, out = self._low, self._range, self._out
        for probability, bit in zip(probabilities, bits, strict=True):
            bound = (span >> 16) * probability
            if bit:
                span = bound
            else:
                low += bound
                span -= bound
            if span < _LOW:
                if low >= _FULL:
                    low -= _FULL
                    _carry(out)
                out += (low >> 32).to_bytes(2, "big")
                low = (low & 0xFFFFFFFF) << 16
                span <<= 16
        self._low, self._range = low, span

    def encode_adaptive(
        self, contexts: Iterable[int], bits: Iterable[int], states: list[int], counts: list[int]
    ) -> None:
        """Codes `bits` with the probabilities that `states` has in their contexts, which learn."""
        low, span, out = self._low, self._range, self._out
        for context, bit in zip(contexts, bits, strict=True):
            probability = states[context]
            count = counts[context]
            bound = (span >> 16) * probability
            if bit:
                span = bound
                states[context] += (65408 - probability) * RATES[count] >> 16
            else:
                low += bound
                span -= bound
                states[context] -= (probability - 128) * RATES[count] >> 16
            if count < 127:
                counts[context] = count + 1
            if span < _LOW:
                if low >= _FULL:
                    low -= _FULL
                    _carry(out)
                out += (low >> 32).to_bytes(2, "big")
                low = (low & 0xFFFFFFFF) << 16
                span <<= 16
        self._low, self._range = low, span

    def finish(self) -> bytes:
        """The bytes, less up to six zeros at the end, which a decoder adds."""
        last = self._low + self._range - 1
        for zeros in range(48, -1, -1):  # the number in the interval that ends in most zeros
            value = last >> zeros << zeros
            if value >= self._low:
                break
        if value >= _FULL:
            value -= _FULL
            _carry(self._out)
        return bytes(self._out + value.to_bytes(6, "big").rstrip(b"\0"))


class Decoder:
    """Gives back the bits that an `Encoder` took, run by run."""

    def __init__(self, data: bytes) -> None:
        self._size = len(data)
        self._data = data + bytes(6)
        self._code = int.from_bytes(self._data[:6], "big")
        self._position = 6
        self._range = _FULL - 1

    def decode(self, probabilities: Iterable[int]) -> list[int]:
        """The next bits, for the probabilities that they were coded with.

        Raises:
            WetokError: the data ends before the bits.
        """
        code, span, position, data = self._code, self._range, self._position, self._data
        bits: list[int] = []
        add = bits.append
        try:
            for probability in probabilities:
                bound = (span >> 16) * probability
                if code < bound:
                    span = bound
                    add(1)
                else:
                    code -= bound
                    span -= bound
                    add(0)
                if span < _LOW:
                    code = code << 16 | data[position] << 8 | data[position + 1]
                    position += 2
                    span <<= 16
        except IndexError:
            raise WetokError("entropy-coded ids end too early") from None
        self._code, self._range, self._position = code, span, position
        return bits

    def decode_adaptive(
        self, contexts: Iterable[int], states: list[int], counts: list[int]
    ) -> list[int]:
        """The next bits, with the adaptive probabilities of their contexts.

        Raises:
            WetokError: the data ends before the bits.
        """
        code, span, position, data = self._code, self._range, self._position, self._data
        bits: list[int] = []
        add = bits.append
        try:
            for context in contexts:
                probability = states[context]
                count = counts[context]
                bound = (span >> 16) * probability
                if code < bound:
                    span = bound
                    add(1)
                    states[context] += (65408 - probability) * RATES[count] >> 16
                else:
                    code -= bound
                    span -= bound
                    add(0)
                    states[context] -= (probability - 128) * RATES[count] >> 16
                if count < 127:
                    counts[context] = count + 1
                if span < _LOW:
                    code = code << 16 | data[position] << 8 | data[position + 1]
                    position += 2
                    span <<= 16
        except IndexError:
            raise WetokError("entropy-coded ids end too early") from None
        self._code, self._range, self._position = code, span, position
        return bits

    def finish(self) -> None:
        """Checks that nothing is left.

        Raises:
            WetokError: bytes that no bit needed, or zeros that the coder leaves out.
        """
        spare = self._size - (self._position - 6)  # bytes of the encoder's last six
        if spare > 6 or (spare > 0 and not self._data[self._size - 1]):
            raise WetokError("entropy-coded ids are followed by other bytes")


def _carry(out: bytearray) -> None:
    place = len(out) - 1
    while out[place] == 255:
        out[place] = 0
        place -= 1
    out[place] += 1
