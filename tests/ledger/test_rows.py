"""Rows: entered once per version, claimed, finished, fenced, set aside, asked for again. One process, no races."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text, update

from blocks.errors import Cancelled, ConfigError, Kind, NetworkError, Paused, SourceChanged, SourceVanished
from blocks.storage.base import FileInfo
from flows.ledger import Ledger, State, database
from flows.ledger.models import File
from flows.ledger.states import IllegalMove
from flows.ledger.store import PROBLEM, NewFile, Outcome, Row, now_ms
from flows.ledger.wishes import Wish
from tests.ledger.crowd import elsewhere, enter, killed, look, states, table, version

HOSTILE = [
    os.fsdecode(b"DCIM/clip-\xff\xfe.mp4"), "two\nlines.mp4", "cr\rlf\r\n.mp4", "100%.mp4", "%2F%ff", "a%\udcff%", "-rf",
    "--", " ", "tab\t", "quote'\"`$(x)", "back\\slash", "\\x2f", "semi;colon", "DROP TABLE files;--", "?", "%s", ":name", "{x}",
    "é", "e\u0301", "\U0001f681/\U0001f3a5.mov", "\u202egpj.exe", "CON", "nul.txt", "dot.", "a" * 255, "/".join(["d" * 100] * 15),
    "...", ".hidden", "~", "x~2", "\x01\x7f", "\ufffd", "\ufffe", "caf\udce9", "café",
]  # fmt: skip


@pytest.fixture
def route(ledger: Ledger) -> int:
    return ledger.route("job", "local:/archive")


@pytest.fixture
def run_id(ledger: Ledger) -> str:
    return ledger.begin_run("job", flight=None, device=None)


def deliver(ledger: Ledger, run_id: str, rows: list[Row], **keys: Any) -> None:
    claims = ledger.claim(run_id, [r.id for r in rows])
    outcomes = [
        Outcome(c.id, c.attempt, State.VERIFIED, **({"sha256": f"{c.id:064x}"} | keys)) for c in claims.values()
    ]
    assert ledger.finish(outcomes) == {r.id for r in rows}


# -- what is known ------------------------------------------------------------------------------------------------


def test_hostile_paths_come_back_as_they_went_in(ledger: Ledger, run_id: str, route: int) -> None:
    page = [version(p, n) for n, p in enumerate(HOSTILE)]
    assert ledger.compare(route, page) == (list(range(len(page))), [])
    rows = enter(ledger, run_id, route, page)
    assert [r.path for r in rows] == [r.dest_path for r in rows] == HOSTILE
    new, known = ledger.compare(route, page)
    assert new == []
    assert sorted(r.path for r in known) == sorted(HOSTILE)
    assert {r["path"] for r in ledger.files()} == set(HOSTILE)
    assert len(table(ledger, "id")) == len(HOSTILE)
    deliver(ledger, run_id, rows)
    assert ledger.compare(route, page) == ([], [])
    for row in rows:
        assert ledger.known_content(route, f"{row.id:064x}") == row.path


@pytest.mark.parametrize(
    "other", [{"path": "b"}, {"size": 2}, {"mtime_ns": 2}, {"etag": "x"}, {"size": 2**50}, {"mtime_ns": -1}]
)
def test_each_part_of_a_fingerprint_counts(ledger: Ledger, run_id: str, route: int, other: dict[str, Any]) -> None:
    known = version("a")
    deliver(ledger, run_id, enter(ledger, run_id, route, [known]))
    assert ledger.compare(route, [known, known._replace(**other)]) == ([1], [])


def test_a_version_is_known_per_route(ledger: Ledger, run_id: str, route: int) -> None:
    page = [version("a")]
    deliver(ledger, run_id, enter(ledger, run_id, route, page))
    for job, place in (("job", "local:/elsewhere"), ("other", "local:/archive")):
        assert ledger.compare(ledger.route(job, place), page) == ([0], [])
    assert ledger.route("job", "local:/archive") == route == ledger.find_route("job", "local:/archive")
    assert ledger.find_route("job", "local:/nowhere") is None


def test_five_thousand_at_once(ledger: Ledger, run_id: str, route: int) -> None:
    page = [version(f"DCIM/{n:05}.jpg", n) for n in range(5000)]
    assert ledger.compare(route, page) == (list(range(5000)), [])
    rows = enter(ledger, run_id, route, page)
    assert [r.path for r in rows] == [f.path for f in page]
    deliver(ledger, run_id, rows)
    shuffled = random.Random(1).sample(page, len(page))
    assert ledger.compare(route, [*shuffled, version("new")]) == ([5000], [])
    assert ledger.counts() == [("job", "local:/archive", "VERIFIED", 5000, sum(range(5000)))]
    assert len(list(ledger.files(states=[State.VERIFIED]))) == 5000
    assert [r["id"] for r in ledger.files(limit=1001)] == [r.id for r in rows[:1001]]


def test_entering_again_changes_nothing(ledger: Ledger, run_id: str, route: int) -> None:
    page = [version("a"), version("b")]
    rows = enter(ledger, run_id, route, page)
    deliver(ledger, run_id, rows[:1])
    before = table(ledger, *File.__table__.columns.keys())
    again = enter(ledger, ledger.begin_run("job", flight=None, device=None), route, [version("b"), version("a")])
    assert [(r.path, r.state) for r in again] == [("b", State.QUEUED), ("a", State.VERIFIED)]
    assert table(ledger, *File.__table__.columns.keys()) == before


def test_what_is_not_done_comes_back_with_all_that_is_known_of_it(ledger: Ledger, run_id: str, route: int) -> None:
    refusal = ConfigError("is a link", path="a")
    entered = ledger.enter(
        run_id, [NewFile(route, version("a"), None, None, State.BLOCKED, refusal, "gate")], flight="f", device="d"
    )
    assert [(e.state, e.attempt) for e in entered] == [("BLOCKED", 0)]
    rows = look(ledger, [e.id for e in entered])
    assert ledger.compare(route, [version("a")]) == ([], rows)
    row = rows[0]
    assert (row.state, row.kind, row.message, row.dest_path, row.attempt) == (
        State.BLOCKED, Kind.CONFIG, "a: is a link", None, 0,
    )  # fmt: skip


def test_a_look_at_known_files_writes_nothing(ledger: Ledger, run_id: str, route: int) -> None:
    page = [version(f"{n}.jpg") for n in range(3000)]
    rows = enter(ledger, run_id, route, page)
    deliver(ledger, run_id, rows[:2000])
    ledger.compare(route, page)  # makes its temporary table
    with written(ledger) as unchanged:
        new, open_rows = ledger.compare(route, page)
        assert (new, len(open_rows)) == ([], 1000)
        ledger.still_queued([r.id for r in rows])
        ledger.counts()
        list(ledger.files())
        ledger.enter(run_id, [], flight=None, device=None)
        ledger.requeue(run_id, [])
        ledger.finish([])
        ledger.recover()
        list(ledger.gone(route, run_id))
        assert unchanged()


class written:
    """Tells whether anything was written to the ledger's own tables since."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self.connection = ledger.engine.connect()
        self.before = self._look()

    def _look(self) -> Any:
        if self.ledger.engine.dialect.name == "sqlite":
            try:
                return self.connection.execute(text("PRAGMA data_version")).scalar()  # another connection committed
            finally:
                self.connection.rollback()
        tables = ("files", "runs", "routes", "manifests", "identity")
        found = [
            self.connection.execute(
                text(f"SELECT md5(coalesce(string_agg(xmin::text || ctid::text, ',' ORDER BY ctid), '')) FROM {t}")
            ).scalar()
            for t in tables
        ]
        self.connection.rollback()
        return found

    def __enter__(self) -> Callable[[], bool]:
        return lambda: self._look() == self.before

    def __exit__(self, *exc: object) -> None:
        self.connection.close()


