"""Moving the files of one shipment: one read, hashed on the way, written to every destination, proven, committed.

The final name of a file appears here and nowhere else. Small files are staged one by one and committed together;
rows are written once per shipment. What is retried is decided in `retry.py`, how bytes get there in `blocks/storage`.
"""

from __future__ import annotations

import contextvars
import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

from blocks import names
from blocks.errors import Cancelled, Conflict, HashMismatch, Kind, NetworkError, OnblockError, SourceChanged, as_onblock
from blocks.storage.base import FileInfo, Reader, Session, Upload
from flows.ledger.states import DONE, State
from flows.ledger.store import Claim, Outcome, now_ms
from flows.transfer import bulk, pump, retry
from flows.transfer.job import Dedup, OnConflict, Verify
from flows.transfer.progress import Receipt
from flows.transfer.resume import CHECKPOINT, Journal, last_checkpoint
from flows.transfer.run import TransferRun
from flows.transfer.shipment import Leg, Shipment, discard_staged, staging_key
from flows.transfer.verify import prove, prove_final

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


Todo = tuple[FileInfo, list[Leg]]


class Delivery:
    """One shipment being moved, by one thread. After `deliver()`, `failures` holds the kinds of what went wrong."""

    def __init__(self, run: TransferRun, shipment: Shipment):
        self.run, self.shipment, self.job = run, shipment, run.job
        self.receipt = Receipt()
        self.failures: set[Kind] = set()
        self.elsewhere = 0  # rows that another run has taken
        self._claims: dict[int, Claim] = {}  # rows that are ours and not accounted for
        self._uploads: dict[int, Upload] = {}  # by row: begun and neither committed nor aborted
        self._journals: dict[int, Journal] = {}  # of large files that can be resumed
        self._resumed: set[int] = set()
        self._counted: set[int] = set()  # rows whose bytes were counted while they were on their way
        self._outcomes: list[Outcome] = []
        # what stopped answering, a destination or the source: the rest of the shipment does not wait for it
        self._away: dict[int, NetworkError] = {}

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
                source = stack.enter_context(run.pool.session(self.job.source))
                self._sessions = [stack.enter_context(run.pool.session(way.storage)) for way in run.ways]
                files = [i.file for i in shipment.items if any(leg.row_id in self._claims for leg in i.legs)]
                self._source = stack.enter_context(bulk.fetched(run, source, files))
                staged = self._stage_all()
                # with dedup by content, no two shipments may decide at once
                with run.content_lock if self.job.dedup is Dedup.CONTENT else nullcontext():
                    for number, session in enumerate(self._sessions):
                        self._commit_way(session, [s for s in staged if s.leg.way == number])
                    self._write_down()
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

    # -- staging ----------------------------------------------------------------------------------------------------

    def _stage_all(self) -> list[Staged]:
        todo = [
            (file, mine)
            for file, legs in self.shipment.items
            if (mine := [leg for leg in legs if leg.row_id in self._claims])
        ]
        staged, todo = self._push(todo)
        for file, legs in todo:
            reachable = []
            for leg in legs:
                if SOURCE in self._away:
                    self._fail(leg, self._away[SOURCE], "read")
                elif leg.way in self._away:
                    self._fail(leg, self._away[leg.way], "write")
                else:
                    reachable.append(leg)
            if reachable:
                staged += self._stage(file, reachable)
        return staged

    def _push(self, todo: list[Todo]) -> tuple[list[Staged], list[Todo]]:
        """Stage many small local files at once where the destination can; those, and what is to be sent singly."""
        if len(todo) < bulk.MANY or len(self._sessions) > 1 or not self._sessions[0].features.bulk_push:
            return [], todo
        session, source = self._sessions[0], self._source
        files: list[tuple[str, Upload]] = []
        pushed: list[tuple[FileInfo, Leg]] = []
        rest: list[Todo] = []
        for file, legs in todo:
            local = source.local_path(file.path) if file.size < session.features.bulk_below else None
            if local is None:
                rest.append((file, legs))
                continue
            try:
                upload = self._begin(file, legs[0])
            except OnblockError as error:
                self._fail(legs[0], error, "write")
                continue
            files.append((local, upload))
            pushed.append((file, legs[0]))
            self._counted.add(legs[0].row_id)
        staged: list[Staged] = []
        for (file, leg), (_, upload), sha256 in zip(
            pushed, files, session.push(files, lambda n: self.run.meter.moved(0, n), self.run.stop), strict=True
        ):
            if sha256 is None:
                self._abort(leg.row_id)
                rest.append((file, [leg]))
                continue
            try:
                sha256 = sha256 or self._source.checksum(file.path)
                staged += self._prove(file, leg, upload, sha256)
            except OnblockError:  # sent singly, which tells why
                self._abort(leg.row_id)
                rest.append((file, [leg]))
        return staged, rest

    def _begin(self, file: FileInfo, leg: Leg, *, anew: bool = False) -> Upload:
        """Begin to write a file, or go on with what an earlier attempt kept of a large one."""
        session, claim = self._sessions[leg.way], self._claims[leg.row_id]
        key = staging_key(file.path, file.version, claim.attempt)
        old = None if anew else Journal.parse(claim.journal)
        resumable = session.features.resume_write and file.size >= CHECKPOINT
        go_on = old if resumable else None
        if go_on is not None:
            session.rekey(leg.dest_path, staging_key(file.path, file.version, go_on.attempt), key)
        discard_staged(session, leg.dest_path, file.path, file.version, claim.attempt, None if go_on else old)
        upload = self._uploads[leg.row_id] = session.upload(
            leg.dest_path, file.size, key=key, resume=go_on is not None, journal=go_on.token if go_on else "",
            mtime_ns=file.mtime_ns,
        )  # fmt: skip
        if resumable:
            self._journals[leg.row_id] = Journal(
                claim.attempt, upload.journal, list(go_on.checkpoints) if go_on else []
            )
            self._note(leg)
        return upload

    def _note(self, leg: Leg) -> None:
        """Write down how far a large file is. A row that another run has taken is no longer our affair."""
        journal = self._journals[leg.row_id]
        journal.token = self._uploads[leg.row_id].journal
        at = journal.checkpoints[-1][0] if journal.checkpoints else 0
        if not self.run.ledger.note(self._claims[leg.row_id], at, journal.text()):
            log.warning("another run has taken %s over", leg.dest_path)
            del self._claims[leg.row_id], self._journals[leg.row_id]
            self.elsewhere += 1
            self._abort(leg.row_id)

    def _prove(self, file: FileInfo, leg: Leg, upload: Upload, sha256: str) -> list[Staged]:
        """The staged file, if what arrived is what was read. Raises HashMismatch; other failures are accounted for."""
        try:
            verified_by = prove(upload, sha256, self._verify(leg))
            upload.seal()
        except HashMismatch:
            raise
        except OnblockError as error:
            self._fail(leg, error, "verify")
            return []
        return [Staged(leg, file, upload, sha256, verified_by)]

    def _verify(self, leg: Leg) -> Verify:
        """How a file is proven: one that was resumed never by its size alone."""
        if leg.row_id in self._resumed and self.job.verify in (Verify.EXISTS, Verify.SIZE):
            return Verify.CHECKSUM
        return self.job.verify

    def _stage(self, file: FileInfo, legs: list[Leg], *, again: bool = False) -> list[Staged]:
        """Read one file once and stage it at its destinations."""
        self._check_stop(file)
        open_legs: list[Leg] = []
        try:
            with self._source.read(file.path) as reader:
                for leg in legs:
                    try:
                        self._begin(file, leg, anew=again)
                        if leg.row_id in self._claims:
                            open_legs.append(leg)
                    except OnblockError as error:
                        self._fail(leg, error, "write")
                if not open_legs:
                    return []
                sha256 = self._pump(reader, file, open_legs)
        except OnblockError as error:
            if error.kind is Kind.CANCELLED:
                raise
            for leg in legs:
                self._fail(leg, error, "read")
            return []

        staged: list[Staged] = []
        mismatched: list[Leg] = []
        for leg in open_legs:
            upload = self._uploads[leg.row_id]
            try:
                staged += self._prove(file, leg, upload, sha256)
            except HashMismatch as error:
                if again:
                    self._fail(leg, error, "verify")
                else:
                    log.warning("%s: sent once more", error)
                    self._abort(leg.row_id)
                    mismatched.append(leg)
        if mismatched:
            staged += self._stage(file, mismatched, again=True)
        return staged

    def _pump(self, reader: Reader, file: FileInfo, legs: list[Leg]) -> str:
        """Bytes from the reader to the uploads, hashed on the way; their SHA-256. Legs that fail are taken out."""
        if file.size < pump.SMALL:
            chunk, sha256 = pump.small(reader)
            got = len(chunk)
            self._write(chunk, legs)
        else:
            with ExitStack() as stack:
                got, digest = self._go_on(reader, file, legs)
                if got and self._far(self._source):
                    reader = stack.enter_context(self._source.read(file.path, got))
                self.run.meter.moved(0, got)
                for chunk in pump.chunks(reader, digest, got, lambda at, sha256: self._checkpoint(legs, at, sha256)):
                    self._check_stop(file)
                    self._write(chunk, legs)
                    if not legs:
                        break
                    got += len(chunk)
                    self.run.meter.moved(0, len(chunk))
                self._unchanged(reader, file, got, legs)
                return digest.hexdigest()
        self._unchanged(reader, file, got, legs)
        return sha256

    @staticmethod
    def _unchanged(reader: Reader, file: FileInfo, got: int, legs: list[Leg]) -> None:
        if legs and (got != file.size or reader.info().version[:2] != file.version[:2]):
            raise SourceChanged("changed while it was read", path=file.path)

    @staticmethod
    def _far(session: Session) -> bool:
        return session.features.parallel > 1

    def _go_on(self, reader: Reader, file: FileInfo, legs: list[Leg]) -> tuple[int, Any]:
        """Where all legs can go on, 0 to begin anew; and the SHA-256 object over what comes before."""
        uploads = [self._uploads[leg.row_id] for leg in legs]
        features = [self._sessions[leg.way].features for leg in legs]
        step = max(pump.CHUNK, *(f.resume_step for f in features))
        start = min(u.offset for u in uploads)
        start -= start % step
        digest = hashlib.sha256()
        from_source = not self._far(self._source) or not all(f.staged_digest for f in features)
        expected = ""
        if start and not from_source:
            start, expected = last_checkpoint(self._journals[legs[0].row_id].checkpoints, start, step)
        if not 0 < start < file.size or any(u.rewind(start) != start for u in uploads):
            start = 0
        elif from_source:
            if pump.skip(reader, digest, start, lambda: self._check_stop(file)) != start:
                raise SourceChanged("became shorter while it was read", path=file.path)
        else:
            for upload in uploads:
                digest = hashlib.sha256()
                upload.replay(digest.update)
                if digest.hexdigest() != expected:
                    log.warning("%s: what an earlier attempt left is damaged; sent from its beginning", file.path)
                    start = 0
                    break
        if not start:
            for upload in uploads:
                if upload.offset:
                    upload.rewind(0)
            return 0, hashlib.sha256()
        self._resumed.update(leg.row_id for leg in legs)
        for leg in legs:
            journal = self._journals[leg.row_id]
            journal.checkpoints = [c for c in journal.checkpoints if c[0] <= start]
        log.info("%s: goes on at %d of %d bytes", file.path, start, file.size)
        return start, digest

    def _checkpoint(self, legs: list[Leg], offset: int, sha256: str) -> None:
        """All destinations hold the bytes before `offset`."""
        due = self.run.note_due()
        for leg in tuple(legs):
            if (journal := self._journals.get(leg.row_id)) is not None:
                journal.checkpoints.append((offset, sha256))
                if due:
                    self._note(leg)
                    if leg.row_id not in self._claims:
                        legs.remove(leg)

    def _write(self, chunk: memoryview, legs: list[Leg]) -> None:
        for leg in tuple(legs):
            try:
                self._uploads[leg.row_id].write(chunk)
            except OnblockError as error:
                legs.remove(leg)
                self._fail(leg, error, "write")

    def _check_stop(self, file: FileInfo) -> None:
        if self.run.stop.is_set():
            raise Cancelled("the run was stopped", path=file.path)

    # -- the final name ---------------------------------------------------------------------------------------------

    def _commit_way(self, session: Session, staged: list[Staged]) -> None:
        """Give the staged files of one destination their final names."""
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

    def _commit_one(self, session: Session, ready: Staged, result: str | OnblockError) -> str | None:
        """Account for one commit; the final name if the file is delivered."""
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
                verified_by = self._prove_final(session, ready, result)
        except OnblockError as error:
            self._fail(ready.leg, error, "commit")
            return None
        self.receipt.delivered += 1
        self.receipt.bytes += ready.file.size
        self._done(ready, State.VERIFIED, result, verified_by)
        return result

    def _prove_final(self, session: Session, ready: Staged, path: str) -> str:
        try:
            return prove_final(session, path, ready.file.size, ready.sha256, self._verify(ready.leg))
        except HashMismatch:
            session.delete(path)  # nothing at a final name that is not whole
            raise

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
        self._done(ready, State.VERIFIED, path, "found")
        return path

    def _known_content(self, ready: Staged) -> str | None:
        route_id = self.run.ways[ready.leg.way].route_id
        assert route_id is not None  # a dry run delivers nothing
        return self.run.ledger.known_content(route_id, ready.sha256)

    def _duplicate(self, ready: Staged, path: str) -> None:
        self._abort(ready.leg.row_id)
        self.receipt.duplicates += 1
        self._done(ready, State.DUPLICATE, path, "content")

    # -- accounting -------------------------------------------------------------------------------------------------

    def _done(self, ready: Staged, state: State, path: str, verified_by: str) -> None:
        claim = self._claims.pop(ready.leg.row_id)
        self._outcomes.append(Outcome(
            claim.id, claim.attempt, state, dest_path=path, sha256=ready.sha256, verified_by=verified_by,
            bytes_done=ready.file.size, tries=claim.tries,
        ))  # fmt: skip
        if state is State.VERIFIED:
            self.receipt.verified(verified_by)
        counted = ready.file.size >= pump.SMALL or ready.leg.row_id in self._counted
        self.run.meter.moved(1, 0 if counted else ready.file.size)

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
        if error.kind is not Kind.CANCELLED:
            self.failures.add(error.kind)
            log.warning("%s %s at %s: %s", state, error.kind, stage, error)
        self._outcomes.append(Outcome(
            claim.id, claim.attempt, state, failure=error, stage=stage, tries=tries, next_attempt_at=next_attempt_at,
            journal=left,
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
        outcomes = self._outcomes
        written = self.run.ledger.finish(outcomes)
        self._outcomes = []  # only now: what could not be written is tried once more before the run gives up
        lost = [o for o in outcomes if o.id not in written]
        if lost:
            log.warning("%d rows were taken over by another run meanwhile", len(lost))
            self.receipt.delivered -= sum(o.state in DONE for o in lost)


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
