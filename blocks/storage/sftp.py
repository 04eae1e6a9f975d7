"""Files on a server that speaks SFTP.

A file is written to `.onblock-*.part` beside its final name and renamed by the server, which refuses to overwrite
(OpenSSH does it with link(2)). Requests are sent ahead of their answers: writes and reads of one file, and what ends
many small ones. Where the login has a shell that sees the same folder, it hashes files and makes folders durable; else
files are read back, and `fsync@openssh.com` makes them durable. Times are whole seconds: SFTP 3 has no more.
The connection is in `ssh.py`, the messages are in `sftp_messages.py`.
"""

from __future__ import annotations

import os
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from blocks import names
from blocks.errors import (
    AuthError,
    ConfigError,
    Conflict,
    DiskFull,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceVanished,
    UnknownError,
)
from blocks.storage import sftp_messages as wire
from blocks.storage.base import Features, FileInfo, Reader, Session, Upload
from blocks.storage.sftp_messages import Ask, Attributes, Messages, Refused, string
from blocks.storage.ssh_login import SshStorage

if TYPE_CHECKING:
    from blocks.storage.base import Buffer
    from blocks.storage.ssh import Connection, Shell

DEPTH = 16
"""Reads or writes of one file that are under way at once, each of up to 255 KiB."""
SMALL = 1 << 20
"""Below this size a digest is cheaper by reading back than by a command at the far side."""
HASH_RATE = 10e6
"""Bytes/s that the slowest server hashes: how long its `sha256sum` may be silent."""
SHELL_PATIENCE = 10.0
"""Seconds for the first answer of a shell."""

EOF, NO_SUCH_FILE, PERMISSION, FAILURE = 1, 2, 3, 4
STATUS: dict[int, tuple[type[OnblockError], str]] = {
    NO_SUCH_FILE: (NotFound, "it is not there"),
    PERMISSION: (PermissionRefused, "permission denied"),
    FAILURE: (UnknownError, "the server said only that it failed"),
    5: (ConfigError, "the server does not take the name; it may be too long"),  # OpenSSH: ENAMETOOLONG, EINVAL
    6: (NetworkError, "no connection"), 7: (NetworkError, "the connection was lost"),
    8: (ConfigError, "the server cannot do that"),
    # from later versions of the protocol, and sent by some servers all the same
    9: (NetworkError, "invalid handle"), 10: (NotFound, "no such path"), 11: (Conflict, "it is there already"),
    12: (PermissionRefused, "write protected"), 13: (NotFound, "no medium"), 14: (DiskFull, "no space left"),
    15: (DiskFull, "quota used up"), 16: (AuthError, "unknown user"), 17: (NetworkError, "locked by another"),
    18: (Conflict, "the folder is not empty"), 19: (Conflict, "it is no folder"), 20: (ConfigError, "invalid name"),
    21: (ConfigError, "a loop of links"), 22: (UnknownError, "cannot be deleted"), 24: (Conflict, "it is a folder"),
}  # fmt: skip
"""The one table for the answers of an SFTP server: kind, and our words for it. What is not here is UNKNOWN."""

_REMEDY = {
    FAILURE: "look at the server's log; a quota, a full disk or a file system's limits are the usual causes",
    5: "shorten it with the job's `path` template",
    8: "use another storage for this server, such as scp-storage",
    20: "rename it with the job's `path` template",
    21: "put the file or folder itself there, not a link",
}


def refusal(refused: Refused, doing: str, path: str = "") -> OnblockError:
    """The class of the taxonomy for a status, by `STATUS`; `refused` is its cause."""
    kind, words = STATUS.get(refused.code, (UnknownError, f"status {refused.code}"))
    said = names.display(refused.said)[:200]
    if said and said.lower() not in ("failure", "bad message", "no such file", "permission denied"):
        words = f"{words} ({said})"
    made = kind(f"{doing}: {words}", path=path, remedy=_REMEDY.get(refused.code))
    made.__cause__ = refused
    return made


