"""One file of a recording that is sealed: all streams and sensors as tracks of one Matroska file, gaps kept.

Packets are copied as they are, each to the time it has in its sidecar: one read and one write per byte, and each packet is
held against its CRC32 on the way. The file is then read back, and only if every packet is there, at its time, is it named
in the manifest, and are the segments deleted that had no damaged packet. Without it the segments can be used as they are.
"""

from __future__ import annotations

import errno
import heapq
import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from blocks.errors import Corrupt, DiskFull, HashMismatch
from flows.capture import guards
from flows.capture.locks import HELD, LOCK, locked
from flows.capture.manifest import FinalEntry, Manifest, SegmentEntry, load, sha256_of, unlisted
from flows.capture.segment import disk_error, sync_folder
from flows.capture.sidecar import NONE, PacketRecord, SampleRecord, Sidecar, parse

log = logging.getLogger("onblock.capture")

MS = 1_000_000
BASE = Fraction(1, 1000)
ASS = (
    b"[Script Info]\r\nScriptType: v4.00+\r\n\r\n[V4+ Styles]\r\nFormat: Name, Fontname, Fontsize\r\n"
    b"Style: Default,Arial,16\r\n\r\n[Events]\r\n"
    b"Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\r\n"
)
"""Sensors are subtitle tracks: Matroska has no track for data that FFmpeg would write."""
SPARE = 4 << 20
"""Bytes that a merged file may need beyond its segments."""


