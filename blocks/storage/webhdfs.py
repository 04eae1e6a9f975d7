"""HDFS by WebHDFS, the REST interface of its NameNodes and DataNodes (Hadoop 2.7 and later).

A file is written under its temporary name at a DataNode, and renamed by the one rename of HDFS that never overwrites.
An interrupted file is appended to, once HDFS has let go of its writer. How nodes are spoken to is in `webhdfs_wire.py`,
files on their way in `webhdfs_transfer.py`, tickets in `kerberos.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import requests
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from blocks import names
from blocks.errors import ConfigError, Conflict, NetworkError, NotFound, OnblockError, SourceVanished
from blocks.storage.base import Features, FileInfo, Session, Storage
from blocks.storage.hdfs_checksum import KINDS
from blocks.storage.hdfs_names import hdfs_root
from blocks.storage.webhdfs_transfer import PIECE, WebHdfsReader, WebHdfsUpload, file_info
from blocks.storage.webhdfs_wire import Wire, without_token


class WebHdfsStorage(Storage):
    """A folder in HDFS, reached by the WebHDFS interface of its NameNodes."""

    model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a password by mistake

    _block_type_name = "WebHDFS Storage"
    _block_type_slug = "webhdfs-storage"
    _description = "A folder in HDFS, reached by the WebHDFS interface of its NameNodes."

    namenodes: list[str] = Field(
        min_length=1,
        description="Web addresses of the NameNodes, e.g. https://nn1.example.org:9871: the active one and its standbys.",
    )
    root: str = Field(description="The folder in HDFS, from '/'.")
    create_root: bool = Field(default=False, description="Make the folder if it is missing.")
    user: str = Field(
        default="",
        description="User name, where the cluster asks for no proof of it (no Kerberos). Empty: the name we run under.",
    )
    principal: str = Field(default="", description="Kerberos principal, e.g. onblock@EXAMPLE.ORG; goes with `keytab`.")
    keytab: str = Field(default="", description="File with the principal's key, on the machine where the job runs.")
    ticket_cache: str = Field(
        default="",
        description="Kerberos tickets somebody else keeps fresh (as in KRB5CCNAME), instead of `keytab`.",
    )
    token: SecretStr | None = Field(default=None, description="A Hadoop delegation token, instead of Kerberos.")
    verify_tls: bool = Field(
        default=True,
        description="Check the servers' certificates on https. Off, anybody on the way can read and change the files.",
    )
    ca_file: str = Field(default="", description="Certificates (PEM) to trust on https, instead of the public ones.")
    permission: str = Field(default="644", pattern=r"^[0-7]{3,4}$", description="Permission of new files, octal.")
    replication: int | None = Field(
        default=None, ge=1, le=512, description="Copies of each block; empty: the cluster's."
    )
    block_size: int | None = Field(
        default=None, ge=4096, description="Bytes in a block, a multiple of 512; empty: the cluster's."
    )
    timeout_s: float = Field(default=60, gt=0, description="How long a server may be silent, in seconds.")

    @field_validator("namenodes")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        for one in value:
            parts = urlsplit(one)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
                raise ValueError(f"{without_token(one)!r} is not http://HOST:PORT or https://HOST:PORT")
            if parts.username or parts.password:
                raise ValueError("an address holds no user name or password; give `user`, `keytab` or `token`")
        return [one.rstrip("/") for one in value]

    @field_validator("root")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return hdfs_root(value)

    @model_validator(mode="after")
    def _one_way_in(self) -> WebHdfsStorage:
        if bool(self.principal) != bool(self.keytab):
            raise ValueError("`principal` and `keytab` go together")
        ways = [bool(self.keytab), bool(self.ticket_cache), self.token is not None, bool(self.user)]
        if sum(ways) > 1:
            raise ValueError("give one of `user`, `keytab` with `principal`, `ticket_cache` and `token`")
        if self.block_size and self.block_size % 512:
            raise ValueError("`block_size` must be a multiple of 512")
        return self

    def place(self) -> str:
        return f"webhdfs:{self.namenodes[0]}{self.root}"

    def open(self) -> WebHdfsSession:
        session = WebHdfsSession(self)
        try:
            session.probe()
        except BaseException:
            session.close()
            raise
        return session


class WebHdfsSession(Session):
    """A connection kept to the NameNode; one for each file to a DataNode."""

    features = Features(
        atomic_rename=True, exclusive_commit=True, resume_read=True, proven_reads=True, resume_write=True,
        staged_digest=True, server_checksums=KINDS, mtime_set=True, parallel=4,
    )  # fmt: skip

    def __init__(self, storage: WebHdfsStorage):
        self.storage = storage
        self.wire = Wire(storage)
        self._lists_in_pages = True

    def probe(self) -> None:
        """Whether anybody answers, and lets us in."""
        try:
            answer = self.wire.ask("get_file_status", self.storage.root, self.storage.root).json()
        except NotFound as error:
            if not self.storage.create_root:
                raise NotFound(
                    f"the folder does not exist at {self.wire.where}", path=self.storage.root,
                    remedy="make it, or correct `root`; a destination may say `create_root: true`",
                ) from error  # fmt: skip
            self.wire.ask("mkdirs", self.storage.root, self.storage.root)
            return
        if answer["FileStatus"]["type"] != "DIRECTORY":
            raise Conflict("is a file, not a folder", path=self.storage.root, remedy="give a folder as `root`")

    # -- reading --------------------------------------------------------------------------------------------------

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        full = self.wire.at(path) if path else self.storage.root
        todo = [(path, full)]
        first = True
        while todo:
            base, folder = todo.pop()
            if not first and not enter(base):
                continue
            try:
                for entry in self._list(folder, base):
                    suffix = entry["pathSuffix"]
                    if not suffix:
                        raise Conflict("is a file, not a folder", path=base)
                    name = f"{base}/{suffix}" if base else suffix
                    if entry["type"] == "DIRECTORY":
                        todo.append((name, f"{folder.rstrip('/')}/{suffix}"))
                    elif entry["type"] != "FILE":
                        problem = ConfigError("is a link, not a file", path=name, remedy="add it to `exclude`")
                        yield FileInfo(name, 0, 0, "", problem)
                    elif not names.TEMPORARY.match(suffix):
                        yield file_info(name, entry)
            except NotFound:
                if first:
                    raise
            except NetworkError:
                raise
            except OnblockError as error:
                if first:
                    raise
                yield FileInfo(base, 0, 0, "", error)
            first = False

    def _list(self, folder: str, path: str) -> Iterator[dict[str, Any]]:
        """The entries of one folder. Its memory does not grow with the folder."""
        after = ""
        while self._lists_in_pages:
            options = {"startAfter": after} if after else {}
            try:
                answer = self.wire.ask("list_status_batch", folder, path, **options)
            except ConfigError:  # before Hadoop 2.9 there are no pages
                self._lists_in_pages = False
                break
            listing = answer.json()["DirectoryListing"]
            page = listing["partialListing"]["FileStatuses"]["FileStatus"]
            yield from page
            if not listing["remainingEntries"] or not page:
                return
            after = page[-1]["pathSuffix"]
        answer = self.wire.ask("list_status", folder, path)
        try:
            yield from _statuses(answer.iter_content(PIECE))
            return
        except (requests.RequestException, ValueError) as error:
            failed = self.wire.unreachable(error, path)
        finally:
            answer.close()
        raise failed

    def stat(self, path: str) -> FileInfo:
        return file_info(path, self.wire.status(path, self.wire.at(path)))

    def read(self, path: str, offset: int = 0) -> WebHdfsReader:
        try:
            full = self.wire.at(path)
            return WebHdfsReader(self.wire, path, full, self.wire.status(path, full), offset)
        except NotFound as error:
            raise SourceVanished("is no longer there", path=path) from error

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        if kind not in KINDS:
            return super().checksum(path, kind, fresh=fresh)
        found = self.wire.far_checksum(self.wire.at(path), path)
        if found.kind != kind:
            raise ConfigError(f"this cluster's checksum is {found.algorithm}, not {kind}", path=path)
        return found.digest

    # -- writing --------------------------------------------------------------------------------------------------

    def upload(
        self,
        path: str,
        size: int,
        *,
        key: str = "",
        resume: bool = False,
        journal: str = "",
        mtime_ns: int | None = None,
    ) -> WebHdfsUpload:
        full = self.wire.at(path)
        staged = names.temporary(full, key)
        upload = WebHdfsUpload(self.wire, path, staged, mtime_ns)
        if resume:
            upload.take_up()
        return upload

    def discard(self, path: str, key: str, journal: str = "") -> None:
        staged = names.temporary(self.wire.at(path), key)
        self.wire.ask("delete", staged, path, recursive="false")

    def rekey(self, path: str, key: str, to: str) -> None:
        full = self.wire.at(path)
        try:
            self.wire.rename(names.temporary(full, key), names.temporary(full, to), path, path, replace=True)
        except NotFound:
            return

    def delete(self, path: str) -> None:
        full = self.wire.at(path)
        self.wire.status(path, full)
        if not self.wire.ask("delete", full, path, recursive="false").json()["boolean"]:
            raise NotFound("is no longer there", path=path)

    def move(self, path: str, to: str) -> None:
        full, target = self.wire.at(path), self.wire.at(to)
        self.wire.status(path, full)
        self.wire.rename(full, target, path, to, folders=True)

    def free_bytes(self) -> int | None:
        try:
            found = self.wire.ask("get_content_summary", self.storage.root, self.storage.root).json()["ContentSummary"]
        except NotFound:
            return None
        if found.get("spaceQuota", -1) < 0:
            return None
        return max(0, found["spaceQuota"] - found["spaceConsumed"]) // (self.storage.replication or 3)

    def close(self) -> None:
        self.wire.close()


def _statuses(parts: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of the list in a LISTSTATUS answer, one by one as they come."""
    decode, text, started = json.JSONDecoder().raw_decode, bytearray(), False
    pending = ""
    for part in parts:
        text += part
        cut = len(text)
        while cut and len(text) - cut < 4 and text[cut - 1] & 0xC0 == 0x80:  # a character cut in two waits
            cut -= 1
        if cut and text[cut - 1] >= 0xC0:
            cut -= 1
        pending += text[:cut].decode("utf-8")
        del text[:cut]
        if not started:
            at = pending.find("[")
            if at < 0:
                continue
            started, pending = True, pending[at + 1 :]
        at = 0
        while True:
            while at < len(pending) and pending[at] in ", \n\r\t":
                at += 1
            if at >= len(pending) or pending[at] == "]":
                break
            try:
                found, at = decode(pending, at)
            except json.JSONDecodeError:
                break  # cut in two: the rest comes
            yield found
        pending = pending[at:]
        if pending.startswith("]"):
            return
    raise ValueError("the listing broke off")
