"""Reading back a large local file while it is still being written: another thread follows the writer, past the page
cache, and hashes what has reached the disk. Then little is left to prove when the last byte is written. What is hurt on
the disk after it was read back here is not seen: `fresh` digests (`verify: readback`) read all of it at the end.
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

from blocks.storage.base import aligned_buffer

if TYPE_CHECKING:
    from hashlib import _Hash as Hash  # pyright: ignore[reportAttributeAccessIssue]

PIECE = 4 << 20
"""Bytes that are read at a time; the trail ends at a multiple of them."""


class Trail:
    """Follows the writer of one file that was opened with O_DIRECT. Raises OSError if it cannot be read so."""

    def __init__(self, path: str):
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._written = self._at = 0
        self._ended = False
        self._digest: Hash | None = hashlib.sha256()
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name="onblock-trail", daemon=True)
        self._thread.start()

    def reached(self, offset: int) -> None:
        """All bytes before `offset` are on the disk."""
        with self._moved:
            self._written = offset
            self._moved.notify()

    def _follow(self) -> None:
        buffer = memoryview(aligned_buffer(PIECE))
        while True:
            with self._moved:
                self._moved.wait_for(lambda: self._ended or self._written - self._at >= PIECE)
                if self._written - self._at < PIECE or self._digest is None:
                    return
            try:
                n = os.preadv(self._fd, [buffer], self._at)
            except OSError:
                n = 0  # then all of it is read in the usual way, which tells what is wrong
            if n != PIECE:
                self._digest = None
                return
            self._digest.update(buffer)
            self._at += n

    def finish(self) -> tuple[Hash, int] | None:
        """The SHA-256 so far, and of how many bytes; None if it went wrong. Nobody follows any more."""
        with self._moved:
            self._ended = True
            self._moved.notify()
        self._thread.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return None if self._digest is None else (self._digest, self._at)

    def drop(self) -> None:
        """Nobody wants to know."""
        with self._moved:
            self._written = 0
        self.finish()
