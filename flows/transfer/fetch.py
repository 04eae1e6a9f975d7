"""The first of two phases: the files of one shipment into the spool, each into its locker (`locker.py`).

They are staged and proven like any delivery (`stage.py`), with the spool as the only destination. A file has one row for
each destination of the job, and is fetched once for all of them.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from typing import NamedTuple

from blocks.errors import Conflict, Kind, OnblockError, Paused, as_onblock
from blocks.storage.base import FileInfo, Session, aligned_buffer
from flows.ledger.rows import Claim, Outcome
from flows.ledger.states import State
from flows.ledger.wishes import Wish
from flows.transfer import bulk, pump
from flows.transfer.accounts import SOURCE, Staged
from flows.transfer.job import Verify
from flows.transfer.locker import Locker
from flows.transfer.progress import Receipt
from flows.transfer.run import TransferRun
from flows.transfer.shipment import Item, Leg, Shipment
from flows.transfer.stage import Staging


class Fetched(NamedTuple):
    """A file that lies in its locker, with the rows of ours that want it."""

    file: FileInfo
    legs: tuple[Leg, ...]
    claims: tuple[Claim, ...]  # one for each leg
    locker: Locker
    sha256: str


class Fetch(Staging):
    """One shipment on its way into the spool, by one thread. After `fetch()`, `fetched` holds what is there."""

    def __init__(self, run: TransferRun, shipment: Shipment):
        super().__init__(run, shipment)
        self.ways = [run.spool_way]
        self._phase = "fetch"
        self.fetched: list[Fetched] = []
        self._legs: dict[int, list[Leg]] = {}  # by the row that stands for all rows of a file
        self._lockers: dict[int, Locker] = {}

    def fetch(self) -> Receipt:
        """Claim the rows and bring the files. Failures are noted in the ledger and in `failures`.

        Raises Cancelled when the run is stopped, and what the ledger raises.
        """
        run, wanted = self.run, self.shipment.row_ids
        self._claims = run.ledger.claim(run.id, wanted, State.FETCHING)
        self.elsewhere = len(wanted) - len(self._claims)
        self.shipment = self._into_the_spool(self.shipment)
        try:
            for item in self.shipment.items:
                self._take_what_is_there(item)
            files = [i.file for i in self.shipment.items if i.legs[0].row_id in self._claims]
            if files:
                with ExitStack() as stack:
                    source = stack.enter_context(run.pool.session(self.job.source))
                    session = stack.enter_context(run.pool.session(run.spool_way.storage))
                    self._sessions = [session]
                    self._source = stack.enter_context(bulk.fetched(run, source, files))
                    self._commit(session, self._stage_all())
                    if SOURCE in self._away:
                        run.pool.spoil(source)
            self._write_down()
        except Exception as error:
            # also after a defect of ours each row says what happened to it
            failure = as_onblock(error)
            for item in self.shipment.items:
                self._fail(item.legs[0], failure, "read")
            self._write_down()
            if not isinstance(error, OnblockError) or error.kind is Kind.CANCELLED:
                raise
        return self.receipt

    def _into_the_spool(self, shipment: Shipment) -> Shipment:
        """The same files, each with one leg, into its locker."""
        items: list[Item] = []
        for file, legs in shipment.items:
            mine = [leg for leg in legs if leg.row_id in self._claims]
            if mine:
                locker = Locker(self.run.owner, file)
                first = mine[0]
                self._legs[first.row_id], self._lockers[first.row_id] = mine, locker
                items.append(Item(file, (Leg(0, first.row_id, first.attempt, locker.path_in),)))
        return Shipment(shipment.number, items, large=shipment.large)

    def _take_what_is_there(self, item: Item) -> None:
        """A fetch that was finished before is not repeated, if the file is still as it was."""
        leg = item.legs[0]
        locker = self._lockers[leg.row_id]
        try:
            locker.open()
            sha256 = locker.fetched()
            if sha256 is not None and self._hash(locker, item.file) == sha256:
                self._arrived(item.file, leg, sha256)
                self.run.meter.moved(1, item.file.size)
        except OnblockError as error:
            if error.kind is Kind.CANCELLED:
                raise
            self._fail(leg, error, "write")

    def _hash(self, locker: Locker, file: FileInfo) -> str | None:
        digest = hashlib.sha256()
        buffer = aligned_buffer(pump.CHUNK)
        try:
            with locker.input.open("rb", buffering=0) as there:
                while n := there.readinto(buffer):
                    self._check_stop(file)
                    digest.update(memoryview(buffer)[:n])
        except OSError:
            return None
        return digest.hexdigest()

    def _commit(self, session: Session, staged: list[Staged]) -> None:
        for ready, result in zip(staged, session.commit_all([s.upload for s in staged]), strict=True):
            leg = ready.leg
            try:
                if isinstance(result, Conflict):  # of a run that died before it could write down what it has fetched
                    result = ready.upload.commit(replace=True)
                if isinstance(result, OnblockError):
                    raise result
                self._uploads.pop(leg.row_id)
                self._lockers[leg.row_id].note_fetched(ready.sha256)
            except OnblockError as error:
                self._fail(leg, error, "commit")
                continue
            counted = ready.file.size >= pump.SMALL or leg.row_id in self._counted
            self.run.meter.moved(1, 0 if counted else ready.file.size)
            self._arrived(ready.file, leg, ready.sha256)

    def _arrived(self, file: FileInfo, leg: Leg, sha256: str) -> None:
        legs = [one for one in self._legs[leg.row_id] if one.row_id in self._claims]
        claims = [self._claims.pop(one.row_id) for one in legs]
        self._journals.pop(leg.row_id, None)
        self.fetched.append(Fetched(file, tuple(legs), tuple(claims), self._lockers[leg.row_id], sha256))
        for claim in claims:
            self._outcomes.append(Outcome(
                claim.id, claim.attempt, State.FETCHED, sha256=sha256, bytes_done=file.size, tries=claim.tries,
            ))  # fmt: skip

    def _write_down(self) -> None:
        self._outcomes = [o if o.stage is None else o._replace(stage="fetch") for o in self._outcomes]
        super()._write_down()

    # -- one leg stands for all rows of a file ------------------------------------------------------------------------------

    def _fail(self, leg: Leg, error: OnblockError, stage: str) -> None:
        for one in self._legs[leg.row_id]:
            super()._fail(one._replace(way=0), error, stage)

    def _heed(self, file: FileInfo, legs: list[Leg]) -> None:
        self._check_stop(file)
        if not (self.run.wishes or self.run.held):
            return
        for leg in tuple(legs):
            rows = [one for one in self._legs[leg.row_id] if one.row_id in self._claims]
            wishes = [self.run.wish(one.row_id) for one in rows]
            if not all(wish in (Wish.PAUSE, Wish.CANCEL) for wish in wishes):
                continue  # somebody wants it still
            for one, wish in zip(rows, wishes, strict=True):
                if wish is Wish.PAUSE:
                    super()._fail(one._replace(way=0), Paused("was paused", path=file.path), "write")
                else:
                    self._withdraw(one, file)
            legs.remove(leg)

    def _verify(self, leg: Leg) -> Verify:
        return Verify.CHECKSUM
