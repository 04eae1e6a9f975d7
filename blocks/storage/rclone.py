"""Whatever rclone reaches: some seventy kinds of storage, by the real binary.

Files are read and written through one `rclone rcd` per configuration (`rclone_daemon.py`), so that one process serves
many files and none is named on a command line. A file is written to `.onblock-*.part` beside its final name, read back
and moved by the far side. rclone cannot resume inside a file, nor rename without overwriting: we look first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime
from threading import Event, Lock
from typing import Any

from pydantic import Field, SecretStr, field_validator, model_validator

from blocks import names
from blocks.errors import (
    Cancelled,
    ConfigError,
    Conflict,
    NetworkError,
    NotFound,
    OnblockError,
    SourceChanged,
    SourceVanished,
)
from blocks.storage.base import Features, FileInfo, Session, Storage, Upload
from blocks.storage.program import hash_local
from blocks.storage.rclone_daemon import Daemon, Wire, decode, encode
from blocks.storage.rclone_transfer import RcloneReader, RcloneUpload, pour

AT_ONCE = 8
"""Files that `push`, `pull` and `commit_all` have under way."""
_UNCONDITIONAL = {"IgnoreTimes": True, "NoCheckDest": True}
"""Copy what is asked for."""
_PROOFS = ("md5", "sha1", "sha256")
"""Hashes that what is read is held against, the one most files have first."""


class RcloneStorage(Storage):
    """A remote of rclone's. `config` is what `rclone config show NAME` prints; or name an rclone.conf."""

    _block_type_name = "Rclone Storage"
    _block_type_slug = "rclone-storage"
    _description = "A remote of rclone's: some seventy kinds of storage, by the installed rclone."

    remote: str = Field(description="The remote's name in its configuration, without the colon.")
    root: str = Field(default="", description="The folder there, as rclone writes it after the colon.")
    config: SecretStr | None = Field(
        default=None,
        description="Configuration as `rclone config show NAME` prints it (passwords obscured as rclone does).",
    )
    config_file: str | None = Field(default=None, description="Or: the path of an rclone.conf on the running machine.")
    config_password: SecretStr | None = Field(default=None, description="Password of an encrypted rclone.conf.")
    binary: str = Field(default="rclone", description="The program, 1.65 or newer: a name or an absolute path.")
    create_root: bool = Field(default=False, description="Make the folder if it is missing.")
    idle_timeout: float = Field(default=60, ge=1, description="Seconds without a byte until a transfer has failed.")

    @field_validator("remote")
    @classmethod
    def _named(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.+@][\w .+@-]*", value):
            raise ValueError(f"{value!r} is no name of a remote; give it without the colon")
        return value

    @field_validator("root")
    @classmethod
    def _plain(cls, value: str) -> str:
        if "]" in value or not (value.isprintable() or not value):
            raise ValueError("a root may not hold ']' or control characters")
        return value.rstrip("/") or value[:1]

    @model_validator(mode="after")
    def _configured(self) -> RcloneStorage:
        if (self.config is None) == (self.config_file is None):
            raise ValueError("give either `config` or `config_file`")
        return self

    def place(self) -> str:
        return f"rclone:{self.remote}:{self.root}"

    def open(self) -> RcloneSession:
        text = _sections(self.config.get_secret_value(), self.remote) if self.config else ""
        password = self.config_password.get_secret_value() if self.config_password else ""
        config_file = os.path.expanduser(self.config_file or "")

        def borrow() -> Daemon:
            return Daemon.borrow(self.binary, text, config_file, password, self.idle_timeout)

        session = RcloneSession(borrow, f"{self.remote}:{self.root}", self.idle_timeout)
        try:
            session.look_around(self.place(), self.create_root)
        except BaseException:
            session.close()
            raise
        return session


