"""HDFS by the installed `hadoop` program, for clusters that let nobody in by WebHDFS.

Each run costs a second or two for its JVM, so files go many at a time (`push`, `pull`, `commit_all`), and a ticket is
got when it is due. A file is staged in a folder of its own beside its final name, `.onblock-*.part/NAME`, since `-mv`
moves many files at once only under the names they have; it never overwrites. What arrived is compared with HDFS' own
checksum (`hdfs_checksum.py`). How the program is run, and what its complaints mean, is in `hadoop_run.py`.
Over 500 lines, since how files are staged, replaced and put back, many at once and singly, is one subject.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from pydantic import Field, field_validator, model_validator

from blocks import names
from blocks.errors import (
    Cancelled,
    ConfigError,
    Conflict,
    DiskFull,
    NetworkError,
    NotFound,
    OnblockError,
    SourceChanged,
    SourceVanished,
    UnknownError,
)  # fmt: skip
from blocks.storage.base import Features, FileInfo, Reader, Session, Storage, Upload, aligned_buffer
from blocks.storage.hadoop_run import Hadoop, Running, escape, failure, pages
from blocks.storage.hdfs_checksum import KINDS, FarChecksum, HdfsChecksum
from blocks.storage.hdfs_names import hdfs_path, hdfs_root

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

SLOW = 256 << 10
"""Bytes/s that a bulk transfer makes at the least; slower, it hangs."""
PIECE = 1 << 20

_STAT = re.compile(rb"(regular file|directory|symlink)\|(\d+)\|(\d+)\|")
_STAGED = re.compile(r"(\.onblock-[0-9a-f]{16}\.part)/")
_CHECKSUM = re.compile(r"\t(MD5-of-\d+MD5-of-\d+CRC32C?|COMPOSITE-CRC32C?|NONE)\t?([0-9a-f]*)\n")


class HadoopCliStorage(Storage):
    """A folder in HDFS, reached by the `hadoop` program of this machine."""

    _block_type_name = "Hadoop CLI Storage"
    _block_type_slug = "hadoop-cli-storage"
    _description = "A folder in HDFS, reached by the `hadoop` program of this machine."

    root: str = Field(description="The folder in HDFS, from '/'.")
    program: str = Field(default="hadoop", description="The program: `hadoop` or `hdfs`, by name or with its place.")
    create_root: bool = Field(default=False, description="Make the folder if it is missing.")
    filesystem: str = Field(
        default="", description="E.g. hdfs://nn1.example.org:8020; empty: fs.defaultFS of the Hadoop configuration."
    )
    config_folder: str = Field(default="", description="Hadoop's configuration (HADOOP_CONF_DIR); empty: as installed.")
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
    replication: int | None = Field(
        default=None, ge=1, le=512, description="Copies of each block; empty: the cluster's."
    )
    block_size: int = Field(default=128 << 20, ge=4096, multiple_of=512, description="Bytes in a block of new files.")
    timeout_s: float = Field(default=120, gt=0, description="How long the program may take to answer, in seconds.")

    @field_validator("root")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return hdfs_root(value)

    @field_validator("filesystem")
    @classmethod
    def _address(cls, value: str) -> str:
        if value and not re.fullmatch(r"[a-z][a-z0-9+]*://[\w.:-]+/?", value):
            raise ValueError(f"{value!r} is not an address like hdfs://HOST:PORT")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _one_way_in(self) -> HadoopCliStorage:
        if bool(self.principal) != bool(self.keytab):
            raise ValueError("`principal` and `keytab` go together")
        if sum([bool(self.keytab), bool(self.ticket_cache), bool(self.user)]) > 1:
            raise ValueError("give one of `user`, `keytab` with `principal`, and `ticket_cache`")
        return self

    def place(self) -> str:
        return f"hadoop:{self.filesystem or self.config_folder or self.program}{self.root}"

    def open(self) -> HadoopCliSession:
        session = HadoopCliSession(self)
        session.probe()
        return session


class HadoopCliSession(Session):
    """Nothing is kept open: each question is a run of the program."""

    features = Features(
        atomic_rename=True, exclusive_commit=True, resume_write=True, staged_digest=True, server_checksums=KINDS,
        bulk_push=True, bulk_pull=True,
    )  # fmt: skip

    def __init__(self, storage: HadoopCliStorage):
        self.storage, self.hadoop = storage, Hadoop(storage)
        self.crc = "CRC32C"  # of this cluster, until it tells otherwise
        self._emptied: list[str] = []  # staging folders whose file has its final name

    def at(self, path: str) -> str:
        """The absolute path of a legal relative one. Raises ConfigError."""
        return f"{self.storage.root.rstrip('/')}/{hdfs_path(path)}"

    def probe(self) -> None:
        """Whether the program runs, is let in, and finds a folder."""
        root = self.storage.root
        (found,) = self.stats([root])
        if found is None:
            if not self.storage.create_root:
                raise NotFound(
                    "the folder does not exist", path=root,
                    remedy="make it, or correct `root`; a destination may say `create_root: true`",
                )  # fmt: skip
            self.hadoop.must("cannot make the folder", root, "-mkdir", "-p", escape(root))
        elif found[0] != "directory":
            raise Conflict("is a file, not a folder", path=root, remedy="give a folder as `root`")

    def stats(self, paths: Sequence[str], stop: Event | None = None) -> list[tuple[str, int, int] | None]:
        """(type, size, mtime in ns) of absolute paths; None for what is not there.

        After each path the root is asked for, which is always there: so the answers are told apart whatever is missing,
        and a name with newlines is read for what it is.
        """
        found: list[tuple[str, int, int] | None] = []
        for page in pages(paths):
            arguments = [part for path in page for part in (escape(path), "/")]
            done = self.hadoop.run("-stat", "%F|%b|%Y|%n", *arguments, stop=stop)
            out, at = done.out, 0
            lost = 0
            for path in page:
                name = path.rpartition("/")[2].encode() + b"\n"
                one = None
                if (m := _STAT.match(out, at)) and out.startswith(name, m.end()):
                    one = (m[1].decode(), int(m[2]), int(m[3]) * 1_000_000)
                    at = m.end() + len(name)
                if not (m := _STAT.match(out, at)) or out[m.end() : m.end() + 1] != b"\n":
                    raise failure(done.complaint, done.code, "cannot look at it", path)
                at = m.end() + 1
                found.append(one)
                lost += one is None
            # "stat: `PATH': No such file ...", of which only the first line is printed where PATH has several
            lines = done.complaint.splitlines(keepends=True)
            others = [x for x in lines if not x.startswith("stat: `") or "Permission denied" in x]
            if lost > len(lines) - len(others):
                raise failure("".join(others), done.code, "cannot look at it", page[0])
        return found

    # -- reading --------------------------------------------------------------------------------------------------

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        full = self.at(path) if path else self.storage.root
        running = self.hadoop.start("-find", escape(full), "-print0", read=True)
        refused: set[str] = set()
        page: list[str] = []
        listed = 0
        try:
            for name in _until_nul(running, self.storage.timeout_s):
                listed += 1
                page.append(name)
                if len(page) == 500:
                    yield from self._listed(full, page, enter, refused)
                    page = []
            yield from self._listed(full, page, enter, refused)
            code = running.end(self.storage.timeout_s)
        finally:
            running.kill()
        if code:
            error = failure(running.complaint, code, "cannot list the folder", path)
            if listed < 2:
                raise error
            yield FileInfo(path, 0, 0, "", error)

    def _listed(self, top: str, page: list[str], enter: Callable[[str], bool], refused: set[str]) -> Iterator[FileInfo]:
        root = self.storage.root.rstrip("/") + "/"
        page = [full for full in page if not any(names.TEMPORARY.match(part) for part in full.split("/"))]
        for full, found in zip(page, self.stats(page), strict=True):
            if found is None:
                continue  # gone since it was listed: the next scan knows better
            kind, size, mtime_ns = found
            if full == top:
                if kind != "directory":
                    raise Conflict("is a file, not a folder", path=full)
                continue
            name = full.removeprefix(root)
            if full.rpartition("/")[0] in refused:
                if kind == "directory":
                    refused.add(full)
            elif kind == "directory":
                if not enter(name):
                    refused.add(full)
            elif kind != "regular file":
                problem = ConfigError("is a link, not a file", path=name, remedy="add it to `exclude`")
                yield FileInfo(name, 0, 0, "", problem)
            else:
                yield FileInfo(name, size, mtime_ns)

    def stat(self, path: str) -> FileInfo:
        (found,) = self.stats([self.at(path)])
        if found is None:
            raise NotFound("is not there", path=path)
        if found[0] != "regular file":
            raise Conflict(f"is a {found[0]}, not a file", path=path)
        return FileInfo(path, found[1], found[2])

    def read(self, path: str, offset: int = 0) -> HadoopCliReader:
        return HadoopCliReader(self, path, self.at(path), offset)

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        if kind not in KINDS:
            return super().checksum(path, kind, fresh=fresh)
        out = self.hadoop.must("cannot ask for its checksum", path, "-checksum", escape(self.at(path)))
        m = _CHECKSUM.search(out.decode())
        far = FarChecksum(m[1], m[2]) if m else FarChecksum("none", "")
        if far.kind != kind:
            raise ConfigError(f"this cluster's checksum is {far.algorithm}, not {kind}", path=path)
        return far.digest

    def far_checksums(self, staged: Sequence[str], stop: Event | None = None) -> dict[str, FarChecksum]:
        """What HDFS says it holds, by the staging folder's own name: no other part of the output can be trusted."""
        found: dict[str, FarChecksum] = {}
        for page in pages(staged):
            out = self.hadoop.run("-checksum", *map(escape, page), stop=stop).out.decode("utf-8", "replace")
            at = 0
            while m := _CHECKSUM.search(out, at):
                if folder := _STAGED.search(out, at, m.start()):
                    found[folder[1]] = far = FarChecksum(m[1], m[2])
                    self.crc = far.crc or self.crc
                at = m.end()
        return found

    def pull(
        self, files: Sequence[tuple[str, str]], moved: Callable[[int], object], stop: Event
    ) -> list[OnblockError | None]:
        try:
            return self._pull(files, moved, stop)
        except (Cancelled, NetworkError):
            raise
        except OnblockError as error:  # of one of them: read singly, each tells for itself
            return [error] * len(files)

    def _pull(
        self, files: Sequence[tuple[str, str]], moved: Callable[[int], object], stop: Event
    ) -> list[OnblockError | None]:
        full = [self.at(path) for path, _ in files]
        before = self.stats(full, stop)
        folders: dict[str, list[int]] = {}
        for number, path in enumerate(full):
            folders.setdefault(path.rpartition("/")[0], []).append(number)
        results: list[OnblockError | None] = [None] * len(files)
        for numbers in folders.values():
            beside = os.path.dirname(files[numbers[0]][1])
            size = sum(found[1] for n in numbers if (found := before[n]))
            with tempfile.TemporaryDirectory(dir=beside, prefix=".onblock-pull-") as name:
                for page in pages([full[n] for n in numbers]):
                    self.hadoop.run("-get", *map(escape, page), name, stop=stop, more_s=size / SLOW)
                for number in numbers:
                    path, local = files[number]
                    got = Path(name, path.rpartition("/")[2])
                    if got.is_file():
                        size = got.stat().st_size
                        shutil.move(got, local)
                    else:  # by itself, which tells why
                        try:
                            size = self._fetch(path, local, stop)
                        except Cancelled:
                            raise
                        except OnblockError as error:
                            results[number] = error
                            continue
                    moved(size)
        for number, (now, then) in enumerate(zip(self.stats(full, stop), before, strict=True)):
            if results[number] is None:
                results[number] = self._same(files[number], then, now)
        return results

    def _same(
        self, file: tuple[str, str], then: tuple[str, int, int] | None, now: tuple[str, int, int] | None
    ) -> OnblockError | None:
        """Whether what was fetched is what was there then and is there now; if so it gets its time."""
        path, local = file
        if now is None:
            return SourceVanished("was removed or renamed while it was read", path=path)
        if now != then or os.stat(local).st_size != now[1]:
            return SourceChanged("changed while it was read", path=path)
        os.utime(local, ns=(now[2], now[2]))
        return None

    def _fetch(self, path: str, local: str, stop: Event) -> int:
        size, buffer = 0, aligned_buffer(PIECE)
        with HadoopCliReader(self, path, self.at(path), stop=stop) as reader, Path(local).open("wb") as file:
            while n := reader.readinto(buffer):
                if stop.is_set():
                    raise Cancelled("the run was stopped", path=path)
                file.write(memoryview(buffer)[:n])
                size += n
        return size

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
    ) -> HadoopCliUpload:
        full = self.at(path)
        upload = HadoopCliUpload(self, path, full, names.temporary(full, key), size, mtime_ns)
        if resume:
            upload.take_up()
        return upload

    def over_quota(self, full: str, path: str) -> OnblockError | None:
        """DiskFull if a folder above has no room left for one more block."""
        folders = [folder for n in range(1, full.count("/")) if (folder := full.rsplit("/", n)[0])]
        block = self.storage.block_size * (self.storage.replication or 1)
        for line in self.hadoop.run("-count", "-q", *map(escape, folders)).out.splitlines():
            m = re.match(rb"\s*\S+\s+\S+\s+(\d+)\s+(-?\d+)\s", line)
            if m and int(m[2]) < block:
                return DiskFull(
                    f"the space quota of a folder above is used up: {int(m[2])} of {int(m[1])} bytes are left, and a "
                    f"block takes {block}",
                    path=path, remedy="ask for a larger quota, or make room, then run the job again",
                )  # fmt: skip
        return None

    def remove(self, folders: Sequence[str]) -> None:
        """Remove staging folders with what is in them; nothing where nothing is."""
        for page in pages(folders):
            self.hadoop.must("cannot remove what was staged", "", "-rm", "-r", "-f", "-skipTrash", *map(escape, page))

    def emptied(self, folder: str) -> None:
        """A staging folder is not needed any more; they are removed many at a time."""
        self._emptied.append(folder)
        if len(self._emptied) >= 200:
            self.tidy()

    def tidy(self) -> None:
        """Remove the staging folders that are empty."""
        folders, self._emptied = self._emptied, []
        self.remove(folders)

    def put_back(self, folder: str, final: str, path: str) -> None:
        """Of a commit that was cut off when it had moved the old file aside and not yet brought the new one: the old one
        gets its name back."""
        old = _aside(folder, final)
        aside, there = self.stats([old, final])
        if aside is not None and there is None:
            self.hadoop.must("cannot move the old file back", path, "-mv", escape(old), escape(final))

    def discard(self, path: str, key: str, journal: str = "") -> None:
        full = self.at(path)
        folder = names.temporary(full, key)
        self.put_back(folder, full, path)
        self.remove([folder])

    def rekey(self, path: str, key: str, to: str) -> None:
        full = self.at(path)
        old, new = names.temporary(full, key), names.temporary(full, to)
        done = self.hadoop.run("-mv", escape(old), escape(new))
        if done.code and not isinstance(
            error := failure(done.complaint, done.code, "cannot take over", path), NotFound
        ):
            raise error

    def push(
        self, files: Sequence[tuple[str, Upload]], moved: Callable[[int], object], stop: Event
    ) -> list[str | None]:
        mine = [(local, upload) for local, upload in files if isinstance(upload, HadoopCliUpload)]
        folders: dict[str, list[int]] = {}
        for number, (_, upload) in enumerate(mine):
            folders.setdefault(upload.folder.rpartition("/")[0], []).append(number)
        for page in pages(list(folders)):
            self.hadoop.run("-mkdir", "-p", *map(escape, page), stop=stop)  # what failed shows below
        with tempfile.TemporaryDirectory(prefix="onblock-push-") as tree:
            for number, (target, numbers) in enumerate(folders.items()):
                base = Path(tree, str(number))
                for one in numbers:
                    local, upload = mine[one]
                    staged = base / upload.folder.rpartition("/")[2]
                    staged.mkdir(parents=True)
                    (staged / upload.staged.rpartition("/")[2]).symlink_to(os.path.abspath(local))
                sources = sorted(str(p) for p in base.iterdir())
                size = sum(mine[n][1].announced for n in numbers)
                for page in pages(sources):
                    self.hadoop.run("-put", "-f", *page, escape(target), stop=stop, more_s=size / SLOW)
                moved(size)
        far = self.far_checksums([upload.staged for _, upload in mine], stop)
        results: list[str | None] = []
        for local, upload in mine:
            if stop.is_set():
                raise Cancelled("the run was stopped")
            results.append(upload.pushed(local, far.get(upload.folder.rpartition("/")[2])))
        return results

    def commit_all(self, uploads: Sequence[Upload]) -> list[str | OnblockError]:
        mine = [u for u in uploads if isinstance(u, HadoopCliUpload)]
        if len(mine) < 2:
            return super().commit_all(uploads)
        done: list[str | OnblockError] = [u.path for u in mine]
        folders: dict[str, list[int]] = {}
        for number, upload in enumerate(mine):
            try:
                upload.seal()
                folders.setdefault(upload.folder.rpartition("/")[0], []).append(number)
            except OnblockError as error:
                done[number] = error
        for folder, numbers in folders.items():
            try:
                for number, error in zip(numbers, self._move_into(folder, [mine[n] for n in numbers]), strict=True):
                    done[number] = error or done[number]
            except OnblockError as error:
                for number in numbers:
                    done[number] = error
        return done

    def _move_into(self, folder: str, uploads: list[HadoopCliUpload]) -> list[OnblockError | None]:
        """Give staged files their final names, all in one folder; the failure of each."""
        moves = [(u.staged, u.final, u.path) for u in uploads]
        results = self.move_into(folder, moves)
        for upload, error in zip(uploads, results, strict=True):
            if error is None:
                self.emptied(upload.folder)
        return results

    def move_into(self, folder: str, moves: Sequence[tuple[str, str, str]]) -> list[OnblockError | None]:
        """Move files into a folder, (from, to, path for people) each; the failure of each."""
        complaint, code = "", 0
        for page in pages([source for source, _, _ in moves]):
            run = self.hadoop.run("-mv", *map(escape, page), escape(folder or "/"))
            complaint, code = complaint + run.complaint, code or run.code
        if not code:
            return [None] * len(moves)
        # its complaints name files as they please, and a race lost is an "Input/output error": look what came of it
        found = self.stats([source for source, _, _ in moves] + [target for _, target, _ in moves])
        results: list[OnblockError | None] = []
        for (_, _, path), left, there in zip(moves, found, found[len(moves) :], strict=False):
            if left is None and there is not None:
                results.append(None)
            elif left is not None and there is not None:
                results.append(Conflict("something is already at the final name", path=path))
            else:
                results.append(failure(complaint, code, "cannot give it its final name", path))
        return results

    def delete(self, path: str) -> None:
        self.hadoop.must("cannot delete it", path, "-rm", "-skipTrash", escape(self.at(path)))

    def move(self, path: str, to: str) -> None:
        full, target = self.at(path), self.at(to)
        folder = target.rpartition("/")[0]
        source, there, parent = self.stats([full, target, folder or "/"])
        if source is None or source[0] != "regular file":
            raise NotFound("is not a file that is there", path=path)
        if there is not None:
            raise Conflict("something is already at the final name", path=to)
        if parent is None:
            self.hadoop.must("cannot make the folder", to, "-mkdir", "-p", escape(folder))
        self.hadoop.must("cannot move it", path, "-mv", escape(full), escape(target))

    def free_bytes(self) -> int | None:
        out = self.hadoop.must("cannot ask for the free space", self.storage.root, "-df", escape(self.storage.root))
        m = re.search(rb"\s\d+\s+\d+\s+(\d+)\s+\d+%", out)
        return int(m[1]) // (self.storage.replication or 3) if m else None

    def close(self) -> None:
        self.tidy()


