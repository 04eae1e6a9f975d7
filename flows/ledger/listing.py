"""Pages of the ledger for people and programs that look at a million rows: the newest first, each page in bounded time.

No index is kept for this. Rows by state, or of a job, are read from the index of routes and states, which has the rows of
each pair in order; what no index knows (flight, device, a part of a name) is looked for among those, page by page, for so
long as a page may take, and then the page ends early and says where the next one begins.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, not_, or_, select

from blocks import names
from flows.ledger.connections import Connections
from flows.ledger.models import File, Manifest, Product, Route, Run
from flows.ledger.states import ACTIVE, DONE, State

BUDGET_S = 0.1
"""So long rows are looked at for one page."""
STEP = 2_000
"""So many at a time, where an index names them; and where all are looked at."""
STRIDE = 10_000
LARGEST_ID = (1 << 63) - 1
WAITING = frozenset({
    State.QUEUED, State.PAUSED, State.BLOCKED, State.FAILED, State.QUARANTINED, *ACTIVE,
})  # fmt: skip
"""States in which something is still to be done about a file."""
OVER = DONE | {State.CANCELLED}
"""All others."""
PLAYED = ("%/init.mp4", "%/segment\\_%.m4s")
"""Final names of what only a playlist needs, which stands for them."""
LOOKED_BACK = 20_000
"""So many of the newest rows are looked at for what was over after somebody had put aside what was over."""

_WANTED = (
    "id", "path", "size", "mtime_ns", "etag", "state", "kind", "stage", "message", "dest_path", "sha256", "verified_by",
    "bytes_done", "attempt", "run_id", "tries", "priority", "wish", "findings", "next_attempt_at", "flight", "device",
    "queued_at", "done_at", "proven_at", "verify_passes", "updated_at",
)  # fmt: skip
_COLUMNS = (*(getattr(File, name) for name in _WANTED), Route.job, Route.destination)


class Aside(NamedTuple):
    """Rows that somebody wants to see no more: what was over at a moment (ms since the epoch), and some by number; each
    until something happens to it. Nothing is taken away by it."""

    over_at: int = 0
    ids: tuple[int, ...] = ()
    ids_at: int = 0


class Wanted(NamedTuple):
    """Which rows; None is any. `text` is a part of a source path, in either case, or a SHA-256."""

    job: str | None = None
    states: frozenset[State] = frozenset()
    flight: str | None = None
    device: str | None = None
    text: str | None = None
    delivered_only: bool = False  # of what was made of a file, and what it was made of: what lies at the destination
    aside: Aside = Aside()


class Page(NamedTuple):
    """Rows, the newest first, and where the next page begins: None where there is nothing left."""

    rows: list[dict[str, Any]]
    next: int | None


class Waiting(NamedTuple):
    """How many files of a job are in a state and why, how large they are together, and since when the oldest waits."""

    job: str
    state: State
    kind: str | None
    files: int
    bytes: int
    oldest_at: int


class Listing(Connections):
    """The ledger for those who look at it in pages: `Listing(ledger.engine)`."""

    def page(self, wanted: Wanted, *, before: int | None = None, limit: int = 50, budget_s: float = BUDGET_S) -> Page:
        """At most `limit` rows with an id below `before`. A page may be short, or empty, and there be more."""
        at = LARGEST_ID if before is None else before
        until = time.monotonic() + budget_s
        found: list[dict[str, Any]] = []
        with self._read() as c:
            ways = self._ways(c, wanted)
            extra = self._extra(wanted)
            everything = ways == [()]
            step = STRIDE if everything and extra else limit + 1
            if everything and extra:
                at = min(at, (c.execute(select(func.max(File.id))).scalar() or 0) + 1)
            while True:
                if everything and extra:  # all ids between two are looked at: they need not be listed first
                    among, below = and_(File.id < at, File.id >= at - step), at - step
                    over = below <= 1
                else:
                    ids = self._candidates(c, ways, at, step)
                    among, below = self._among(File.id, ids), ids[-1] if ids else 0
                    over = len(ids) < step
                query = select(*_COLUMNS).join(Route, Route.id == File.route_id).where(among, *extra)
                rows = c.execute(query.order_by(File.id.desc()).limit(limit + 1 - len(found))).mappings()
                found += [_shown(dict(r)) for r in rows]
                if len(found) > limit:
                    return Page(found[:limit], found[limit - 1]["id"])
                if over:
                    return Page(found, None)
                at, step = below, step if everything else min(2 * step, max(STEP, limit))
                if time.monotonic() > until:
                    return Page(found, at)

    def rows(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """These rows, as far as they are there, the newest first."""
        with self._read() as c:
            query = select(*_COLUMNS).join(Route, Route.id == File.route_id).where(self._among(File.id, list(ids)))
            return [_shown(dict(r)) for r in c.execute(query.order_by(File.id.desc())).mappings()]

    def active(self, limit: int = 200) -> list[dict[str, Any]]:
        """What runs work on at this moment; at most so many."""
        return self.page(Wanted(states=ACTIVE), limit=limit).rows

    def count(self, states: Iterable[State]) -> int:
        """How many files are in one of these states. Read from an index alone."""
        with self._read() as c:
            routes = list(c.execute(select(Route.id)).scalars())
            which = File.route_id.in_(routes), File.state.in_(sorted(states))
            return c.execute(select(func.count()).select_from(File).where(*which)).scalar_one()

    def counts(self) -> dict[tuple[str, State], int]:
        """How many files of each job are in which state. Read from an index alone."""
        with self._read() as c:
            found = c.execute(select(File.route_id, File.state, func.count()).group_by(File.route_id, File.state)).all()
            jobs = {r.id: r.job for r in c.execute(select(Route.id, Route.job))}
        out: dict[tuple[str, State], int] = {}
        for route, state, n in found:
            key = jobs[route], State(state)
            out[key] = out.get(key, 0) + n
        return out

    def waiting(self) -> list[Waiting]:
        """What is still to be done, by job, state and the kind of the last failure."""
        columns = (Route.job, File.state, File.kind)
        with self._read() as c:
            routes = list(c.execute(select(Route.id)).scalars())
            found = c.execute(
                select(*columns, func.count(), func.sum(File.size), func.min(File.queued_at))
                .join(Route, Route.id == File.route_id)
                .where(File.route_id.in_(routes), File.state.in_(sorted(WAITING))).group_by(*columns)
            ).all()  # fmt: skip
        return [Waiting(j, State(s), k, n, int(size or 0), at) for j, s, k, n, size, at in found]

    def flow_runs_of(self, device: str, limit: int) -> list[str]:
        """The last flow runs of Prefect's that moved files of a device."""
        with self._read() as c:
            query = select(Run.flow_run_id).where(Run.device == device, Run.flow_run_id.is_not(None))
            return [str(r) for r in c.execute(query.order_by(Run.started_at.desc()).limit(limit)).scalars()]

    def run(self, run_id: str) -> dict[str, Any] | None:
        """One run."""
        with self._read() as c:
            found = c.execute(select(Run.__table__).where(Run.id == run_id)).mappings().first()
        return None if found is None else dict(found)

    def manifest_of(self, row_id: int) -> str | None:
        """The path, at its destination, of the manifest that names a file."""
        query = select(Manifest.path).join(File, File.manifest_id == Manifest.id).where(File.id == row_id)
        with self._read() as c:
            return c.execute(query).scalar()

    def runs_of(self, flow_run_ids: Sequence[str]) -> list[dict[str, Any]]:
        """What these flow runs of Prefect's were in the ledger, in the order in which they began."""
        query = select(Run.__table__).where(Run.flow_run_id.in_(list(flow_run_ids))).order_by(Run.started_at)
        with self._read() as c:
            return [dict(r) for r in c.execute(query).mappings()]

    def last_runs(self, most: int) -> list[dict[str, Any]]:
        """The runs that began last, the newest first."""
        query = select(Run.__table__).order_by(Run.started_at.desc()).limit(most)
        with self._read() as c:
            return [dict(r) for r in c.execute(query).mappings()]

    def routes(self) -> list[tuple[str, str]]:
        """(job, destination) of all there are."""
        with self._read() as c:
            return [(r.job, r.destination) for r in c.execute(select(Route.job, Route.destination).order_by(Route.id))]

    def lineage(self, row_id: int) -> tuple[str | None, list[int], list[int]]:
        """The JSON that tells what a row was made of, the rows it was made of, and those of what was made of it."""
        with self._read() as c:
            told = c.execute(select(File.lineage).where(File.id == row_id)).scalar()
            origins = c.execute(select(Product.origin_id).where(Product.product_id == row_id)).scalars().all()
            products = c.execute(select(Product.product_id).where(Product.origin_id == row_id)).scalars().all()
        return told, list(origins), list(products)

    def kin(self, ids: Sequence[int]) -> dict[int, tuple[tuple[int, ...], str | None]]:
        """Of these rows, and of all others that were made of the same files, but not what only a playlist needs: the rows
        they were made of, and the JSON that tells how."""
        with self._read() as c:
            mine = select(Product.origin_id).where(self._among(Product.product_id, list(ids)))
            pairs = c.execute(
                select(Product.product_id, Product.origin_id, File.lineage)
                .join(File, File.id == Product.product_id)
                .where(Product.origin_id.in_(mine), *_names_itself()).order_by(Product.product_id, Product.origin_id)
            ).all()  # fmt: skip
        found: dict[int, tuple[tuple[int, ...], str | None]] = {}
        for product, origin, told in pairs:
            found[product] = (*found.get(product, ((), None))[0], origin), told
        return found

    @staticmethod
    def _ways(c: Connection, wanted: Wanted) -> list[tuple[ColumnElement[bool], ...]]:
        """Conditions that an index answers, the newest rows first; each row that is wanted fits exactly one of them."""
        if (digest := _digest(wanted)) is not None:
            return [(File.sha256 == digest,)]
        aside = wanted.aside.over_at and not wanted.states
        if (wanted.job is None and not wanted.states and not aside) or _walks(wanted):
            return [()]
        query = select(Route.id) if wanted.job is None else select(Route.id).where(Route.job == wanted.job)
        routes = list(c.execute(query).scalars())
        states = sorted(wanted.states or (WAITING if aside else State))
        ways: list[tuple[ColumnElement[bool], ...]] = [
            (File.route_id == route, File.state == state) for route in routes for state in states
        ]
        if aside:  # no index has times: among the newest
            newest = c.execute(select(func.max(File.id))).scalar() or 0
            recent = File.id > newest - LOOKED_BACK, File.updated_at > wanted.aside.over_at
            if wanted.job is None:
                ways.append((*recent, File.state.in_(sorted(OVER))))
            else:
                ways += [(File.route_id == r, File.state == s, *recent) for r in routes for s in sorted(OVER)]
        return ways

    @staticmethod
    def _candidates(c: Connection, ways: list[tuple[ColumnElement[bool], ...]], below: int, n: int) -> list[int]:
        """The n largest ids below another."""
        newest = select(File.id).where(File.id < below).order_by(File.id.desc()).limit(n)
        each = (c.execute(newest.where(*way)).scalars().all() for way in ways)
        return heapq.nlargest(n, (i for ids in each for i in ids))

    def _extra(self, wanted: Wanted) -> list[ColumnElement[bool]]:
        """What is not asked of an index."""
        extra: list[ColumnElement[bool]] = []
        if wanted.flight is not None:
            extra.append(File.flight == wanted.flight)
        if wanted.device is not None:
            extra.append(File.device == wanted.device)
        if wanted.delivered_only:
            extra += _names_itself()
        if wanted.aside.ids:
            extra.append(or_(not_(self._among(File.id, wanted.aside.ids)), File.updated_at > wanted.aside.ids_at))
        if _digest(wanted) is not None or _walks(wanted):
            if wanted.job is not None:
                extra.append(Route.job == wanted.job)
            if wanted.states:
                extra.append(File.state.in_(sorted(wanted.states)))
            if wanted.aside.over_at and not wanted.states:
                extra.append(_not_over(wanted.aside))
        if wanted.text and _digest(wanted) is None:
            extra.append(File.path.icontains(names.to_text(wanted.text), autoescape=True))
        return extra


def _walks(wanted: Wanted) -> bool:
    """Whether all rows are looked at, the newest first: where no index knows what is asked for, and the states that are
    asked for are not those of a few."""
    unknown = wanted.flight is not None or wanted.device is not None or (wanted.text and _digest(wanted) is None)
    return bool(unknown) and not (wanted.states and wanted.states <= WAITING)


def _names_itself() -> list[ColumnElement[bool]]:
    """That a row has a final name which people look for."""
    return [File.dest_path.is_not(None), *(File.dest_path.not_like(name, escape="\\") for name in PLAYED)]


def _not_over(aside: Aside) -> ColumnElement[bool]:
    return or_(File.state.in_(sorted(WAITING)), File.updated_at > aside.over_at)


def _digest(wanted: Wanted) -> str | None:
    text = (wanted.text or "").strip().lower()
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its paths as they are."""
    row["path"] = names.from_text(row["path"])
    row["dest_path"] = None if row["dest_path"] is None else names.from_text(row["dest_path"])
    return row