def test_the_check_above_would_notice_a_write(ledger: Ledger, run_id: str) -> None:
    with written(ledger) as unchanged:
        assert unchanged()
        ledger.heartbeat(run_id)
        assert not unchanged()


# -- claim and finish -----------------------------------------------------------------------------------------------


def test_a_claim_is_exclusive_and_counts_up(ledger: Ledger, run_id: str, route: int) -> None:
    ids = [r.id for r in enter(ledger, run_id, route, [version("a"), version("b")])]
    first = ledger.claim(run_id, ids)
    assert {c.id: c.attempt for c in first.values()} == dict.fromkeys(ids, 1)
    assert ledger.claim(ledger.begin_run("job", flight=None, device=None), ids) == {}
    assert ledger.claim(run_id, ids) == {}, "not even by the same run twice"
    assert ledger.claim(run_id, []) == {}
    assert ledger.claim(run_id, [10**9]) == {}


def test_what_has_not_been_fetched_cannot_be_processed(ledger: Ledger, run_id: str, route: int) -> None:
    (row,) = enter(ledger, run_id, route, [version("a")])
    assert ledger.claim(run_id, [row.id], State.PROCESSING) == {}
    assert ledger.claim(run_id, [row.id])[row.id].attempt == 1


def test_a_late_writer_changes_nothing(ledger: Ledger, run_id: str, route: int) -> None:
    (row,) = enter(ledger, run_id, route, [version("a")])
    old = ledger.claim(run_id, [row.id])[row.id]
    ledger.end_run(run_id, {})  # declared dead
    other = ledger.begin_run("job", flight=None, device=None)
    late = Outcome(old.id, old.attempt, State.VERIFIED, sha256="0" * 64, dest_path="late")
    assert ledger.finish([late]) == set(), "free again, and nobody has claimed it yet"
    new = ledger.claim(other, [row.id])[row.id]
    assert (old.attempt, new.attempt) == (1, 2)
    before = table(ledger, *File.__table__.columns.keys())
    assert ledger.finish([late, late._replace(state=State.FAILED, failure=NetworkError("late"))]) == set()
    assert table(ledger, *File.__table__.columns.keys()) == before
    assert ledger.finish([Outcome(new.id, new.attempt, State.VERIFIED, sha256="1" * 64)]) == {row.id}
    assert ledger.finish([Outcome(new.id, new.attempt, State.VERIFIED, sha256="2" * 64)]) == set(), "once"
    again = Outcome(new.id, new.attempt, State.VERIFIED, sha256="1" * 64)
    assert ledger.finish([again]) == {row.id}, "the same, by whoever did not hear that it was written"
    assert table(ledger, "state", "sha256", "attempt") == [("VERIFIED", "1" * 64, 2)]


