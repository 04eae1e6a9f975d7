"""What retention removes at a destination, in the ledger: who may take a row, and that a late one changes nothing."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from flows.ledger import Ledger, State
from flows.ledger.models import File
from tests.ledger.test_rows import deliver, enter, version

S = State


def setup(ledger: Ledger, count: int = 3) -> tuple[str, int, list[int]]:
    """A run, a route, and delivered rows, one after the other."""
    route = ledger.route("job", "local:/archive")
    manifest = ledger.manifest("local:/archive", "checksums.sha256")
    run = ledger.begin_run("job", flight=None, device=None)
    rows = enter(ledger, run, route, [version(f"f{n}", n + 1) for n in range(count)], manifest)
    for row in rows:
        deliver(ledger, run, [row])
    with ledger.engine.begin() as c:
        for n, row in enumerate(rows):
            c.execute(update(File).where(File.id == row.id).values(done_at=1000 + n))
    return run, route, [r.id for r in rows]


def states(ledger: Ledger) -> list[str]:
    return [r["state"] for r in ledger.files()]


def test_the_oldest_first(ledger: Ledger) -> None:
    run, route, ids = setup(ledger)
    sizes = [r["size"] for r in ledger.files()]
    assert ledger.weigh(route) == (3, sum(sizes))
    assert [k.id for k in ledger.oldest(route)] == ids
    taken = ledger.retire(run, route, ledger.delivered(ids[:1]))
    assert taken == {ids[0]: [ids[0]]}
    assert ledger.weigh(route) == (2, sum(sizes[1:]))
    assert [k.id for k in ledger.oldest(route)] == ids[1:]


def test_retired_removed_or_given_back(ledger: Ledger) -> None:
    run, route, ids = setup(ledger)
    lines = lambda: [(p, bool(s)) for p, s in ledger.manifest_lines(1)]  # noqa: E731
    taken = ledger.retire(run, route, ledger.delivered(ids[:2]))
    assert lines() == [("f0", False), ("f1", False), ("f2", True)], "what the manifest is to leave out"
    found = ledger.claim_manifest("local:/archive", run)
    assert found is not None
    assert ledger.holds_retired(run, ids[:2])
    ledger.retired(run, taken[ids[0]])
    ledger.unretire(run, taken[ids[1]])
    assert states(ledger) == [S.RETIRED, S.VERIFIED, S.VERIFIED]
    assert lines() == [("f0", False), ("f1", True), ("f2", True)]
    assert not ledger.manifest_written(found.id, run, found.version) or ledger.claim_manifest("local:/archive", run)
    assert not ledger.holds_retired(run, ids[:2])
    ledger.unretire(run, ids), "what is removed stays so"
    assert states(ledger) == [S.RETIRED, S.VERIFIED, S.VERIFIED]


def test_only_what_is_as_it_was_seen(ledger: Ledger) -> None:
    run, route, ids = setup(ledger)
    seen = ledger.delivered(ids)
    with ledger.engine.begin() as c:
        c.execute(update(File).where(File.id == ids[0]).values(attempt=File.attempt + 1))
        c.execute(update(File).where(File.id == ids[1]).values(state=S.QUEUED))
    assert list(ledger.retire(run, route, seen)) == [ids[2]]


@pytest.mark.parametrize(
    ("state", "other_job", "goes"),
    [
        (S.VERIFIED, False, True),  # an older version that was replaced
        (S.DUPLICATE, False, True),
        (S.CANCELLED, True, True),
        (S.FAILED, True, True),
        (S.VERIFIED, True, False),
        (S.DUPLICATE, True, False),
        (S.QUEUED, False, False),
        (S.DELIVERING, False, False),
        (S.CLEANUP_ELIGIBLE, False, False),
        (S.QUARANTINED, False, False),
        (S.PAUSED, True, False),
    ],
)
def test_nobody_else_counts_on_its_name(ledger: Ledger, state: State, other_job: bool, goes: bool) -> None:
    run, route, ids = setup(ledger, 1)
    there = ledger.route("other", "local:/archive") if other_job else route
    (row,) = enter(ledger, run, there, [version("elsewhere")])
    with ledger.engine.begin() as c:
        c.execute(update(File).where(File.id == row.id).values(dest_path="f0", state=state, done_at=1, sha256="a" * 64))
    taken = ledger.retire(run, route, ledger.delivered(ids))
    with_it = [ids[0], row.id] if state in (S.VERIFIED, S.DUPLICATE) else ids
    assert taken == ({ids[0]: with_it} if goes else {})
    ledger.unretire(run, with_it)
    assert states(ledger) == [S.VERIFIED, state]


def test_what_a_dead_one_has_left(ledger: Ledger) -> None:
    run, route, ids = setup(ledger)
    ledger.retire(run, route, ledger.delivered(ids))
    ledger.retired(run, ids[:1])
    other = ledger.begin_run("job", flight=None, device=None)
    assert ledger.take_over_retired(other, route) == [], "it is alive"
    ledger.end_run(run, {})
    assert [p.id for p in ledger.take_over_retired(other, route)] == ids[1:]
    ledger.unretire(run, ids)
    ledger.retired(run, ids)
    assert states(ledger) == [S.RETIRED] * 3, "a late one changes nothing"
    ledger.unretire(other, ids[1:])
    assert states(ledger) == [S.RETIRED, S.VERIFIED, S.VERIFIED]
