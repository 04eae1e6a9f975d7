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
from flows.transfer.run import TransferRun, Way
from flows.transfer.shipment import discard_staged

log = logging.getLogger("onblock.transfer")


def clear_gone(run: TransferRun) -> None:
    """Settle the rows of each destination. A destination that fails is noted in `run.problems`; the next run tries."""
    if not run.scanned.complete:
        return
    for way in run.ways:
        try:
            _clear_way(run, way)
        except OnblockError as error:
            log.error("what is left of earlier runs at %s could not be cleared: %s", way.storage.place(), error)
            run.problems.append(f"what is left of earlier runs at {way.storage.place()} could not be cleared: {error}")


def _clear_way(run: TransferRun, way: Way) -> None:
    assert way.route_id is not None  # only a dry run has none
    for page in run.ledger.gone(way.route_id, run.id):
        with run.pool.session(way.storage) as session, run.pool.session(run.job.source) as source:
            for row, superseded in page:
                if row.dest_path is not None:
                    discard_staged(
                        session, row.dest_path, row.path, (row.size, row.mtime_ns, row.etag), row.attempt + 1
                    )
                _settle(run, source, row, superseded)


def _settle(run: TransferRun, source: Session, row: Row, superseded: bool) -> None:
    if superseded or row.state is not State.QUEUED:
        replaced = SourceChanged("was replaced by a newer version", path=row.path, remedy="")
        run.ledger.settle_rows([row], State.CANCELLED, replaced, "scan")
    elif _is_there(source, row.path):
        unwanted = SourceChanged("the job no longer asks for it", path=row.path, remedy="")
        run.ledger.settle_rows([row], State.CANCELLED, unwanted, "scan")
    else:
        gone = SourceVanished("was gone before it could be delivered", path=row.path)
        run.ledger.settle_rows([row], State.FAILED, gone, "scan")
        run.meter.add(Receipt(failed=1))
        log.error("%s", gone)


def _is_there(source: Session, path: str) -> bool:
    """Whether a file that the listing left out is there all the same."""
    try:
        source.stat(path)
    except NotFound:
        return False
    return True
