"""Many small files of a far source at once: fetched into the spool by the storage, then delivered from there.

`fetched` gives the mover a source whose small files lie on this machine. What could not be fetched as planned is read
singly, which tells why.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from blocks.errors import Cancelled, OnblockError
from blocks.storage.base import Features, FileInfo, Reader, Session, Upload
from blocks.storage.local import LocalSession
from flows.transfer.reservations import Hold, disk_of, free_at, needed
from flows.transfer.run import TransferRun
from flows.transfer.throttle import PORTIONS, Bucket

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("onblock.transfer")

MANY = 8
"""From so many files on, it pays."""
PAGE_S = 10.0
"""Under a limit, what one call moves takes about so long: another limit soon holds for the next one."""


def may(run: TransferRun, features: Features, direction: Literal["up", "down"]) -> bool:
    """Whether a storage moves many files at once, and keeps to the limits of the run while it does."""
    if not (features.bulk_push if direction == "up" else features.bulk_pull):
        return False
    return run.throttle is None or features.bulk_limits or run.throttle.free(direction)


def push(
    run: TransferRun, session: Session, files: Sequence[tuple[str, Upload]], sizes: Sequence[int],
    moved: Callable[[int], object],
) -> list[str | None]:  # fmt: skip
    """`Session.push`, within the limits of the run."""

    def send(page: Sequence[tuple[str, Upload]], passed: Callable[[int], object]) -> list[str | None]:
        return session.push(page, lambda n: (moved(n), passed(n)), run.stop)

    session.limits = run.throttle and run.throttle.limits
    return _in_pages(run, files, sizes, run.throttle and run.throttle.up[0], send)


def _pull(
    run: TransferRun, session: Session, files: Sequence[tuple[str, str]], sizes: Sequence[int]
) -> list[OnblockError | None]:
    """`Session.pull`, within the limits of the run."""

    def fetch(page: Sequence[tuple[str, str]], passed: Callable[[int], object]) -> list[OnblockError | None]:
        return session.pull(page, passed, run.stop)

    session.limits = run.throttle and run.throttle.limits
    return _in_pages(run, files, sizes, run.throttle and run.throttle.down, fetch)


def _in_pages(
    run: TransferRun, files: Sequence[T], sizes: Sequence[int], bucket: Bucket | None,
    move: Callable[[Sequence[T], Callable[[int], object]], list[R]],
) -> list[R]:  # fmt: skip
    """`move(page, passed)` for pages of PAGE_S, each when it is its turn; all at once without a bucket."""
    if bucket is None:
        return move(files, lambda n: None)

    def go_on() -> None:
        if run.stop.is_set():
            raise Cancelled("the run was stopped")

    found: list[R] = []
    while len(found) < len(files):
        start = end = len(found)
        most, size = bucket.portion() * PORTIONS * PAGE_S, 0
        while end < len(files) and (end == start or size + sizes[end] <= most):
            size += sizes[end]
            end += 1
        with bucket.at_once(go_on):
            found += move(files[start:end], bucket.passed)
    return found


@contextlib.contextmanager
def fetched(run: TransferRun, source: Session, files: Sequence[FileInfo]) -> Iterator[Session]:
    """`source`, with what it can give at once in the spool while this lasts.

    Raises Cancelled, and what stopped the source as a whole.
    """
    limit = source.features.bulk_below
    wanted = [f for f in files if f.size < limit] if may(run, source.features, "down") else []
    if len(wanted) < MANY or source.local_path(wanted[0].path) is not None:
        yield source
        return
    total = sum(needed(f.size, unknown=run.job.unknown_size) for f in wanted)
    with _room_for(run, total) as hold:
        if hold is None:
            log.info("the spool has no room for %d files: they are read one by one", len(wanted))
            yield source
            return
        with run.spool.room() as room:
            yield _fetch(run, source, wanted, room, hold)


@contextlib.contextmanager
def _room_for(run: TransferRun, size: int) -> Iterator[Hold | None]:
    """Room in the spool, while this lasts; None if there is none."""
    spool = run.spool.folder
    place = disk_of(spool)
    hold, short = run.room.take(place, [size], lambda: free_at(spool))
    try:
        yield None if short[0] is not None else hold
    finally:
        run.room.release(place, hold)


def _fetch(run: TransferRun, source: Session, wanted: Sequence[FileInfo], room: Path, hold: Hold) -> Spooled:
    """`source`, with those of the files in a folder that could be fetched."""
    locals_ = [str(room / str(number)) for number in range(len(wanted))]
    names = [(file.path, local) for file, local in zip(wanted, locals_, strict=True)]
    failures = _pull(run, source, names, [f.size for f in wanted])
    there: dict[str, tuple[str, FileInfo]] = {}
    for file, local, failure in zip(wanted, locals_, failures, strict=True):
        if failure is None:
            st = os.stat(local)
            if (st.st_size, st.st_mtime_ns) == file.version[:2]:
                there[file.path] = (os.path.basename(local), file)
        else:
            log.debug("not fetched with the others: %s", failure)
    hold.wrote(sum(f.size for f in wanted))
    return Spooled(source, LocalSession(str(room), direct=False), room, there)


def is_fetched(source: Session, path: str) -> bool:
    """Whether a file of a source lies in the spool already."""
    return isinstance(source, Spooled) and source.has(path)


class Spooled(Session):
    """A source, some of whose files lie in the spool. It is read, never written."""

    def __init__(self, source: Session, spool: Session, room: Path, there: dict[str, tuple[str, FileInfo]]):
        self.features = source.features
        self._source, self._spool, self._room, self._there = source, spool, room, there

    def has(self, path: str) -> bool:
        """Whether a file is in the spool."""
        return path in self._there

    def read(self, path: str, offset: int = 0) -> Reader:
        if path in self._there:
            name, file = self._there[path]
            return SpooledReader(self._spool.read(name, offset), file)
        return self._source.read(path, offset)

    def local_path(self, path: str) -> str | None:
        if path not in self._there:
            return self._source.local_path(path)
        return str(self._room / self._there[path][0])

    def stat(self, path: str) -> FileInfo:
        return self._source.stat(path)

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        return self._source.scan(path, enter)

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        return self._source.checksum(path, kind, fresh=fresh)

    def upload(
        self, path: str, size: int, *, key: str = "", resume: bool = False, journal: str = "",
        mtime_ns: int | None = None,
    ) -> Upload:  # fmt: skip
        raise NotImplementedError

    def delete(self, path: str) -> None:
        raise NotImplementedError

    def move(self, path: str, to: str) -> None:
        raise NotImplementedError


class SpooledReader(Reader):
    """Bytes from the spool. They are those of `file`: `pull` has looked at the source again after it read them."""

    def __init__(self, inner: Reader, file: FileInfo):
        self._inner, self._file = inner, file

    def readinto(self, buffer: Buffer) -> int:
        return self._inner.readinto(buffer)

    def info(self) -> FileInfo:
        return self._file

    def close(self) -> None:
        self._inner.close()
