"""Bytes of one file out of a reader, hashed on the way: the next chunk is read while the one before is hashed and written.

Where they are written, and what becomes of the file, is in `move.py`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from blocks.storage.base import Reader, aligned_buffer
from flows.transfer.resume import CHECKPOINT

if TYPE_CHECKING:
    from hashlib import _Hash as Hash  # pyright: ignore[reportAttributeAccessIssue]

SMALL = 256 << 10
"""Files below this size are read with one call."""
CHUNK = 4 << 20
"""Bytes of a large file on their way at a time: one chunk is hashed while it is written."""


class Buffers(threading.local):
    """Buffers of one thread, made once: memory does not grow with files or shipments."""

    def __init__(self) -> None:
        self.small = aligned_buffer(SMALL)
        self.small_view = memoryview(self.small)
        self._large: list[memoryview] = []
        self._helpers: ThreadPoolExecutor | None = None

    def large(self, turn: int) -> memoryview:
        """One of two large buffers."""
        if not self._large:
            self._large = [memoryview(aligned_buffer(CHUNK)) for _ in range(2)]
        return self._large[turn]

    @property
    def helpers(self) -> ThreadPoolExecutor:
        """Two threads: one hashes and one reads while this one writes."""
        if self._helpers is None:
            self._helpers = ThreadPoolExecutor(2, "onblock-pump")
        return self._helpers


buffers = Buffers()


def small(reader: Reader) -> tuple[memoryview, str]:
    """A file below SMALL, and its SHA-256. The view is good until the next call of this thread."""
    chunk = buffers.small_view[: reader.readinto(buffers.small)]
    return chunk, hashlib.sha256(chunk).hexdigest()


def chunks(
    reader: Reader, digest: Hash, start: int = 0, checkpoint: Callable[[int, str], object] = lambda offset, sha256: None
) -> Generator[memoryview]:
    """Views of a file from `start` (bytes) to its end, good until the next one; `digest` takes each. All but the first begin at
    a multiple of CHUNK. To be closed before the reader is used otherwise.

    `checkpoint(offset, SHA-256 so far)` is called after the caller is done with the bytes before `offset`.
    """
    offset, views, helpers = start, [buffers.large(turn) for turn in range(2)], buffers.helpers
    most = CHUNK - start % CHUNK
    n, turn = reader.readinto(views[0][:most]), 0
    while n:
        view, turn = views[turn][:n], 1 - turn
        hashing = helpers.submit(digest.update, view)
        reading = helpers.submit(reader.readinto, views[turn]) if n == most and reader.ahead else None
        busy: list[Future[Any]] = [hashing, reading] if reading else [hashing]
        try:
            yield view
            hashing.result()
            offset += n
            if offset % CHECKPOINT == 0:  # at once: what comes next may come slowly
                checkpoint(offset, digest.copy().hexdigest())
        finally:
            wait(busy)  # nobody reads any more when this is left
        most = CHUNK
        n = reading.result() if reading else reader.readinto(views[turn])


def skip(reader: Reader, digest: Hash, count: int, go_on: Callable[[], object]) -> int:
    """Read and hash the first `count` bytes without passing them on; how many there were."""
    got = 0
    while got < count:
        go_on()
        view = buffers.large(0)[: count - got]
        n = reader.readinto(view)
        if not n:
            break
        digest.update(view[:n])
        got += n
    return got
