"""Files on a host that has a shell and `scp`, and no SFTP: boxes, cameras, old appliances.

Whole files travel by the protocol that `scp -O` speaks (`scp -t`, `scp -f` at the far side); what that cannot do, going on
in the middle, is `cat >>` and `tail -c`. Listing, renaming and the rest are scripts for the login's `sh`, which go in by
its standard input, quoted: see `ssh.py`. Each shell command costs the far side a process, so thousands of small files are
slower than over SFTP. A file gets its final name by a hard link, which never overwrites, or by `mv -n` where there is none.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from blocks import names
from blocks.errors import ConfigError, Conflict, NotFound, OnblockError, SourceVanished, UnknownError
from blocks.storage.base import Features, FileInfo, Session, Upload
from blocks.storage.scp_files import ScpReader, ScpUpload
from blocks.storage.scp_host import PRELUDE, ScpHost, mode_of, problem, said, special
from blocks.storage.ssh_login import SshStorage

if TYPE_CHECKING:
    from blocks.storage.ssh import Shell


class ScpStorage(SshStorage):
    """A folder on a host that has a shell and `scp`, and no SFTP."""

    _block_type_name = "SCP Storage"
    _block_type_slug = "scp-storage"
    _description = "A folder on a host that has a shell and `scp`, and no SFTP."

    def open(self) -> ScpSession:
        from blocks.storage.ssh import Connection  # paramiko takes its time to import

        return ScpSession(ScpHost(self, Connection(self)))


class ScpSession(Session):
    """Files below one folder of the host, over one connection."""

    def __init__(self, host: ScpHost):
        self.host = host
        self._spare: Shell | None = None  # of a scan that came to its end
        self.features = Features(
            atomic_rename=True, exclusive_commit=True, resume_read=True, resume_write=True,
            staged_digest=True, server_checksums=("sha256",) if host.hashes else (), mtime_set=True, byte_names=True,
            parallel=4,
        )  # fmt: skip

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        from blocks.storage.ssh import Failed, Shell

        full = self.host.at(path) if path else self.host.root or "/"
        if path and not self.host.inside(full, path):
            raise ConfigError(
                "is or lies behind a link that leads out of the source folder", path=path,
                remedy="give the folder itself as the storage's `root`",
            )  # fmt: skip
        pending = [path]
        with self.host.telling("cannot list the folder", path):
            # its own: what is asked meanwhile goes the other way
            shell, self._spare = self._spare or Shell(self.host.connection, PRELUDE), None
        try:
            while pending:  # names of folders wait in memory, files never do
                folder = pending.pop()
                if folder != path and not enter(folder):
                    continue
                listing = shell.stream(
                    b"onblock_find=%d\nonblock_list " % ("find" in self.host.tools)
                    + self.host.word(f"{self.host.root}/{folder}" if folder else self.host.root or "/")
                )
                rest = b""
                while True:
                    try:
                        with self.host.telling("cannot list the folder", folder):
                            piece = next(listing, None)
                    except OnblockError as error:
                        if folder == path or not isinstance(error.__cause__, Failed):
                            raise
                        yield problem(folder, error)
                        break
                    if piece is None:
                        break
                    *entries, rest = (rest + piece).split(b"\0")
                    for entry in entries:
                        kind, size, mtime, name = os.fsdecode(entry).split(" ", 3)
                        child = f"{folder}/{name}" if folder else name
                        mode = mode_of(kind)
                        if stat.S_ISDIR(mode):
                            pending.append(child)
                        elif (info := self._listed(child, name, mode, int(size), mtime)) is not None:
                            yield info
            self._spare, shell = shell, None
        finally:
            if shell is not None:  # nobody reads what it still says
                shell.close()

    def _listed(self, path: str, name: str, mode: int, size: int, mtime: str) -> FileInfo | None:
        """One entry of a listing that is no folder."""
        if names.TEMPORARY.match(name):
            return None
        if stat.S_ISLNK(mode):
            if not self.host.inside(self.host.at(path), path):
                return problem(path, ConfigError(
                    "is a link that leads out of the source folder", path=path,
                    remedy="put the file itself there, or add the link to `exclude`",
                ))  # fmt: skip
            try:
                mode, size, mtime, _, _ = self.host.look(path, follow=True)
            except NotFound:
                return problem(path, NotFound("is a link to nothing", path=path, remedy="remove it or `exclude` it"))
            if stat.S_ISDIR(mode):
                return None  # a link to a folder inside the root: its files are found where they are
        if not stat.S_ISREG(mode):
            return problem(
                path, ConfigError(f"is {special(mode)}, not a file", path=path, remedy="add it to `exclude`")
            )
        return FileInfo(path, size, self.host.nanoseconds(mtime))

    def stat(self, path: str) -> FileInfo:
        mode, size, mtime, _, _ = self.host.look(path, follow=True)
        if not stat.S_ISREG(mode):
            raise Conflict(f"is {special(mode)}, not a file", path=path)
        return FileInfo(path, size, self.host.nanoseconds(mtime))

    def read(self, path: str, offset: int = 0) -> ScpReader:
        try:
            mode, _, _, inode, _ = self.host.look(path)
            if stat.S_ISLNK(mode):
                if not self.host.inside(self.host.at(path), path):
                    raise ConfigError(
                        "is a link that leads out of the folder", path=path, remedy="put the file itself there"
                    )
                mode, _, _, inode, _ = self.host.look(path, follow=True)
        except NotFound as error:
            raise SourceVanished("is no longer there", path=path) from error
        if not stat.S_ISREG(mode):
            raise ConfigError(f"is {special(mode)}, not a file", path=path, remedy="add it to `exclude`")
        return ScpReader(self.host, path, self.host.at(path), offset, inode)

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        if kind != "sha256" or not self.host.hashes:
            return super().checksum(path, kind, fresh=fresh)
        return self.host.hash_there(self.host.at(path), self.stat(path).size, path, fresh=fresh)

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
        staged = self.host.staged(path, key)
        word = self.host.word(staged)
        if resume:  # what has a second name is whole already, and that name may be the final one
            clear = b'if [ "$(stat -c %h ' + word + b' 2>/dev/null)" != 1 ]; then rm -f ' + word + b"; fi\n"
        else:
            clear = b"rm -f " + word + b"\n"
        folder = names.temporary(path, key).rpartition("/")[0]
        make = b"onblock_enter " + self.host.word(self.host.root or "/") + b"\n"
        make += b"mkdir -p " + self.host.word(folder) + b" || exit\n" if folder else b""
        # sh writes with O_CREAT: as the account's umask says
        out = self.host.run(make + clear + b": >> " + word + b" && stat -c %s " + word, "cannot write there", path)
        return ScpUpload(self.host, path, staged, int(out), size, mtime_ns)

    def discard(self, path: str, key: str, journal: str = "") -> None:
        staged = self.host.word(self.host.staged(path, key))
        self.host.run(b"rm -f " + staged + b" || ! [ -e " + staged + b" ]", "cannot remove the temporary file", path)

    def rekey(self, path: str, key: str, to: str) -> None:
        old, new = self.host.word(self.host.staged(path, key)), self.host.word(self.host.staged(path, to))
        script = b"[ ! -e " + old + b" ] || mv -fT " + old + b" " + new
        self.host.run(script, "cannot take over the temporary file", path)

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
            whole = b"sync -f " if "sync" in self.host.tools else b"sync # "
            self.host.run(whole + b" ".join({self.host.word(u.staged) for u in fine}), "cannot make the files durable")
            for upload in fine:
                scripts.append(
                    b"onblock_take " + self.host.word(upload.staged) + b" " + self.host.word(self.host.at(upload.path))
                )
            marks = b" 2>&1\nprintf '\\000%d\\000' $?\n".join([*scripts, b""])
            out = self.host.run(marks + b"exit 0", "cannot give them their final names").split(b"\0")
            if len(out) != 2 * len(fine) + 1:
                raise UnknownError(
                    f"{self.host.storage.address} did not tell of each file whether it has its final name"
                )
            arrived: list[str] = []
            answers = iter(zip(out[::2], out[1::2], strict=False))
            for n, result in enumerate(done):
                if isinstance(result, str):
                    words, status = next(answers)
                    if int(status):
                        about = f"cannot give it its final name at {self.host.storage.address}"
                        done[n] = said(int(status), told(words), about, result)
                    else:
                        arrived.append(self.host.at(result))
            if arrived:
                self.host.run(self.host.sync_folders(arrived), "cannot make the folders durable")
        except OnblockError as error:
            return [error if isinstance(d, str) else d for d in done]
        return done

    def delete(self, path: str) -> None:
        word = self.host.word(self.host.at(path))
        test = b"[ ! -d " + word + b" ] || [ -L " + word + b" ] || { echo Is a directory >&2; exit 1; }\n"
        self.host.run(test + b"rm " + word, "cannot delete it", path)

    def move(self, path: str, to: str) -> None:
        full, target = self.host.at(path), self.host.at(to)
        folder = target.rpartition("/")[0]
        script = b"[ -e " + self.host.word(full) + b" ] || [ -L " + self.host.word(full) + b" ] || exit 73\n"
        script += b"mkdir -p " + self.host.word(folder) + b" || exit\n"
        script += b"onblock_take " + self.host.word(full) + b" " + self.host.word(target) + b" || exit\n"
        self.host.run(script + self.host.sync_folders([full, target]), "cannot move it", path)

    def free_bytes(self) -> int | None:
        out = self.host.run(
            b"stat -f -c '%a %S' " + self.host.word(self.host.root or "/") + b" || :", "cannot ask for the free space"
        )
        blocks, _, size = out.decode("ascii", "replace").strip().partition(" ")
        return int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else None

    def close(self) -> None:
        self.host.close()
