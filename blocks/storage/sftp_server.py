"""One SFTP server, asked in single steps, and what its answers mean.

Between the messages (`sftp_messages.py`) and the contract (`sftp.py`, `sftp_files.py`): finding the root, the login's
shell, folders, renaming without overwriting, durability, and the one table of what a server answers. Paths are
absolute here, in bytes.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import stat
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

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
    UnknownError,
)  # fmt: skip
from blocks.storage import sftp_messages as wire
from blocks.storage.base import FileInfo
from blocks.storage.sftp_messages import Ask, Attributes, Messages, Refused, string
from blocks.storage.ssh_login import HASH_RATE, SshStorage

if TYPE_CHECKING:
    import paramiko

    from blocks.storage.sftp_follow import Follower
    from blocks.storage.sftp_lane import Lane
    from blocks.storage.ssh import Connection, Shell

log = logging.getLogger("onblock.storage")

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


class _Telling:
    """A block whose failures leave it as classes of the taxonomy."""

    __slots__ = ("_doing", "_path", "_server")

    def __init__(self, server: SftpServer, doing: str, path: str):
        self._server, self._doing, self._path = server, doing, path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, OnblockError) or not isinstance(error, Exception):
            return
        raise self._server.failure(error, self._doing, self._path) from error


class SftpServer:
    """One connection, and the folder that is the storage's root."""

    def __init__(self, storage: SshStorage, connection: Connection, *, use_shell: bool):
        self.storage, self.connection = storage, connection
        self._shell: Shell | None = None
        self.base = self
        """For all but the bytes of files; another than this one in a lane."""
        self._lane: SftpServer | None = None
        self._pipe: Lane | paramiko.Channel | None = None
        self.tools: set[str] = set()
        """What the login's shell can do in the same folder: `sha256`, `sync`."""
        try:
            self.wire = self._begin()
            self.root = self._find_root()
            if use_shell:
                self.tools = self._look_for_tools()
        except BaseException:
            connection.close()
            raise

    def _begin(self) -> Messages:
        remedy = "turn SFTP on at the server, or use scp-storage"
        try:
            channel = self.connection.subsystem("sftp")
        except ConfigError as error:
            error.todo = remedy
            raise
        with self.telling("cannot begin SFTP"):
            try:
                return Messages(channel, self.connection.hasten)
            except EOFError as error:
                if not self.connection.transport.is_active():
                    raise
                raise ConfigError(f"{self.storage.address} ended SFTP at once", remedy=remedy) from error

    def lane(self) -> SftpServer:
        """The same folder over a connection for large files; this one where there is no other."""
        if self._pipe is not None and self._pipe.closed:
            self.connection.drop(self._pipe)
            self._lane = self._pipe = None
        if self._lane is None:
            from blocks.storage.sftp_lane import lane_for

            self._lane = self
            if found := lane_for(self.storage, self.connection, shell="sha256" in self.tools):
                self._lane = copy.copy(self)
                self._pipe, self._lane.wire = found
                self._lane._pipe = self._pipe
        return self._lane

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
        from blocks.storage.ssh import HASHER, Failed, Shell

        root = self.root or b"/"
        script = (
            b"cd " + self.quoted(root) + b" && stat -c 'onblock %u %g %f %Y' . || exit 0\n"
            b"command -v sha256sum >/dev/null && echo sha256\nsync . && echo sync\nexit 0"
        )  # fmt: skip
        with self.telling("cannot open the folder", self.storage.root):
            before = self.wire.attributes(self.wire.send(Ask.STAT, string(root)))
            try:
                self._shell = Shell(self.connection, HASHER)
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
        if not self.connection.openssh:
            try:
                path.encode("utf-8")
            except UnicodeEncodeError:
                raise ConfigError(
                    "the server may not keep a name that is no UTF-8", path=path,
                    remedy="rename it with the job's `path` template",
                ) from None  # fmt: skip
        return self.root + b"/" + os.fsencode(path)

    def staged(self, path: str, key: str) -> bytes:
        """Where `path` is written until it is whole."""
        self.at(path)
        return self.root + b"/" + os.fsencode(names.temporary(path, key))

    @staticmethod
    def quoted(path: bytes) -> bytes:
        from blocks.storage.ssh import quote

        return quote(os.fsdecode(path))

    def inside(self, full: bytes) -> bool:
        """Whether a path, followed to its end, lies below the root. A link to nothing counts as inside."""
        try:
            ((real, _),) = self.wire.names(self.wire.send(Ask.REALPATH, string(full)))
        except Refused as refused:
            if refused.code == NO_SUCH_FILE:
                return True
            raise
        return real.startswith(self.root + b"/")

    def open(self, full: bytes, flags: int) -> bytes:
        """The handle of a file, as requests have it. Raises Refused."""
        return string(
            self.wire.handle(self.wire.send(Ask.OPEN, string(full) + struct.pack(">I", flags) + wire.attributes()))
        )

    def let_go(self, handle: bytes | None, *requests: int) -> None:
        """Close a handle, and want no answer to what was asked of it. Where the connection is gone, so are both."""
        with contextlib.suppress(NetworkError), self.telling("cannot close it"):
            for number in requests:
                self.wire.forget(number)
            if handle is not None:
                self.later(Ask.CLOSE, handle)

    def later(self, kind: Ask, head: bytes) -> None:
        """Send what needs no answer."""
        self.wire.forget(self.wire.send(kind, head))

    def hash_there(self, full: bytes, size: int, path: str, *, fresh: bool) -> str:
        """SHA-256 by a program of the server's."""
        from blocks.storage.ssh import hashed, hashing

        script = hashing(self.quoted(full), size, fresh=fresh)
        out = self._run(script, self.patience(size), "cannot hash it", path)
        if (digest := hashed(out)) is None:
            raise UnknownError(f"sha256sum at {self.storage.address} printed no digest", path=path)
        return digest

    def patience(self, size: int) -> float:
        """Seconds that hashing so many bytes may be silent."""
        return self.storage.io_timeout + size / HASH_RATE

    def follow(self, full: bytes) -> Follower | None:
        """Let a shell of the server's hash a file while it is being sent, where there is one, and nobody else does."""
        if "sha256" not in self.tools or wire.DIGEST in self.wire.extensions:
            return None
        from blocks.storage.sftp_follow import Follower

        try:
            return Follower(self.connection, self.quoted(full), sync="sync" in self.tools)
        except OnblockError as error:  # a server may allow a connection few channels
            log.debug("large files are hashed at their end: %s", error)
            return None

    def followed(self, handle: bytes, size: int) -> str | None:
        """The SHA-256 of all that lies in an open file, where the far side has hashed it while it was sent."""
        pipe = self._pipe
        if pipe is None or wire.DIGEST not in self.wire.extensions:
            return None
        pipe.settimeout(self.patience(size))
        try:
            asked = self.wire.send(Ask.EXTENDED, string(wire.DIGEST) + handle)
            return self.wire.answer(asked, wire.EXTENDED_REPLY).string().decode()
        except Refused as refused:
            log.debug("what was sent is hashed at its end: %s", refused)
            return None
        finally:
            pipe.settimeout(self.storage.io_timeout)

    def why_not(self, refused: Refused, path: str) -> Exception:
        """A file could not be made: because of what is in the way, or because nothing fits in."""
        parts = path.split("/")[:-1]
        for end in range(1, len(parts) + 1):
            folder = "/".join(parts[:end])
            try:
                found = self.wire.attributes(self.wire.send(Ask.STAT, string(self.at(folder))))
            except Refused:
                break
            if not found.is_folder():
                return Conflict(f"{names.display(folder)} is {special(found)}, not a folder", path=path)
        return self.no_room(refused, path) or refused

    def no_room(self, refused: Refused, path: str) -> OnblockError | None:
        """Servers say only `failure` where a disk is full: look."""
        if refused.code != FAILURE:
            return None
        room = self.room()
        if room is None or (room[0] > wire.BLOCK and room[1] != 0):
            return None
        what = "no space left" if room[0] <= wire.BLOCK else "no room for another file (inodes)"
        full = DiskFull(f"{what} at {self.storage.address}", path=path)
        full.__cause__ = refused
        return full

    def make_folders(self, full: bytes) -> Refused | None:
        """mkdir -p of what leads to a file below the root, in one go. Why the last could not be made, unless it may be
        because it is there: that the file will tell."""
        parts = full[len(self.root) + 1 :].split(b"/")[:-1]
        asked = []
        for end in range(1, len(parts) + 1):
            folder = self.root + b"/" + b"/".join(parts[:end])
            asked.append(self.wire.send(Ask.MKDIR, string(folder) + wire.attributes()))
        refusals = [self.wire.outcome(number) for number in asked]
        if not refusals or refusals[-1] is None:
            return None
        first = next((r for r in refusals if r is not None and r.code not in (FAILURE, 11)), None)
        return first or (refusals[-1] if self.no_room(refusals[-1], "") else None)

    def renaming(self, old: bytes, new: bytes, *, over: bool = False) -> int:
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
        if refused := self.wire.outcome(self.renaming(old, new)):
            raise self.rename_refused(refused, new, path) from refused

    def rename_refused(self, refused: Refused, new: bytes, path: str) -> Exception:
        """Why a rename failed: servers say only that it did."""
        if refused.code in (FAILURE, 11) and self.exists(new):
            return Conflict("something is already at the final name", path=path)
        return self.no_room(refused, path) or refused

    def replace(self, old: bytes, new: bytes, path: str) -> None:
        """Give a file a name, over what has it: in one step where the server can, else what was there goes aside first."""
        if wire.POSIX_RENAME in self.wire.extensions:
            if refused := self.wire.outcome(self.renaming(old, new, over=True)):
                raise self.no_room(refused, path) or refused
            return
        folder, _, name = new.rpartition(b"/")
        aside = folder + b"/" + os.fsencode(names.temporary(os.fsdecode(name), "replaced"))
        self.later(Ask.REMOVE, string(aside))
        moved = self.wire.outcome(self.renaming(new, aside))
        if refused := self.wire.outcome(self.renaming(old, new)):
            if moved is None:
                self.wire.outcome(self.renaming(aside, new))
            raise self.rename_refused(refused, new, path)
        if moved is None:
            self.wire.outcome(self.wire.send(Ask.REMOVE, string(aside)))

    def sync(self, paths: Iterable[bytes], *, whole: bool = False) -> None:
        """Make folders durable by the login's shell: those named, or the whole file systems they are on."""
        if "sync" not in self.tools:
            return  # SFTP has no way to do it
        words = [self.quoted(path) for path in paths]
        if not words:
            return
        command = b"sync " + (b"-f " if whole else b"") + b"-- " + b" ".join(words)
        self._run(command, self.storage.io_timeout + 600, "cannot make it durable", self.storage.root)

    def folders_of(self, finals: Iterable[bytes]) -> set[bytes]:
        """The folders on the way to these files, from the root on: what must be durable for the files to be found."""
        found: set[bytes] = set()
        for final in finals:
            folder = final.rpartition(b"/")[0]
            while folder not in found and len(folder) >= len(self.root):
                found.add(folder)
                folder = folder.rpartition(b"/")[0]
        return {folder or b"/" for folder in found}

    def room(self) -> tuple[int, int] | None:
        """(bytes, files) that still fit in; None where the server does not tell."""
        if wire.STATVFS not in self.wire.extensions:
            return None
        number = self.wire.send(Ask.EXTENDED, string(wire.STATVFS) + string(self.root or b"/"))
        fields = self.wire.answer(number, wire.EXTENDED_REPLY)
        values = [fields.number(">Q") for _ in range(8)]
        _, fragment, _, _, available, files, _, free_files = values
        return fragment * available, free_files if files else 1  # some file systems count no files

    def close(self) -> None:
        self.connection.close()
        if self._pipe is not None:
            self.connection.drop(self._pipe)


def raise_unless(refused: Refused | None, *codes: int) -> None:
    """For answers of which some refusals are as good as an OK."""
    if refused is not None and refused.code not in codes:
        raise refused


def info_of(path: str, found: Attributes) -> FileInfo:
    """A file as the contract shows it."""
    return FileInfo(path, found.size, found.mtime * 1_000_000_000)


def problem(path: str, error: OnblockError) -> FileInfo:
    """What stands in a listing for something that cannot be taken."""
    return FileInfo(path, 0, 0, "", error)


def special(found: Attributes) -> str:
    """What it is, if it is no file."""
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a FIFO", stat.S_IFBLK: "a block device",
        stat.S_IFCHR: "a character device", stat.S_IFLNK: "a link",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(found.mode), "something special")