def test_a_late_writer_does_not_touch_the_manifest(ledger: Ledger, run_id: str, route: int) -> None:
    manifest = ledger.manifest("local:/archive", "checksums.sha256")
    (row,) = enter(ledger, run_id, route, [version("a")], manifest)
    old = ledger.claim(run_id, [row.id])[row.id]
    ledger.end_run(run_id, {})
    ledger.finish([Outcome(old.id, old.attempt, State.VERIFIED, sha256="0" * 64)])
    assert ledger.claim_manifest("local:/archive", ledger.begin_run("job", flight=None, device=None)) is None


def test_what_is_done_is_never_claimed(ledger: Ledger, run_id: str, route: int) -> None:
    rows = enter(ledger, run_id, route, [version(f"{s}") for s in State])
    with ledger.engine.begin() as c:
        for row, state in zip(rows, State, strict=True):
            c.execute(update(File).where(File.id == row.id).values(state=state))
    taken = ledger.claim(run_id, [r.id for r in rows])
    assert {State(r.path) for r in rows if r.id in taken} == {State.QUEUED, State.FETCHED, State.PROCESSED}


def test_an_outcome_keeps_and_clears_what_it_should(ledger: Ledger, run_id: str, route: int) -> None:
    (row,) = enter(ledger, run_id, route, [version("a")])
    claim = ledger.claim(run_id, [row.id])[row.id]
    later, gone = now_ms() + 60_000, NetworkError("away", path="a")
    ledger.finish(
        [Outcome(claim.id, claim.attempt, State.QUEUED, failure=gone, stage="write", tries=1, next_attempt_at=later)]
    )
    columns = "state", "kind", "stage", "message", "tries", "next_attempt_at", "dest_path", "done_at"
    assert table(ledger, *columns) == [("QUEUED", "NETWORK", "write", str(gone), 1, later, "a", None)]
    claim = ledger.claim(run_id, [row.id])[row.id]
    assert claim.tries == 1
    began = now_ms()
    ledger.finish([Outcome(claim.id, claim.attempt, State.VERIFIED, dest_path="a~2", sha256="f" * 64, tries=1)])
    (*rest, done_at) = table(ledger, *columns)[0]
    assert rest == ["VERIFIED", None, None, None, 1, None, "a~2"]
    assert began <= done_at <= now_ms()


