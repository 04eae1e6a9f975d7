"""Scrub: delivered files are read back, a part at a time, the longest unproven first. What is damaged or lost becomes
QUARANTINED, and is queued again where the source still has that version. Writes nothing to any destination.

What was looked at is written down page by page: a scrub that was stopped goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from blocks import names
from blocks.errors import NetworkError, OnblockError
from blocks.storage.base import Session
from flows.ledger import Ledger
from flows.ledger.proofs import Proof
from flows.transfer.aftercare import parse_part
from flows.transfer.job import TransferJob
from flows.upkeep.look import LOST, condemn, look
from flows.upkeep.shift import Shift

log = logging.getLogger("onblock.upkeep")

PAGE = 100
Told = Callable[[str, dict[str, Any]], object]
"""Takes an event's name and payload: of each file that is damaged or lost."""


def scrub(
    job: TransferJob,
    *,
    part: str | None = None,
    told: Told = lambda event, payload: None,
    flow_run_id: str | None = None,
) -> dict[str, Any]:
    """Look at a part of what a job has delivered; what was found.

    Raises ValueError for a part that is none, ConfigError for a job that was never run, OnblockError if the ledger cannot
    be used. A destination that does not answer is a problem in the summary: nobody can tell about its files.
    """
    share = parse_part(part or job.scrub.part)
    with Ledger.open() as ledger, Shift(job, ledger, flow_run_id=flow_run_id, source_may_be_away=True) as shift:
        return Scrubbing(shift, share, told).carry_out()


class Scrubbing:
    """One scrub under way."""

    def __init__(self, shift: Shift, share: tuple[int, int], told: Told):
        self.shift, self.share, self.told = shift, share, told
        self.ledger = shift.ledger
        self.apart_ms = int(shift.job.cleanup.passes_apart.total_seconds() * 1000)
        self.checked = self.bytes = 0
        self.damaged: list[dict[str, Any]] = []
        self.unverified: list[dict[str, Any]] = []
        self.problems: list[str] = []

    def carry_out(self) -> dict[str, Any]:
        """All destinations; the summary."""
        for number, route_id in enumerate(self.shift.routes):
            self._destination(number, route_id)
        self.shift.summary.update({
            "run_id": self.shift.id, "part": "/".join(map(str, self.share)), "checked": self.checked, "bytes": self.bytes,
            "damaged": self.damaged, "unverified": self.unverified, "problems": self.problems,
            "requeued": sum(d["requeued"] for d in self.damaged),
        })  # fmt: skip
        return self.shift.summary

    def _destination(self, number: int, route_id: int) -> None:
        take, of = self.share
        session = self.shift.sessions[number]
        due = self.ledger.longest_unproven(route_id, -(-self.ledger.count_kept(route_id) * take // of))
        for start in range(0, len(due), PAGE):
            if not self._page(session, due[start : start + PAGE]):
                return

    def _page(self, session: Session, page: Sequence[Proof]) -> bool:
        """Look at some files; whether the destination answers."""
        proven: list[tuple[int, int]] = []
        lost: list[tuple[Proof, OnblockError]] = []
        try:
            for proof in page:
                self.shift.go_on()
                try:
                    look(session, proof)
                    proven.append((proof.id, proof.attempt))
                    self.bytes += proof.size
                except LOST as error:
                    lost.append((proof, error))
                except NetworkError as error:
                    self.problems.append(str(error))
                    return False
                except OnblockError as error:
                    log.warning("%s could not be looked at: %s", names.display(proof.dest_path), error)
                    self.unverified.append({"path": names.display(proof.dest_path), "problem": str(error)})
        finally:  # also when somebody stops it
            self.ledger.proven(proven, self.apart_ms)
            self.checked += len(proven)
            self._tell(lost)
        return True

    def _tell(self, lost: Sequence[tuple[Proof, OnblockError]]) -> None:
        """Write down what is damaged, have it sent again where that can be, and say so."""
        damaged = condemn(self.ledger, lost)
        again = [proof for proof, _ in damaged if self._source_has(proof)]
        queued = self.ledger.queue_again(self.shift.id, again)
        for proof, failure in damaged:
            entry = {
                "path": names.display(proof.dest_path), "problem": failure.what, "kind": str(failure.kind),
                "row": proof.id, "requeued": proof.id in queued,
            }  # fmt: skip
            self.checked += 1
            self.damaged.append(entry)
            remedy = "queued again" if proof.id in queued else "its source is gone: look for another copy"
            log.error("%s %s; %s", entry["path"], failure.what, remedy)
            self.told("onblock.scrub.damaged", {"job": self.shift.job.name, **entry})

    def _source_has(self, proof: Proof) -> bool:
        """Whether the source still shows the version that was delivered."""
        if self.shift.source_is_away:
            return False
        try:
            origins = self.ledger.made_of(proof.id) or [proof]
            return all(self.shift.source.stat(one.path).version == one.version for one in origins)
        except OnblockError as error:
            log.info("%s cannot be taken from the source again: %s", names.display(proof.path), error)
            return False
