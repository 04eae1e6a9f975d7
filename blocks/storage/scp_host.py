"""One host with a shell and `scp`, asked by scripts, and what its programs mean.

Below the contract (`scp.py`, `scp_files.py`): what the host's programs can do, looking at files, hashing, durability,
and the one table of what programs say when they fail. Scripts go in by the standard input of `sh`: see `ssh.py`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blocks import names
from blocks.errors import (
    ConfigError,
    Conflict,
    DiskFull,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceChanged,
    SourceVanished,
    ToolMissing,
    UnknownError,
)  # fmt: skip
from blocks.storage.base import FileInfo
from blocks.storage.ssh_login import HASH_RATE, SshStorage

if TYPE_CHECKING:
    from blocks.storage.ssh import Connection

CONFLICT, NO_FOLDER, MISSING = 71, 72, 73
"""Exit statuses of our own scripts."""

FAILURES: list[tuple[str, type[OnblockError], str | None]] = [
    (r"No space left|Disk quota exceeded|quota", DiskFull, None),
    (r"Permission denied|Operation not permitted|Read-only file system", PermissionRefused, None),
    (r"File name too long", ConfigError, "shorten it with the job's `path` template"),
    (
        r"Invalid argument|Invalid or incomplete multibyte|File too large",
        ConfigError,
        "the host's file system refuses it",
    ),
    (r"Too many levels of symbolic links", ConfigError, "put the file or folder itself there, not a link"),
    (r"(applet )?not found", ToolMissing, "install it on the host, or use another storage"),
    (r"No such file or directory", NotFound, None),
    (
        r"cannot overwrite|File exists|Is a directory|Not a directory|Directory not empty|not a regular file",
        Conflict,
        None,
    ),
    (r"Stale file handle|Transport endpoint is not connected|Connection timed out", NetworkError, None),
]
"""The one table for what programs of the host say after a colon (in English: LC_ALL=C). What is not here is UNKNOWN."""

STATUS: dict[int, tuple[type[OnblockError], str]] = {
    CONFLICT: (Conflict, "something is already at the final name"),
    NO_FOLDER: (NotFound, "the folder is not there"),
    MISSING: (NotFound, "it is not there"),
    126: (ToolMissing, "a program cannot be run"),
    127: (ToolMissing, "a program is missing"),
}
"""... and for exit statuses, where nothing was said."""

PRELUDE = rb"""
onblock_take() { # temporary name, final name: never over anything. link(2) refuses; mv -n where there are no hard links
  if ln -T "$1" "$2" 2>/dev/null; then
    if rm "$1"; then return; fi # somebody was quicker, or it may not be taken away
    rm -f "$2"
    if [ -e "$1" ]; then return 1; else return 73; fi
  fi
  if [ -e "$2" ] || [ -L "$2" ]; then return 71; fi
  [ -e "$1" ] || { echo "$1: No such file or directory" >&2; return 73; }
  mv -nT "$1" "$2" || return 1
  [ ! -e "$1" ] || return 71
}
onblock_enter() { # sh says of a folder only that it cannot enter; ls says why
  cd "$1" 2>/dev/null || { ls -d "$1/." >/dev/null; exit 72; }
}
onblock_list() { # the folder's entries: type and mode in hex, size, mtime, name; by find -printf, or one by one
  onblock_enter "$1"
  if [ "$onblock_find" = 1 ]; then find . -ignore_readdir_race -mindepth 1 -maxdepth 1 -printf '%y %s %T@ %f\0'; return; fi
  ls >/dev/null || return 1
  for n in * .[!.]* ..?*; do
    [ -e "$n" ] || [ -L "$n" ] || continue
    s=$(stat -c '%f %s %Y' "./$n") || continue
    printf '%s %s\0' "$s" "$n"
  done
}
"""


def said(status: int, words: str, doing: str, path: str = "") -> OnblockError:
    """The class of the taxonomy for what a program of the host said, by `FAILURES` and `STATUS`."""
    kind, told = STATUS.get(status, (UnknownError, f"status {status}"))
    remedy = None
    if status not in (CONFLICT, MISSING):  # those are certain, whatever was said beside
        for part in reversed(re.split(": |; ", words)):  # the cause comes last, after names that may look like one
            if found := next((line for line in FAILURES if re.match(line[0], part)), None):
                _, kind, remedy = found
                break
    if words and status not in (CONFLICT, MISSING):
        told = words if len(words) <= 300 else f"... {words[-300:]}"
    return kind(f"{doing}: {told}", path=path, remedy=remedy)


class _Telling:
    """A block whose failures leave it as classes of the taxonomy."""

    __slots__ = ("_doing", "_host", "_path")

    def __init__(self, host: ScpHost, doing: str, path: str):
        self._host, self._doing, self._path = host, doing, path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, OnblockError) or not isinstance(error, Exception):
            return
        raise self._host.failure(error, self._doing, self._path) from error


class ScpHost:
    """One connection, its shell, and the folder that is the storage's root."""

    def __init__(self, storage: SshStorage, connection: Connection):
        from blocks.storage.ssh import HASHER, Shell

        self.storage, self.connection = storage, connection
        try:
            with self.telling("cannot use a shell"):
                try:
                    self._shell = Shell(connection, HASHER + PRELUDE)
                    self._shell.run(b"exit 0")
                except EOFError as error:
                    if not connection.transport.is_active():
                        raise
                    raise ConfigError(
                        f"{storage.address} gives this account no shell", remedy="give it one, or use sftp-storage"
                    ) from error
            self._look_around()
        except BaseException:
            connection.close()
            raise

    def _look_around(self) -> None:
        """Where the root is, and what this host's programs can do."""
        root = self.storage.root
        root = root[2:] if root.startswith("~/") else "." if root == "~" else root
        make = b"mkdir -p " + self.word(root) + b" || exit\n" if self.storage.create_root else b""
        script = (
            make + b"onblock_enter " + self.word(root) + b"\n"
            b"command -v scp >/dev/null && printf 'scp '\n"
            b"command -v sha256sum >/dev/null && printf 'sha256sum '\n"
            b"[ -n \"$(find . -maxdepth 0 -printf x 2>/dev/null)\" ] && printf 'find '\n"
            b"case \"$(stat -c %.9Y . 2>/dev/null)\" in *.*) printf 'nanoseconds ';; esac\n"
            b"sync . 2>/dev/null && printf 'sync '\n"
            b"printf '\\n' && pwd -P"
        )  # fmt: skip
        with self.telling("cannot open the folder", self.storage.root):
            try:
                out = self.run(script, "cannot open the folder", self.storage.root)
            except NotFound as error:
                raise NotFound(
                    f"the folder does not exist at {self.storage.address}", path=self.storage.root,
                    remedy="make or mount it, or correct `root`; a destination may say `create_root: true`",
                ) from error  # fmt: skip
        tools, _, where = out.partition(b"\n")
        self.tools = set(tools.decode("ascii", "replace").split())
        if "scp" not in self.tools:
            raise ToolMissing(f"{self.storage.address} has no `scp`", remedy="install it there, or use sftp-storage")
        self.hashes = "sha256sum" in self.tools
        self.root = os.fsdecode(where.removesuffix(b"\n")).rstrip("/")
        self._stat = b"stat -c '%f %s %.9Y %i %h' " if "nanoseconds" in self.tools else b"stat -c '%f %s %Y %i %h' "

    def failure(self, error: Exception, doing: str, path: str = "") -> OnblockError:
        """What any exception of a command means."""
        from blocks.storage.ssh import Failed, failure

        doing = f"{doing} at {self.storage.address}"
        if isinstance(error, Failed):
            made = said(error.status, error.said, doing, path)
            made.__cause__ = error
            return made
        return failure(error, doing, path)

    def telling(self, doing: str, path: str = "") -> _Telling:
        """`with` it: what goes wrong becomes one of the taxonomy."""
        return _Telling(self, doing, path)

    def run(self, script: bytes, doing: str, path: str = "", *, size: int = 0) -> bytes:
        """The output of a script; `size` in bytes of what it has to go through."""
        with self.telling(doing, path):
            return self._shell.run(script, self.storage.io_timeout + size / HASH_RATE)

    @staticmethod
    def word(path: str) -> bytes:
        """A path as one word of `sh`."""
        from blocks.storage.ssh import quote

        return quote(path)

    def at(self, path: str) -> str:
        """The absolute path of a legal relative one, at the host."""
        return f"{self.root}/{names.check_path(path)}"

    def staged(self, path: str, key: str) -> str:
        """Where `path` is written until it is whole."""
        self.at(path)
        return f"{self.root}/{names.temporary(path, key)}"

    def inside(self, full: str, path: str) -> bool:
        """Whether a path, followed to its end, lies below the root. A link to nothing counts as inside."""
        out = self.run(b"readlink -f " + self.word(full) + b" || :", "cannot follow the link", path)
        return not out or os.fsdecode(out).startswith(f"{self.root}/")

    def nanoseconds(self, text: str) -> int:
        """Nanoseconds, where both ways of asking the host give them; else whole seconds, that they agree."""
        seconds, _, fraction = text.partition(".")
        if not {"nanoseconds", "find"} <= self.tools:
            fraction = ""
        return int(seconds) * 1_000_000_000 + int((fraction + "0" * 9)[:9])

    def look(self, path: str, *, follow: bool = False) -> tuple[int, int, str, str, int]:
        """(mode, size, mtime, inode, links) of what has this name."""
        command = self._stat + (b"-L " if follow else b"") + self.word(self.at(path))
        mode, size, mtime, inode, links = self.run(command, "cannot look at it", path).decode("ascii").split()
        return int(mode, 16), int(size), mtime, inode, int(links)

    def look_again(self, path: str, inode: str) -> FileInfo:
        """The file as it is now."""
        try:
            mode, size, mtime, now, _ = self.look(path)
            if stat.S_ISLNK(mode):
                mode, size, mtime, now, _ = self.look(path, follow=True)
        except NotFound as error:
            raise SourceVanished("was removed or renamed while it was read", path=path) from error
        if now != inode:
            raise SourceChanged("was replaced while it was read", path=path)
        return FileInfo(path, size, self.nanoseconds(mtime))

    def hash_there(self, full: str, size: int, path: str, *, fresh: bool) -> str:
        """SHA-256 by a program of the host's."""
        from blocks.storage.ssh import hashed, hashing

        out = self.run(hashing(self.word(full), size, fresh=fresh), "cannot hash it", path, size=size)
        if (digest := hashed(out)) is None:
            raise UnknownError(f"sha256sum at {self.storage.address} printed no digest", path=path)
        return digest

    def sync_folders(self, finals: Sequence[str]) -> bytes:
        """The words that make the folders on the way to these files durable; nothing where `sync` takes no names."""
        if "sync" not in self.tools:
            return b"sync"
        found: set[str] = set()
        for final in finals:
            folder = final.rpartition("/")[0]
            while folder not in found and len(folder) >= len(self.root):
                found.add(folder)
                folder = folder.rpartition("/")[0]
        return b"sync " + b" ".join(self.word(folder or "/") for folder in found)

    def close(self) -> None:
        """End the connection."""
        self.connection.close()


def mode_of(kind: str) -> int:
    """What `find -printf %y` or `stat -c %f` says of the type, as `st_mode`."""
    letters = {
        "f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "s": stat.S_IFSOCK, "p": stat.S_IFIFO, "b": stat.S_IFBLK,
        "c": stat.S_IFCHR,
    }  # fmt: skip
    return letters[kind] if kind in letters and len(kind) == 1 else int(kind, 16)


def problem(path: str, error: OnblockError) -> FileInfo:
    """What stands in a listing for something that cannot be taken."""
    return FileInfo(path, 0, 0, "", error)


def special(mode: int) -> str:
    """What it is, if it is no file."""
    for test, what in (
        (stat.S_ISDIR, "a folder"), (stat.S_ISSOCK, "a socket"), (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISBLK, "a block device"), (stat.S_ISCHR, "a character device"),
    ):  # fmt: skip
        if test(mode):
            return what
    return "something special"
