"""Retention at a destination: what a job has delivered there is removed for good when it is too old, too many or too
large together, the first delivered first.

The copy at the destination is the last to go: what the source still shows, or its backup folder, stays. Each file is
read back first, and is removed only if it is what was delivered. Its row is RETIRED from then on: it is not delivered
again, no scrub looks for it, and the manifest does not name it.

    looked at    read back, its source gone, nobody else counts on it
    retired      in the ledger, then in the manifest, so that it never names what is gone
    removed      unless it has changed since

Where this is stopped in between, the rows are what they were; after `kill -9` the next retention sees to that.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from blocks import names
from blocks.errors import NotFound, OnblockError, SourceChanged
from blocks.storage.base import FileInfo
from flows.ledger.connections import pages
from flows.ledger.proofs import Proof
from flows.ledger.states import State
from flows.transfer.aftercare import Limits
from flows.transfer.manifest import bring_up
from flows.upkeep.look import LOST, condemn, is_there, look
from flows.upkeep.remove import SURE_S
from flows.upkeep.shift import Shift

log = logging.getLogger("onblock.upkeep")

PAGE = 200
"""Files that are looked at, and retired, together."""
SHOWN = 100
"""So many files are named in the summary; all are counted."""


class Excess:
    """How much more there is than may stay, as the oldest go one by one."""

    def __init__(self, limits: Limits, now: int, files: int, size: int):
        self.limits, self.now, self.files, self.size = limits, now, files, size

    def goes(self, when: int, size: int) -> bool:
        """Whether the oldest of what is left, of this time (ms) and these bytes, has to go; it is counted out then."""
        limits = self.limits
        too_old = limits.max_age is not None and self.now - when > limits.max_age.total_seconds() * 1000
        too_many = limits.max_files is not None and self.files > limits.max_files
        too_large = limits.max_size is not None and self.size > limits.max_size
        if not (too_old or too_many or too_large):
            return False
        self.files, self.size = self.files - 1, self.size - size
        return True


def beyond(files: Iterable[tuple[int, int]], limits: Limits, now: int) -> int:
    """How many of these files, (time in ms, bytes) each with the oldest first, have to go."""
    ordered = list(files)
    excess = Excess(limits, now, len(ordered), sum(size for _, size in ordered))
    for n, (when, size) in enumerate(ordered):
        if not excess.goes(when, size):
            return n
    return len(ordered)


class Retirement:
    """One retention at one destination of a job, under way."""

    def __init__(self, shift: Shift, number: int, limits: Limits):
        self.shift, self.limits, self.ledger = shift, limits, shift.ledger
        self.route_id, self.session = shift.routes[number], shift.sessions[number]
        self.place = shift.job.destinations[number].place()
        self.files = self.removed = self.bytes = self.unremoved = 0
        self.waiting: Counter[str] = Counter()
        self.kept: list[dict[str, str]] = []
        self.named: list[str] = []
        self.problem = ""
        self._sure_at = 0.0

    def carry_out(self) -> dict[str, Any]:
        """All of it; the summary. A destination that does not answer is a problem in it."""
        try:
            if not self.shift.dry:
                self._settle_left()
            for page in pages(self._victims(), PAGE):
                self.shift.go_on()
                self._page(page)
        except OnblockError as error:
            log.error("retention at %s: %s", self.place, error)
            if error.kind == "CANCELLED":
                raise
            self.problem = str(error)
        return {
            "place": self.place, "files": self.files, "removed": self.removed, "bytes": self.bytes,
            "waiting": dict(self.waiting), "unremoved": self.unremoved, "kept": self.kept, "names": self.named,
            "problem": self.problem,
        }  # fmt: skip

    def _victims(self) -> list[int]:
        """The rows that are beyond the limits, the oldest first."""
        self.files, size = self.ledger.weigh(self.route_id)
        excess = Excess(self.limits, self.ledger.clock(), self.files, size)
        found: list[int] = []
        for file in self.ledger.oldest(self.route_id):
            if not excess.goes(file.done_at, file.size):
                break
            found.append(file.id)
        return found

    def _page(self, row_ids: Sequence[int]) -> None:
        seen: dict[int, FileInfo] = {}
        ready: list[Proof] = []
        lost: list[tuple[Proof, OnblockError]] = []
        for proof in self.ledger.delivered(row_ids):
            self.shift.go_on()
            if (reason := self._stays(proof)) is not None:
                self.waiting[reason] += 1
            elif self.shift.dry:
                self._gone(proof)
            else:
                try:
                    seen[proof.id] = look(self.session, proof)
                    ready.append(proof)
                except LOST as error:
                    lost.append((proof, error))
        for proof, error in condemn(self.ledger, lost):
            self._keep(proof, f"is not what was delivered: {error.what}")
        if ready:
            self._remove(ready, seen)

    def _stays(self, proof: Proof) -> str | None:
        """Why a file stays, although it is beyond the limits; None if nothing speaks for it."""
        if proof.state not in (State.VERIFIED, State.CLEANED):
            return "a cleanup works on it"
        if proof.backup is not None:
            return "its backup at the source is still there"
        for origin in self.ledger.origins_of(proof.id) or [proof]:
            if self.shift.source_is_away:
                if origin.state is not State.CLEANED:
                    return "its source is away, and may still have it"
                continue
            try:
                if self.shift.source.stat(origin.path).version == origin.version:
                    return "its source still has it"
            except NotFound:
                continue
        return None

    def _remove(self, ready: Sequence[Proof], seen: dict[int, FileInfo]) -> None:
        """Retire these, and remove what could be retired; what was not removed is as before."""
        taken = self.ledger.retire(self.shift.id, self.route_id, ready)
        self._sure_at = time.monotonic()
        open_ = dict(taken)  # neither removed nor given back
        gone: list[int] = []
        try:
            self._list()
            for proof in ready:
                if proof.id not in taken:
                    self.waiting["something else counts on it, or it has moved in this moment"] += 1
                    continue
                self.shift.go_on()
                if self._still_ours(open_) and self._delete(proof, seen[proof.id]):
                    gone += open_.pop(proof.id)
                    self._gone(proof)
        finally:  # also when somebody stops it
            self.ledger.retired(self.shift.id, gone)
            if open_:
                self.ledger.unretire(self.shift.id, [i for ids in open_.values() for i in ids])
                self._list()

    def _list(self) -> None:
        """Bring the manifests of the destination up to the ledger."""
        bring_up(self.ledger, self.shift.id, self.place, self.session)

    def _still_ours(self, open_: dict[int, list[int]]) -> bool:
        if time.monotonic() - self._sure_at >= SURE_S:
            if not self.ledger.holds_retired(self.shift.id, [i for ids in open_.values() for i in ids]):
                return False
            self._sure_at = time.monotonic()
        return True

    def _delete(self, proof: Proof, seen: FileInfo) -> bool:
        """Remove one file, if it is still the one that was read back; whether it is gone."""
        try:
            self.session.delete_seen(seen)
        except SourceChanged:
            self._keep(proof, "has changed while it was looked at")
            return False
        except NotFound:
            self._keep(proof, "is not there now")
            return False
        return True

    def _settle_left(self) -> None:
        """Rows of retentions that died: what they were if the file is there, else retired for good."""
        left = self.ledger.take_over_retired(self.shift.id, self.route_id)
        there: list[int] = []
        gone: list[int] = []
        for proof in left:
            self.shift.go_on()
            if is_there(self.session, proof.dest_path):
                there.append(proof.id)
            elif proof.manifest is None or is_there(self.session, proof.manifest):
                gone.append(proof.id)  # else the destination may not be mounted: looked after by the next retention
        self.ledger.retired(self.shift.id, gone)
        self.ledger.unretire(self.shift.id, there)
        if left:
            self._list()

    # -- the summary ----------------------------------------------------------------------------------------------------

    def _gone(self, proof: Proof) -> None:
        self.removed += 1
        self.bytes += proof.size
        if len(self.named) < SHOWN:
            self.named.append(names.display(proof.dest_path))

    def _keep(self, proof: Proof, why: str) -> None:
        log.warning("%s stays at %s: %s", names.display(proof.dest_path), self.place, why)
        self.unremoved += 1
        if len(self.kept) < SHOWN:
            self.kept.append({"path": names.display(proof.dest_path), "why": why})
