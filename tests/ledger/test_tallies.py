"""What runs have done, counted by the database: however many they were, also those of earlier versions."""

from __future__ import annotations

import json
from typing import Any

from alembic import command
from sqlalchemy import insert, text, update

from flows.ledger import Ledger, migrate
from flows.ledger.models import Run
from flows.ledger.tallies import Last, Tallies, Tally
from tests.ledger.test_opening import config

HOUR = 3_600_000


def summary(**more: Any) -> dict[str, Any]:
    """Of a transfer."""
    counts = dict.fromkeys(("delivered", "bytes", "failed", "blocked", "deferred"), 0)
    return counts | {"seconds": 1.5, "problems": [], "destinations": [{"place": "local:/archive"}]} | more


def ran(ledger: Ledger, at: int, told: dict[str, Any], job: str = "card", device: str | None = None) -> str:
    """A run that ended at that moment."""
    run_id = ledger.begin_run(job, flight=None, device=device)
    ledger.end_run(run_id, told)
    with ledger._write() as c:
        c.execute(update(Run).where(Run.id == run_id).values(ended_at=at))
    return run_id


def test_transfers_are_counted_and_nothing_else(ledger: Ledger) -> None:
    ran(ledger, 5 * HOUR, summary(delivered=3, bytes=300))
    ran(ledger, 5 * HOUR + 1, summary(delivered=1, bytes=50, failed=1))
    ran(ledger, 7 * HOUR, summary(delivered=2, bytes=7, destinations=[{"place": "local:/other"}]), "other", "cam-1")
    ran(ledger, 8 * HOUR, {"job": "card", "checked": 9, "bytes": 900, "damaged": [{"path": "a"}], "problems": []})
    ran(ledger, 8 * HOUR, {"job": "card", "delivered": [{"place": "local:/archive", "bytes": 9}]})
    ran(ledger, 1 * HOUR, summary(delivered=1000, bytes=1000))  # too long ago
    ledger.begin_run("card", flight=None, device=None)  # under way
    tallies = Tallies(ledger.engine)
    since = 2 * HOUR
    assert tallies.by_time(since, HOUR) == {5 * HOUR: Tally(4, 350), 7 * HOUR: Tally(2, 7)}
    assert tallies.by_job(since) == {"card": Tally(4, 350), "other": Tally(2, 7)}
    assert tallies.last(since) == [
        Last("card", "", 5 * HOUR, 5 * HOUR + 1),
        Last("other", "cam-1", 7 * HOUR, 7 * HOUR),
    ]
    places = {job: [d["place"] for d in found] for job, found in tallies.destinations(since).items()}
    assert places == {"card": ["local:/archive"], "other": ["local:/other"]}


def test_there_may_be_very_many(ledger: Ledger) -> None:
    told = {"delivered": 1, "bytes": 10, "well": True, "summary": json.dumps(summary())}
    runs = [
        {"id": f"{n:036}", "job": f"job-{n % 3}", "worker": "w", "started_at": n, "heartbeat_at": n, "ended_at": n, **told}
        for n in range(12_000)
    ]  # fmt: skip
    with ledger._write() as c:
        c.execute(insert(Run), runs)
    tallies = Tallies(ledger.engine)
    assert tallies.by_job(0) == {f"job-{n}": Tally(4000, 40_000) for n in range(3)}
    assert sum(t.files for t in tallies.by_time(2000, 1000).values()) == 10_000
    assert [one.ended_at for one in tallies.last(0)] == [11_997, 11_998, 11_999]


def test_an_index_answers_without_a_look_at_any_run(ledger: Ledger) -> None:
    """By what SQLite says it does, and not by a clock."""
    if ledger.engine.dialect.name != "sqlite":
        return
    asked: list[tuple[str, Any]] = []
    from sqlalchemy import event

    event.listen(ledger.engine, "before_cursor_execute", lambda c, cur, sql, params, *_: asked.append((sql, params)))
    tallies = Tallies(ledger.engine)
    tallies.by_time(0, HOUR), tallies.by_job(0), tallies.last(0)
    with ledger.engine.connect() as c:
        plans = [
            " ".join(row[3] for row in c.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", params))
            for sql, params in asked[:] if "FROM runs" in sql
        ]  # fmt: skip
    assert len(plans) == 3
    assert all("SEARCH runs USING COVERING INDEX ix_runs_told" in plan for plan in plans), plans


def test_runs_of_an_earlier_version_are_counted_too(ledger: Ledger) -> None:
    one = ran(ledger, 5 * HOUR, summary(delivered=3, bytes=300))
    two = ran(ledger, 6 * HOUR, summary(problems=["the destination was away"]))
    three = ran(ledger, 7 * HOUR, {"job": "card", "delivered": [{"place": "local:/archive"}]})
    with ledger._write() as c:
        command.downgrade(config(c), "0005")
    with ledger._write() as c:
        assert migrate.upgrade(c)
        rows = c.execute(text("SELECT id, delivered, bytes, well FROM runs")).all()
    assert {r.id: (r.delivered, r.bytes, r.well) for r in rows} == {
        one: (3, 300, True), two: (0, 0, False), three: (None, None, None)
    }  # fmt: skip
    assert Tallies(ledger.engine).last(0) == [Last("card", "", 5 * HOUR, 6 * HOUR)]
