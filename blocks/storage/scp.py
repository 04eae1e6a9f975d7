"""Files on a host that has a shell and `scp`, and no SFTP: boxes, cameras, old appliances.

Whole files travel by the protocol that `scp -O` speaks (`scp -t`, `scp -f` at the far side); what that cannot do, going on
in the middle, is `cat >>` and `tail -c`. Listing, renaming and the rest are scripts for the login's `sh`, which go in by
its standard input, quoted: see `ssh.py`. Each shell command costs the far side a process, so thousands of small files are
slower than over SFTP. A file gets its final name by a hard link, which never overwrites, or by `mv -n` where there is none.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
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
)
from blocks.storage.base import Features, FileInfo, Reader, Session, Upload
from blocks.storage.ssh_login import SshStorage

if TYPE_CHECKING:
    import paramiko

    from blocks.storage.base import Buffer
    from blocks.storage.ssh import Connection

PACKET = 32 << 10
TAIL = 256 << 10
"""Bytes of the end that are remembered: what a far `scp` that is ended early may not have written out."""
HASH_RATE = 10e6
"""Bytes/s that the slowest host hashes or syncs: how long it may be silent."""
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
  if ln -T "$1" "$2" 2>/dev/null; then rm -f "$1"; return; fi
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
  if [ "$onblock_find" = 1 ]; then find . -mindepth 1 -maxdepth 1 -printf '%y %s %T@ %f\0'; return; fi
  ls >/dev/null || return 1
  for n in * .[!.]* ..?*; do
    [ -e "$n" ] || [ -L "$n" ] || continue
    printf '%s %s\0' "$(stat -c '%f %s %Y' "./$n")" "$n"
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


class ScpStorage(SshStorage):
    """A folder on a host that has a shell and `scp`, and no SFTP."""

    _block_type_name = "SCP Storage"
    _block_type_slug = "scp-storage"
    _description = "A folder on a host that has a shell and `scp`, and no SFTP."

    def open(self) -> ScpSession:
        from blocks.storage.ssh import Connection  # paramiko takes its time to import

        return ScpSession(self, Connection(self))


class _Telling:
    """A block whose failures leave it as classes of the taxonomy."""

    __slots__ = ("_doing", "_path", "_session")

    def __init__(self, session: ScpSession, doing: str, path: str):
        self._session, self._doing, self._path = session, doing, path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, OnblockError) or not isinstance(error, Exception):
            return
        raise self._session.failure(error, self._doing, self._path) from error


class ScpSession(Session):
    """Files below one folder of the host, over one connection."""

    def __init__(self, storage: ScpStorage, connection: Connection):
        from blocks.storage.ssh import Shell

        self.storage, self.connection = storage, connection
        try:
            with self.telling("cannot use a shell"):
                try:
                    self._shell = Shell(connection, PRELUDE)
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
        self.features = Features(
            atomic_rename=True, exclusive_commit=True, resume_read=True, resume_write=True,
            staged_digest=True, server_checksums=("sha256",) if self.hashes else (), mtime_set=True, byte_names=True,
            parallel=4,
        )  # fmt: skip

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
        self._root = os.fsdecode(where.removesuffix(b"\n")).rstrip("/")
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
        return f"{self._root}/{names.check_path(path)}"

    def staged(self, path: str, key: str) -> str:
        """Where `path` is written until it is whole."""
        self.at(path)
        return f"{self._root}/{names.temporary(path, key)}"

    # -- reading ------------------------------------------------------------------------------------------------

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        from blocks.storage.ssh import Failed, Shell

        full = self.at(path) if path else self._root or "/"
        if path and not self._inside(full, path):
            raise ConfigError(
                "is or lies behind a link that leads out of the source folder", path=path,
                remedy="give the folder itself as the storage's `root`",
            )  # fmt: skip
        pending = [path]
        with self.telling("cannot list the folder", path):
            find = b"onblock_find=%d" % ("find" in self.tools)
            shell = Shell(self.connection, PRELUDE + find)  # its own: what is asked meanwhile goes the other way
        try:
            while pending:  # names of folders wait in memory, files never do
                folder = pending.pop()
                if folder != path and not enter(folder):
                    continue
                listing = shell.stream(
                    b"onblock_list " + self.word(f"{self._root}/{folder}" if folder else self._root or "/")
                )
                rest = b""
                while True:
                    try:
                        with self.telling("cannot list the folder", folder):
                            piece = next(listing, None)
                    except OnblockError as error:
                        if folder == path or not isinstance(error.__cause__, Failed):
                            raise
                        yield _problem(folder, error)
                        break
                    if piece is None:
                        break
                    *entries, rest = (rest + piece).split(b"\0")
                    for entry in entries:
                        kind, size, mtime, name = os.fsdecode(entry).split(" ", 3)
                        child = f"{folder}/{name}" if folder else name
                        mode = _mode(kind)
                        if stat.S_ISDIR(mode):
                            pending.append(child)
                        elif (info := self._listed(child, name, mode, int(size), mtime)) is not None:
                            yield info
        finally:
            shell.close()

    def _listed(self, path: str, name: str, mode: int, size: int, mtime: str) -> FileInfo | None:
        """One entry of a listing that is no folder."""
        if names.TEMPORARY.match(name):
            return None
        if stat.S_ISLNK(mode):
            if not self._inside(self.at(path), path):
                return _problem(path, ConfigError(
                    "is a link that leads out of the source folder", path=path,
                    remedy="put the file itself there, or add the link to `exclude`",
                ))  # fmt: skip
            try:
                mode, size, mtime, _, _ = self._look(path, follow=True)
            except NotFound:
                return _problem(path, NotFound("is a link to nothing", path=path, remedy="remove it or `exclude` it"))
            if stat.S_ISDIR(mode):
                return None  # a link to a folder inside the root: its files are found where they are
        if not stat.S_ISREG(mode):
            return _problem(
                path, ConfigError(f"is {_special(mode)}, not a file", path=path, remedy="add it to `exclude`")
            )
        return FileInfo(path, size, self._mtime(mtime))

    def _inside(self, full: str, path: str) -> bool:
        """Whether a path, followed to its end, lies below the root. A link to nothing counts as inside."""
        out = self.run(b"readlink -f " + self.word(full) + b" || :", "cannot follow the link", path)
        return not out or os.fsdecode(out).startswith(f"{self._root}/")

    def _mtime(self, text: str) -> int:
        """Nanoseconds, where both ways of asking the host give them; else whole seconds, that they agree."""
        seconds, _, fraction = text.partition(".")
        if not {"nanoseconds", "find"} <= self.tools:
            fraction = ""
        return int(seconds) * 1_000_000_000 + int((fraction + "0" * 9)[:9])

    def _look(self, path: str, *, follow: bool = False) -> tuple[int, int, str, str, int]:
        """(mode, size, mtime, inode, links) of what has this name."""
        command = self._stat + (b"-L " if follow else b"") + self.word(self.at(path))
        mode, size, mtime, inode, links = self.run(command, "cannot look at it", path).decode("ascii").split()
        return int(mode, 16), int(size), mtime, inode, int(links)

    def stat(self, path: str) -> FileInfo:
        mode, size, mtime, _, _ = self._look(path, follow=True)
        if not stat.S_ISREG(mode):
            raise Conflict(f"is {_special(mode)}, not a file", path=path)
        return FileInfo(path, size, self._mtime(mtime))

    def read(self, path: str, offset: int = 0) -> ScpReader:
        try:
            mode, _, _, inode, _ = self._look(path)
            if stat.S_ISLNK(mode):
                if not self._inside(self.at(path), path):
                    raise ConfigError(
                        "is a link that leads out of the folder", path=path, remedy="put the file itself there"
                    )
                mode, _, _, inode, _ = self._look(path, follow=True)
        except NotFound as error:
            raise SourceVanished("is no longer there", path=path) from error
        if not stat.S_ISREG(mode):
            raise ConfigError(f"is {_special(mode)}, not a file", path=path, remedy="add it to `exclude`")
        return ScpReader(self, path, self.at(path), offset, inode)

    def look_again(self, path: str, inode: str) -> FileInfo:
        """The file as it is now."""
        try:
            mode, size, mtime, now, _ = self._look(path)
            if stat.S_ISLNK(mode):
                mode, size, mtime, now, _ = self._look(path, follow=True)
        except NotFound as error:
            raise SourceVanished("was removed or renamed while it was read", path=path) from error
        if now != inode:
            raise SourceChanged("was replaced while it was read", path=path)
        return FileInfo(path, size, self._mtime(mtime))

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        if kind != "sha256" or not self.hashes:
            return super().checksum(path, kind, fresh=fresh)
        return self.hash_there(self.at(path), self.stat(path).size, path, fresh=fresh)

    def hash_there(self, full: str, size: int, path: str, *, fresh: bool) -> str:
        """SHA-256 by the host's `sha256sum`. It reads its standard input: then no name is in what it prints."""
        script = b"sha256sum < " + self.word(full)
        if fresh:  # asks the kernel to forget what it has cached, without reading
            script = b"dd if=" + self.word(full) + b" iflag=nocache count=0 2>/dev/null\n" + script
        out = self.run(script, "cannot hash it", path, size=size)
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
    ) -> ScpUpload:
        staged = self.staged(path, key)
        word = self.word(staged)
        if resume:  # what has a second name is whole already, and that name may be the final one
            clear = b'if [ "$(stat -c %h ' + word + b' 2>/dev/null)" != 1 ]; then rm -f ' + word + b"; fi\n"
        else:
            clear = b"rm -f " + word + b"\n"
        folder = names.temporary(path, key).rpartition("/")[0]
        make = b"onblock_enter " + self.word(self._root or "/") + b"\n"
        make += b"mkdir -p " + self.word(folder) + b" || exit\n" if folder else b""
        # sh writes with O_CREAT: as the account's umask says
        out = self.run(make + clear + b": >> " + word + b" && stat -c %s " + word, "cannot write there", path)
        return ScpUpload(self, path, staged, int(out), size, mtime_ns)

    def discard(self, path: str, key: str, journal: str = "") -> None:
        staged = self.word(self.staged(path, key))
        self.run(b"rm -f " + staged + b" || ! [ -e " + staged + b" ]", "cannot remove the temporary file", path)

    def rekey(self, path: str, key: str, to: str) -> None:
        old, new = self.word(self.staged(path, key)), self.word(self.staged(path, to))
        script = b"[ ! -e " + old + b" ] || mv -fT " + old + b" " + new
        self.run(script, "cannot take over the temporary file", path)

    def sync_folders(self, finals: Sequence[str]) -> bytes:
        """The words that make the folders on the way to these files durable; nothing where `sync` takes no names."""
        if "sync" not in self.tools:
            return b"sync"
        found: set[str] = set()
        for final in finals:
            folder = final.rpartition("/")[0]
            while folder not in found and len(folder) >= len(self._root):
                found.add(folder)
                folder = folder.rpartition("/")[0]
        return b"sync " + b" ".join(self.word(folder or "/") for folder in found)

    def commit_all(self, uploads: Sequence[Upload]) -> list[str | OnblockError]:
        done: list[str | OnblockError] = []
        for start in range(0, len(uploads), 100):
            done += self._commit_page([u for u in uploads[start : start + 100] if isinstance(u, ScpUpload)])
        return done

    def _commit_page(self, uploads: list[ScpUpload]) -> list[str | OnblockError]:
        """Many files by one script: one line of its output for each."""
        from blocks.storage.ssh import told

        done: list[str | OnblockError] = []
        scripts: list[bytes] = []
        for upload in uploads:
            try:
                upload.seal()
                done.append(upload.path)
            except OnblockError as error:
                done.append(error)
        fine = [u for u, d in zip(uploads, done, strict=True) if isinstance(d, str)]
        if not fine:
            return done
        try:
            whole = b"sync -f " if "sync" in self.tools else b"sync # "
            self.run(whole + b" ".join({self.word(u.staged) for u in fine}), "cannot make the files durable")
            for upload in fine:
                scripts.append(b"onblock_take " + self.word(upload.staged) + b" " + self.word(self.at(upload.path)))
            marks = b" 2>&1\nprintf '\\000%d\\000' $?\n".join([*scripts, b""])
            out = self.run(marks + b"exit 0", "cannot give them their final names").split(b"\0")
            arrived: list[str] = []
            answers = iter(zip(out[::2], out[1::2], strict=False))
            for n, result in enumerate(done):
                if isinstance(result, str):
                    words, status = next(answers)
                    if int(status):
                        about = f"cannot give it its final name at {self.storage.address}"
                        done[n] = said(int(status), told(words), about, result)
                    else:
                        arrived.append(self.at(result))
            if arrived:
                self.run(self.sync_folders(arrived), "cannot make the folders durable")
        except OnblockError as error:
            return [error if isinstance(d, str) else d for d in done]
        return done

    def delete(self, path: str) -> None:
        word = self.word(self.at(path))
        test = b"[ ! -d " + word + b" ] || [ -L " + word + b" ] || { echo Is a directory >&2; exit 1; }\n"
        self.run(test + b"rm " + word, "cannot delete it", path)

    def move(self, path: str, to: str) -> None:
        full, target = self.at(path), self.at(to)
        folder = target.rpartition("/")[0]
        script = b"[ -e " + self.word(full) + b" ] || [ -L " + self.word(full) + b" ] || exit 73\n"
        script += b"mkdir -p " + self.word(folder) + b" || exit\n"
        script += b"onblock_take " + self.word(full) + b" " + self.word(target) + b" || exit\n"
        self.run(script + self.sync_folders([full, target]), "cannot move it", path)

    def free_bytes(self) -> int | None:
        out = self.run(
            b"stat -f -c '%a %S' " + self.word(self._root or "/") + b" || :", "cannot ask for the free space"
        )
        blocks, _, size = out.decode("ascii", "replace").strip().partition(" ")
        return int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else None

    def close(self) -> None:
        self.connection.close()


