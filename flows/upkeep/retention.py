"""Retention: backups of cleaned files are removed for good when they are too old, too many or too large together.

A backup is a file that a cleanup has moved, and that its row names. It is removed only after another fresh look: every
destination holds the file, in its manifest. Other files in the backup folder are nobody's business.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from blocks import names
from blocks.errors import ConfigError, NotFound, OnblockError
from blocks.storage.base import FileInfo
from flows.ledger import Ledger, State
from flows.ledger.proofs import Proof
from flows.transfer.aftercare import Limits
from flows.transfer.job import TransferJob
from flows.upkeep.look import LOST, condemn, look
from flows.upkeep.remove import Listed
from flows.upkeep.shift import Shift

log = logging.getLogger("onblock.upkeep")

NOT_THERE = "is not there now"


def beyond(backups: Iterable[tuple[int, int]], limits: Limits, now: int) -> int:
    """How many of these backups, (time in ms, bytes) each with the oldest first, have to go."""
    ordered = list(backups)
    files, size = len(ordered), sum(b for _, b in ordered)
    gone = 0
    for when, bytes_ in ordered:
        too_old = limits.max_age is not None and now - when > limits.max_age.total_seconds() * 1000
        too_many = limits.max_files is not None and files > limits.max_files
        too_large = limits.max_size is not None and size > limits.max_size
        if not (too_old or too_many or too_large):
            break
        gone, files, size = gone + 1, files - 1, size - bytes_
    return gone


def retain(job: TransferJob, *, dry: bool = False, flow_run_id: str | None = None) -> dict[str, Any]:
    """Remove the backups of a job that are beyond its limits; what became of them. A `dry` run only looks.

    Raises ConfigError, and removes nothing, for a job without `retention`, or if one of those beyond the limits is not
    verified at every destination.
    """
    if job.retention is None:
        raise ConfigError(
            f"job {job.name!r} has no `retention`",
            remedy="write such as `retention: {backup: {max_age: 30 d}}` in the job",
        )
    with Ledger.open(create=not dry) as ledger, Shift(job, ledger, dry=dry, flow_run_id=flow_run_id) as shift:
        return Retaining(shift, job.retention.backup).carry_out()


class Retaining:
    """One retention under way."""

    def __init__(self, shift: Shift, limits: Limits):
        self.shift, self.limits, self.ledger = shift, limits, shift.ledger
        self.removed: list[Proof] = []
        self.kept: list[dict[str, str]] = []

    def carry_out(self) -> dict[str, Any]:
        """All of it; the summary."""
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
            "run_id": self.shift.id, "dry_run": self.shift.dry, "backups": len(groups), "removed": len(self.removed),
            "bytes": sum(p.size for p in self.removed), "kept": self.kept,
            "files": [names.display(p.backup or "") for p in self.removed[:100]],
        })  # fmt: skip
        return self.shift.summary

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
            again = self._backup(path)  # all of that took its time
            if again is None:
                return self._keep(path, NOT_THERE)
            if again.version != found.version:
                return self._keep(path, "has changed while it was looked at")
            try:
                source.delete(path)
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
