"""Local disks and whatever is mounted like one: NFS, SMB, USB cards.

A file is written to `.onblock-*.part` beside its final name, fsynced, renamed without overwriting, and its folder
fsynced. Many small files share one barrier (`syncfs`) before they are renamed. Large files are written and read
back past the page cache (O_DIRECT) where the file system has it: faster where memory is dear, and a read-back then
comes from the disk. What is copied where is decided
elsewhere; the system calls that Python lacks are in `posix.py`. Over 500 lines, since reading, writing and their
failures of one file system are one subject.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from blocks import names
from blocks.errors import (
    Cancelled,
    ConfigError,
    Conflict,
    Corrupt,
    DiskFull,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceChanged,
    SourceVanished,
    UnknownError,
)  # fmt: skip
from blocks.storage import copier
from blocks.storage.base import Features, FileInfo, Reader, Session, Storage, Upload, aligned_buffer
from blocks.storage.copier import Copier
from blocks.storage.posix import (
    clear_direct,
    drop_cache,
    open_direct,
    rename_exclusive,
    sync_file,
    sync_filesystems,
    sync_folder,
)  # fmt: skip
from blocks.storage.trail import Trail

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

log = logging.getLogger("onblock.storage")

DIRECT_FROM = 8 << 20
"""Files of this many bytes and more bypass the page cache."""
SMALL = copier.LARGEST
"""Files below this size are copied by a program of their own where there are many, and written with one call."""
BLOCK = 4096
"""Alignment of O_DIRECT: the largest logical block of disks in use."""

ERRNO: dict[int, type[OnblockError]] = {
    errno.ENOSPC: DiskFull, errno.EDQUOT: DiskFull,
    errno.EACCES: PermissionRefused, errno.EPERM: PermissionRefused, errno.EROFS: PermissionRefused,
    errno.ENOENT: NotFound,
    errno.EEXIST: Conflict, errno.EISDIR: Conflict, errno.ENOTDIR: Conflict, errno.ENOTEMPTY: Conflict,
    errno.ENAMETOOLONG: ConfigError, errno.ELOOP: ConfigError, errno.EINVAL: ConfigError, errno.EILSEQ: ConfigError,
    errno.EFBIG: ConfigError, errno.EXDEV: ConfigError,
    errno.EUCLEAN: Corrupt,
    # a share or card that is away comes back
    errno.ENODEV: NetworkError, errno.ENXIO: NetworkError, errno.ENOTCONN: NetworkError, errno.ESTALE: NetworkError,
    errno.ETIMEDOUT: NetworkError, errno.EHOSTDOWN: NetworkError, errno.EHOSTUNREACH: NetworkError,
    errno.ENETDOWN: NetworkError, errno.ENETUNREACH: NetworkError, errno.ECONNRESET: NetworkError,
    errno.ECONNREFUSED: NetworkError, errno.ECONNABORTED: NetworkError, errno.EREMOTEIO: NetworkError,
}  # fmt: skip
"""The one table for local file systems; what is not here is UNKNOWN."""

_REMEDY = {
    errno.EXDEV: "the two lie on different file systems; make them two storages and a job",
    errno.ENAMETOOLONG: "shorten it with the job's `path` template",
    errno.ELOOP: "put the file or folder itself there, not a link",
    errno.EILSEQ: "this file system wants UTF-8 names; rename it with the job's `path` template",
    errno.EINVAL: "this file system does not take the name; rename it with the job's `path` template",
    errno.EFBIG: "this file system does not take files of that size; use exFAT, ext4, XFS or NTFS",
    errno.EROFS: "mount it writable (a card has a lock switch), then run the job again",
}


def os_failure(error: OSError, doing: str, path: str = "") -> OnblockError:
    """The class of the taxonomy for an OSError, by `ERRNO`; `error` is its cause."""
    code = error.errno or 0
    failure = ERRNO.get(code, UnknownError)(f"{doing}: {os.strerror(code)}", path=path, remedy=_REMEDY.get(code))
    failure.__cause__ = error
    return failure


class LocalStorage(Storage):
    """A folder on this machine: a disk, a card, or a mounted NFS or SMB share."""

    _block_type_name = "Local Storage"
    _block_type_slug = "local-storage"
    _description = "A folder on this machine: a disk, a card, or a mounted NFS or SMB share."

    root: str = Field(description="The folder, as an absolute path on the machine where the job runs; ~ is the home.")
    create_root: bool = Field(
        default=False,
        description="Make the folder if it is missing. Off, a share that is not mounted is an error, not a new folder.",
    )
    require_mount: bool = Field(
        default=False,
        description="Refuse to work unless the folder lies on a file system mounted at it or above it other than '/'.",
    )
    shared: bool = Field(
        default=False,
        description="The folder is the same one on every machine with a worker, as a share of a NAS is: then workers on "
        "several machines may move files of one job side by side.",
    )
    direct_io: bool = Field(
        default=True, description="Write and verify large files past the page cache where the file system allows it."
    )

    @field_validator("root")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("a folder name cannot hold a NUL byte")
        path = os.path.expanduser(value)
        if not os.path.isabs(path):
            raise ValueError(f"{value!r} is not an absolute path; write it from '/' or '~'")
        return os.path.normpath(path)

    def place(self) -> str:
        return f"local:{self.root}"

    def is_the_same_everywhere(self) -> bool:
        return self.shared

    def open(self) -> LocalSession:
        root = Path(self.root)
        try:
            if self.create_root:
                root.mkdir(parents=True, exist_ok=True)
            if not stat.S_ISDIR(os.stat(root).st_mode):
                raise Conflict("is a file, not a folder", path=self.root, remedy="give a folder as `root`")
        except FileNotFoundError as error:
            raise NotFound(
                "the folder does not exist", path=self.root,
                remedy="make or mount it, or correct `root`; a destination may say `create_root: true`",
            ) from error  # fmt: skip
        except OSError as error:
            raise os_failure(error, "cannot open the folder", self.root) from error
        if self.require_mount and not _on_mount(root):
            raise NotFound("nothing is mounted there", path=self.root, remedy="mount the share or card, then run again")
        return LocalSession(self.root, direct=self.direct_io)


def _on_mount(path: Path) -> bool:
    """Whether `path` lies on another file system than `/`."""
    path = path.resolve()
    return any(os.path.ismount(p) for p in (path, *path.parents) if str(p) != "/")


class LocalSession(Session):
    """Files below one folder. Costs nothing to open."""

    features = Features(
        atomic_rename=True, exclusive_commit=True, resume_read=True, resume_write=True, staged_digest=True,
        mtime_set=True, byte_names=True, bulk_push=True,
    )  # fmt: skip

    def __init__(self, root: str, *, direct: bool = True):
        self.root = root
        self.direct = direct
        self._prefix = root.rstrip("/") + "/"
        self._unsynced: set[str] = set()  # folders with new folders in them
        self._copier = Copier()
        self.buffer = aligned_buffer(SMALL)  # for small files read back; a session has one user at a time

    def at(self, path: str) -> str:
        """The absolute path of a legal relative one."""
        return self._prefix + names.check_path(path)

    def _inside(self, target: str) -> bool:
        """Whether a path without links lies below the root."""
        return target.startswith(os.path.realpath(self.root).rstrip("/") + "/")

    # -- reading ------------------------------------------------------------------------------------------------

    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        full = self.at(path) if path else self.root
        try:
            if path and not self._inside(os.path.realpath(full)):
                raise ConfigError(
                    "is or lies behind a link that leads out of the source folder", path=path,
                    remedy="give the folder itself as the storage's `root`",
                )  # fmt: skip
            listings = [(f"{path}/" if path else "", os.scandir(full))]
        except OSError as error:
            raise os_failure(error, "cannot list the folder", self._prefix + path) from error
        try:
            while listings:  # depth first, one open listing per level: memory does not grow with the folder
                base, listing = listings[-1]
                try:
                    entry = next(listing, None)
                except OSError as error:
                    yield _problem(base.rstrip("/"), os_failure(error, "the listing broke off", base))
                    entry = None
                if entry is None:
                    listings.pop()[1].close()
                    continue
                name = base + entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if enter(name):
                            listings.append((f"{name}/", os.scandir(entry.path)))
                    elif (found := self._entry(name, entry)) is not None:
                        yield found
                except FileNotFoundError:
                    continue  # gone since it was listed: the next scan knows better
                except OSError as error:
                    yield _problem(name, os_failure(error, "cannot read it", name))
        finally:
            for _, listing in listings:
                listing.close()

    def _entry(self, name: str, entry: os.DirEntry[str]) -> FileInfo | None:
        """One entry of a listing that is no folder."""
        if entry.name.startswith(".onblock-") and names.TEMPORARY.match(entry.name):
            return None
        st = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(st.st_mode):
            target = os.path.realpath(entry.path)
            if not self._inside(target):
                return _problem(name, ConfigError(
                    "is a link that leads out of the source folder", path=name,
                    remedy="put the file itself there, or add the link to `exclude`",
                ))  # fmt: skip
            try:
                st = os.stat(target)
            except FileNotFoundError:
                return _problem(name, NotFound("is a link to nothing", path=name, remedy="remove it or `exclude` it"))
            if stat.S_ISDIR(st.st_mode):
                return None  # a link to a folder inside the root: its files are found where they are
        if not stat.S_ISREG(st.st_mode):
            return _problem(name, ConfigError(
                f"is {_special(st.st_mode)}, not a file", path=name, remedy="add it to `exclude`",
            ))  # fmt: skip
        return FileInfo(name, st.st_size, st.st_mtime_ns)

    def stat(self, path: str) -> FileInfo:
        try:
            st = os.stat(self.at(path))
        except OSError as error:
            raise os_failure(error, "cannot look at it", path) from error
        if not stat.S_ISREG(st.st_mode):
            raise Conflict(f"is {_special(st.st_mode)}, not a file", path=path)
        return FileInfo(path, st.st_size, st.st_mtime_ns)

    def read(self, path: str, offset: int = 0) -> LocalReader:
        return self._reader(path, offset)

    def _reader(self, path: str, offset: int = 0, *, direct: bool = False) -> LocalReader:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        full = self.at(path)
        try:
            try:
                fd = open_direct(full, flags) if direct else os.open(full, flags)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                full = self._target_of_link(full, path)
                fd = os.open(full, flags)
        except FileNotFoundError as error:
            raise SourceVanished("is no longer there", path=path) from error
        except OSError as error:
            if error.errno == errno.ENXIO and os.path.lexists(
                full
            ):  # how a socket answers, and a device without driver
                raise ConfigError(f"is {_special(os.lstat(full).st_mode)}, not a file", path=path) from error
            raise os_failure(error, "cannot open it", path) from error
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            os.close(fd)
            raise ConfigError(f"is {_special(st.st_mode)}, not a file", path=path, remedy="add it to `exclude`")
        if offset:
            os.lseek(fd, offset, os.SEEK_SET)
        return LocalReader(path, full, fd, st.st_ino)

    def _target_of_link(self, full: str, path: str) -> str:
        target = os.path.realpath(full)
        if not self._inside(target):
            raise ConfigError("is a link that leads out of the folder", path=path, remedy="put the file itself there")
        return target

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        direct = self.direct and (fresh or self.stat(path).size >= DIRECT_FROM)
        with self._reader(path, direct=direct) as reader:
            if fresh:
                drop_cache(reader.fd)
            return _digest(reader, self.buffer, kind)

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
    ) -> LocalUpload:
        final, full = self.at(path), self._prefix + names.temporary(path, key)
        direct = self.direct and size >= DIRECT_FROM
        if resume:
            self._leave_alone_what_is_whole(path, full)
        upload = LocalUpload(self, path, final, full, size, mtime_ns, direct=direct, resume=resume)
        if size >= SMALL or resume:  # small new files are opened when they are written: `push` may do that elsewhere
            upload.open()
        return upload

    @staticmethod
    def _leave_alone_what_is_whole(path: str, full: str) -> None:
        """A commit may have been cut between linking and unlinking: what has a second name is whole, and never written to."""
        try:
            if os.lstat(full).st_nlink > 1:
                os.unlink(full)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise os_failure(error, "cannot write there", path) from error

    def open_staged(self, path: str, full: str, flags: int, *, direct: bool) -> int:
        """Open a temporary file, and make its folders."""
        flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            try:
                return open_direct(full, flags) if direct else os.open(full, flags, 0o666)
            except FileNotFoundError:
                self._make_folders(os.path.dirname(full))
                return open_direct(full, flags) if direct else os.open(full, flags, 0o666)
        except OSError as error:
            raise os_failure(error, "cannot write there", path) from error

    def push(
        self, files: Sequence[tuple[str, Upload]], moved: Callable[[int], object], stop: Event
    ) -> list[str | None]:
        uploads = [u for _, u in files if isinstance(u, LocalUpload)]
        with contextlib.suppress(OSError):  # whoever sends the files of that folder singly hears why
            for folder in {u.folder for u in uploads}:
                self._make_folders(folder)
        wanted = [(source, u.staged, u.size, u.mtime_ns) for (source, _), u in zip(files, uploads, strict=True)]
        found: list[str | None] = []
        try:
            for page in self._copier.copy(wanted):
                moved(sum(u.size for u in uploads[len(found) : len(found) + len(page)]))
                found += page
                if stop.is_set():
                    self._copier.close()
                    raise Cancelled("stopped while it was copied")
        except EOFError as error:
            log.warning("%s: what it had to copy is sent singly", error)
            found += [None] * (len(files) - len(found))
        for upload, sha256 in zip(uploads, found, strict=True):
            upload.filled(sha256)
        return found

    def discard(self, path: str, key: str, journal: str = "") -> None:
        self.at(path)
        try:
            os.unlink(self._prefix + names.temporary(path, key))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise os_failure(error, "cannot remove the temporary file", path) from error

    def rekey(self, path: str, key: str, to: str) -> None:
        self.at(path)
        try:
            os.rename(self._prefix + names.temporary(path, key), self._prefix + names.temporary(path, to))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise os_failure(error, "cannot take over the temporary file", path) from error

    def local_path(self, path: str) -> str:
        return self.at(path)

    def commit_all(self, uploads: Sequence[Upload]) -> list[str | OnblockError]:
        if len(uploads) < 8:
            return super().commit_all(uploads)
        mine = [u for u in uploads if isinstance(u, LocalUpload)]
        done: list[str | OnblockError] = []
        try:
            for upload in mine:
                upload.seal()
            self._unsynced.clear()
            sync_filesystems({u.folder for u in mine})
            for upload in mine:
                upload.mark_durable()
            renamed = self._rename_all(mine)
        except OnblockError as error:
            return [error for _ in uploads]
        except OSError as error:
            return [os_failure(error, "cannot make the files durable", u.path) for u in uploads]
        folders: set[str] = set()
        for upload, moved in zip(mine, renamed, strict=True):
            try:
                done.append(upload.path if moved else upload.rename(None, replace=False))
                folders.add(upload.folder)
            except OnblockError as error:
                done.append(error)
        try:
            if len(folders) > 4:
                sync_filesystems(folders)
            else:
                for folder in folders:
                    sync_folder(folder)
        except OSError as error:
            failure = os_failure(error, "cannot make the folder durable", self.root)
            done = [failure if isinstance(d, str) else d for d in done]
        return done

    def _rename_all(self, uploads: list[LocalUpload]) -> list[bool]:
        """Which of the staged files have their final names now; the others are renamed one by one, which tells why."""
        done: list[bool] = []
        try:
            for page in self._copier.rename([(u.staged, u.final) for u in uploads]):
                done += page
        except EOFError as error:
            raise UnknownError("the program that gives files their final names died", path=self.root) from error
        return done

    def _make_folders(self, folder: str) -> None:
        """mkdir -p. The new folders become durable with the first file that is committed in them."""
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
            if len(folder) < len(self._prefix) - 1:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.root)  # the root itself is gone
        for new in reversed(missing):
            try:
                os.mkdir(new)
            except FileExistsError:
                if not os.path.isdir(new):
                    raise
            self._unsynced.add(os.path.dirname(new))

    def sync_new_folders(self) -> None:
        """Folders made since are on the disk."""
        for folder in tuple(self._unsynced):
            sync_folder(folder)
            self._unsynced.discard(folder)

    def delete(self, path: str) -> None:
        full = self.at(path)
        try:
            os.unlink(full)
            sync_folder(os.path.dirname(full))
        except OSError as error:
            raise os_failure(error, "cannot delete it", path) from error

    def move(self, path: str, to: str) -> None:
        full, target = self.at(path), self.at(to)
        try:
            self._make_folders(os.path.dirname(target))
            self.sync_new_folders()
            rename_exclusive(full, target)
            sync_folder(os.path.dirname(target))
            sync_folder(os.path.dirname(full))
        except OSError as error:
            raise os_failure(error, "cannot move it", path) from error

    def close(self) -> None:
        self._copier.close()

    def free_bytes(self) -> int:
        try:
            st = os.statvfs(self.root)
        except OSError as error:
            raise os_failure(error, "cannot ask for the free space", self.root) from error
        return st.f_bavail * st.f_frsize


class LocalReader(Reader):
    """One open file."""

    def __init__(self, path: str, full: str, fd: int, inode: int = 0):
        self.path, self.full, self.fd, self.inode = path, full, fd, inode

    def readinto(self, buffer: Buffer) -> int:
        view, got = memoryview(buffer), 0
        try:
            while got < len(view):
                rest = view[got:] if got else view
                n = os.readv(self.fd, [rest])
                got += n
                if n < len(rest):
                    break  # the end, as files on disks have it; a short read mid-file is caught by the size
        except OSError as error:
            raise os_failure(error, "cannot read it", self.path) from error
        return got

    def info(self) -> FileInfo:
        try:
            st = os.lstat(self.full)  # by name: it may have been renamed away, or another file may have its name
        except FileNotFoundError as error:
            raise SourceVanished("was removed or renamed while it was read", path=self.path) from error
        except OSError as error:
            raise os_failure(error, "cannot look at it", self.path) from error
        if st.st_ino != self.inode:
            raise SourceChanged("was replaced while it was read", path=self.path)
        return FileInfo(self.path, st.st_size, st.st_mtime_ns)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


TRAILED = 8 << 20
"""Bytes from which a file is read back while it is written."""


class LocalUpload(Upload):
    """One file under its temporary name."""

    def __init__(
        self, session: LocalSession, path: str, final: str, staged: str, size: int, mtime_ns: int | None, *,
        direct: bool, resume: bool,
    ):  # fmt: skip
        self.path, self.final, self.staged, self.size, self.mtime_ns = path, final, staged, size, mtime_ns
        self._session, self._fd = session, -1
        self._direct, self._resume = direct, resume
        self._durable = self._sealed = False
        self._sha256: str | None = None
        self._trail: Trail | None = None
        self._written = 0

    @property
    def folder(self) -> str:
        """Where the file is staged and gets its final name."""
        return self.final.rpartition("/")[0] or "/"

    def open(self) -> None:
        """Begin, or go on with what is there."""
        flags = os.O_CREAT | (0 if self._resume else os.O_TRUNC)
        self._fd = fd = self._session.open_staged(self.path, self.staged, flags, direct=self._direct)
        self._direct = self._direct and bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
        if self._resume:
            self.offset = os.lseek(fd, 0, os.SEEK_END)
            self._go_on_at(self.offset)

    def filled(self, sha256: str | None) -> None:
        """The file was copied and read back elsewhere, with this SHA-256; or it was not."""
        self._sha256, self._sealed = sha256, sha256 is not None

    def write(self, chunk: memoryview) -> None:
        if self._fd < 0:
            self.open()
        view, fd = chunk, self._fd
        try:
            while len(view):
                try:
                    written = os.write(fd, view)
                except OSError as error:
                    if error.errno != errno.EINVAL or not clear_direct(fd):
                        raise
                    continue  # the tail of a file, or a buffer that is not aligned: through the cache then
                view = view[written:]
                self._follow(written)
        except OSError as error:
            raise os_failure(error, "cannot write it", self.path) from error

    def _follow(self, written: int) -> None:
        """A large file that passes the cache by is read back while it is written."""
        if self.size < TRAILED or not self._direct or self._resume:
            return
        if not self._written:
            with contextlib.suppress(
                OSError
            ):  # may be written past the cache and not read so: then it is read at the end
                self._trail = Trail(self.staged)
        self._written += written
        if self._trail is not None and self._written % BLOCK == 0:  # the tail may go through the cache
            self._trail.reached(self._written)

    def _end_trail(self) -> None:
        trail, self._trail = self._trail, None
        if trail is not None:
            trail.drop()

    def digest(self, *, fresh: bool = False) -> str | None:
        if self._sha256 is not None and not fresh:
            return self._sha256
        if self._fd < 0:
            self._resume = self._sealed
            self.open()
        trail, self._trail = self._trail, None
        if trail is not None and (found := trail.finish()) is not None and not fresh:
            digest, at = found
            self._read_back(digest.update, at)
            return digest.hexdigest()
        if not fresh and not self._direct:  # a small file is read back with one call
            buffer = self._session.buffer
            try:
                n = os.preadv(self._fd, [buffer], 0)
            except OSError as error:
                raise os_failure(error, "cannot read it back", self.path) from error
            if n < len(buffer):
                return hashlib.sha256(memoryview(buffer)[:n]).hexdigest()
        return super().digest(fresh=fresh)

    def replay(self, update: Callable[[memoryview], object], *, fresh: bool = False) -> bool:
        self._end_trail()
        self._read_back(update, 0, fresh=fresh)
        return True

    def _read_back(self, update: Callable[[memoryview], object], start: int, *, fresh: bool = False) -> None:
        try:
            if fresh:
                os.fdatasync(self._fd)
                drop_cache(self._fd)
            if self._direct:  # the tail went through the cache; what is read back should not
                os.fdatasync(self._fd)
                fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) | os.O_DIRECT)
            os.lseek(self._fd, start, os.SEEK_SET)
            _feed(LocalReader(self.path, self.staged, self._fd), self._session.buffer, update)
            self._go_on_at(os.lseek(self._fd, 0, os.SEEK_END))
        except OSError as error:
            raise os_failure(error, "cannot read it back", self.path) from error

    def rewind(self, offset: int) -> int:
        self._end_trail()
        self._resume = True  # what lies there is not all ours
        try:
            os.ftruncate(self._fd, offset)
            os.lseek(self._fd, offset, os.SEEK_SET)
            self._go_on_at(offset)
        except OSError as error:
            raise os_failure(error, "cannot shorten the part", self.path) from error
        self.offset = offset
        return offset

    def _go_on_at(self, offset: int) -> None:
        if offset % BLOCK:
            clear_direct(self._fd)

    def seal(self) -> None:
        self._end_trail()
        if self._fd < 0 and not self._sealed:
            self.open()  # an empty file, never written
        self._sealed = True
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                if self.mtime_ns is not None:
                    os.utime(fd, ns=(self.mtime_ns, self.mtime_ns))
            except OSError as error:
                raise os_failure(error, "cannot set its time", self.path) from error
            finally:
                os.close(fd)

    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        try:
            self.seal()
            if not self._durable:
                sync_file(self.staged)
                self._durable = True
            self._session.sync_new_folders()
            name = self.rename(path, replace=replace)
            sync_folder(self.folder)
        except OSError as error:
            raise os_failure(error, "cannot make the file durable", self.path) from error
        return name

    def rename(self, path: str | None, *, replace: bool) -> str:
        """The staged name becomes the final one; not yet durable."""
        name, final = (self.path, self.final) if path is None else (path, self._session.at(path))
        try:
            if replace:
                os.rename(self.staged, final)
            else:
                rename_exclusive(self.staged, final)
        except FileExistsError as error:
            raise Conflict("something is already at the final name", path=name) from error
        except OSError as error:
            raise os_failure(error, "cannot give it its final name", name) from error
        self.path, self.final = name, final
        return name

    def mark_durable(self) -> None:
        """A barrier over the whole file system has covered this file."""
        self._durable = True

    def keep(self) -> None:
        try:
            self.mtime_ns = None  # the time is set when the file is whole
            self.seal()
            sync_file(self.staged)
        except OSError as error:
            raise os_failure(error, "cannot keep the part", self.path) from error

    def abort(self) -> None:
        self.mtime_ns, self._sealed = None, True
        try:
            self.seal()
            os.unlink(self.staged)
        except FileNotFoundError:
            return
        except OSError as error:
            raise os_failure(error, "cannot remove the temporary file", self.path) from error


def _digest(reader: LocalReader, small: mmap.mmap, kind: str = "sha256") -> str:
    """Hash from here to the end."""
    digest = hashlib.new(kind)
    _feed(reader, small, digest.update)
    return digest.hexdigest()


def _feed(reader: LocalReader, small: mmap.mmap, update: Callable[[memoryview], object]) -> None:
    """Give `update` all from here to the end. Of a large file, the next piece is read while one is worked on."""
    n = reader.readinto(small)
    update(memoryview(small)[:n])
    if n < len(small):
        return
    buffers = [aligned_buffer(4 << 20), aligned_buffer(4 << 20)]
    with ThreadPoolExecutor(1) as other:
        working = None
        for turn in range(1 << 62):
            view = memoryview(buffers[turn % 2])
            n = reader.readinto(view)
            if working is not None:
                working.result()
            if not n:
                break
            working = other.submit(update, view[:n])


def _problem(path: str, error: OnblockError) -> FileInfo:
    return FileInfo(path, 0, 0, "", error)


def _special(mode: int) -> str:
    for test, what in (
        (stat.S_ISDIR, "a folder"), (stat.S_ISSOCK, "a socket"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    ):  # fmt: skip
        if test(mode):
            return what
    return "something special"
