"""Cleanup of the source: which delivered files may go, and the last looks before one does. Nothing else in onblock
deletes or moves what lies at a source (how that one step is done is in `remove.py`).

For each file of the listing: looked at afresh at every destination now and then (a verify pass); once that was done
often enough and long enough ago, its rows are claimed in the ledger, all of them in one statement; then everything is
looked at once more, and the file goes. Whatever does not fit leaves the file where it is, with the reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from blocks import names
from blocks.errors import ConfigError, OnblockError
from blocks.storage.base import FileInfo
from flows.ledger import Ledger, State
from flows.ledger.proofs import Proof
from flows.transfer.aftercare import Action, Cleanup
from flows.transfer.job import TransferJob
from flows.transfer.scan import Filter
from flows.upkeep.look import LOST, condemn, look
from flows.upkeep.remove import Removal, Spared
from flows.upkeep.shift import Shift

log = logging.getLogger("onblock.upkeep")

PAGE = 500
"""Files that are decided about, and claimed, together."""
SHOWN = 100
"""So many files are named in the summary for each outcome; all are counted."""


def may_be_cleaned(proof: Proof, settings: Cleanup, now: int) -> str | None:
    """Why the ledger forbids to clean up after a delivery; None if it does not. `now` is the ledger's clock, in ms.

    `Ledger.claim_cleanup` decides the same in SQL; a file is only cleaned if both agree, at every destination.
    """
    if proof.state is State.CLEANED:
        return "was cleaned up before, and is there again"
    if proof.state is State.CLEANUP_ELIGIBLE:
        return "another cleanup works on it"
    if proof.state is State.RETIRED:
        return "was removed at its destination by retention: this is the last copy"
    if proof.state is not State.VERIFIED:
        return f"is {proof.state}, not VERIFIED"
    if proof.made:
        if proof.sha256 is None:
            return "was delivered without a checksum"
        return next(
            (f"what was made of it {why}" for p in proof.made if (why := may_be_cleaned(p, settings, now))), None
        )
    if proof.sha256 is None or proof.done_at is None or not proof.dest_path:
        return "was delivered without a checksum"
    if proof.manifest is None:
        return "was delivered without a manifest"
    if now < max(proof.done_at, proof.proven_at or 0):
        return "the ledger's clock was set back: it was delivered or proven in the future"
    if proof.proven_at is None or proof.verify_passes < settings.min_verify_passes:
        return f"{proof.verify_passes} of {settings.min_verify_passes} verify passes"
    if now - proof.done_at < settings.min_age.total_seconds() * 1000:
        return "was delivered less than min_age ago"
    return None


def pass_due(proof: Proof, settings: Cleanup, now: int) -> bool:
    """Whether a look now would count as another verify pass that is still needed."""
    if proof.state is not State.VERIFIED or proof.sha256 is None or proof.done_at is None:
        return False
    if proof.verify_passes >= settings.min_verify_passes:
        return False
    return now - (proof.proven_at or proof.done_at) >= settings.passes_apart.total_seconds() * 1000


def clean(job: TransferJob, *, dry: bool = False, flow_run_id: str | None = None) -> dict[str, Any]:
    """Clean up the source of a job; what became of it. A `dry` run only looks into the listing and the ledger.

    Raises ConfigError if the job's cleanup is off, OnblockError if the source or the ledger cannot be used.
    """
    with Ledger.open(create=not dry) as ledger, Shift(job, ledger, dry=dry, flow_run_id=flow_run_id) as shift:
        return Cleaning(shift).carry_out()


class Cleaning:
    """One cleanup under way."""

    def __init__(self, shift: Shift):
        self.shift, self.job, self.settings = shift, shift.job, shift.job.cleanup
        self.ledger = shift.ledger
        self.removal = Removal(shift)
        self.count: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()  # by reason
        self.named: dict[str, list[dict[str, str]]] = {k: [] for k in ("cleaned", "kept", "damaged", "unverified")}

    def carry_out(self) -> dict[str, Any]:
        """All of it; the summary."""
        left = 0 if self.shift.dry else self._settle_left()
        if self.settings.action is Action.OFF:
            if not left:
                raise ConfigError(
                    f"the cleanup of job {self.job.name!r} is off",
                    remedy="write `cleanup: {action: delete}`, or `backup`, in the job",
                )
        else:
            for page in self._pages():
                self.shift.go_on()
                self._clean(page)
        self.shift.summary.update(self._summary())
        return self.shift.summary

    def _pages(self) -> Iterator[list[FileInfo]]:
        """The listing of the source: what the job's patterns mean, whatever its size and age."""
        wanted = Filter(
            self.job.model_copy(update=dict.fromkeys(("min_age", "max_age", "min_size", "max_size"))), now_ns=0
        )
        page: list[FileInfo] = []
        for file in self.shift.source.scan(self.job.folder, wanted.enter):
            if file.problem is None and wanted.wants(file):
                page.append(file)
                if len(page) >= PAGE:
                    yield page  # before it goes on, files of this page are deleted: a listing bears that
                    page = []
        if page:
            yield page

    def _clean(self, page: Sequence[FileInfo]) -> None:
        self.count["scanned"] += len(page)
        below = len(self.job.folder) + 1 if self.job.folder else 0
        mine = []
        for file in page:
            if self.settings.keeps(file.path[below:]):
                self._wait(file.path, "is kept, as the job says")
            else:
                mine.append(file)
        delivered = self._everywhere(mine)
        if not self.shift.dry and self._passes(delivered):
            delivered = self._everywhere([_file(group) for group in delivered])  # with what was just proven
        now = self.ledger.clock()
        ready = []
        for group in delivered:
            reason = next((why for p in group if (why := may_be_cleaned(p, self.settings, now)) is not None), None)
            if reason is None:
                ready.append(group)
            else:
                self._wait(group[0].path, reason)
        if self.shift.dry:
            for group in ready:
                self._cleaned(group)
        elif ready:
            self._remove(ready)

    def _everywhere(self, files: Sequence[FileInfo]) -> list[list[Proof]]:
        """The rows of each file that was delivered to every destination."""
        groups = []
        for file, group in zip(files, self.ledger.proofs_of(self.shift.routes, files), strict=True):
            if len(group) == len(self.shift.routes):
                groups.append(group)
            elif group:
                self._wait(file.path, "was not delivered to every destination")
            else:
                self._wait(file.path, "is unknown: this version was never delivered")
        return groups

    # -- verify passes --------------------------------------------------------------------------------------------------

    def _passes(self, groups: Sequence[Sequence[Proof]]) -> bool:
        """Look at what is due; whether anything was."""
        now = self.ledger.clock()
        proven: list[tuple[int, int]] = []
        lost: list[tuple[Proof, OnblockError]] = []
        looked = False
        try:
            for group in groups:
                for proof in (one for origin in group for one in origin.delivered):
                    if pass_due(proof, self.settings, now):
                        looked = True
                        self.shift.go_on()
                        try:
                            look(self._destination(proof), proof)
                            proven.append((proof.id, proof.attempt))
                        except LOST as error:
                            lost.append((proof, error))
                        except OnblockError as error:
                            self._name("unverified", proof, error)
        finally:  # also when somebody stops it
            self.ledger.proven(proven, int(self.settings.passes_apart.total_seconds() * 1000))
            self.count["passes"] += len(proven)
            for proof, error in condemn(self.ledger, lost):
                self._name("damaged", proof, error)
        return looked

    def _destination(self, proof: Proof) -> Any:
        return self.shift.sessions[self.shift.routes.index(proof.route_id)]

    # -- removal --------------------------------------------------------------------------------------------------------

    def _remove(self, groups: Sequence[Sequence[Proof]]) -> None:
        """Claim, and let go one by one what was claimed at every destination."""
        settings, shift = self.settings, self.shift
        ids = [proof.id for group in groups for proof in group]
        claims = self.ledger.claim_cleanup(
            shift.id, shift.routes, ids, min_passes=settings.min_verify_passes,
            min_age_ms=int(settings.min_age.total_seconds() * 1000),
        )  # fmt: skip
        self._carry_away(_grouped(claims))

    def _carry_away(self, groups: Sequence[list[Proof]]) -> None:
        """Rows of ours: each group goes or is spared. What is open when this is broken off is spared, too."""
        removal = self.removal
        removal.begin(groups)
        done: list[Proof] = []
        spared: list[Proof] = []
        lost: list[tuple[Proof, OnblockError]] = []
        left = list(groups)
        try:
            while left:
                group = left.pop(0)
                try:
                    self.shift.go_on()
                    done += removal.remove(group)
                    self._cleaned(group)
                except Spared as reason:
                    spared += reason.rows
                    lost += reason.lost
                    for proof, error in reason.lost:
                        self._name("damaged", proof, error)
                    if not reason.lost:
                        self._name("unverified" if reason.unsure else "kept", group[0], reason)
                except BaseException:
                    if not removal.aside(group):
                        spared += group
                    raise
        finally:
            self.ledger.cleaned(self.shift.id, done)
            self.ledger.condemn_cleanup(self.shift.id, lost)
            condemn(self.ledger, [pair for pair in lost if pair[0].state is State.VERIFIED])  # what was made of ours
            self.ledger.spared(self.shift.id, [*spared, *(p for group in left for p in group)])

    def _settle_left(self) -> int:
        """What cleanups have left that died: moved, still there, or not to be found, which proves nothing: those are
        VERIFIED again, as before, and looked for again by each cleanup. How many files were settled."""
        died, missed = self.ledger.take_over_cleanups(self.shift.id, self.shift.routes)
        groups = [(group, False) for group in _grouped(died)] + [(group, True) for group in _grouped(missed)]
        settled = 0
        for group, again in groups:
            outcome = self.removal.look_after(group)
            settled += not (again and outcome is not None and outcome.nowhere)
            if outcome is None:
                self._name("unverified", group[0], "is neither here nor there; looked after by the next cleanup")
            elif outcome.gone:
                self.ledger.cleaned(self.shift.id, outcome.rows)
                self._cleaned(group)
            else:
                self.ledger.spared(self.shift.id, outcome.rows, missed=outcome.nowhere)
                if outcome.nowhere and not again:
                    self._wait(group[0].path, "is not at the source any more; a cleanup that died had it in hand")
        return settled

    # -- the summary ----------------------------------------------------------------------------------------------------

    def _wait(self, path: str, reason: str) -> None:
        self.waiting[reason] += 1

    def _cleaned(self, group: Sequence[Proof]) -> None:
        self.count["cleaned"] += 1
        self.count["bytes"] += group[0].size
        if len(self.named["cleaned"]) < SHOWN:
            self.named["cleaned"].append({"path": names.display(group[0].path)})

    def _name(self, outcome: str, proof: Proof, why: object) -> None:
        self.count[outcome] += 1
        log.log(
            logging.WARNING if outcome != "kept" else logging.INFO, "%s %s: %s", outcome, names.display(proof.path), why
        )
        if len(self.named[outcome]) < SHOWN:
            what = why.what if isinstance(why, OnblockError) else str(why)
            self.named[outcome].append({"path": names.display(proof.path), "why": what})

    def _summary(self) -> dict[str, Any]:
        counts = {k: self.count[k] for k in ("scanned", "passes", "cleaned", "bytes", "kept", "damaged", "unverified")}
        return {
            "job": self.job.name, "run_id": self.shift.id, "dry_run": self.shift.dry, "action": str(self.settings.action),
            **counts, "waiting": dict(self.waiting), "files": self.named,
        }  # fmt: skip


def _grouped(proofs: Iterable[Proof]) -> list[list[Proof]]:
    """Rows by file version."""
    groups: dict[tuple[str, int, int, str], list[Proof]] = {}
    for proof in sorted(proofs):
        groups.setdefault((proof.path, *proof.version), []).append(proof)
    return list(groups.values())


def _file(group: Sequence[Proof]) -> FileInfo:
    return FileInfo(group[0].path, *group[0].version)