@dataclass
class _Sum:
    """Count and checksum of a track: of every packet its time and its content."""

    name: str
    count: int = 0
    crc: int = 0

    def add(self, at_ms: int, payload: Any) -> None:
        self.count += 1
        self.crc = zlib.crc32(payload, zlib.crc32(struct.pack("<q", at_ms), self.crc))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A packet of a track."""

    track: str
    pts_ns: int
    dts_ns: int
    payload: bytes
    key: bool
    duration_ms: int = 0


def finish(folder: Path, *, check: Callable[[], None] = lambda: None) -> Manifest:
    """Merge a recording if that is still to be done; its manifest. May be repeated, also after a kill.

    `check` is called now and then, and may raise. Raises Conflict (it is still being recorded, or merged), NotFound,
    Corrupt, DiskFull, HashMismatch: the segments are then all there, and it may be tried again.
    """
    with locked(folder / LOCK, HELD):
        manifest = load(folder)
        missing = unlisted(folder, manifest) if manifest.final is None else []
        if manifest.state == "recording" or missing:
            raise Corrupt(
                f"is not sealed: {', '.join(missing) or 'its end'} is not in its manifest", path=str(folder),
                remedy="`onblock recording recover` puts it in order",
            )  # fmt: skip
        if manifest.state == "failed" or not manifest.spec.get("merge", True):
            return manifest
        try:
            if manifest.final is None:
                bad: dict[str, list[int]] = {}
                manifest.final = _merged(folder, manifest, bad, check)
                _note_merged(manifest, bad)
                manifest.write(folder)
            for path in undeleted(folder, manifest):  # also those that a kill left here
                path.unlink()
        except OSError as error:
            raise disk_error(error, folder) from error
        return manifest


def _note_merged(manifest: Manifest, bad: dict[str, list[int]]) -> None:
    """Which segments may go: a damaged packet is in the segment only, and may yet be of use there."""
    for name, entry in manifest.streams.items():
        for segment in entry.segments:
            lost = bad.get(segment.video or "", [])
            segment.merged, segment.damaged = segment.video is not None and not lost, len(lost)
        if damaged := sum(s.damaged for s in entry.segments):
            where = ", ".join(f"{s.number:06}.mkv" for s in entry.segments if s.damaged)
            text = f"{name}: {damaged} of {entry.written} packets are damaged, and not in the file; {where} is kept"
            manifest.problems += [text] if text not in manifest.problems else []
            log.error("%s: %s", manifest.id, text)


# -- reading --------------------------------------------------------------------------------------------------------


def read_sidecar(folder: Path, segment: SegmentEntry) -> Sidecar:
    """The sidecar of a segment. Raises Corrupt, which a recovery puts in order, or OSError."""
    sidecar = parse((folder / segment.sidecar).read_bytes())
    if not sidecar.whole:
        raise Corrupt(
            f"its sidecar is whole for {sidecar.good} of {sidecar.size} bytes only", path=str(folder / segment.sidecar),
            remedy="`onblock recording recover` keeps what is good of it",
        )  # fmt: skip
    return sidecar


class _Order:
    """Puts the packets of a camera on tracks. On one of them, times of decoding may not go back, and none may be after
    its picture's own: FFmpeg refuses such a file. They are not stored, so they may be moved; where that does not help (a
    device that counts anew, a sidecar that was lost), the packet goes to a further track."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], int] = {}
        self._now: dict[str, int] = {}

    def place(self, key: str, record: PacketRecord) -> tuple[str, int]:
        """(track, time of decoding in ms) of the next packet that is to be decoded as `key`."""
        pts = record.pts_ns // MS
        dts, now = min(record.dts_ns // MS, pts), self._now.get(key, 0)
        last = self._last.get((key, now), dts)
        if dts < last <= pts:
            dts = last
        elif dts < last:
            fit = [(at, n) for (k, n), at in self._last.items() if k == key and at <= pts]
            at, now = max(fit) if fit else (dts, sum(k == key for k, _ in self._last))
            dts = max(dts, at)
        self._last[key, now], self._now[key] = dts, now
        return f"{key}\0{now}", dts


def _video(folder: Path, name: str, segments: list[SegmentEntry], bad: dict[str, list[int]]) -> Iterator[_Piece]:
    """The packets of a camera, in decoding order; what does not have its CRC is left out, and told in `bad`, by file."""
    order = _Order()
    for segment in segments:
        assert segment.video is not None
        sidecar = read_sidecar(folder, segment)
        assert sidecar.header is not None
        track = track_key(name, sidecar.header)
        fd = os.open(folder / segment.video, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            for record in sidecar.records:
                if not isinstance(record, PacketRecord):
                    continue
                place, dts_ms = order.place(track, record)
                try:
                    payload = os.pread(fd, record.size, record.offset)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    payload = b""  # a bad sector
                if len(payload) != record.size or zlib.crc32(payload) != record.crc:
                    bad.setdefault(segment.video, []).append(record.sequence)
                    continue
                yield _Piece(place, record.pts_ns, dts_ms * MS, payload, record.key)
        finally:
            os.close(fd)


def track_key(name: str, header: dict[str, Any]) -> str:
    """Packets with one key can be decoded as one track."""
    return "\0".join([name, *(str(header.get(key)) for key in ("codec", "width", "height", "private"))])


def _samples(folder: Path, name: str, segments: list[SegmentEntry]) -> Iterator[_Piece]:
    """The samples of a sensor as subtitles that players do not show (in braces): JSON with the time to the nanosecond."""
    number = 0
    for segment in segments:
        sidecar = read_sidecar(folder, segment)
        header = sidecar.header or {}
        for record in sidecar.records:
            if isinstance(record, SampleRecord):
                text = f"{number},0,Default,,0,0,0,,{sample_json(record, header)}"
                yield _Piece(name, record.arrived_ns, record.arrived_ns, text.encode(), True, 1)
                number += 1


def sample_json(record: SampleRecord, header: dict[str, Any]) -> str:
    """`{"n", "t_ns", "device_ns", field: value ...}` of a sample; `"text"` where it is a line."""
    told: dict[str, Any] = {"n": record.sequence, "t_ns": record.arrived_ns}
    if record.device_ns != NONE:
        told["device_ns"] = record.device_ns
    fields = header.get("fields")
    if header.get("encoding") == "f8" and isinstance(fields, list) and len(record.payload) == 8 * len(fields):
        told.update(zip(fields, struct.unpack(f"<{len(fields)}d", record.payload), strict=True))
    else:
        told["text"] = record.payload.decode("utf-8", "backslashreplace")
    return json.dumps(told, separators=(",", ":"))


# -- writing --------------------------------------------------------------------------------------------------------


def _merged(folder: Path, manifest: Manifest, bad: dict[str, list[int]], check: Callable[[], None]) -> FinalEntry:
    """Write the file, read it back, give it its name. A file of that name is kept: it is taken if it holds the same (a
    kill came between), else Corrupt."""
    name = f"{manifest.id}.mkv"
    part = folder / f".{name}.part"
    need = sum(s.bytes for entry in manifest.streams.values() for s in entry.segments) + SPARE
    if (free := guards.free_bytes(folder)) < need:
        raise DiskFull(
            f"merging needs {need >> 20} MiB, and the disk has {free >> 20} MiB left", path=str(folder),
            remedy="make room, then run `onblock recording recover`; the segments are whole, and can be used as they are",
        )  # fmt: skip
    try:
        sums = _write(folder, manifest, part, bad, check)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        there = (folder / name).exists()
        if there:
            try:
                _read_back(folder / name, sums, check)
            except HashMismatch as error:
                raise Corrupt(
                    f"a file of that name is there, and holds something else: {error.what}", path=str(folder / name),
                    remedy="it may be the only copy: look at it, and move it away; then run `onblock recording recover`",
                ) from error  # fmt: skip
            part.unlink()
        else:
            _read_back(part, sums, check)
        path = folder / name if there else part
        entry = FinalEntry(
            file=name, bytes=path.stat().st_size, sha256=sha256_of(path), packets={s.name: s.count for s in sums}
        )
        if not there:
            part.rename(folder / name)
        sync_folder(folder)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    return entry


def _write(
    folder: Path, manifest: Manifest, part: Path, bad: dict[str, list[int]], check: Callable[[], None]
) -> list[_Sum]:
    """All packets of all lanes, by time, into one file; what was written of each track."""
    import av
    from av.error import FFmpegError
    from av.packet import Packet

    lanes: list[Iterator[_Piece]] = []
    at = ""
    try:
        # interleaved here already: FFmpeg need not wait for a track that has a gap
        with av.open(str(part), "w", format="matroska", options={"max_interleave_delta": "1"}) as out:
            out.metadata.update({"title": manifest.id, "onblock_device": manifest.device})
            tracks: dict[str, Any] = {}
            sums: dict[str, _Sum] = {}
            for name, entry in manifest.streams.items():
                if entry.kind == "sensor":
                    tracks[name] = stream = out.add_stream("ass")
                    stream.codec_context.subtitle_header = ASS  # pyright: ignore[reportAttributeAccessIssue]
                    stream.metadata["title"], sums[name] = name, _Sum(name)
                    lanes.append(_samples(folder, name, entry.segments))
                    continue
                order = _Order()
                for segment in entry.segments:
                    side = read_sidecar(folder, segment)
                    key = track_key(name, side.header or {})
                    places = [order.place(key, r)[0] for r in side.records if isinstance(r, PacketRecord)]
                    for place in dict.fromkeys(places):
                        if place in tracks:
                            continue
                        again = sum(k.partition("\0")[0] == name for k in sums)
                        title = at = name if not again else f"{name}~{again + 1}"
                        with av.open(str(folder / str(segment.video))) as like:
                            tracks[place] = stream = out.add_stream_from_template(like.streams.video[0], opaque=True)
                        stream.metadata["title"], sums[place] = title, _Sum(title)
                lanes.append(_video(folder, name, entry.segments, bad))
            if not tracks:
                raise Corrupt("holds no segment", path=str(folder), remedy="")
            out.start_encoding()
            for count, piece in enumerate(heapq.merge(*lanes, key=lambda p: p.dts_ns)):
                if count % 64 == 0:
                    check()
                packet = Packet(piece.payload)
                packet.stream, packet.time_base, packet.is_keyframe = tracks[piece.track], BASE, piece.key
                packet.pts, packet.dts = piece.pts_ns // MS, piece.dts_ns // MS
                if piece.duration_ms:
                    packet.duration = piece.duration_ms
                at = f"{sums[piece.track].name} at {piece.pts_ns / 1e9:.3f} s"
                out.mux_one(packet)
                sums[piece.track].add(piece.pts_ns // MS, piece.payload)
    except FFmpegError as error:
        if error.errno == errno.EINVAL:  # not of the disk
            raise Corrupt(f"cannot be merged: FFmpeg does not take track {at}", path=str(folder)) from error
        if error.errno is not None and 0 < error.errno < 200:
            raise OSError(error.errno, os.strerror(error.errno), str(part)) from error
        raise Corrupt(f"cannot be merged: {error}", path=str(folder)) from error
    return list(sums.values())


def _read_back(part: Path, wanted: list[_Sum], check: Callable[[], None]) -> None:
    """Every packet is there, at its time. Raises HashMismatch."""
    import av
    from av.error import FFmpegError

    found = [_Sum(s.name) for s in wanted]
    try:
        with av.open(str(part)) as container:
            for count, packet in enumerate(container.demux()):
                if count % 64 == 0:
                    check()
                if packet.size and packet.pts is not None:
                    found[packet.stream.index].add(packet.pts, packet)
    except (FFmpegError, IndexError) as error:
        raise HashMismatch(f"cannot be read back: {error}", path=str(part), remedy="run the merge again") from error
    for was, now in zip(wanted, found, strict=True):
        if was != now:
            raise HashMismatch(
                f"track {was.name} holds {now.count} packets, and should hold {was.count}"
                + ("" if was.count != now.count else " other ones"),
                path=str(part), remedy="run the merge again; if it comes again, test the disk",
            )  # fmt: skip


def undeleted(folder: Path, manifest: Manifest) -> list[Path]:
    """The videos that are to go, because their packets are proven to be in the file, and that is there. Sidecars stay:
    they hold the times to the nanosecond."""
    final = manifest.final
    if final is None or manifest.spec.get("keep_segments"):
        return []
    try:
        if (folder / final.file).stat().st_size != final.bytes:
            return []
    except FileNotFoundError:
        return []
    segments = [s for entry in manifest.streams.values() for s in entry.segments if s.merged and s.video is not None]
    return [path for s in segments if (path := folder / str(s.video)).exists()]


def unmerged(manifest: Manifest) -> bool:
    """Whether a recording is sealed, and is still to be merged."""
    return manifest.state in ("sealed", "recovered") and manifest.final is None and manifest.spec.get("merge", True)
