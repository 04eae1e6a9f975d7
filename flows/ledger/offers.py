"""Shipments that one run has planned and that others move: offered, taken, done, counted. Which run does what is told in
`flows/transfer/crew.py`.

An offer names rows. It protects none of them, the claim does: whoever takes an offer that another one still works on finds
its rows claimed. What became of an offer is read from its rows, whoever moved them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update

from blocks.errors import Kind
from flows.ledger.connections import pages
from flows.ledger.models import File, Product, Run
from flows.ledger.models import Offer as OfferRow
from flows.ledger.products import BY_PRODUCTS
from flows.ledger.rows import COLUMNS, Row, row_of
from flows.ledger.runs import Runs
from flows.ledger.states import State

SETTLED = 16
"""So many offers that are done are counted at a time."""


class Offer(NamedTuple):
    """A shipment to move: which of its leader's, and its rows as they are now."""

    number: int
    large: bool
    rows: list[Row]


class Became(NamedTuple):
    """So many rows of offers that are done are in this state now, with so many bytes."""

    state: State
    kind: Kind | None
    verified_by: str | None
    files: int
    bytes: int


class Settled(NamedTuple):
    """Offers that are done: their numbers, how many rows they named, and what became of those, or of what was made of
    them."""

    numbers: list[int]
    rows: int
    became: list[Became]


class Leader(NamedTuple):
    """A run that is helped: the process it is, whether it is over, and whether it has ended by itself."""

    worker: str
    over: bool
    in_order: bool


def _is(leader: str, numbers: Sequence[int]) -> ColumnElement[bool]:
    return and_(OfferRow.leader_id == leader, OfferRow.number.in_(numbers))


class Offers(Runs):
    """The offers of a ledger."""

    def offer(self, leader: str, number: int, row_ids: Sequence[int], *, large: bool) -> None:
        """Offer a shipment to the runs that help `leader`: its number 1, 2, ..."""
        files = json.dumps(list(row_ids), separators=(",", ":"))
        with self._write() as c:
            self._insert_new(c, OfferRow, [
                {"leader_id": leader, "number": number, "files": files, "large": large, "done": False}
            ])  # fmt: skip

    def take_offer(self, leader: str, run_id: str, moving: Collection[int] = ()) -> Offer | None:
        """The first shipment that nobody moves, which is the taker's from now on; None if there is none. What a run took
        that has ended or died since is free again; so is what the taker has taken itself, but for what it is `moving`: it
        was never told."""
        ended = select(Run.id).where(Run.id == OfferRow.taker_id, Run.ended_at.is_not(None)).exists()
        untold = and_(OfferRow.taker_id == run_id, OfferRow.number.not_in(list(moving)))
        free = (
            select(OfferRow.number, OfferRow.files, OfferRow.large)
            .where(OfferRow.leader_id == leader, OfferRow.done.is_(False),
                   or_(OfferRow.taker_id.is_(None), ended, untold))
            .order_by(OfferRow.number).limit(1).with_for_update(skip_locked=True)
        )  # fmt: skip
        with self._write() as c:
            if (found := c.execute(free).first()) is None:
                return None
            c.execute(update(OfferRow).where(_is(leader, [found.number])).values(taker_id=run_id))
            by_id: dict[int, Row] = {}
            ids = json.loads(found.files)
            for page in pages(ids):
                by_id |= {r.id: row_of(r) for r in c.execute(select(*COLUMNS).where(self._among(File.id, page)))}
        return Offer(found.number, found.large, [by_id[i] for i in ids if i in by_id])

    def offer_done(self, leader: str, number: int, run_id: str) -> None:
        """All rows of an offer are written. Of one that another run has taken since, that run says so."""
        with self._write() as c:
            c.execute(update(OfferRow).where(_is(leader, [number]), OfferRow.taker_id == run_id).values(done=True))

    def settled_offers(self, leader: str) -> Settled:
        """What became of some offers that are done. Not of those that the leader has moved itself: these it has counted."""
        done = (
            select(OfferRow.number, OfferRow.files, OfferRow.taker_id)
            .where(OfferRow.leader_id == leader, OfferRow.done.is_(True)).order_by(OfferRow.number).limit(SETTLED)
        )  # fmt: skip
        became: list[Became] = []
        with self._read() as c:
            found = c.execute(done).all()
            named = [(offer.taker_id, json.loads(offer.files)) for offer in found]
            ids = [i for taker, rows in named if taker != leader for i in rows]
            whole = or_(File.verified_by.is_(None), File.verified_by != BY_PRODUCTS)  # else its products are counted
            what = (File.state, File.kind, File.verified_by)
            how_many = (func.count(), func.coalesce(func.sum(File.size), 0))
            for page in pages(ids):
                among = self._among(File.id, page)
                made = self._among(Product.origin_id, page)
                for which in (and_(among, whole), File.id.in_(select(Product.product_id).where(made))):
                    for r in c.execute(select(*what, *how_many).where(which).group_by(*what)):
                        became.append(Became(State(r[0]), Kind(r[1]) if r[1] else None, r[2], r[3], int(r[4])))
        return Settled([offer.number for offer in found], sum(len(rows) for _, rows in named), became)

    def drop_offers(self, leader: str, numbers: Sequence[int]) -> None:
        """They are accounted for."""
        with self._write() as c:
            c.execute(delete(OfferRow).where(_is(leader, numbers)))

    def open_offers(self, leader: str) -> int:
        """How many shipments are not done yet."""
        with self._read() as c:
            return c.execute(
                select(func.count()).where(OfferRow.leader_id == leader, OfferRow.done.is_(False))
            ).scalar_one()

    def withdraw_offers(self, leader: str) -> int:
        """Take back what nobody has taken yet; how many shipments."""
        with self._write() as c:
            free = and_(OfferRow.leader_id == leader, OfferRow.taker_id.is_(None))
            return c.execute(delete(OfferRow).where(free)).rowcount

    def leader(self, run_id: str) -> Leader | None:
        """The run that is helped; None of one that this ledger does not know."""
        with self._read() as c:
            found = c.execute(self._signs_of_life().add_columns(Run.summary).where(Run.id == run_id)).first()
        if found is None:
            return None
        over = found.ended_at is not None or self._is_dead(found.id, found.worker, found.silence)
        return Leader(found.worker, over, found.summary is not None)
