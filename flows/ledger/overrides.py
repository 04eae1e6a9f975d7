"""Overrides in the ledger: somebody takes it on himself that files pass in spite of a finding of the gate.

Rows are only ever added, which triggers in the database see to: one that takes another back names it (`revokes`). What
a rule is, and which files a pattern means, `flows/transfer` knows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Select, insert, or_, select
from sqlalchemy.orm import aliased

from blocks import names
from blocks.errors import ConfigError
from flows.ledger.connections import Connections
from flows.ledger.models import File, Route
from flows.ledger.models import Override as Entry


class Revocation(NamedTuple):
    """Who took an override back, why, and when (ms since the epoch)."""

    id: int
    who: str
    why: str
    at: int


class Override(NamedTuple):
    """One override. Times are ms since the epoch."""

    id: int
    job: str
    rule: str
    path: str  # a pattern, as `include` has them
    who: str
    why: str
    made_at: int
    expires_at: int | None = None
    revoked: Revocation | None = None

    def is_active(self, now_ms: int) -> bool:
        """Whether it holds at this moment."""
        return self.revoked is None and (self.expires_at is None or now_ms < self.expires_at)


_LIST = "`onblock overrides list` shows those there are"


class Overrides(Connections):
    """Overrides of a ledger."""

    def override(
        self, job: str, rule: str, path: str, *, who: str, why: str, expires_at: int | None = None
    ) -> Override:
        """Let files of a job pass in spite of what a rule finds. Raises ConfigError, and changes nothing, without a
        reason, or if it would have expired already."""
        why = _reason(why)
        path = path.lstrip("/")  # as patterns are read; and a leading slash means something else in the ledger
        with self._write() as c:
            now = self._now(c)
            if expires_at is not None and expires_at <= now:
                raise ConfigError("the override would have expired before it begins", remedy="give it a time to come")
            number = c.execute(
                insert(Entry).values(
                    job=job, rule=rule, path=names.to_text(path), who=who, why=why, made_at=now, expires_at=expires_at
                ).returning(Entry.id)
            ).scalar_one()  # fmt: skip
        return Override(number, job, rule, path, who, why, now, expires_at)

    def revoke(self, number: int, *, who: str, why: str) -> Override:
        """Take an override back; what it was. Raises ConfigError, and changes nothing, without a reason, or if there is
        nothing to take back."""
        why = _reason(why)
        with self._write() as c:
            now = self._now(c)
            row = c.execute(_all().where(Entry.id == number)).one_or_none()
            if row is None:
                raise ConfigError(f"there is no override {number}", remedy=_LIST)
            found = _override_of(row)
            if found.expires_at is not None and found.expires_at <= now:
                raise ConfigError(f"override {number} has expired: there is nothing to revoke", remedy=_LIST)
            values = {
                "revokes": number, "job": found.job, "rule": found.rule, "path": row.path, "who": who, "why": why,
                "made_at": now,
            }  # fmt: skip
            if found.revoked is not None:
                raise ConfigError(f"override {number} was revoked already, by {found.revoked.who}", remedy=_LIST)
            # of two who revoke at the same moment, the database lets one
            made = c.execute(self._insert(Entry).on_conflict_do_nothing().values(values).returning(Entry.id)).scalar()
            if made is None:
                raise ConfigError(f"override {number} was revoked already", remedy=_LIST)
        return found._replace(revoked=Revocation(made, who, why, now))

    def overrides(self, job: str | None = None, *, active: bool = False) -> list[Override]:
        """Overrides in the order in which they were made: all, those of a job, or those that hold now by the clock of
        the ledger."""
        query = _all().order_by(Entry.id)
        if job is not None:
            query = query.where(Entry.job == job)
        if active:
            query = query.where(
                _taken_back.id.is_(None), or_(Entry.expires_at.is_(None), Entry.expires_at > self._clock())
            )
        with self._read() as c:
            return [_override_of(row) for row in c.execute(query)]

    def was_found(self, job: str, rule: str) -> bool:
        """Whether this rule has found something about a file of the job."""
        with self._read() as c:
            query = select(File.id).join(Route, Route.id == File.route_id).where(
                Route.job == job, File.findings.contains(f'"rule": "{rule}"', autoescape=True)
            )  # fmt: skip
            return c.execute(query.limit(1)).first() is not None


_taken_back = aliased(Entry)


def _all() -> Select[Any]:
    """Overrides, each with its revocation."""
    back = _taken_back
    return (
        select(
            Entry.id, Entry.job, Entry.rule, Entry.path, Entry.who, Entry.why, Entry.made_at, Entry.expires_at,
            back.id.label("revocation"), back.who.label("revoker"), back.why.label("reason"),
            back.made_at.label("revoked_at"),
        ).outerjoin(back, back.revokes == Entry.id).where(Entry.revokes.is_(None))
    )  # fmt: skip


def _override_of(row: Any) -> Override:
    revoked = None
    if row.revocation is not None:
        revoked = Revocation(row.revocation, row.revoker, row.reason, row.revoked_at)
    return Override(
        row.id, row.job, row.rule, names.from_text(row.path), row.who, row.why, row.made_at, row.expires_at, revoked
    )


def _reason(why: str) -> str:
    """The reason, if it is one."""
    why = why.strip()
    if not why:
        raise ConfigError("an override needs a reason", remedy="say why, in a line: whoever reads it later will ask")
    if not why.isprintable():
        raise ConfigError("the reason has to be one line of text")
    return why
