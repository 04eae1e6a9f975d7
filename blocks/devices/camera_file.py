"""Files of cameras on their way: ranged GETs, and the reader that is made of them.

A camera computes no checksum. What can be known is that as many bytes came as were announced and listed, that listing
and ETag or Last-Modified are the same before and after, and what TCP's own sum lets through: a file never ends before
its time, and what changes while it is read is noticed. Connections and refusals are in `camera_http.py`.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from blocks.devices.camera_http import Wire, unreachable
from blocks.errors import NetworkError, NotFound, SourceChanged, SourceVanished, UnknownError
from blocks.storage.base import FileInfo, Reader

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

FIRST = 256 << 10
"""Bytes asked for when a file is opened: all of a small one; a large one that is only looked at costs no more."""

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(?:(\d{1,18})|\*)\Z")


def get(wire: Wire, target: str, first: int, last: int | None, path: str) -> Part:
    """Ask for bytes `first` to `last` (to the end: None) of a file. Raises SourceVanished."""
    spec = f"bytes={first}-{'' if last is None else last}"
    connection, answer = wire.request("GET", target, {"Range": spec}, None, path)
    if answer.status in (200, 206, 416):
        return Part(wire, connection, answer, first, path)
    try:
        found = json.loads(answer.read(65536))
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        found = {}
    connection.close()
    failure = wire.refusal(answer.status, found if isinstance(found, dict) else {}, path)
    if isinstance(failure, NotFound):
        raise SourceVanished("is no longer on the camera", path=path) from failure
    raise failure


class Part:
    """Some bytes of a file on their way: the answer to one ranged GET, from the byte that was asked for.

    `total` is the size of the whole file, None if the camera does not say; `left` are bytes of this answer to come,
    None if only its end will tell. A camera that ignores ranges sends all of it: what was not asked for is dropped.
    """

    def __init__(
        self,
        wire: Wire,
        connection: http.client.HTTPConnection,
        answer: http.client.HTTPResponse,
        first: int,
        path: str,
    ):
        self.wire, self.path = wire, path
        self._connection, self._answer = connection, answer
        self.ignores_ranges = answer.status == 200 and first > 0
        try:
            self.total, self.left = self._sizes(first)
            self.validator = (answer.headers.get("ETag"), answer.headers.get("Last-Modified"), self.total)
            if self.ignores_ranges:
                self._drop(first)
        except BaseException:
            connection.close()
            raise
        self._settle()

    @property
    def is_validated(self) -> bool:
        """Whether the camera says more of the file's version than its size."""
        return self.validator[0] is not None or self.validator[1] is not None

    def _sizes(self, first: int) -> tuple[int | None, int | None]:
        answer = self._answer
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise UnknownError(f"{self.wire.where} sends the file encoded, which nobody asked for", path=self.path)
        if answer.status == 200:
            return answer.length, answer.length
        found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
        total = None if found is None or found[3] is None else int(found[3])
        if answer.status == 416:
            if (total or 0) > first:
                raise UnknownError(f"{self.wire.where} refuses a range that the file has", path=self.path)
            answer.read(65536)
            return total or 0, 0
        if found is None or found[1] is None or int(found[1]) != first:
            raise UnknownError(f"{self.wire.where} answers with another range than was asked for", path=self.path)
        length = int(found[2]) + 1 - first
        if answer.length not in (None, length) or length < 0:
            raise UnknownError(f"{self.wire.where} contradicts itself about the length of a range", path=self.path)
        return total, length

    def _drop(self, count: int) -> None:
        """Read and forget."""
        scratch = memoryview(bytearray(FIRST))
        while count:
            n = self.readinto(scratch[: min(count, FIRST)])
            if not n:
                raise SourceChanged("is shorter than what was read of it before", path=self.path)
            count -= n

    def readinto(self, view: memoryview) -> int:
        """Some bytes into `view`; 0 at the end of this part. Raises NetworkError if it ends too early."""
        if self.left is not None:
            view = view[: self.left]
        if not len(view):
            return 0
        try:
            n = self._answer.readinto(view)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise unreachable(error, self.wire.where, self.path) from error
        if self.left is not None:
            if not n:
                self.close()
                raise NetworkError(f"{self.wire.where} stopped {self.left} bytes too early", path=self.path)
            self.left -= n
        elif not n:
            self.left = 0
        self._settle()
        return n

    def _settle(self) -> None:
        """At the end, the connection is free for the next question."""
        if self.left == 0 and self._connection is not None:
            connection, self._connection = self._connection, None
            if self._answer.length == 0 and not self._answer.isclosed():
                self._answer.read()
            self.wire.put_back(connection, self._answer)

    def close(self) -> None:
        """Let go of it, also in the middle."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def glance(wire: Wire, target: str, path: str) -> Part:
    """What the camera says of a file, for a byte of it; closed."""
    part = get(wire, target, 0, 0, path)
    try:
        part.readinto(memoryview(bytearray(1)))
    finally:
        part.close()
    return part


class CameraReader(Reader):
    """One file of a camera. `listed(path)` asks the listing what it is now; NotFound if it is not there."""

    def __init__(self, wire: Wire, path: str, target: str, offset: int, listed: Callable[[str], FileInfo]):
        self.path = path
        self._wire, self._target, self._listed, self._at = wire, target, listed, offset
        self._part = get(wire, target, offset, offset + FIRST - 1, path)
        self._first = self._part

    @property
    def is_validated(self) -> bool:
        """Whether the camera says more of the file's version than its size."""
        return self._first.is_validated

    def readinto(self, buffer: Buffer) -> int:
        view, got = memoryview(buffer), 0
        while got < len(view):
            n = self._part.readinto(view[got:])
            if not n and not self._next():
                break
            got += n
            self._at += n
        return got

    def _next(self) -> bool:
        """Ask for the rest of the file; False at its end."""
        total = self._first.total
        if total is None or self._at >= total:
            return False
        self._part = get(self._wire, self._target, self._at, None, self.path)
        if self._part.validator != self._first.validator:
            raise SourceChanged("changed while it was read", path=self.path)
        if self._part.left == 0:
            raise NetworkError(f"{self._wire.where} stopped at byte {self._at} of {total}", path=self.path)
        return True

    def info(self) -> FileInfo:
        if self._first.is_validated and glance(self._wire, self._target, self.path).validator != self._first.validator:
            raise SourceChanged("changed while it was read", path=self.path)
        try:
            return self._listed(self.path)
        except NotFound as error:
            raise SourceVanished("was removed while it was read", path=self.path) from error

    def close(self) -> None:
        self._part.close()
