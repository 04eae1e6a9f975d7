"""Just enough Matroska to append packets to a file so that each is whole and provable the moment it is written.

FFmpeg's muxer holds a packet back until the next one comes, so a kill would cost one more. It writes the header
(`header`), which knows the codecs; each packet then is a Cluster of its own with a CRC-32 (RFC 9559, RFC 8794 section
11.3.1), written in one system call. The segment has no index: FFmpeg reads it all the same. The file that is kept in the
end is written by FFmpeg's muxer, in `merge.py`.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from av.container import OutputContainer

CLUSTER_ID = b"\x1f\x43\xb6\x75"
_EBML_ID, _SEGMENT_ID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_UNKNOWN = (1 << 56) - 1
_TIMESTAMP = struct.Struct(">BBQ")  # E7 88 milliseconds
_BLOCK = struct.Struct(">BQBhB")  # A3, size in 8 bytes, track, relative time, flags
_HEAD = struct.Struct(">4sQBBI")  # Cluster, size in 8 bytes, BF 84 CRC
_WIDE = 1 << 56  # marks a size of 8 bytes
HEAD_SIZE = _HEAD.size + _TIMESTAMP.size + _BLOCK.size
"""Bytes of a cluster before its payload."""
_PIECE = 1 << 20
LARGEST = 1 << 30
"""No packet is larger; what says so is not one of ours."""


class Sink(io.RawIOBase):
    """A file in memory that cannot be sought in: FFmpeg then leaves all sizes open."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()

    def write(self, b: Any) -> int:
        """Append."""
        self.data += b
        return len(b)

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is not."""
        return False


def header_container() -> tuple[OutputContainer, Sink]:
    """A container to add one stream to; after `start_encoding` the header is in the sink."""
    import av

    sink = Sink()
    return av.open(sink, "w", format="matroska", options={"live": "1", "flush_packets": "1"}), sink


def cluster_head(at_ms: int, payload: bytes, *, key: bool) -> bytes:
    """What stands before `payload` in its cluster: track 1, `at_ms` milliseconds after the start."""
    inner = _TIMESTAMP.pack(0xE7, 0x88, at_ms) + _BLOCK.pack(
        0xA3, _WIDE | (4 + len(payload)), 0x81, 0, 0x80 if key else 0
    )
    crc = zlib.crc32(payload, zlib.crc32(inner))
    size = 6 + len(inner) + len(payload)
    return _HEAD.pack(CLUSTER_ID, _WIDE | size, 0xBF, 0x84, int.from_bytes(crc.to_bytes(4, "little"), "big")) + inner


class Block(NamedTuple):
    """A packet found in a segment."""

    start: int
    """Where its cluster begins."""
    offset: int
    """Where its payload begins."""
    size: int
    at_ms: int
    key: bool
    crc: int
    """CRC32 of the payload."""

    @property
    def end(self) -> int:
        """Where its cluster ends."""
        return self.offset + self.size


def header_size(data: Any) -> int | None:
    """Where the first cluster begins, or would; None if this is no segment. `data` is bytes, or a `Scan`."""
    at, top = 0, True
    seen = False
    while at < len(data):
        if data[at : at + 4] == CLUSTER_ID:
            return at if seen else None
        element = _element(data, at, top=top)
        if element is None:
            return None
        ident, body, size = element
        if top and at == 0 and ident != _EBML_ID:
            return None
        if ident == _SEGMENT_ID and top:
            top, at = False, body
            continue
        if size == _UNKNOWN or body + size > len(data):
            return None
        if not top and ident == b"\x16\x54\xae\x6b":  # Tracks
            seen = True
        at = body + size
    return at if seen else None


def _element(data: Any, at: int, *, top: bool) -> tuple[bytes, int, int] | None:
    """(id, where its body begins, size) of the element at `at`."""
    first = data[at]
    width = 9 - first.bit_length() if first else 9
    if width > 4 or at + width >= len(data):
        return None
    ident = bytes(data[at : at + width])
    lead = data[at + width]
    wide = 9 - lead.bit_length() if lead else 9
    body = at + width + wide
    if wide > 8 or body > len(data):
        return None
    size = int.from_bytes(data[at + width : body], "big") & ((1 << (7 * wide)) - 1)
    return ident, body, _UNKNOWN if size == (1 << (7 * wide)) - 1 else size


def block_at(data: Any, at: int) -> Block | None:
    """The packet whose cluster begins at `at`, if all of it is there and its CRC is right."""
    if at + HEAD_SIZE > len(data) or data[at : at + 4] != CLUSTER_ID:
        return None
    head = data[at : at + HEAD_SIZE]
    _, size, crc_id, crc_size, crc = _HEAD.unpack_from(head)
    e7, wide, at_ms = _TIMESTAMP.unpack_from(head, _HEAD.size)
    a3, block_size, track, relative, flags = _BLOCK.unpack_from(head, _HEAD.size + _TIMESTAMP.size)
    payload_size = (block_size ^ _WIDE) - 4
    if (
        (crc_id, crc_size, e7, wide, a3, track, relative) != (0xBF, 0x84, 0xE7, 0x88, 0xA3, 0x81, 0)
        or not 0 <= payload_size <= LARGEST
        or size != _WIDE | (HEAD_SIZE - 12 + payload_size)
        or at_ms >> 63
    ):
        return None
    offset = at + HEAD_SIZE
    if offset + payload_size > len(data):
        return None
    own, whole = 0, zlib.crc32(head[_HEAD.size :])
    for begin in range(offset, offset + payload_size, _PIECE):  # what damage makes a large size costs no memory
        piece = data[begin : min(begin + _PIECE, offset + payload_size)]
        own, whole = zlib.crc32(piece, own), zlib.crc32(piece, whole)
    if whole.to_bytes(4, "little") != crc.to_bytes(4, "big"):
        return None
    return Block(at, offset, payload_size, at_ms, bool(flags & 0x80), own)


def blocks(data: Any) -> Iterator[Block]:
    """All packets of a segment that can be proven, in order; what lies between is passed over."""
    at = header_size(data)
    if at is None:
        return
    while at >= 0 and at < len(data):
        if (block := block_at(data, at)) is not None:
            yield block
            at = block.end
        else:
            at = data.find(CLUSTER_ID, at + 1)


def length_prefixed(packet: bytes) -> bytes:
    """H.264 or HEVC as Matroska holds it: a length of 4 bytes before each NAL unit, not a start code (ISO 14496-15)."""
    if not packet.startswith((b"\0\0\1", b"\0\0\0\1")):
        return packet
    out: list[bytes] = []
    start = packet.find(b"\0\0\1") + 3
    while True:
        after = packet.find(b"\0\0\1", start)
        unit = packet[start : after if after >= 0 else len(packet)]
        if after >= 0:
            unit = unit.rstrip(b"\0")  # the zero of a 4-byte start code; a NAL unit never ends in zero
        if unit:
            out += (len(unit).to_bytes(4, "big"), unit)
        if after < 0:
            return b"".join(out)
        start = after + 3
