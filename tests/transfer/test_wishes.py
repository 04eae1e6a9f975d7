"""Pause, resume and cancel while a run is under way: the partial file stays or goes, the rows are true."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import Kind
from blocks.storage import LocalStorage
from blocks.storage.local import LocalSession
from flows.ledger import Ledger, State
from flows.ledger.wishes import Priority, Wish
from flows.transfer.run import TransferRun
from flows.transfer.story import carry_out, here, shipments
from tests.faults.breaking import BreakingStorage
from tests.transfer.conftest import Bench, Cli

MIB = 1 << 20
SIZE = 60 * MIB + 7


@pytest.fixture
def content() -> bytes:
    return random.Random(3).randbytes(SIZE)


def ask(wish: Wish, **which: Any) -> None:
    with Ledger.open() as ledger:
        ledger.grant(wish, ledger.choose(**which), who="me")


def run_and_ask(bench: Bench, to: BreakingStorage, wish: Wish, at: int = 35 * MIB) -> dict[str, Any]:
    """A run, in the middle of which somebody wants something; the run asks for wishes as it does once a second."""
    job = bench.job(source=BreakingStorage.at(bench.card), destinations=[to])
    with Ledger.open() as ledger, TransferRun(job, ledger) as run:

        def want() -> None:
            ask(wish, job="job")
            run.ask()

        to.cable.at = {at: want}
        return carry_out(run, here(run))


def rows() -> list[tuple[State, Kind | None]]:
    with Ledger.open() as ledger:
        return [(State(r["state"]), r["kind"] and Kind(r["kind"])) for r in ledger.files()]


def test_a_file_that_is_paused_goes_on_where_it_was(bench: Bench, content: bytes) -> None:
    bench.put("clip.mp4", content)
    to = BreakingStorage.at(bench.archive)
    summary = run_and_ask(bench, to, Wish.PAUSE)
    assert (summary["delivered"], summary["deferred"], summary["failed"]) == (0, 1, 0)
    assert rows() == [(State.PAUSED, Kind.PAUSED)]
    assert bench.files().keys() != {"clip.mp4"} and len(bench.files()) == 1, "what arrived is kept"
    assert bench.run(destinations=[to])["delivered"] == 0, "and nobody goes on with it"
    ask(Wish.RESUME, job="job")
    before = to.cable.written
    assert bench.run(destinations=[to])["delivered"] == 1
    assert to.cable.written - before <= SIZE - 16 * MIB
    assert bench.files() == {"clip.mp4": content}


def test_a_file_that_is_cancelled_leaves_nothing(bench: Bench, content: bytes) -> None:
    bench.put("clip.mp4", content)
    to = BreakingStorage.at(bench.archive)
    summary = run_and_ask(bench, to, Wish.CANCEL)
    assert (summary["delivered"], summary["deferred"], summary["failed"]) == (0, 0, 0)
    assert rows() == [(State.CANCELLED, Kind.CANCELLED)]
    assert bench.files() == {}
    assert bench.run(destinations=[to])["delivered"] == 0
    ask(Wish.RETRY, job="job")
    assert bench.run(destinations=[to])["delivered"] == 1


def test_paused_then_cancelled_leaves_nothing_after_the_next_run(bench: Bench, content: bytes) -> None:
    bench.put("clip.mp4", content)
    to = BreakingStorage.at(bench.archive)
    run_and_ask(bench, to, Wish.PAUSE)
    ask(Wish.CANCEL, job="job")
    assert len(bench.files()) == 1
    assert bench.run(destinations=[to])["delivered"] == 0
    assert bench.files() == {}
    assert rows() == [(State.CANCELLED, Kind.CANCELLED)]


def test_the_other_destination_goes_on(bench: Bench, content: bytes, tmp_path: Path) -> None:
    bench.put("clip.mp4", content)
    (tmp_path / "second").mkdir()
    one, two = BreakingStorage.at(bench.archive), BreakingStorage.at(tmp_path / "second")
    job = bench.job(destinations=[one, two])
    with Ledger.open() as ledger, TransferRun(job, ledger) as run:

        def want() -> None:
            first = next(iter(ledger.files()))["id"]
            ask(Wish.CANCEL, ids=[first])
            run.ask()

        two.cable.at = {20 * MIB: want}
        summary = carry_out(run, here(run))
    assert summary["delivered"] == 1
    assert bench.files() == {}
    assert bench.files(tmp_path / "second") == {"clip.mp4": content}


def test_a_paused_job_moves_nothing(bench: Bench, onblock: Cli) -> None:
    for n in range(5):
        bench.put(f"f{n}")
    job = bench.yaml()
    assert bench.run()["delivered"] == 5
    for n in range(5, 9):
        bench.put(f"f{n}")
    done = onblock("transfers", "pause", "--job", "job")
    assert (done.returncode, "move nothing until" in done.stdout) == (0, True), done
    done = onblock("run", job)
    assert done.returncode == 1
    assert "was paused by" in done.stdout and "onblock transfers resume --job job" in done.stdout
    assert len(bench.files()) == 5
    done = onblock("transfers", "resume", "--job", "job")
    assert (done.returncode, "move files again" in done.stdout) == (0, True), done
    assert onblock("run", job).returncode == 0
    assert len(bench.files()) == 9


def test_a_job_that_is_paused_under_way(bench: Bench) -> None:
    for n in range(40):
        bench.put(f"f{n:02}", bytes([n]) * MIB)
    to = BreakingStorage.at(bench.archive)
    job = bench.job(destinations=[to], shipping={"max_files": 5, "at_once": 1})
    with Ledger.open() as ledger, TransferRun(job, ledger) as run:

        def want() -> None:
            ledger.hold("job", who="me")
            run.ask()

        to.cable.at = {12 * MIB: want}
        summary = carry_out(run, here(run))
    assert summary["problems"] and 0 < summary["delivered"] < 40
    assert len(bench.files()) == summary["delivered"]
    with Ledger.open() as ledger:
        ledger.release("job")
        ledger.grant(Wish.RESUME, ledger.choose(states=[State.PAUSED]), who="me")
    assert bench.run(destinations=[to])["delivered"] == 40 - summary["delivered"]
    assert len(bench.files()) == 40


@pytest.mark.parametrize(
    ("state", "command", "says"),
    [
        ("VERIFIED", "resume", "is VERIFIED"), ("VERIFIED", "cancel", "is VERIFIED"), ("VERIFIED", "pause", "is VERIFIED"),
        ("DELIVERING", "retry", "being delivered"), ("CLEANED", "retry", "is CLEANED"), ("CANCELLED", "cancel", "is CANCELLED"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(bench: Bench, onblock: Cli, state: str, command: str, says: str) -> None:
    from sqlalchemy import text

    bench.put("a")
    bench.put("b")
    bench.run()
    with Ledger.open() as ledger:
        with ledger.engine.begin() as c:
            c.execute(text(f"UPDATE files SET state = '{state}' WHERE path = 'a'"))
            c.execute(text("UPDATE files SET state = 'FAILED' WHERE path = 'b'"))
        before = {r["path"]: r for r in ledger.files()}
        ids = [before[path]["id"] for path in ("a", "b") if path == "a" or command not in ("pause", "resume")]
        done = onblock("transfers", command, *ids)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr and done.stderr.count("\n") == 1
        assert {r["path"]: r for r in ledger.files()} == before


@pytest.mark.parametrize("args", [["pause"], ["cancel", "--job", "nobody"], ["retry", "7"], ["priority", "BEST", "1"]])
def test_whoever_is_not_named_is_not_touched(bench: Bench, onblock: Cli, args: list[str]) -> None:
    bench.put("a")
    bench.run()
    done = onblock("transfers", *args)
    assert done.returncode == 2, done
    assert done.stderr.startswith("onblock: ") and done.stderr.count("\n") == 1
    assert rows() == [(State.VERIFIED, None)]


# -- priority ---------------------------------------------------------------------------------------------------------


def test_urgent_files_go_first_and_low_ones_last(bench: Bench) -> None:
    for n in range(12):
        bench.put(f"f{n:02}")
    job = bench.job(shipping={"max_files": 3})
    with Ledger.open() as ledger:
        with TransferRun(job, ledger) as run:
            for _ in shipments(run):
                pass  # entered, and not moved
        by_path = {r["path"]: r["id"] for r in ledger.files()}
        for name, level in (("f09", Priority.HIGH), ("f11", Priority.URGENT), ("f00", Priority.LOW)):
            assert ledger.prioritise(ledger.choose([by_path[name]]), level) == 1
        with TransferRun(job, ledger) as run:
            order = [i.file.path for s in shipments(run) for i in s.items]
        assert order[:2] == ["f11", "f09"]
        assert order[-1] == "f00"
        assert sorted(order) == sorted(by_path)
    summary = bench.run(shipping={"max_files": 3})
    assert (summary["scanned"], summary["delivered"], summary["duplicates"]) == (12, 12, 0)
    assert len(bench.files()) == 12


def test_an_urgent_file_that_is_gone_stops_nobody(bench: Bench) -> None:
    for n in range(3):
        bench.put(f"f{n}")
    with Ledger.open() as ledger:
        with TransferRun(bench.job(), ledger) as run:
            page = [i for s in shipments(run) for i in s.items]
            assert len(page) == 3
        ledger.prioritise(ledger.choose(job="job"), Priority.URGENT)
    (bench.card / "f1").unlink()
    summary = bench.run()
    assert (summary["delivered"], summary["failed"]) == (2, 1)
    assert bench.files().keys() == {"f0", "f2"}


def test_two_versions_of_one_path_are_not_taken_for_each_other(bench: Bench) -> None:
    bench.put("a", b"first take")
    bench.run()
    bench.put("a", b"the second take", mtime=1_700_000_100.0)
    bench.run()
    with Ledger.open() as ledger:
        ledger.grant(Wish.RETRY, ledger.choose(job="job"), who="me")
        ledger.prioritise(ledger.choose(job="job"), Priority.HIGH)
    bench.run()
    with Ledger.open() as ledger:
        first, second = ledger.files()
    assert first["state"] == State.VERIFIED  # its source is another version now; what was delivered of it is there
    assert (second["state"], second["size"]) == (State.VERIFIED, len(b"the second take"))
    assert sorted(bench.files().values()) == [b"first take", b"the second take"]


def test_what_is_delivered_is_not_sent_again_unless_it_is_named(bench: Bench, onblock: Cli) -> None:
    bench.put("a")
    bench.run()
    assert onblock("transfers", "retry", "--job", "job").returncode == 2
    assert rows() == [(State.VERIFIED, None)]
    assert onblock("transfers", "retry", "--job", "job", "--state", "VERIFIED").returncode == 0
    assert rows() == [(State.QUEUED, None)]


class Vanishing(LocalStorage):
    """A file is there when it is listed, and gone when it is to be read."""

    _block_type_slug = "vanishing-storage"

    def open(self) -> LocalSession:
        return VanishingSession(self.root)


class VanishingSession(LocalSession):
    def read(self, path: str, offset: int = 0) -> Any:
        Path(self.root, path).unlink(missing_ok=True)
        return super().read(path, offset)


@pytest.mark.parametrize("listed", [False, True])
def test_what_is_delivered_stays_so_when_its_source_is_gone(bench: Bench, listed: bool) -> None:
    """It was asked for again by name; that nothing can be sent takes nothing from what was proven."""
    full = bench.put("DCIM/a", b"take one")
    bench.put("DCIM/b", b"take two")
    bench.run()
    with Ledger.open() as ledger:
        before = next(r for r in ledger.files() if r["path"] == "DCIM/a")
        ledger.grant(Wish.RETRY, ledger.choose([before["id"]]), who="me")
    if listed:
        summary = bench.run(source=Vanishing(root=str(bench.card)))
    else:
        full.unlink()
        summary = bench.run()
    assert summary["failed"] == 1
    with Ledger.open() as ledger:
        after = next(r for r in ledger.files() if r["path"] == "DCIM/a")
    same = ("state", "sha256", "dest_path", "done_at", "verified_by", "verify_passes", "proven_at")
    assert {k: after[k] for k in same} == {k: before[k] for k in same}
    assert (after["kind"], "what was delivered before stays" in after["message"]) == (None, True)
    bench.check_manifest()
    again = bench.run()
    assert (again["failed"], again["duplicates"]) == (0, 1)