@pytest.mark.parametrize("name", ["caf\udce9", "nul\0", "lone\ud800", "a\nb"])
def test_what_went_wrong_is_kept_whatever_name_it_quotes(ledger: Ledger, run_id: str, route: int, name: str) -> None:
    wrong = ConfigError("is wrong", path=name)
    blocked = NewFile(route, version("a"), None, None, State.BLOCKED, wrong, "gate")
    ledger.enter(run_id, [blocked], flight=None, device=None)
    rows = enter(ledger, run_id, route, [version("b"), version("c"), version("d")])
    ledger.settle_rows([(rows[0], State.FAILED, wrong)], "scan")
    claim = ledger.claim(run_id, [rows[1].id])[rows[1].id]
    ledger.finish([Outcome(claim.id, claim.attempt, State.FAILED, failure=wrong, stage="read")])
    deliver(ledger, run_id, rows[2:])
    ledger.mark_damaged([(rows[2].id, wrong)])
    assert [s for (s,) in table(ledger, "state")] == ["BLOCKED", "FAILED", "FAILED", "QUARANTINED"]
    assert all(m.endswith(": is wrong") for (m,) in table(ledger, "message"))


def test_many_outcomes_of_many_kinds_in_one_write(ledger: Ledger, run_id: str, route: int) -> None:
    rows = enter(ledger, run_id, route, [version(f"{n}") for n in range(2000)])
    claims = ledger.claim(run_id, [r.id for r in rows])
    kinds = [State.VERIFIED, State.FAILED, State.QUEUED, State.DUPLICATE, State.QUARANTINED, State.CANCELLED]
    outcomes = [Outcome(c.id, c.attempt, kinds[n % 6], sha256="a" * 64) for n, c in enumerate(claims.values())]
    random.Random(2).shuffle(outcomes)
    assert ledger.finish(outcomes) == {r.id for r in rows}
    wanted = {o.id: o.state for o in outcomes}
    assert {i: State(s) for i, s in table(ledger, "id", "state")} == wanted


# -- aside, and again ---------------------------------------------------------------------------------------------


def test_requeue_is_for_rows_that_are_as_they_were_seen(ledger: Ledger, run_id: str, route: int) -> None:
    """Another run has cured and delivered the file since: it is not sent once more."""
    (row,) = enter(ledger, run_id, route, [version("a")])
    claim = ledger.claim(run_id, [row.id])[row.id]
    ledger.finish([Outcome(claim.id, claim.attempt, State.FAILED, failure=ConfigError("full"))])
    _, seen = ledger.compare(route, [version("a")])
    other = ledger.begin_run("job", flight=None, device=None)
    assert [r.state for r in ledger.requeue(other, seen)] == [State.QUEUED]
    assert ledger.requeue(run_id, seen) == [], "queued already"
    deliver(ledger, other, seen)
    assert ledger.requeue(run_id, seen) == []
    assert states(ledger) == ["VERIFIED"]


def test_requeue_of_what_is_done_is_a_defect(ledger: Ledger, run_id: str, route: int) -> None:
    rows = [r._replace(state=State.CLEANED) for r in enter(ledger, run_id, route, [version("a")])]
    with pytest.raises(IllegalMove):
        ledger.requeue(run_id, rows)