class SftpStorage(SshStorage):
    """A folder on a server that speaks SFTP."""

    _block_type_name = "SFTP Storage"
    _block_type_slug = "sftp-storage"
    _description = "A folder on a server that speaks SFTP."

    use_shell: bool = Field(
        default=True,
        description="Where the login has a shell that sees the same folder, let it compute SHA-256 and make folders "
        "durable; off, files are read back over SFTP instead.",
    )

    def open(self) -> SftpSession:
        from blocks.storage.ssh import Connection  # paramiko takes its time to import

        return SftpSession(self, Connection(self))


class _Telling:
    """A block whose failures leave it as classes of the taxonomy."""

    __slots__ = ("_doing", "_path", "_session")

    def __init__(self, session: SftpSession, doing: str, path: str):
        self._session, self._doing, self._path = session, doing, path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, OnblockError) or not isinstance(error, Exception):
            return
        raise self._session.failure(error, self._doing, self._path) from error


class SftpSession(Session):
    """Files below one folder of the server, over one connection."""

    def __init__(self, storage: SftpStorage, connection: Connection):
        self.storage, self.connection = storage, connection
        self._shell: Shell | None = None
        self.tools: set[str] = set()
        """What the login's shell can do in the same folder: `sha256`, `sync`."""
        try:
            self.wire = self._begin()
            self._root = self._find_root()
            if storage.use_shell:
                self.tools = self._look_for_tools()
        except BaseException:
            connection.close()
            raise
        openssh = connection.openssh
        self.features = Features(
            atomic_rename=True, exclusive_commit=openssh, resume_read=True, resume_write=True, staged_digest=True,
            server_checksums=("sha256",) if "sha256" in self.tools else (), mtime_set=True, byte_names=openssh, parallel=4,
        )  # fmt: skip

    def _begin(self) -> Messages:
        remedy = "turn SFTP on at the server, or use scp-storage"
        try:
            channel = self.connection.subsystem("sftp")
        except ConfigError as error:
            error.todo = remedy
            raise
        with self.telling("cannot begin SFTP"):
            try:
                return Messages(channel)
            except EOFError as error:
                if not self.connection.transport.is_active():
                    raise
                raise ConfigError(f"{self.storage.address} ended SFTP at once", remedy=remedy) from error

    def _find_root(self) -> bytes:
        """The root without links, as the server sees it; made if the block says so."""
        root = os.fsencode(self.storage.root)
        if root.startswith(b"~/"):
            root = root[2:]
        elif root == b"~":
            root = b"."
        with self.telling("cannot open the folder", self.storage.root):
            look = self.wire.send(Ask.STAT, string(root))
            try:
                found = self.wire.attributes(look)
            except Refused as refused:
                if refused.code != NO_SUCH_FILE:
                    raise
                if not self.storage.create_root:
                    raise NotFound(
                        f"the folder does not exist at {self.storage.address}", path=self.storage.root,
                        remedy="make or mount it, or correct `root`; a destination may say `create_root: true`",
                    ) from refused  # fmt: skip
                parts = root.split(b"/")
                for end in range(1, len(parts) + 1):
                    self.wire.outcome(
                        self.wire.send(Ask.MKDIR, string(b"/".join(parts[:end]) or b"/") + wire.attributes())
                    )
                found = self.wire.attributes(self.wire.send(Ask.STAT, string(root)))
            if not found.is_folder():
                raise Conflict("is a file, not a folder", path=self.storage.root, remedy="give a folder as `root`")
            ((real, _),) = self.wire.names(self.wire.send(Ask.REALPATH, string(root)))
        return real.rstrip(b"/")

    def _look_for_tools(self) -> set[str]:
        """Ask the login's shell, if it has one, what it can do, and whether its root is this very folder."""
        from blocks.storage.ssh import Failed, Shell

        root = self._root or b"/"
        script = (
            b"cd " + self._quoted(root) + b" && stat -c 'onblock %u %g %f %Y' . || exit 0\n"
            b"command -v sha256sum >/dev/null && echo sha256\nsync . && echo sync\nexit 0"
        )  # fmt: skip
        with self.telling("cannot open the folder", self.storage.root):
            before = self.wire.attributes(self.wire.send(Ask.STAT, string(root)))
            try:
                self._shell = Shell(self.connection)
                said = self._shell.run(script, min(SHELL_PATIENCE, self.storage.io_timeout)).decode("ascii", "replace")
            except (Failed, EOFError, OSError, OnblockError):
                if not self.connection.transport.is_active():
                    raise
                return set()
            after = self.wire.attributes(self.wire.send(Ask.STAT, string(root)))
        first, *tools = said.split("\n")
        try:
            word, user, group, mode, mtime = first.split()
            same = word == "onblock" and (int(user), int(group)) == after.owner and int(mode, 16) == after.mode
            same = same and before.mtime <= int(mtime) <= after.mtime
        except ValueError:
            return set()
        return {"sha256", "sync"} & set(tools) if same else set()

    def _run(self, script: bytes, timeout: float, doing: str, path: str) -> bytes:
        """A script in the login's shell, where `tools` say that there is one."""
        from blocks.storage.ssh import Failed

        assert self._shell is not None
        with self.telling(doing, path):
            try:
                return self._shell.run(script, timeout)
            except Failed as failed:
                raise UnknownError(f"{doing} at {self.storage.address}: {failed.said or failed}", path=path) from failed

    def failure(self, error: Exception, doing: str, path: str = "") -> OnblockError:
        """What any exception of a request means."""
        doing = f"{doing} at {self.storage.address}"
        if isinstance(error, Refused):
            return refusal(error, doing, path)
        if isinstance(error, struct.error):
            error = EOFError("the answer makes no sense")
        from blocks.storage.ssh import failure

        return failure(error, doing, path)

    def telling(self, doing: str, path: str = "") -> _Telling:
        """`with` it: what goes wrong becomes one of the taxonomy."""
        return _Telling(self, doing, path)

    def at(self, path: str) -> bytes:
        """The absolute path of a legal relative one, for the server."""
        names.check_path(path)
        if not self.features.byte_names:
            try:
                path.encode("utf-8")
            except UnicodeEncodeError:
                raise ConfigError(
                    "the server may not keep a name that is no UTF-8", path=path,
                    remedy="rename it with the job's `path` template",
                ) from None  # fmt: skip
        return self._root + b"/" + os.fsencode(path)

    def staged(self, path: str, key: str) -> bytes:
        """Where `path` is written until it is whole."""
        self.at(path)
        return self._root + b"/" + os.fsencode(names.temporary(path, key))

    @staticmethod
    def _quoted(path: bytes) -> bytes:
        from blocks.storage.ssh import quote

        return quote(os.fsdecode(path))

    # -- reading ------------------------------------------------------------------------------------------------

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        pending = [path]
        full = self.at(path) if path else self._root or b"/"
        with self.telling("cannot list the folder", path):
            if path and not self._inside(full):
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
                    yield _problem(folder, error)
                    break
                child = f"{folder}/{name}" if folder else name
                if found.is_folder():
                    pending.append(child)
                elif (info := self._listed(child, name, found)) is not None:
                    yield info

    def _entries(self, folder: str) -> Iterator[tuple[str, Attributes]]:
        """What lies in one folder. Two requests are under way, so that the last answer is not waited for twice."""
        full = self._root + b"/" + os.fsencode(folder)
        with self.telling("cannot list the folder", folder):
            handle = string(self.wire.handle(self.wire.send(Ask.OPENDIR, string(full))))
        asked = deque(self.wire.send(Ask.READDIR, handle) for _ in range(2))
        try:
            while True:
                with self.telling("cannot list the folder", folder):
                    try:
                        batch = self.wire.names(asked.popleft())
                    except Refused as refused:
                        if refused.code == EOF:
                            return
                        raise
                    asked.append(self.wire.send(Ask.READDIR, handle))
                for raw, found in batch:
                    if raw not in (b".", b".."):
                        yield os.fsdecode(raw), found
        finally:
            if self.connection.transport.is_active():
                for number in asked:
                    self.wire.forget(number)
                self._later(Ask.CLOSE, handle)

    def _listed(self, path: str, name: str, found: Attributes) -> FileInfo | None:
        """One entry of a listing that is no folder."""
        if names.TEMPORARY.match(name):
            return None
        try:
            names.check_path(name)
            if "/" in name:
                raise ConfigError("the server lists a name with a slash", path=path)
        except ConfigError as error:
            return _problem(path, error)
        if found.is_link():
            with self.telling("cannot look at it", path):
                if not self._inside(self.at(path)):
                    return _problem(path, ConfigError(
                        "is a link that leads out of the source folder", path=path,
                        remedy="put the file itself there, or add the link to `exclude`",
                    ))  # fmt: skip
                try:
                    found = self.wire.attributes(self.wire.send(Ask.STAT, string(self.at(path))))
                except Refused:
                    return _problem(
                        path, NotFound("is a link to nothing", path=path, remedy="remove it or `exclude` it")
                    )
            if found.is_folder():
                return None  # a link to a folder inside the root: its files are found where they are
        if not found.is_file():
            return _problem(
                path, ConfigError(f"is {_special(found)}, not a file", path=path, remedy="add it to `exclude`")
            )
        return _info(path, found)

    def _inside(self, full: bytes) -> bool:
        """Whether a path, followed to its end, lies below the root. A link to nothing counts as inside."""
        try:
            ((real, _),) = self.wire.names(self.wire.send(Ask.REALPATH, string(full)))
        except Refused as refused:
            if refused.code == NO_SUCH_FILE:
                return True
            raise
        return real.startswith(self._root + b"/")

    def stat(self, path: str) -> FileInfo:
        full = self.at(path)
        with self.telling("cannot look at it", path):
            found = self.wire.attributes(self.wire.send(Ask.STAT, string(full)))
        if not found.is_file():
            raise Conflict(f"is {_special(found)}, not a file", path=path)
        return _info(path, found)

    def read(self, path: str, offset: int = 0) -> SftpReader:
        full = self.at(path)
        with self.telling("cannot open it", path):
            look, opening = (
                self.wire.send(Ask.LSTAT, string(full)),
                self.wire.send(Ask.OPEN, string(full) + struct.pack(">I", wire.READ) + wire.attributes()),
            )
            handle: bytes | None = None
            try:
                try:
                    handle = string(self.wire.handle(opening))
                finally:
                    found = self.wire.attributes(look)
                if found.is_link():
                    if not self._inside(full):
                        raise ConfigError(
                            "is a link that leads out of the folder", path=path, remedy="put the file itself there"
                        )
                    found = self.wire.attributes(self.wire.send(Ask.STAT, string(full)))
                if not found.is_file():
                    raise ConfigError(f"is {_special(found)}, not a file", path=path, remedy="add it to `exclude`")
            except Refused as refused:
                self._let_go(handle)
                if refused.code == NO_SUCH_FILE:
                    raise SourceVanished("is no longer there", path=path) from refused
                raise
            except OnblockError:
                self._let_go(handle)
                raise
        assert handle is not None
        return SftpReader(self, path, full, handle, offset, found.size)

    def _let_go(self, handle: bytes | None) -> None:
        if handle is not None:
            self._later(Ask.CLOSE, handle)

    def _later(self, kind: Ask, head: bytes) -> None:
        """Send what needs no answer."""
        self.wire.forget(self.wire.send(kind, head))

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        if kind != "sha256" or "sha256" not in self.tools:
            return super().checksum(path, kind, fresh=fresh)
        size = self.stat(path).size
        if size < SMALL and not fresh:
            return super().checksum(path, kind)
        return self.hash_there(self.at(path), size, path, fresh=fresh)

    def hash_there(self, full: bytes, size: int, path: str, *, fresh: bool) -> str:
        """SHA-256 by the server's `sha256sum`. It reads its standard input: then no name is in what it prints."""
        name = self._quoted(full)
        script = b"sha256sum < " + name
        if fresh:  # asks the kernel to forget what it has cached, without reading
            script = b"dd if=" + name + b" iflag=nocache count=0 2>/dev/null\n" + script
        out = self._run(script, self.storage.io_timeout + size / HASH_RATE, "cannot hash it", path)
        digest = out[:64].decode("ascii", "replace")
        if len(digest) != 64 or not out.endswith(b" -\n"):
            raise UnknownError(f"sha256sum at {self.storage.address} printed no digest", path=path)
        return digest

    # -- writing ------------------------------------------------------------------------------------------------

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
        staged = self.staged(path, key)
        flags = wire.READ | wire.WRITE | wire.CREATE | (0 if resume else wire.EXCLUSIVE)
        opening = string(staged) + struct.pack(">I", flags) + wire.attributes()
        offset, handle = 0, b""
        with self.telling("cannot write there", path):
            for last in (False, True):
                if not resume:  # never truncated: were it a second name of a file that is whole, that would be lost
                    self._later(Ask.REMOVE, string(staged))
                number = self.wire.send(Ask.OPEN, opening)
                try:
                    handle = string(self.wire.handle(number))
                    break
                except Refused as refused:
                    if refused.code in (FAILURE, 11) or last:
                        raise self._why_not(refused, path) from refused
                    if refused.code != NO_SUCH_FILE:
                        raise
                    if why := self._make_folders(staged):
                        raise self._why_not(why, path) from refused
            if resume:
                offset = self.wire.attributes(self.wire.send(Ask.FSTAT, handle)).size
        return SftpUpload(self, path, staged, handle, offset, size, mtime_ns)

    def _why_not(self, refused: Refused, path: str) -> Exception:
        """A file could not be made: because of what is in the way, or because nothing fits in."""
        parts = path.split("/")[:-1]
        for end in range(1, len(parts) + 1):
            folder = "/".join(parts[:end])
            try:
                found = self.wire.attributes(self.wire.send(Ask.STAT, string(self.at(folder))))
            except Refused:
                break
            if not found.is_folder():
                return Conflict(f"{names.display(folder)} is {_special(found)}, not a folder", path=path)
        return self.no_room(refused, path) or refused

    def no_room(self, refused: Refused, path: str) -> OnblockError | None:
        """Servers say only `failure` where a disk is full: look."""
        if refused.code != FAILURE:
            return None
        room = self._statvfs()
        if room is None or (room[0] > wire.BLOCK and room[1] != 0):
            return None
        what = "no space left" if room[0] <= wire.BLOCK else "no room for another file (inodes)"
        full = DiskFull(f"{what} at {self.storage.address}", path=path)
        full.__cause__ = refused
        return full

    def _make_folders(self, full: bytes) -> Refused | None:
        """mkdir -p of what leads to a file below the root, in one go. Why the last could not be made, unless it may be
        because it is there: that the file will tell."""
        parts = full[len(self._root) + 1 :].split(b"/")[:-1]
        asked = []
        for end in range(1, len(parts) + 1):
            folder = self._root + b"/" + b"/".join(parts[:end])
            asked.append(self.wire.send(Ask.MKDIR, string(folder) + wire.attributes()))
        refusals = [self.wire.outcome(number) for number in asked]
        if not refusals or refusals[-1] is None:
            return None
        first = next((r for r in refusals if r is not None and r.code not in (FAILURE, 11)), None)
        return first or (refusals[-1] if self.no_room(refusals[-1], "") else None)

    def discard(self, path: str, key: str, journal: str = "") -> None:
        staged = self.staged(path, key)
        with self.telling("cannot remove the temporary file", path):
            _raise_unless(self.wire.outcome(self.wire.send(Ask.REMOVE, string(staged))), NO_SUCH_FILE)

    def rekey(self, path: str, key: str, to: str) -> None:
        with self.telling("cannot take over the temporary file", path):
            number = self._renaming(self.staged(path, key), self.staged(path, to), over=True)
            _raise_unless(self.wire.outcome(number), NO_SUCH_FILE)

    def _renaming(self, old: bytes, new: bytes, *, over: bool = False) -> int:
        if over and wire.POSIX_RENAME in self.wire.extensions:
            return self.wire.send(Ask.EXTENDED, string(wire.POSIX_RENAME) + string(old) + string(new))
        return self.wire.send(Ask.RENAME, string(old) + string(new))

    def exists(self, full: bytes) -> bool:
        """Whether anything has this name."""
        try:
            self.wire.attributes(self.wire.send(Ask.LSTAT, string(full)))
        except Refused as refused:
            if refused.code in (NO_SUCH_FILE, 10):
                return False
            raise
        return True

    def rename(self, old: bytes, new: bytes, path: str) -> None:
        """Give a file another name, unless something has it. Raises Conflict, Refused."""
        if not self.connection.openssh and self.exists(new):  # some servers overwrite
            raise Conflict("something is already at the final name", path=path)
        if refused := self.wire.outcome(self._renaming(old, new)):
            raise self.rename_refused(refused, new, path) from refused

    def rename_refused(self, refused: Refused, new: bytes, path: str) -> Exception:
        """Why a rename failed: servers say only that it did."""
        if refused.code in (FAILURE, 11) and self.exists(new):
            return Conflict("something is already at the final name", path=path)
        return self.no_room(refused, path) or refused

    def replace(self, old: bytes, new: bytes, path: str) -> None:
        """Give a file a name, over what has it: in one step where the server can, else what was there goes aside first."""
        if wire.POSIX_RENAME in self.wire.extensions:
            if refused := self.wire.outcome(self._renaming(old, new, over=True)):
                raise self.no_room(refused, path) or refused
            return
        folder, _, name = new.rpartition(b"/")
        aside = folder + b"/" + os.fsencode(names.temporary(os.fsdecode(name), "replaced"))
        self._later(Ask.REMOVE, string(aside))
        moved = self.wire.outcome(self._renaming(new, aside))
        if refused := self.wire.outcome(self._renaming(old, new)):
            if moved is None:
                self.wire.outcome(self._renaming(aside, new))
            raise self.rename_refused(refused, new, path)
        if moved is None:
            self.wire.outcome(self.wire.send(Ask.REMOVE, string(aside)))

    def sync(self, paths: Iterable[bytes], *, whole: bool = False) -> None:
        """Make folders durable by the login's shell: those named, or the whole file systems they are on."""
        if "sync" not in self.tools:
            return  # SFTP has no way to do it
        words = [self._quoted(path) for path in paths]
        if not words:
            return
        command = b"sync " + (b"-f " if whole else b"") + b"-- " + b" ".join(words)
        self._run(command, self.storage.io_timeout + 600, "cannot make it durable", self.storage.root)

    def folders_of(self, finals: Iterable[bytes]) -> set[bytes]:
        """The folders on the way to these files, from the root on: what must be durable for the files to be found."""
        found: set[bytes] = set()
        for final in finals:
            folder = final.rpartition(b"/")[0]
            while folder not in found and len(folder) >= len(self._root):
                found.add(folder)
                folder = folder.rpartition(b"/")[0]
        return {folder or b"/" for folder in found}

    def commit_all(self, uploads: Sequence[Upload]) -> list[str | OnblockError]:
        mine = [u for u in uploads if isinstance(u, SftpUpload)]
        if len(mine) < 2 or not self.connection.openssh:
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
            self.sync({u.staged.rpartition(b"/")[0] for u in late}, whole=True)
            with self.telling("cannot give it its final name"):
                for n, upload in enumerate(mine):
                    if isinstance(done[n], str):
                        upload.unsynced = False
                        asked.append((n, self._renaming(upload.staged, self.at(upload.path))))
                for n, number in asked:
                    if refused := self.wire.outcome(number):
                        new = self.at(mine[n].path)
                        with self.telling("cannot look at it"):
                            why = self.rename_refused(refused, new, mine[n].path)
                        done[n] = (
                            self.failure(why, "cannot give it its final name", mine[n].path)
                            if not isinstance(why, OnblockError)
                            else why
                        )
            arrived = [self.at(d) for d in done if isinstance(d, str)]
            folders = self.folders_of(arrived)
            self.sync(folders if len(folders) <= 256 else [self._root or b"/"], whole=len(folders) > 256)
        except OnblockError as error:
            return [error if isinstance(d, str) else d for d in done]
        return done

    def delete(self, path: str) -> None:
        full = self.at(path)
        with self.telling("cannot delete it", path):
            refused = self.wire.outcome(self.wire.send(Ask.REMOVE, string(full)))
            if refused is None:
                return
            if refused.code != NO_SUCH_FILE:
                found = self.wire.attributes(self.wire.send(Ask.LSTAT, string(full)))
                if found.is_folder():
                    raise Conflict("is a folder, not a file", path=path) from refused
            raise refused

    def move(self, path: str, to: str) -> None:
        full, target = self.at(path), self.at(to)
        with self.telling("cannot move it", path):
            try:
                self.rename(full, target, to)
            except Refused as refused:
                if refused.code != NO_SUCH_FILE or not self.exists(full):
                    raise
                self._make_folders(target)
                self.rename(full, target, to)
        self.sync(self.folders_of([target, full]))

    def _statvfs(self) -> tuple[int, int] | None:
        """(bytes, files) that still fit in; None where the server does not tell."""
        if wire.STATVFS not in self.wire.extensions:
            return None
        number = self.wire.send(Ask.EXTENDED, string(wire.STATVFS) + string(self._root or b"/"))
        fields = self.wire.answer(number, wire.EXTENDED_REPLY)
        values = [fields.number(">Q") for _ in range(8)]
        _, fragment, _, _, available, files, _, free_files = values
        return fragment * available, free_files if files else 1  # some file systems count no files

    def free_bytes(self) -> int | None:
        with self.telling("cannot ask for the free space", self.storage.root):
            room = self._statvfs()
        return room[0] if room else None

    def close(self) -> None:
        self.connection.close()


