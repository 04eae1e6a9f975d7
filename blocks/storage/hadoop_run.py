"""Running the `hadoop` program: arguments it takes for what they are, a process group of its own, and what its
complaints mean. What it is asked to do is in `hadoop_cli.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from threading import Event
from typing import IO, NamedTuple, Protocol

from blocks import names
from blocks.errors import (
    AuthError,
    Cancelled,
    ConfigError,
    Conflict,
    Corrupt,
    DiskFull,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    ToolMissing,
    UnknownError,
)  # fmt: skip
from blocks.storage import kerberos
from blocks.storage.program import without_names

ARGUMENTS = 96 << 10
"""Bytes of names in one call; the kernel takes 2 MiB with the environment."""

MESSAGES: tuple[tuple[str, type[OnblockError], str | None], ...] = (
    (r"JAVA_HOME is not set|java: (command )?not found|JAVA_HOME is incorrect", ToolMissing,
     "install Java, and tell Hadoop of it by JAVA_HOME"),
    (r"Could not find or load main class", ToolMissing, "the Hadoop installation is not complete"),
    (r"GSS initiate failed|Failed to find any Kerberos tgt|Client cannot authenticate via|LoginException"
     r"|SIMPLE authentication is not enabled|Server asks us to fall back to SIMPLE|AuthenticationException|InvalidToken",
     AuthError, "give `keytab` and `principal`, or run `kinit`"),
    (r"[Qq]uota of .* exceeded|QuotaExceededException|quota .* is exceeded|quota=\d+", DiskFull,
     "ask for a larger quota, or make room, then run the job again"),
    (r"Name node is in safe mode|SafeModeException", NetworkError,
     "tried again by itself; HDFS leaves safe mode when enough blocks are reported"),
    (r"There are 0 datanode|Could not obtain block|BlockMissingException|All datanodes .* are bad", NetworkError, None),
    (r"could only be (replicated|written) to 0 ", DiskFull, None),
    (r"No space left on device", DiskFull, None),
    (r"[Pp]ermission denied|AccessControlException|AuthorizationException|is not authorized", PermissionRefused, None),
    (r"component name limit|PathComponentTooLong", ConfigError, "shorten it with the job's `path` template"),
    (r"AlreadyBeingCreated|RecoveryInProgress|LeaseExpired|lease recovery is in progress|because this file lease"
     r"|because this file is already being created", NetworkError,
     "tried again by itself; HDFS gives up a dead writer after 60 s"),
    (r"UnknownHostException|unknown host|Invalid host name", NetworkError,
     "tried again by itself; check the network, and `filesystem` or fs.defaultFS in the Hadoop configuration"),
    (r"Incomplete HDFS URI|No FileSystem for scheme|no host:", ConfigError,
     "check `filesystem`, or fs.defaultFS in the Hadoop configuration"),
    (r"Connection refused|ConnectException|NoRouteToHost|Connection reset|SocketTimeoutException|timed out|Broken pipe"
     r"|StandbyException|Failed on local exception|EOFException|Connection timed out|unable to connect"
     r"|Unable to close file|Failed to connect|Failing write", NetworkError, None),
    (r"Checksum error|ChecksumException", Corrupt, "HDFS has no whole copy of it: see `hdfs fsck`"),
    (r"File exists|already exists|Is a directory|[Ii]s not a directory|not empty", Conflict, None),
    (r"No such file or directory|FileNotFoundException|does not exist|No such file", NotFound, None),
    (r"Unknown command|Illegal option|Not enough arguments|Invalid path|IllegalArgument|URISyntax|Pathname .* is not",
     ConfigError, None),
)  # fmt: skip
"""The one table for the `hadoop` program, which has one exit code for all: the first that fits what it complained of.
What is not here is UNKNOWN."""


def failure(complaint: str, code: int, doing: str, path: str = "") -> OnblockError:
    """The class of the taxonomy for a run that failed."""
    lines = [
        line for line in complaint.splitlines() if line.strip() and not re.match(r"\s+at |\d{4}-\S+ \S+ WARN", line)
    ]
    said = names.display((lines[0] if lines else f"exit code {code}")[:300])
    if code in (126, 127):
        return ToolMissing(f"{doing}: {said}", path=path)
    if code < 0 or code in (130, 137, 143):
        number = -code if code < 0 else code - 128
        return UnknownError(f"{doing}: `hadoop` was ended by {signal.Signals(number).name}", path=path)
    meant = without_names(complaint, path)
    for pattern, kind, remedy in MESSAGES:
        if re.search(pattern, meant):
            return kind(f"{doing}: {said}", path=path, remedy=remedy)
    return UnknownError(f"{doing}: {said}", path=path)


def escape(path: str) -> str:
    """An argument that stands for this path alone: `hadoop fs` takes each for a pattern."""
    return re.sub(r"([*?\[\]{}\\,^])", r"\\\1", path)


def pages(paths: Sequence[str]) -> Iterator[list[str]]:
    """As many at a time as fit one command line."""
    page: list[str] = []
    size = 0
    for path in paths:
        size += len(path.encode("utf-8", "replace")) * 2 + 8
        if page and size > ARGUMENTS:
            yield page
            page, size = [], 0
        page.append(path)
    if page:
        yield page


class Done(NamedTuple):
    """A run that has ended."""

    code: int
    out: bytes
    complaint: str


class Running:
    """A `hadoop` that has been started, in a process group of its own."""

    def __init__(self, argv: Sequence[str], env: dict[str, str], *, feed: bool = False, read: bool = False):
        self._complaint: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
        try:
            self.process = subprocess.Popen(
                argv, env=env, start_new_session=True, stderr=self._complaint,
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.PIPE if read else subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            self._complaint.close()
            if isinstance(error, FileNotFoundError | PermissionError):
                raise ToolMissing(
                    f"the program {argv[0]} cannot be run: {os.strerror(error.errno or 0)}",
                    remedy="install a Hadoop client, or give its place as `program`",
                ) from error
            raise UnknownError(f"{argv[0]} cannot be run: {error}") from error
        self.code: int | None = None
        self.complaint = ""

    def feed(self, chunk: memoryview, timeout: float) -> bool:
        """Give it the chunk; False if it ended. Raises NetworkError where it takes nothing for `timeout` seconds."""
        pipe = self.process.stdin
        assert pipe is not None
        fd = pipe.fileno()
        os.set_blocking(fd, False)
        while len(chunk):
            try:
                chunk = chunk[os.write(fd, chunk) :]
            except BlockingIOError:
                if not select.select([], [fd], [], timeout)[1]:
                    raise NetworkError(f"`hadoop` took no data for {timeout:.0f} s") from None
            except BrokenPipeError:
                return False
        return True

    def take(self, most: int, timeout: float, stop: Event | None = None) -> bytes:
        """The next bytes of its output; none at the end. Raises as `end`."""
        pipe = self.process.stdout
        assert pipe is not None
        begun = time.monotonic()
        while not select.select([pipe], [], [], 0.2)[0]:
            if stop is not None and stop.is_set():
                self.kill()
                raise Cancelled("the run was stopped")
            if time.monotonic() - begun > timeout:
                self.kill()
                raise NetworkError(f"`hadoop` did not answer within {timeout:.0f} s")
        return os.read(pipe.fileno(), most)

    def end(self, timeout: float, stop: Event | None = None) -> int:
        """Its exit code, once it has ended. Raises NetworkError after `timeout` seconds, Cancelled after `stop`."""
        if self.code is not None:
            return self.code
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        begun = time.monotonic()
        while True:
            try:
                self.code = self.process.wait(0.2)
                break
            except subprocess.TimeoutExpired:
                if stop is not None and stop.is_set():
                    self.kill()
                    raise Cancelled("the run was stopped") from None
                if time.monotonic() - begun > timeout:
                    self.kill()
                    raise NetworkError(f"`hadoop` did not come to an end within {timeout:.0f} s") from None
        self._close()
        return self.code

    def kill(self) -> None:
        """End it and what it started."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.code = self.process.wait()
            self._close()

    def _close(self) -> None:
        size = self._complaint.seek(0, os.SEEK_END)
        self._complaint.seek(max(0, size - (64 << 10)))
        self.complaint = self._complaint.read().decode("utf-8", "replace")
        self._complaint.close()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Settings(Protocol):
    """What the block says that matters here; its fields say what each is."""

    program: str
    filesystem: str
    config_folder: str
    user: str
    principal: str
    keytab: str
    ticket_cache: str
    replication: int | None
    block_size: int
    timeout_s: float


