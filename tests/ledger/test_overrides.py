"""Overrides in the ledger: added, listed, taken back, and never changed, on SQLite and on PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError

from blocks.errors import ConfigError
from blocks.storage.base import FileInfo
from flows.ledger import Ledger, State
from flows.ledger.models import Override as Entry
from flows.ledger.overrides import Override
from flows.ledger.states import IllegalMove
from flows.ledger.store import Judged, NewFile, Row, now_ms

HOUR = 3_600_000


def make(ledger: Ledger, **changes: Any) -> Override:
    given: dict[str, Any] = {
        "job": "card",
        "rule": "reserved",
        "path": "*.mp4",
        "who": "ada",
        "why": "the old NAS is gone",
    } | changes
    return ledger.override(given.pop("job"), given.pop("rule"), given.pop("path"), **given)


def test_what_was_made_is_found(ledger: Ledger) -> None:
    before = now_ms()
    made = make(ledger, expires_at=before + HOUR)
    other = make(ledger, job="other", path="re:\\d+/ÿ \udcff.*", why=" it is fine  ")
    assert abs(made.made_at - before) < HOUR and made.is_active(before)
    assert other.why == "it is fine"
    assert ledger.overrides() == [made, other]
    assert ledger.overrides("card", active=True) == [made]
    assert ledger.overrides("nobody") == []


def test_a_leading_slash_says_nothing(ledger: Ledger) -> None:
    assert make(ledger, path="/DCIM/100%25/*").path == "DCIM/100%25/*"
    assert ledger.overrides()[0].path == "DCIM/100%25/*"


def test_taken_back(ledger: Ledger) -> None:
    made, kept = make(ledger), make(ledger)
    taken = ledger.revoke(made.id, who="bob", why="it is not")
    assert taken.revoked is not None and (taken.revoked.who, taken.revoked.why) == ("bob", "it is not")
    assert not taken.is_active(now_ms())
    assert ledger.overrides() == [taken, kept]
    assert ledger.overrides(active=True) == [kept]


def test_after_its_time(ledger: Ledger) -> None:
    now = now_ms()
    made = make(ledger, expires_at=now + HOUR)
    assert [made.is_active(t) for t in (now, now + HOUR - 1, now + HOUR)] == [True, True, False]
    with ledger.engine.begin() as c:
        values = {"job": "card", "rule": "reserved", "path": "**", "who": "ada", "why": "once"}
        number = c.execute(
            insert(Entry).values(**values, made_at=now - 2 * HOUR, expires_at=now - HOUR).returning(Entry.id)
        ).scalar_one()
    assert ledger.overrides(active=True) == [made]
    assert [o.id for o in ledger.overrides()] == [made.id, number]
    with pytest.raises(ConfigError, match="has expired"):
        ledger.revoke(number, who="bob", why="late")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"why": ""}, "needs a reason"), ({"why": " \t "}, "needs a reason"), ({"why": "a\nb"}, "one line"),
        ({"why": "\udcff"}, "one line"), ({"expires_at": 0}, "expired before"),
        ({"expires_at": 1_700_000_000_000}, "expired before"),
    ],
)  # fmt: skip
def test_refused(ledger: Ledger, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(ledger, **changes)
    assert ledger.overrides() == []


def test_a_revocation_that_makes_no_sense(ledger: Ledger) -> None:
    made = make(ledger)
    with pytest.raises(ConfigError, match="needs a reason"):
        ledger.revoke(made.id, who="bob", why="")
    with pytest.raises(ConfigError, match="there is no override 7"):
        ledger.revoke(7, who="bob", why="why not")
    assert ledger.overrides() == [made]
    taken = ledger.revoke(made.id, who="bob", why="it is not")
    with pytest.raises(ConfigError, match="revoked already, by bob"):
        ledger.revoke(made.id, who="eve", why="once more")
    assert taken.revoked is not None
    with pytest.raises(ConfigError, match="there is no override"):  # a revocation is none
        ledger.revoke(taken.revoked.id, who="eve", why="it is, after all")
    assert ledger.overrides() == [taken]


def test_of_many_who_revoke_at_once_one_does(url: str) -> None:
    with Ledger.open(url) as ledger:
        made = make(ledger)
    start = Barrier(6)

    def revoke(n: int) -> bool:
        with Ledger.open(url) as ledger:
            start.wait(30)
            try:
                ledger.revoke(made.id, who=f"w{n}", why="it is not")
            except ConfigError as error:
                assert "revoked already" in str(error)
                return False
            return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(revoke, range(6))) == 1
    with Ledger.open(url) as ledger, ledger.engine.connect() as c:
        assert c.execute(text("SELECT count(*) FROM overrides")).scalar() == 2


@pytest.mark.parametrize("statement", ["UPDATE overrides SET why = 'x'", "DELETE FROM overrides"])
def test_the_database_lets_nobody_change_them(ledger: Ledger, statement: str) -> None:
    made = make(ledger)
    with pytest.raises(DBAPIError, match="only ever added"), ledger.engine.begin() as c:
        c.execute(text(statement))
    assert ledger.overrides() == [made]


def test_rules_that_have_found_something(ledger: Ledger) -> None:
    route = ledger.route("card", "nas")
    run_id = ledger.begin_run("card", flight=None, device=None)
    file = NewFile(
        route, FileInfo("a", 1, 2), None, None, State.BLOCKED, ConfigError("no"), "gate",
        '[{"rule": "no_dashes", "tier": "hard", "text": "it has"}]',
    )  # fmt: skip
    ledger.enter(run_id, [file], flight=None, device=None)
    assert ledger.was_found("card", "no_dashes")
    assert not ledger.was_found("card", "no-dashes"), "an underscore is no wildcard"
    assert not ledger.was_found("other", "no_dashes")
    (row,) = ledger.files()
    assert row["findings"] == file.findings


# -- what the gate finds of rows that are there -----------------------------------------------------------------------


def entered(ledger: Ledger, *paths: str) -> tuple[str, dict[str, Row]]:
    """A run, and rows that it has entered."""
    route, run_id = ledger.route("card", "nas"), ledger.begin_run("card", flight=None, device=None)
    files = [FileInfo(p, 1, 2) for p in paths]
    ledger.enter(run_id, [NewFile(route, f, f.path, None) for f in files], flight=None, device=None)
    return run_id, {r.path: r for r in ledger.compare(route, files)[1]}


def test_findings_of_rows_that_wait(ledger: Ledger) -> None:
    run_id, rows = entered(ledger, "blocked", "noted", "claimed")
    ledger.claim(run_id, [rows["claimed"].id])
    no = ConfigError("no")
    ledger.judged([
        Judged(rows["blocked"], State.BLOCKED, no, "gate", "[1]"), Judged(rows["noted"], State.QUEUED, None, None, "[2]"),
        Judged(rows["claimed"], State.BLOCKED, no, "gate", "[3]"),
    ])  # fmt: skip
    assert {r["path"]: (r["state"], r["findings"], r["message"], r["stage"]) for r in ledger.files()} == {
        "blocked": (State.BLOCKED, "[1]", "no", "gate"), "noted": (State.QUEUED, "[2]", None, None),
        "claimed": (State.DELIVERING, None, None, None),
    }, "whoever has taken the row meanwhile is left alone"  # fmt: skip


def test_what_is_found_of_a_blocked_row_is_kept_true_until_it_passes(ledger: Ledger) -> None:
    run_id, rows = entered(ledger, "a")
    ledger.judged([Judged(rows["a"], State.BLOCKED, ConfigError("no"), "gate", "[1]")])
    blocked = rows["a"]._replace(state=State.BLOCKED)
    ledger.judged([Judged(blocked, State.BLOCKED, ConfigError("not so"), "gate", "[2]")])
    (row,) = ledger.files()
    assert (row["state"], row["findings"], row["message"]) == (State.BLOCKED, "[2]", "not so")
    (again,) = ledger.requeue(run_id, [blocked])
    ledger.judged([Judged(again, State.QUEUED, None, None, None)])
    (row,) = ledger.files()
    assert (row["state"], row["findings"], row["message"], row["kind"]) == (State.QUEUED, None, None, None)
    with pytest.raises(IllegalMove):
        ledger.judged([Judged(again._replace(state=State.VERIFIED), State.BLOCKED, ConfigError("no"), "gate", None)])
