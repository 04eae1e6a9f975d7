"""A host with rsync and a shell, over SSH, by the real `rsync` and `ssh`.

Many files go in one `rsync`; single ones through the shell (`ssh_shell.py`), with resume. Either way a file is written to
`.onblock-*.part` beside its final name, read back by the far side's `sha256sum`, synced, and linked to its final name,
which never overwrites. The far side needs GNU coreutils and findutils, as any Linux has. No password login: `ssh` takes
none without a terminal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from pydantic import Field, model_validator

from blocks import names
from blocks.errors import (
    ConfigError,
    Conflict,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceChanged,
    SourceVanished,
    ToolMissing,
    UnknownError,
)  # fmt: skip
from blocks.storage.base import Features, FileInfo, Session, Upload
from blocks.storage.program import Finished, find, hash_local, run
from blocks.storage.rsync_transfer import SMALL, RsyncReader, RsyncUpload
from blocks.storage.ssh_login import HASH_RATE, SshStorage
from blocks.storage.ssh_shell import HOST, SLOW_S, Channel, Login, classify, failure, quote

log = logging.getLogger("onblock.rsync")

EXIT_CODES: dict[int, type[OnblockError]] = {
    1: ConfigError,  # syntax or usage
    2: ConfigError,  # protocol incompatibility
    3: NotFound,  # errors selecting input/output files, dirs
    4: ConfigError,  # requested action not supported
    5: NetworkError,  # error starting client-server protocol
    6: UnknownError,  # daemon unable to append to log-file
    10: NetworkError,  # error in socket I/O
    11: UnknownError,  # error in file I/O
    12: NetworkError,  # error in rsync protocol data stream
    13: UnknownError,  # errors with program diagnostics
    14: UnknownError,  # error in IPC code
    20: UnknownError,  # received SIGUSR1 or SIGINT
    21: UnknownError,  # some error returned by waitpid()
    22: UnknownError,  # error allocating core memory buffers
    23: UnknownError,  # partial transfer due to error
    24: SourceVanished,  # partial transfer due to vanished source files
    25: ConfigError,  # the --max-delete limit stopped deletions
    30: NetworkError,  # timeout in data send/receive
    35: NetworkError,  # timeout waiting for daemon connection
    126: PermissionRefused,  # the shell: rsync may not be run
    127: ToolMissing,  # the shell: there is no rsync
    255: NetworkError,  # ssh
}
"""rsync's documented exit codes, and those of shell and ssh that it passes on. What was said (`ssh_shell.SAID`) counts
first, but for codes that leave no doubt."""
_CERTAIN = (1, 2, 4, 24, 25, 30, 35)
PER_FILE = (11, 23, 24)
"""Codes after which the other files may have arrived."""

_NEEDED = "find sha256sum mv ln rm mkdir touch sync truncate head tail stat cat dd xargs"
_PROGRESS = re.compile(rb"\s*(\d+)\s+\d+%")
_PAGE = 32
"""Folders that one `find` lists."""


def exit_failure(doing: str, done: Finished, path: str = "") -> OnblockError:
    """The class for how rsync ended; the raw words go to the log."""
    log.warning("rsync: %s: exit code %d: %s", doing, done.code, done.stderr)
    default = EXIT_CODES.get(done.code, UnknownError)
    kind = default if done.code in _CERTAIN else classify(done.stderr, default)
    remedy = "install rsync at the server and here" if kind is ToolMissing else None
    brief = " ".join(done.stderr.split())[-300:]
    return kind(f"{doing}: rsync exit code {done.code}: {brief}", path=path, remedy=remedy)


class RsyncStorage(SshStorage):
    """A folder on a host that has rsync and a shell."""

    _block_type_name = "rsync Storage"
    _block_type_slug = "rsync-storage"
    _description = "A folder on a host with rsync and a shell, over SSH. Key or agent; no password login."

    binary: str = Field(default="rsync", description="The program on this machine: a name or an absolute path.")

    @model_validator(mode="after")
    def _no_password(self) -> RsyncStorage:
        if self.password is not None or self.passphrase is not None:
            raise ValueError("rsync logs in by a key without passphrase, or by the agent; else use an SFTP storage")
        return self

    def open(self) -> RsyncSession:
        return RsyncSession(self)


class RsyncSession(Session):
    """One login: a shell that stays, and channels through it."""

    features = Features(
        atomic_rename=True, exclusive_commit=True, resume_read=True, resume_write=True, staged_digest=True,
        server_checksums=("md5", "sha1", "sha224", "sha256", "sha384", "sha512"), mtime_set=True, byte_names=True,
        parallel=2, bulk_push=True, bulk_pull=True, bulk_below=32 << 20, bulk_limits=True,
    )  # fmt: skip

    def __init__(self, storage: RsyncStorage):
        self.storage = storage
        self._login = Login(storage)
        self._shell: Channel | None = None
        self._lister: Channel | None = None
        try:
            self._shell = Channel(self._login, master=True)
            self._look_around()
        except BaseException:
            self.close()
            raise

    def _look_around(self) -> None:
        """Go to the root, and see that what is needed is there."""
        storage, doing = self.storage, f"cannot work at {self.storage.address}"
        root = storage.root if storage.root.startswith("/") else f"./{storage.root}"
        quoted = "'" + root.replace("'", "'\\''") + "'"
        script = (
            f"[ -e {quoted} ] || {{ echo 'No such file or directory'; exit 96; }}\n"
            f"[ -d {quoted} ] || {{ echo 'Not a directory'; exit 96; }}\n"
            f"cd -- {quoted} || {{ echo 'Permission denied'; exit 96; }}\npwd -P || exit 96\nprintf '\\0'\n"
            f"for c in {_NEEDED}; do command -v $c >/dev/null || echo $c; done\n"
            "find . -maxdepth 0 -printf '' && sha256sum -z </dev/null >/dev/null || echo 'GNU find or sha256sum'"
        )
        # the answer comes in its own shell: `exit` would end the channel
        code, said = self.shell.ask(doing, storage.root, f"({script})", within=storage.connect_timeout)
        if code == 96:
            raise failure(
                "cannot open the folder", said.decode("utf-8", "replace"), storage.place(),
                remedy="make or mount it, or correct `root`",
            )  # fmt: skip
        where, _, missing = said.partition(b"\n\0")
        if code or missing.strip():
            raise ToolMissing(
                f"not found on the server: {' '.join(missing.decode('utf-8', 'replace').split())}",
                path=storage.address, remedy="install coreutils and findutils there, or use an SFTP storage",
            )  # fmt: skip
        self.root = os.fsdecode(where)
        self.shell.run("cannot open the folder", self.root, f"cd -- {quoted}")

    @property
    def shell(self) -> Channel:
        """The shell that stays; its working folder is the root."""
        if self._shell is None:
            raise NetworkError(f"the connection to {self.storage.address} ended")
        if not self._shell.alive:
            raise self._shell.broken("cannot go on", self.storage.root)
        return self._shell

    def channel(self) -> Channel:
        """A new shell through the same login; `enter` begins its scripts."""
        _ = self.shell  # which has not ended
        return Channel(self._login)

    @property
    def enter(self) -> str:
        """How a script of another channel gets to the root."""
        return "cd -- '" + self.root.replace("'", "'\\''") + "' || exit 1\n"

    def close(self) -> None:
        for channel in (self._lister, self._shell):
            if channel is not None:
                channel.close()
        self._lister = self._shell = None
        self._login.close()

    # -- reading --------------------------------------------------------------------------------------------------

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        if path:
            at = quote(names.check_path(path))
            self.shell.run("cannot list the folder", path, f"find {at} -maxdepth 0 -type d >/dev/null && [ -d {at} ]")
        pending = [path]
        while pending:
            page: list[str] = []
            while pending and len(page) < _PAGE:
                folder = pending.pop()
                if folder == path or enter(folder):
                    page.append(folder)
            if page:
                yield from self._list(page, pending)

    def _list(self, folders: list[str], pending: list[str]) -> Iterator[FileInfo]:
        """The entries of some folders; those that are folders themselves go to `pending`."""
        idle, self._lister = self._lister, None  # another scan may begin before this one ends
        channel = idle or self.channel()
        try:
            if idle is None:
                channel.run("cannot list the folder", folders[0], self.enter)
            starts = " ".join(quote(folder) if folder else "./" for folder in folders)
            found = channel.entries(f"find {starts} -mindepth 1 -maxdepth 1 -printf '%y %s %T@ %p\\0'")
            while True:
                try:
                    kind, size, stamp, raw = next(found).split(b" ", 3)
                except StopIteration as end:
                    code, said = end.value
                    break
                name = os.fsdecode(raw[2:])
                if kind == b"d":
                    pending.append(name)
                elif (file := self._entry(name, kind, size, stamp)) is not None:
                    yield file
            if code:
                yield from _complaints(said, folders)
        except BaseException:
            channel.close()
            raise
        if self._lister is None and self._shell is not None:
            self._lister = channel
        else:
            channel.close()

    def _entry(self, name: str, kind: bytes, size: bytes, stamp: bytes) -> FileInfo | None:
        if names.TEMPORARY.match(name.rpartition("/")[2]):
            return None
        if kind == b"l":
            try:
                return self._through_link(name)
            except OnblockError as error:
                return FileInfo(name, 0, 0, "", error)
        if kind != b"f":
            problem = ConfigError("is no file: a device, socket or FIFO", path=name, remedy="add it to `exclude`")
            return FileInfo(name, 0, 0, "", problem)
        return FileInfo(name, int(size), _nanoseconds(stamp))

    def _through_link(self, path: str) -> FileInfo | None:
        """What a link inside the root leads to; None for a folder, whose files are found where they are."""
        target = self.shell.run("is a link to nothing", path, f"readlink -vez -- {quote(path)}").rstrip(b"\0")
        if not (os.fsdecode(target) + "/").startswith(self.root.rstrip("/") + "/"):
            raise ConfigError(
                "is a link that leads out of the folder", path=path,
                remedy="put the file itself there, or add the link to `exclude`",
            )  # fmt: skip
        try:
            return self.stat(path)
        except Conflict:
            return None

    def stat(self, path: str) -> FileInfo:
        script = f"find -H {quote(names.check_path(path))} -maxdepth 0 -printf '%y %s %T@'"
        kind, size, stamp = self.shell.run("cannot look at it", path, script).split(b" ")
        if kind != b"f":
            raise Conflict("is a folder or something special, not a file", path=path)
        return FileInfo(path, int(size), _nanoseconds(stamp))

    def read(self, path: str, offset: int = 0) -> RsyncReader:
        names.check_path(path)
        try:
            look = f"find {quote(path)} -maxdepth 0 -printf '%y %s'"
            kind, size = self.shell.run("cannot look at it", path, look).split()
        except NotFound as error:
            raise SourceVanished("is no longer there", path=path) from error
        if kind == b"l":
            self._through_link(path)
        elif kind != b"f":
            raise Conflict("is a folder or something special, not a file", path=path)
        return RsyncReader(self, path, path, offset, small=kind == b"f" and int(size) <= SMALL)

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        if kind not in self.features.server_checksums:
            return super().checksum(path, kind, fresh=fresh)
        return self.digest(names.check_path(path), path, self.stat(path).size, kind, fresh=fresh)

    def digest(self, at: str, path: str, size: int, kind: str = "sha256", *, fresh: bool = False) -> str:
        """Computed at the far side; of the bytes on its disk where `fresh`, as far as its kernel forgets its cache."""
        where = quote(at)
        forget = f"sync {where} 2>/dev/null; dd if={where} iflag=nocache count=0 2>/dev/null; " if fresh else ""
        within = self.shell.patience + size / HASH_RATE + SLOW_S * fresh
        said = self.shell.run("cannot hash it", path, f"{forget}{kind}sum < {where}", within=within)
        return said.split()[0].decode()

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
    ) -> RsyncUpload:
        return RsyncUpload(self, names.check_path(path), names.temporary(path, key), size, mtime_ns, resume=resume)

    def discard(self, path: str, key: str, journal: str = "") -> None:
        staged = names.temporary(names.check_path(path), key)
        self.shell.run("cannot remove the temporary file", path, f"rm -f -- {quote(staged)}")

    def rekey(self, path: str, key: str, to: str) -> None:
        old, new = quote(names.temporary(names.check_path(path), key)), quote(names.temporary(path, to))
        self.shell.run("cannot take over the temporary file", path, f"[ ! -e {old} ] || mv -fT -- {old} {new}")

    def commit_all(self, uploads: Sequence[Upload]) -> list[str | OnblockError]:
        mine = [u for u in uploads if isinstance(u, RsyncUpload)]
        if len(mine) < 2:
            return super().commit_all(uploads)
        done: dict[int, str | OnblockError] = {}
        for number, upload in enumerate(mine):
            try:
                upload.seal()
            except OnblockError as error:
                done[number] = error
        ready = [n for n in range(len(mine)) if n not in done]
        script = "sync -f . || exit 1\n" + "".join(
            f"ln -T -- {quote(mine[n].staged)} {quote(mine[n].path)} 2>&1; printf '\\0%d\\0' $?\n" for n in ready
        )
        code, said = self.shell.ask("cannot make the files durable", "", f"({script}true)", within=self.shell.durably)
        answers, linked = said.split(b"\0"), bytearray()
        for number, words, result in zip(ready, answers[0::2], answers[1::2], strict=False):
            if result == b"0":
                done[number] = mine[number].path
                linked += os.fsencode(f"./{mine[number].staged}\0")
            elif b"File exists" in words:
                done[number] = Conflict("something is already at the final name", path=mine[number].path)
            else:
                done[number] = self._singly(mine[number])
        if not code:
            script = f"head -c {len(linked)} | xargs -0r rm -f -- && sync -f ."
            code, said = self.shell.ask(
                "cannot make the folders durable", "", script, bytes(linked), within=self.shell.durably
            )
            answers = [said]
        if code or len(done) < len(mine):
            error = failure("cannot make the files durable", answers[-1].decode("utf-8", "replace"), self.root)
            return [error if isinstance(done.get(n, ""), str) else done[n] for n in range(len(mine))]
        return [done[n] for n in range(len(mine))]

    @staticmethod
    def _singly(upload: RsyncUpload) -> str | OnblockError:
        try:
            return upload.commit()
        except OnblockError as error:
            return error

    def delete(self, path: str) -> None:
        at = quote(names.check_path(path))
        self.shell.run("cannot delete it", path, f"rm -- {at} && sync -- {_folder(path)}", within=self.shell.durably)

    def move(self, path: str, to: str) -> None:
        a, b = quote(names.check_path(path)), quote(names.check_path(to))
        # of several who link it at once, the one who removes the old name has moved it
        script = (
            f"[ -d {a} ] && {{ echo 'Is a directory'; exit 1; }}\n{_made(to)} || exit 1\n"
            f"if ln -PT -- {a} {b}; then rm -- {a} || {{ rm -f -- {b}; exit 1; }}\n"
            f"elif [ -e {b} ] || [ ! -e {a} ]; then exit 1\nelse mv -nT -- {a} {b} && [ ! -e {a} ] || exit 1; fi\n"
            f"sync -- {_folder(to)} {_folder(path)}"
        )
        self.shell.run("cannot move it", path, f"({script})", within=self.shell.durably)

    def free_bytes(self) -> int:
        blocks, size = self.shell.run("cannot ask for the free space", self.root, "stat -f -c '%a %S' .").split()
        return int(blocks) * int(size)

    # -- many at once ---------------------------------------------------------------------------------------------

    def push(
        self, files: Sequence[tuple[str, Upload]], moved: Callable[[int], object], stop: Event
    ) -> list[str | None]:
        mine = [(local, upload) for local, upload in files if isinstance(upload, RsyncUpload)]
        # rsync keeps names: so it is given links that have the staged ones
        with tempfile.TemporaryDirectory(prefix="onblock-push-") as farm, ThreadPoolExecutor(1) as pool:
            for local, upload in mine:
                link = os.path.join(farm, upload.staged)
                os.makedirs(os.path.dirname(link), exist_ok=True)
                os.symlink(local, link)
            hashing = pool.submit(lambda: [None if stop.is_set() else _hashed(local, u) for local, u in mine])
            listed = b"".join(os.fsencode(f"./{upload.staged}\0") for _, upload in mine)
            done = self._rsync(
                [f"{farm}/", f"{HOST}:{self.root}/"], listed, moved, stop, self.limits and self.limits()[0]
            )
            if done.code and done.code not in PER_FILE:
                raise exit_failure(f"cannot send to {self.storage.address}", done)
            if done.code:
                log.warning("rsync: exit code %d: %s", done.code, done.stderr)
            found = self._digests([upload.staged for _, upload in mine], sum(upload.size for _, upload in mine))
            results: list[str | None] = []
            for (_, upload), sha256 in zip(mine, hashing.result(), strict=True):
                there = found.get(upload.staged)
                if there is None or there != sha256:
                    results.append(None)  # cut short, changed or damaged: sent singly, it says which
                else:
                    upload.filled(there)
                    results.append(sha256)
            return results

    def pull(
        self, files: Sequence[tuple[str, str]], moved: Callable[[int], object], stop: Event
    ) -> list[OnblockError | None]:
        if not files:
            return []
        beside = os.path.dirname(files[0][1])
        with tempfile.TemporaryDirectory(prefix=".onblock-pull-", dir=beside) as farm:
            listed = b"".join(os.fsencode(f"./{names.check_path(path)}\0") for path, _ in files)
            done = self._rsync(
                [f"{HOST}:{self.root}/", f"{farm}/"], listed, moved, stop, self.limits and self.limits()[1]
            )
            if done.code and done.code not in PER_FILE:
                raise exit_failure(f"cannot fetch from {self.storage.address}", done)
            now = self._versions([path for path, _ in files])
            results: list[OnblockError | None] = []
            for path, local in files:
                try:
                    os.rename(os.path.join(farm, path), local)
                    st = os.stat(local)
                except OSError:
                    results.append(self._why_not(path, done))
                    continue
                same = now.get(path) == (st.st_size, st.st_mtime_ns)
                results.append(None if same else SourceChanged("changed while it was read", path=path))
            return results

    def _versions(self, paths: list[str]) -> dict[str, tuple[int, int]]:
        """Size and time of many files as they are now, in one call; those that are gone are left out."""
        payload = b"".join(os.fsencode(f"./{path}\0") for path in paths)
        script = f"head -c {len(payload)} | xargs -0 stat -L --printf '%s %.9Y %n\\0' -- 2>/dev/null"
        _, said = self.shell.ask("cannot look at the files", self.root, script, payload)
        found = (entry.split(b" ", 2) for entry in said.split(b"\0") if entry)
        return {os.fsdecode(raw[2:]): (int(size), _nanoseconds(stamp)) for size, stamp, raw in found}

    def _why_not(self, path: str, done: Finished) -> OnblockError:
        try:
            self.stat(path)
        except NotFound as error:
            return SourceVanished("is no longer there", path=path).with_traceback(error.__traceback__)
        except OnblockError as error:
            return error
        return exit_failure("was not fetched", done, path)

    def _rsync(
        self, ends: list[str], listed: bytes, moved: Callable[[int], object], stop: Event, limit: int | None
    ) -> Finished:
        """`limit` is in bytes a second, and stays what it is until this call has ended."""
        told = 0

        def line(text: bytes) -> None:
            nonlocal told
            if (m := _PROGRESS.match(text)) and (now := int(m[1])) > told:
                moved(now - told)
                told = now

        rsh = " ".join(f"'{word}'" for word in [*self._login.argv, "-o", "ControlMaster=no"])
        argv = [
            find(self.storage.binary), "-e", rsh, "--secluded-args", "--files-from=-", "--from0", "--copy-links",
            "--times", "--omit-dir-times",
            "--chmod=D777,F666", "--inplace", "--whole-file", "--no-implied-dirs", "--info=progress2",
            "--no-human-readable", "--outbuf=N", f"--timeout={max(1, round(self.storage.io_timeout))}",
            *([f"--bwlimit={max(1, limit >> 10)}"] if limit else []), "--", *ends,
        ]  # fmt: skip
        environment = {**{k: v for k, v in os.environ.items() if not k.startswith("RSYNC_")}, "LC_ALL": "C"}
        idle = self.storage.io_timeout * 1.25 + 1  # where rsync itself gives up, it says why
        return run(argv, env=environment, stdin=listed, stop=stop, idle=idle, line=line, separator=b"\r")

    def _digests(self, staged: list[str], size: int) -> dict[str, str]:
        """SHA-256 of many files, of `size` bytes together, in one call, by the far side; those that are not there are left out."""
        payload = b"".join(os.fsencode(f"./{at}\0") for at in staged)
        script = f"head -c {len(payload)} | xargs -0 sha256sum -z -- 2>/dev/null"
        within = self.shell.patience + size / HASH_RATE
        _, said = self.shell.ask("cannot hash the files", self.root, script, payload, within=within)
        return {os.fsdecode(entry[68:]): entry[:64].decode() for entry in said.split(b"\0") if len(entry) > 68}


def _complaints(said: str, folders: list[str]) -> Iterator[FileInfo]:
    """What `find` could not look at."""
    for line in said.splitlines():
        m = re.match(r"find: '\./(.*)': (.*)", line)
        if not m:
            yield FileInfo(folders[0], 0, 0, "", failure("the listing broke off", line, folders[0]))
        elif "No such file" not in m[2]:  # gone since it was listed: the next scan knows better
            yield FileInfo(m[1], 0, 0, "", failure("cannot list the folder", m[2], m[1]))


def _hashed(local: str, upload: RsyncUpload) -> str | None:
    with contextlib.suppress(OSError):
        return hash_local(local, upload.size, upload.mtime_ns)
    return None


def _folder(path: str) -> str:
    return quote(path.rpartition("/")[0])


def _made(path: str) -> str:
    """A script that makes the folder of a path."""
    return f"{{ [ -d {_folder(path)} ] || mkdir -p -- {_folder(path)}; }}"


def _nanoseconds(stamp: bytes) -> int:
    """`find`'s seconds with a fraction."""
    whole, _, fraction = stamp.partition(b".")
    part = int(fraction[:9].ljust(9, b"0") or b"0")
    return int(whole) * 1_000_000_000 + (part if not whole.startswith(b"-") else -part)