class ScpReader(Reader):
    """One file on its way here: by `scp -f` from its beginning, by `tail -c` from elsewhere."""

    def __init__(self, session: ScpSession, path: str, full: str, offset: int, inode: str):
        self.path = path
        self._session, self._inode = session, inode
        self._rest = b""
        self._left: int | None = None  # bytes, where scp has said how many
        word = session.word(full)
        with session.telling("cannot open it", path):
            if offset:
                self._channel = session.connection.execute(b"tail -c +%d < " % (offset + 1) + word)
            else:
                self._channel = session.connection.execute(b"env LC_ALL=C scp -f " + word)
                self._channel.sendall(b"\0")
                head = _line(self._channel, path)
                if not (match := re.match(rb"C[0-7]{4} (\d+) ", head)):
                    raise UnknownError(f"scp said {head[:80]!r}", path=path)
                self._left = int(match[1])
                self._channel.sendall(b"\0")

    def readinto(self, buffer: Buffer) -> int:
        got = 0
        with self._session.telling("cannot read it", self.path), memoryview(buffer) as view:
            while got < len(view):
                want = len(view) - got
                if self._left is not None:
                    want = min(want, self._left)
                    if not want:
                        break
                part = self._channel.recv(min(want, 1 << 20))
                if not part:
                    self._ended()
                    break
                view[got : got + len(part)] = part
                got += len(part)
                if self._left is not None:
                    self._left -= len(part)
                    if not self._left:  # scp now says whether it could read all of it
                        _acknowledged(self._channel, self.path)
        return got

    def _ended(self) -> None:
        """The stream is over: only a program that ended well has given all."""
        from blocks.storage.ssh import Failed, exit_status, told

        if self._left is not None:
            raise EOFError
        if status := exit_status(self._channel):
            raise Failed(status, told(self._channel.recv_stderr(4096)))

    def info(self) -> FileInfo:
        return self._session.look_again(self.path, self._inode)

    def close(self) -> None:
        self._session.connection.drop(self._channel)


