"""One file on its way to or from a host with a shell: `cat`, `tail`, and a temporary name.

What is small is gathered and is one script; larger files have a channel of their own, which ends with the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from blocks import names
from blocks.errors import Conflict, NetworkError, NotFound, OnblockError, SourceVanished
from blocks.storage.base import FileInfo, Reader, Upload, aligned_buffer
from blocks.storage.ssh_shell import Channel, failure, quote

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

SMALL = 256 << 10
"""Bytes that are gathered before anything is sent."""


class Far(Protocol):
    """What a file on its way asks of its session."""

    @property
    def shell(self) -> Channel: ...

    @property
    def enter(self) -> str: ...

    def channel(self) -> Channel: ...

    def stat(self, path: str) -> FileInfo: ...

    def digest(self, at: str, path: str, size: int, kind: str = "sha256", *, fresh: bool = False) -> str: ...


class RsyncReader(Reader):
    """`cat` or `tail` at the far side. `at` is where the bytes are, `path` what the file is called."""

    def __init__(self, session: Far, path: str, at: str, offset: int = 0, *, small: bool = False):
        self.path, self._session = path, session
        self._channel: Channel | None = None
        self._rest = memoryview(b"")  # read ahead
        if small:  # in the shell that is there: a channel costs more than the file
            whole = memoryview(session.shell.run("cannot read it", path, f"head -c {SMALL + 1} < {quote(at)}"))
            if len(whole) <= SMALL:
                self._rest = whole[offset:]
                return  # else it has grown
        tool = f"tail -c +{offset + 1}" if offset else "cat"
        self._channel = session.channel()
        try:
            self._channel.send(f"{session.enter}exec {tool} < {quote(at)}")
        except BaseException:
            self._channel.close()
            raise

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        got = min(len(view), len(self._rest))
        view[:got] = self._rest[:got]
        self._rest = self._rest[got:]
        while self._channel is not None and got < len(view):
            try:
                n = self._channel.readinto(view[got:], "the reading broke off", self.path)
            except OSError as error:
                raise NetworkError("the reading broke off", path=self.path) from error
            if not n:
                channel, self._channel = self._channel, None
                try:
                    channel.finish("the reading broke off", self.path)
                except NotFound as error:
                    raise SourceVanished("is no longer there", path=self.path) from error
                finally:
                    channel.close()
            got += n
        return got

    def info(self) -> FileInfo:
        try:
            return self._session.stat(self.path)
        except NotFound as error:
            raise SourceVanished("was removed or renamed while it was read", path=self.path) from error

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class RsyncUpload(Upload):
    """One file under its temporary name. `size` and `mtime_ns` are as announced."""

    def __init__(self, session: Far, path: str, staged: str, size: int, mtime_ns: int | None, *, resume: bool):
        self.path, self.staged, self.size, self.mtime_ns = path, staged, size, mtime_ns
        self._session = session
        self._small = bytearray()  # written, not sent
        self._stream: Channel | None = None
        self._begun = False  # something lies there that is ours: append to it
        self._stamped = False
        self._length = 0  # bytes, with those that are not sent yet
        self._digest: str | None = None  # what the far side read back when all came at once
        if resume:
            with contextlib.suppress(NotFound):
                look = f"find {self._at} -maxdepth 0 -printf '%s %n'"
                found = session.shell.run("cannot look at it", path, look).split()
                if int(found[1]) > 1:  # a commit was cut between linking and unlinking: never write to the final file
                    session.shell.run("cannot remove the temporary file", path, f"rm -f -- {self._at}")
                else:
                    self.offset, self._begun = int(found[0]), True
                    self._length = self.offset

    # -- bytes ----------------------------------------------------------------------------------------------------

    def write(self, chunk: memoryview) -> None:
        self._digest, self._stamped = None, False
        self._length += len(chunk)
        if self._stream is None and len(self._small) + len(chunk) <= SMALL:
            self._small += chunk
            return
        if self._stream is None:
            self._stream = self._session.channel()
            self._stream.send(f"{self._session.enter}{self._made()} || exit 1\nexec cat {self._arrow()} {self._at}")
            self._begun = True
            if self._small:
                small, self._small = self._small, bytearray()
                self._feed(small)
        self._feed(chunk)

    def _feed(self, data: memoryview | bytearray) -> None:
        assert self._stream is not None
        try:
            self._stream.write(memoryview(data))
        except OnblockError as error:
            stream, self._stream = self._stream, None
            stream.close()
            error.path, error.what = self.path, error.what.replace("cannot send", "cannot write it", 1)
            raise

    @property
    def _at(self) -> str:
        return quote(self.staged)

    def _arrow(self) -> str:
        return ">>" if self._begun else ">"

    def _made(self) -> str:
        folder = quote(self.staged.rpartition("/")[0])
        return f"{{ [ -d {folder} ] || mkdir -p -- {folder}; }}"

    def _flush(self) -> None:
        """All that was written is in the file."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            try:
                stream.finish("cannot write it", self.path)
            finally:
                stream.close()
        elif self._small or not self._begun:
            # what `cat` does not take is read to its end: the next script must not begin in it
            script = (
                f"head -c {len(self._small)} | {{ {self._made()} && cat {self._arrow()} {self._at}; r=$?; "
                "cat >/dev/null; exit $r; }"
            )
            self._session.shell.run("cannot write it", self.path, script, memoryview(self._small))
            self._small, self._begun = bytearray(), True

    def filled(self, digest: str) -> None:
        """`push` has written all of it, with its time; the far side read it back as `digest`."""
        self._begun, self._digest, self._stamped, self._length = True, digest, True, self.size

    # -- reading back ---------------------------------------------------------------------------------------------

    def digest(self, *, fresh: bool = False) -> str:
        self._flush()
        if self._digest is not None and not fresh:
            return self._digest
        return self._session.digest(self.staged, self.path, self._length, fresh=fresh)

    def replay(self, update: Callable[[memoryview], object], *, fresh: bool = False) -> bool:
        self._flush()
        buffer = memoryview(aligned_buffer(1 << 20))
        with RsyncReader(self._session, self.path, self.staged) as reader:
            while n := reader.readinto(buffer):
                update(buffer[:n])
        return True

    def rewind(self, offset: int) -> int:
        self._flush()
        self._session.shell.run("cannot shorten the part", self.path, f"truncate -s {offset} -- {self._at}")
        self.offset = self._length = offset
        return offset

    # -- the end --------------------------------------------------------------------------------------------------

    def seal(self) -> None:
        self._flush()
        if self.mtime_ns is not None and not self._stamped:
            seconds, rest = divmod(self.mtime_ns, 1_000_000_000)
            script = f"touch -c -d '@{seconds}.{rest:09}' -- {self._at}"
            self._session.shell.run("cannot set its time", self.path, script)
        self._stamped = True

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        name = self.path if path is None else names.check_path(path)
        self.seal()
        final, folder = quote(name), quote(name.rpartition("/")[0])
        rename = (
            f"mv -fT -- {self._at} {final}"
            if replace
            # a hard link never overwrites; where there are none, `mv -n` looks first
            else f"if ln -T -- {self._at} {final}; then rm -f -- {self._at}\n"
            f"elif [ -e {final} ] || [ -h {final} ]; then echo 'File exists'; exit 1\n"
            f"else mv -nT -- {self._at} {final} && [ ! -e {self._at} ]; fi"
        )
        script = f"(sync -- {self._at} || exit 1\n{rename} || exit 1\nsync -- {folder})"
        shell = self._session.shell
        code, said = shell.ask("cannot give it its final name", name, script, within=shell.durably)
        if code:
            words = said.decode("utf-8", "replace")
            if "File exists" in words and not replace:
                raise Conflict("something is already at the final name", path=name)
            raise failure("cannot give it its final name", words, name)
        self.path = name
        return name

    def keep(self) -> None:
        self._flush()
        shell = self._session.shell
        shell.run("cannot keep the part", self.path, f"sync -- {self._at}", within=shell.durably)

    def abort(self) -> None:
        self._small = bytearray()
        if self._stream is not None:
            stream, self._stream = self._stream, None
            with contextlib.suppress(OnblockError):
                stream.finish("cannot end it", self.path)  # nobody writes any more when the file is removed
            stream.close()
        self._session.shell.run("cannot remove the temporary file", self.path, f"rm -f -- {self._at}")
