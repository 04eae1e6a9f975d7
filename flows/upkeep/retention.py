"""Retention: backups of cleaned files are removed for good when they are too old, too many or too large together; and so
is what was delivered, which `retire.py` does.

A backup is a file that a cleanup has moved, and that its row names. It is removed only after another fresh look: every
destination holds the file, in its manifest. Other files in the backup folder are nobody's business.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from blocks import names
from blocks.errors import ConfigError, NotFound, OnblockError, SourceChanged
from blocks.storage.base import FileInfo
from flows.ledger import Ledger, State
from flows.ledger.proofs import Proof
from flows.transfer.aftercare import Limits
from flows.transfer.job import TransferJob
from flows.upkeep.forget import forget_missing
from flows.upkeep.look import LOST, condemn, look
from flows.upkeep.remove import Listed
from flows.upkeep.retire import Retirement, beyond
from flows.upkeep.shift import Shift

log = logging.getLogger("onblock.upkeep")

NOT_THERE = "is not there now"


def retain(
    job: TransferJob, *, dry: bool = False, flow_run_id: str | None = None, forget: bool = False
) -> dict[str, Any]:  # fmt: skip
    """Remove the backups and delivered files of a job that are beyond its limits; what became of them. A `dry` run only
    looks. With `forget`, what is missing at the source is forgotten first (`forget.py`).

    Raises ConfigError, and removes nothing, for a job without `retention`, or if a backup that is beyond the limits is
    not verified at every destination.
    """
    if job.retention is None:
        raise ConfigError(
            f"job {job.name!r} has no `retention`",
            remedy="write such as `retention: {backup: {max_age: 30 d}}` in the job",
        )
    backup, delivered = job.retention.backup, job.retention.delivered
    with (
        Ledger.open(create=not dry) as ledger,
        Shift(job, ledger, dry=dry, flow_run_id=flow_run_id, source_may_be_away=backup is None) as shift,
    ):
        shift.summary.update({"run_id": shift.id, "dry_run": dry})
        if forget:
            shift.summary["forgotten"] = forget_missing(shift)
        if backup is not None:
            Retaining(shift, backup).carry_out()
        if delivered is not None:
            shift.summary["delivered"] = [Retirement(shift, n, delivered).carry_out() for n in range(len(shift.routes))]
        return shift.summary


class Retaining:
    """One retention under way."""

    def __init__(self, shift: Shift, limits: Limits):
        self.shift, self.limits, self.ledger = shift, limits, shift.ledger
        self.removed: list[Proof] = []
        self.kept: list[dict[str, str]] = []

    def carry_out(self) -> None:
        """All of it, into the summary."""
        groups = self._backups()
        now = self.ledger.clock()
        count = beyond([(g[0].done_at or now, g[0].size) for g in groups], self.limits, now)
        victims = groups[:count]
        self._refuse_unverified(victims)
        if not self.shift.dry:
            self._remove(victims)
        else:
            self.removed = [g[0] for g in victims]
        self.shift.summary.update({
            "backups": len(groups), "removed": len(self.removed),
            "bytes": sum(p.size for p in self.removed), "kept": self.kept,
            "files": [names.display(p.backup or "") for p in self.removed[:100]],
        })  # fmt: skip

    def _backups(self) -> list[list[Proof]]:
        """Rows by backup, the oldest delivery first."""
        groups: dict[str, list[Proof]] = {}
        for proof in self.ledger.backups(self.shift.routes):
            groups.setdefault(proof.backup or "", []).append(proof)
        return sorted(groups.values(), key=lambda g: (min(p.done_at or 0 for p in g), g[0].id))

    def _refuse_unverified(self, victims: Sequence[Sequence[Proof]]) -> None:
        unverified = [g[0] for g in victims if self._unverified(g)]
        if unverified:
            more = f", and {len(unverified) - 1} more" if len(unverified) > 1 else ""
            raise ConfigError(
                f"retention would delete unverified files: {names.display(unverified[0].backup or '')} is not verified at "
                f"every destination{more}",
                remedy="nothing was deleted; `onblock transfers list --state QUARANTINED` shows what is damaged",
            )

    def _unverified(self, group: Sequence[Proof]) -> bool:
        return (
            {p.route_id for p in group} != set(self.shift.routes)
            or any(p.state is not State.CLEANED or p.sha256 is None or p.manifest is None for p in group)
            or len({p.sha256 for p in group}) != 1
        )

    def _remove(self, victims: Sequence[list[Proof]]) -> None:
        lists = [Listed(session) for session in self.shift.sessions]
        for route, listed in zip(self.shift.routes, lists, strict=True):
            listed.expect([p for g in victims for p in g if p.route_id == route])
        gone: list[Proof] = []
        try:
            for group in victims:
                self.shift.go_on()
                if self._remove_one(group, lists):
                    gone += group
                    self.removed.append(group[0])
        finally:
            self.ledger.backup_gone(gone)

    def _remove_one(self, group: list[Proof], lists: Sequence[Listed]) -> bool:
        """Remove a backup, if the file is still proven; whether it is gone."""
        source, first = self.shift.source, group[0]
        path = first.backup or ""
        lost: list[tuple[Proof, OnblockError]] = []
        try:
            found = self._backup(path)
            if found is None:
                return self._keep(path, NOT_THERE)
            if found.size != first.size or source.checksum(path, fresh=True) != first.sha256:
                return self._keep(path, "is not what was moved there")
            for proof in group:
                number = self.shift.routes.index(proof.route_id)
                if not lists[number].holds(proof):
                    return self._keep(path, "its delivery is not in the manifest as it lies there")
                try:
                    look(self.shift.sessions[number], proof)
                except LOST as error:
                    lost.append((proof, error))
            if lost:
                condemn(self.ledger, lost)
                return self._keep(path, "its delivery is damaged: the backup may be the last copy")
            try:
                source.delete_seen(found)  # all of that took its time
            except SourceChanged:
                return self._keep(path, "has changed while it was looked at")
            except NotFound:
                return self._keep(path, NOT_THERE)
        except OnblockError as error:
            return self._keep(path, str(error))
        return True

    def _backup(self, path: str) -> FileInfo | None:
        """The backup as it is; None if it is not there, which does not say that it is gone: another card may be in."""
        try:
            return self.shift.source.stat(path)
        except NotFound:
            return None

    def _keep(self, path: str, why: str) -> bool:
        log.warning("the backup %s stays: %s", names.display(path), why)
        self.kept.append({"path": names.display(path), "why": why})
        return False
