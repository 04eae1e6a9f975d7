"""Writing to S3: one PutObject for a small file, a multipart upload for a large one.

An object is never there in part: a PutObject or a completion makes it whole or not at all.

How a large upload is found again: its journal is `<part size> <checksum> <upload id> <key>`, kept by whoever keeps
journals, and in a small object beside the final name (`names.temporary`), since S3 tells of an unfinished upload neither
who began it nor for what. Over 500 lines, as a multipart upload and the file that goes by it end only together.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from threading import Lock
from typing import NamedTuple
from xml.sax.saxutils import escape

from blocks.errors import ConfigError, Conflict, HashMismatch, SourceChanged, UnknownError
from blocks.storage.base import Upload
from blocks.storage.s3_bucket import MIB, Bucket
from blocks.storage.s3_proof import PART_SIZE, b64, combined, crc64nvme, is_md5
from blocks.storage.s3_wire import FAILURES, UNSIGNED, Answer, Refused, as_failure

MAX_PARTS = 10_000
IN_FLIGHT = 24 * MIB
"""Bytes of parts under way at once: with what a crash may cost twice, below 32 MiB."""
HELD = 64 * MIB
"""Bytes that all uploads of this process may keep in memory until they have their final names."""


class _Allowance:
    """Bytes that may be held in memory, for the whole process."""

    def __init__(self, size: int):
        self._left, self._lock = size, Lock()

    def take(self, n: int) -> bool:
        with self._lock:
            if n > self._left:
                return False
            self._left -= n
            return True

    def give(self, n: int) -> None:
        with self._lock:
            self._left += n


held = _Allowance(HELD)
_turns = [Lock() for _ in range(256)]
"""Where the server does not see to it, two uploads of this process that want one name come one after the other."""


def _turn(bucket: Bucket, key: str) -> Lock:
    return _turns[hash((bucket.server.netloc, bucket.rules.bucket, key)) % len(_turns)]


class Part(NamedTuple):
    """A part that the server has: `crc` is None where it was sent by an earlier run."""

    size: int
    etag: str
    md5: bytes | None
    crc: bytes | None


class _Sending(NamedTuple):
    number: int
    buffer: bytearray
    size: int
    part: Future[Part]
    hashed: Future[None] | None


class Multipart:
    """A multipart upload to `key`, begun with its first part. Parts are equal in size, but for the last."""

    def __init__(self, bucket: Bucket, path: str, key: str, part_size: int, mtime_ns: int | None, marker: str):
        self.bucket, self.path, self.key, self.part_size, self.marker = bucket, path, key, part_size, marker
        self.upload_id = ""
        self.parts: list[Part] = []
        self.sha256: hashlib._Hash | None = hashlib.sha256()
        """Of all parts so far; None where some were sent by an earlier run."""
        self.checksums = False
        self.completed: Answer | None = None
        self._marked = False
        """Whether `marker` was written: it is ours as long as it says what we wrote (`S3Session.rekey`)."""
        self._mtime = mtime_ns
        self._buffer: bytearray | None = None
        self._filled = 0
        self._sending: deque[_Sending] = deque()
        self._held: list[bytearray] | None = []  # all parts so far, while memory allows

    # the journal

    @property
    def journal(self) -> str:
        """How a later run finds it."""
        kind = "crc64nvme" if self.checksums else "md5"
        return f"{self.part_size} {kind} {self.upload_id} {self.key}" if self.upload_id else ""

    @classmethod
    def resumed(cls, bucket: Bucket, path: str, journal: str, mtime_ns: int | None, marker: str) -> Multipart | None:
        """The upload of a journal, with the parts the server has from the first on; None if it is no more."""
        if (noted := parse_journal(journal)) is None:
            return None
        size, kind, upload_id, key = noted
        self = cls(bucket, path, key, size, mtime_ns, marker)
        try:
            known = bucket.list_parts(key, upload_id)
            bucket.put_marker(marker, journal)
        except FAILURES as error:
            if isinstance(error, Refused) and error.status == 404:
                return None
            raise as_failure(error, "cannot ask for the parts that are there", path, bucket.place) from error
        self.upload_id, self._marked = upload_id, True
        self.checksums = kind == "crc64nvme"
        for number in range(1, MAX_PARTS + 1):
            if number not in known or known[number][0] != self.part_size:
                break  # a shorter one is sent again, whole
            self.parts.append(Part(known[number][0], known[number][1], None, None))
        if self.parts:
            self.sha256 = self._held = None
        return self

    @property
    def offset(self) -> int:
        """Bytes that are at the server or on the way there."""
        return len(self.parts) * self.part_size

    # writing

    def write(self, chunk: memoryview) -> None:
        """Append; each full part goes on its way at once."""
        while len(chunk):
            if self._buffer is None:
                self._buffer, self._filled = self.bucket.buffer(self.part_size), 0
            n = min(len(chunk), self.part_size - self._filled)
            self._buffer[self._filled : self._filled + n] = chunk[:n]
            self._filled += n
            chunk = chunk[n:]
            if self._filled == self.part_size:
                self.ship()

    def ship(self) -> None:
        """Send what has gathered as the next part; waits while enough is under way."""
        if self._buffer is None:
            return
        if not self.upload_id:
            self._create()
        number = len(self.parts) + len(self._sending) + 1
        if number > MAX_PARTS:
            raise ConfigError(
                f"is larger than was announced: S3 takes {MAX_PARTS} parts, and these have {self.part_size} bytes",
                path=self.path, remedy="set a larger `part_size_mib` in the storage's block",
            )  # fmt: skip
        buffer, size, self._buffer = self._buffer, self._filled, None
        view = memoryview(buffer)[:size]
        while self._sending and (len(self._sending) + 1) * self.part_size > IN_FLIGHT:
            self._settle()
        hashed = self.bucket.hasher.submit(self.sha256.update, view) if self.sha256 is not None else None
        part = self.bucket.threads.submit(self._put, number, view)
        self._sending.append(_Sending(number, buffer, size, part, hashed))

    def _settle(self) -> None:
        """Wait for the oldest part under way. Raises what went wrong with it."""
        sending = self._sending.popleft()
        try:
            if sending.hashed is not None:
                sending.hashed.result()
            part = sending.part.result()
        except BaseException:
            self._drain()
            raise
        self.parts.append(part)
        if self._held is not None and held.take(len(sending.buffer)):
            self._held.append(sending.buffer)
            return
        self._let_go()
        self.bucket.recycle(sending.buffer)

    def _let_go(self) -> None:
        """What was held in memory in case of another name is no longer all there is."""
        for buffer in self._held or ():
            held.give(len(buffer))
            self.bucket.recycle(buffer)
        self._held = None

    def wait(self) -> None:
        """Until everything sent is at the server."""
        while self._sending:
            self._settle()

    def _drain(self) -> None:
        """Wait for what is under way, whatever becomes of it."""
        for sending in self._sending:
            if not sending.part.cancel():
                sending.part.exception()
            if sending.hashed is not None:
                sending.hashed.exception()
            self.bucket.recycle(sending.buffer)
        self._sending.clear()

    def _create(self) -> None:
        bucket, ability = self.bucket, self.bucket.ability
        headers = bucket.object_headers(self._mtime) | {PART_SIZE: str(self.part_size)}
        wanted = {"x-amz-checksum-algorithm": "CRC64NVME", "x-amz-checksum-type": "FULL_OBJECT"}
        try:
            answer = bucket.with_checksums("POST", self.key, {"uploads": ""}, headers, wanted)
            self.upload_id = answer.xml().findtext("UploadId") or ""
            self.checksums = answer.headers.get("x-amz-checksum-algorithm", "").upper() == "CRC64NVME"
            if ability.checksums is None:
                ability.checksums = self.checksums
            bucket.put_marker(self.marker, self.journal)
            self._marked = True
        except FAILURES as error:
            raise as_failure(error, "cannot begin a multipart upload", self.path, bucket.place) from error

    def _put(self, number: int, view: memoryview) -> Part:
        """One part, with a checksum that the server holds against what arrives; what it says it has is compared."""
        crc = crc64nvme(view) if self.checksums else None
        md5 = None if crc else hashlib.md5(view, usedforsecurity=False).digest()
        headers = {"x-amz-checksum-crc64nvme": b64(crc)} if crc else {"content-md5": b64(md5 or b"")}
        query = {"partNumber": str(number), "uploadId": self.upload_id}
        try:
            with self.bucket.wire() as wire:
                answer = wire.ask("PUT", self.key, query, headers, view, sha256=UNSIGNED)
        except FAILURES as error:
            raise as_failure(error, f"cannot send part {number}", self.path, self.bucket.place) from error
        etag = answer.headers.get("etag", "").strip('"')
        if crc:
            wrong = answer.headers.get("x-amz-checksum-crc64nvme", b64(crc)) != b64(crc)
        else:
            wrong = self.bucket.is_md5(etag, answer) and bytes.fromhex(etag) != md5
        if wrong:
            raise HashMismatch(f"part {number} arrived with another checksum than it was sent with", path=self.path)
        return Part(len(view), etag, md5, crc)

    # the end

    def complete(self, *, replace: bool) -> None:
        """Make the object whole. Raises Conflict, with the upload still open, if its key is taken and `replace` is False."""
        if not self.parts and not self._sending and self._buffer is None:
            self._buffer, self._filled = self.bucket.buffer(self.part_size), 0  # an empty file is one empty part
        self.ship()
        self.wait()
        bucket = self.bucket
        if not self._is_still_ours():
            raise UnknownError(
                "another run has taken the upload over", path=self.path, remedy="that one goes on with it"
            )
        headers = {} if replace else bucket.if_absent()
        crcs = [(part.crc, part.size) for part in self.parts if part.crc is not None]
        if self.checksums and len(crcs) == len(self.parts):
            headers |= {"x-amz-checksum-crc64nvme": b64(combined(crcs)), "x-amz-checksum-type": "FULL_OBJECT"}
        rows = "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>&quot;{escape(p.etag)}&quot;</ETag>"
            + (f"<ChecksumCRC64NVME>{b64(p.crc)}</ChecksumCRC64NVME>" if p.crc else "")
            + "</Part>"
            for n, p in enumerate(self.parts, 1)
        )
        body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
        try:
            with bucket.wire() as wire:
                self.completed = wire.ask("POST", self.key, {"uploadId": self.upload_id}, headers, body)
        except Refused as error:
            # the answer to an earlier try was lost: then the upload is gone and the object there
            if error.status in (404, 412) and (found := bucket.find(self.key)) is not None and self._is_ours(found):
                self.completed = found
                return
            if error.status in (409, 412) and not replace:
                raise Conflict("something is already at the final name", path=self.path) from error
            raise as_failure(error, "cannot complete the upload", self.path, bucket.place) from error
        except FAILURES as error:
            raise as_failure(error, "cannot complete the upload", self.path, bucket.place) from error

    def _is_still_ours(self) -> bool:
        return not self._marked or self.bucket.read_marker(self.marker, self.path) == self.journal

    def _is_ours(self, found: Answer) -> bool:
        md5s = [p.md5 or (bytes.fromhex(p.etag) if is_md5(p.etag, found.headers) else b"") for p in self.parts]
        expected = f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(self.parts)}"
        return all(md5s) and found.headers.get("etag", "").strip('"') == expected

    def rewind(self, offset: int) -> None:
        """Forget parts that reach beyond `offset`."""
        if self._buffer is not None:
            self.bucket.recycle(self._buffer)
            self._buffer = None
        self.wait()
        keep = offset // self.part_size
        if keep == len(self.parts):
            return
        del self.parts[keep:]
        self._let_go()
        self.sha256 = None if keep else hashlib.sha256()

    def under(self, key: str) -> Multipart | None:
        """The same bytes on their way to another key, sent again from memory; None where they are not held."""
        self.ship()
        self.wait()
        if self._held is None or len(self._held) != len(self.parts):
            return None
        other = Multipart(self.bucket, self.path, key, self.part_size, self._mtime, self.marker)
        for part, buffer in zip(self.parts, self._held, strict=True):
            other.write(memoryview(buffer)[: part.size])
        self._let_go()
        # what tells of it tells of the other from now on
        self.bucket.abort_multipart(self.key, self.upload_id, self.path)
        self.upload_id = ""
        return other

    def pause(self) -> None:
        """Let go of what is not at the server yet. A part that fails now is sent again by whoever goes on."""
        if self._buffer is not None:
            self.bucket.recycle(self._buffer)
            self._buffer = None
        self._drain()
        self._let_go()

    def drop(self) -> None:
        """Take the upload away, and what tells of it; nothing that another has taken over."""
        if self._buffer is not None:
            self.bucket.recycle(self._buffer)
            self._buffer = None
        self._drain()
        self._let_go()
        if not self._is_still_ours():
            self.upload_id = ""
            return
        if self.upload_id:
            self.bucket.abort_multipart(self.key, self.upload_id, self.path)
            self.upload_id = ""
        self.bucket.drop_object(self.marker, self.path)


def parse_journal(journal: str) -> tuple[int, str, str, str] | None:
    """(part size, kind of checksum, upload id, key); None where it is no journal of ours."""
    size, _, rest = journal.partition(" ")
    kind, _, rest = rest.partition(" ")
    upload_id, _, key = rest.partition(" ")
    return (int(size), kind, upload_id, key) if size.isdecimal() and int(size) and upload_id and key else None


def part_size_for(size: int, base: int) -> int:
    """Bytes of a part: `base`, doubled until 10,000 parts take a file of `size` bytes."""
    while size > base * MAX_PARTS:
        base *= 2
    return base


# -- up -------------------------------------------------------------------------------------------------------------


class S3Upload(Upload):
    """One file on its way in: in memory while it is small, in parts from there on."""

    def __init__(self, bucket: Bucket, path: str, size: int, key: str, mtime_ns: int | None, multi: Multipart | None):
        self.path, self.bucket = path, bucket
        self._size, self._key, self._mtime = size, key, mtime_ns
        self._small = bytearray()
        self._multi = multi
        self.offset = multi.offset if multi else 0
        self._final = bucket.key(path)
        self._in_vain = False  # it can never have a name: whoever goes on begins anew

    @property
    def journal(self) -> str:  # type: ignore[override]
        return self._multi.journal if self._multi else ""

    def write(self, chunk: memoryview) -> None:
        if self._multi is None:
            if len(self._small) + len(chunk) <= self.bucket.single and held.take(len(chunk)):
                self._small += chunk
                return
            self._multi = self._begin()
            self._multi.write(memoryview(self._small))
            self._release()
        self._multi.write(chunk)

    def _begin(self) -> Multipart:
        """Many parts. Where the final name is taken, under a name of its own: it may have to be given another one."""
        bucket = self.bucket
        key = self._final
        if bucket.find(key) is not None:
            key = bucket.staged(self.path, self._key)
        size = part_size_for(self._size, bucket.part)
        return Multipart(bucket, self.path, key, size, self._mtime, bucket.marker(self.path, self._key))

    def _release(self) -> None:
        held.give(len(self._small))
        self._small = bytearray()

    def rewind(self, offset: int) -> int:
        if self._multi is None:
            held.give(len(self._small) - offset)
            del self._small[offset:]
            self.offset = offset
        else:
            self._multi.rewind(offset)
            self.offset = self._multi.offset
        return self.offset

    def seal(self) -> None:
        if self._multi is not None and self._multi.upload_id:
            self._multi.ship()
            self._multi.wait()

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        name = self.path if path is None else path
        key, bucket = self.bucket.key(name), self.bucket
        with nullcontext() if bucket.rules.conditional else _turn(bucket, key):
            if self._multi is None:
                self._put(name, key, self._small, replace)
            else:
                self._commit_parts(self._multi, name, key, replace)
        if self._multi is None:
            self._release()
        self.path, self._final = name, key
        return name

    def _commit_parts(self, multi: Multipart, name: str, key: str, replace: bool) -> None:
        bucket = self.bucket
        try:
            if multi.key == key:
                bucket.look_before(key, name, replace=replace)
                multi.complete(replace=replace)
            elif multi.key != self._final:  # it has a name of its own so far
                bucket.look_before(key, name, replace=replace)
                if multi.completed is None:
                    multi.complete(replace=True)
                self._give_name(multi, name, key, replace)
            else:
                bucket.look_before(key, name, replace=replace)
                other = multi.under(key)
                if other is None:
                    self._in_vain = True
                    raise UnknownError(
                        "its name was taken while it was on its way, and S3 cannot give it another", path=name,
                        remedy="sent again by itself under the other name",
                    )  # fmt: skip
                self._multi = multi = other
                self._final, self.path = key, name
                multi.complete(replace=replace)
        except Conflict as conflict:
            conflict.path = name
            raise
        if multi.sha256 is not None and multi.checksums and multi.key == key and multi.completed is not None:
            bucket.remember(key, multi.completed, multi.sha256.hexdigest())
        multi.pause()
        bucket.drop_object(multi.marker, name)

    def _give_name(self, multi: Multipart, name: str, key: str, replace: bool) -> None:
        bucket = self.bucket
        size = sum(part.size for part in multi.parts)
        try:
            bucket.copy(multi.key, key, size, bucket.object_headers(self._mtime), exclusive=not replace, path=name)
        except FAILURES as error:
            if isinstance(error, Refused) and error.status in (409, 412) and not replace:
                raise Conflict("something is already at the final name", path=name) from error
            raise as_failure(error, "cannot give it its final name", name, bucket.place) from error
        bucket.drop_object(multi.key, name)

    def _put(self, name: str, key: str, data: bytearray, replace: bool) -> None:
        """The whole file in one request, its SHA-256 signed and, where the server keeps it, stored with it."""
        bucket = self.bucket
        if not replace:
            bucket.learn_condition()
        bucket.look_before(key, name, replace=replace, put=True)
        digest = hashlib.sha256(data)
        headers = bucket.object_headers(self._mtime) | ({} if replace else bucket.if_absent())
        stored = {"x-amz-checksum-sha256": b64(digest.digest())}
        try:
            answer = bucket.with_checksums("PUT", key, {}, headers, stored, data, digest.hexdigest())
        except Refused as error:
            if error.doubtful and error.status == 412 and bucket.holds(key, data):
                return  # the answer to an earlier try was lost
            if error.status in (409, 412) and not replace:
                raise Conflict("something is already at the final name", path=name) from error
            raise as_failure(error, "cannot write it", name, bucket.place) from error
        except FAILURES as error:
            raise as_failure(error, "cannot write it", name, bucket.place) from error
        said = answer.headers.get("x-amz-checksum-sha256")
        etag = answer.headers.get("etag", "").strip('"')
        if bucket.ability.checksums is None:
            bucket.ability.checksums = said is not None
        if said is not None:
            wrong = said != b64(digest.digest())
        else:
            wrong = bucket.is_md5(etag, answer) and etag != hashlib.md5(data, usedforsecurity=False).hexdigest()
        if wrong:
            with suppress(SourceChanged):  # then it is no longer ours
                bucket.delete_version(key, etag, name)
            raise HashMismatch("arrived with another checksum than it was sent with", path=name)

    def keep(self) -> None:
        if self._in_vain:
            self.abort()
        elif self._multi is None:
            self._release()
        else:
            self._multi.pause()

    def abort(self) -> None:
        self._release()
        if self._multi is not None:
            multi, self._multi = self._multi, None
            completed = multi.completed is not None and multi.key != self._final
            multi.drop()
            if completed:
                self.bucket.drop_object(multi.key, self.path)
