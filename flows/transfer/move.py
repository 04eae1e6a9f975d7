"""Moving the files of one shipment: staged and proven (`stage.py`), committed, and accounted for (`accounts.py`).

The final name of a file appears here and nowhere else. Small files are committed together; rows are written once per
shipment.
"""

from __future__ import annotations

import contextvars
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext

from blocks import names
from blocks.errors import Conflict, HashMismatch, Kind, NotFound, OnblockError, SourceChanged, as_onblock
from blocks.storage.base import FileInfo, Session
from flows.ledger.states import State
from flows.ledger.store import Outcome
from flows.transfer import bulk
from flows.transfer.accounts import SOURCE, Staged
from flows.transfer.job import Dedup, OnConflict, Verify
from flows.transfer.progress import Receipt
from flows.transfer.resume import CHECKPOINT, Committed, Journal
from flows.transfer.run import TransferRun
from flows.transfer.shipment import Leg, Shipment
from flows.transfer.stage import Staging
from flows.transfer.verify import prove_final

log = logging.getLogger("onblock.transfer")


class Delivery(Staging):
    """One shipment being moved, by one thread. After `deliver()`, `failures` holds the kinds of what went wrong."""

    def deliver(self) -> Receipt:
        """Claim the rows, move the files, write down what became of them.

        A file that fails is noted in the ledger and in `failures`. Raises Cancelled when the run is stopped, and
        what the ledger raises.
        """
        run, shipment = self.run, self.shipment
        wanted = shipment.row_ids
        self._claims = run.ledger.claim(run.id, wanted)
        self.elsewhere = len(wanted) - len(self._claims)
        try:
            with ExitStack() as stack:
                source = stack.enter_context(run.pool.session(shipment.source or self.job.source))
                self._sessions = [stack.enter_context(run.pool.session(way.storage)) for way in self.ways]
                files = [i.file for i in shipment.items if any(leg.row_id in self._claims for leg in i.legs)]
                self._source = stack.enter_context(bulk.fetched(run, source, files))
                self._prove_committed()
                staged = self._stage_all()
                if self._lost_some() | self._judge_again():
                    staged = [s for s in staged if s.leg.row_id in self._claims]
                # with dedup by content, no two shipments may decide at once
                with run.content_lock if self.job.dedup is Dedup.CONTENT else nullcontext():
                    for number, session in enumerate(self._sessions):
                        self._commit_way(session, [s for s in staged if s.leg.way == number])
                    self._write_down()
                for way in self._away:
                    run.pool.spoil(source if way == SOURCE else self._sessions[way])
        except Exception as error:
            # also after a defect of ours each row says what happened to it
            failure = as_onblock(error)
            for item in shipment.items:
                for leg in item.legs:
                    self._fail(leg, failure, "read")
            self._write_down()
            if not isinstance(error, OnblockError) or error.kind is Kind.CANCELLED:
                raise
        return self.receipt

    def _commit_way(self, session: Session, staged: list[Staged]) -> None:
        """Give the staged files of one destination their final names. What does not arrive whole is sent once more."""
        everything = staged
        later: list[Staged] = []
        if self.job.dedup is Dedup.CONTENT:
            first: dict[str, Staged] = {}
            for ready in staged:
                if (path := self._known_content(ready)) is not None:
                    self._duplicate(ready, path)
                elif first.setdefault(ready.sha256, ready) is not ready:
                    later.append(ready)
            staged = list(first.values())
        delivered: dict[str, str] = {}
        for ready, result in zip(staged, session.commit_all([s.upload for s in staged]), strict=True):
            if (path := self._commit_one(session, ready, result)) is not None:
                delivered[ready.sha256] = path
        for ready in later:  # the same content as another file of this shipment: theirs serves, if it arrived
            if ready.sha256 in delivered:
                self._duplicate(ready, delivered[ready.sha256])
            elif (path := self._commit_one(session, ready, session.commit_all([ready.upload])[0])) is not None:
                delivered[ready.sha256] = path
        if again := [ready for ready in everything if ready.leg.row_id in self._claims]:
            self._commit_way(session, [new for ready in again for new in self._stage(ready.file, [ready.leg])])

    def _commit_one(self, session: Session, ready: Staged, result: str | OnblockError) -> str | None:
        """Account for one commit, unless the file is to be sent once more; the final name if it is delivered."""
        try:
            if isinstance(result, Conflict):
                if self._same(session, ready.upload.path, ready):
                    return self._adopt(ready, ready.upload.path)
                resolved = self._resolve(session, ready, result)
                if resolved is None:
                    return None
                result = resolved
            if isinstance(result, OnblockError):
                raise result
            self._uploads.pop(ready.leg.row_id)
            verified_by = ready.verified_by
            if verified_by is None:
                at = self._note_committed(session, ready, result)
                try:
                    verified_by = self._prove_final(session, ready.leg, ready.file, at)
                except HashMismatch:
                    session.delete(result)  # nothing at a final name that is not whole
                    raise
        except OnblockError as error:
            if not self._once_more(ready.leg, error):
                self._fail(ready.leg, error, "commit")
            return None
        self._delivered(ready.leg, ready.file, ready.sha256, result, verified_by)
        return result

    def _delivered(self, leg: Leg, file: FileInfo, sha256: str, path: str, verified_by: str) -> None:
        self.receipt.delivered += 1
        self.receipt.bytes += file.size
        self._done(leg, file, sha256, State.VERIFIED, path, verified_by)

    def _prove_final(self, session: Session, leg: Leg, file: FileInfo, at: Committed) -> str:
        """Look at a file under its final name; how it was proven. Raises HashMismatch, after a second look."""
        verify = self._verify(leg)
        try:
            return prove_final(session, at.path, file.size, at.sha256, verify)
        except HashMismatch as error:  # it is damaged, or only what came back of it
            log.warning("%s: looked at once more", error)
        again = Verify.READBACK if verify is Verify.CHECKSUM else verify
        return prove_final(session, at.path, file.size, at.sha256, again)

    def _note_committed(self, session: Session, ready: Staged, path: str) -> Committed:
        """A file has its final name. Should the proof not come to its end, the next attempt begins with it. Not for what
        steps made, which may be made anew until then."""
        claim, at = self._claims[ready.leg.row_id], Committed(path, ready.sha256)
        if self.shipment.source is not None:
            return at
        self._journals[claim.id] = Journal(claim.attempt, committed=at)
        takes_time = ready.file.size >= CHECKPOINT and self._verify(ready.leg) in (Verify.CHECKSUM, Verify.READBACK)
        if takes_time:  # then a run may well be killed meanwhile
            at = at._replace(version=session.stat(path).version)
            self._journals[claim.id].committed = at
            self.run.ledger.note(claim, ready.file.size, self._journals[claim.id].text())
        return at

    def _prove_committed(self) -> None:
        """Account for the files that have their final names since an earlier attempt, which could not prove them. What is not
        there as it was read is sent like any other, and removed before if it is certainly ours."""
        for file, legs in self.shipment.items:
            for leg in legs:
                claim, wanted = self._claims.get(leg.row_id), [leg]
                if claim is None or (journal := Journal.parse(claim.journal)) is None or journal.committed is None:
                    continue
                self._heed(file, wanted)
                if not wanted or leg.way in self._away:
                    continue
                session, at = self._sessions[leg.way], journal.committed
                self._resumed.add(leg.row_id)  # for all that is known by now
                try:
                    verified_by = self._prove_final(session, leg, file, at)
                    self._delivered(leg, file, at.sha256, at.path, verified_by)
                except (HashMismatch, NotFound) as error:
                    log.warning("%s: sent again", error)
                    self._remove_ours(session, leg, at)
                except OnblockError as error:
                    self._fail(leg, error, "commit")

    def _remove_ours(self, session: Session, leg: Leg, at: Committed) -> None:
        """Remove what is damaged under a final name, where nobody else can have put it there. Then nothing is left of the
        earlier attempt."""
        try:
            seen = session.stat(at.path)
            if seen.version == at.version:
                session.delete_seen(seen)
        except (NotFound, SourceChanged) as error:
            log.debug("nothing to remove: %s", error)
        except OnblockError as error:
            self._fail(leg, error, "commit")
            return
        self._claims[leg.row_id] = self._claims[leg.row_id]._replace(journal=None)

    def _resolve(self, session: Session, ready: Staged, conflict: Conflict) -> str | None:
        """Another file has the final name: the name ours gets, or None if it was accounted for. Raises Conflict."""
        upload = ready.upload
        match self.job.on_conflict:
            case OnConflict.FAIL:
                raise conflict
            case OnConflict.REPLACE:
                return upload.commit(replace=True)
            case OnConflict.SKIP:
                self._abort(ready.leg.row_id)
                self.receipt.skipped += 1
                left = Conflict("another file has the final name and was left alone", path=upload.path,
                                remedy="set `on_conflict: rename` to keep both")  # fmt: skip
                claim = self._claims.pop(ready.leg.row_id)
                self._outcomes.append(Outcome(claim.id, claim.attempt, State.CANCELLED, failure=left, stage="commit"))
                return None
            case OnConflict.RENAME:
                for other in names.alternatives(upload.path):
                    try:
                        return upload.commit(other)
                    except Conflict:
                        if self._same(session, other, ready):
                            self._adopt(ready, other)
                            return None
                raise conflict

    @staticmethod
    def _same(session: Session, path: str, ready: Staged) -> bool:
        """Whether the file at the destination has the content we bring."""
        try:
            return session.stat(path).size == ready.file.size and session.checksum(path) == ready.sha256
        except OnblockError:
            return False  # a folder, or not readable: then nobody can say it is the same, and the policy decides

    def _adopt(self, ready: Staged, path: str) -> str:
        """The file is there already: left by a run that died after the rename, or by somebody else's copy."""
        self._abort(ready.leg.row_id)
        self.receipt.adopted += 1
        self._done(ready.leg, ready.file, ready.sha256, State.VERIFIED, path, "found")
        return path

    def _known_content(self, ready: Staged) -> str | None:
        route_id = self.ways[ready.leg.way].route_id
        assert route_id is not None  # a dry run delivers nothing
        return self.run.ledger.known_content(route_id, ready.sha256)

    def _duplicate(self, ready: Staged, path: str) -> None:
        self._abort(ready.leg.row_id)
        self.receipt.duplicates += 1
        self._done(ready.leg, ready.file, ready.sha256, State.DUPLICATE, path, "content")


def deliver_side_by_side(run: TransferRun, shipment: Shipment) -> tuple[Receipt, set[Kind], int]:
    """Move a shipment, by as many threads as its storages reward; what became of it, kinds of failures, rows that
    another run has. Raises as `Delivery.deliver`, after all of them have ended."""
    strips = shipment.split(run.parallel)
    deliveries = [Delivery(run, strip) for strip in strips]
    if len(deliveries) == 1:
        deliveries[0].deliver()
    else:
        with ThreadPoolExecutor(len(deliveries), "onblock-side") as threads:
            under_way = [threads.submit(contextvars.copy_context().run, d.deliver) for d in deliveries]
        for future in under_way:
            future.result()
    receipt = Receipt()
    for delivery in deliveries:
        receipt.add(delivery.receipt)
    return receipt, set().union(*(d.failures for d in deliveries)), sum(d.elsewhere for d in deliveries)