def test_requeue_begins_the_count_anew(ledger: Ledger, run_id: str, route: int) -> None:
    (row,) = enter(ledger, run_id, route, [version("a")])
    claim = ledger.claim(run_id, [row.id])[row.id]
    ledger.finish([Outcome(claim.id, claim.attempt, State.FAILED, failure=NetworkError("x"), tries=500)])
    with ledger.engine.begin() as c:
        c.execute(update(File).values(queued_at=0))
    _, seen = ledger.compare(route, [version("a")])
    assert seen[0].tries == 500
    (again,) = ledger.requeue(run_id, seen)
    assert (again.tries, again.attempt) == (0, 1)
    claim = ledger.claim(run_id, [row.id])[row.id]
    assert (claim.tries, claim.attempt) == (0, 2)
    assert claim.queued_at > 0


@pytest.mark.parametrize("state", list(State))
def test_asking_again(ledger: Ledger, run_id: str, route: int, state: State) -> None:
    (row,) = enter(ledger, run_id, route, [version("a")])
    later = now_ms() + 3_600_000
    with ledger.engine.begin() as c:
        c.execute(update(File).values(state=state, attempt=3, tries=7, next_attempt_at=later, kind=Kind.NETWORK))
    asleep = {State.QUEUED, *State} - {
        State.FETCHING, State.FETCHED, State.PROCESSING, State.PROCESSED, State.DELIVERING, State.AWAITING_VERIFY,
        State.CLEANED, State.CLEANUP_ELIGIBLE,
    }  # fmt: skip
    chosen = ledger.choose([row.id])
    if state in asleep:
        assert ledger.grant(Wish.RETRY, chosen, who="me") == (1, 0)
    else:
        with pytest.raises(ConfigError, match="cannot be asked to retry"):
            ledger.grant(Wish.RETRY, chosen, who="me")
    with pytest.raises(ConfigError, match="no file"):
        ledger.choose([row.id, 10**9])
    found = table(ledger, "state", "attempt", "tries", "next_attempt_at", "kind")
    if state in asleep:
        assert found == [("QUEUED", 3, 0, None, None)], "also one that would have waited for an hour"
    else:
        assert found == [(state, 3, 7, later, "NETWORK")]


def test_settling_is_for_rows_nobody_has_taken_since(ledger: Ledger, run_id: str, route: int) -> None:
    rows = enter(ledger, run_id, route, [version("a"), version("b")])
    ledger.claim(run_id, [rows[0].id])
    ledger.settle_rows([(r, State.CANCELLED, Cancelled("asked for", path=r.path)) for r in rows], "scan")
    assert states(ledger) == ["DELIVERING", "CANCELLED"]
    assert table(ledger, "message") == [(None,), ("b: asked for",)]
    with pytest.raises(IllegalMove):
        ledger.settle_rows([(rows[0], State.CLEANED, Cancelled("no"))], "scan")


def test_gone_shows_what_a_complete_listing_did_not(ledger: Ledger, run_id: str, route: int) -> None:
    """Two thousand of them, of an earlier run; one is seen again, one belongs to a run that is alive."""
    earlier, alive = (ledger.begin_run("job", flight=None, device=None) for _ in range(2))
    rows = enter(ledger, earlier, route, [version(f"{n:04}") for n in range(2000)])
    mine = enter(ledger, alive, route, [version("alive")])
    enter(ledger, run_id, route, [version("0007", size=2)])  # a newer version of a path
    deliver(ledger, earlier, rows[5:6])
    (held,) = ledger.claim(earlier, [rows[6].id]).values()
    assert list(ledger.gone(route, run_id)) == [], "the earlier run is alive yet"
    ledger.mark_seen(run_id, [rows[3]])
    with ledger.engine.begin() as c:
        c.execute(text("UPDATE runs SET ended_at = 1 WHERE id = :id"), {"id": earlier})
    found: dict[str, bool] = {}
    for page in ledger.gone(route, run_id):
        assert len(page) <= 1000
        found |= {row.path: superseded for row, superseded in page}
        ledger.settle_rows([(r, State.FAILED, SourceVanished("gone")) for r, _ in page], "scan")
    assert set(found) == {r.path for r in rows} - {rows[3].path, rows[5].path, rows[6].path}
    assert [path for path, superseded in found.items() if superseded] == ["0007"]
    assert states(ledger, [rows[3].id, rows[5].id, rows[6].id, mine[0].id]) == [
        "QUEUED", "VERIFIED", "DELIVERING", "QUEUED",
    ]  # fmt: skip
    assert held.attempt == 1


