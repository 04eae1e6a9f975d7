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
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, NamedTuple, Self

from prefect.blocks.core import Block

from blocks.errors import OnblockError, SourceChanged

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
    proven_reads: bool = False  # a reader holds what came against a checksum the far side has; see Reader.before
    resume_write: bool = False  # upload(resume=True) finds what an earlier upload kept
    resume_step: int = 1  # ... down to a multiple of so many bytes: what lies beyond is sent again
    staged_digest: bool = False  # Upload.digest() can read back before commit()
    server_checksums: tuple[str, ...] = ()  # kinds that checksum() answers without moving the bytes
    mtime_set: bool = False  # the mtime given to upload() is kept
    byte_names: bool = False  # names that are no UTF-8 can be stored
    parallel: int = 1  # sessions that pay for one shipment of small files; 1 where Python is busy, not the far side
    bulk_push: bool = False  # push() fills many uploads at once
    bulk_pull: bool = False  # pull() fetches many files at once, and read() of a small one is dear
    bulk_below: int = 256 << 10  # bytes; files of this size and more are not for push() and pull()
    bulk_limits: bool = False  # push() and pull() keep to Session.limits
    writable: bool = True  # upload() is possible; a device is only read and cleaned up
    renames: bool = True  # move() is possible


class Reader(ABC):
    """One file being read, front to back."""

    ahead: bool = True
    """Whether it may be read, by another thread, while what was read before is still being written."""

    @abstractmethod
    def readinto(self, buffer: Buffer) -> int:
        """Fill `buffer` as far as the file goes; the number of bytes, fewer than asked only at the end."""

    def before(self, view: memoryview) -> None:
        """The next of the bytes that lie before the offset it was opened at, as they came before. For features.proven_reads:
        given all of them, in order and before it is read, it proves the whole file; given none, nothing. It sends
        nothing for itself until it is read, so that they may take their time."""
        return

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
    journal: str = ""
    """What a later upload needs beside the key to go on from here, also after a crash; known once it has begun."""

    @abstractmethod
    def write(self, chunk: memoryview) -> None:
        """Append all of `chunk`."""

    def digest(self, *, fresh: bool = False) -> str | None:
        """SHA-256 (hex) of what the destination holds so far, read back; None if it can't tell before commit.

        `fresh` asks for the bytes on the medium, not those in a cache.
        """
        digest = hashlib.sha256()
        return digest.hexdigest() if self.replay(digest.update, fresh=fresh) else None

    def matches(self, sha256: str, *, fresh: bool = False) -> bool | None:
        """Whether the destination holds what was written, of which the caller took this SHA-256; None as `digest`."""
        found = self.digest(fresh=fresh)
        return None if found is None else found == sha256

    def replay(self, update: Callable[[memoryview], object], *, fresh: bool = False) -> bool:
        """Give `update` all bytes that the destination holds so far; False, and no call, if it can't tell before commit."""
        return False

    def rewind(self, offset: int) -> int:
        """Forget what lies beyond `offset` (at most the present one); where writing goes on, `offset` or less."""
        raise NotImplementedError  # asked for only where features.resume_write

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
    limits: Callable[[], tuple[int | None, int | None]] | None = None
    """Up and down at this moment, in bytes a second, None for unlimited, for what push() and pull() move."""

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
        self,
        path: str,
        size: int,
        *,
        key: str = "",
        resume: bool = False,
        journal: str = "",
        mtime_ns: int | None = None,
    ) -> Upload:
        """Begin to write a file of `size` bytes (a hint) and make its folders. `key` names the attempt at a file version:
        with `resume`, a later upload finds what an earlier one of that key (and `journal`) left, and none finds another's."""

    def discard(self, path: str, key: str, journal: str = "") -> None:
        """Remove what an upload of this path, key and journal left behind, if anything."""
        self.upload(path, 0, key=key, resume=True, journal=journal).abort()

    def rekey(self, path: str, key: str, to: str) -> None:
        """Give what an upload of `key` left behind to a later one of key `to`, in one step; nothing if there is nothing.
        Whoever still writes under the old key can then no longer commit it."""

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

    def local_path(self, path: str) -> str | None:
        """Where the file lies on this machine, for programs that read it by themselves; None if it does not."""
        return None

    def push(
        self, files: Sequence[tuple[str, Upload]], moved: Callable[[int], object], stop: Event
    ) -> list[str | None]:
        """Fill many new uploads at once, each from a local file, to be proven and committed as if they were written.

        Of each the SHA-256 as it was read; "" if nobody took it; None if it did not go as usual, or the file has another
        size or time than its upload: abort that one and send the file by itself, which tells why. `moved(bytes)` tells progress. Raises Cancelled within 2 s of `stop`.
        """
        raise NotImplementedError  # asked for only where features.bulk_push

    def pull(
        self, files: Sequence[tuple[str, str]], moved: Callable[[int], object], stop: Event
    ) -> list[OnblockError | None]:
        """Fetch many files at once, (path, local file to make) each; the failure of each, also of one that changed
        meanwhile. What is made has the source's time. Otherwise as `push`."""
        raise NotImplementedError  # asked for only where features.bulk_pull

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file. Raises NotFound."""

    def delete_seen(self, seen: FileInfo) -> None:
        """Remove a file if it is still the version that was seen. Raises NotFound, SourceChanged.

        Only some storages can make one step of the look and the removal; the others look just before.
        """
        if self.stat(seen.path).version != seen.version:
            raise SourceChanged("has changed since it was looked at", path=seen.path)
        self.delete(seen.path)

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

    def is_the_same_everywhere(self) -> bool:
        """Whether this leads to the same place from every machine."""
        return True


def aligned_buffer(size: int) -> mmap.mmap:
    """A page-aligned buffer of `size` bytes, as unbuffered disk access wants it."""
    return mmap.mmap(-1, size)