class RcloneSession(Session):
    """Files below one folder of a remote."""

    def __init__(self, borrow: Callable[[], Daemon], fs: str, idle: float):
        self._borrow = borrow
        self._daemon: Daemon | None = borrow()
        self.fs, self._patience = fs, idle + 30  # rclone gives up first, and says why
        self._wires: list[Wire] = []
        self._lock = Lock()
        self._shown = True

    def look_around(self, place: str, create_root: bool) -> None:
        """See what the remote can, and that the root is there."""
        daemon = self.daemon
        about = self.call("operations/fsinfo", "cannot open the remote", place)
        able = about.get("Features", {})
        self._moves = bool(able.get("Move") or able.get("Copy"))
        self._hashes = frozenset(about.get("Hashes") or ()) & hashlib.algorithms_available
        self._keeps = not able.get("SlowHash")  # hashes with its files; who has none reads them for it (disk, SFTP)
        self._proof = next((kind for kind in _PROOFS if kind in self._hashes), "") if self._keeps else ""
        self.features = Features(
            atomic_rename=True, resume_read=True, proven_reads=bool(self._proof), staged_digest=True,
            server_checksums=tuple(sorted(self._hashes)), parallel=2, bulk_push=True, bulk_pull=True, bulk_below=32 << 20, bulk_limits=True,
        )  # fmt: skip
        self._shown = daemon.roots.get(self.fs, True)
        if self.fs not in daemon.roots:
            self._find_root(place, create_root)
            self._shown = daemon.roots[self.fs] = self._encodes(about.get("Name", ""))

    def _find_root(self, place: str, create: bool) -> None:
        if create:
            self.call("operations/mkdir", "cannot make the folder", place, remote="")
        try:
            self._list("", dirs_only=True)
        except NotFound as error:
            error.path = place
            error.todo = "make it, or correct `root`; a destination may say `create_root: true`"
            raise

    def _encodes(self, remote: str) -> bool:
        """Whether rclone encodes names for this remote, and shows control characters encoded: by its `encoding`."""
        section = self.call("config/get", "cannot read the configuration", name=remote)
        if "encoding" in section:
            return section["encoding"].lower() not in ("", "none")
        for kind in self.call("config/providers", "cannot ask what rclone knows")["providers"]:
            if kind["Name"] == section.get("type"):
                return all(option["DefaultStr"] for option in kind["Options"] if option["Name"] == "encoding")
        return True

    def encode(self, path: str) -> str:
        """A legal path as rclone writes it for this remote. Raises ConfigError."""
        return encode(names.check_path(path), self._shown)

    # -- talking to the daemon ------------------------------------------------------------------------------------

    @property
    def daemon(self) -> Daemon:
        """The daemon; a new one where it was killed."""
        with self._lock:
            if self._daemon is None:
                raise NetworkError("the session is closed")
            if self._daemon.program.poll() is not None:
                old, self._daemon, self._wires = self._daemon, self._borrow(), []
                old.give_back()
            return self._daemon

    @contextlib.contextmanager
    def wire(self) -> Iterator[Wire]:
        """A connection of the caller's; kept for the next one if all was well. Safe in several threads."""
        daemon = self.daemon
        with self._lock:
            one = self._wires.pop() if self._wires else None
        if one is None:
            one = Wire(daemon, self._patience)
        try:
            yield one
        except BaseException:
            one.close()
            raise
        with self._lock:
            self._wires.append(one)

    def call(self, command: str, doing: str, path: str = "", **parameters: Any) -> dict[str, Any]:
        """One remote-control command on this remote."""
        with contextlib.ExitStack() as stack:
            one = stack.enter_context(self.wire())
            return one.call(command, doing, path, **({"fs": self.fs} | parameters))

    def close(self) -> None:
        for one in self._wires:
            one.close()
        self._wires = []
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.give_back()

    # -- reading --------------------------------------------------------------------------------------------------

    def _list(self, folder: str, *, dirs_only: bool = False) -> list[dict[str, Any]]:
        options = {"noMimeType": True, "dirsOnly": dirs_only, "noModTime": dirs_only}
        found = self.call(
            "operations/list", "cannot list the folder", folder, remote=folder and self.encode(folder), opt=options
        )
        return found.get("list") or []

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        if path:
            names.check_path(path)
        pending = [path]
        while pending:  # one folder's listing at a time is in memory
            folder = pending.pop()
            if folder != path and not enter(folder):
                continue
            try:
                entries = self._list(folder)
            except NotFound:
                if folder == path:
                    raise
                continue  # gone since it was listed: the next scan knows better
            except NetworkError:
                raise
            except OnblockError as error:
                if folder == path:
                    raise
                yield FileInfo(folder, 0, 0, "", error)
                continue
            for entry in entries:
                name = (
                    f"{folder}/{decode(entry['Name'], self._shown)}" if folder else decode(entry["Name"], self._shown)
                )
                try:
                    names.check_path(name)
                except names.BadName as error:
                    yield FileInfo(name, 0, 0, "", error)
                    continue
                if entry["IsDir"]:
                    pending.append(name)
                elif not names.TEMPORARY.match(name.rpartition("/")[2]):
                    yield _info(name, entry)

    def _find(self, path: str) -> FileInfo | None:
        found = self.call(
            "operations/stat", "cannot look at it", path, remote=self.encode(path),
            opt={"noMimeType": True, "filesOnly": True},  # else a missing file costs a listing of its folder
        ).get("item")  # fmt: skip
        return None if found is None or found["IsDir"] else _info(path, found)

    def stat(self, path: str) -> FileInfo:
        found = self._find(path)
        if found is None:
            raise NotFound("is not there", path=path)
        return found

    def read(self, path: str, offset: int = 0) -> RcloneReader:
        return RcloneReader(self, names.check_path(path), offset, proof=self._proof)

    def far_hash(self, path: str, kind: str) -> str:
        """What the far side says; "" where it has none of this file."""
        return self.call(
            "operations/hashsumfile", "cannot hash it", path, remote=self.encode(path), hashType=kind
        ).get("hash", "")  # fmt: skip

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        if kind in self._hashes and not fresh and (found := self.far_hash(path, kind)):
            return found
        digest = hashlib.new(kind)
        pour(self, path, digest.update)
        return digest.hexdigest()

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
    ) -> RcloneUpload:
        self.encode(path)
        if not self._moves:
            raise ConfigError(
                "this kind of remote cannot rename a file", path=path, remedy="choose another destination"
            )
        return RcloneUpload(self, path, key, (size, mtime_ns))

    def discard(self, path: str, key: str, journal: str = "") -> None:
        with contextlib.suppress(NotFound):
            self.delete(names.temporary(names.check_path(path), key))

    def rekey(self, path: str, key: str, to: str) -> None:
        names.check_path(path)  # nothing is kept

    def delete(self, path: str) -> None:
        self.call("operations/deletefile", "cannot delete it", path, remote=self.encode(path))

    def move(self, path: str, to: str) -> None:
        self.stat(path)
        self.rename(path, names.check_path(to), path)

    def rename(self, path: str, to: str, said: str, *, replace: bool = False) -> None:
        """At the far side. Raises Conflict; nobody else of this process decides about `to` meanwhile."""
        locks = self.daemon.locks
        with locks[hash((self.fs, to)) % len(locks)]:
            if not replace and self._find(to) is not None:
                raise Conflict("something is already at the final name", path=to)
            self.call(
                "operations/movefile", "cannot rename it", said, srcFs=self.fs, srcRemote=self.encode(path), dstFs=self.fs,
                dstRemote=self.encode(to), _config={"IgnoreTimes": True},
            )  # fmt: skip

    def commit_all(self, uploads: Sequence[Upload]) -> list[str | OnblockError]:
        def commit(upload: Upload) -> str | OnblockError:
            try:
                return upload.commit()
            except OnblockError as error:
                return error

        first = {upload.path: number for number, upload in reversed(list(enumerate(uploads)))}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            under_way = {number: pool.submit(commit, uploads[number]) for number in first.values()}
        return [under_way[n].result() if n in under_way else commit(u) for n, u in enumerate(uploads)]

    def free_bytes(self) -> int | None:
        try:
            return self.call("operations/about", "cannot ask for the free space").get("free")
        except OnblockError:
            return None  # most object stores cannot say

    # -- many at once ---------------------------------------------------------------------------------------------

    def push(
        self, files: Sequence[tuple[str, Upload]], moved: Callable[[int], object], stop: Event
    ) -> list[str | None]:
        def send(local: str, upload: Upload) -> str | None:
            assert isinstance(upload, RcloneUpload)
            try:
                sha256 = hash_local(local, upload.size, upload.mtime_ns)
                if sha256 is None:
                    return None
                ours = {"IgnoreChecksum": True}  # what arrived is proven by us, with SHA-256
                self._copy("/", encode(local[1:]), self.fs, self.encode(upload.staged), upload.path, ours)
            except (OnblockError, OSError):
                return None  # sent singly, it says why
            upload.filled()
            return sha256

        return self._many([lambda f=f: send(*f) for f in files], moved, stop, 0)

    def pull(
        self, files: Sequence[tuple[str, str]], moved: Callable[[int], object], stop: Event
    ) -> list[OnblockError | None]:
        def fetch(path: str, local: str) -> OnblockError | None:
            try:
                before = self.stat(path)
                theirs = {"IgnoreChecksum": not self._keeps}
                self._copy(self.fs, self.encode(path), "/", encode(local[1:]), path, theirs)
                if self.stat(path).version != before.version:
                    return SourceChanged("changed while it was read", path=path)
                os.utime(local, ns=(before.mtime_ns, before.mtime_ns))
            except NotFound:
                return SourceVanished("is no longer there", path=path)
            except OnblockError as error:
                return error
            return None

        return self._many([lambda f=f: fetch(*f) for f in files], moved, stop, 1)

    def _limit(self, daemon: Daemon, direction: int | None) -> None:
        """Make the daemon keep to our limit, if we have one; None ends it."""
        if self.limits is None:
            return
        rate = None if direction is None else self.limits()[direction]
        if (said := daemon.slow_down(id(self), rate)) and daemon.program.poll() is None:
            self.call("core/bwlimit", "cannot limit the bandwidth", rate=said)

    def _copy(self, from_fs: str, path: str, to_fs: str, to: str, said: str, proof: dict[str, bool]) -> None:
        self.call(
            "operations/copyfile", "cannot copy it", said, srcFs=from_fs, srcRemote=path, dstFs=to_fs,
            dstRemote=to, _config=_UNCONDITIONAL | proof, _group=f"onblock-{id(self)}",
        )  # fmt: skip

    def _many(
        self, jobs: list[Callable[[], Any]], moved: Callable[[int], object], stop: Event, direction: int
    ) -> list[Any]:
        """The result of each job. Progress comes from the daemon's counters; of the limits, that of a direction holds."""
        told, group, daemon = 0, f"onblock-{id(self)}", self.daemon
        self._limit(daemon, direction)
        pool = ThreadPoolExecutor(AT_ONCE)
        futures: list[Future[Any]] = [pool.submit(job) for job in jobs]
        waiting = set(futures)
        try:
            while waiting:
                _, waiting = wait(waiting, 0.3)
                if stop.is_set():
                    raise Cancelled("the run was stopped")
                self._limit(daemon, direction)
                now = int(self.call("core/stats", "cannot ask for progress", group=group).get("bytes", 0))
                if now > told:
                    moved(now - told)
                    told = now
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with contextlib.suppress(OnblockError):
                self.call("job/stopgroup", "cannot stop", group=group)
            if wait(waiting, 0.7).not_done:
                daemon.program.end(0)  # what waits for the far side does not hear; the next call gets a new one
            raise
        finally:
            pool.shutdown()
            with contextlib.suppress(OnblockError):
                self._limit(daemon, None)
        self.call("core/stats-delete", "cannot reset the counters", group=group)
        return [future.result() for future in futures]


