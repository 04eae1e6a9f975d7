"""One job, many workers: a run plans, and moves what it can; shipments beyond that it offers in the ledger, and hires other
runs of its deployment, which take them there. Both sides are here; how a run is hired is in `flow.py`.

The leader lists, judges, enters rows, writes manifests and tells what became of all files. The hands only move. Nobody
waits for a hand that never comes: the leader takes its own offers as well, and those of a hand that died.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

from blocks.errors import Cancelled, ConfigError
from blocks.storage.base import FileInfo
from flows.ledger.offers import Became, Offer
from flows.ledger.rows import Row
from flows.ledger.states import State
from flows.ledger.store import now_ms
from flows.ledger.worker import is_alive
from flows.transfer.plan import count
from flows.transfer.progress import Receipt
from flows.transfer.run import TransferRun
from flows.transfer.senders import Sender
from flows.transfer.shipment import Item, Leg, Shipment

log = logging.getLogger("onblock.transfer")

LOOK_EVERY_S = 0.5
"""How often somebody without work looks for some; and a leader, for what its hands have done."""
RECOVER_EVERY_S = 10.0
"""How often a leader looks whether one of them died."""
BREATH_S = 0.05
"""How long somebody with all hands full waits before he looks again."""

Hire = Callable[[int], None]
"""Have another run help: number 1, 2, ... of this leader. Does not wait until it begins."""


class Taken:
    """The offers that a run has taken and is moving."""

    def __init__(self, run: TransferRun, sender: Sender, leader: str):
        self._run, self._sender, self._leader = run, sender, leader
        self._ours = leader == run.id  # then they were planned here, and nobody else accounts for them
        self._moving: list[tuple[int, Future[None]]] = []
        self.shipments = 0

    def work(self) -> bool:
        """Tell which are done, and take the next one if there is room for it; whether it did either."""
        done = [(n, f) for n, f in self._moving if f.done()]
        for number, future in done:
            future.result()
            self._run.ledger.offer_done(self._leader, number, self._run.id)
            self._moving.remove((number, future))
        if self._run.held or self._run.stop.is_set() or not self._sender.has_room():
            return bool(done)
        moving = [number for number, _ in self._moving]
        if (offer := self._run.ledger.take_offer(self._leader, self._run.id, moving)) is None:
            return bool(done)
        shipment, rest = shipment_of(self._run, offer, self.shipments + 1)
        if self._ours:  # of what somebody had in hand who died
            for row in rest:
                self._run.meter.add(receipt_of(Became(row.state, row.kind, None, 1, row.size)))
                self._run.meter.moved(1, row.size)
        if shipment is None:
            self._run.ledger.offer_done(self._leader, offer.number, self._run.id)
        else:
            self.shipments += 1
            self._moving.append((offer.number, self._sender.send(shipment, planned=not self._ours)))
        return True

    @property
    def busy(self) -> bool:
        """Whether some are under way."""
        return bool(self._moving)

    def wait(self) -> None:
        """Until there may be something to do."""
        self._run.stop.wait(BREATH_S if self.busy else LOOK_EVERY_S)


class Crew:
    """A sender for a run that others help: what it has no room for, it offers. Use as a context manager."""

    def __init__(self, run: TransferRun, sender: Sender, hire: Hire):
        self._run, self._sender, self._hire = run, sender, hire
        self._taken = Taken(run, sender, run.id)
        self._hired = 0
        self._offered = self._counted = self._shipments = 0  # the first two: rows
        self._look_at = self._recover_at = 0.0

    def __enter__(self) -> Self:
        self._sender.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._sender.__exit__(*exc)

    def send(self, shipment: Shipment) -> None:
        """Move a shipment here if there is room, and offer it otherwise. Raises what a shipment before it raised."""
        if not self._shipments and self._sender.has_room():
            self._sender.send(shipment)
            return
        run = self._run
        run.meter.planned(len(shipment.items), shipment.bytes)
        run.watcher.shipment("queued", shipment)
        self._offered += len(shipment.row_ids)
        self._shipments += 1
        run.ledger.offer(run.id, self._shipments, shipment.row_ids, large=shipment.large)
        if self._hired < min(run.job.shipping.workers - 1, -(-self._shipments // run.job.shipping.at_once)):
            self._hired += 1
            self._hire(self._hired)
        self._sender.collect()
        self._taken.work()
        self._look()

    def collect(self, *, wait: bool = False) -> None:
        """Work along until every shipment is done. Raises what went wrong beyond single files."""
        run = self._run
        self._sender.collect()
        while wait and not run.stop.is_set():
            if run.held:
                run.ledger.withdraw_offers(run.id)
            worked = self._taken.work()
            self._look()
            if not self._taken.busy and not run.ledger.open_offers(run.id):
                break
            if not worked:
                self._taken.wait()
        self._sender.collect(wait=wait)
        if wait:
            while self._count():
                pass
            # somebody has taken our offers back, because we were silent for so long that we were thought dead
            run.meter.add(Receipt(deferred=self._offered - self._counted if not run.held else 0))

    def _look(self) -> None:
        """Count what the others have done; free what the dead ones had. Now and then."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._count()
        if now >= self._recover_at:
            self._recover_at = now + RECOVER_EVERY_S
            self._run.ledger.recover()

    def _count(self) -> bool:
        """Account for offers that are done; whether there were some."""
        settled = self._run.ledger.settled_offers(self._run.id)
        for became in settled.became:
            receipt = receipt_of(became)
            self._run.meter.add(receipt)
            self._run.meter.moved(became.files, became.bytes)
        self._counted += settled.rows
        if settled.numbers:
            self._run.ledger.drop_offers(self._run.id, settled.numbers)
        return bool(settled.rows)


