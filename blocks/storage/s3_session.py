"""A session on a bucket: it lists, looks at, copies and removes objects, and begins reads and uploads.

A listing shows when an object was written; the time of the file that was sent is kept beside it in the manner of rclone
(`x-amz-meta-mtime`). S3 cannot rename: `move` copies inside the server and deletes. Two moves of one object meet a lock
of this process; between machines, the ledger's lease sees to it that there is one mover.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple
from urllib.parse import unquote_plus

from blocks import names
from blocks.errors import ConfigError, Conflict, NotFound, OnblockError, SourceChanged, SourceVanished
from blocks.storage.base import Features, FileInfo, Session, Upload, aligned_buffer
from blocks.storage.s3_bucket import MIB, THREADS, Bucket, hex_of, info_of, iso_ns
from blocks.storage.s3_pull import Fetcher
from blocks.storage.s3_reader import S3Reader
from blocks.storage.s3_upload import Multipart, S3Upload, parse_journal
from blocks.storage.s3_wire import FAILURES, as_failure

_moves = [threading.Lock() for _ in range(64)]


class S3Session(Session):
    """Objects below one prefix. Its threads send parts and ranges for it."""

    def __init__(self, bucket: Bucket):
        self._bucket, rules = bucket, bucket.rules
        self._prefix = rules.prefix
        plain = bucket.server.tls is None  # its program speaks no TLS
        self._fetcher = Fetcher(bucket, Features.bulk_below) if plain else None
        self.features = Features(
            atomic_rename=True, exclusive_commit=rules.conditional is True, resume_read=True, resume_write=True,
            resume_step=rules.part, proven_reads=True,
            server_checksums=() if rules.ability.checksums is False else ("sha256",),
            parallel=THREADS // 2 if plain else THREADS, bulk_pull=plain,
        )  # fmt: skip

    # -- reading ----------------------------------------------------------------------------------------------------

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        below = f"{self._bucket.key(path)}/" if path else self._prefix
        found = False
        folders: list[tuple[str, bool]] = []  # those the last key lay in, and whether they may be entered
        for key, size, mtime_ns, etag in self._bucket.listing(below):
            found = True
            name = key.removeprefix(self._prefix)
            if name.endswith("/") or not name or names.TEMPORARY.match(name.rpartition("/")[2]):
                continue  # the mark of an empty folder; our own
            folder = name.rpartition("/")[0]
            if not self._enter(folder, path, folders, enter):
                continue
            try:
                names.check_path(name)
            except ConfigError as error:
                yield FileInfo(name, 0, 0, "", error)
            else:
                yield FileInfo(name, size, mtime_ns, etag)
        if path and not found:
            raise NotFound("the folder is not there", path=path)

    @staticmethod
    def _enter(folder: str, top: str, folders: list[tuple[str, bool]], enter: Callable[[str], bool]) -> bool:
        """Whether a folder may be entered, asking for each once: the keys of a folder come one after another."""
        while folders and not (folder == folders[-1][0] or folder.startswith(folders[-1][0] + "/")):
            folders.pop()
        while (at := folders[-1][0] if folders else top) != folder:
            if folders and not folders[-1][1]:
                return False
            rest = folder[len(at) + 1 :] if at else folder
            child = f"{at}/{rest.partition('/')[0]}" if at else rest.partition("/")[0]
            folders.append((child, enter(child)))
        return not folders or folders[-1][1]

    def stat(self, path: str) -> FileInfo:
        return info_of(path, self._bucket.head(path))

    def read(self, path: str, offset: int = 0) -> S3Reader:
        return S3Reader(self._bucket, path, offset)

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        """From what the server keeps, where that proves the content: a SHA-256 over the whole, or for what this session
        sent, the CRC64NVME that was confirmed for it. Else, and for `fresh`, all bytes are read back."""
        if kind == "sha256" and not fresh:
            headers = self._bucket.head(path, checksums=True).headers
            kept = headers.get("x-amz-checksum-sha256", "")
            if kept and "-" not in kept:
                return hex_of(kept)
            if (known := self._bucket.remembered(self._bucket.key(path), headers)) is not None:
                return known
        digest = hashlib.new(kind)
        try:
            with self.read(path) as reader:
                buffer = memoryview(aligned_buffer(MIB))
                while n := reader.readinto(buffer):
                    digest.update(buffer[:n])
        except SourceVanished as error:
            raise NotFound("is not there", path=path) from error
        return digest.hexdigest()

    def pull(
        self, files: Sequence[tuple[str, str]], moved: Callable[[int], object], stop: threading.Event
    ) -> list[OnblockError | None]:
        assert self._fetcher is not None  # asked for only where features.bulk_pull
        return self._fetcher.pull(files, moved, stop)

    # -- writing ----------------------------------------------------------------------------------------------------

    def upload(
        self,
        path: str,
        size: int,
        *,
        key: str = "",
        resume: bool = False,
        journal: str = "",
        mtime_ns: int | None = None,
    ) -> S3Upload:
        self._bucket.key(path)
        multi = None
        if resume:
            marker = self._bucket.marker(path, key)
            if noted := journal or self._bucket.read_marker(marker, path):
                multi = Multipart.resumed(self._bucket, path, noted, mtime_ns, marker)
                if multi is None and not journal:
                    self._bucket.drop_object(marker, path)
        elif size > self._bucket.single:
            self.discard(path, key)
        return S3Upload(self._bucket, path, size, key, mtime_ns, multi)

    def discard(self, path: str, key: str, journal: str = "") -> None:
        final, marker = self._bucket.key(path), self._bucket.marker(path, key)
        noted = parse_journal(self._bucket.read_marker(marker, path) or journal)
        if noted is None:
            return
        _, _, upload_id, target = noted
        self._bucket.abort_multipart(target, upload_id, path)
        if target != final:
            self._bucket.drop_object(target, path)
        self._bucket.drop_object(marker, path)

    def rekey(self, path: str, key: str, to: str) -> None:
        self._bucket.key(path)
        old = self._bucket.marker(path, key)
        if noted := self._bucket.read_marker(old, path):
            try:
                self._bucket.put_marker(self._bucket.marker(path, to), noted)
            except FAILURES as error:
                raise as_failure(error, "cannot take over the upload", path, self._bucket.place) from error
            self._bucket.drop_object(old, path)

    def commit_all(self, uploads: Sequence[Upload]) -> list[str | OnblockError]:
        """Side by side; of those that want one name, the first before the others."""
        if len(uploads) < 2:
            return super().commit_all(uploads)
        seen: set[str] = set()
        later: list[Upload] = []
        done: dict[int, str | OnblockError] = {}
        first: list[Upload] = []
        for upload in uploads:
            (later if upload.path in seen else first).append(upload)
            seen.add(upload.path)

        def one(upload: Upload) -> None:
            try:
                done[id(upload)] = upload.commit()
            except OnblockError as error:
                done[id(upload)] = error

        list(self._bucket.threads.map(one, first))
        for upload in later:
            one(upload)
        return [done[id(upload)] for upload in uploads]

    def delete(self, path: str) -> None:
        self._bucket.head(path)
        self._bucket.ask("DELETE", self._bucket.key(path), "cannot delete it", path)

    def delete_seen(self, seen: FileInfo) -> None:
        """As the contract has it; where the server minds conditions, nothing comes in between."""
        if self.stat(seen.path).version != seen.version:
            raise SourceChanged("has changed since it was looked at", path=seen.path)
        self._bucket.delete_version(self._bucket.key(seen.path), seen.etag, seen.path)

    def move(self, path: str, to: str) -> None:
        source, target = self._bucket.key(path), self._bucket.key(to)
        turns = sorted({hash((self._bucket.place, key)) % len(_moves) for key in (source, target)})
        with ExitStack() as stack:
            for turn in turns:
                stack.enter_context(_moves[turn])
            found = self._bucket.head(path).headers
            if self._bucket.find(target) is not None:
                raise Conflict("something is already there", path=to)
            size, etag = int(found.get("content-length", "0")), found.get("etag", "").strip('"')
            headers = {k: v for k, v in found.items() if k.startswith("x-amz-meta-") or k == "content-type"}
            headers = {k: v for k, v in self._bucket.object_headers(None).items() if k != "content-type"} | headers
            try:
                self._bucket.copy(source, target, size, headers, exclusive=False, etag=etag, path=path)
            except FAILURES as error:
                raise as_failure(error, "cannot move it", path, self._bucket.place) from error
            copied = self._bucket.head(to).headers
            if int(copied.get("content-length", "-1")) != size:
                self._bucket.drop_object(target, to)
                raise Conflict("the copy has another size: the original is left alone", path=path)
            try:
                self._bucket.delete_version(source, etag, path)
            except SourceChanged:
                self._bucket.drop_object(target, to)
                raise

    # -- what was left behind ---------------------------------------------------------------------------------------

    def abandoned(self, older_s: float) -> Iterator[Abandoned]:
        """Multipart uploads below the prefix that were begun more than `older_s` seconds ago and not ended.

        Whether somebody still works on one, S3 does not tell: choose `older_s` longer than the longest upload.
        """
        before = time.time() - older_s
        seen: set[str] = set()
        query = {"uploads": "", "encoding-type": "url", "prefix": self._prefix}
        while True:
            page = self._bucket.ask("GET", query=query, doing="cannot list unfinished uploads", path=self._prefix).xml()
            decode = unquote_plus if page.findtext("EncodingType") == "url" else str
            for entry in page.iterfind("Upload"):
                begun = iso_ns(entry.findtext("Initiated") or "") / 1e9
                upload_id = entry.findtext("UploadId") or ""
                if begun < before and upload_id not in seen:
                    seen.add(upload_id)
                    yield Abandoned(decode(entry.findtext("Key") or ""), upload_id, begun, "")
            query["key-marker"] = decode(page.findtext("NextKeyMarker") or "")
            query["upload-id-marker"] = page.findtext("NextUploadIdMarker") or ""
            if page.findtext("IsTruncated") != "true" or not query["key-marker"]:
                break
        # MinIO lists them only by their whole key: there, our own small objects tell
        for key, size, mtime_ns, _ in self._bucket.listing(self._prefix):
            ours = names.TEMPORARY.match(key.rpartition("/")[2]) and size < 4096 and mtime_ns / 1e9 < before
            if ours and (noted := parse_journal(self._bucket.read_marker(key, key))):
                yield Abandoned(noted[3], noted[2], mtime_ns / 1e9, key)

    def abort_abandoned(self, older_s: float) -> int:
        """Remove them, with what tells of them; how many."""
        ended = {}
        for one in list(self.abandoned(older_s)):
            self._bucket.abort_multipart(one.key, one.upload_id, one.key)
            if one.marker:
                self._bucket.drop_object(one.marker, one.key)
            ended[one.upload_id] = one
        return len(ended)

    def close(self) -> None:
        if self._fetcher is not None:
            self._fetcher.close()
        self._bucket.close()


class Abandoned(NamedTuple):
    """A multipart upload that nobody ended: its key, when it was begun (seconds since the epoch), our note about it."""

    key: str
    upload_id: str
    begun: float
    marker: str