def _aside(folder: str, final: str) -> str:
    """Where the file that is to be replaced lies for a moment."""
    return f"{folder}/{names.temporary(final, 'old').rpartition('/')[2]}"


def _until_nul(running: Running, timeout: float) -> Iterator[str]:
    """The names that `-find -print0` prints, as they come."""
    rest = b""
    while part := running.take(1 << 16, timeout):
        *whole, rest = (rest + part).split(b"\0")
        for name in whole:
            yield name.decode("utf-8", "replace")


class HadoopCliReader(Reader):
    """One file as `-cat` gives it, which holds what it reads against HDFS' CRCs."""

    def __init__(self, session: HadoopCliSession, path: str, full: str, offset: int = 0, *, stop: Event | None = None):
        self.path, self._session, self._stop = path, session, stop
        self._running = session.hadoop.start("-cat", escape(full), read=True)
        self._ahead = b""
        self._ended = False
        first = self._some(PIECE)  # that nothing is there shows now
        while offset and first:
            offset, first = offset - len(first[:offset]), first[offset:]
            if not first:
                first = self._some(PIECE)
        self._ahead = first

    def _some(self, most: int) -> bytes:
        """The next bytes; none at the end of the file."""
        if self._ended:
            return b""
        try:
            part = self._running.take(most, self._session.storage.timeout_s, self._stop)
        except OnblockError as error:
            error.path = self.path
            raise
        if not part:
            self._ended = True
            if code := self._running.end(self._session.storage.timeout_s):
                error = failure(self._running.complaint, code, "cannot read it", self.path)
                if isinstance(error, NotFound):
                    raise SourceVanished("is no longer there", path=self.path) from error
                raise error
        return part

    def readinto(self, buffer: Buffer) -> int:
        view, got = memoryview(buffer), 0
        while got < len(view):
            part = self._ahead[: len(view) - got]
            if part:
                self._ahead = self._ahead[len(part) :]
            elif not (part := self._some(len(view) - got)):
                break
            view[got : got + len(part)] = part
            got += len(part)
        return got

    def info(self) -> FileInfo:
        try:
            return self._session.stat(self.path)
        except NotFound as error:
            raise SourceVanished("was removed or renamed while it was read", path=self.path) from error

    def close(self) -> None:
        self._ended = True
        self._running.kill()