def test_problems_that_are_gone_are_settled_too(ledger: Ledger, run_id: str, route: int) -> None:
    broken = NewFile(route, FileInfo("x", 0, 0, PROBLEM), None, None, State.FAILED, NetworkError("x"), "scan")
    ledger.enter(run_id, [broken], flight=None, device=None)
    ledger.end_run(run_id, {})
    later = ledger.begin_run("job", flight=None, device=None)
    assert [row.path for page in _settling(ledger, route, later) for row in page] == ["x"]
    assert list(ledger.gone(route, later)) == []


def _settling(ledger: Ledger, route: int, run_id: str) -> Any:
    for page in ledger.gone(route, run_id):
        ledger.settle_rows([(r, State.CANCELLED, SourceVanished("gone")) for r, _ in page], "scan")
        yield [r for r, _ in page]


def test_damage_takes_a_delivery_back(ledger: Ledger, run_id: str, route: int) -> None:
    rows = enter(ledger, run_id, route, [version("a"), version("b")])
    deliver(ledger, run_id, rows[:1])
    ledger.mark_damaged([(row.id, ConfigError("bits fell over")) for row in rows])
    assert table(ledger, "state", "done_at")[0] == ("QUARANTINED", None)
    assert states(ledger) == ["QUARANTINED", "QUEUED"]


# -- manifests ------------------------------------------------------------------------------------------------------


PLACE = "local:/archive"


def test_lines_are_in_byte_order_whatever_the_database_sorts_by(ledger: Ledger, run_id: str, route: int) -> None:
    manifest = ledger.manifest(PLACE, "checksums.sha256")
    paths = [
        "b",
        "B",
        "a",
        "A",
        "é",
        "z",
        "Z",
        "a b",
        "a-b",
        "a/b",
        "a.b",
        "_",
        "10",
        "9",
        "\udcff",
        "ﬀ",
        "\U0001f681",
        "%",
    ]
    deliver(ledger, run_id, enter(ledger, run_id, route, [version(p) for p in paths], manifest))
    found = [path for path, _ in ledger.manifest_lines(manifest)]
    from blocks.names import to_text

    assert found == sorted(paths, key=lambda p: to_text(p).encode())


def test_a_path_has_one_line_the_one_delivered_last(ledger: Ledger, run_id: str, route: int) -> None:
    manifest = ledger.manifest(PLACE, "checksums.sha256")
    rows = enter(ledger, run_id, route, [version("a", 1), version("a", 2), version("b")], manifest)
    for row, digest in zip(rows, "123", strict=True):
        deliver(ledger, run_id, [row], sha256=digest * 64)
    assert list(ledger.manifest_lines(manifest)) == [("a", "2" * 64), ("b", "3" * 64)]
    with ledger.engine.begin() as c:
        c.execute(update(File).values(done_at=File.done_at - 1000))
    ledger.grant(Wish.RETRY, ledger.choose([rows[0].id]), who="me")  # the older version once more, over the newer
    assert list(ledger.manifest_lines(manifest)) == [("a", "2" * 64), ("b", "3" * 64)]
    deliver(ledger, run_id, rows[:1], sha256="1" * 64)
    assert list(ledger.manifest_lines(manifest)) == [("a", "1" * 64), ("b", "3" * 64)]
    assert ledger.replaced([r.id for r in rows]) == {rows[1].id}
    assert ledger.replaced([]) == set()


