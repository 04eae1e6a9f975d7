"""One bucket: its connections, threads and buffers, and the requests that concern whole objects.

Readers, uploads and sessions stand on this. What a request looks like on the wire is in `s3_wire.py`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from blocks import names
from blocks.errors import ConfigError, Conflict, NotFound, OnblockError, SourceChanged
from blocks.storage.base import FileInfo
from blocks.storage.s3_proof import PART_SIZE, b64, is_md5
from blocks.storage.s3_wire import FAILURES, Answer, Refused, Server, Wire, as_failure, parse, quoted

log = logging.getLogger("onblock.storage")

MIB = 1 << 20
COPY_MAX = 5 << 30
"""Bytes that one CopyObject takes."""
COPY_PART = 512 * MIB
THREADS = 8
"""Requests of one session at once."""
EMPTY_MD5 = b64(hashlib.md5(usedforsecurity=False).digest())
REMEMBERED = 4096
"""Objects whose SHA-256 a session knows because it sent them."""


@dataclass
class Ability:
    """What a server turned out to be able to do; shared by the sessions of a block."""

    checksums: bool | None
    backslashes: bool = True  # SeaweedFS takes one for a slash
    conditional_put: bool | None = None  # If-None-Match on PutObject: learnt, where nothing is said of both kinds
    learning: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)


@dataclass(frozen=True)
class Rules:
    """What a block says about its bucket."""

    place: str  # server, bucket and prefix, for people
    bucket: str
    prefix: str  # "folder/" or ""
    part: int  # bytes of a part
    single: int  # bytes up to which a file is one request
    conditional: bool | None  # If-None-Match on writes: honoured, refused, not known
    etags_are_md5: bool
    ability: Ability
    encryption: dict[str, str] = field(default_factory=dict)  # headers of every object
    objects: dict[str, str] = field(default_factory=dict)  # further headers of files
    lock_mode: str = ""
    lock_days: int = 0


class Bucket:
    """For one session; its threads may use it side by side."""

    def __init__(self, server: Server, rules: Rules):
        self.server, self.rules = server, rules
        self.place, self.ability, self.part, self.single = rules.place, rules.ability, rules.part, rules.single
        self._wires: deque[Wire] = deque()
        self._buffers: dict[int, list[bytearray]] = {}
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._hasher: ThreadPoolExecutor | None = None
        self._known: OrderedDict[str, tuple[str, str, str]] = OrderedDict()

    @property
    def threads(self) -> ThreadPoolExecutor:
        """They send parts and fetch ranges."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "onblock-s3")
        return self._threads

    @property
    def hasher(self) -> ThreadPoolExecutor:
        """One thread that hashes in order."""
        if self._hasher is None:
            self._hasher = ThreadPoolExecutor(1, "onblock-s3-hash")
        return self._hasher

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        """A connection of one's own for a while."""
        try:
            wire = self._wires.pop()
        except IndexError:
            wire = Wire(self.server)
        try:
            yield wire
        except BaseException as error:
            if not isinstance(error, Refused | OnblockError):
                wire.close()
            raise
        finally:
            self._wires.append(wire)

    def buffer(self, size: int) -> bytearray:
        """One of `size` bytes; `recycle` takes it back."""
        with self._lock:
            kept = self._buffers.get(size)
            if kept:
                return kept.pop()
        return bytearray(size)

    def recycle(self, buffer: bytearray) -> None:
        """Keep a buffer for its next use; a few of them."""
        with self._lock:
            kept = self._buffers.setdefault(len(buffer), [])
            if len(kept) < 6:
                kept.append(buffer)

    def key(self, path: str) -> str:
        """The key of a legal path. Raises ConfigError."""
        try:
            key = self.rules.prefix + names.check_path(path)
            size = len(key.encode())
        except UnicodeEncodeError:
            raise ConfigError(
                "S3 keeps only names that are UTF-8", path=path, remedy="rename it with the job's `path` template"
            ) from None
        if size > 1024:
            raise ConfigError(
                f"its key would be {size} bytes long; S3 takes 1,024", path=path,
                remedy="shorten it with the job's `path` template, or the block's `prefix`",
            )  # fmt: skip
        if "\\" in key and not self.ability.backslashes:
            raise ConfigError(
                "this server takes a backslash for a slash, and would keep it under another name", path=path,
                remedy="rename it with the job's `path` template",
            )  # fmt: skip
        return key

    def marker(self, path: str, key: str) -> str:
        """The key of the small object that tells of an unfinished upload."""
        return self.rules.prefix + names.temporary(path, key)

    def staged(self, path: str, key: str) -> str:
        """The key of a large file whose final name was taken when it began."""
        return self.rules.prefix + names.temporary(path, f"{key}\0staged")

    def ask(self, method: str, key: str = "", doing: str = "", path: str = "", **options: Any) -> Answer:
        """One request, its failure as one of the taxonomy."""
        try:
            with self.wire() as wire:
                return wire.ask(method, key, **options)
        except FAILURES as error:
            raise as_failure(error, doing, path, self.place) from error

    def check(self) -> None:
        """Whether server, bucket and keys are right. A key that may only write passes."""
        try:
            with self.wire() as wire:
                query = {"list-type": "2", "max-keys": "1", "prefix": self.rules.prefix}
                answer = wire.ask("GET", query=query, tries=2)
            self.ability.backslashes = "seaweedfs" not in answer.headers.get("server", "").lower()
        except FAILURES as error:
            if isinstance(error, Refused) and error.code == "AccessDenied":
                return
            raise as_failure(error, "cannot open the bucket", self.rules.bucket, self.place) from error

    def find(self, key: str) -> Answer | None:
        """The headers of an object by its key; None if there is none."""
        try:
            with self.wire() as wire:
                return wire.ask("HEAD", key)
        except Refused as error:
            if error.status == 404:
                return None
            raise as_failure(error, "cannot look at it", key, self.place) from error
        except FAILURES as error:
            raise as_failure(error, "cannot look at it", key, self.place) from error

    def head(self, path: str, *, checksums: bool = False) -> Answer:
        """The headers of an object. Raises NotFound."""
        headers = {"x-amz-checksum-mode": "ENABLED"} if checksums else {}
        try:
            with self.wire() as wire:
                return wire.ask("HEAD", self.key(path), headers=headers)
        except FAILURES as error:
            if isinstance(error, Refused) and error.status == 404:
                raise NotFound("is not there", path=path) from error
            raise as_failure(error, "cannot look at it", path, self.place) from error

    def part_size(self, path: str, parts: int, size: int) -> int:
        """How large the parts are an object was made of; 0 where the server does not tell."""
        try:
            with self.wire() as wire:
                answer = wire.ask("HEAD", self.key(path), {"partNumber": "1"})
        except FAILURES:
            return 0  # then there is no evidence, and the log says so
        told = int(answer.headers.get("content-length", "0"))
        count = answer.headers.get("x-amz-mp-parts-count", "")
        return told if count == str(parts) and told and -(-size // told) == parts else 0

    def is_md5(self, etag: str, answer: Answer) -> bool:
        """Whether the ETag in an answer to a write is the MD5 of what was written."""
        return self.rules.etags_are_md5 and is_md5(etag, answer.headers)

    def holds(self, key: str, data: bytearray) -> bool:
        """Whether the object has just this content, as far as its ETag tells."""
        found = self.find(key)
        return (
            found is not None
            and found.headers.get("etag", "").strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()
        )

    def if_absent(self) -> dict[str, str]:
        """The condition under which an object may be written."""
        return {} if self.rules.conditional is False else {"if-none-match": "*"}

    def look_before(self, key: str, path: str, *, replace: bool, put: bool = False) -> None:
        """Where the server does not see to it: raise Conflict if something has the name. `put`: before a PutObject."""
        sees = self.rules.conditional or (put and self.ability.conditional_put and self.rules.conditional is None)
        if not replace and not sees and self.find(key) is not None:
            raise Conflict("something is already at the final name", path=path)

    def learn_condition(self) -> None:
        """Whether the server minds the condition of a PutObject: an object of our own is written twice and removed. Known
        for all sessions of the block then; one request saved for each file."""
        ability = self.ability
        with ability.learning:
            if ability.conditional_put is not None or self.rules.conditional is not None or self.rules.lock_mode:
                return
            key, ability.conditional_put = self.marker("condition", secrets.token_hex(8)), False
            headers = {**self.rules.encryption, **self.if_absent(), "content-md5": EMPTY_MD5}
            try:
                with self.wire() as wire:
                    wire.ask("PUT", key, {}, headers)
                    try:
                        wire.ask("PUT", key, {}, headers)
                    except Refused as error:
                        ability.conditional_put = error.status in (409, 412)
                    wire.ask("DELETE", key)
            except FAILURES as error:
                log.debug("%s did not say whether it minds conditions: %s", self.place, error)

    def object_headers(self, mtime_ns: int | None) -> dict[str, str]:
        """What a new object is given, as the block says."""
        rules = self.rules
        headers = {"content-type": "application/octet-stream", **rules.encryption, **rules.objects}
        if mtime_ns is not None:
            headers["x-amz-meta-mtime"] = rclone_time(mtime_ns)
        if rules.lock_mode:
            until = datetime.now(UTC) + timedelta(days=rules.lock_days)
            headers["x-amz-object-lock-mode"] = rules.lock_mode
            headers["x-amz-object-lock-retain-until-date"] = until.strftime("%Y-%m-%dT%H:%M:%SZ")
        return headers

    def with_checksums(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], wanted: Mapping[str, str],
        body: bytearray | bytes = b"", sha256: str | None = None,
    ) -> Answer:  # fmt: skip
        """A write with the checksum headers `wanted`, or where the server has none of them, with Content-MD5.

        Raises Refused, OSError, http.client.HTTPException.
        """
        with self.wire() as wire:
            if self.ability.checksums is not False:
                try:
                    return wire.ask(method, key, query, {**headers, **wanted}, body, sha256=sha256)
                except Refused as error:
                    odd = error.code in ("NotImplemented", "InvalidArgument", "InvalidRequest", "UnsupportedHeader")
                    if self.ability.checksums or not odd:
                        raise
                    self.ability.checksums = False
            md5 = {"content-md5": b64(hashlib.md5(body, usedforsecurity=False).digest())} if method == "PUT" else {}
            return wire.ask(method, key, query, {**headers, **md5}, body, sha256=sha256)

    def listing(self, prefix: str) -> Iterator[tuple[str, int, int, str]]:
        """(key, size, time in ns, ETag) of all objects below a prefix, page by page."""
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        while True:
            page = self.ask("GET", query=query, doing="cannot list the bucket", path=prefix).xml()
            decode = unquote_plus if page.findtext("EncodingType") == "url" else str
            for entry in page.iterfind("Contents"):
                yield (
                    decode(entry.findtext("Key") or ""), int(entry.findtext("Size") or 0),
                    iso_ns(entry.findtext("LastModified") or ""), (entry.findtext("ETag") or "").strip('"'),
                )  # fmt: skip
            after = page.findtext("NextContinuationToken")
            if page.findtext("IsTruncated") != "true" or not after:
                return
            query["continuation-token"] = after

    def remember(self, key: str, completed: Answer, sha256: str) -> None:
        """The SHA-256 of an object of several parts that the server has confirmed to be what was sent."""
        try:
            root = completed.xml()
        except ElementTree.ParseError:
            return
        etag, crc = (root.findtext("ETag") or "").strip('"'), root.findtext("ChecksumCRC64NVME") or ""
        if etag and crc:
            self._known[key] = (etag, crc, sha256)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)

    def remembered(self, key: str, headers: Mapping[str, str]) -> str | None:
        """The SHA-256 of an object that this session sent, if the server's checksum says it is still that."""
        found = (headers.get("etag", "").strip('"'), headers.get("x-amz-checksum-crc64nvme", ""))
        known = self._known.get(key)
        return known[2] if known is not None and known[:2] == found else None

    def put_marker(self, marker: str, journal: str) -> None:
        """Tell of an unfinished upload. Raises Refused, OSError, http.client.HTTPException."""
        body = journal.encode()
        stored = {"x-amz-checksum-sha256": b64(hashlib.sha256(body).digest())}
        self.with_checksums("PUT", marker, {}, self.rules.encryption, stored, body)

    def read_marker(self, marker: str, path: str) -> str:
        try:
            with self.wire() as wire:
                return wire.ask("GET", marker).body.decode("utf-8", "replace")
        except FAILURES as error:
            if isinstance(error, Refused) and error.status == 404:
                return ""
            raise as_failure(error, "cannot look for an earlier upload", path, self.place) from error

    def list_parts(self, key: str, upload_id: str) -> dict[int, tuple[int, str]]:
        """(size, ETag) by number of the parts that are there. Raises Refused, OSError, http.client.HTTPException."""
        query, found = {"uploadId": upload_id}, {}
        while True:
            with self.wire() as wire:
                page = wire.ask("GET", key, query).xml()
            for part in page.iterfind("Part"):
                number = int(part.findtext("PartNumber") or 0)
                found[number] = (int(part.findtext("Size") or 0), (part.findtext("ETag") or "").strip('"'))
            after = page.findtext("NextPartNumberMarker") or ""
            if page.findtext("IsTruncated") != "true" or not after or after == query.get("part-number-marker"):
                return found
            query["part-number-marker"] = after

    def abort_multipart(self, key: str, upload_id: str, path: str) -> None:
        """Remove an unfinished upload with all its parts; nothing if it is gone."""
        try:
            with self.wire() as wire:
                wire.ask("DELETE", key, {"uploadId": upload_id})
        except FAILURES as error:
            if not (isinstance(error, Refused) and error.status == 404):
                raise as_failure(error, "cannot remove the unfinished upload", path, self.place) from error

    def delete_version(self, key: str, etag: str, path: str) -> None:
        """Remove an object if it still has this etag, as far as the server minds such a condition: Amazon and SeaweedFS
        do, others pass over it, and some refuse it. So nobody relies on it who has not looked before."""
        try:
            with self.wire() as wire:
                wire.ask("DELETE", key, headers={"if-match": f'"{etag}"'})
            return
        except Refused as error:
            if error.status not in (400, 404, 412, 501):
                raise as_failure(error, "cannot delete it", path, self.place) from error
            if error.status in (404, 412):
                if self.find(key) is not None:
                    raise SourceChanged("has changed since it was looked at", path=path) from error
                return  # an earlier try was carried out, or somebody else was faster
        except FAILURES as error:
            raise as_failure(error, "cannot delete it", path, self.place) from error
        self.ask("DELETE", key, "cannot delete it", path)

    def drop_object(self, key: str, path: str) -> None:
        """Remove an object of our own; nothing if it is gone."""
        self.ask("DELETE", key, "cannot remove the temporary object", path, ok=(200, 204, 404))

    def copy(
        self, source: str, target: str, size: int, headers: Mapping[str, str], *, exclusive: bool, path: str,
        etag: str = "",
    ) -> None:  # fmt: skip
        """Copy inside the server, where `exclusive` only if nothing is at `target` and the server can see to that.

        Raises Refused, OSError, http.client.HTTPException.
        """
        origin = {"x-amz-copy-source": quoted(f"/{self.rules.bucket}/{source}")}
        if etag:
            origin["x-amz-copy-source-if-match"] = f'"{etag}"'
        with self.wire() as wire:
            if size <= COPY_MAX and not (exclusive and self.rules.conditional):
                wire.ask("PUT", target, headers={**headers, **origin, "x-amz-metadata-directive": "REPLACE"})
                return
            created = wire.ask("POST", target, {"uploads": ""}, {**headers, PART_SIZE: "0"})
            upload_id = created.xml().findtext("UploadId") or ""
            try:
                rows = []
                for number, start in enumerate(range(0, size, COPY_PART), 1):
                    part = {**origin, "x-amz-copy-source-range": f"bytes={start}-{min(size, start + COPY_PART) - 1}"}
                    answer = wire.ask("PUT", target, {"partNumber": str(number), "uploadId": upload_id}, part)
                    tag = (parse(answer.body).findtext("ETag") or "").strip('"')
                    rows.append(f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{tag}&quot;</ETag></Part>")
                body = f"<CompleteMultipartUpload>{''.join(rows)}</CompleteMultipartUpload>".encode()
                condition = self.if_absent() if exclusive else {}
                wire.ask("POST", target, {"uploadId": upload_id}, condition, body)
            except FAILURES:
                self.abort_multipart(target, upload_id, path)
                raise

    def close(self) -> None:
        """End connections and threads."""
        for pool in (self._threads, self._hasher):
            if pool is not None:
                pool.shutdown(wait=True)
        self._threads = self._hasher = None
        while self._wires:
            self._wires.pop().close()
        self._buffers.clear()


def rclone_time(mtime_ns: int) -> str:
    """Seconds since the epoch with a fraction, as rclone writes `x-amz-meta-mtime`."""
    seconds, ns = divmod(mtime_ns, 10**9)
    return f"{seconds}.{ns:09d}".rstrip("0").rstrip(".")


def info_of(path: str, answer: Answer) -> FileInfo:
    """An object as its headers show it."""
    headers = answer.headers
    modified = _seconds(headers.get("last-modified", ""))
    return FileInfo(path, int(headers.get("content-length", "0")), modified * 10**9, headers.get("etag", "").strip('"'))


@functools.lru_cache(256)
def _seconds(date: str) -> int:
    """A date of HTTP in seconds since the epoch; 0 for what is none. Many objects have the same."""
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except ValueError:
        return 0


def iso_ns(text: str) -> int:
    """Nanoseconds since the epoch, to the second: a listing knows fractions that a HEAD does not."""
    try:
        return int(datetime.fromisoformat(text).timestamp()) * 10**9
    except ValueError:
        return 0


def hex_of(checksum: str) -> str:
    """A checksum of S3 as hex."""
    return base64.b64decode(checksum).hex()
