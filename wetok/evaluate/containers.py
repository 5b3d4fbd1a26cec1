"""How much of an image's file is the image, and how much the container around it.

Files are compared as files, whole. But a small image's file may be a tenth container, and then one
wants to know. Payload is what depends on the image's content; the rest says what kind of file this
is and how large the image is:

    .wetok      the coded ids in the chunks IMGS       less magic, model, sizes, tables' digest, CRC
    JPEG        Huffman tables and scans                less SOI, APPn, COM, DQT, SOF, DRI, EOI
    WebP        chunks VP8, VP8L and ALPH               less RIFF, VP8X and other chunks
    AVIF        the boxes mdat                          less ftyp and meta
    JPEG 2000   the tiles' parts, from SOT on           less boxes, main header, EOC
    JPEG XL     the codestream                          less boxes
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

from wetok.codec.chunks import MAGIC, Container
from wetok.codec.header import DIGEST, IMAGES, LEARNED

_JPEG_HEADERS = frozenset((0xDB, 0xDD, 0xFE, *range(0xC0, 0xD0), *range(0xE0, 0xF0))) - {0xC4}


def payload_bytes(file: bytes) -> int | None:
    """Bytes of `file` that are the image itself; None for a kind of file not in the list above."""
    if file.startswith(MAGIC):
        return _wetok(file)
    if file.startswith(b"\xff\xd8\xff"):
        return _jpeg(file)
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        return sum(len(body) for tag, body in _riff(file) if tag in (b"VP8 ", b"VP8L", b"ALPH"))
    if file.startswith(b"\xff\x4f\xff\x51"):
        return _codestream(file)
    if file.startswith(b"\xff\x0a"):
        return len(file)
    if file[4:8] in (b"ftyp", b"jP  ", b"JXL "):
        counted = {b"mdat": len, b"jp2c": _codestream, b"jxlc": len, b"jxlp": lambda b: len(b) - 4}
        return sum(counted[tag](body) for tag, body in _boxes(file) if tag in counted)
    return None


def _wetok(file: bytes) -> int:
    total = 0
    for chunk in Container(io.BytesIO(file), len(file), verify=False).chunks():
        if chunk.tag == b"IMGS":
            learned = file[chunk.position] == LEARNED
            total += chunk.length - IMAGES.size - (DIGEST if learned else 0)
    return total


def _jpeg(file: bytes) -> int:
    """Markers are FF and a letter; all but SOI and EOI are followed by a length, until a scan."""
    header, at = 2, 2
    while file[at + 1] != 0xD9:
        marker, length = file[at + 1], int.from_bytes(file[at + 2 : at + 4], "big") + 2
        if marker in _JPEG_HEADERS:
            header += length
        at += length
        if marker == 0xDA:  # compressed data, where FF 00 and FF D0..D7 are no markers
            while file[at] != 0xFF or file[at + 1] == 0 or 0xD0 <= file[at + 1] <= 0xD7:
                at += 1
    return at - header


def _riff(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(file):
        tag, length = struct.unpack_from("<4sI", file, at)
        yield tag, file[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _boxes(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The outermost boxes of ISO's base media format, which JPEG 2000 and JPEG XL use as well."""
    at = 0
    while at + 8 <= len(file):
        length, tag = struct.unpack_from(">I4s", file, at)
        start = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", file, at + 8)
            start = 16
        end = at + length if length else len(file)
        yield tag, file[at + start : end]
        at = max(end, at + start)


def _codestream(file: bytes) -> int:
    """JPEG 2000: a main header of markers with lengths, tiles' parts, and EOC at the end."""
    at = 2
    while file[at : at + 2] != b"\xff\x90":
        at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    return len(file) - at - 2
