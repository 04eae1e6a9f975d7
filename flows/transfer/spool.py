"""A run's folder of its own under ONBLOCK_HOME, for files between fetch and deliver, and how the dead's are removed.

A run that lives holds a lock on a file beside its folder. What nobody holds was left behind by a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from blocks.errors import DiskFull, OnblockError, PermissionRefused, UnknownError
from blocks.home import home

log = logging.getLogger("onblock.transfer")


class Spool:
    """Made when it is first needed, removed by `close`. Safe in several threads."""

    def __init__(self, run_id: str):
        self.folder = home() / "spool" / run_id
        self._lock, self._held, self._count = threading.Lock(), -1, 0

    @contextlib.contextmanager
    def room(self) -> Iterator[Path]:
        """An empty folder for one shipment, gone afterwards. Raises DiskFull, PermissionRefused."""
        try:
            with self._lock:
                if self._held < 0:
                    self._held = _hold(self.folder)
                self._count += 1
                room = self.folder / str(self._count)
            room.mkdir()
        except OSError as error:
            raise spool_failure(error) from error
        try:
            yield room
        finally:
            shutil.rmtree(room, ignore_errors=True)

    def close(self) -> None:
        """Remove it all."""
        with self._lock:
            if self._held >= 0:
                _remove(self.folder)
                os.close(self._held)
                self._held = -1


def clear_dead() -> int:
    """Remove the folders of runs that died; how many."""
    cleared = 0
    for lock in (home() / "spool").glob("*.lock"):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(lock.with_suffix(""))
                cleared += 1
            except BlockingIOError:
                continue  # it lives
            finally:
                os.close(fd)
    if cleared:
        log.info("the spool of %d runs that died was removed", cleared)
    return cleared


def _hold(folder: Path) -> int:
    """Make a folder and take its lock; the descriptor that holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f"{folder.name}.lock")
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(lock).st_ino == os.fstat(fd).st_ino:
                folder.mkdir(mode=0o700, exist_ok=True)
                return fd
        os.close(fd)  # somebody took it for one of the dead meanwhile


def _remove(folder: Path) -> None:
    """The lock goes last: who dies in between is found again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def spool_failure(error: OSError) -> OnblockError:
    """What went wrong with the spool, which is on this machine."""
    kinds: dict[type[OSError], type[OnblockError]] = {PermissionError: PermissionRefused}
    kind = DiskFull if error.errno in (28, 122) else kinds.get(type(error), UnknownError)
    return kind(f"cannot use the spool: {error.strerror}", path=str(home() / "spool"))
