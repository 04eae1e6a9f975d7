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
from typing import TYPE_CHECKING

from blocks.storage.base import FileInfo, Reader, Session, Upload
from blocks.storage.local import LocalSession
from flows.transfer.run import TransferRun

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

log = logging.getLogger("onblock.transfer")

MANY = 8
"""From so many files on, it pays."""


@contextlib.contextmanager
def fetched(run: TransferRun, source: Session, files: Sequence[FileInfo]) -> Iterator[Session]:
    """`source`, with what it can give at once in the spool while this lasts.

    Raises Cancelled, and what stopped the source as a whole.
    """
    limit = source.features.bulk_below
    wanted = [f for f in files if f.size < limit] if source.features.bulk_pull else []
    if len(wanted) < MANY or source.local_path(wanted[0].path) is not None:
        yield source
        return
    with run.spool.room() as room:
        locals_ = [str(room / str(number)) for number in range(len(wanted))]
        names = [(file.path, local) for file, local in zip(wanted, locals_, strict=True)]
        failures = source.pull(names, lambda n: None, run.stop)
        there: dict[str, tuple[str, FileInfo]] = {}
        for file, local, failure in zip(wanted, locals_, failures, strict=True):
            if failure is None:
                st = os.stat(local)
                if (st.st_size, st.st_mtime_ns) == file.version[:2]:
                    there[file.path] = (os.path.basename(local), file)
            else:
                log.debug("not fetched with the others: %s", failure)
        with LocalSession(str(room), direct=False) as spool:
            yield Spooled(source, spool, room, there)


class Spooled(Session):
    """A source, some of whose files lie in the spool. It is read, never written."""

    def __init__(self, source: Session, spool: Session, room: Path, there: dict[str, tuple[str, FileInfo]]):
        self.features = source.features
        self._source, self._spool, self._room, self._there = source, spool, room, there

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
