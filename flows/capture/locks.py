"""Who may work on what: one recording at a time on a device, one process at a time in a recording's folder.

Locks of the kernel (flock): they end with the process that holds them, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blocks.errors import Conflict
from flows.capture.segment import disk_error

LOCK = ".lock"
"""In a recording's folder: held by who records, recovers or merges it."""
HELD = "is being recorded, recovered or merged at this moment"


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Hold the lock `path`. Raises Conflict, which says `taken`, and what the disk says."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise disk_error(error, path.parent) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(taken, path=str(path), remedy="wait for its end, or stop it first") from None
        yield
    finally:
        os.close(fd)
