"""One file on an SFTP server, on its way here or there: requests are sent ahead of their answers."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from blocks.errors import NetworkError, OnblockError, SourceVanished
from blocks.storage import sftp_messages as wire
from blocks.storage.base import FileInfo, Reader, Upload
from blocks.storage.sftp_messages import Ask, Messages, Refused, string
from blocks.storage.sftp_server import EOF, NO_SUCH_FILE, SftpServer, info_of, raise_unless

if TYPE_CHECKING:
    from blocks.storage.base import Buffer
    from blocks.storage.sftp_follow import Follower

DEPTH = 32
"""Reads or writes of one file that are under way at once, each of up to 255 KiB."""
SMALL = 1 << 20
"""Below this size a digest is cheaper by reading back than by a command at the far side."""


class Ahead:
    """The bytes of an open file from `at` to `end`, asked for ahead of their use: few at first, then up to `DEPTH`."""

    def __init__(self, messages: Messages, handle: bytes, at: int, end: int):
        self._wire, self._handle, self._next, self._end = messages, handle, at, end
        self._asked: deque[tuple[int, int, int]] = deque()  # offset, length, request
        self._depth = 2
        self.fill()

    def fill(self) -> None:
        """Ask for more, as far as may be under way."""
        while len(self._asked) < self._depth and self._next < self._end:
            size = min(self._wire.read_max, self._end - self._next)
            self._asked.append((self._next, size, self._ask(self._next, size)))
            self._next += size

    def _ask(self, at: int, size: int) -> int:
        return self._wire.send(Ask.READ, self._handle + struct.pack(">QI", at, size))

    @property
    def all_asked(self) -> bool:
        """Nothing more will be asked for."""
        return self._next >= self._end

    def chunk(self) -> memoryview | bytes:
        """The next bytes; none at the end. Raises Refused."""
        if not self._asked:
            return b""
        at, size, number = self._asked.popleft()
        try:
            data = self._wire.data(number)
        except Refused as refused:
            if refused.code != EOF:
                raise
            self.stop()  # it ends sooner than its size said
            return b""
        self._took(at, size, len(data))
        return data

    def into(self, view: memoryview) -> int:
        """The next bytes straight into `view`; 0 where that can't be, and at the end: `chunk` tells."""
        if not self._asked or len(view) < self._asked[0][1]:
            return 0
        at, size, number = self._asked[0]
        got = self._wire.data_into(number, view[:size])
        if got:
            self._asked.popleft()
            self._took(at, size, got)
        return got

    def _took(self, at: int, size: int, got: int) -> None:
        if 0 < got < size:  # a server may answer with less than was asked for
            rest = size - got
            self._asked.appendleft((at + got, rest, self._ask(at + got, rest)))
        self._depth = min(DEPTH, self._depth * 2)
        self.fill()

    def stop(self) -> None:
        """Nobody wants the rest."""
        self._next = self._end
        while self._asked:
            self._wire.forget(self._asked.popleft()[2])


class SftpReader(Reader):
    """One open file."""

    def __init__(self, server: SftpServer, path: str, full: bytes, handle: bytes, offset: int, size: int):
        self.path = path
        self._server, self._full, self._handle = server, full, handle
        self._chunk = memoryview(b"")
        self._left = max(0, size - offset)
        self._look: int | None = None
        with server.telling("cannot read it", path):
            self._ahead = Ahead(server.wire, handle, offset, size)
            self._look_behind()

    def _look_behind(self) -> None:
        """Once the last bytes are asked for, ask also how the file is after them: the answer comes with theirs."""
        if self._look is None and self._ahead.all_asked:
            self._look = self._server.wire.send(Ask.LSTAT, string(self._full))

    def readinto(self, buffer: Buffer) -> int:
        got = 0
        with self._server.telling("cannot read it", self.path), memoryview(buffer) as view:
            while got < len(view):
                if not self._chunk:
                    if n := self._ahead.into(view[got:]):
                        self._look_behind()
                        got += n
                        continue
                    self._chunk = memoryview(self._ahead.chunk())
                    if not self._chunk:
                        break
                    self._look_behind()
                n = min(len(self._chunk), len(view) - got)
                view[got : got + n] = self._chunk[:n]
                self._chunk = self._chunk[n:]
                got += n
        self._left -= got
        return got

    def info(self) -> FileInfo:
        wire_ = self._server.wire
        with self._server.telling("cannot look at it", self.path):
            number, self._look = self._look, None
            if number is None or self._left:  # asked before all was read: too old
                if number is not None:
                    wire_.forget(number)
                number = wire_.send(Ask.LSTAT, string(self._full))
            try:
                found = wire_.attributes(number)
                if found.is_link():
                    found = wire_.attributes(wire_.send(Ask.STAT, string(self._full)))
            except Refused as refused:
                if refused.code == NO_SUCH_FILE:
                    raise SourceVanished("was removed or renamed while it was read", path=self.path) from refused
                raise
            self._look = None
        return info_of(self.path, found)

    def close(self) -> None:
        handle, self._handle = self._handle, b""
        if handle:
            self._ahead.stop()
            self._server.let_go(handle, *([self._look] if self._look is not None else []))


