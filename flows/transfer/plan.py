"""What of a listing is to be done: held against the ledger and judged by the gate.

The same code serves a run and `onblock plan`, which only looks. Memory holds one page.
"""

from __future__ import annotations

from blocks.errors import Kind
from blocks.storage.base import FileInfo
from flows.ledger.rows import Judged, message_of
from flows.ledger.states import ACTIVE, State
from flows.ledger.store import PROBLEM, NewFile, Row, now_ms
from flows.transfer.gate import Passage
from flows.transfer.job import OnConflict
from flows.transfer.progress import Receipt
from flows.transfer.retry import CURABLE
from flows.transfer.rules import as_json
from flows.transfer.run import TransferRun, Way
from flows.transfer.shipment import Item, Leg


def plan(run: TransferRun, page: list[FileInfo]) -> list[Item]:
    """The files of a page that are to be moved now. Enters what is new into the ledger, counts what is not moved."""
    page = [
        f if f.problem is None else f._replace(etag=PROBLEM, size=0, mtime_ns=0)
        for f in page if f[:4] not in run.ahead
    ]  # fmt: skip
    legs: dict[tuple[str, int, int, str], list[Leg]] = {}
    files: dict[tuple[str, int, int, str], FileInfo] = {}
    for number, way in enumerate(run.ways):
        receipt = Receipt()
        for file, leg in _plan_way(run, number, way, page, receipt):
            key = file[:4]
            files.setdefault(key, file)
            legs.setdefault(key, []).append(leg)
        run.meter.add(receipt)
    return [Item(file, tuple(legs[key])) for key, file in files.items()]


def _plan_way(
    run: TransferRun, number: int, way: Way, page: list[FileInfo], receipt: Receipt
) -> list[tuple[FileInfo, Leg]]:
    """The same for one destination."""
    if way.route_id is None:  # a dry run of a job that never ran
        new, rows = list(range(len(page))), []
    else:
        new, rows = run.ledger.compare(way.route_id, page)
    receipt.duplicates += len(page) - len(new) - len(rows)
    with run.pool.session(way.storage) as session:
        features = session.features
    todo: list[tuple[FileInfo, Leg]] = []

    # known, but not done: what was left behind, deferred, failed or set aside
    if rows:
        by_version = {f[:4]: f for f in page}  # a page may hold two versions of one path
        files = [by_version[r.path, r.size, r.mtime_ns, r.etag] for r in rows]
        judged = {r.id: p for r, p in zip(rows, run.gate.judge(files, features), strict=True)}
        again = [r for r in rows if _worth_another(r, judged[r.id], run.job.on_conflict)]
        if not run.dry:
            run.ledger.mark_seen(run.id, rows)
            queued = {r.id: r for r in run.ledger.requeue(run.id, again)}
            run.ledger.judged(_news([(queued.get(r.id, r), judged[r.id]) for r in rows]))
        else:
            queued = {r.id: r for r in again}
        if not run.dry and not run.job.two_phases:
            made = [
                r.id for r in (queued.get(r.id, r) for r in rows) if r.state is State.QUEUED and r.dest_path is None
            ]
            if made:  # the job had steps when they were entered
                run.ledger.unmake(made, way.manifest_id)
        now = now_ms()
        for row in rows:
            row = queued.get(row.id, row)
            if row.state is not State.QUEUED:
                count(row.state, row.kind, receipt)
            elif judged[row.id].state is not State.QUEUED:
                count(judged[row.id].state, None, receipt)
            elif row.waits(now):
                receipt.deferred += 1
            elif row.priority < 0 and not run.closing:
                continue  # its turn comes
            else:
                passage = judged[row.id]
                path = row.dest_path or passage.dest_path
                assert path is not None  # the gate lets it pass
                todo.append((passage.file, Leg(number, row.id, row.attempt, path)))

    # never seen before
    fresh = run.gate.judge([page[n] for n in new], features)
    for passage in fresh:
        if passage.state is not State.QUEUED:
            count(passage.state, None, receipt)
    if run.dry or way.route_id is None:
        todo += [(p.file, Leg(number, 0, 0, p.dest_path)) for p in fresh if p.dest_path is not None]
        return todo
    entered = run.ledger.enter(
        run.id, [_entry(way, p, run.job.two_phases) for p in fresh], flight=run.flight, device=run.device
    )
    for passage, row in zip(fresh, entered, strict=True):
        if row.state == State.QUEUED and passage.dest_path is not None:
            todo.append((passage.file, Leg(number, row.id, row.attempt, passage.dest_path)))
    return todo


def _entry(way: Way, passage: Passage, two_phases: bool) -> NewFile:
    assert way.route_id is not None
    where = (None, None) if two_phases else (passage.dest_path, way.manifest_id)  # what is made of it has a final name
    return NewFile(
        way.route_id, passage.file, *where, passage.state, passage.failure, passage.stage,
        as_json(passage.findings),
    )  # fmt: skip


def _news(rows: list[tuple[Row, Passage]]) -> list[Judged]:
    """What the gate finds of rows that wait or are blocked, where it is not what the ledger says."""
    news = [Judged(row, p.state, p.failure, p.stage, as_json(p.findings)) for row, p in rows]
    return [
        n for n in news
        if (n.row.state is State.QUEUED and (n.state is not State.QUEUED or n.findings != n.row.findings))
        or (n.row.state is n.state is State.BLOCKED
            and (n.findings, message_of(n.failure)) != (n.row.findings, n.row.message))
    ]  # fmt: skip


def _worth_another(row: Row, passage: Passage, on_conflict: OnConflict) -> bool:
    """Whether a row that was set aside may be tried again, now that the file is seen again."""
    if passage.state is not State.QUEUED:
        return False
    if row.state is State.BLOCKED:
        return True
    if row.state is State.CANCELLED:  # by a run that did not see it, or left it for what is at its final name
        return row.kind is Kind.SOURCE_CHANGED or (row.kind is Kind.CONFLICT and on_conflict is not OnConflict.SKIP)
    return row.state is State.FAILED and row.kind in CURABLE


def count(state: State, kind: Kind | None, receipt: Receipt, rows: int = 1) -> None:
    """Count rows that are not moved now."""
    if state is State.BLOCKED:
        receipt.blocked += rows
    elif state in (State.FAILED, State.QUARANTINED):
        receipt.failed += rows
    elif state is State.CANCELLED and kind is Kind.CONFLICT:
        receipt.skipped += rows
    elif state in ACTIVE or state is State.PAUSED:
        receipt.deferred += rows  # another run has it, or somebody paused it
