"""Staging: one read of each file, hashed on the way, written under temporary names to every destination, and proven.

Which rows are ours is in `accounts.py`; the final names are given in `move.py`; how bytes get there is in `blocks/storage`.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from typing import Any

from blocks.errors import Cancelled, HashMismatch, Kind, OnblockError, Paused, SourceChanged
from blocks.storage.base import FileInfo, Reader, Session, Upload
from flows.ledger.states import State
from flows.ledger.wishes import Wish
from flows.transfer import bulk, pump
from flows.transfer.accounts import SOURCE, Accounts, Staged
from flows.transfer.job import Verify
from flows.transfer.reservations import does_not_fit, needed
from flows.transfer.resume import CHECKPOINT, STEP, Journal, last_checkpoint
from flows.transfer.shipment import Leg, discard_staged, staging_key
from flows.transfer.throttle import Bucket, SlowReader
from flows.transfer.verify import prove

log = logging.getLogger("onblock.transfer")

Todo = tuple[FileInfo, list[Leg]]
Taker = Callable[[memoryview], object]


class Staging(Accounts):
    """The first half of a delivery."""

    _source: Session
    _sessions: list[Session]

    def _stage_all(self) -> list[Staged]:
        self._judge_again()
        todo = [
            (file, mine)
            for file, legs in self.shipment.items
            if (mine := [leg for leg in legs if leg.row_id in self._claims])
        ]
        self._make_room(todo)
        staged, todo = self._push([t for t in todo if t[1]])
        for file, legs in todo:
            reachable = []
            for leg in legs:
                if leg.row_id not in self._claims:
                    continue  # the gate has stopped it meanwhile
                if SOURCE in self._away:
                    self._fail(leg, self._away[SOURCE], "read")
                elif leg.way in self._away:
                    self._fail(leg, self._away[leg.way], "write")
                else:
                    reachable.append(leg)
            if reachable:
                staged += self._stage(file, reachable)
        return staged

    def _make_room(self, todo: list[Todo]) -> None:
        """Reserve room for the files at each destination, and take out what does not fit, before anything is written."""
        room = self.run.room
        for number, (way, session) in enumerate(zip(self.ways, self._sessions, strict=True)):
            place = room.place(way.storage, session)
            if not self.shipment.large:  # as a rule all of them fit
                sizes = [file.size for file, _ in todo]
                hold, short = room.take(place, [needed(sum(sizes), unknown=0)], session.free_bytes)
                if short == [None] and (not sizes or min(sizes) >= 0):
                    self._holds[number] = place, hold
                    continue
                room.release(place, hold)
            mine = [(file, legs, leg) for file, legs in todo for leg in legs if leg.way == number]
            needs = [needed(f.size, unknown=self.job.unknown_size, there=self._there(f, leg)) for f, _, leg in mine]
            hold, fits = room.take(place, needs, session.free_bytes)
            self._holds[number] = place, hold
            for (file, legs, leg), need, there in zip(mine, needs, fits, strict=True):
                if there is not None:
                    legs.remove(leg)
                    self._fail(leg, does_not_fit(file.path, way.storage.place(), need, there), "write")

    def _there(self, file: FileInfo, leg: Leg) -> int:
        """Bytes of a file that an earlier attempt kept at the destination."""
        if file.size < CHECKPOINT or not self._sessions[leg.way].features.resume_write:
            return 0
        kept = Journal.parse(self._claims[leg.row_id].journal)
        return kept.checkpoints[-1][0] if kept is not None and kept.checkpoints else 0

    def _push(self, todo: list[Todo]) -> tuple[list[Staged], list[Todo]]:
        """Stage many small local files at once where the destination can; those, and what is to be sent singly."""
        if (
            self.run.held
            or len(todo) < bulk.MANY
            or len(self._sessions) > 1
            or not bulk.may(self.run, self._sessions[0].features, "up")
        ):
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
            pushed, files, bulk.push(self.run, session, files, [f.size for f, _ in pushed], self._pushed), strict=True
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

    def _pushed(self, count: int) -> None:
        self.run.meter.moved(0, count)
        self._holds[0][1].wrote(count)

    def _begin(self, file: FileInfo, leg: Leg) -> Upload:
        """Begin to write a file, or go on with what an earlier attempt kept of a large one."""
        session, claim = self._sessions[leg.way], self._claims[leg.row_id]
        key = staging_key(file.path, file.version, claim.attempt)
        old = None if leg.row_id in self._again else Journal.parse(claim.journal)
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

    def _stage(self, file: FileInfo, legs: list[Leg]) -> list[Staged]:
        """Read one file once and stage it at its destinations; once more where it does not arrive as it was read."""
        legs = list(legs)
        self._heed(file, legs)
        if not legs:
            return []
        open_legs: list[Leg] = []
        try:
            with nullcontext() if self._may_go_on(file, legs) else self._open(file, open_legs) as reader:
                for leg in legs:
                    try:
                        self._begin(file, leg)
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
            again = [leg for leg in legs if self._once_more(leg, error)]
            for leg in legs:
                if leg not in again:
                    self._fail(leg, error, "read")
            return self._stage(file, again)

        staged: list[Staged] = []
        again = [leg for leg in legs if leg.row_id in self._claims and leg not in open_legs]  # hurt while written
        for leg in open_legs:
            upload = self._uploads[leg.row_id]
            try:
                staged += self._prove(file, leg, upload, sha256)
            except HashMismatch as error:
                if self._once_more(leg, error):
                    again.append(leg)
                else:
                    self._fail(leg, error, "verify")
        return staged + (self._stage(file, again) if again else [])

    def _open(self, file: FileInfo, legs: list[Leg], offset: int = 0) -> Reader:
        """The file at the source, as fast as the limits allow."""
        reader = self._source.read(file.path, offset)
        if self.run.throttle is None or self.shipment.source or bulk.is_fetched(self._source, file.path):
            return reader

        def wanted() -> bool:
            self._heed(file, legs)
            return bool(legs)

        return SlowReader(reader, self.run.throttle.down, wanted)

    def _may_go_on(self, file: FileInfo, legs: list[Leg]) -> bool:
        """Whether an earlier attempt may have left the beginning of a file: then it is seen later where to open it."""
        return file.size >= CHECKPOINT and any(
            self._sessions[leg.way].features.resume_write
            and leg.row_id not in self._again
            and Journal.parse(self._claims[leg.row_id].journal) is not None
            for leg in legs
        )

    def _pump(self, reader: Reader | None, file: FileInfo, legs: list[Leg]) -> str:
        """Bytes from the reader to the uploads, hashed on the way; their SHA-256. Legs that fail are taken out. Without a
        reader, the file goes on where an earlier attempt ended."""
        if reader is not None and file.size < pump.SMALL:
            chunk, sha256 = pump.small(reader)
            got = len(chunk)
            self._write(chunk, file, legs)
        else:
            with ExitStack() as stack:
                got, digest = 0, hashlib.sha256()
                if reader is None:
                    reader, got, digest = self._go_on(stack, file, legs)
                self.run.meter.moved(0, got)
                pieces = pump.chunks(reader, digest, got, lambda at, sha256: self._checkpoint(legs, at, sha256))
                with closing(pieces):
                    for chunk in pieces:
                        self._heed(file, legs)
                        self._write(chunk, file, legs)
                        if not legs:
                            break
                        got += len(chunk)
                        self.run.meter.moved(0, len(chunk))
                        if got > file.size:  # somebody writes on, maybe as fast as we read
                            break
                        self.run.watcher.progress(self._phase, file.path, got / file.size if file.size > 0 else 0.0)
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

    def _go_on(self, stack: ExitStack, file: FileInfo, legs: list[Leg]) -> tuple[Reader, int, Any]:
        """The source, opened where all legs can go on, or at its beginning; where that is; and the SHA-256 object over what
        comes before."""
        uploads = [self._uploads[leg.row_id] for leg in legs]
        features = [self._sessions[leg.way].features for leg in legs]
        step = math.lcm(STEP, *(f.resume_step for f in features))
        from_source = not self._far(self._source) or not all(f.staged_digest for f in features)

        def place(offset: int) -> tuple[int, str]:
            if from_source or not offset:
                return offset - offset % step, ""
            return last_checkpoint(self._journals[legs[0].row_id].checkpoints, offset, step)

        start, expected = place(min(u.offset for u in uploads))
        if start > file.size:
            start = 0
        while start and (low := min([u.rewind(start) for u in uploads])) < start:  # some go on only where a part begins
            start, expected = place(low)
        found = None
        if start and not from_source:
            found = self._replayed(stack, file, legs, start, expected)
            if found is None:
                log.warning("%s: what an earlier attempt left is damaged; sent from its beginning", file.path)
                start = 0
        if not start:
            self._heed(file, legs)  # reading it back took its time
            for upload in (self._uploads[leg.row_id] for leg in legs):
                if upload.offset:
                    upload.rewind(0)
        if found is None:
            found = stack.enter_context(self._open(file, legs)), hashlib.sha256()
            if start and pump.skip(*found, start, lambda: self._check_stop(file)) != start:
                raise SourceChanged("became shorter while it was read", path=file.path)
        if start:
            self._resumed.update(leg.row_id for leg in legs)
            for leg in legs:
                journal = self._journals[leg.row_id]
                journal.checkpoints = [c for c in journal.checkpoints if c[0] <= start]
            log.info("%s: goes on at %d of %d bytes", file.path, start, file.size)
        return found[0], start, found[1]

    def _replayed(
        self, stack: ExitStack, file: FileInfo, legs: list[Leg], start: int, expected: str
    ) -> tuple[Reader, Any] | None:
        """The source, opened at `start`, and the SHA-256 object over what the destinations hold before it; None if one of
        them does not hold what was sent. Where the source proves what is read, it is shown that, too."""
        proven = self._source.features.proven_reads
        reader = stack.enter_context(self._open(file, legs, start)) if proven else None
        before = reader and reader.before
        digest = hashlib.sha256()
        for leg in legs:
            digest = hashlib.sha256()
            self._uploads[leg.row_id].replay(_both(digest.update, before))
            if digest.hexdigest() != expected:
                return None
            before = None  # once is enough: it is the same
        return reader or stack.enter_context(self._open(file, legs, start)), digest

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

    def _write(self, chunk: memoryview, file: FileInfo, legs: list[Leg]) -> None:
        throttle = self.run.throttle
        if throttle is not None and (
            up := [throttle.up[self.run.ways.index(w)] for w in self.ways if w in self.run.ways]
        ):
            self._write_slowly(chunk, file, legs, up)
            return
        for leg in tuple(legs):
            self._write_to(leg, chunk, legs)

    def _write_slowly(self, chunk: memoryview, file: FileInfo, legs: list[Leg], buckets: list[Bucket]) -> None:
        """A chunk in portions, each when it may pass. Who does not want the file any more is heard while it waits."""

        def wanted(leg: Leg) -> bool:
            self._heed(file, legs)
            return leg in legs

        while legs and len(chunk):
            part = chunk[: min(buckets[leg.way].portion() for leg in legs)]
            chunk = chunk[len(part) :]
            for leg in tuple(legs):
                buckets[leg.way].take(len(part), lambda leg=leg: wanted(leg))
                if leg in legs:
                    self._write_to(leg, part, legs)

    def _write_to(self, leg: Leg, chunk: memoryview, legs: list[Leg]) -> None:
        try:
            self._uploads[leg.row_id].write(chunk)
            self._holds[leg.way][1].wrote(len(chunk))
        except OnblockError as error:
            legs.remove(leg)
            if not self._once_more(leg, error):
                self._fail(leg, error, "write")

    def _judge_again(self) -> bool:
        """Give up the files that may not pass any more, where overrides have ended since they were planned; whether it
        was looked at. What steps made was judged just before."""
        gate = self.run.gate
        if self._judged == gate.withdrawn or self.shipment.source is not None or self.ways is not self.run.ways:
            return False
        self._judged = gate.withdrawn
        for number, session in enumerate(self._sessions):
            mine = [
                (file, leg) for file, legs in self.shipment.items for leg in legs
                if leg.way == number and leg.row_id in self._claims
            ]  # fmt: skip
            passages = gate.judge([file for file, _ in mine], session.features)
            for (_, leg), passage in zip(mine, passages, strict=True):
                if passage.state is State.BLOCKED:
                    self._stopped(leg, passage)
        return True

    def _check_stop(self, file: FileInfo) -> None:
        if self.run.stop.is_set():
            raise Cancelled("the run was stopped", path=file.path)

    def _heed(self, file: FileInfo, legs: list[Leg]) -> None:
        """Take out the legs of a file that somebody wants paused or cancelled, or that may not pass any more. Raises
        Cancelled if the run is stopped."""
        self._check_stop(file)
        if self._lost_some() | self._judge_again():
            legs[:] = [leg for leg in legs if leg.row_id in self._claims]
        if not (self.run.wishes or self.run.held):
            return
        for leg in tuple(legs):
            match self.run.wish(leg.row_id, *self.shipment.origins.get(leg.row_id, ())):
                case Wish.PAUSE:
                    self._fail(leg, Paused("was paused", path=file.path), "write")
                case Wish.CANCEL:
                    self._withdraw(leg, file)
                case _:
                    continue
            legs.remove(leg)


def _both(one: Taker, other: Taker | None) -> Taker:
    """Who gives everything to both, the other if there is one."""

    def take(view: memoryview) -> None:
        one(view)
        if other is not None:
            other(view)

    return take
