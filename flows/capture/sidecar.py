"""The sidecar of a segment: one record per packet, sample or run of drops, appended as it happens.

    "onblock-sidecar-1\\n"
    record: kind u8, flags u8, length of body u16, body, CRC32 of all before it u32        little-endian
        0 HEADER   JSON: what the stream is
        1 PACKET   sequence u64, arrived ns i64, device ns i64, pts ns i64, dts ns i64, offset u64, size u32, CRC32 u32
        2 DROP     first sequence u64, count u64, first ns i64, last ns i64, reason u8
        3 SAMPLE   sequence u64, arrived ns i64, device ns i64, then the sample

Times are nanoseconds after the start of the recording on CLOCK_MONOTONIC; `device` times are as the device counts, NONE
where it does not. Offset, size and CRC are those of the payload in the segment. Reading stops at the first record that
is not whole: what a kill or a power cut left behind it proves nothing.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

MAGIC = b"onblock-sidecar-1\n"
NONE = -(1 << 63)
KEY, REBUILT = 1, 2
"""Flags: a player can begin here; the record was made by a recovery, from the packet alone."""
BODY_MAX = 0xFFFF

_FRAME = struct.Struct("<BBH")
_PACKET = struct.Struct("<QqqqqQII")
_DROP = struct.Struct("<QQqqB")
_SAMPLE = struct.Struct("<Qqq")
_CRC = struct.Struct("<I")
_SAMPLE_FRAME = struct.Struct("<BBHQqq")
SAMPLE_MAX = BODY_MAX - _SAMPLE.size


class Reason(IntEnum):
    """Why something that a device gave is not in the recording."""

    ENCODER_SLOW = 1
    """The queue before the encoder was full."""
    DISK_SLOW = 2
    """The queue before the disk was full."""
    BROKEN = 3
    """The device or the line gave something that cannot be decoded."""
    NO_KEYFRAME = 4
    """It needs an earlier packet that is not there."""
    ENCODER_FAILED = 5
    DISK_FULL = 6
    WRITE_FAILED = 7
    STOPPED = 8
    """It was still on its way when the recording had to end."""
    KILLED = 9
    """It was announced, and a kill or power cut came before it was whole."""


@dataclass(frozen=True, slots=True)
class PacketRecord:
    """A packet in the segment."""

    sequence: int
    arrived_ns: int
    device_ns: int
    pts_ns: int
    dts_ns: int
    offset: int
    size: int
    crc: int
    key: bool = False
    rebuilt: bool = False
    KIND: ClassVar[int] = 1

    def encode(self) -> bytes:
        """As it stands in the file."""
        body = _PACKET.pack(
            self.sequence, self.arrived_ns, self.device_ns, self.pts_ns, self.dts_ns, self.offset, self.size, self.crc
        )
        return _framed(self.KIND, KEY * self.key | REBUILT * self.rebuilt, body)


@dataclass(frozen=True, slots=True)
class DropRecord:
    """A run of packets, frames or samples that were lost for one reason."""

    sequence: int
    count: int
    first_ns: int
    last_ns: int
    reason: Reason
    KIND: ClassVar[int] = 2

    def encode(self) -> bytes:
        """As it stands in the file."""
        return _framed(self.KIND, 0, _DROP.pack(self.sequence, self.count, self.first_ns, self.last_ns, self.reason))


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """A sample of a sensor."""

    sequence: int
    arrived_ns: int
    device_ns: int
    payload: bytes
    KIND: ClassVar[int] = 3

    def encode(self) -> bytes:
        """As it stands in the file."""
        return encode_sample(self.sequence, self.arrived_ns, self.device_ns, self.payload)


Record = PacketRecord | DropRecord | SampleRecord


def encode_sample(sequence: int, arrived_ns: int, device_ns: int, payload: bytes) -> bytes:
    """A `SampleRecord` as it stands in the file; in one go, since it is made some hundred times a second."""
    size = _SAMPLE.size + len(payload)
    framed = _SAMPLE_FRAME.pack(SampleRecord.KIND, 0, size, sequence, arrived_ns, device_ns) + payload
    return framed + _CRC.pack(zlib.crc32(framed))


def _framed(kind: int, flags: int, body: bytes) -> bytes:
    framed = _FRAME.pack(kind, flags, len(body)) + body
    return framed + _CRC.pack(zlib.crc32(framed))


def encode_header(header: dict[str, Any]) -> bytes:
    """The beginning of a sidecar."""
    return MAGIC + _framed(0, 0, json.dumps(header, sort_keys=True).encode())


@dataclass(frozen=True)
class Sidecar:
    """What can be proven of a sidecar."""

    header: dict[str, Any] | None
    """None if not even that is whole."""
    records: list[Record]
    good: int
    """Bytes from the beginning that are whole."""
    size: int

    @property
    def whole(self) -> bool:
        """Whether there is nothing else."""
        return self.header is not None and self.good == self.size


def parse(data: bytes) -> Sidecar:
    """Read as far as it is whole. Never raises for what it finds."""
    if not data.startswith(MAGIC):
        return Sidecar(None, [], 0, len(data))
    header, records, good = None, [], 0
    at = len(MAGIC)
    while (frame := _frame(data, at)) is not None:
        kind, flags, body, at = frame
        if header is None:
            header = _header(kind, body)
            if header is None:
                break
        else:
            record = _decode(kind, flags, body)
            if record is None:
                break
            records.append(record)
        good = at
    return Sidecar(header, records, good, len(data))


def salvage(data: bytes) -> Sidecar:
    """Every record that is whole, also behind damage. `good` is where the damage begins."""
    found = parse(data)
    if found.whole:
        return found
    records, at = list(found.records), found.good
    while at < len(data):
        if data[at] not in _KINDS:  # most of what is none, and all zeros
            at = _next_kind(data, at + 1)
            continue
        frame = _frame(data, at)
        record = _decode(*frame[:3]) if frame is not None else None
        if frame is not None and record is not None:
            records.append(record)
            at = frame[3]
        else:
            at += 1
    return Sidecar(found.header, records, found.good, len(data))


_KINDS = bytes((PacketRecord.KIND, DropRecord.KIND, SampleRecord.KIND))
_KIND = re.compile(b"[" + re.escape(_KINDS) + b"]")


def _next_kind(data: bytes, at: int) -> int:
    found = _KIND.search(data, at)
    return found.start() if found else len(data)


def _frame(data: bytes, at: int) -> tuple[int, int, bytes, int] | None:
    """(kind, flags, body, where it ends) of the record at `at`, if it is whole."""
    if at + _FRAME.size + _CRC.size > len(data):
        return None
    kind, flags, length = _FRAME.unpack_from(data, at)
    end = at + _FRAME.size + length
    if flags > KEY | REBUILT or end + _CRC.size > len(data):
        return None
    if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[at:end]):
        return None
    return kind, flags, data[at + _FRAME.size : end], end + _CRC.size


def _header(kind: int, body: bytes) -> dict[str, Any] | None:
    if kind != 0:
        return None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _decode(kind: int, flags: int, body: bytes) -> Record | None:
    if kind == PacketRecord.KIND and len(body) == _PACKET.size:
        return PacketRecord(*_PACKET.unpack(body), key=bool(flags & KEY), rebuilt=bool(flags & REBUILT))
    if kind == DropRecord.KIND and len(body) == _DROP.size:
        *numbers, reason = _DROP.unpack(body)
        return DropRecord(*numbers, reason=Reason(reason)) if reason in set(Reason) else None
    if kind == SampleRecord.KIND and len(body) >= _SAMPLE.size:
        return SampleRecord(*_SAMPLE.unpack_from(body), payload=body[_SAMPLE.size :])
    return None
