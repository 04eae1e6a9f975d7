"""The rows of a shipment that are ours, and what becomes of each: done, failed, deferred, kept for a resume.

How files are staged is in `stage.py`, how they get their final names in `move.py`, what is retried in `retry.py`.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from blocks.errors import Cancelled, HashMismatch, Kind, NetworkError, OnblockError
from blocks.storage.base import FileInfo, Upload
from flows.ledger.states import DONE, State
from flows.ledger.store import Claim, Outcome, now_ms
from flows.ledger.wishes import CLEAR
from flows.transfer import pump, retry
from flows.transfer.gate import Passage
from flows.transfer.progress import Receipt
from flows.transfer.reservations import Hold
from flows.transfer.resume import Journal
from flows.transfer.rules import as_json
from flows.transfer.run import TransferRun
from flows.transfer.shipment import Leg, Shipment

log = logging.getLogger("onblock.transfer")

SOURCE = -1
"""Stands for the source where ways are counted."""


class Staged(NamedTuple):
    """A file that lies whole at a destination, not yet under its final name."""

    leg: Leg
    file: FileInfo
    upload: Upload
    sha256: str
    verified_by: str | None


class Accounts:
    """What is known of the rows of one shipment while it is moved. `failures` holds the kinds of what went wrong."""

    def __init__(self, run: TransferRun, shipment: Shipment):
        self.run, self.shipment, self.job = run, shipment, run.job
        self.ways = shipment.ways or run.ways
        self.receipt = Receipt()
        self._phase = "deliver" if self.job.two_phases else ""  # as events have it
        self.failures: set[Kind] = set()
        self.elsewhere = 0  # rows that another run has taken
        self._claims: dict[int, Claim] = {}  # rows that are ours and not accounted for
        self._uploads: dict[int, Upload] = {}  # by row: begun and neither committed nor aborted
        self._journals: dict[int, Journal] = {}  # of large files that can be resumed
        self._resumed: set[int] = set()
        self._again: set[int] = set()  # rows whose files did not arrive as they were read, and are sent once more
        self._counted: set[int] = set()  # rows whose bytes were counted while they were on their way
        self._outcomes: list[Outcome] = []
        self._lapses = run.ledger.lapses(run.id)  # as of the last look
        self._judged = 0  # `Gate.withdrawn`, as of the last look
        self._holds: dict[int, tuple[str, Hold]] = {}  # by way: where room is reserved, and how much
        # what stopped answering, a destination or the source: the rest of the shipment does not wait for it
        self._away: dict[int, NetworkError] = {}

    def _note(self, leg: Leg) -> None:
        """Write down how far a large file is. A row that another run has taken is no longer our affair."""
        journal = self._journals[leg.row_id]
        journal.token = self._uploads[leg.row_id].journal
        at = journal.checkpoints[-1][0] if journal.checkpoints else 0
        if not self.run.ledger.note(self._claims[leg.row_id], at, journal.text()):
            self._lost(leg.row_id)

    def _lost(self, row_id: int) -> None:
        log.warning("another run has taken row %d over", row_id)
        del self._claims[row_id]
        self._journals.pop(row_id, None)
        self.elsewhere += 1
        self._abort(row_id)

    def _lost_some(self) -> bool:
        """Give up the rows that another run has taken while our lease had lapsed; whether it was looked at. To be asked
        before each write: who takes a file over goes on writing in the same one, and may have committed it. What is
        written at the very moment this machine falls asleep is not told."""
        run, looked = self.run, False
        while (lapses := run.ledger.lapses(run.id)) != self._lapses:
            self._lapses, looked = lapses, True
            run.ledger.heartbeat(run.id)  # from now on nobody takes any
            for row_id in self._claims.keys() - run.ledger.still_held(self._claims.values()):
                self._lost(row_id)
        return looked

    def _done(self, leg: Leg, file: FileInfo, sha256: str, state: State, path: str, verified_by: str) -> None:
        claim = self._claims.pop(leg.row_id)
        self._outcomes.append(Outcome(
            claim.id, claim.attempt, state, dest_path=path, sha256=sha256, verified_by=verified_by,
            bytes_done=file.size, tries=claim.tries,
        ))  # fmt: skip
        if state is State.VERIFIED:
            self.receipt.verified(verified_by)
        counted = file.size >= pump.SMALL or leg.row_id in self._counted
        self.run.meter.moved(1, 0 if counted else file.size)

    def _fail(self, leg: Leg, error: OnblockError, stage: str) -> None:
        """Account for a row that is ours and failed: the kind decides what follows. Other rows are left alone."""
        claim = self._claims.pop(leg.row_id, None)
        if claim is None:
            self._abort(leg.row_id)
            return
        if isinstance(error, NetworkError):
            self._away[SOURCE if stage == "read" else leg.way] = error
        tries = claim.tries + (error.kind not in (Kind.CANCELLED, Kind.PAUSED))
        state, next_attempt_at = retry.after(error.kind, tries, claim.queued_at, now_ms())
        journal = self._journals.pop(leg.row_id, None)
        left: str | None = None  # for a resume
        if state in (State.QUEUED, State.PAUSED) and error.kind is not Kind.SOURCE_CHANGED:
            if journal is not None:
                left = journal.text()
                self._keep(leg.row_id)
            elif leg.row_id not in self._uploads:  # never begun: what an earlier attempt kept is still there
                left = claim.journal
        self._abort(leg.row_id)
        if state in (State.FAILED, State.QUARANTINED):
            self.receipt.failed += 1
        else:
            self.receipt.deferred += 1
        if error.kind not in (Kind.CANCELLED, Kind.PAUSED):
            self.failures.add(error.kind)
            log.warning("%s %s at %s: %s", state, error.kind, stage, error)
        elif error.kind is Kind.PAUSED:
            self.run.watcher.set_aside("paused", claim.id)
        self._outcomes.append(Outcome(
            claim.id, claim.attempt, state, failure=error, stage=stage, tries=tries, next_attempt_at=next_attempt_at,
            journal=left,
        ))  # fmt: skip
        self.run.meter.moved(1, 0)

    def _once_more(self, leg: Leg, error: OnblockError) -> bool:
        """Whether a file is sent once more, from its beginning: bytes were hurt on the way, for the first time. Nothing is
        left of it then, and its row stays ours."""
        if not isinstance(error, HashMismatch) or leg.row_id in self._again or leg.row_id not in self._claims:
            return False
        log.warning("%s: sent once more", error)
        self._again.add(leg.row_id)
        self._journals.pop(leg.row_id, None)
        self._abort(leg.row_id)
        return True

    def _withdraw(self, leg: Leg, file: FileInfo) -> None:
        """Somebody wants the file no more: nothing is left of it."""
        claim = self._claims.pop(leg.row_id, None)
        self._journals.pop(leg.row_id, None)
        self._abort(leg.row_id)
        if claim is not None:
            error = Cancelled("was cancelled", path=file.path, remedy="`onblock transfers retry` asks for it again")
            self._outcomes.append(
                Outcome(claim.id, claim.attempt, State.CANCELLED, failure=error, tries=claim.tries, journal=CLEAR)
            )
            self.run.watcher.set_aside("cancelled", claim.id)
            self.run.meter.moved(1, 0)

    def _stopped(self, leg: Leg, passage: Passage) -> None:
        """The gate does not let the file pass any more: nothing is left of it."""
        claim = self._claims.pop(leg.row_id)
        self._journals.pop(leg.row_id, None)
        self._abort(leg.row_id)
        self.receipt.blocked += 1
        log.warning("%s by the gate: %s", passage.state, passage.failure)
        self._outcomes.append(Outcome(
            claim.id, claim.attempt, passage.state, failure=passage.failure, stage=passage.stage, tries=claim.tries,
            journal=CLEAR, findings=as_json(passage.findings),
        ))  # fmt: skip
        self.run.meter.moved(1, 0)

    def _keep(self, row_id: int) -> None:
        if (upload := self._uploads.pop(row_id, None)) is not None:
            try:
                upload.keep()
            except OnblockError as error:
                log.warning("what is there of a file may be less than it was: %s", error)

    def _abort(self, row_id: int) -> None:
        if (upload := self._uploads.pop(row_id, None)) is not None:
            try:
                upload.abort()
            except OnblockError as error:
                log.warning("a temporary file may be left: %s", error)

    def _write_down(self) -> None:
        """All outcomes in one transaction. A row that is no longer ours was taken by another run: what it writes counts."""
        while self._holds:
            self.run.room.release(*self._holds.popitem()[1])
        outcomes = self._outcomes
        written = self.run.ledger.finish(outcomes)
        self._outcomes = []  # only now: what could not be written is tried once more before the run gives up
        lost = [o for o in outcomes if o.id not in written]
        if lost:
            log.warning("%d rows were taken over by another run meanwhile", len(lost))
            self.receipt.delivered -= sum(o.state in DONE for o in lost)
