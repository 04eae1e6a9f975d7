"""Files on a server that speaks SFTP.

A file is written to `.onblock-*.part` beside its final name and renamed by the server, which refuses to overwrite
(OpenSSH does it with link(2)). Requests are sent ahead of their answers: writes and reads of one file, and what ends
many small ones. Where the login has a shell that sees the same folder, it hashes files and makes folders durable; else
files are read back, and `fsync@openssh.com` makes them durable. Times are whole seconds: SFTP 3 has no more.
The connection is in `ssh.py`, the messages are in `sftp_messages.py`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from pydantic import Field

from blocks import names
from blocks.errors import ConfigError, Conflict, NetworkError, NotFound, OnblockError, SourceVanished
from blocks.storage import sftp_messages as wire
from blocks.storage.base import Features, FileInfo, Session, Upload
from blocks.storage.sftp_files import SMALL, SftpReader, SftpUpload
from blocks.storage.sftp_messages import Ask, Attributes, Refused, string
from blocks.storage.sftp_server import EOF, FAILURE, NO_SUCH_FILE, SftpServer, info_of, problem, raise_unless, special
from blocks.storage.ssh_login import SshStorage

log = logging.getLogger("onblock.storage")

LARGE = 32 << 20
"""Bytes from which a file takes the fast lane."""
FOLLOWED = 64 << 20
"""Bytes from which a file is hashed at the far side while it is sent."""


class SftpStorage(SshStorage):
    """A folder on a server that speaks SFTP."""

    _block_type_name = "SFTP Storage"
    _block_type_slug = "sftp-storage"
    _description = "A folder on a server that speaks SFTP."

    use_shell: bool = Field(
        default=True,
        description="Where the login has a shell that sees the same folder, let it take large files and compute their "
        "SHA-256 (by Python, OpenSSL or coreutils), and make folders durable; off, files are read back over SFTP instead.",
    )

    def open(self) -> SftpSession:
        from blocks.storage.ssh import Connection  # paramiko takes its time to import

        return SftpSession(SftpServer(self, Connection(self), use_shell=self.use_shell))


class SftpSession(Session):
    """Files below one folder of the server, over one connection."""

    def __init__(self, server: SftpServer):
        self.server = server
        openssh = server.connection.openssh
        self.features = Features(
            atomic_rename=True, exclusive_commit=openssh, resume_read=True, resume_write=True, staged_digest=True,
            server_checksums=("sha256",) if "sha256" in server.tools else (), mtime_set=True, byte_names=openssh, parallel=4,
        )  # fmt: skip

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        pending = [path]
        full = self.server.at(path) if path else self.server.root or b"/"
        with self.server.telling("cannot list the folder", path):
            if path and not self.server.inside(full):
                raise ConfigError(
                    "is or lies behind a link that leads out of the source folder", path=path,
                    remedy="give the folder itself as the storage's `root`",
                )  # fmt: skip
        while pending:  # names of folders wait in memory, files never do
            folder = pending.pop()
            if folder != path and not enter(folder):
                continue
            entries = self._entries(folder)
            while True:
                try:
                    name, found = next(entries)
                except StopIteration:
                    break
                except OnblockError as error:
                    if folder == path or isinstance(error, NetworkError):
                        raise
                    yield problem(folder, error)
                    break
                child = f"{folder}/{name}" if folder else name
                if found.is_folder():
                    pending.append(child)
                elif (info := self._listed(child, name, found)) is not None:
                    yield info

    def _entries(self, folder: str) -> Iterator[tuple[str, Attributes]]:
        """What lies in one folder. Two requests are under way, so that the last answer is not waited for twice."""
        full = self.server.root + b"/" + os.fsencode(folder)
        with self.server.telling("cannot list the folder", folder):
            handle = string(self.server.wire.handle(self.server.wire.send(Ask.OPENDIR, string(full))))
        asked = deque(self.server.wire.send(Ask.READDIR, handle) for _ in range(2))
        try:
            while True:
                with self.server.telling("cannot list the folder", folder):
                    try:
                        batch = self.server.wire.names(asked.popleft())
                    except Refused as refused:
                        if refused.code == EOF:
                            return
                        raise
                    asked.append(self.server.wire.send(Ask.READDIR, handle))
                for raw, found in batch:
                    if raw not in (b".", b".."):
                        yield os.fsdecode(raw), found
        finally:
            self.server.let_go(handle, *asked)

    def _listed(self, path: str, name: str, found: Attributes) -> FileInfo | None:
        """One entry of a listing that is no folder."""
        if names.TEMPORARY.match(name):
            return None
        try:
            names.check_path(name)
            if "/" in name:
                raise ConfigError("the server lists a name with a slash", path=path)
        except ConfigError as error:
            return problem(path, error)
        if found.is_link():
            with self.server.telling("cannot look at it", path):
                if not self.server.inside(self.server.at(path)):
                    return problem(path, ConfigError(
                        "is a link that leads out of the source folder", path=path,
                        remedy="put the file itself there, or add the link to `exclude`",
                    ))  # fmt: skip
                try:
                    found = self.server.wire.attributes(self.server.wire.send(Ask.STAT, string(self.server.at(path))))
                except Refused:
                    return problem(
                        path, NotFound("is a link to nothing", path=path, remedy="remove it or `exclude` it")
                    )
            if found.is_folder():
                return None  # a link to a folder inside the root: its files are found where they are
        if not found.is_file():
            return problem(
                path, ConfigError(f"is {special(found)}, not a file", path=path, remedy="add it to `exclude`")
            )
        return info_of(path, found)

    def stat(self, path: str) -> FileInfo:
        full = self.server.at(path)
        with self.server.telling("cannot look at it", path):
            found = self.server.wire.attributes(self.server.wire.send(Ask.STAT, string(full)))
        if not found.is_file():
            raise Conflict(f"is {special(found)}, not a file", path=path)
        return info_of(path, found)

    def read(self, path: str, offset: int = 0) -> SftpReader:
        full = self.server.at(path)
        with self.server.telling("cannot open it", path):
            look, opening = (
                self.server.wire.send(Ask.LSTAT, string(full)),
                self.server.wire.send(Ask.OPEN, string(full) + struct.pack(">I", wire.READ) + wire.attributes()),
            )
            handle: bytes | None = None
            try:
                try:
                    handle = string(self.server.wire.handle(opening))
                finally:
                    found = self.server.wire.attributes(look)
                if found.is_link():
                    if not self.server.inside(full):
                        raise ConfigError(
                            "is a link that leads out of the folder", path=path, remedy="put the file itself there"
                        )
                    found = self.server.wire.attributes(self.server.wire.send(Ask.STAT, string(full)))
                if not found.is_file():
                    raise ConfigError(f"is {special(found)}, not a file", path=path, remedy="add it to `exclude`")
            except Refused as refused:
                self.server.let_go(handle)
                if refused.code == NO_SUCH_FILE:
                    raise SourceVanished("is no longer there", path=path) from refused
                raise
            except OnblockError:
                self.server.let_go(handle)
                raise
            server = self.server
            if found.size - offset >= LARGE and (lane := server.lane()) is not server:
                with contextlib.suppress(Refused):  # then as small files are read
                    fast = lane.open(full, wire.READ)
                    server.let_go(handle)
                    server, handle = lane, fast
        assert handle is not None
        return SftpReader(server, path, full, handle, offset, found.size)

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        if kind != "sha256" or "sha256" not in self.server.tools:
            return super().checksum(path, kind, fresh=fresh)
        size = self.stat(path).size
        if size < SMALL and not fresh:
            return super().checksum(path, kind)
        return self.server.hash_there(self.server.at(path), size, path, fresh=fresh)

    def upload(
        self,
        path: str,
        size: int,
        *,
        key: str = "",
        resume: bool = False,
        journal: str = "",
        mtime_ns: int | None = None,
    ) -> SftpUpload:
        staged = self.server.staged(path, key)
        if resume and self._may_have_its_final_name(staged, path, size):
            resume = False
        flags = wire.READ | wire.WRITE | wire.CREATE | (0 if resume else wire.EXCLUSIVE)
        offset, handle = 0, b""
        server = self.server.lane() if size >= LARGE else self.server
        # a file is made by the server's own SFTP, and its rules
        maker = self.server if wire.DIGEST in server.wire.extensions else server
        with server.telling("cannot write there", path):
            for last in (False, True):
                if not resume:  # never truncated: were it a second name of a file that is whole, that would be lost
                    maker.later(Ask.REMOVE, string(staged))
                try:
                    handle = maker.open(staged, flags)
                    break
                except Refused as refused:
                    if refused.code in (FAILURE, 11) or last:
                        raise self.server.why_not(refused, path) from refused
                    if refused.code != NO_SUCH_FILE:
                        raise
                    if why := self.server.make_folders(staged):
                        raise self.server.why_not(why, path) from refused
            if maker is not server:
                raise_unless(maker.wire.outcome(maker.wire.send(Ask.CLOSE, handle)))
                try:
                    handle = server.open(staged, wire.READ | wire.WRITE)
                except Refused as refused:  # the login is another than who writes here by SFTP
                    log.info("%s is written like small files: %s", path, refused)
                    server, handle = maker, maker.open(staged, wire.READ | wire.WRITE)
            if resume:
                offset = server.wire.attributes(server.wire.send(Ask.FSTAT, handle)).size
        follower = server.follow(staged) if size >= FOLLOWED and not resume else None
        return SftpUpload(server, path, staged, handle, offset, size, mtime_ns, follower)

    def _may_have_its_final_name(self, staged: bytes, path: str, size: int) -> bool:
        """Whether what lies there may be the final file as well: a server that dies while it renames, by a second name,
        leaves both. SFTP does not tell how many names a file has, but both look the same."""
        with self.server.telling("cannot look at it", path), contextlib.suppress(Refused):  # nothing has that name
            found = self._seen(staged)
            return found.size >= size and any(
                self._seen(self.server.at(name)) == found for name in (path, *names.alternatives(path))
            )
        return False

    def _seen(self, full: bytes) -> Attributes:
        """What has this name. Raises Refused."""
        return self.server.wire.attributes(self.server.wire.send(Ask.LSTAT, string(full)))

    def discard(self, path: str, key: str, journal: str = "") -> None:
        staged = self.server.staged(path, key)
        with self.server.telling("cannot remove the temporary file", path):
            raise_unless(self.server.wire.outcome(self.server.wire.send(Ask.REMOVE, string(staged))), NO_SUCH_FILE)

    def rekey(self, path: str, key: str, to: str) -> None:
        with self.server.telling("cannot take over the temporary file", path):
            number = self.server.renaming(self.server.staged(path, key), self.server.staged(path, to), over=True)
            raise_unless(self.server.wire.outcome(number), NO_SUCH_FILE)

    def commit_all(self, uploads: Sequence[Upload]) -> list[str | OnblockError]:
        mine = [u for u in uploads if isinstance(u, SftpUpload)]
        if len(mine) < 2 or not self.server.connection.openssh:
            return super().commit_all(uploads)
        done: list[str | OnblockError] = [u.path for u in mine]
        asked: list[tuple[int, int]] = []
        try:
            for upload in mine:
                upload.seal()
            for n, upload in enumerate(mine):
                try:
                    upload.settle()
                except NetworkError:
                    raise
                except OnblockError as error:
                    done[n] = error
            late = [u for n, u in enumerate(mine) if u.unsynced and isinstance(done[n], str)]
            self.server.sync({u.staged.rpartition(b"/")[0] for u in late}, whole=True)
            with self.server.telling("cannot give it its final name"):
                for n, upload in enumerate(mine):
                    if isinstance(done[n], str):
                        upload.unsynced = False
                        asked.append((n, self.server.renaming(upload.staged, self.server.at(upload.path))))
                for n, number in asked:
                    if refused := self.server.wire.outcome(number):
                        new = self.server.at(mine[n].path)
                        with self.server.telling("cannot look at it"):
                            why = self.server.rename_refused(refused, new, mine[n].path)
                        done[n] = (
                            self.server.failure(why, "cannot give it its final name", mine[n].path)
                            if not isinstance(why, OnblockError)
                            else why
                        )
            arrived = [self.server.at(d) for d in done if isinstance(d, str)]
            folders = self.server.folders_of(arrived)
            self.server.sync(folders if len(folders) <= 256 else [self.server.root or b"/"], whole=len(folders) > 256)
        except OnblockError as error:
            return [error if isinstance(d, str) else d for d in done]
        return done

    def delete(self, path: str) -> None:
        full = self.server.at(path)
        with self.server.telling("cannot delete it", path):
            refused = self.server.wire.outcome(self.server.wire.send(Ask.REMOVE, string(full)))
            if refused is None:
                return
            if refused.code != NO_SUCH_FILE:
                found = self.server.wire.attributes(self.server.wire.send(Ask.LSTAT, string(full)))
                if found.is_folder():
                    raise Conflict("is a folder, not a file", path=path) from refused
            raise refused

    def move(self, path: str, to: str) -> None:
        full, target = self.server.at(path), self.server.at(to)
        with self.server.telling("cannot move it", path):
            try:
                self.server.rename(full, target, to)
            except Refused as refused:
                if refused.code != NO_SUCH_FILE or not self.server.exists(full):
                    raise
                self.server.make_folders(target)
                self.server.rename(full, target, to)
        self.server.sync(self.server.folders_of([target, full]))

    def free_bytes(self) -> int | None:
        with self.server.telling("cannot ask for the free space", self.server.storage.root):
            room = self.server.room()
        return room[0] if room else None

    def close(self) -> None:
        self.server.close()
