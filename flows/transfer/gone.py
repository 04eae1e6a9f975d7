"""What no longer waits: rows for files that a complete listing did not show, and what was staged of them.

A newer version took a file's place, the job no longer asks for it, or it is gone: each is written down as what it is.
"""

from __future__ import annotations

import logging

from blocks.errors import NotFound, OnblockError, SourceChanged, SourceVanished
from blocks.storage.base import Session
from flows.ledger import State
from flows.ledger.store import Row
from flows.transfer.progress import Receipt
from flows.transfer.resume import Journal
from flows.transfer.run import TransferRun, Way
from flows.transfer.shipment import discard_staged

log = logging.getLogger("onblock.transfer")


def clear_gone(run: TransferRun) -> None:
    """Settle the rows of each destination. A destination that fails is noted in `run.problems`; the next run tries."""
    for way in run.ways:
        try:
            _clear_cancelled(run, way)
            if run.scanned.complete and not run.held:
                _clear_way(run, way)
        except OnblockError as error:
            log.error("what is left of earlier runs at %s could not be cleared: %s", way.storage.place(), error)
            run.problems.append(f"what is left of earlier runs at {way.storage.place()} could not be cleared: {error}")


def _clear_cancelled(run: TransferRun, way: Way) -> None:
    """Nothing is left of files that somebody cancelled, or that the gate has stopped."""
    assert way.route_id is not None  # only a dry run has none
    for page in run.ledger.cancelled(way.route_id):
        with run.pool.session(way.storage) as session:
            for row in page:
                _discard(session, row)
        run.ledger.cleared(page)


def _discard(session: Session, row: Row) -> None:
    if row.dest_path is not None:
        version = (row.size, row.mtime_ns, row.etag)
        discard_staged(session, row.dest_path, row.path, version, row.attempt + 1, Journal.parse(row.journal))


def _clear_way(run: TransferRun, way: Way) -> None:
    assert way.route_id is not None  # only a dry run has none
    for page in run.ledger.gone(way.route_id, run.id):
        settled: list[tuple[Row, State, OnblockError]] = []
        try:
            with run.pool.session(way.storage) as session, run.pool.session(run.job.source) as source:
                for row, superseded in page:
                    _discard(session, row)
                    settled.append((row, *_verdict(source, row, superseded)))
        finally:  # also when a storage stops answering half-way: what was cleared is written down
            _write_down(run, settled)


def _write_down(run: TransferRun, settled: list[tuple[Row, State, OnblockError]]) -> None:
    """A page, in one transaction."""
    run.ledger.settle_rows(settled, "scan")
    failures = [failure for _, state, failure in settled if state is State.FAILED]
    run.meter.add(Receipt(failed=len(failures)))
    for failure in failures:
        log.error("%s", failure)


def _verdict(source: Session, row: Row, superseded: bool) -> tuple[State, OnblockError]:
    """What becomes of a row whose file a complete listing did not show, and why."""
    if superseded or row.state is not State.QUEUED:
        return State.CANCELLED, SourceChanged("was replaced by a newer version", path=row.path, remedy="")
    if _is_there(source, row.path):
        return State.CANCELLED, SourceChanged("the job no longer asks for it", path=row.path, remedy="")
    return State.FAILED, SourceVanished("was gone before it could be delivered", path=row.path)


def _is_there(source: Session, path: str) -> bool:
    """Whether a file that the listing left out is there all the same."""
    try:
        source.stat(path)
    except NotFound:
        return False
    return True