def receipt_of(became: Became) -> Receipt:
    """Rows that were offered, as a shipment that was moved here accounts for them."""
    receipt = Receipt()
    match became.state:
        case State.VERIFIED if became.verified_by == "found":
            receipt.adopted = became.files
        case State.VERIFIED | State.CLEANUP_ELIGIBLE | State.CLEANED | State.RETIRED:
            receipt.delivered, receipt.bytes = became.files, became.bytes
        case State.DUPLICATE:
            receipt.duplicates = became.files
        case State.QUEUED:
            receipt.deferred = became.files
        case _:
            count(became.state, became.kind, receipt, became.files)
    if became.state is State.VERIFIED and became.verified_by is not None:
        receipt.verified(became.verified_by, became.files)
    return receipt


def lend_a_hand(run: TransferRun, sender: Sender) -> int:
    """Move shipments that the leader of this run offers, until it is over; how many. Raises ConfigError where this worker
    is not fit for it."""
    leader = run.leader
    assert leader is not None
    fit(run, leader)
    taken = Taken(run, sender, leader)
    look_at = 0.0
    with sender:
        while not run.stop.is_set():
            worked = taken.work()
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_EVERY_S
                found = run.ledger.leader(leader)
                if found is None or found.in_order:
                    run.stop.set()  # what is still under way then, nobody waits for: the leader was cancelled
                elif found.over and not taken.busy:
                    break
            if not worked:
                taken.wait()
        try:
            sender.collect(wait=True)
        except Cancelled:
            log.info("the run that was helped is over: what was under way is put down")
    run.meter.scanning = False
    run.finished()
    return taken.shipments


def fit(run: TransferRun, leader: str) -> None:
    """Raise ConfigError unless this worker has the ledger of the leader, and sees the same files as it does."""
    if (found := run.ledger.leader(leader)) is None:
        raise ConfigError(
            f"the ledger here knows no run {leader}, which this one is to help",
            remedy="give all workers of the pool the same ONBLOCK_LEDGER_URL",
        )
    elsewhere = [s for s in (run.job.source, *run.job.destinations) if not s.is_the_same_everywhere()]
    if elsewhere and is_alive(found.worker) is None:
        raise ConfigError(
            f"{elsewhere[0].place()} is another folder on another machine",
            remedy="where it is a share that all workers have, say `shared: true` with it; else take `shipping.workers` "
            "back to 1",
        )  # fmt: skip


def shipment_of(run: TransferRun, offer: Offer, number: int) -> tuple[Shipment | None, list[Row]]:
    """What is left to do of an offer, None if nothing is; and the rows for which nothing is to be done now."""
    ways = {way.route_id: n for n, way in enumerate(run.ways)}
    now = now_ms()
    free = [row for row in offer.rows if row.state is State.QUEUED and not row.waits(now)]
    unnamed = _named(run, [(row, ways[row.route_id]) for row in free if not row.dest_path])
    files: dict[tuple[str, int, int, str], FileInfo] = {}
    legs: dict[tuple[str, int, int, str], list[Leg]] = {}
    moved: set[int] = set()
    for row in free:
        if dest_path := row.dest_path or unnamed.get(row.id):
            file = _file(row)
            files.setdefault(file[:4], file)
            legs.setdefault(file[:4], []).append(Leg(ways[row.route_id], row.id, row.attempt, dest_path))
            moved.add(row.id)
    items = [Item(file, tuple(legs[key])) for key, file in files.items()]
    rest = [row for row in offer.rows if row.id not in moved]
    return (Shipment(number, items, large=offer.large) if items else None), rest


def _file(row: Row) -> FileInfo:
    return FileInfo(row.path, row.size, row.mtime_ns, row.etag)


def _named(run: TransferRun, rows: list[tuple[Row, int]]) -> dict[int, str | None]:
    """By id of the row: where files go whose rows do not say it, as of a job with steps. With each row, its way."""
    found: dict[int, str | None] = {}
    for way in {way for _, way in rows}:
        these = [row for row, there in rows if there == way]
        with run.pool.session(run.ways[way].storage) as session:
            features = session.features
        judged = run.gate.judge([_file(row) for row in these], features)
        found |= {row.id: passage.dest_path for row, passage in zip(these, judged, strict=True)}
    return found
