"""Every way a transfer can fail, one class each. Nothing else leaves a storage.

    OnblockError
    ├── NetworkError        NETWORK          the other side does not answer, or the device is away
    ├── UnknownError        UNKNOWN          not understood: the cause is chained, never lost
    ├── HashMismatch        HASH_MISMATCH    the bytes that arrived are not the bytes that were read
    ├── SourceChanged       SOURCE_CHANGED   the file changed while it was read
    ├── SourceVanished      SOURCE_VANISHED  the file is no longer at the source
    ├── AuthError           AUTH             the login was refused
    ├── PermissionRefused   PERMISSION       logged in, but not allowed
    ├── NotFound            NOT_FOUND        a file or folder that should be there is not
    ├── Conflict            CONFLICT         something else is at the final name
    ├── DiskFull            DISK_FULL        no room, or quota used up
    ├── Corrupt             CORRUPT          the input cannot be read, however often
    ├── ToolMissing         TOOL_MISSING     a program that is needed is not installed
    ├── ConfigError         CONFIG           the job, a block or a name is not acceptable
    ├── Cancelled           CANCELLED        somebody asked for it: not a failure
    └── Paused              PAUSED           likewise

Each says what happened, to what, and what to do. How an errno, exit code or status becomes one of these is
decided in one table per storage, at the edge. What is retried, and when, is decided in `flows/transfer/retry.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Kind(StrEnum):
    """The closed list of failure kinds, as they stand in the ledger."""

    NETWORK = "NETWORK"
    UNKNOWN = "UNKNOWN"
    HASH_MISMATCH = "HASH_MISMATCH"
    SOURCE_CHANGED = "SOURCE_CHANGED"
    SOURCE_VANISHED = "SOURCE_VANISHED"
    AUTH = "AUTH"
    PERMISSION = "PERMISSION"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    DISK_FULL = "DISK_FULL"
    CORRUPT = "CORRUPT"
    TOOL_MISSING = "TOOL_MISSING"
    CONFIG = "CONFIG"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"


class OnblockError(Exception):
    """Base of all failures: `what` happened, to which `path`, and the `remedy`."""

    kind: ClassVar[Kind] = Kind.UNKNOWN
    remedy: ClassVar[str] = "see the log for the cause; `onblock transfers retry` sends the file again"

    def __init__(self, what: str, *, path: str = "", remedy: str | None = None):
        self.what, self.path = what, path
        self.todo = self.remedy if remedy is None else remedy
        super().__init__(what)

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{where}{self.what}" + (f" ({self.todo})" if self.todo else "")


class NetworkError(OnblockError):
    kind = Kind.NETWORK
    remedy = "tried again by itself; check that the other side is on and reachable"


class UnknownError(OnblockError):
    kind = Kind.UNKNOWN


class HashMismatch(OnblockError):
    kind = Kind.HASH_MISMATCH
    remedy = "sent once more by itself; if it comes again, test the memory, cable and disks on the way"


class SourceChanged(OnblockError):
    kind = Kind.SOURCE_CHANGED
    remedy = "taken again by the next run, when it has settled"


class SourceVanished(OnblockError):
    kind = Kind.SOURCE_VANISHED
    remedy = "bring the device back; a later run takes the file if it is there again"


class AuthError(OnblockError):
    kind = Kind.AUTH
    remedy = "check user name and secret in the storage's block"


class PermissionRefused(OnblockError):
    kind = Kind.PERMISSION
    remedy = "give the account that runs onblock the right to it, then run the job again"


class NotFound(OnblockError):
    kind = Kind.NOT_FOUND
    remedy = "check the path, and that the disk, card or share is mounted"


class Conflict(OnblockError):
    kind = Kind.CONFLICT
    remedy = "move what is there away, or choose another `on_conflict` or `path` in the job"


class DiskFull(OnblockError):
    kind = Kind.DISK_FULL
    remedy = "make room at the destination, then run the job again"


class Corrupt(OnblockError):
    kind = Kind.CORRUPT
    remedy = "the input cannot be read; try another reader, then `onblock transfers retry`"


class ToolMissing(OnblockError):
    kind = Kind.TOOL_MISSING
    remedy = "install the program, then run the job again"


class ConfigError(OnblockError):
    kind = Kind.CONFIG
    remedy = ""


class Cancelled(OnblockError):
    kind = Kind.CANCELLED
    remedy = ""


class Paused(OnblockError):
    kind = Kind.PAUSED
    remedy = ""


BY_KIND: dict[Kind, type[OnblockError]] = {
    c.kind: c
    for c in (
        NetworkError, UnknownError, HashMismatch, SourceChanged, SourceVanished, AuthError, PermissionRefused, NotFound,
        Conflict, DiskFull, Corrupt, ToolMissing, ConfigError, Cancelled, Paused,
    )
}  # fmt: skip


def as_onblock(error: Exception, path: str = "") -> OnblockError:
    """`error` itself if it is of the taxonomy, else an UnknownError that carries it as its cause."""
    if isinstance(error, OnblockError):
        if path and not error.path:
            error.path = path
        return error
    unknown = UnknownError(f"{type(error).__name__}: {error}", path=path)
    unknown.__cause__ = error
    return unknown
