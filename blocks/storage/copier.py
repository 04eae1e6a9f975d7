"""A program of its own that copies and renames small local files for a session, so that Python's lock is no limit.

Started by `local.py` as `python -I -S copier.py` and fed through its standard input; imports little, to start at once.
It decides nothing: what does not go as usual is left to the session, which does it again and tells why. It stops as
soon as its parent is gone.

A frame is 4 bytes of length and a marshalled tuple. ("copy", [(source, staged, size, mtime_ns or None), ...]) answers
[SHA-256 or None, ...]: read once, hashed on the way, read back and compared. ("rename", [(staged, final), ...]) answers
[True or False, ...] and never overwrites. Paths are absolute.
"""

from __future__ import annotations

import ctypes
import hashlib
import marshal
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITE = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
LARGEST = 256 << 10
"""Bytes; of a file that is read with one call."""
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def send(pipe: BinaryIO, what: Any) -> None:
    """Write one frame."""
    data = marshal.dumps(what)
    pipe.write(len(data).to_bytes(4, "little") + data)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """Read one frame. EOFError if the other side is gone."""
    head = pipe.read(4)
    data = pipe.read(int.from_bytes(head, "little")) if len(head) == 4 else b""
    if not data:
        raise EOFError("the other side is gone")
    return marshal.loads(data)


def copy(source: str, staged: str, size: int, mtime_ns: int | None, buffer: bytearray, view: memoryview) -> str | None:
    """One file; its SHA-256, or None if anything was not as it should be."""
    fd = os.open(source, READ)
    try:
        was = os.fstat(fd)
        got = os.readv(fd, [buffer])
        now = os.lstat(source)  # by name: it may have been renamed away, or another file may have its name
    finally:
        os.close(fd)
    if (
        not stat.S_ISREG(was.st_mode) or got != size or now.st_size != size or now.st_ino != was.st_ino
        or now.st_mtime_ns != was.st_mtime_ns or (mtime_ns is not None and now.st_mtime_ns != mtime_ns)
    ):  # fmt: skip
        return None
    data = view[:got]
    sha256 = hashlib.sha256(data).hexdigest()
    fd = os.open(staged, WRITE, 0o666)
    try:
        if os.write(fd, data) != got:
            return None
        if os.preadv(fd, [buffer], 0) != got or hashlib.sha256(data).hexdigest() != sha256:
            return None
        if mtime_ns is not None:
            os.utime(fd, ns=(mtime_ns, mtime_ns))
    finally:
        os.close(fd)
    return sha256


class Copier:
    """The session's end: one such program, started when it is first needed. For one thread at a time."""

    def __init__(self) -> None:
        self._process: Any = None

    def copy(self, files: list[tuple[str, str, int, int | None]]) -> Iterator[list[str | None]]:
        """The answers, page by page. EOFError if the program died."""
        return self._ask("copy", files, 32)

    def rename(self, files: list[tuple[str, str]]) -> Iterator[list[bool]]:
        """The answers, page by page. EOFError if the program died."""
        return self._ask("rename", files, 256)

    def _ask(self, what: str, files: list[Any], step: int) -> Iterator[list[Any]]:
        """One page is on its way while the one before is worked on."""
        if self._process is None:
            import subprocess  # not needed at the other end

            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,
            )
        to, back = self._process.stdin, self._process.stdout
        waiting = 0
        try:
            for start in range(0, len(files), step):
                waiting += 1
                send(to, (what, files[start : start + step]))
                if waiting > 1:
                    answer = receive(back)
                    waiting -= 1
                    yield answer
            while waiting:
                answer = receive(back)
                waiting -= 1
                yield answer
        except (EOFError, BrokenPipeError) as error:
            self.close()
            raise EOFError("the copying program died") from error
        finally:
            if waiting:  # somebody stopped reading: what it still says must not pass for the answer to another question
                self.close()

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


def main() -> None:
    """Serve until the input ends or the parent is gone."""
    parent = os.getppid()
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    buffer = bytearray(LARGEST)
    view = memoryview(buffer)
    done: list[Any]
    while True:
        try:
            what, files = receive(sys.stdin.buffer)
        except EOFError:
            return
        done = []
        for file in files:
            if os.getppid() != parent:
                return
            if what == "copy":
                try:
                    source, staged, size, mtime_ns = file
                    done.append(copy(source, staged, size, mtime_ns, buffer, view))
                except OSError:
                    done.append(None)
            else:
                old, new = os.fsencode(file[0]), os.fsencode(file[1])
                done.append(renameat2 is not None and not renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE))
        send(sys.stdout.buffer, done)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # who asked is gone, and with it anybody to tell
        os._exit(1)