def test_only_what_is_delivered_has_a_line(ledger: Ledger, run_id: str, route: int) -> None:
    manifest = ledger.manifest(PLACE, "checksums.sha256")
    rows = enter(ledger, run_id, route, [version(s) for s in State], manifest)
    with ledger.engine.begin() as c:
        for row, state in zip(rows, State, strict=True):
            c.execute(update(File).where(File.id == row.id).values(state=state, sha256="a" * 64, done_at=1))
    lines = dict(ledger.manifest_lines(manifest))
    assert {p for p, digest in lines.items() if digest} == {"VERIFIED", "CLEANUP_ELIGIBLE", "CLEANED"}
    assert lines["RETIRED"] == "", "what retention has removed is to be left out"


def test_a_manifest_is_written_by_one_run_at_a_time(ledger: Ledger, run_id: str, route: int) -> None:
    other = ledger.begin_run("job", flight=None, device=None)
    manifest = ledger.manifest(PLACE, "f/checksums\udcff")
    assert ledger.manifest(PLACE, "f/checksums\udcff") == manifest
    assert ledger.claim_manifest(PLACE, run_id) is None, "nothing has changed"
    first, second = enter(ledger, run_id, route, [version("a"), version("b")], manifest)
    deliver(ledger, run_id, [first])
    assert ledger.claim_manifest("local:/elsewhere", run_id) is None
    assert ledger.claim_manifest(PLACE, run_id) == (manifest, "f/checksums\udcff", 1, ())
    assert ledger.claim_manifest(PLACE, other) is None, "somebody alive is at it"
    assert ledger.claim_manifest(PLACE, run_id) == (manifest, "f/checksums\udcff", 1, ()), (
        "again after a failure of ours"
    )
    deliver(ledger, other, [second])  # while it is being written
    ledger.manifest_written(manifest, run_id, 1)
    assert ledger.claim_manifest(PLACE, other) == (manifest, "f/checksums\udcff", 2, ()), "not lost"
    ledger.manifest_written(manifest, other, 2)
    assert ledger.claim_manifest(PLACE, run_id) is None


@pytest.mark.parametrize("how", ["ended", "expired", "killed"])
def test_a_manifest_of_a_dead_writer_is_taken_over(ledger: Ledger, run_id: str, route: int, how: str) -> None:
    manifest = ledger.manifest(PLACE, "m")
    deliver(ledger, run_id, enter(ledger, run_id, route, [version("a")], manifest))
    assert ledger.claim_manifest(PLACE, run_id) is not None
    other = ledger.begin_run("job", flight=None, device=None)
    if how == "ended":
        ledger.end_run(run_id, {})
    else:
        elsewhere(ledger, run_id, silent_s=61) if how == "expired" else killed(ledger, run_id)
    assert ledger.claim_manifest(PLACE, other) == (manifest, "m", 1, (run_id,))
    assert ledger.holds_manifest(manifest, other)
    assert not ledger.holds_manifest(manifest, run_id)
    assert not ledger.manifest_written(manifest, run_id, 1)  # the old one, late
    assert ledger.claim_manifest(PLACE, other) == (manifest, "m", 2, ()), "is not believed, and written over"
    assert ledger.manifest_written(manifest, other, 2)
    assert ledger.claim_manifest(PLACE, other) is None


def test_a_late_writer_makes_the_manifest_behind_again(ledger: Ledger, run_id: str, route: int) -> None:
    """Its successor has finished when it wakes and commits what it had read before: lines may be missing."""
    manifest = ledger.manifest(PLACE, "m")
    deliver(ledger, run_id, enter(ledger, run_id, route, [version("a")], manifest))
    ledger.claim_manifest(PLACE, run_id)
    other = ledger.begin_run("job", flight=None, device=None)
    elsewhere(ledger, run_id, silent_s=61)
    ledger.claim_manifest(PLACE, other)
    assert ledger.manifest_written(manifest, other, 1)
    assert not ledger.manifest_written(manifest, run_id, 1)
    assert ledger.claim_manifest(PLACE, run_id) == (manifest, "m", 2, ())