class Hadoop:
    """The program with the storage's settings."""

    def __init__(self, storage: Settings):
        self.storage = storage
        self._ticket: kerberos.Ticket | None = None
        if storage.keytab or storage.ticket_cache:
            self._ticket = kerberos.ticket(storage.principal, storage.keytab, storage.ticket_cache)

    def start(self, *arguments: str, feed: bool = False, read: bool = False) -> Running:
        """Begin a run of `hadoop fs` with these arguments; paths in them are escaped already."""
        storage = self.storage
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        if storage.config_folder:
            env["HADOOP_CONF_DIR"] = storage.config_folder
        if storage.user:
            env["HADOOP_USER_NAME"] = storage.user
        if self._ticket is not None and (cache := self._ticket.cache()):
            env["KRB5CCNAME"] = cache  # for this child alone
        program = os.path.expanduser(storage.program)
        settings = {
            "fs.defaultFS": storage.filesystem,
            "dfs.replication": str(storage.replication or ""),
            "dfs.blocksize": str(storage.block_size),
        }
        options = [part for key, value in settings.items() if value for part in ("-D", f"{key}={value}")]
        command = "dfs" if os.path.basename(program).startswith("hdfs") else "fs"
        return Running([program, command, *options, *arguments], env, feed=feed, read=read)

    def run(self, *arguments: str, stop: Event | None = None, more_s: float = 0) -> Done:
        """One run from its begin to its end; its output is small. `more_s`: seconds on top of the storage's timeout."""
        running, out = self.start(*arguments, read=True), bytearray()
        while part := running.take(1 << 16, self.storage.timeout_s + more_s, stop):
            out += part
        code = running.end(10.0, stop)
        return Done(code, bytes(out), running.complaint)

    def must(self, doing: str, path: str, *arguments: str) -> bytes:
        """The output of a run that has to succeed. `doing` and `path` are for people."""
        done = self.run(*arguments)
        if done.code:
            raise failure(done.complaint, done.code, doing, path)
        return done.out