class ScpUpload(Upload):
    """One file under its temporary name. `scp -t` wants to know the size beforehand: what differs goes by `cat >>`."""

    def __init__(self, session: ScpSession, path: str, staged: str, offset: int, size: int, mtime_ns: int | None):
        self.path, self.staged, self.offset = path, staged, offset
        self._session, self._mtime = session, mtime_ns
        self._at, self._size = offset, size
        self._channel: paramiko.Channel | None = None
        self._left: int | None = None  # bytes that scp waits for; None where it is cat
        self._tail = b""
        self._sealed = False

    def write(self, chunk: memoryview) -> None:
        with self._session.telling("cannot write it", self.path), chunk.cast("B") as rest:
            try:
                self._send(rest)
            except OSError:
                channel = self._channel
                if channel is None or not channel.closed or not self._session.connection.transport.is_active():
                    raise
                _refused(channel, b"", self.path)  # the program has ended, and said why

    def _send(self, rest: memoryview) -> None:
        at = 0
        while at < len(rest):
            if self._channel is None:
                self._start()
            channel = self._channel
            assert channel is not None
            end = len(rest) if self._left is None else min(len(rest), at + self._left)
            for start in range(at, end, PACKET):
                channel.sendall(bytes(rest[start : min(end, start + PACKET)]))
            self._at += end - at
            if self._left is not None:
                self._tail = (self._tail + bytes(rest[max(at, end - TAIL) : end]))[-TAIL:]
                self._left -= end - at
                if not self._left:
                    self._finish()
            at = end

    def _start(self) -> None:
        word, execute = self._session.word(self.staged), self._session.connection.execute
        if self._at or not self._size:
            self._channel, self._left = execute(b"cat >> " + word), None
            return
        self._channel, self._left = execute(b"env LC_ALL=C scp -t " + word), self._size
        _acknowledged(self._channel, self.path)
        self._channel.sendall(b"C0666 %d part\n" % self._size)
        _acknowledged(self._channel, self.path)

    def _finish(self) -> None:
        """All that was written lies at the host, whatever it went by."""
        from blocks.storage.ssh import Failed, exit_status, told

        channel, left = self._channel, self._left
        self._channel = self._left = None
        if channel is None:
            return
        with self._session.telling("cannot write it", self.path):
            if left == 0:
                channel.sendall(b"\0")
                _acknowledged(channel, self.path)
            channel.shutdown_write()
            while channel.recv(4096):
                pass
            status = exit_status(channel)
            words = told(channel.recv_stderr(4096))
            self._session.connection.drop(channel)
            if not left:
                if status:
                    raise Failed(status, words)
                return
            self._complete()

    def _complete(self) -> None:
        """scp was ended before the size it was told: it may have kept the last bytes to itself."""
        word = self._session.word(self.staged)
        there = int(self._session.run(b"stat -c %s " + word, "cannot look at it", self.path))
        missing = self._at - there
        if not 0 <= missing <= len(self._tail):
            raise NetworkError(f"{missing} bytes did not arrive", path=self.path)
        if missing:
            self._channel = self._session.connection.execute(b"cat >> " + word)
            self._channel.sendall(self._tail[-missing:])
            self._finish()

    def digest(self, *, fresh: bool = False) -> str | None:
        self._finish()
        if not self._session.hashes:
            return super().digest(fresh=fresh)
        if fresh:
            self._sync()
        return self._session.hash_there(self.staged, self._at, self.path, fresh=fresh)

    def replay(self, update: Callable[[memoryview], object], *, fresh: bool = False) -> bool:
        self._finish()
        if fresh:
            self._sync()
        from blocks.storage.ssh import exit_status

        with self._session.telling("cannot read it back", self.path):
            channel = self._session.connection.execute(b"cat < " + self._session.word(self.staged))
            while part := channel.recv(1 << 20):
                update(memoryview(part))
            if exit_status(channel):
                raise EOFError
            self._session.connection.drop(channel)
        return True

    def _sync(self) -> None:
        words = b"sync " + self._session.word(self.staged) if "sync" in self._session.tools else b"sync"
        self._session.run(words, "cannot make it durable", self.path, size=self._at)

    def rewind(self, offset: int) -> int:
        self._finish()
        word = self._session.word(self.staged)
        self._session.run(
            b"dd if=/dev/null of=" + word + b" bs=1 count=0 seek=%d 2>/dev/null" % offset, "cannot cut it", self.path
        )
        self._at = self.offset = offset
        return offset

    def seal(self) -> None:
        if self._sealed:
            return
        self._finish()
        self._sealed = True
        if self._mtime is not None:
            word = self._session.word(self.staged)
            seconds, fraction = divmod(self._mtime, 1_000_000_000)
            exact = b"touch -m -d @%d.%09d " % (seconds, fraction) + word + b" 2>/dev/null || " if fraction else b""
            self._session.run(exact + b"touch -m -d @%d " % seconds + word, "cannot set its time", self.path)

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        session, name = self._session, self.path if path is None else path
        final = session.at(name)
        self.seal()
        sync = b"sync " + session.word(self.staged) if "sync" in session.tools else b"sync"
        take = b"mv -fT " if replace else b"onblock_take "
        script = sync + b" || exit\n" + take + session.word(self.staged) + b" " + session.word(final) + b" || exit\n"
        session.run(script + session.sync_folders([final]), "cannot give it its final name", name, size=self._at)
        self.path = name
        return name

    def keep(self) -> None:
        self._mtime = None  # the time is set when the file is whole
        self.seal()
        self._sync()

    def abort(self) -> None:
        channel, self._channel, self._sealed = self._channel, None, True
        if channel is not None:
            self._session.connection.drop(channel)
        word = self._session.word(self.staged)
        self._session.run(
            b"rm -f " + word + b" || ! [ -e " + word + b" ]", "cannot remove the temporary file", self.path
        )


