"""The contract of a storage: everything a transfer may ask of a place with files.

`Storage` is configuration (a Prefect Block); `Session` is a live connection; `Reader` and `Upload` are one file on
its way. How each protocol does it is in the file of its name; what is moved, and when, is in `flows/transfer`.
Paths are relative POSIX paths below the storage's root, as `blocks.names.check_path` allows them.
Every method raises only classes of `blocks.errors`. Every storage passes `tests/contract`.
"""

from __future__ import annotations

import hashlib
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Self

from prefect.blocks.core import Block

from blocks.errors import NetworkError, OnblockError

if TYPE_CHECKING:
    Buffer = memoryview | mmap.mmap | bytearray


class FileInfo(NamedTuple):
    """One file as a listing shows it: `size` in bytes, `mtime_ns` since the epoch, `etag` where the far side has one.

    `problem` is set, and the rest may be empty, where there is something that cannot be taken: a folder that cannot
    be read, a socket, a link that leads out of the root.
    """

    path: str
    size: int
    mtime_ns: int
    etag: str = ""
    problem: OnblockError | None = None

    @property
    def version(self) -> tuple[int, int, str]:
        """The fingerprint: two listings with the same path and version are the same file version."""
        return (self.size, self.mtime_ns, self.etag)


@dataclass(frozen=True)
class Features:
    """What a storage can do beyond the contract. Ask these, never the class."""

    atomic_rename: bool = False  # the final name shows the whole file or nothing
    exclusive_commit: bool = False  # commit(replace=False) never overwrites, even in a race
    resume_read: bool = False  # read(offset=n) costs nothing for the first n bytes
    resume_write: bool = False  # upload(resume=True) finds what an earlier upload kept
    staged_digest: bool = False  # Upload.digest() can read back before commit()
    server_checksums: tuple[str, ...] = ()  # kinds that checksum() answers without moving the bytes
    mtime_set: bool = False  # the mtime given to upload() is kept
    byte_names: bool = False  # names that are no UTF-8 can be stored
    latency: bool = True  # a small file takes longer to ask for than to copy: several at a time pay
    bulk_push: bool = False  # takes a whole shipment at once


class Reader(ABC):
    """One file being read, front to back."""

    @abstractmethod
    def readinto(self, buffer: Buffer) -> int:
        """Fill `buffer` as far as the file goes; the number of bytes, fewer than asked only at the end."""

    @abstractmethod
    def info(self) -> FileInfo:
        """The file as it is now, to tell whether it changed while it was read. SourceVanished if it is gone."""

    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Upload(ABC):
    """One file on its way in: written under a name nobody reads, then committed, kept for a resume, or aborted.

    Exactly one of `commit`, `keep`, `abort` ends it. `offset` is where writing begins: above 0 for a resumed upload.
    """

    path: str
    offset: int = 0

    @abstractmethod
    def write(self, chunk: memoryview) -> None:
        """Append all of `chunk`."""

    def digest(self, *, fresh: bool = False) -> str | None:
        """SHA-256 (hex) of what the destination holds so far, read back; None if it can't tell before commit.

        `fresh` asks for the bytes on the medium, not those in a cache.
        """
        return None

    def seal(self) -> None:
        """No more is written or read back, and the commit may come later: let go of descriptors."""
        return

    @abstractmethod
    def commit(self, path: str | None = None, *, replace: bool = False) -> str:
        """Make the file durable and give it its final name (`path`, or the one it was begun with); returns that name.

        Raises Conflict, with the upload still open, if something is there and `replace` is False.
        """

    @abstractmethod
    def keep(self) -> None:
        """Stop here; a later upload of the same path and key with resume=True goes on from here."""

    @abstractmethod
    def abort(self) -> None:
        """Stop here and leave nothing behind."""


