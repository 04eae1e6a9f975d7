"""Moving the files of one shipment: one read, hashed on the way, written to every destination, proven, committed.

The final name of a file appears here and nowhere else. Small files are staged one by one and committed together;
rows are written once per shipment. What is retried is decided in `retry.py`, how bytes get there in `blocks/storage`.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

from blocks import names
from blocks.errors import Cancelled, Conflict, HashMismatch, Kind, NetworkError, OnblockError, SourceChanged, as_onblock
from blocks.storage.base import FileInfo, Reader, Session, Upload, aligned_buffer
from flows.ledger.states import DONE, State
from flows.ledger.store import Claim, Outcome, now_ms
from flows.transfer import retry
from flows.transfer.job import Dedup, OnConflict
from flows.transfer.progress import Receipt
from flows.transfer.run import TransferRun
from flows.transfer.shipment import Leg, Shipment, discard_staged, staging_key
from flows.transfer.verify import prove, prove_final

log = logging.getLogger("onblock.transfer")

SMALL = 256 << 10
"""Files below this size are read with one call."""
CHUNK = 4 << 20
"""Bytes of a large file on their way at a time: one chunk is hashed while it is written."""


BULK = 8
"""From so many small files on, a destination that can takes them at once."""
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
        self._outcomes: list[Outcome] = []
        # what stopped answering, a destination or the source: the rest of the shipment does not wait for it
        self._away: dict[int, NetworkError] = {}
        self._buffers = _local

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
                self._source = stack.enter_context(run.pool.session(self.job.source))
                self._sessions = [stack.enter_context(run.pool.session(way.storage)) for way in run.ways]
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

    def _far(self) -> bool:
        return any(s.features.parallel > 1 for s in (self._source, *self._sessions))

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
        if len(todo) < BULK or len(self._sessions) > 1 or not self._sessions[0].features.bulk_push:
            return [], todo
        session, source = self._sessions[0], self._source
        files: list[tuple[str, Upload]] = []
        pushed: list[tuple[FileInfo, Leg]] = []
        rest: list[Todo] = []
        for file, legs in todo:
            local = source.local_path(file.path) if file.size < SMALL else None
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
        staged: list[Staged] = []
        for (file, leg), (_, upload), sha256 in zip(
            pushed, files, session.push(files, lambda n: None, self.run.stop), strict=True
        ):
            if sha256 is None:
                self._abort(leg.row_id)
                rest.append((file, [leg]))
                continue
            try:
                staged += self._prove(file, leg, upload, sha256)
            except HashMismatch:
                self._abort(leg.row_id)
                rest.append((file, [leg]))
        return staged, rest

    def _begin(self, file: FileInfo, leg: Leg) -> Upload:
        session, attempt = self._sessions[leg.way], self._claims[leg.row_id].attempt
        discard_staged(session, leg.dest_path, file.path, file.version, attempt)
        upload = self._uploads[leg.row_id] = session.upload(
            leg.dest_path, file.size, key=staging_key(file.path, file.version, attempt), mtime_ns=file.mtime_ns
        )
        return upload

    def _prove(self, file: FileInfo, leg: Leg, upload: Upload, sha256: str) -> list[Staged]:
        """The staged file, if what arrived is what was read. Raises HashMismatch; other failures are accounted for."""
        try:
            verified_by = prove(upload, sha256, self.job.verify)
            upload.seal()
        except HashMismatch:
            raise
        except OnblockError as error:
            self._fail(leg, error, "verify")
            return []
        return [Staged(leg, file, upload, sha256, verified_by)]

    def _stage(self, file: FileInfo, legs: list[Leg], *, again: bool = False) -> list[Staged]:
        """Read one file once and stage it at its destinations."""
        self._check_stop(file)
        open_legs: list[Leg] = []
        try:
            with self._source.read(file.path) as reader:
                for leg in legs:
                    try:
                        self._begin(file, leg)
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
        digest = hashlib.sha256()
        if file.size < SMALL:
            got = reader.readinto(self._buffers.small)
            chunk = self._buffers.small_view[:got]
            digest.update(chunk)
            self._write(chunk, legs)
        else:
            got = 0
            for turn in range(1 << 62):
                self._check_stop(file)
                view = self._buffers.large(turn % 2)
                n = reader.readinto(view)
                if not n or not legs:
                    break
                got += n
                hashing = self._buffers.hasher.submit(digest.update, view[:n])
                try:
                    self._write(view[:n], legs)
                finally:
                    hashing.result()
                self.run.meter.moved(0, n)
        if legs and (got != file.size or reader.info().version[:2] != file.version[:2]):
            raise SourceChanged("changed while it was read", path=file.path)
        return digest.hexdigest()

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
            return prove_final(session, path, ready.file.size, ready.sha256, self.job.verify)
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
        self.run.meter.moved(1, ready.file.size if ready.file.size < SMALL else 0)

    def _fail(self, leg: Leg, error: OnblockError, stage: str) -> None:
        """Account for a row that is ours and failed: the kind decides what follows. Other rows are left alone."""
        self._abort(leg.row_id)
        claim = self._claims.pop(leg.row_id, None)
        if claim is None:
            return
        if isinstance(error, NetworkError):
            self._away[SOURCE if stage == "read" else leg.way] = error
        tries = claim.tries + (error.kind not in (Kind.CANCELLED, Kind.PAUSED))
        state, next_attempt_at = retry.after(error.kind, tries, claim.queued_at, now_ms())
        if state in (State.FAILED, State.QUARANTINED):
            self.receipt.failed += 1
        else:
            self.receipt.deferred += 1
        if error.kind is not Kind.CANCELLED:
            self.failures.add(error.kind)
            log.warning("%s %s at %s: %s", state, error.kind, stage, error)
        self._outcomes.append(Outcome(
            claim.id, claim.attempt, state, failure=error, stage=stage, tries=tries, next_attempt_at=next_attempt_at
        ))  # fmt: skip
        self.run.meter.moved(1, 0)

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


class _Buffers(threading.local):
    """Buffers of one thread, made once: memory does not grow with files or shipments."""

    def __init__(self) -> None:
        self.small = aligned_buffer(SMALL)
        self.small_view = memoryview(self.small)
        self._large: list[memoryview] = []
        self._hasher: ThreadPoolExecutor | None = None

    def large(self, turn: int) -> memoryview:
        """One of two large buffers."""
        if not self._large:
            self._large = [memoryview(aligned_buffer(CHUNK)) for _ in range(2)]
        return self._large[turn]

    @property
    def hasher(self) -> ThreadPoolExecutor:
        """The thread that hashes while this one writes."""
        if self._hasher is None:
            self._hasher = ThreadPoolExecutor(1, "onblock-hash")
        return self._hasher


_local = _Buffers()
