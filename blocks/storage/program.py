"""Running a program of others: in a process group of its own, killed with all its children, never outliving onblock.

Arguments are lists, no shell sees a name, secrets go by file or environment. What a program says is kept up to a
bound. What its exit code means is decided by the storage that runs it (`rclone.py`,
`rsync.py`). Also the look of our own at a file that a program reads by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import IO

from blocks.errors import Cancelled, NetworkError, PermissionRefused, ToolMissing, UnknownError

KEPT = 64 << 10
"""Bytes of a program's standard error that are kept: the last ones."""
_LEASH = 'read -r _; [ -z "$1" ] || rm -rf -- "$1"; kill -KILL 0'
"""What waits beside a program: when onblock dies its pipe ends, and the whole group with it. Secrets on disk go too."""


def without_names(said: str, *known: str) -> str:
    """What a program said, without the names in it: what a file is called tells nothing of what went wrong with it.

    `known` are the paths it was asked about; others are told by their quotes, or by the slash they begin with.
    """
    parts = {part.strip("/") for path in known for part in (path, *path.rpartition("/"))} - {""}
    for name in sorted(parts, key=len, reverse=True):
        before = r"(?<!\w)" if "/" in name else r"(?<=[^\s\w])(?<!\bi/)(?<!input/)"  # "i/o timeout" is no file
        said = re.sub(rf"{before}{re.escape(name)}(?=[/:\"'`)\]]|$)", "...", said)
    return _NAMED.sub("...", _QUOTED.sub(lambda m: "..." if "/" in m[0].replace("i/o ", "") else m[0], said))


_NAMED = re.compile(r"\b\w+://\S*[^\s:\"']|(?<![^\s=])/\S*[^\s:]")
"""An address, an absolute path up to its first blank."""
_QUOTED = re.compile(r"""(?<!\w)"(?:[^"\\]|\\.)*"|(?<!\w)[`'][^`'\n]*'(?!\w)""")
"""A word in quotes, which is a name if there is a slash in it."""


class Program:
    """One running program; a context manager that ends it. `stdin` and `stdout` are pipes where asked for; `stdin` may also
    be a file descriptor, which the program gets in its stead.

    `private` is a folder of its secrets, removed if onblock dies. Its standard error is collected in the background:
    `said()`. Raises ToolMissing if it is not installed.
    """

    def __init__(
        self, argv: Sequence[str | bytes], *, env: Mapping[str, str] | None = None, stdin: bool | int = False,
        stdout: bool = False, heard: Callable[[bytes], object] | None = None, private: str = "",
    ):  # fmt: skip
        self.name = os.path.basename(os.fsdecode(argv[0]))
        self._tail, self._lock = bytearray(), threading.Lock()
        self._heard = heard
        self._process = self._start(argv, env, stdin=stdin, stdout=stdout)
        self.pid = self._process.pid
        self._leash = subprocess.Popen(
            ["/bin/sh", "-c", _LEASH, "leash", private], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            process_group=self.pid,
        )  # fmt: skip
        self._listener = threading.Thread(target=self._listen, name=f"onblock-{self.name}", daemon=True)
        self._listener.start()

    def _start(
        self, argv: Sequence[str | bytes], env: Mapping[str, str] | None, *, stdin: bool | int, stdout: bool
    ) -> subprocess.Popen[bytes]:
        if isinstance(stdin, bool):
            stdin = subprocess.PIPE if stdin else subprocess.DEVNULL
        try:
            return subprocess.Popen(
                argv, env=env, stdin=stdin,
                stdout=subprocess.PIPE if stdout else subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0,
                bufsize=0,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise ToolMissing("is not installed", path=os.fsdecode(argv[0])) from error
        except PermissionError as error:
            raise PermissionRefused("may not be run", path=os.fsdecode(argv[0])) from error
        except OSError as error:
            raise UnknownError(f"cannot be run: {error.strerror}", path=os.fsdecode(argv[0])) from error

    def _listen(self) -> None:
        assert self._process.stderr is not None
        fd = self._process.stderr.fileno()
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(fd, 1 << 16):
                with self._lock:
                    self._tail += data
                    del self._tail[:-KEPT]
                if self._heard is not None:
                    self._heard(data)

    @property
    def stdin(self) -> IO[bytes]:
        """Unbuffered."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """Unbuffered."""
        assert self._process.stdout is not None
        return self._process.stdout

    def said(self) -> str:
        """The end of its standard error."""
        if self._process.poll() is not None:
            self._listener.join(1)
        with self._lock:
            return self._tail.decode("utf-8", "replace").strip()

    def poll(self) -> int | None:
        """Its exit code; None while it runs; negative if a signal ended it."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """As `poll`, after at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll()

    def end(self, grace: float = 1.0) -> None:
        """SIGTERM to its group and, `grace` seconds later or when it is gone, SIGKILL to what is left of it."""
        if self._leash.returncode is not None:
            return
        if self._process.poll() is None and grace > 0:
            # the leash keeps the group's number from being given to others until it is reaped below
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)
            self.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._leash.wait()
        self._listener.join(1)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr, self._leash.stdin):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