class Session(ABC):
    """A live connection. A context manager; not shared between threads."""

    features: Features

    @abstractmethod
    def scan(self, path: str = "", enter: Callable[[str], bool] = lambda folder: True) -> Iterator[FileInfo]:
        """Every file below `path`, streaming, in no order, never our own temporary files.

        `enter(folder)` says whether to look into a folder. Raises NotFound if `path` itself is not there.
        """

    @abstractmethod
    def stat(self, path: str) -> FileInfo:
        """One file. Raises NotFound."""

    @abstractmethod
    def read(self, path: str, offset: int = 0) -> Reader:
        """Open a file for reading from `offset`. Raises SourceVanished if it is not there."""

    @abstractmethod
    def upload(
        self, path: str, size: int, *, key: str = "", resume: bool = False, mtime_ns: int | None = None
    ) -> Upload:
        """Begin to write a file of `size` bytes (a hint) and make its folders. `key` names the file version, so that
        a later upload finds what an earlier one kept, and none finds what belongs to another version."""

    def discard(self, path: str, key: str) -> None:
        """Remove what an upload of this path and key left behind, if anything."""
        self.upload(path, 0, key=key, resume=True).abort()

    def commit_all(self, uploads: Sequence[Upload]) -> list[str | OnblockError]:
        """Commit many small files, with one barrier for all where that is possible; the final name or failure of each."""
        done: list[str | OnblockError] = []
        for upload in uploads:
            try:
                done.append(upload.commit())
            except OnblockError as error:
                done.append(error)
        return done

    def checksum(self, path: str, kind: str = "sha256", *, fresh: bool = False) -> str:
        """Digest (hex) of a file at the far side: computed there if `features` say so, else by reading it back."""
        digest = hashlib.new(kind)
        with self.read(path) as reader:
            buffer = aligned_buffer(1 << 20)
            while n := reader.readinto(buffer):
                digest.update(memoryview(buffer)[:n])
        return digest.hexdigest()

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file. Raises NotFound."""

    @abstractmethod
    def move(self, path: str, to: str) -> None:
        """Rename a file inside this storage, making folders. Raises Conflict if `to` is there."""

    def free_bytes(self) -> int | None:
        """Room left for this account, in bytes; None where nobody can say."""
        return None

    def close(self) -> None:
        """End the connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Storage(Block, ABC):
    """A place with files: its configuration and secrets, no connection. Fields are the form in the Prefect UI."""

    _logo_url = None
    _documentation_url = None

    @abstractmethod
    def open(self) -> Session:
        """Connect. Raises NetworkError, AuthError, NotFound, ConfigError ..."""

    @abstractmethod
    def place(self) -> str:
        """Where this is, in one line without secrets: for people, and as the destination's identity in the ledger."""


class SessionPool:
    """Idle sessions of storages, so that a shipment need not log in again. Thread-safe; one borrower per session."""

    def __init__(self) -> None:
        self._idle: dict[int, tuple[Storage, list[Session]]] = {}  # holds the storage: its id is its own while it lives
        self._lock = Lock()

    @contextmanager
    def session(self, storage: Storage) -> Iterator[Session]:
        """A session of `storage`, put back afterwards unless the network failed under it."""
        with self._lock:
            _, idle = self._idle.setdefault(id(storage), (storage, []))
            session = idle.pop() if idle else None
        session = session or storage.open()
        try:
            yield session
        except NetworkError:
            session.close()
            raise
        except BaseException:
            self._put(storage, session)
            raise
        else:
            self._put(storage, session)

    def _put(self, storage: Storage, session: Session) -> None:
        with self._lock:
            self._idle.setdefault(id(storage), (storage, []))[1].append(session)

    def close(self) -> None:
        """End all idle sessions."""
        with self._lock:
            sessions = [s for _, idle in self._idle.values() for s in idle]
            self._idle.clear()
        for session in sessions:
            session.close()


def aligned_buffer(size: int) -> mmap.mmap:
    """A page-aligned buffer of `size` bytes, as unbuffered disk access wants it."""
    return mmap.mmap(-1, size)
