"""What is there: the listing of the source, reduced to what the job asks for and what has settled.

Streams in pages; memory does not grow with the number of files. What is new among it, `plan.py` decides.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from blocks import names
from blocks.errors import Cancelled, ConfigError, Kind, NotFound, OnblockError
from blocks.storage.base import FileInfo, Session
from flows.transfer.job import Settle, TransferJob
from flows.transfer.patterns import compile_pattern

PAGE = 4096
"""Files held in memory at a time."""
PATH_MOST = 2000
"""Bytes of a path in the ledger: PostgreSQL's index takes 2,700 a row."""
YOUNG_MOST = 10_000
"""Young files that are looked at twice in one run; more of them wait for the next."""


@dataclass
class Scanned:
    """What a scan saw, counted as it goes."""

    files: int = 0
    settling: int = 0
    complete: bool = True  # every folder could be listed


class Filter:
    """The job's patterns, sizes and ages, for one moment in time."""

    def __init__(self, job: TransferJob, now_ns: int):
        self._skip = len(job.folder) + 1 if job.folder else 0
        self._include = [compile_pattern(p).fullmatch for p in job.include]
        self._exclude = [compile_pattern(p).fullmatch for p in job.exclude]
        self._prune = [compile_pattern(p).fullmatch for p in job.exclude if p.endswith(("/", "/**")) and p[:3] != "re:"]
        self._suffixes = tuple(job.settle.ignore_suffixes)
        self._recursive = job.recursive
        backup = job.cleanup.backup_folder
        self._backup = None if backup is None else backup + "/"
        self._min, self._max = job.min_size or 0, job.max_size
        self._newest = None if job.min_age is None else now_ns - int(job.min_age.total_seconds() * 1e9)
        self._oldest = None if job.max_age is None else now_ns - int(job.max_age.total_seconds() * 1e9)

    def enter(self, folder: str) -> bool:
        """Whether to look into a folder."""
        if self._backup is not None and f"{folder}/".startswith(self._backup):
            return False
        inside = folder[self._skip :] + "/x"
        return self._recursive and not any(match(inside) for match in self._prune)

    def wants(self, file: FileInfo) -> bool:
        """Whether the job asks for this file."""
        if self._backup is not None and file.path.startswith(self._backup):
            return False  # what a cleanup has put there is not taken again
        path = file.path[self._skip :] if self._skip else file.path
        if self._include and not any(match(path) for match in self._include):
            # a folder that cannot be read may hide files the patterns ask for
            return (
                isinstance(file.problem, OnblockError) and file.problem.kind != Kind.CONFIG and not self._excluded(path)
            )
        if self._excluded(path):
            return False
        if file.problem is not None:
            return True
        if file.size < self._min or (self._max is not None and file.size > self._max):
            return False
        if self._newest is not None and file.mtime_ns > self._newest:
            return False
        return self._oldest is None or file.mtime_ns >= self._oldest

    def _excluded(self, path: str) -> bool:
        if self._suffixes and path.endswith(self._suffixes):
            return True
        return bool(self._exclude) and any(match(path) for match in self._exclude)


class Sentinels:
    """Whether a folder holds the file that says it is complete; each folder is looked at once."""

    def __init__(self, session: Session, pattern: str):
        self._session, self._pattern = session, pattern
        self._known: dict[str, bool] = {}

    def ready(self, path: str) -> bool:
        """Whether the folder of `path` is complete."""
        folder = path.rpartition("/")[0]
        if folder not in self._known:
            if len(self._known) > PAGE:
                self._known.clear()
            self._known[folder] = self._look(folder)
        return self._known[folder]

    def _look(self, folder: str) -> bool:
        return any(
            fnmatchcase(f.path.rpartition("/")[2], self._pattern)
            for f in self._session.scan(folder, enter=lambda _: False)
            if f.problem is None
        )


def scan(
    session: Session,
    job: TransferJob,
    scanned: Scanned,
    wait: Callable[[float], bool] = lambda s: time.sleep(s) or False,
) -> Iterator[list[FileInfo]]:
    """Pages of the files the job asks for, settled, and of what could not be read (`problem`).

    `wait(seconds)` waits for the second look at young files; True means that the run was stopped.
    """
    now_ns = time.time_ns()
    wanted = Filter(job, now_ns)
    settle: Settle = job.settle
    quiet_ns = int(settle.quiet.total_seconds() * 1e9)
    settled_before = now_ns - quiet_ns
    sentinels = Sentinels(session, settle.sentinel) if settle.sentinel else None
    young: list[FileInfo] = []
    page: list[FileInfo] = []
    began = time.monotonic()
    wants = wanted.wants
    for file in session.scan(job.folder, wanted.enter):
        if not wants(file):
            continue
        if len(file.path) > 500:
            file = _of_bearable_length(file)
        if file.problem is not None:
            # a folder that is left out hides files: what is not seen is then not known to be gone
            scanned.complete = False
        elif sentinels is not None and not sentinels.ready(file.path):
            scanned.settling += 1
            continue
        elif quiet_ns and file.mtime_ns > settled_before:
            if len(young) < YOUNG_MOST:
                young.append(file)
            else:
                scanned.settling += 1
                scanned.complete = False
            continue
        page.append(file)
        if len(page) >= PAGE:
            scanned.files += len(page)
            yield page
            page = []
    if page:
        scanned.files += len(page)
        yield page
    if young:
        yield from _second_look(session, young, quiet_ns / 1e9 - (time.monotonic() - began), scanned, wait)


def _of_bearable_length(file: FileInfo) -> FileInfo:
    """A path that no index of a database can hold becomes a problem under a shortened path."""
    size = len(names.to_text(file.path).encode())
    if size <= PATH_MOST:
        return file
    short = f"{file.path[:200]}~{hashlib.sha256(names.to_text(file.path).encode()).hexdigest()[:16]}"
    long = ConfigError(f"its path is {size} bytes long, {PATH_MOST} is the most", path=short,
                       remedy="shorten the folders it lies in")  # fmt: skip
    return FileInfo(short, 0, 0, "", long)


def _second_look(
    session: Session, young: list[FileInfo], seconds: float, scanned: Scanned, wait: Callable[[float], bool]
) -> Iterator[list[FileInfo]]:
    """The young files that have not changed since the listing."""
    if seconds > 0 and wait(seconds):
        raise Cancelled("the run was stopped while it waited for files to settle")
    for start in range(0, len(young), PAGE):
        page = []
        for file in young[start : start + PAGE]:
            try:
                again = session.stat(file.path)
            except NotFound:
                continue  # gone again: somebody else's temporary file
            except OnblockError as error:
                page.append(file._replace(problem=error))
                continue
            if again.version == file.version:
                page.append(file)
            else:
                scanned.settling += 1
        if page:
            scanned.files += len(page)
            yield page
