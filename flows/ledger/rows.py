"""What goes into the ledger and comes out of it, as values. How they are read and written is in `store.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from blocks import names
from blocks.errors import Kind, OnblockError
from blocks.storage.base import FileInfo
from flows.ledger.models import File
from flows.ledger.states import State

MADE = "!made"
"""The etag of rows that stand for what steps made; their path is one in the spool."""


LONGEST_WAIT_MS = 3_600_000
"""No failure puts a row off for longer: a time beyond it was written while the clock was wrong, and is none."""


class Row(NamedTuple):
    """What a transfer needs to know of a row."""

    id: int
    route_id: int
    path: str
    size: int
    mtime_ns: int
    etag: str
    state: State
    kind: Kind | None
    attempt: int
    tries: int
    next_attempt_at: int | None
    dest_path: str | None
    queued_at: int
    message: str | None
    journal: str | None
    priority: int
    findings: str | None

    def waits(self, now: int) -> bool:
        """Whether its next attempt is not due yet. `now` in ms since the epoch."""
        return self.next_attempt_at is not None and now < self.next_attempt_at <= now + LONGEST_WAIT_MS


COLUMNS = [getattr(File, name) for name in Row._fields]


def row_of(values: Sequence[Any]) -> Row:
    """A row from the values of COLUMNS."""
    row = Row(*values)
    return row._replace(
        path=names.from_text(row.path), state=State(row.state), kind=Kind(row.kind) if row.kind else None,
        dest_path=None if row.dest_path is None else names.from_text(row.dest_path),
    )  # fmt: skip


def message_of(failure: OnblockError | None) -> str | None:
    """What a failure says, as any database takes it: it may quote a name that is no UTF-8."""
    return None if failure is None else str(failure).encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


class Entered(NamedTuple):
    """The row of a version that was entered."""

    id: int
    state: str
    attempt: int
    dest_path: str | None = None


class NewFile(NamedTuple):
    """A file version to enter into the ledger."""

    route_id: int
    info: FileInfo
    dest_path: str | None
    manifest_id: int | None
    state: State = State.QUEUED
    failure: OnblockError | None = None
    stage: str | None = None
    findings: str | None = None
    said: str | None = None  # in place of what a failure says


class Judged(NamedTuple):
    """What the gate found now of a row that was there: where it belongs, why, and the findings as JSON."""

    row: Row
    state: State
    failure: OnblockError | None
    stage: str | None
    findings: str | None


class Claim(NamedTuple):
    """A row that is ours for now. `attempt` is the fencing token."""

    id: int
    attempt: int
    tries: int
    queued_at: int
    journal: str | None = None  # what an earlier attempt left for a resume


class Outcome(NamedTuple):
    """What became of a claimed row."""

    id: int
    attempt: int
    state: State
    dest_path: str | None = None
    sha256: str | None = None
    verified_by: str | None = None
    bytes_done: int = 0
    failure: OnblockError | None = None
    stage: str | None = None
    tries: int = 0
    next_attempt_at: int | None = None
    journal: str | None = None
    findings: str | None = None  # JSON: what the gate found since; None leaves what it found before
