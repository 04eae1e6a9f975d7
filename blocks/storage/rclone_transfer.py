"""One file on its way through an rclone daemon: the reader, the upload, and copies by rclone itself hashed by us.

A small file is gathered and sent as one request; a larger one is streamed, in chunks as they come.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
from collections.abc import Callable
from contextlib import AbstractContextManager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, urlencode

from blocks import names
from blocks.errors import (
    DiskFull,
    HashMismatch,
    NetworkError,
    NotFound,
    OnblockError,
    SourceChanged,
    SourceVanished,
    UnknownError,
)
from blocks.storage.base import FileInfo, Reader, Upload, aligned_buffer
from blocks.storage.rclone_daemon import Wire, answer

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

SMALL = 1 << 20
"""Bytes of a file that are gathered before it is sent: a smaller one is one request, and no open connection."""
_BOUNDARY = "onblock-8f1d6c7e5b3a4029"


class Remote(Protocol):
    """What a file on its way asks of its session."""

    fs: str

    def wire(self) -> AbstractContextManager[Wire]: ...

    def encode(self, path: str) -> str: ...

    def stat(self, path: str) -> FileInfo: ...

    def far_hash(self, path: str, kind: str) -> str: ...

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str: ...

    def delete(self, path: str) -> None: ...

    def rename(self, path: str, to: str, said: str, *, replace: bool = False) -> None: ...

    def free_bytes(self) -> int | None: ...


class RcloneReader(Reader):
    """One file, by one HTTP answer of the daemon. Read from its begin to its end it is held against the hash `proof`
    that the far side keeps, "" for none; what comes before `offset` may be shown first, and nothing is asked meanwhile."""

    def __init__(self, session: Remote, path: str, offset: int = 0, proof: str = ""):
        self.path, self._session, self._offset = path, session, offset
        self._waiting = hashlib.new(proof) if proof else None
        self._proof = None if offset else self._waiting
        self._size = 0  # of what has come
        self._stack = contextlib.ExitStack()
        self._wire: Wire | None = None
        if not offset:
            self._open()

    def _open(self) -> None:
        path, session, offset = self.path, self._session, self._offset
        wire = self._stack.enter_context(session.wire())
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            try:
                wire.request(
                    "GET", f"/{quote(f'[{session.fs}]', safe='')}/{quote(session.encode(path))}", None, headers
                )
                self._answer = wire.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise wire.broken(error, "cannot open it", path) from error
            if self._answer.status not in (200, 206, 416):
                answer(self._answer.status, self._answer.read(), "cannot open it", path)
        except NotFound as error:
            self._stack.close()
            raise SourceVanished("is no longer there", path=path) from error
        except BaseException:
            wire.close()
            self._stack.close()
            raise
        self._wire = wire
        self._left = self._answer.length if self._answer.status != 416 else 0
        if offset and self._answer.status == 200:
            self._skip(wire, offset)

    def _skip(self, wire: Wire, count: int) -> None:
        buffer = memoryview(bytearray(min(count, 1 << 20)))
        while count and (n := self._receive(wire, buffer[: min(count, len(buffer))])):
            count -= n

    def before(self, view: memoryview) -> None:
        self._proof = self._waiting
        if self._proof is not None:
            self._proof.update(view)
            self._size += len(view)

    def readinto(self, buffer: Buffer) -> int:
        if self._wire is None:
            self._open()
        assert self._wire is not None
        view, got = memoryview(buffer), 0
        while got < len(view) and (n := self._receive(self._wire, view[got:])):
            if self._proof is not None:
                self._proof.update(view[got : got + n])
            got += n
        self._size += got
        if self._left == 0 or got < len(view):
            self._compare()
        return got

    def _receive(self, wire: Wire, view: memoryview) -> int:
        """Some of the next bytes; none at the end."""
        if self._left == 0:
            return 0
        try:
            n = self._answer.readinto(view)
        except (OSError, http.client.HTTPException) as error:
            raise wire.broken(error, "the reading broke off", self.path) from error
        if self._left is not None:
            self._left -= n
            if not n:
                wire.close()
                raise NetworkError(f"ended {self._left} bytes too early", path=self.path)
        return n

    def _compare(self) -> None:
        """Whether what came is what lies there: TCP alone lets a flipped bit through."""
        proof, self._proof = self._proof, None
        if proof is None or not self._size:
            return
        try:
            far = self._session.far_hash(self.path, proof.name).lower()
        except NotFound:
            return  # moved away meanwhile: `info` tells
        if len(far) != 2 * proof.digest_size or far == proof.hexdigest():
            return  # or nobody keeps one of this file
        now = self.info()
        opened = self._answer.headers.get("Last-Modified", "")
        if now.size != self._size or (opened and parsedate_to_datetime(opened).timestamp() != now.mtime_ns // 10**9):
            raise SourceChanged("changed while it was read", path=self.path)
        raise HashMismatch(f"the bytes that came do not give the {proof.name} that the far side keeps", path=self.path)

    def info(self) -> FileInfo:
        try:
            return self._session.stat(self.path)
        except NotFound as error:
            raise SourceVanished("was removed or renamed while it was read", path=self.path) from error

    def close(self) -> None:
        if self._wire is None:
            return
        if not self._answer.isclosed() and (self._left is None or self._left):
            self._wire.close()
        elif not self._answer.isclosed():
            self._answer.read()
        self._stack.close()


def pour(session: Remote, path: str, update: Callable[[memoryview], object]) -> None:
    """Read back what we have written; the caller knows what it should be."""
    buffer = memoryview(aligned_buffer(1 << 20))
    with RcloneReader(session, path) as reader:
        while n := reader.readinto(buffer):
            update(buffer[:n])


class RcloneUpload(Upload):
    """One file under its temporary name. What is small is gathered first and is one request."""

    def __init__(self, session: Remote, path: str, key: str, announced: tuple[int, int | None]):
        self.path, self._session = path, session
        self.size, self.mtime_ns = announced
        self._names = (names.temporary(path, key), names.temporary(path, key + "\0 again"))
        self.staged = self._names[0]
        self._small: bytearray | None = bytearray()  # None when there is more than that
        self._stream: tuple[contextlib.ExitStack, Wire] | None = None
        self._there = False  # the staged file is whole, as far as it was written
        self._written = 0

    def write(self, chunk: memoryview) -> None:
        if not len(chunk):
            return
        self._written += len(chunk)
        if self._small is not None and len(self._small) + len(chunk) <= SMALL:
            self._small += chunk
            self._there = False
            return
        if self._stream is None:
            self._begin()
        self._send(chunk)

    def _begin(self) -> None:
        """Open a stream to the far side, and send again what is there already: rclone cannot append."""
        there, before = self._there and self._small is None, self.staged
        if there:
            self.staged = self._names[before == self._names[0]]
        stack = contextlib.ExitStack()
        one = stack.enter_context(self._session.wire())
        self._stream = stack, one
        one.putrequest("POST", self._target())
        one.putheader("Content-Type", f"multipart/form-data; boundary={_BOUNDARY}")
        one.putheader("Transfer-Encoding", "chunked")
        self._guard(one.endheaders)
        self._send(memoryview(self._head()))
        if self._small is not None:
            small, self._small = self._small, None
            self._send(memoryview(small))
        if there:
            pour(self._session, before, self._send)
            self._session.delete(before)
        self._there = False

    def _target(self) -> str:
        folder = self.staged.rpartition("/")[0]
        return "/operations/uploadfile?" + urlencode(
            {"fs": self._session.fs, "remote": folder and self._session.encode(folder)}
        )

    def _head(self) -> bytes:
        name = self.staged.rpartition("/")[2]  # plain ASCII
        return (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()

    def _send(self, data: memoryview) -> None:
        assert self._stream is not None
        one = self._stream[1]
        if len(data):
            self._guard(lambda: (one.send(b"%x\r\n" % len(data)), one.send(data), one.send(b"\r\n")))

    def _guard(self, act: Callable[[], object]) -> None:
        """Do something on the stream. If the daemon has hung up, its answer says why."""
        assert self._stream is not None
        stack, one = self._stream
        try:
            act()
        except (OSError, http.client.HTTPException) as error:
            self._stream = None
            try:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    response = one.getresponse()
                    self._judge(response.status, response.read())
                raise one.broken(error, "cannot write it", self.path) from error
            finally:
                one.close()
                stack.close()

    def _finish(self) -> None:
        """All that was written lies at the far side under the temporary name."""
        if self._there:
            return
        if self._stream is None and self._small is None:
            raise NetworkError("the connection broke while it was written", path=self.path)
        tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
        if self._stream is None:
            assert self._small is not None
            body = self._head() + self._small + tail
            stack = contextlib.ExitStack()
            one = stack.enter_context(self._session.wire())
            self._stream = stack, one
            form = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
            self._guard(lambda: one.request("POST", self._target(), body, form))
        else:
            stack, one = self._stream
            self._send(memoryview(tail))
            self._guard(lambda: one.send(b"0\r\n\r\n"))
        found: list[http.client.HTTPResponse] = []
        self._guard(lambda: found.append(one.getresponse()))
        body = found[0].read()
        self._stream = None
        stack.close()
        self._judge(found[0].status, body)
        self._there = True

    def _judge(self, status: int, body: bytes) -> None:
        """What the far side made of the file. SFTP has no word for a full disk: then its size is held against the room."""
        try:
            answer(status, body, "cannot write it", self.path)
        except UnknownError as error:
            free = self._session.free_bytes()
            if free is not None and free < self._written:
                raise DiskFull(f"{error.what}; {free} bytes are free", path=self.path) from error
            raise

    def filled(self) -> None:
        """`push` has written all of it."""
        self._small, self._there = None, True

    def digest(self, *, fresh: bool = False) -> str:
        self._finish()
        return self._session.checksum(self.staged, fresh=fresh)

    def replay(self, update: Callable[[memoryview], object], *, fresh: bool = False) -> bool:
        self._finish()
        pour(self._session, self.staged, update)
        return True

    def seal(self) -> None:
        self._finish()

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        name = self.path if path is None else names.check_path(path)
        self._finish()
        self._session.rename(self.staged, name, name, replace=replace)
        self.path = name
        return name

    def keep(self) -> None:
        self.abort()  # there is no going on inside a file

    def abort(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OnblockError):
                self._finish()  # a request that is ended in order leaves nobody behind who still writes
        with contextlib.suppress(NotFound):
            self._session.delete(self.staged)
