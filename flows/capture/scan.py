"""A file that is to be looked through although its disk may be failing: what cannot be read any more reads as zeros.

By read, not by a map of memory: there a bad sector, or a file that becomes shorter, is a SIGBUS that ends the process.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Self, overload

SECTOR = 4096
AHEAD = 256 << 10


class Scan:
    """Looks like bytes: length, index, slice, `find`. Raises OSError where the file cannot be opened."""

    def __init__(self, path: Path, *, fd: int | None = None, size: int | None = None):
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if fd is None else fd
        self._size = os.fstat(self._fd).st_size if size is None else size
        self._at, self._piece = 0, b""
        self.unread = 0
        """Bytes that could not be read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        os.close(self._fd)

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self[0 : self._size]

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    def __getitem__(self, key: int | slice) -> int | bytes:
        if isinstance(key, int):
            return self._get(key, 1)[0]
        begin, end, step = key.indices(self._size)
        if step != 1:
            raise ValueError("a file is read forwards")
        return self._get(begin, max(end - begin, 0))

    def find(self, what: bytes, begin: int) -> int:
        """Where `what` comes first at or after `begin`; -1 if nowhere."""
        while begin + len(what) <= self._size:
            piece = self._get(begin, min(AHEAD, self._size - begin))
            if (found := piece.find(what)) >= 0:
                return begin + found
            begin += len(piece) - len(what) + 1
        return -1

    def _get(self, at: int, count: int) -> bytes:
        if not (self._at <= at and at + count <= self._at + len(self._piece)):
            if count >= AHEAD:
                return self._read(at, count)
            self._at, self._piece = at, self._read(at, min(AHEAD, self._size - at))
        return self._piece[at - self._at : at - self._at + count]

    def _read(self, at: int, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            here, left = at + len(found), count - len(found)
            try:
                piece = os.pread(self._fd, left, here)
                if not piece:  # it has become shorter
                    self.unread += left
                    piece = bytes(left)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                piece = self._sector(here, left)
            found += piece
        return bytes(found)

    def _sector(self, at: int, left: int) -> bytes:
        """To the end of the sector: what there is of it, or zeros."""
        count = min(SECTOR - at % SECTOR, left)
        try:
            piece = os.pread(self._fd, count, at)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            piece = b""
        if not piece:
            self.unread += count
            return bytes(count)
        return piece


def scanned(path: Path) -> bytes:
    """All of a file. Raises OSError where it cannot be opened."""
    with Scan(path) as file:
        return bytes(file)
