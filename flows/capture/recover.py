"""What a kill or a power cut left: every packet that can be proven is kept, the rest is put aside, and the manifest made.

A packet is good if its cluster has the right CRC-32, and its record in the sidecar, if there is one, agrees. What is cut
off or passed over goes to `quarantine/`. May be repeated, and killed at any point: what is in order is not touched again.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from blocks.errors import Conflict, Corrupt, NotFound, OnblockError
from flows.capture import accounts, matroska, merge, sidecar
from flows.capture.locks import HELD, LOCK, locked
from flows.capture.manifest import NAME, Manifest, SegmentEntry, StreamEntry, load, numbers, sha256_of
from flows.capture.scan import Scan, scanned
from flows.capture.segment import MS, disk_error, sync_folder
from flows.capture.sidecar import NONE, DropRecord, PacketRecord, Reason, Record, SampleRecord, Sidecar

log = logging.getLogger("onblock.capture")

QUARANTINE = "quarantine"


def recover_all(root: Path, *, check: Callable[[], None] = lambda: None) -> list[Manifest | OnblockError]:
    """Put in order and merge whatever in `root` needs it and is not at work; what became of each. For the start of the
    agent, and as a flow. A recording that cannot be helped does not stop the others."""
    done: list[Manifest | OnblockError] = []
    for folder in sorted(p for p in root.glob("*/") if (p / LOCK).exists()):
        try:
            if recover(folder) is None:
                manifest = load(folder)
                if not merge.unmerged(manifest) and not merge.undeleted(folder, manifest):
                    continue
            done.append(finished(folder, check=check))
        except Conflict:
            continue  # it is being recorded
        except (OnblockError, OSError) as error:
            told = disk_error(error, folder) if isinstance(error, OSError) else error
            log.error("%s", told)
            done.append(told)
    return done


def finished(folder: Path, *, check: Callable[[], None] = lambda: None) -> Manifest:
    """`merge.finish`, for a recording that was not sealed, or was damaged since, as well. Raises as that does."""
    try:
        return merge.finish(folder, check=check)
    except Corrupt as error:
        log.error("%s; it is put in order first", error)
        recover(folder, damaged=True)
        return merge.finish(folder, check=check)


def recover(folder: Path, *, damaged: bool = False) -> Manifest | None:
    """Seal a recording that nobody sealed; None if there is nothing to do. `damaged`: hash what was sealed, and repair
    what is not as it was. Raises Conflict if somebody is at work in it."""
    with locked(folder / LOCK, HELD):
        try:
            try:
                manifest = load(folder)
            except (NotFound, Corrupt) as error:  # killed before its first manifest, or a disk that lost it
                manifest = _rebuilt(folder, str(error))
            if manifest.state != "recording" and not (damaged and merge.unmerged(manifest)):
                return None
            return _recovered(folder, manifest, deep=damaged)
        except OSError as error:
            raise disk_error(error, folder) from error


def _rebuilt(folder: Path, why: str) -> Manifest:
    """A manifest for a recording that has none. Raises Corrupt where it is merged already: its segments are gone then, and
    what could be made of the rest would only stand in the way of the file."""
    if (folder / f"{folder.name}.mkv").exists():
        raise Corrupt(
            f"is merged, but its manifest is gone: {why}", path=str(folder),
            remedy=f"it is left as it is; {folder.name}.mkv can be played and copied",
        )  # fmt: skip
    if (folder / NAME).exists():
        _aside(folder, folder / NAME)
    streams: dict[str, StreamEntry] = {}
    for lane in sorted(p for p in folder.glob("*/") if p.name != QUARANTINE):
        streams[lane.name] = StreamEntry(kind=_kind_of(lane))
    device = folder.name.partition("-")[2] or folder.name
    return Manifest(
        id=folder.name, device=device, start_monotonic_ns=0, start_wall_ns=0, streams=streams,
        problems=[f"the manifest was made anew by the recovery: {why}"],
    )  # fmt: skip


def _kind_of(lane: Path) -> Literal["video", "sensor"]:
    """By what its sidecars say; its video files may be gone, and what lies there may be none."""
    for path in sorted(lane.glob("*.idx")):
        side = sidecar.salvage(scanned(path))
        header = side.header or {}
        if "codec" in header or any(isinstance(r, PacketRecord) for r in side.records):
            return "video"
        if "encoding" in header or any(isinstance(r, SampleRecord) for r in side.records):
            return "sensor"
    return "video" if next(lane.glob("*.mkv"), None) is not None else "sensor"


def _recovered(folder: Path, manifest: Manifest, *, deep: bool) -> Manifest:
    last = 0
    for name, entry in manifest.streams.items():
        known = {s.number: s for s in entry.segments}
        lane = folder / name
        segments = []
        for number in sorted(numbers(lane) | set(known)):
            segment = known.get(number)
            if segment is None or not _as_sealed(folder, segment, deep=deep):
                segment = _repair(folder, name, number, video=entry.kind == "video")
            if segment is not None:
                segments.append(segment)
        entry.segments = segments
        _balance(entry, accounts.read(lane), folder)
        last = max([last, *(s.last_ns or 0 for s in segments)])
    manifest.quarantined = sorted(str(p.relative_to(folder)) for p in (folder / QUARANTINE).glob("*"))
    manifest.state = "recovered" if any(e.written for e in manifest.streams.values()) else "failed"
    manifest.stopped_because = manifest.stopped_because or "killed, or the power was cut"
    manifest.ended_ns = last
    for name in (".reserve", f".{manifest.id}.mkv.part"):
        with suppress(FileNotFoundError):
            (folder / name).unlink()
    manifest.write(folder)
    log.warning("recording %s was not sealed, or was damaged: it is %s", manifest.id, manifest.state)
    return manifest


def _as_sealed(folder: Path, segment: SegmentEntry, *, deep: bool) -> bool:
    """Whether a segment of the manifest is there as it was sealed (on the disk, before the manifest said so)."""
    try:
        if sum((folder / path).stat().st_size for path in segment.sha256) != segment.bytes:
            return False
        return not deep or all(sha256_of(folder / path) == digest for path, digest in segment.sha256.items())
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EIO):
            raise
        return False  # not there, or a bad sector: what can be read is kept


def _balance(entry: StreamEntry, kept: accounts.Balance | None, folder: Path) -> None:
    """The accounts, with what the recovery found: what was captured and is nowhere was in flight, and is lost."""
    entry.written = sum(s.count for s in entry.segments)
    seen = entry.written
    for segment in entry.segments:
        with suppress(OnblockError, OSError):
            records = merge.read_sidecar(folder, segment).records
            seen = max([seen, *(r.sequence + (r.count if isinstance(r, DropRecord) else 1) for r in records)])
    dropped = kept.dropped if kept is not None else entry.dropped
    captured = max(kept.captured if kept is not None else entry.captured, seen)
    # the map may be a moment older or newer than the files
    entry.captured, entry.dropped = max(captured, entry.written + sum(dropped.values())), dropped
    entry.in_flight = entry.captured - entry.written - sum(dropped.values())
    entry.state = "killed"


# -- one segment ----------------------------------------------------------------------------------------------------


def _repair(folder: Path, name: str, number: int, *, video: bool) -> SegmentEntry | None:
    """Keep what is good of a segment; None if nothing is."""
    stem = f"{number:06}"
    side_path, video_path = folder / name / f"{stem}.idx", folder / name / f"{stem}.mkv"
    side_path.with_suffix(".idx.part").unlink(missing_ok=True)
    data = scanned(side_path) if side_path.exists() else b""
    side = sidecar.salvage(data)
    if not video:
        _aside(folder, video_path)  # a sensor has none
        records: list[Record] = [r for r in side.records if not isinstance(r, PacketRecord)]
        if side.header is None or not any(isinstance(r, SampleRecord) for r in records):
            _aside(folder, side_path)
            return None
        repaired = _rewrite_sidecar(folder, side_path, data, side, side.header, records)
        return _entry(folder, name, number, None, side_path, records, repaired)
    if not video_path.exists():
        _aside(folder, side_path)
        return None
    found, cut = _repair_video(folder, video_path, side)
    if found is None:
        _aside(folder, video_path)
        _aside(folder, side_path)
        return None
    header = side.header or _header_of(video_path, name, number)
    records, lost = _matched(side, found)
    repaired = _rewrite_sidecar(folder, side_path, data, side, header, records)
    told = "; ".join(filter(None, (cut, repaired, f"{lost} packets announced and not there" if lost else "")))
    return _entry(folder, name, number, video_path, side_path, records, told or None)


def _repair_video(folder: Path, path: Path, side: Sidecar) -> tuple[list[matroska.Block] | None, str]:
    """Cut the file at what is no packet, or make it anew without; its packets then, and what was done."""
    announced = {r.offset: (r.size, r.crc) for r in side.records if isinstance(r, PacketRecord)}
    known = set(announced.values())
    with Scan(path) as data:
        size = len(data)
        head = matroska.header_size(data)
        if head is None:
            return None, ""
        found = [b for b in matroska.blocks(data) if (p := (b.size, b.crc)) in known or announced.get(b.offset, p) == p]
        if not found:
            return None, ""
        whole = [b.start for b in found] == [head, *(b.end for b in found[:-1])]
        end = found[-1].end
        if whole and end == size:
            return found, ""
        if whole:
            rest = data[end:size]
        else:
            return _without_holes(folder, path, data, head, found)
    if rest.strip(b"\0"):
        _keep(folder, f"{path.parent.name}-{path.stem}.mkv.tail", rest)
    with path.open("rb+") as file:
        file.truncate(end)
        os.fsync(file.fileno())
    return found, f"{size - end} bytes at its end were no whole packet"


def _without_holes(
    folder: Path, path: Path, data: Scan, head: int, found: list[matroska.Block]
) -> tuple[list[matroska.Block], str]:
    """The file anew, with the good packets only; the old one goes to quarantine."""
    part = path.with_suffix(".mkv.part")
    moved, at = [], head
    with part.open("wb") as file:
        file.write(data[:head])
        for block in found:
            file.write(data[block.start : block.end])
            length = block.end - block.start
            moved.append(block._replace(start=at, offset=at + block.offset - block.start))
            at += length
        file.flush()
        os.fsync(file.fileno())
    lost = len(data) - at
    _aside(folder, path)
    part.rename(path)
    sync_folder(path.parent)
    return moved, f"{lost} bytes between its packets were none"


def _matched(side: Sidecar, found: list[matroska.Block]) -> tuple[list[Record], int]:
    """The records of the packets that are there, with those that had none made up from the packet; and how many are not.

    By content, not by place: a recovery that was killed itself may have moved the packets already.
    """
    places: dict[tuple[int, int], deque[int]] = defaultdict(deque)
    for index, record in enumerate(side.records):
        if isinstance(record, PacketRecord):
            places[record.size, record.crc].append(index)
    records: list[Record] = []
    next_index, sequence, lost = 0, -1, 0

    def told_before(index: int) -> int:
        """Drops that were written before the record at `index`; packets there that are not in the file are lost."""
        missing = 0
        for record in side.records[next_index:index]:
            if isinstance(record, PacketRecord):
                missing += 1
                at = record.pts_ns
                records.append(DropRecord(record.sequence, 1, at, at, Reason.KILLED))
            else:
                records.append(record)
        return missing

    # of B-frames: in their order, and none after the time it is shown at
    earliest = list(itertools.accumulate(reversed([b.at_ms * MS for b in found]), min))[::-1]
    for n, block in enumerate(found):
        candidates = places.get((block.size, block.crc), deque())
        while candidates and candidates[0] < next_index:
            candidates.popleft()
        if candidates:
            index = candidates.popleft()
            lost += told_before(index)
            record = side.records[index]
            assert isinstance(record, PacketRecord)
            records.append(replace(record, offset=block.offset))
            next_index, sequence = index + 1, record.sequence
        else:
            at, sequence = block.at_ms * MS, sequence + 1
            dts = min(at, earliest[n])
            records.append(
                PacketRecord(sequence, at, NONE, at, dts, block.offset, block.size, block.crc, block.key, rebuilt=True)
            )
    lost += told_before(len(side.records))
    return records, lost


def _header_of(path: Path, name: str, number: int) -> dict[str, Any]:
    """What the sidecar said of the stream, from the segment itself."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            context: Any = container.streams.video[0].codec_context
            info = {"codec": context.codec.canonical_name, "width": context.width, "height": context.height}
            return info | {"private": bytes(context.extradata or b"").hex(), "stream": name, "segment": number}
    except (FFmpegError, IndexError):
        return {"stream": name, "segment": number}