def _sections(text: str, remote: str) -> str:
    """An rclone.conf from what a block holds. A section without a head is the remote's.

    An SFTP server keeps any name. rclone would store a newline as the picture of one, so that no other program finds
    the file; it is told not to, unless the section says how names are encoded.
    """
    text = textwrap.dedent(text).strip()
    if not text.startswith(("[", "#", ";")):
        text = f"[{remote}]\n{text}"
    parts = re.split(r"(?m)^(?=\[)", text)
    return "".join(
        f"{part.rstrip()}\nencoding = Slash,Dot\n\n"
        if re.search(r"(?m)^\s*type\s*=\s*sftp\s*$", part) and not re.search(r"(?m)^\s*encoding\s*=", part)
        else part
        for part in parts
    )


def _info(path: str, entry: dict[str, Any]) -> FileInfo:
    return FileInfo(path, entry["Size"], _nanoseconds(entry["ModTime"]))


_TIME = re.compile(r"(.{19})(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)\Z")


def _nanoseconds(stamp: str) -> int:
    """RFC 3339 with up to nine digits, which Python's own parser would cut to six; 0 for what is no time."""
    m = _TIME.match(stamp)
    if m is None:
        return 0
    whole = datetime.fromisoformat(m[1] + m[3].replace("Z", "+00:00"))
    return int(whole.timestamp()) * 1_000_000_000 + int((m[2] or "0").ljust(9, "0"))