class HadoopCliUpload(Upload):
    """One file in its staging folder, written by `-appendToFile -` or, with many others, by `-put`."""

    def __init__(
        self, session: HadoopCliSession, path: str, final: str, folder: str, announced: int, mtime_ns: int | None
    ):
        self.path, self.final, self.folder = path, final, folder
        self.announced, self.mtime_ns = announced, mtime_ns
        self.staged = f"{folder}/{final.rpartition('/')[2]}"
        self._session = session
        self._begun = False  # something lies there, and it is ours
        self._replaced = ""  # the final name whose old file lies aside
        self._size = 0
        self._running: Running | None = None
        self._sha256 = hashlib.sha256()
        self._proof: HdfsChecksum | None = HdfsChecksum(session.storage.block_size, session.crc)
        self._proven: str | None = None
        self._checked = True  # all of it lies there

    def take_up(self) -> None:
        """Go on with what an earlier upload left."""
        old = _aside(self.folder, self.final)
        found, aside, there = self._session.stats([self.staged, old, self.final])
        if aside is not None:
            if there is None:
                self._session.put_back(self.folder, self.final, self.path)
            else:
                self._session.remove([old])
        if found is not None:
            self._begun, self._size, self.offset = True, found[1], found[1]
            if self._size:
                self._proof = None  # what lies there did not come by here

    def _start(self) -> Running:
        if not self._begun:
            self._session.remove([self.folder])  # appending is not overwriting
            self._begun = True
        return self._session.hadoop.start("-appendToFile", "-", escape(self.staged), feed=True)

    def write(self, chunk: memoryview) -> None:
        if not len(chunk):
            return
        if self._running is None:
            self._running = self._start()
        self._proven = None
        if self._proof is not None:
            self._proof.update(chunk)
            self._sha256.update(chunk)
        try:
            taken = self._running.feed(chunk, self._session.storage.timeout_s)
        except NetworkError:
            self._running.kill()
            raise
        if not taken:
            self._finish()
            raise UnknownError("`hadoop` ended before it had all", path=self.path)
        self._size += len(chunk)

    def _finish(self) -> None:
        """What was written is in HDFS, and the file closed."""
        running, self._running = self._running, None
        if running is None:
            return
        if code := running.end(self._session.storage.timeout_s):
            raise failure(running.complaint, code, "cannot write it", self.path)
        self._checked = False

    def _check_size(self) -> None:
        """Whether all that was written lies there: `-appendToFile` says nothing of a file that a quota has cut off."""
        if self._checked:
            return
        (found,) = self._session.stats([self.staged])
        length = found[1] if found is not None else 0
        if length != self._size:
            raise self._session.over_quota(self.staged, self.path) or NetworkError(
                f"HDFS has {length} of the {self._size} bytes that `hadoop` took", path=self.path
            )
        self._checked = True

    def pushed(self, local: str, far: FarChecksum | None) -> str | None:
        """Account for a file that `-put` has brought: its SHA-256 as it lies here, if HDFS has the same."""
        if far is None:
            return None
        self._begun = True
        steps = re.match(r"MD5-of-(\d+)MD5-of-(\d+)", far.algorithm)
        block = int(steps[1]) * int(steps[2]) if steps else 0
        sha256, proof = hashlib.sha256(), HdfsChecksum(block, far.crc or "CRC32C")
        view = memoryview(aligned_buffer(PIECE))
        with Path(local).open("rb", buffering=0) as file:
            st = os.fstat(file.fileno())
            if st.st_size != self.announced or (self.mtime_ns is not None and st.st_mtime_ns != self.mtime_ns):
                return None
            while n := file.readinto(view):
                sha256.update(view[:n])
                proof.update(view[:n])
        if proof.size != self.announced or not proof.matches(far):
            return None
        self._size, self._proven, self._proof = proof.size, sha256.hexdigest(), None
        return self._proven

    def digest(self, *, fresh: bool = False) -> str | None:
        self._finish()
        if not fresh and self._begun and (self._proof is not None or self._proven is not None):
            if self._proof is None:
                return self._proven
            far = self._session.far_checksums([self.staged]).get(self.folder.rpartition("/")[2])
            if far is not None and self._proof.matches(far):
                self._checked = True
                return self._sha256.hexdigest()
        return super().digest(fresh=fresh)

    def replay(self, update: Callable[[memoryview], object], *, fresh: bool = False) -> bool:
        self._finish()
        if not self._begun:
            return True
        self._check_size()
        view = memoryview(aligned_buffer(PIECE))
        with HadoopCliReader(self._session, self.path, self.staged) as reader:
            while n := reader.readinto(view):
                update(view[:n])
        return True

    def rewind(self, offset: int) -> int:
        self._finish()
        if offset < self._size:
            offset = self._truncate(offset) if offset else self._restart()
        self.offset = self._size = offset
        return offset

    def _restart(self) -> int:
        self._begun, self._sha256 = False, hashlib.sha256()
        self._proof = HdfsChecksum(self._session.storage.block_size, self._session.crc)
        return 0

    def _truncate(self, offset: int) -> int:
        done = self._session.hadoop.run("-truncate", "-w", str(offset), escape(self.staged))
        self._proof = None
        if not done.code:
            return offset
        error = failure(done.complaint, done.code, "cannot shorten the part", self.path)
        if isinstance(error, ConfigError):  # before Hadoop 2.7 there is no such command
            return self._restart()
        raise error

    def seal(self) -> None:
        self._finish()
        if not self._begun:
            self._begun = True
            hadoop = self._session.hadoop
            self._session.remove([self.folder])
            hadoop.must("cannot write it", self.path, "-appendToFile", "/dev/null", escape(self.staged))
        self._check_size()

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        session, hadoop = self._session, self._session.hadoop
        name = self.path if path is None else path
        final = session.at(name)
        self.seal()
        folder, _, last = final.rpartition("/")
        if (target := f"{self.folder}/{last}") != self.staged:  # `-mv` takes the name along
            hadoop.must("cannot give it its final name", name, "-mv", escape(self.staged), escape(target))
            self.staged = target
        if folder != self.folder.rpartition("/")[0]:
            hadoop.must("cannot make the folder", name, "-mkdir", "-p", escape(folder))
        old = _aside(self.folder, final)
        if replace:  # aside first: `-mv` never overwrites, and what is there stays whole
            (there,) = session.stats([final])
            if there is not None and there[0] != "regular file":
                raise Conflict(f"a {there[0]} is at the final name", path=name)
            if there is not None:
                self._replaced = final
                hadoop.must("cannot move the old file aside", name, "-mv", escape(final), escape(old))
        (error,) = session.move_into(folder, [(self.staged, final, name)])
        if error is not None:
            if self._replaced:
                session.put_back(self.folder, final, name)
                self._replaced = ""
            raise error
        self.path, self.final = name, final
        if self._replaced:
            self._replaced = ""
            session.remove([self.folder])
        else:
            session.emptied(self.folder)
        return name

    def keep(self) -> None:
        self._finish()
        self._check_size()

    def abort(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running = None
        if self._replaced:
            self._session.put_back(self.folder, self._replaced, self.path)
        if self._begun:
            self._session.remove([self.folder])