class _Ahead:
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

    def chunk(self) -> bytes:
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
        if 0 < len(data) < size:  # a server may answer with less than was asked for
            rest = size - len(data)
            self._asked.appendleft((at + len(data), rest, self._ask(at + len(data), rest)))
        self._depth = min(DEPTH, self._depth * 2)
        self.fill()
        return data

    def stop(self) -> None:
        """Nobody wants the rest."""
        self._next = self._end
        while self._asked:
            self._wire.forget(self._asked.popleft()[2])


class SftpReader(Reader):
    """One open file."""

    def __init__(self, session: SftpSession, path: str, full: bytes, handle: bytes, offset: int, size: int):
        self.path = path
        self._session, self._full, self._handle = session, full, handle
        self._chunk = memoryview(b"")
        self._left = max(0, size - offset)
        self._look: int | None = None
        with session.telling("cannot read it", path):
            self._ahead = _Ahead(session.wire, handle, offset, size)
            self._look_behind()

    def _look_behind(self) -> None:
        """Once the last bytes are asked for, ask also how the file is after them: the answer comes with theirs."""
        if self._look is None and self._ahead.all_asked:
            self._look = self._session.wire.send(Ask.LSTAT, string(self._full))

    def readinto(self, buffer: Buffer) -> int:
        got = 0
        with self._session.telling("cannot read it", self.path), memoryview(buffer) as view:
            while got < len(view):
                if not self._chunk:
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
        wire_ = self._session.wire
        with self._session.telling("cannot look at it", self.path):
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
        return _info(self.path, found)

    def close(self) -> None:
        handle, self._handle = self._handle, b""
        if not handle:
            return
        try:
            with self._session.telling("cannot close it", self.path):
                self._ahead.stop()
                if self._look is not None:
                    self._session.wire.forget(self._look)
                self._session.wire.forget(self._session.wire.send(Ask.CLOSE, handle))
        except NetworkError:
            return  # what was read is read