def _rewrite_sidecar(
    folder: Path, path: Path, data: bytes, side: Sidecar, header: dict[str, Any], records: list[Record]
) -> str:
    """Replace the sidecar unless it says just this already; what was done."""
    if side.whole and records == side.records:
        return ""
    if side.header is not None and records == side.records and data[side.good :].strip(b"\0") == b"":
        with path.open("rb+") as file:
            file.truncate(side.good)
            os.fsync(file.fileno())
        return "zeros at the end of the sidecar were cut"
    if not side.whole and data:
        _keep(folder, f"{path.parent.name}-{path.name}", data)
    part = path.with_suffix(".idx.part")
    with part.open("wb") as file:
        file.write(sidecar.encode_header(header))
        file.writelines(r.encode() for r in records)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    sync_folder(path.parent)
    return "the sidecar was made anew"


def _entry(
    folder: Path, name: str, number: int, video: Path | None, side: Path, records: list[Record], repaired: str | None
) -> SegmentEntry:
    paths = [p for p in (video, side) if p is not None]
    times = [
        r.pts_ns if isinstance(r, PacketRecord) else r.arrived_ns for r in records if not isinstance(r, DropRecord)
    ]
    return SegmentEntry(
        number=number, video=f"{name}/{video.name}" if video is not None else None, sidecar=f"{name}/{side.name}",
        bytes=sum(p.stat().st_size for p in paths), video_bytes=video.stat().st_size if video is not None else 0,
        sha256={str(p.relative_to(folder)): sha256_of(p) for p in paths}, count=len(times),
        dropped=sum(r.count for r in records if isinstance(r, DropRecord)),
        first_ns=min(times, default=None), last_ns=max(times, default=None), repaired=repaired or None,
    )  # fmt: skip


# -- quarantine -----------------------------------------------------------------------------------------------------


def _place(folder: Path, name: str) -> Path:
    (folder / QUARANTINE).mkdir(exist_ok=True)
    to, n = folder / QUARANTINE / name, 1
    while to.exists():
        n += 1
        to = folder / QUARANTINE / f"{name}~{n}"
    return to


def _aside(folder: Path, path: Path) -> None:
    """Move a file that cannot be read to quarantine."""
    if path.exists():
        lane = f"{path.parent.name}-" if path.parent != folder else ""
        shutil.move(path, _place(folder, lane + path.name))


def _keep(folder: Path, name: str, data: bytes) -> None:
    """Put bytes aside that are about to be cut off."""
    to = _place(folder, name)
    with to.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
