"""What became of everything that a stream's device gave: captured = written + dropped (by reason) + in flight.

The numbers live in a small file that is mapped into memory, so that a kill of the process does not take them along:
what was in flight then is what was lost, and `recover.py` says so.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.capture.sidecar import Reason

NAME = "accounts"
_LAYOUT = struct.Struct(f"<8sQQ{len(Reason)}Q")
_MAGIC = b"onb-acc1"
_NUMBER = struct.Struct("<Q")
_CAPTURED, _WRITTEN = 8, 16
"""Where they stand: each is written by itself, for each frame and sample."""


@dataclass(frozen=True)
class Balance:
    """The accounts at one moment."""

    captured: int
    written: int
    dropped: dict[str, int]
    """By reason, without zeros."""

    @property
    def in_flight(self) -> int:
        """Captured, and neither written nor dropped: on its way, or, after a kill, lost."""
        return self.captured - self.written - sum(self.dropped.values())


class Accounts:
    """The accounts of one stream. Any thread may write to them. Raises OSError where there is no room for the file."""

    def __init__(self, folder: Path):
        fd = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, _LAYOUT.size)  # a map without room behind it is a SIGBUS
            self._map = mmap.mmap(fd, _LAYOUT.size)
        finally:
            os.close(fd)
        self._lock = threading.Lock()
        self._captured = self._written = 0
        self._put: Callable[[mmap.mmap, int, int], object] = _NUMBER.pack_into
        self._dropped = [0] * len(Reason)
        self._store()

    def captured(self, count: int = 1) -> None:
        """The device gave so much more."""
        with self._lock:
            self._captured += count
            self._put(self._map, _CAPTURED, self._captured)

    def written(self, count: int = 1) -> None:
        """So much more is in the file."""
        with self._lock:
            self._written += count
            self._put(self._map, _WRITTEN, self._written)

    def dropped(self, reason: Reason, count: int = 1) -> None:
        """So much more will not be in the file."""
        with self._lock:
            self._dropped[reason - 1] += count
            self._store()

    def balance(self) -> Balance:
        """All of it at one moment."""
        with self._lock:
            return _balance(self._captured, self._written, self._dropped)

    def _store(self) -> None:
        _LAYOUT.pack_into(self._map, 0, _MAGIC, self._captured, self._written, *self._dropped)

    def close(self) -> None:
        """Let go of the file; `balance` still answers."""
        with self._lock:
            self._map.flush()
            self._store, self._put = lambda: None, lambda *_: None
            self._map.close()


def read(folder: Path) -> Balance | None:
    """The accounts that somebody left in a stream's folder; None if there are none."""
    try:
        data = (folder / NAME).read_bytes()
    except OSError:
        return None
    if len(data) < _LAYOUT.size or not data.startswith(_MAGIC):
        return None
    _, captured, written, *dropped = _LAYOUT.unpack_from(data)
    return _balance(captured, written, dropped)


def _balance(captured: int, written: int, dropped: list[int]) -> Balance:
    return Balance(captured, written, {Reason(n).name: count for n, count in enumerate(dropped, 1) if count})
