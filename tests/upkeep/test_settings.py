"""What a job may say about cleanup, retention and scrub; and the decision whether a file may go, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from blocks.errors import ConfigError
from flows.ledger import Ledger, State
from flows.ledger.models import File
from flows.ledger.proofs import Proof
from flows.transfer.aftercare import Action, Cleanup
from flows.transfer.job import load_job
from flows.upkeep.clean import may_be_cleaned, pass_due
from tests.ledger.conftest import ledger, url
from tests.ledger.test_rows import deliver, enter, version
from tests.upkeep.conftest import HOUR, Yard

__all__ = ["ledger", "url"]

BAD = [
    ({"cleanup": {"action": "delete"}, "verify": "size"}, "cleanup enabled without verification"),
    ({"cleanup": {"action": "delete"}, "verify": "exists"}, "cleanup enabled without verification"),
    ({"cleanup": {"action": "backup", "backup_folder": "x"}, "manifest": None}, "cleanup enabled without verification"),
    ({"cleanup": {"action": "backup"}}, "needs a `backup_folder`"),
    ({"cleanup": {"action": "backup", "backup_folder": "../x"}}, "could leave its folder"),
    ({"cleanup": {"action": "perhaps"}}, "cleanup.action"),
    ({"cleanup": {"action": "delete", "min_verify_passes": 0}}, "min_verify_passes"),
    ({"cleanup": {"action": "delete", "passes_apart": "0 s"}}, "passes_apart"),
    ({"cleanup": {"action": "delete", "min_age": "-1 h"}}, "min_age"),
    ({"cleanup": {"action": "delete", "keep": ["["], "empty_folders": True}}, "there is no such key"),
    ({"cleanup": {"action": "delete", "keep": ["re:("]}}, "bad regular expression"),
    ({"cleanup": {"schedule": {"cron": "x"}}}, "cron"),
    ({"retention": {"backup": {"max_age": "1 d"}}}, "name a `cleanup.backup_folder`"),
    ({"retention": {}}, "says nothing"),
    ({"retention": {"delivered": {}}}, "says nothing"),
    ({"retention": {"delivered": {"max_files": -1}}}, "max_files"),
    ({"retention": {"delivered": {"max_age": "1 d"}}, "verify": "exists"}, "retention would delete unverified files"),
    ({"retention": {"backup": {}}, "cleanup": {"backup_folder": "x"}}, "says nothing"),
    (
        {"retention": {"backup": {"max_age": "1 d"}}, "cleanup": {"backup_folder": "x"}, "verify": "size"},
        "retention would delete unverified files",
    ),
    ({"scrub": {"part": "5/3"}}, "is no part"),
]


@pytest.mark.parametrize(("keys", "said"), BAD)
def test_jobs_that_are_refused(yard: Yard, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"JOB\.yaml") as caught:
        load_job(yard.yaml(**keys))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_off_as_yaml_reads_it(yard: Yard) -> None:
    path = yard.yaml()
    path.write_text(path.read_text() + "cleanup: {action: off}\nverify: size\n")
    assert load_job(path).cleanup.action is Action.OFF
    assert load_job(Path(yard.yaml())).cleanup == Cleanup()


NOW = 1_000 * HOUR
GOOD = Proof(
    1, 1, "a", 5, 1, "", State.VERIFIED, 1, "a", "0" * 64, 2, NOW - HOUR, NOW - 24 * HOUR, None, "checksums.sha256"
)
TABLE: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"verify_passes": 1}, "1 of 2 verify passes"),
    ({"verify_passes": 0, "proven_at": None}, "0 of 2 verify passes"),
    ({"verify_passes": 2, "proven_at": None}, "2 of 2 verify passes"),
    ({"verify_passes": 3}, None),
    ({"done_at": NOW - 24 * HOUR + 1}, "less than min_age"),
    ({"done_at": NOW - 9999 * HOUR}, None),
    ({"done_at": NOW + 1}, "clock was set back"),
    ({"proven_at": NOW + 1}, "clock was set back"),
    ({"proven_at": NOW}, None),
    ({"done_at": None}, "without a checksum"),
    ({"sha256": None}, "without a checksum"),
    ({"dest_path": ""}, "without a checksum"),
    ({"manifest": None}, "without a manifest"),
    *(({"state": s}, f"is {s}, not VERIFIED") for s in State
      if s not in (State.VERIFIED, State.CLEANED, State.CLEANUP_ELIGIBLE, State.RETIRED)),
    ({"state": State.RETIRED}, "removed at its destination"),
    ({"state": State.CLEANED}, "cleaned up before"),
    ({"state": State.CLEANUP_ELIGIBLE}, "another cleanup"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "why"), TABLE)
def test_may_be_cleaned(changed: dict[str, Any], why: str | None) -> None:
    found = may_be_cleaned(GOOD._replace(**changed), Cleanup(), NOW)
    assert (found is None) == (why is None), found
    assert why is None or why in (found or "")


def test_the_ledger_decides_the_same(ledger: Ledger) -> None:
    """`claim_cleanup` in SQL and `may_be_cleaned`, over the whole table."""
    route = ledger.route("job", "local:/archive")
    manifest = ledger.manifest("local:/archive", "checksums.sha256")
    run = ledger.begin_run("job", flight=None, device=None)
    rows = enter(ledger, run, route, [version(f"f{n}") for n in range(len(TABLE))], manifest)
    shift = ledger.clock() - NOW
    with ledger.engine.begin() as c:
        for row, (changed, _) in zip(rows, TABLE, strict=True):
            values = {
                k: getattr(GOOD, k) for k in ("state", "verify_passes", "proven_at", "done_at", "sha256", "dest_path")
            }
            values |= {k: v for k, v in changed.items() if k != "manifest"}
            for key in ("proven_at", "done_at"):  # far enough from the limit that the time this takes does not count
                if values[key] is not None:
                    values[key] += shift + (60_000 if changed.get(key) in (NOW + 1, NOW - 24 * HOUR + 1) else 0)
            values["dest_path"] = values["dest_path"] or None
            if "manifest" in changed:
                values["manifest_id"] = None
            c.execute(update(File).where(File.id == row.id).values(**values))
    taken = ledger.claim_cleanup(run, [route], [r.id for r in rows], min_passes=2, min_age_ms=24 * HOUR)
    expected = [row.id for row, (_, why) in zip(rows, TABLE, strict=True) if why is None]
    assert sorted(p.id for p in taken) == expected
    assert {p.state for p in taken} == {State.CLEANUP_ELIGIBLE}
    assert {p.attempt for p in taken} == {1}


@pytest.mark.parametrize(
    ("changed", "due"),
    [
        ({}, False),  # there are enough
        ({"verify_passes": 1}, True),
        ({"verify_passes": 1, "proven_at": NOW - HOUR + 1}, False),
        ({"verify_passes": 0, "proven_at": None}, True),
        ({"verify_passes": 0, "proven_at": None, "done_at": NOW - HOUR + 1}, False),
        ({"verify_passes": 0, "proven_at": NOW + HOUR}, False),  # the clock was set back
        ({"verify_passes": 0, "state": State.QUARANTINED}, False),
        ({"verify_passes": 0, "sha256": None}, False),
    ],
)
def test_pass_due(changed: dict[str, Any], due: bool) -> None:
    assert pass_due(GOOD._replace(**changed), Cleanup(), NOW) is due


# -- claims -------------------------------------------------------------------------------------------------------------


def _ready(ledger: Ledger, routes: list[int]) -> tuple[str, list[int]]:
    run = ledger.begin_run("job", flight=None, device=None)
    manifest = ledger.manifest("local:/archive", "checksums.sha256")
    ids = []
    for route in routes:
        rows = enter(ledger, run, route, [version("a")], manifest)
        deliver(ledger, run, rows)
        ids += [r.id for r in rows]
    ledger.end_run(run, {})
    with ledger.engine.begin() as c:
        c.execute(update(File).values(verify_passes=2, proven_at=File.done_at, sha256="a" * 64))
    return ledger.begin_run("job", flight=None, device=None), ids


def test_a_claim_is_for_one(ledger: Ledger) -> None:
    routes = [ledger.route("job", f"local:/{n}") for n in range(2)]
    run, ids = _ready(ledger, routes)
    other = ledger.begin_run("job", flight=None, device=None)
    rules = {"min_passes": 2, "min_age_ms": 0}
    mine = ledger.claim_cleanup(run, routes, ids, **rules)
    assert len(mine) == 2
    assert ledger.claim_cleanup(other, routes, ids, **rules) == []
    assert ledger.take_over_cleanups(other, routes) == ([], []), "its cleanup is alive"
    assert ledger.holds_cleanup(run, mine)
    ledger.end_run(run, {})
    theirs, missed = ledger.take_over_cleanups(other, routes)
    assert missed == []
    assert [p.attempt for p in theirs] == [p.attempt + 1 for p in mine]
    assert not ledger.holds_cleanup(run, mine)
    assert ledger.cleaned(run, mine) == set(), "a late one can change nothing"
    assert ledger.spared(run, mine) == set()
    assert ledger.cleaned(other, theirs) == set(ids)


def test_a_claim_is_for_every_destination_or_none(ledger: Ledger) -> None:
    routes = [ledger.route("job", f"local:/{n}") for n in range(2)]
    run, ids = _ready(ledger, routes)
    for values in ({"verify_passes": 1}, {"sha256": "b" * 64}, {"state": State.QUEUED}, {"done_at": None}):
        with ledger.engine.begin() as c:
            before = c.execute(File.__table__.select().where(File.id == ids[1])).mappings().one()
            c.execute(update(File).where(File.id == ids[1]).values(**values))
        assert ledger.claim_cleanup(run, routes, ids, min_passes=2, min_age_ms=0) == [], values
        with ledger.engine.begin() as c:
            c.execute(update(File).where(File.id == ids[1]).values(**{k: before[k] for k in values}))
    assert ledger.claim_cleanup(run, routes, ids[:1], min_passes=2, min_age_ms=0) != []


def test_passes_are_counted_once_an_hour(ledger: Ledger) -> None:
    route = ledger.route("job", "local:/archive")
    run, ids = _ready(ledger, [route])
    seen = [(ids[0], 1)]

    def row() -> tuple[int, bool]:
        with ledger.engine.connect() as c:
            found = c.execute(File.__table__.select()).one()
        return found.verify_passes, found.proven_at is not None

    with ledger.engine.begin() as c:
        c.execute(update(File).values(verify_passes=0, proven_at=None))
    ledger.proven(seen)
    assert row() == (0, True), "so soon after the delivery it is no pass, but it is known to have been seen"
    for n in range(1, 3):
        with ledger.engine.begin() as c:
            c.execute(update(File).values(proven_at=File.proven_at - HOUR))
        ledger.proven([(ids[0], 7)])
        assert row() == (n - 1, True), "of another attempt"
        ledger.proven(seen)
        ledger.proven(seen)
        assert row() == (n, True)
    ledger.end_run(run, {})
