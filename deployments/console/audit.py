"""What people did in the console, who, when and from where: a file of lines of JSON, `console/audit.jsonl` in ONBLOCK_HOME.

A file and not a table: it tells of log-ins and refusals while the ledger is away, belongs to this console and not to all
that share a ledger, and goes to wherever logs are shipped. Lines are added, none is ever changed; file names in them are
shown as `names.display` does. It is rotated at 16 MiB, and ten old ones are kept. So that nobody can wash out what he has
done, texts in a line have an end, and of what was refused so many lines a minute are written, and how many were not.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LARGE = 16 << 20
OLD = 10
LONGEST = 300
"""Characters of a text; of a longer one the beginning is kept."""
MOST_ENTRIES = 5000
"""Of a list, as many as an action may name."""
OF_ONE, OF_ALL, WITHIN_S = 30, 300, 60.0
"""Lines within so many seconds that tell what one person, or address, was refused; and of all together."""
LOOKED_AT = 1 << 20
"""Bytes at the end of a file that are read for its last lines."""


class Audit:
    """The file. Shared by threads, and by processes: `onblock access` writes into it, too."""

    def __init__(self, file: Path):
        self.file = file
        self._lock = threading.Lock()

    def ready(self) -> None:
        """Raises OSError where nothing can be written: then nothing is done that would have to be."""
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(self._open())

    def write(self, who: str | None, what: str, **more: Any) -> None:
        """Add a line, and have it on the disk. Raises OSError; then there is none of it."""
        told = {k: _short(v) for k, v in more.items()}
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "who": who, "what": _short(what), **told}
        text = json.dumps(line).encode() + b"\n"
        with self._alone():
            self._rotate()
            fd = self._open()
            try:
                size = os.fstat(fd).st_size
                try:
                    if os.write(fd, text) < len(text):
                        raise OSError(28, "No space left on device")
                    os.fsync(fd)
                except OSError:
                    os.ftruncate(fd, size)  # half a line would spoil the next
                    raise
            finally:
                os.close(fd)

    def recent(self, most: int = 200) -> list[dict[str, Any]]:
        """The last lines, the newest first; of the last mebibyte, and that of the file before. Raises OSError."""
        found: list[dict[str, Any]] = []
        for file in (self.file, self._old(1)):
            if len(found) < most:
                found += _read(_end(file).splitlines()[-(most - len(found)) :])
        return found

    def about(self, number: int, most: int = 200) -> list[dict[str, Any]]:
        """The last lines that name a transfer, the newest first; of this file and the one before. Raises OSError."""
        found: list[dict[str, Any]] = []
        for file in (self.file, self._old(1)):
            found += [line for line in _read(_lines_with(file, number, most)) if number in line.get("ids", ())]
        return found[:most]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._lock:
            fd = os.open(self.file.with_name(".audit.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)

    def _open(self) -> int:
        return os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _old(self, number: int) -> Path:
        return self.file.with_name(f"{self.file.name}.{number}")

    def _rotate(self) -> None:
        try:
            if self.file.stat().st_size < LARGE:
                return
        except FileNotFoundError:
            return
        for number in range(OLD - 1, 0, -1):
            if (old := self._old(number)).exists():
                old.rename(self._old(number + 1))
        self.file.rename(self._old(1))


class Refusals:
    """How many lines tell what somebody was refused. Shared by threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._began, self._lines, self._left_out = clock(), Counter[str](), 0

    def may(self, who: str) -> dict[str, int] | None:
        """What a line about this one has to say besides, of those that were left out before it; None if it is left out
        itself."""
        with self._lock:
            now = self._clock()
            if now - self._began >= WITHIN_S:
                self._began, self._lines = now, Counter()
            if self._lines[who] >= OF_ONE or self._lines.total() >= OF_ALL:
                self._left_out += 1
                return None
            self._lines[who] += 1
            told, self._left_out = ({"left_out": self._left_out} if self._left_out else {}), 0
            return told


def _short(value: Any) -> Any:
    """What a person has sent, with an end. What is no ASCII in it, JSON escapes."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[:LONGEST]}... ({len(value)} characters)"
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(v) for v in value[:MOST_ENTRIES]]
    return value


def _end(file: Path) -> bytes:
    try:
        with file.open("rb") as lines:
            lines.seek(max(0, os.fstat(lines.fileno()).st_size - LOOKED_AT))
            return lines.read()
    except FileNotFoundError:
        return b""


def _lines_with(file: Path, number: int, most: int) -> list[bytes]:
    """The last lines in which a number stands in a list."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as lines:
            ends = (m.start() for m in re.finditer(rb"%d[,\]]" % number, lines))  # begins with what is sought: fast
            where = dict.fromkeys(lines.rfind(b"\n", 0, at) + 1 for at in ends if lines[at - 1 : at] in (b" ", b"["))
            return [lines[at : lines.find(b"\n", at)] for at in list(where)[-most:]]
    except (FileNotFoundError, ValueError):  # there is none, or nothing in it
        return []


def _read(lines: list[bytes]) -> list[dict[str, Any]]:
    """The newest first."""
    out: list[dict[str, Any]] = []
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:  # the one in which the mebibyte begins, or a power cut ended
            continue
        if isinstance(found, dict):
            out.append(found)
    return out
