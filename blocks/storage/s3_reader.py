"""Reading from S3: ranges side by side, ahead of need, all held against the checksums that the server keeps."""

from __future__ import annotations

import http.client
import logging
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

from blocks.errors import ConfigError, HashMismatch, NotFound, OnblockError, SourceChanged, SourceVanished
from blocks.storage.base import FileInfo, Reader
from blocks.storage.s3_bucket import MIB, Bucket, info_of
from blocks.storage.s3_proof import NeedsPartSize, Proof, evidence
from blocks.storage.s3_wire import FAILURES, Refused, as_failure

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

log = logging.getLogger("onblock.s3")

SEGMENT = 8 * MIB
"""Bytes of one ranged read."""
AHEAD = 4
"""Ranged reads under way beside the one that is being handed out."""


class _Segment(NamedTuple):
    start: int
    length: int
    buffer: bytearray
    arrived: Future[None]


class S3Reader(Reader):
    """One object from `offset`: the first range at once, the others ahead of need by threads of the session. From the middle
    of it, all of them once it is read: what comes before may be shown first, and take its time."""

    def __init__(self, bucket: Bucket, path: str, offset: int):
        self.path, self.bucket, self.key = path, bucket, bucket.key(path)
        self._stop = Event()
        self._segments: deque[_Segment] = deque()
        self._now, self._at, self._end = memoryview(b""), 0, 0  # what is being handed out
        self._recycle: bytearray | None = None
        self._hashing: Future[None] | None = None
        self._proof: Proof | None = None
        self._waiting: Proof | None = None  # for what comes before `offset`
        self._whole: FileInfo | None = None
        try:
            if offset:
                self._look(offset)
                self._waiting = self._find_evidence(None)
            else:
                self._begin()
        except FAILURES as error:
            self.close()
            raise self._failure(error) from error
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        with self.bucket.wire() as wire:
            try:
                answer = wire.ask("GET", self.key, headers={"range": f"bytes=0-{SEGMENT - 1}"}, stream=True)
            except Refused as error:
                if error.status != 416:
                    raise
                self._look(0)  # there is nothing in it
                return
            stream = answer.stream
            assert stream is not None
            headers = answer.headers
            self.etag = headers.get("etag", "").strip('"')
            length = int(headers.get("content-length", "0"))
            if answer.status == 206:
                self.size = int(headers.get("content-range", "").rpartition("/")[2] or length)
            else:
                self.size, length = length, min(length, SEGMENT)
            self._next = length
            buffer = self.bucket.buffer(SEGMENT) if length > MIB else bytearray(length)
            self._fill()
            got = _receive(stream, memoryview(buffer)[:length], self._stop)
            if got < length:
                wire.close()
                self._fetch(got, memoryview(buffer)[got:length])
            elif self.size > self._next and answer.status == 200:
                wire.close()  # the rest of a whole object that nobody asked for
        if self.size:
            self._proof = self._find_evidence(headers)
        self._hand_out(memoryview(buffer)[:length], buffer if length > MIB else None)
        if got == self.size:
            self._whole = info_of(self.path, answer)

    def _look(self, offset: int) -> None:
        """What there is, to be read from `offset`."""
        try:
            headers = self.bucket.head(self.path).headers
        except NotFound as error:
            raise SourceVanished("is no longer there", path=self.path) from error
        self.etag, self.size = headers.get("etag", "").strip('"'), int(headers["content-length"])
        if offset > self.size:
            raise SourceChanged(f"has {self.size} bytes now, fewer than were read before", path=self.path)
        self._next = offset

    def before(self, view: memoryview) -> None:
        self._proof = self._waiting
        if self._proof is not None:
            self._proof.update(view)

    def _find_evidence(self, headers: Mapping[str, str] | None) -> Proof | None:
        """Ask until the bytes can be held against something; None, with a word in the log, where there is nothing. `headers`
        came with the bytes, if any did."""
        bucket, md5 = self.bucket, self.bucket.rules.etags_are_md5
        found: Proof | None = None
        try:
            if headers is not None and self.size <= SEGMENT:  # a single part's MD5 came with the bytes
                with suppress(NeedsPartSize):
                    found = evidence(headers, self.size, etags_are_md5=md5)
            if found is None:
                full = bucket.head(self.path, checksums=True).headers
                if full.get("etag", "").strip('"') != self.etag:
                    raise SourceChanged("was replaced while it was read", path=self.path)
                try:
                    found = evidence(full, self.size, etags_are_md5=md5)
                except NeedsPartSize as need:
                    size = bucket.part_size(self.path, need.parts, self.size)
                    if size:
                        found = evidence(full, self.size, part_size=size, etags_are_md5=md5)
        except NotFound as error:
            raise SourceVanished("is no longer there", path=self.path) from error
        if found is None:
            log.log(
                logging.DEBUG if bucket.server.tls else logging.WARNING,
                "%s: the server keeps no checksum that its bytes could be held against", self.path,
            )  # fmt: skip
        return found

    def _fill(self) -> None:
        """Keep ranges under way."""
        while self._next < self.size and len(self._segments) < AHEAD:
            length = min(SEGMENT, self.size - self._next)
            buffer = self.bucket.buffer(SEGMENT)
            future = self.bucket.threads.submit(self._fetch, self._next, memoryview(buffer)[:length])
            self._segments.append(_Segment(self._next, length, buffer, future))
            self._next += length

    def _fetch(self, start: int, into: memoryview) -> None:
        """Fill `into` from `start`, going on where a broken connection left off."""
        got, tries = 0, 0
        while got < len(into):
            if self._stop.is_set():
                return
            last = start + len(into) - 1
            with self.bucket.wire() as wire:
                headers = {"range": f"bytes={start + got}-{last}"}
                if self.etag:
                    headers["if-match"] = f'"{self.etag}"'
                try:
                    answer = wire.ask("GET", self.key, headers=headers, stream=True, ok=(200, 206))
                    if answer.status == 200:
                        wire.close()
                        raise ConfigError("the server does not answer ranged reads", path=self.path)
                    if answer.headers.get("etag", "").strip('"') != self.etag:
                        wire.close()
                        raise SourceChanged("was replaced while it was read", path=self.path)
                    assert answer.stream is not None
                    n = _receive(answer.stream, into[got:], self._stop)
                except FAILURES as error:
                    wire.close()
                    raise self._failure(error) from error
            got += n
            if got < len(into):
                wire.close()
                tries = 0 if n else tries + 1
                if tries == 3:
                    raise self._failure(http.client.IncompleteRead(b"", len(into) - got))

    def _hand_out(self, view: memoryview, buffer: bytearray | None) -> None:
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None
        if self._recycle is not None:
            self.bucket.recycle(self._recycle)
        self._now, self._at, self._recycle = view, 0, buffer
        self._end += len(view)
        if self._proof is not None:
            if len(view) < MIB:
                self._proof.update(view)
            else:
                self._hashing = self.bucket.hasher.submit(self._proof.update, view)

    def readinto(self, buffer: Buffer) -> int:
        view, got = memoryview(buffer), 0
        while got < len(view):
            if self._at == len(self._now) and not self._advance():
                self._prove()  # where all of it came before
                break
            n = min(len(view) - got, len(self._now) - self._at)
            if not self._segments and self._at + n == len(self._now):
                self._prove()  # before the last byte is given away
            view[got : got + n] = self._now[self._at : self._at + n]
            got += n
            self._at += n
        return got

    def _advance(self) -> bool:
        if not self._segments:
            self._fill()  # the first, from the middle of the object
        if not self._segments:
            return False
        segment = self._segments.popleft()
        segment.arrived.result()
        self._hand_out(memoryview(segment.buffer)[: segment.length], segment.buffer)
        self._fill()
        return True

    def _prove(self) -> None:
        proof, self._proof = self._proof, None
        if proof is None:
            return
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None
        if not proof.holds():
            raise HashMismatch(
                f"the bytes that came from {self.bucket.place} do not give the {proof.of} that the server keeps",
                path=self.path,
                remedy="read once more by itself; if every file of this server fails so, its ETags are no MD5: "
                "set `etags: opaque` in its block",
            )

    def info(self) -> FileInfo:
        if self._whole is not None and self._at == len(self._now):
            return self._whole  # one answer held all of it: what it said of the object is true of every byte
        try:
            return info_of(self.path, self.bucket.head(self.path))
        except NotFound as error:
            raise SourceVanished("was removed or renamed while it was read", path=self.path) from error

    def _failure(self, error: Exception) -> OnblockError:
        if isinstance(error, Refused):
            if error.code in ("NoSuchKey", "") and error.status == 404:
                failure = SourceVanished("is no longer there", path=self.path)
                failure.__cause__ = error
                return failure
            if error.status == 412:
                return SourceChanged("was replaced while it was read", path=self.path)
        return as_failure(error, "cannot read it", self.path, self.bucket.place)

    def close(self) -> None:
        self._stop.set()
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None
        for segment in self._segments:
            if not segment.arrived.cancel():
                segment.arrived.exception()
            self.bucket.recycle(segment.buffer)
        self._segments.clear()
        self._now, self._at = memoryview(b""), 0
        if self._recycle is not None:
            self.bucket.recycle(self._recycle)
            self._recycle = None


def _receive(stream: http.client.HTTPResponse, into: memoryview, stop: Event) -> int:
    """Fill `into`; fewer bytes where the connection ended or `stop` was set."""
    got = 0
    with suppress(ConnectionError, http.client.IncompleteRead):
        while got < len(into) and not stop.is_set():
            n = stream.readinto(into[got : got + MIB])
            if not n:
                break
            got += n
    return got
