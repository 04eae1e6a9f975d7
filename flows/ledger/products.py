"""What steps made of files: which rows stand for it, of which rows it was made, and what that means for those.

A product is a row like any other: claimed, delivered, proven, scrubbed. The row it was made of, its origin, has no final
name of its own: it is VERIFIED when all its products are. What is made, and how, is in `flows/transfer/process.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, and_, bindparam, delete, select, update
from sqlalchemy.orm import aliased

from blocks import names
from blocks.errors import Kind
from flows.ledger.connections import TEMPORARY, Connections, now_ms, pages
from flows.ledger.models import File, Product
from flows.ledger.states import ACTIVE, DONE, State, check_moves
from flows.ledger.wishes import CLEAR, fulfil

BY_PRODUCTS = "products"
"""How an origin is proven: by what was made of it."""
_ASKED_AGAIN = (State.FAILED, State.BLOCKED, State.QUARANTINED, State.CANCELLED, State.PAUSED)
_DELIVERED = (State.VERIFIED, State.CLEANUP_ELIGIBLE, State.CLEANED, State.DUPLICATE)
_versions = Table(
    "versions", MetaData(), Column("n", Integer), Column("path", Text), Column("size", BigInteger),
    Column("mtime_ns", BigInteger), Column("etag", Text), **TEMPORARY,
)  # fmt: skip
_GIVEN_UP = (State.QUEUED, State.FAILED, State.BLOCKED, State.QUARANTINED, State.PAUSED)


class Part(NamedTuple):
    """What became of one product."""

    state: State
    kind: Kind | None = None
    stage: str | None = None
    message: str | None = None
    next_attempt_at: int | None = None
    dest_path: str | None = None


class Fate(NamedTuple):
    """What that means for its origin."""

    state: State
    kind: Kind | None = None
    stage: str | None = None
    message: str | None = None
    next_attempt_at: int | None = None


def fate(parts: Sequence[Part]) -> Fate:
    """What becomes of a file whose products these are: done when all are; else as the worst of them."""
    if not parts:
        return Fate(State.QUEUED)
    for state in (State.QUARANTINED, State.FAILED, State.BLOCKED, State.CANCELLED, State.PAUSED):
        if stopped := [p for p in parts if p.state is state]:
            first = stopped[0]
            where = "" if first.dest_path is None else f"{names.display(first.dest_path)}: "
            to = State.FAILED if state in (State.QUARANTINED, State.BLOCKED) else state
            return Fate(to, first.kind, first.stage, f"{where}{first.message}")
    waiting = [p for p in parts if p.state not in DONE]
    if not waiting:
        return Fate(State.VERIFIED)
    due = min((p.next_attempt_at for p in waiting if p.next_attempt_at is not None), default=None)
    said = next((p for p in waiting if p.message is not None), waiting[0])
    return Fate(State.QUEUED, said.kind, said.stage, said.message, due)


class Products(Connections):
    """The products of a ledger."""

    def link(self, made: Sequence[tuple[Mapping[int, int], Sequence[tuple[int, str]]]]) -> set[int]:
        """(origins, products) each: rows of ours by attempt, and what was made of them, with the JSON that tells its
        lineage. What was made of them before, by other steps, is not delivered any more if it was not yet. Products
        that had been set aside wait again. The origins that were still ours: of others nothing is changed."""
        check_moves((s, State.QUEUED) for s in _ASKED_AGAIN)
        check_moves((s, State.CANCELLED) for s in _GIVEN_UP)
        now = now_ms()
        with self._write() as c:
            held = {i: attempt for origins, _ in made for i, attempt in origins.items()}
            ours: set[int] = set()
            for page in self._lock_ids(c, held):
                found = c.execute(select(File.id, File.attempt).where(File.id.in_(page), File.state.in_(ACTIVE)))
                ours |= {i for i, attempt in found if held[i] == attempt}
            pairs = {(o, p) for origins, products in made for o in origins if o in ours for p, _ in products}
            before: set[tuple[int, int]] = set()
            for page in pages(sorted(ours)):
                before |= {(o, p) for o, p in c.execute(
                    select(Product.origin_id, Product.product_id).where(Product.origin_id.in_(page))
                )}  # fmt: skip
            ids = {p for _, p in pairs}
            stale = {p for _, p in before - pairs} - ids
            if gone := [{"origin": o, "product": p} for o, p in sorted(before - pairs)]:
                c.execute(delete(Product).where(
                    Product.origin_id == bindparam("origin"), Product.product_id == bindparam("product")
                ), gone)  # fmt: skip
            if pairs:
                self._insert_new(c, Product, [{"origin_id": o, "product_id": p} for o, p in sorted(pairs)])
            if told := [{"row": p, "told": lineage} for _, products in made for p, lineage in products if p in ids]:
                c.execute(update(File).where(File.id == bindparam("row")).values(lineage=bindparam("told")), told)
            for page in pages(sorted(stale)):
                c.execute(
                    update(File).where(File.id.in_(page), File.state.in_(_GIVEN_UP))
                    .values(state=State.CANCELLED, kind=Kind.SOURCE_CHANGED, message="was made by other steps", wish=None,
                            journal=CLEAR, updated_at=now)
                )  # fmt: skip
            for page in pages(sorted(ids)):
                c.execute(
                    update(File).where(File.id.in_(page), File.state.in_(_ASKED_AGAIN))
                    .values(state=State.QUEUED, kind=None, stage=None, message=None, tries=0, next_attempt_at=None,
                            wish=None, queued_at=now, updated_at=now)
                )  # fmt: skip
        return ours

    def settle_origins(self, claims: Iterable[tuple[int, int, str]]) -> dict[int, State]:
        """Bring rows of ours, (row, attempt, SHA-256 of the file) each, to what became of their products; those that
        were still ours."""
        return self._settle_origins({i: (attempt, sha256) for i, attempt, sha256 in claims}, {})

    def _settle_origins(self, held: Mapping[int, tuple[int, str]], before: dict[int, State]) -> dict[int, State]:
        """`before` is filled with what was settled, in case nobody hears of the commit."""
        settled: dict[int, State] = {}
        with self._write() as c:
            now = self._now(c)
            for page in self._lock_ids(c, held):
                parts: dict[int, list[Part]] = {i: [] for i in page}
                for row in c.execute(
                    select(Product.origin_id, File.state, File.kind, File.stage, File.message, File.next_attempt_at,
                           File.dest_path)
                    .join(File, File.id == Product.product_id).where(Product.origin_id.in_(page)).order_by(File.id)
                ):  # fmt: skip
                    parts[row[0]].append(Part(State(row[1]), Kind(row[2]) if row[2] else None, *row[3:]))
                for origin, made in parts.items():
                    to = fate(made)
                    values = {"dest_path": None, "manifest_id": None, "journal": None, "state": to.state, "kind": to.kind, "stage": to.stage, "message": to.message,
                              "next_attempt_at": to.next_attempt_at, "updated_at": now}  # fmt: skip
                    if to.state is State.VERIFIED:
                        values |= {"verified_by": BY_PRODUCTS, "sha256": held[origin][1], "done_at": now,
                                   "verify_passes": 0, "proven_at": None}  # fmt: skip
                    mine = (File.id == origin, File.attempt == held[origin][0], File.state.in_(ACTIVE))
                    if c.execute(update(File).where(*mine).values(**values)).rowcount:
                        settled[origin] = to.state
                fulfil(c, File.id.in_(page))
                lost = [i for i in page if i in before and i not in settled]
                for row in c.execute(select(File.id, File.attempt, File.state).where(File.id.in_(lost))):
                    if (row.attempt, row.state) == (held[row.id][0], before[row.id]):
                        settled[row.id] = before[row.id]
            before |= settled
        return settled

    def products_of(self, origins: Sequence[int]) -> dict[int, list[int]]:
        """The rows of what was made of each of these."""
        found: dict[int, list[int]] = {}
        with self._read() as c:
            for page in pages(origins):
                for origin, product in c.execute(
                    select(Product.origin_id, Product.product_id).where(Product.origin_id.in_(page))
                    .order_by(Product.product_id)
                ):  # fmt: skip
                    found.setdefault(origin, []).append(product)
        return found

    def same_origin(self, route_id: int, sha256: str, than: int) -> int | None:
        """Another row of this route with the same content, of which everything that was made lies at the destination."""
        product = aliased(File)
        made = select(Product.product_id).join(product, product.id == Product.product_id).where(
            Product.origin_id == File.id
        )  # fmt: skip
        with self._read() as c:
            return c.execute(
                select(File.id).where(
                    File.sha256 == sha256, File.route_id == route_id, File.verified_by == BY_PRODUCTS,
                    File.state.in_(_DELIVERED), File.id != than, made.exists(),
                    ~made.where(product.state.not_in(_DELIVERED)).exists(),
                ).limit(1)
            ).scalar()  # fmt: skip

    def made_before(self, keys: Mapping[int, str]) -> set[int]:
        """Those of these rows of which everything that the steps of their key make is done with."""
        parts: dict[int, list[bool]] = {}
        with self._read() as c:
            for page in pages(sorted(keys)):
                for origin, state, told in c.execute(
                    select(Product.origin_id, File.state, File.lineage).join(File, File.id == Product.product_id)
                    .where(Product.origin_id.in_(page))
                ):  # fmt: skip
                    same = told is not None and json.loads(told).get("key") == keys[origin]
                    parts.setdefault(origin, []).append(same and state in DONE)
        return {origin for origin, done in parts.items() if all(done)}

    def labels_of(self, row_ids: Sequence[int]) -> dict[int, tuple[str | None, str | None]]:
        """Flight and device of rows."""
        with self._read() as c:
            return {
                r.id: (r.flight, r.device) for page in pages(row_ids)
                for r in c.execute(select(File.id, File.flight, File.device).where(File.id.in_(page)))
            }  # fmt: skip

    def unmake(self, row_ids: Sequence[int], manifest_id: int | None) -> None:
        """These rows, which wait, go to the destination themselves from now on: what was made of them is not delivered
        any more if it was not yet, and they stand in a manifest of their own."""
        now = now_ms()
        with self._write() as c:
            for page in self._lock_ids(c, row_ids):
                made = select(Product.product_id).where(Product.origin_id.in_(page))
                c.execute(
                    update(File).where(File.id.in_(made), File.state.in_(_GIVEN_UP))
                    .values(state=State.CANCELLED, kind=Kind.SOURCE_CHANGED, message="the job has no steps any more",
                            wish=None, journal=CLEAR, updated_at=now)
                )  # fmt: skip
                c.execute(delete(Product).where(Product.origin_id.in_(page)))
                c.execute(
                    update(File).where(File.id.in_(page), File.state == State.QUEUED, File.manifest_id.is_(None))
                    .values(manifest_id=manifest_id)
                )  # fmt: skip

    def wanted(self, route_ids: Sequence[int], versions: Sequence[tuple[str, int, int, str]]) -> set[int]:
        """Which of these file versions (by their place in the list) have a row that is not done with."""
        over = DONE | {State.CANCELLED}
        with self._read() as c:
            self._fill(c, _versions, [(n, names.to_text(v[0]), *v[1:]) for n, v in enumerate(versions)])
            return set(c.execute(
                select(_versions.c.n).select_from(_versions.join(File, and_(
                    File.path == _versions.c.path, File.size == _versions.c.size, File.mtime_ns == _versions.c.mtime_ns,
                    File.etag == _versions.c.etag, File.route_id.in_(route_ids), File.state.not_in(over),
                )))
            ).scalars())  # fmt: skip