def test_the_successor_knows_all_dead_writers(ledger: Ledger, run_id: str, route: int) -> None:
    """The second died before it could clear up after the first; one is alive, one of another destination is not asked."""
    manifest = ledger.manifest(PLACE, "m")
    deliver(ledger, run_id, enter(ledger, run_id, route, [version("a")], manifest))
    second, alive, third = (ledger.begin_run("job", flight=None, device=None) for _ in range(3))
    ledger.route("elsewhere", "local:/elsewhere")
    stranger = ledger.begin_run("elsewhere", flight=None, device=None)
    orderly = ledger.begin_run("job", flight=None, device=None)
    ledger.end_run(orderly, {})
    ledger.claim_manifest(PLACE, run_id)
    killed(ledger, run_id)
    ledger.recover()
    ledger.claim_manifest(PLACE, second)
    for dead in (second, stranger):
        killed(ledger, dead)
    claim = ledger.claim_manifest(PLACE, third)
    assert claim is not None
    assert set(claim.left) == {run_id, second}
    assert alive not in claim.left


def test_whether_files_wait_for_no_time(ledger: Ledger, run_id: str, route: int) -> None:
    """Nobody would come to them: in somebody's hands, who may be dead, or put back by the end of him."""
    (row,) = enter(ledger, run_id, route, [version("a", 1)])
    other = ledger.begin_run("job", flight=None, device=None)
    ledger.claim(other, [row.id])
    assert ledger.untimed([route], run_id)
    assert ledger.untimed([route], other), "also what is left of one's own"
    assert not ledger.untimed([route + 1], run_id)
    ledger.end_run(other, {})
    assert ledger.untimed([route], run_id), "freed while this run was at work"

    failed = NetworkError("away")
    (claim,) = ledger.claim(run_id, [row.id]).values()
    later = now_ms() + 60_000
    ledger.finish([Outcome(row.id, claim.attempt, State.QUEUED, failure=failed, stage="write", next_attempt_at=later)])
    assert not ledger.untimed([route], run_id), "it has a time"
    (claim,) = ledger.claim(run_id, [row.id]).values()
    ledger.finish([Outcome(row.id, claim.attempt, State.PAUSED, failure=Paused("paused"), stage="write")])
    assert not ledger.untimed([route], run_id), "somebody will say when"

    (claim,) = ledger.claim(run_id, [enter(ledger, run_id, route, [version("b", 1)])[0].id]).values()
    ledger.finish([Outcome(claim.id, claim.attempt, State.QUEUED, failure=SourceChanged("grew"), stage="read")])
    assert ledger.untimed([route], run_id), "its source changed"


def test_what_is_held_against_the_ledger_leaves_nothing_behind(ledger: Ledger, route: int) -> None:
    """A temporary table that grew made PostgreSQL read all of a route for each page."""
    for _ in range(20):
        ledger.compare(route, [version(f"{n}.bin", n) for n in range(1000)])
    with ledger.engine.connect() as c:
        if ledger.engine.dialect.name == "sqlite":
            assert c.execute(text("SELECT count(*) FROM seen")).scalar() == 1000, (
                "and it is emptied before the next page"
            )
        else:
            assert c.execute(text("SELECT pg_relation_size('seen')")).scalar() == 0


def test_a_manifest_goes_over_a_slow_link(
    ledger: Ledger, run_id: str, route: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines are asked for as they are sent; nobody ends the transaction meanwhile."""
    monkeypatch.setitem(database.LET_GO, "idle_in_transaction_session_timeout", 100)
    ledger.engine.dispose()  # connections made from now on
    manifest = ledger.manifest(PLACE, "checksums.sha256")
    deliver(ledger, run_id, enter(ledger, run_id, route, [version(f"{n}") for n in range(4001)], manifest))
    lines = ledger.manifest_lines(manifest)
    found = [next(lines)]
    time.sleep(0.5)  # as long as a server with this limit has no patience for
    found += lines
    assert len(found) == 4001
