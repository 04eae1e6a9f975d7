"""How often the ledger is written to: by the page, never by the row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, event

from flows.ledger import Ledger, State
from flows.ledger.store import NewFile, Outcome
from flows.transfer.gone import clear_gone
from flows.transfer.run import TransferRun
from flows.transfer.verify import verify_route
from tests.ledger.crowd import states, version
from tests.transfer.conftest import Bench

MANY = 2500
PAGES = 3


@contextmanager
def writes(ledger: Ledger) -> Iterator[list[int]]:
    """Counts the transactions that write, by the rows of files they change."""
    found: list[int] = []
    current: dict[int, int] = {}

    def began(c: Connection) -> None:
        current[id(c)] = 0

    def executed(c: Connection, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("UPDATE files"):
            current[id(c)] += cursor.rowcount  # type: ignore[attr-defined]

    def committed(c: Connection) -> None:
        if changed := current.pop(id(c), 0):
            found.append(changed)

    listeners = (("begin", began), ("after_cursor_execute", executed), ("commit", committed))
    for name, listener in listeners:
        event.listen(ledger.engine, name, listener)
    try:
        yield found
    finally:
        for name, listener in listeners:
            event.remove(ledger.engine, name, listener)


def enter(ledger: Ledger, bench: Bench, *, deliver: bool = False) -> None:
    """Rows for files that are nowhere, by a run of the past."""
    route = ledger.route("job", f"local:{bench.archive}")
    run_id = ledger.begin_run("job", flight=None, device=None)
    paths = [f"f{n:05}" for n in range(MANY)]
    rows = ledger.enter(run_id, [NewFile(route, version(p), p, None) for p in paths], flight=None, device=None)
    if deliver:
        claims = ledger.claim(run_id, [r.id for r in rows])
        done = [
            Outcome(r.id, claims[r.id].attempt, State.VERIFIED, p, "0" * 64) for p, r in zip(paths, rows, strict=True)
        ]
        ledger.finish(done)
    ledger.end_run(run_id, {})


def test_what_is_gone_is_settled_by_the_page(bench: Bench) -> None:
    with Ledger.open() as ledger:
        enter(ledger, bench)
        for n in range(0, MANY, 2):
            bench.put(f"f{n:05}")
        with TransferRun(bench.job(include=["nothing"]), ledger) as run, writes(ledger) as found:
            run.scanned.complete = True
            clear_gone(run)
        assert found == [1000, 1000, 500]
        assert sorted(states(ledger)) == ["CANCELLED"] * (MANY // 2) + ["FAILED"] * (MANY // 2)
        assert run.meter.total.failed == MANY // 2
        messages = {r["path"]: r["message"] for r in ledger.files()}
        assert messages["f00001"].startswith("f00001: was gone")
        assert messages["f00002"].startswith("f00002: the job no longer asks for it")


def test_what_was_cleared_before_a_storage_failed_is_written_down(bench: Bench) -> None:
    with Ledger.open() as ledger:
        enter(ledger, bench)
        trap = bench.card / "f01199"
        trap.mkdir()  # a folder where a file was: nobody can say what became of the file
        with TransferRun(bench.job(include=["nothing"]), ledger) as run:
            run.scanned.complete = True
            with writes(ledger) as found:
                clear_gone(run)
            assert found == [1000, 199]
            assert len(run.problems) == 1
            trap.rmdir()
            clear_gone(run)
        assert set(states(ledger)) == {"FAILED"}
        assert run.meter.total.failed == MANY


def test_damage_is_written_down_by_the_page(bench: Bench) -> None:
    with Ledger.open() as ledger:
        enter(ledger, bench, deliver=True)
        with writes(ledger) as found:
            (*_, outcome) = verify_route(ledger, "job", bench.job().destinations[0])
        assert found == [1000, 1000, 500]
        assert (outcome.checked, len(outcome.damaged)) == (MANY, MANY)
        assert set(states(ledger)) == {"QUARANTINED"}


def test_damage_that_was_found_before_somebody_stopped_it_is_written_down(bench: Bench) -> None:
    with Ledger.open() as ledger:
        enter(ledger, bench, deliver=True)
        with writes(ledger) as found:
            verifying = verify_route(ledger, "job", bench.job().destinations[0])
            for _ in range(1300):
                next(verifying)
            verifying.close()
        assert found == [1000, 300]
        assert states(ledger).count("QUARANTINED") == 1300