class SftpUpload(Upload):
    """One file under its temporary name."""

    def __init__(
        self,
        server: SftpServer,
        path: str,
        staged: bytes,
        handle: bytes,
        offset: int,
        size: int,
        mtime_ns: int | None,
        follower: Follower | None = None,
    ):
        self.path, self.staged, self.offset = path, staged, offset
        self._follower = follower
        self._server, self._wire = server, server.wire
        self._handle, self._at = handle, offset
        self._large = size >= SMALL
        seconds = None if mtime_ns is None else mtime_ns // 1_000_000_000
        self._mtime = seconds if seconds is not None and 0 <= seconds < 1 << 32 else None
        self._under_way: deque[int] = deque()
        self._broken: OnblockError | None = None
        self.unsynced = True
        """Its bytes may not be on the disk yet: a barrier must come before the rename."""

    def write(self, chunk: memoryview) -> None:
        self._check()
        with self._server.telling("cannot write it", self.path):
            for start in range(0, len(chunk), self._wire.write_max):
                part = chunk[start : start + self._wire.write_max]
                head = self._handle + struct.pack(">QI", self._at, len(part))
                self._under_way.append(self._wire.send(Ask.WRITE, head, part))
                self._at += len(part)
                while len(self._under_way) > DEPTH or (self._under_way and self._wire.answered(self._under_way[0])):
                    self._conclude(self._under_way.popleft())
        if self._follower is not None:
            self._follower.reached(self._at - len(self._under_way) * self._wire.write_max)

    def _conclude(self, number: int) -> None:
        if (refused := self._wire.outcome(number)) and self._broken is None:
            self._broken = self._server.base.no_room(refused, self.path) or self._server.failure(
                refused, "cannot write it", self.path
            )
        self._check()

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    def settle(self) -> None:
        """Wait until the server has answered for all that was sent; raises what it refused."""
        with self._server.telling("cannot write it", self.path):
            while self._under_way:
                self._conclude(self._under_way.popleft())
        self._check()

    def matches(self, sha256: str, *, fresh: bool = False) -> bool | None:
        follower, self._follower = self._follower, None
        if follower is not None:
            if fresh:
                follower.drop()
            else:
                self.settle()
                if follower.finish(self._server.patience(self._at)) == sha256:
                    return True
        elif self._large and not fresh:
            with self._server.telling("cannot hash it", self.path):
                self.settle()
                if self._server.followed(self._handle, self._at) == sha256:
                    return True
        return super().matches(sha256, fresh=fresh)

    def _unfollow(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.drop()

    def digest(self, *, fresh: bool = False) -> str | None:
        if "sha256" not in self._server.tools or (self._at < SMALL and not fresh):
            return super().digest(fresh=fresh)
        self.settle()
        if fresh:
            self._fsync()
        return self._server.hash_there(self.staged, self._at, self.path, fresh=fresh)

    def replay(self, update: Callable[[memoryview], object], *, fresh: bool = False) -> bool:
        self._check()
        if fresh:
            self._fsync()
        with self._server.telling("cannot read it back", self.path):
            end = self._at if self._under_way else self._wire.attributes(self._wire.send(Ask.FSTAT, self._handle)).size
            ahead = Ahead(self._wire, self._handle, 0, end)
            try:
                self.settle()
                while data := ahead.chunk():
                    update(memoryview(data))
            finally:
                ahead.stop()
        return True

    def _fsync(self) -> None:
        self.settle()
        if wire.FSYNC in self._wire.extensions:
            with self._server.telling("cannot make it durable", self.path):
                self._wire.answer(self._wire.send(Ask.EXTENDED, string(wire.FSYNC) + self._handle))

    def rewind(self, offset: int) -> int:
        self._unfollow()
        self.settle()
        with self._server.telling("cannot shorten the part", self.path):
            self._wire.answer(self._wire.send(Ask.FSETSTAT, self._handle + wire.attributes(size=offset)))
        self._at = self.offset = offset
        return offset

    def seal(self) -> None:
        """What ends a file is sent at once, and answered for at the commit."""
        self._unfollow()
        handle, self._handle = self._handle, b""
        if not handle:
            return
        with self._server.telling("cannot finish it", self.path):
            if self._mtime is not None:
                self._under_way.append(self._wire.send(Ask.FSETSTAT, handle + wire.attributes(mtime=self._mtime)))
            # small files of a page share one barrier where a shell can make it
            if (self._large or "sync" not in self._server.tools) and wire.FSYNC in self._wire.extensions:
                self._under_way.append(self._wire.send(Ask.EXTENDED, string(wire.FSYNC) + handle))
                self.unsynced = False
            self._under_way.append(self._wire.send(Ask.CLOSE, handle))

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        server, name = self._server.base, self.path if path is None else path
        final = server.at(name)
        self.seal()
        self.settle()
        if self.unsynced:
            server.sync([self.staged])
            self.unsynced = False
        with server.telling("cannot give it its final name", name):
            if replace:
                server.replace(self.staged, final, name)
            else:
                server.rename(self.staged, final, name)
        self.path = name
        server.sync(server.folders_of([final]))
        return name

    def keep(self) -> None:
        self._mtime = None  # the time is set when the file is whole
        self.seal()
        self.settle()
        if self.unsynced:
            self._server.sync([self.staged])

    def abort(self) -> None:
        self._mtime, self._broken = None, None
        self._unfollow()
        handle, self._handle = self._handle, b""
        self._server.let_go(handle or None, *self._under_way)
        self._under_way.clear()
        if (names := self._server.base.wire) is not self._wire:  # its room is free once it is closed there, too
            with suppress(NetworkError), self._server.telling("cannot close it", self.path):
                self._wire.hurry()
        with self._server.telling("cannot remove the temporary file", self.path):
            raise_unless(names.outcome(names.send(Ask.REMOVE, string(self.staged))), NO_SUCH_FILE)