@dataclass(frozen=True)
class Finished:
    """What a program left: exit code (negative: a signal), the end of what it said."""

    code: int
    stderr: str


def run(
    argv: Sequence[str | bytes], *, env: Mapping[str, str] | None = None, stdin: bytes = b"", stop: Event | None = None,
    idle: float = 60.0, line: Callable[[bytes], object] = lambda text: None, separator: bytes = b"\n",
) -> Finished:  # fmt: skip
    """Run a program to its end: feed it `stdin`, give each line of its output to `line`.

    Raises Cancelled, and the whole group is gone, within 2 s of `stop`; NetworkError when it has said nothing, and
    taken no input, for `idle` seconds; ToolMissing.
    """
    rest, todo = bytearray(), memoryview(stdin)
    heard = [time.monotonic()]
    with (
        Program(
            argv, env=env, stdin=True, stdout=True, heard=lambda data: heard.__setitem__(0, time.monotonic())
        ) as program,
        selectors.DefaultSelector() as selector,
    ):
        out, into = program.stdout, program.stdin
        os.set_blocking(into.fileno(), False)
        selector.register(out, selectors.EVENT_READ)
        if todo:
            selector.register(into, selectors.EVENT_WRITE)
        else:
            into.close()
        while True:
            if stop is not None and stop.is_set():
                program.end()
                raise Cancelled("the run was stopped")
            if time.monotonic() - heard[0] > idle:
                said = program.said()
                program.end()
                raise NetworkError(
                    f"{program.name} was silent for {idle:g} s and was ended" + (f": {said}" if said else "")
                )
            ended = False
            for key, _ in selector.select(0.2):
                heard[0] = time.monotonic()
                if key.fileobj is out:
                    data = os.read(out.fileno(), 1 << 16)
                    ended = not data
                    *lines, rest[:] = (bytes(rest) + data).split(separator)
                    for text in lines:
                        line(text)
                    del rest[:-KEPT]
                else:
                    try:
                        todo = todo[os.write(into.fileno(), todo[: 1 << 16]) :]
                    except BrokenPipeError:
                        todo = todo[:0]  # it ended early: its exit code says why
                    if not todo:
                        selector.unregister(into)
                        into.close()
            if ended:
                break
        code = program.wait(idle)
        if code is None:
            raise NetworkError(f"{program.name} did not end within {idle:g} s")
        if rest:
            line(bytes(rest))
        return Finished(code, program.said())


def find(binary: str) -> str:
    """The absolute path of a program named in a block: as given, beside this interpreter, or from PATH. ToolMissing."""
    found = shutil.which(binary)
    if found is None and os.sep not in binary:
        found = shutil.which(binary, path=os.path.dirname(sys.executable))  # where pip puts programs
    if found is None:
        raise ToolMissing("is not installed, or not a program", path=binary)
    return found


def hash_local(local: str, size: int, mtime_ns: int | None) -> str | None:
    """SHA-256 of a local file by our own read; None if it is not the file that was announced."""
    fd = os.open(local, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
        st = os.fstat(fd)
        same = st.st_size == file.tell() == size and mtime_ns in (None, st.st_mtime_ns)
        return digest.hexdigest() if same else None
