"""A segment being written: packets into Matroska, and a record of each into the sidecar beside it.

    <stream>/000012.mkv     only of cameras
    <stream>/000012.idx     its sidecar; of a sensor, the samples themselves

One thread writes. Every append is one system call to each file, so that a kill costs nothing that was written. What did
not fit is cut off again: a full disk leaves two files that are whole.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocks.errors import DiskFull, OnblockError, PermissionRefused, UnknownError
from flows.capture.matroska import HEAD_SIZE, cluster_head
from flows.capture.sidecar import DropRecord, PacketRecord, SampleRecord, encode_header

MS = 1_000_000
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_error(error: OSError, path: Path) -> OnblockError:
    """What an error of the disk that recordings are written to means."""
    said = os.strerror(error.errno) if error.errno else str(error)
    kind = DiskFull if error.errno in FULL else UnknownError
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        kind = PermissionRefused
    remedy = {
        DiskFull: "make room on the device's disk; what was recorded until then is sealed",
        UnknownError: "check the disk of the device",
        PermissionRefused: "give the account that records the right to write there",
    }[kind]
    found = kind(f"cannot be written: {said}", path=str(path), remedy=remedy)
    found.__cause__ = error
    return found


def sync_folder(folder: Path) -> None:
    """The names in a folder are on the disk. As in `blocks/storage/posix.py`, which would bring all storages, and Prefect,
    into the memory of a device that records. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # file systems that need none
            raise
    finally:
        os.close(fd)


class _Log:
    """A file that is only appended to, whole pieces at a time."""

    def __init__(self, path: Path, start: bytes):
        self.path, self.size = path, 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self.append(start)
        except BaseException:
            os.close(self._fd)
            os.unlink(path)
            raise

    def append(self, *pieces: bytes) -> None:
        """All of it or nothing. Raises OSError."""
        whole = sum(map(len, pieces))
        try:
            # of one piece: writev costs a sensor half as much again
            done = os.write(self._fd, pieces[0]) if len(pieces) == 1 else os.writev(self._fd, pieces)
            if done < whole:  # a disk that fills up, or a signal
                rest = b"".join(pieces)[done:]
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
        except OSError:
            self.cut(self.size)
            raise
        self.size += whole

    def cut(self, size: int) -> None:
        """Take back what was appended after `size`."""
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, size, os.SEEK_SET)
        self.size = size

    def duplicate(self) -> int:
        """Another descriptor of the file, which is valid after `close` too."""
        return os.dup(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class SegmentWriter:
    """One segment of one stream. Raises OSError; what was there before is then still whole."""

    def __init__(self, folder: Path, number: int, header: dict[str, Any], video: bytes | None):
        self.number, self.stem = number, f"{number:06}"
        self.sidecar = _Log(folder / f"{self.stem}.idx", encode_header(header | {"segment": number}))
        try:
            self.video = _Log(folder / f"{self.stem}.mkv", video) if video is not None else None
        except BaseException:
            self.sidecar.close()
            os.unlink(self.sidecar.path)
            raise
        self.count = self.dropped = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None

    def packet(
        self, payload: bytes, *, sequence: int, arrived_ns: int, device_ns: int, pts_ns: int, dts_ns: int, key: bool
    ) -> None:
        """Append a packet and its record."""
        assert self.video is not None
        before = self.video.size
        self.video.append(cluster_head(max(pts_ns, 0) // MS, payload, key=key), payload)
        record = PacketRecord(
            sequence, arrived_ns, device_ns, pts_ns, dts_ns, before + HEAD_SIZE, len(payload), zlib.crc32(payload), key
        )
        try:
            self.sidecar.append(record.encode())
        except OSError:
            self.video.cut(before)
            raise
        self._counted(pts_ns)

    def samples(self, records: Sequence[SampleRecord]) -> None:
        """Append samples: all of them, or none."""
        self.sidecar.append(b"".join(r.encode() for r in records))
        for record in records:
            self._counted(record.arrived_ns)

    def sample(self, at_ns: int, encoded: bytes) -> None:
        """Append a sample that arrived after all others."""
        self.sidecar.append(encoded)
        self.count += 1
        self.last_ns = at_ns
        if self.first_ns is None:
            self.first_ns = at_ns

    def drop(self, record: DropRecord) -> None:
        """Write down that something is not there."""
        self.sidecar.append(record.encode())
        self.dropped += record.count

    def _counted(self, at_ns: int) -> None:
        self.count += 1
        self.first_ns = at_ns if self.first_ns is None else min(self.first_ns, at_ns)
        self.last_ns = at_ns if self.last_ns is None else max(self.last_ns, at_ns)

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return self.sidecar.size + (self.video.size if self.video else 0)

    def duplicates(self) -> list[int]:
        """Descriptors to sync while it is written to, or closed; whoever asks closes them. Raises OSError."""
        found = [self.sidecar.duplicate()]
        if self.video is not None:
            try:
                found.insert(0, self.video.duplicate())
            except OSError:
                os.close(found[0])
                raise
        return found

    def close(self) -> None:
        """No more is appended. Raises OSError: what was appended may not be on the disk then."""
        try:
            if self.video is not None:
                self.video.close()
        finally:
            self.sidecar.close()
