"""The belt between two threads of a stream: a queue with an end in bytes, and a word for everything that falls off it."""

from __future__ import annotations

import queue
import threading
import time
from typing import Generic, TypeVar

from flows.capture.sidecar import DropRecord

T = TypeVar("T")

LOOK_EVERY_S = 0.002
"""How often one who waits for room looks."""


class _Run:
    """A run of drops on the belt: it grows until it is taken."""

    def __init__(self, drop: DropRecord):
        self.drop = drop


class Belt(Generic[T]):
    """First in, first out; one thread takes. Where there is no room, `put` says so at once: a camera waits for nobody."""

    def __init__(self, limit: int):
        self._limit, self._bytes, self._count = limit, 0, 0
        self._items: queue.SimpleQueue[tuple[T | _Run, int] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # SimpleQueue has its own, in C: waiting there costs a tenth of a Condition
        self._last: _Run | None = None
        self._ahead: tuple[T | _Run, int] | None = None
        self._closed = False

    def put(self, item: T, size: int, *, wait: bool = False) -> bool:
        """Add an item of `size` bytes; False if there is no room. An empty belt takes one of any size. With `wait` it is
        waited for room, until the belt is closed: for what comes from a file, and can wait too."""
        while True:
            with self._lock:
                if self._closed:
                    return False
                if not self._count or self._bytes + size <= self._limit:
                    self._count += 1
                    self._bytes += size
                    self._last = None
                    self._items.put((item, size))
                    return True
            if not wait:
                return False
            time.sleep(LOOK_EVERY_S)

    def note(self, drop: DropRecord) -> None:
        """Say, in its place, that something was dropped. Always accepted: a run of drops takes no more room than one."""
        with self._lock:
            if self._last is not None and self._last.drop.reason is drop.reason:
                was = self._last.drop
                self._last.drop = DropRecord(
                    was.sequence, was.count + drop.count, was.first_ns, drop.last_ns, drop.reason
                )
            else:
                self._last = _Run(drop)
                self._count += 1
                self._items.put((self._last, 0))

    def take(self, timeout: float | None = None) -> T | DropRecord | None:
        """The next item; None when the belt is closed and empty, or nothing came in time."""
        entry, self._ahead = self._ahead, None
        if entry is None:
            try:
                entry = self._items.get(timeout=timeout)
            except queue.Empty:
                return None
        if entry is None:  # closed; that stays so
            self._items.put(None)
            return None
        item, size = entry
        with self._lock:
            self._count -= 1
            self._bytes -= size
            if isinstance(item, _Run):
                if item is self._last:
                    self._last = None
                return item.drop
        return item

    def more(self, most: int) -> list[T]:
        """Up to so many further items that are there already, but none behind a drop."""
        found: list[T] = []
        freed = 0
        while self._ahead is None and len(found) < most and not self._items.empty():
            entry = self._items.get()
            if entry is None:
                self._items.put(None)
                break
            item, size = entry
            if isinstance(item, _Run):
                self._ahead = entry
            else:
                found.append(item)
                freed += size
        if found:
            with self._lock:
                self._count -= len(found)
                self._bytes -= freed
        return found

    def close(self) -> None:
        """Nothing more is put on it; what is on it can still be had."""
        with self._lock:
            self._closed = True
            self._items.put(None)

    @property
    def over(self) -> bool:
        """Whether it is closed and empty."""
        with self._lock:
            return self._closed and not self._count

    def clear(self) -> list[T | DropRecord]:
        """Take all that is on it."""
        found: list[T | DropRecord] = []
        while (item := self.take(0.0)) is not None:
            found.append(item)
        return found

    def __len__(self) -> int:
        return self._count
