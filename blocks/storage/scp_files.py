"""One file on its way from or to a host, by the protocol that `scp -O` speaks, and by `cat` and `tail` where that cannot."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from blocks.errors import NetworkError, UnknownError
from blocks.storage.base import FileInfo, Reader, Upload
from blocks.storage.scp_host import ScpHost

if TYPE_CHECKING:
    import paramiko

    from blocks.storage.base import Buffer

PACKET = 32 << 10
TAIL = 256 << 10
"""Bytes of the end that are remembered: what a far `scp` that is ended early may not have written out."""


class ScpReader(Reader):
    """One file on its way here: by `scp -f` from its beginning, by `tail -c` from elsewhere."""

    def __init__(self, host: ScpHost, path: str, full: str, offset: int, inode: str):
        self.path = path
        self._host, self._inode = host, inode
        self._rest = b""
        self._left: int | None = None  # bytes, where scp has said how many
        word = host.word(full)
        with host.telling("cannot open it", path):
            if offset:
                self._channel = host.connection.execute(b"tail -c +%d < " % (offset + 1) + word)
            else:
                self._channel = host.connection.execute(b"env LC_ALL=C scp -f " + word)
                self._channel.sendall(b"\0")
                head = _line(self._channel, path)
                if not (match := re.match(rb"C[0-7]{4} (\d+) ", head)):
                    raise UnknownError(f"scp said {head[:80]!r}", path=path)
                self._left = int(match[1])
                self._channel.sendall(b"\0")

    def readinto(self, buffer: Buffer) -> int:
        got = 0
        with self._host.telling("cannot read it", self.path), memoryview(buffer) as view:
            while got < len(view):
                want = len(view) - got
                if self._left is not None:
                    want = min(want, self._left)
                    if not want:
                        break
                part = self._channel.recv(min(want, 1 << 20))
                if not part:
                    self._ended()
                    break
                view[got : got + len(part)] = part
                got += len(part)
                if self._left is not None:
                    self._left -= len(part)
                    if not self._left:  # scp now says whether it could read all of it
                        _acknowledged(self._channel, self.path)
        return got

    def _ended(self) -> None:
        """The stream is over: only a program that ended well has given all."""
        from blocks.storage.ssh import Failed, exit_status, told

        if self._left is not None:
            raise EOFError
        if status := exit_status(self._channel):
            raise Failed(status, told(self._channel.recv_stderr(4096)))

    def info(self) -> FileInfo:
        return self._host.look_again(self.path, self._inode)

    def close(self) -> None:
        self._host.connection.drop(self._channel)


class ScpUpload(Upload):
    """One file under its temporary name. `scp -t` wants to know the size beforehand: what differs goes by `cat >>`."""

    def __init__(self, host: ScpHost, path: str, staged: str, offset: int, size: int, mtime_ns: int | None):
        self.path, self.staged, self.offset = path, staged, offset
        self._host, self._mtime = host, mtime_ns
        self._at, self._size = offset, size
        self._channel: paramiko.Channel | None = None
        self._left: int | None = None  # bytes that scp waits for; None where it is cat
        self._tail = b""
        self._sealed = False

    def write(self, chunk: memoryview) -> None:
        with self._host.telling("cannot write it", self.path), chunk.cast("B") as rest:
            try:
                self._send(rest)
            except OSError:
                channel = self._channel
                if channel is None or not channel.closed or not self._host.connection.transport.is_active():
                    raise
                _refused(channel, b"", self.path)  # the program has ended, and said why

    def _send(self, rest: memoryview) -> None:
        at = 0
        while at < len(rest):
            if self._channel is None:
                self._start()
            channel = self._channel
            assert channel is not None
            end = len(rest) if self._left is None else min(len(rest), at + self._left)
            for start in range(at, end, PACKET):
                channel.sendall(bytes(rest[start : min(end, start + PACKET)]))
            self._at += end - at
            if self._left is not None:
                self._tail = (self._tail + bytes(rest[max(at, end - TAIL) : end]))[-TAIL:]
                self._left -= end - at
                if not self._left:
                    self._finish()
            at = end

    def _start(self) -> None:
        word, execute = self._host.word(self.staged), self._host.connection.execute
        if self._at or not self._size:
            self._channel, self._left = execute(b"cat >> " + word), None
            return
        self._channel, self._left = execute(b"env LC_ALL=C scp -t " + word), self._size
        _acknowledged(self._channel, self.path)
        self._channel.sendall(b"C0666 %d part\n" % self._size)
        _acknowledged(self._channel, self.path)

    def _finish(self) -> None:
        """All that was written lies at the host, whatever it went by."""
        from blocks.storage.ssh import Failed, exit_status, told

        channel, left = self._channel, self._left
        self._channel = self._left = None
        if channel is None:
            return
        with self._host.telling("cannot write it", self.path):
            if left == 0:
                channel.sendall(b"\0")
                _acknowledged(channel, self.path)
            channel.shutdown_write()
            while channel.recv(4096):
                pass
            status = exit_status(channel)
            words = told(channel.recv_stderr(4096))
            self._host.connection.drop(channel)
            if not left:
                if status:
                    raise Failed(status, words)
                return
            self._complete()

    def _complete(self) -> None:
        """scp was ended before the size it was told: it may have kept the last bytes to itself."""
        word = self._host.word(self.staged)
        there = int(self._host.run(b"stat -c %s " + word, "cannot look at it", self.path))
        missing = self._at - there
        if not 0 <= missing <= len(self._tail):
            raise NetworkError(f"{missing} bytes did not arrive", path=self.path)
        if missing:
            self._channel = self._host.connection.execute(b"cat >> " + word)
            self._channel.sendall(self._tail[-missing:])
            self._finish()

    def digest(self, *, fresh: bool = False) -> str | None:
        self._finish()
        if not self._host.hashes:
            return super().digest(fresh=fresh)
        if fresh:
            self._sync()
        return self._host.hash_there(self.staged, self._at, self.path, fresh=fresh)

    def replay(self, update: Callable[[memoryview], object], *, fresh: bool = False) -> bool:
        self._finish()
        if fresh:
            self._sync()
        from blocks.storage.ssh import exit_status

        with self._host.telling("cannot read it back", self.path):
            channel = self._host.connection.execute(b"cat < " + self._host.word(self.staged))
            while part := channel.recv(1 << 20):
                update(memoryview(part))
            if exit_status(channel):
                raise EOFError
            self._host.connection.drop(channel)
        return True

    def _sync(self) -> None:
        words = b"sync " + self._host.word(self.staged) if "sync" in self._host.tools else b"sync"
        self._host.run(words, "cannot make it durable", self.path, size=self._at)

    def rewind(self, offset: int) -> int:
        self._finish()
        word = self._host.word(self.staged)
        self._host.run(
            b"dd if=/dev/null of=" + word + b" bs=1 count=0 seek=%d 2>/dev/null" % offset, "cannot cut it", self.path
        )
        self._at = self.offset = offset
        return offset

    def seal(self) -> None:
        if self._sealed:
            return
        self._finish()
        self._sealed = True
        if self._mtime is not None:
            word = self._host.word(self.staged)
            seconds, fraction = divmod(self._mtime, 1_000_000_000)
            exact = b"touch -m -d @%d.%09d " % (seconds, fraction) + word + b" 2>/dev/null || " if fraction else b""
            self._host.run(exact + b"touch -m -d @%d " % seconds + word, "cannot set its time", self.path)

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        host, name = self._host, self.path if path is None else path
        final = host.at(name)
        self.seal()
        sync = b"sync " + host.word(self.staged) if "sync" in host.tools else b"sync"
        take = b"mv -fT " if replace else b"onblock_take "
        script = sync + b" || exit\n" + take + host.word(self.staged) + b" " + host.word(final) + b" || exit\n"
        host.run(script + host.sync_folders([final]), "cannot give it its final name", name, size=self._at)
        self.path = name
        return name

    def keep(self) -> None:
        self._mtime = None  # the time is set when the file is whole
        self.seal()
        self._sync()

    def abort(self) -> None:
        channel, self._channel, self._sealed = self._channel, None, True
        if channel is not None:
            self._host.connection.drop(channel)
        word = self._host.word(self.staged)
        self._host.run(b"rm -f " + word + b" || ! [ -e " + word + b" ]", "cannot remove the temporary file", self.path)


def _acknowledged(channel: paramiko.Channel, path: str) -> None:
    """The far `scp` says 0, or 1 or 2 and what is wrong. Raises Failed."""
    byte = channel.recv(1)
    if byte != b"\0":
        _refused(channel, byte, path)


def _line(channel: paramiko.Channel, path: str) -> bytes:
    """One line of the far `scp`. Raises Failed if it is a complaint."""
    line = channel.recv(1)
    if line in (b"", b"\1", b"\2"):
        _refused(channel, line, path)
    while not line.endswith(b"\n") and len(line) < 8192:
        part = channel.recv(1)
        if not part:
            raise EOFError
        line += part
    return line


def _refused(channel: paramiko.Channel, byte: bytes, path: str) -> None:
    from blocks.storage.ssh import Failed, exit_status, told

    words = byte if byte not in (b"\1", b"\2") else b""
    while byte and b"\n" not in words and len(words) < 8192:
        part = channel.recv(4096)
        if not part:
            break
        words += part
    if not words:
        words = channel.recv_stderr(4096)
    status = 1
    if not words:
        status = exit_status(channel)
    raise Failed(status, told(words))
