"""What Linux offers beyond Python's `os`: renames that never overwrite, barriers, access past the page cache.

Each falls back where a file system or kernel does not have it. Used by `local.py`; raises OSError.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def rename_exclusive(old: str, new: str) -> None:
    """Rename, never over something: FileExistsError then. Falls back to link + unlink, then to look-and-rename."""
    if hasattr(_libc, "renameat2"):
        if not _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE):
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(code, os.strerror(code), old, None, new)
    rename_by_link(old, new)


def rename_by_link(old: str, new: str) -> None:
    """The same by a hard link, which never overwrites; where there are no links, by a look first (a small window)."""
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL):
            raise
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
        os.rename(old, new)
    else:
        os.unlink(old)


def sync_filesystems(folders: Iterable[str]) -> None:
    """All that was written to the file systems these folders are on is on their disks."""
    for folder in {os.stat(folder).st_dev: folder for folder in folders}.values():
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not hasattr(_libc, "syncfs"):
                os.sync()
            elif _libc.syncfs(fd):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), folder)
        finally:
            os.close(fd)


def sync_file(path: str) -> None:
    """The bytes and times of a file are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: str) -> None:
    """The names in a folder are on the disk. File systems that cannot sync a folder (some SMB) need none."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def open_direct(path: str, flags: int) -> int:
    """Open past the page cache; in the ordinary way where the file system has no such access."""
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)  # tmpfs and some network file systems have no O_DIRECT


def clear_direct(fd: int) -> bool:
    """Back to ordinary access; whether it was direct before."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if not flags & os.O_DIRECT:
        return False
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return True


def drop_cache(fd: int) -> None:
    """Forget what the page cache holds of a file, so that the next read comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