class SftpUpload(Upload):
    """One file under its temporary name."""

    def __init__(
        self,
        session: SftpSession,
        path: str,
        staged: bytes,
        handle: bytes,
        offset: int,
        size: int,
        mtime_ns: int | None,
    ):
        self.path, self.staged, self.offset = path, staged, offset
        self._session, self._wire = session, session.wire
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
        with self._session.telling("cannot write it", self.path):
            for start in range(0, len(chunk), self._wire.write_max):
                part = chunk[start : start + self._wire.write_max]
                head = self._handle + struct.pack(">QI", self._at, len(part))
                self._under_way.append(self._wire.send(Ask.WRITE, head, part))
                self._at += len(part)
                while len(self._under_way) > DEPTH or (self._under_way and self._wire.answered(self._under_way[0])):
                    self._conclude(self._under_way.popleft())

    def _conclude(self, number: int) -> None:
        if (refused := self._wire.outcome(number)) and self._broken is None:
            self._broken = self._session.no_room(refused, self.path) or self._session.failure(
                refused, "cannot write it", self.path
            )
        self._check()

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    def settle(self) -> None:
        """Wait until the server has answered for all that was sent; raises what it refused."""
        with self._session.telling("cannot write it", self.path):
            while self._under_way:
                self._conclude(self._under_way.popleft())
        self._check()

    def digest(self, *, fresh: bool = False) -> str | None:
        if "sha256" not in self._session.tools or (self._at < SMALL and not fresh):
            return super().digest(fresh=fresh)
        self.settle()
        if fresh:
            self._fsync()
        return self._session.hash_there(self.staged, self._at, self.path, fresh=fresh)

    def replay(self, update: Callable[[memoryview], object], *, fresh: bool = False) -> bool:
        self._check()
        if fresh:
            self._fsync()
        with self._session.telling("cannot read it back", self.path):
            end = self._at if self._under_way else self._wire.attributes(self._wire.send(Ask.FSTAT, self._handle)).size
            ahead = _Ahead(self._wire, self._handle, 0, end)
            try:
                self.settle()
                while data := ahead.chunk():
                    update(memoryview(data))
            finally:
                if self._session.connection.transport.is_active():
                    ahead.stop()
        return True

    def _fsync(self) -> None:
        self.settle()
        if wire.FSYNC in self._wire.extensions:
            with self._session.telling("cannot make it durable", self.path):
                self._wire.answer(self._wire.send(Ask.EXTENDED, string(wire.FSYNC) + self._handle))

    def rewind(self, offset: int) -> int:
        self.settle()
        with self._session.telling("cannot shorten the part", self.path):
            self._wire.answer(self._wire.send(Ask.FSETSTAT, self._handle + wire.attributes(size=offset)))
        self._at = self.offset = offset
        return offset

    def seal(self) -> None:
        """What ends a file is sent at once, and answered for at the commit."""
        handle, self._handle = self._handle, b""
        if not handle:
            return
        with self._session.telling("cannot finish it", self.path):
            if self._mtime is not None:
                self._under_way.append(self._wire.send(Ask.FSETSTAT, handle + wire.attributes(mtime=self._mtime)))
            # small files of a page share one barrier where a shell can make it
            if (self._large or "sync" not in self._session.tools) and wire.FSYNC in self._wire.extensions:
                self._under_way.append(self._wire.send(Ask.EXTENDED, string(wire.FSYNC) + handle))
                self.unsynced = False
            self._under_way.append(self._wire.send(Ask.CLOSE, handle))

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        session, name = self._session, self.path if path is None else path
        final = session.at(name)
        self.seal()
        self.settle()
        if self.unsynced:
            session.sync([self.staged])
            self.unsynced = False
        with session.telling("cannot give it its final name", name):
            if replace:
                session.replace(self.staged, final, name)
            else:
                session.rename(self.staged, final, name)
        self.path = name
        session.sync(session.folders_of([final]))
        return name

    def keep(self) -> None:
        self._mtime = None  # the time is set when the file is whole
        self.seal()
        self.settle()
        if self.unsynced:
            self._session.sync([self.staged])

    def abort(self) -> None:
        self._mtime, self._broken = None, None
        with self._session.telling("cannot remove the temporary file", self.path):
            while self._under_way:
                self._wire.forget(self._under_way.popleft())
            if handle := self._handle:
                self._handle = b""
                self._wire.forget(self._wire.send(Ask.CLOSE, handle))
            _raise_unless(self._wire.outcome(self._wire.send(Ask.REMOVE, string(self.staged))), NO_SUCH_FILE)


def _raise_unless(refused: Refused | None, *codes: int) -> None:
    if refused is not None and refused.code not in codes:
        raise refused


def _info(path: str, found: Attributes) -> FileInfo:
    return FileInfo(path, found.size, found.mtime * 1_000_000_000)


def _problem(path: str, error: OnblockError) -> FileInfo:
    return FileInfo(path, 0, 0, "", error)


def _special(found: Attributes) -> str:
    kinds: dict[int, Any] = {
        stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a FIFO", stat.S_IFBLK: "a block device",
        stat.S_IFCHR: "a character device", stat.S_IFLNK: "a link",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(found.mode), "something special")
