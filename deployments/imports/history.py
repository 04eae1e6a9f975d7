"""What FileFlow says it has delivered: its SQLite file (`data/tracking.db`, table `transfers`), and what to make of it.

FileFlow knows a file by name and size, and calls it a success even where its own verification failed; so nothing here
is a proof. A file is entered into the ledger as DUPLICATE, without hash and without a place: it is not sent again, and
neither cleanup nor retention nor scrub ever counts on it. Not entered is what FileFlow could not confirm itself, and what
has changed since: a run sends these, and adopts what is at the destination with the same content.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from blocks.errors import ConfigError
from blocks.storage.base import FileInfo
from flows.ledger import Ledger, State
from flows.ledger.store import NewFile
from flows.transfer.job import TransferJob
from flows.transfer.scan import Scanned, scan

SENT = ("success", "uploaded", "unverified")
"""States of FileFlow in which it does not send a file again."""
PATIENCE_S = 5.0
"""For FileFlow to let go of its database."""
_COLUMNS = {
    "job_id", "file_name", "file_size", "destination_type", "destination_path", "execution_time", "transfer_status",
    "verification_status",
}  # fmt: skip
_DELIVERED = f"""
    job_id = ? AND transfer_status IN ({", ".join(f"'{s}'" for s in SENT)}) AND destination_type <> 'scp'
"""
"""Of one job. FileFlow's scp says that it has delivered, and delivers nothing."""


class Told(NamedTuple):
    """How many files (by name and size) FileFlow says it has delivered of a job, and how many it could not confirm."""

    delivered: int
    unconfirmed: int


@dataclass
class Skipped:
    """What came of the files that lie at the source now."""

    entered: int = 0
    known: int = 0
    """The ledger knew them before."""
    changed: int = 0
    """Changed after FileFlow sent a file of that name and size."""
    unconfirmed: int = 0
    unknown: int = 0
    """FileFlow does not say that it has delivered them."""


class History:
    """FileFlow's records, read only. Raises ConfigError for what is none, or is locked."""

    def __init__(self, path: Path):
        self._path = path
        if not path.is_file():
            raise ConfigError("there is no such file", path=str(path), remedy="FileFlow keeps it as data/tracking.db")
        with self._telling():
            self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S)
        self._db.text_factory = os.fsdecode  # names of files, whatever their bytes
        try:
            with self._telling():
                columns = {row[1] for row in self._db.execute("PRAGMA table_info(transfers)")}
            if missing := sorted(_COLUMNS - columns):
                raise ConfigError(
                    f"is no database of FileFlow: it has no {f'column {missing[0]}' if columns else 'table `transfers`'}",
                    path=str(path), remedy="FileFlow keeps it as data/tracking.db",
                )  # fmt: skip
        except BaseException:
            self._db.close()
            raise

    def told(self, job_id: str) -> Told:
        """What it says of a job."""
        with self._telling():
            row = self._db.execute(
                f"SELECT count(*), coalesce(sum(bad), 0) FROM (SELECT {_BAD} AS bad, max(id) FROM transfers"
                f" WHERE {_DELIVERED} GROUP BY file_name, file_size)",
                (job_id,),
            ).fetchone()
        return Told(int(row[0]), int(row[1]))

    def of(self, job_id: str, name: str, size: int) -> tuple[bool, int, str] | None:
        """(whether FileFlow confirmed it, when in s since the epoch, where) of the last delivery of a file."""
        with self._telling():
            row: Any = self._db.execute(
                f"SELECT {_BAD}, execution_time, destination_path FROM transfers"
                f" WHERE {_DELIVERED} AND file_name = ? AND file_size = ? ORDER BY id DESC LIMIT 1",
                (job_id, name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), size),
            ).fetchone()
        return None if row is None else (not row[0], _seconds(row[1]), str(row[2]))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            locked = "locked" in str(error)
            raise ConfigError(
                "is locked by another program" if locked else f"is no database of FileFlow: {error}",
                path=str(self._path), remedy="stop FileFlow first" if locked else "FileFlow keeps it as data/tracking.db",
            ) from error  # fmt: skip


_BAD = "(transfer_status <> 'success' OR coalesce(verification_status, '') <> 'success')"
"""Whether FileFlow could not confirm a delivery: it says `success` in the first column of those, too."""


def _seconds(value: Any) -> int:
    """FileFlow's time (UTC) in seconds since the epoch; 0, so that every file is younger, for what is none."""
    try:
        when = datetime.fromisoformat(str(value))
        return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return 0


def skip_delivered(job: TransferJob, job_id: str, history: History, ledger: Ledger) -> Skipped:
    """List the source, and enter what FileFlow says it has delivered and confirmed, so that it is not sent again."""
    done = Skipped()
    run_id = ledger.begin_run(job.name, flight=None, device=job.device)
    try:
        routes = [ledger.route(job.name, d.place()) for d in job.destinations]
        with job.source.open() as session:
            for page in scan(session, job, Scanned()):
                files = [(f, said) for f in page if f.problem is None and (said := _said(history, job_id, f, done))]
                for number, route_id in enumerate(routes):
                    new, _ = ledger.compare(route_id, [f for f, _ in files])
                    ledger.enter(
                        run_id,
                        [NewFile(route_id, files[n][0], None, None, State.DUPLICATE, said=files[n][1]) for n in new],
                        flight=None, device=job.device,
                    )  # fmt: skip
                    if number == 0:
                        done.entered += len(new)
                        done.known += len(files) - len(new)
    finally:
        ledger.end_run(run_id, {"job": job.name, "run_id": run_id, "imported": done.entered})
    return done


def _said(history: History, job_id: str, file: FileInfo, done: Skipped) -> str | None:
    """What to note of a file that is skipped; None for one that is not, which is counted."""
    found = history.of(job_id, file.path.rpartition("/")[2], file.size)
    if found is None:
        done.unknown += 1
        return None
    confirmed, when, where = found
    if not confirmed:
        done.unconfirmed += 1
    elif file.mtime_ns // 1_000_000_000 > when:
        done.changed += 1
    else:
        day = f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M:%S} UTC"
        return (
            f"FileFlow says that it delivered a file of this name and size to {where!a} at {day}; nobody here has looked "
            "at it (`onblock transfers retry` and its number has it looked at)"
        )
    return None