def _acknowledged(channel: paramiko.Channel, path: str) -> None:
    """The far `scp` says 0, or 1 or 2 and what is wrong. Raises Failed."""
    byte = channel.recv(1)
    if byte != b"\0":
        _refused(channel, byte, path)


def _line(channel: paramiko.Channel, path: str) -> bytes:
    """One line of the far `scp`. Raises Failed if it is a complaint."""
    line = channel.recv(1)
    if line in (b"", b"\1", b"\2"):
        _refused(channel, line, path)
    while not line.endswith(b"\n") and len(line) < 8192:
        part = channel.recv(1)
        if not part:
            raise EOFError
        line += part
    return line


def _refused(channel: paramiko.Channel, byte: bytes, path: str) -> None:
    from blocks.storage.ssh import Failed, exit_status, told

    words = byte if byte not in (b"\1", b"\2") else b""
    while byte and b"\n" not in words and len(words) < 8192:
        part = channel.recv(4096)
        if not part:
            break
        words += part
    if not words:
        words = channel.recv_stderr(4096)
    status = 1
    if not words:
        status = exit_status(channel)
    raise Failed(status, told(words))


def _mode(kind: str) -> int:
    """What `find -printf %y` or `stat -c %f` says of the type, as `st_mode`."""
    letters = {
        "f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "s": stat.S_IFSOCK, "p": stat.S_IFIFO, "b": stat.S_IFBLK,
        "c": stat.S_IFCHR,
    }  # fmt: skip
    return letters[kind] if kind in letters and len(kind) == 1 else int(kind, 16)


def _problem(path: str, error: OnblockError) -> FileInfo:
    return FileInfo(path, 0, 0, "", error)


def _special(mode: int) -> str:
    for test, what in (
        (stat.S_ISDIR, "a folder"), (stat.S_ISSOCK, "a socket"), (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISBLK, "a block device"), (stat.S_ISCHR, "a character device"),
    ):  # fmt: skip
        if test(mode):
            return what
    return "something special"
