"""The manifest when its writer dies or sleeps: its successor writes it whole, and clears up what was staged."""

from __future__ import annotations

import os
import signal
from collections.abc import Set
from pathlib import Path

import pytest

from blocks.names import temporary
from blocks.storage import LocalStorage
from flows.ledger import Ledger, State
from flows.ledger.store import NewFile, Outcome
from flows.transfer.job import TransferJob
from flows.transfer.manifest import write_manifests
from flows.transfer.run import TransferRun
from flows.transfer.story import run_here
from tests.faults.card import make_card, temporary_files, until, walk, write_job
from tests.faults.forker import Child, Forker
from tests.ledger.crowd import elsewhere, version

PATH = "checksums.sha256"
MANY = 30_000


@pytest.fixture
def job(tmp_path: Path) -> TransferJob:
    for name in ("card", "archive"):
        (tmp_path / name).mkdir()
    source, destination = (LocalStorage(root=str(tmp_path / name)) for name in ("card", "archive"))
    return TransferJob(name="card", source=source, destinations=[destination])


def delivered(ledger: Ledger, job: TransferJob, count: int) -> None:
    """So many files that the ledger knows as delivered and the manifest does not."""
    place = job.destinations[0].place()
    route, manifest = ledger.route(job.name, place), ledger.manifest(place, PATH)
    run_id = ledger.begin_run(job.name, flight=None, device=None)
    for start in range(0, count, 4000):
        paths = [f"DCIM/{n:08}.jpg" for n in range(start, min(count, start + 4000))]
        rows = ledger.enter(run_id, [NewFile(route, version(p), p, manifest) for p in paths], flight=None, device=None)
        claims = ledger.claim(run_id, [r.id for r in rows])
        ledger.finish([
            Outcome(c.id, c.attempt, State.VERIFIED, dest_path=path, sha256=f"{c.id:064x}")
            for path, c in zip(paths, (claims[r.id] for r in rows), strict=True)
        ])  # fmt: skip
    ledger.end_run(run_id, {})


def staged(archive: Path) -> list[str]:
    return [os.fsdecode(p) for p in temporary_files(archive)]


def lines(archive: Path) -> list[bytes]:
    return (archive / PATH).read_bytes().splitlines()


def writing(child: Child, archive: Path, before: Set[str] = frozenset()) -> None:
    until("it stages the manifest", lambda: set(staged(archive)) - before or not child.running())


def test_killed_while_it_writes(forker: Forker, job: TransferJob, tmp_path: Path, onblock_home: Path) -> None:
    """Again and again; nothing that the dead staged outlives the first that comes through."""
    archive = tmp_path / "archive"
    with Ledger.open() as ledger:
        delivered(ledger, job, MANY)
    file = write_job(tmp_path / "job.yaml", tmp_path / "card", archive)
    seen: set[str] = set()
    for _ in range(4):
        child = forker.start("run", file, "--json", ONBLOCK_HOME=onblock_home)
        writing(child, archive, seen)
        child.send(signal.SIGKILL)
        assert child.wait().code == -signal.SIGKILL
        assert len(staged(archive)) == 1, "each successor removes what the one before left"
        seen |= set(staged(archive))
        assert not (archive / PATH).exists()
    assert len(seen) == 4, "each has a name of its own"
    ended = forker.start("run", file, "--json", ONBLOCK_HOME=onblock_home).wait()
    assert (ended.code, ended.summary["problems"]) == (0, []), ended
    assert staged(archive) == []
    assert len(lines(archive)) == MANY


@pytest.mark.parametrize("turn", range(3))
def test_taken_for_dead_while_it_writes(
    forker: Forker, job: TransferJob, tmp_path: Path, onblock_home: Path, turn: int
) -> None:
    """It sleeps; its successor brings a file more and writes the manifest; it wakes, and must not undo that."""
    archive = tmp_path / "archive"
    with Ledger.open() as ledger:
        delivered(ledger, job, MANY)
    file = write_job(tmp_path / "job.yaml", tmp_path / "card", archive)
    sleeper = forker.start("run", file, "--json", ONBLOCK_HOME=onblock_home)
    writing(sleeper, archive)
    part = archive / staged(archive)[0]
    enough = turn * 1_000_000  # it is written by the MiB
    until("it is so far", lambda: not part.exists() or part.stat().st_size >= enough or not sleeper.running())
    sleeper.send(signal.SIGSTOP)
    with Ledger.open() as ledger:
        (run,) = _open_runs(ledger)
        elsewhere(ledger, run, silent_s=61)
    make_card(tmp_path / "card", small=20, large=())
    taker = forker.start("run", file, "--json", ONBLOCK_HOME=onblock_home).wait()
    sleeper.send(signal.SIGCONT)
    late = sleeper.wait()
    assert (taker.code, taker.summary["problems"]) == (0, []), taker
    assert (late.code, late.summary["problems"]) == (0, []), late
    assert staged(archive) == []
    there = {os.fsdecode(p) for p in walk(archive)} - {PATH}
    assert len(there) == 20
    assert len(lines(archive)) == MANY + len(there), "no line is lost"
    with Ledger.open() as ledger:
        assert ledger.claim_manifest(job.destinations[0].place(), "nobody") is None, "nothing is left to be written"


def _open_runs(ledger: Ledger) -> list[str]:
    with ledger.engine.connect() as c:
        return list(c.exec_driver_sql("SELECT id FROM runs WHERE ended_at IS NULL").scalars())


def test_two_writers_at_the_same_time(job: TransferJob, tmp_path: Path) -> None:
    """Each stages under its own name, and only one has the manifest."""
    archive = tmp_path / "archive"
    with Ledger.open() as ledger:
        delivered(ledger, job, 3)
        place = job.destinations[0].place()
        with TransferRun(job, ledger) as first, TransferRun(job, ledger) as second:
            claim = ledger.claim_manifest(place, first.id)
            assert claim is not None
            session = job.destinations[0].open()
            upload = session.upload(PATH, 0, key=f"manifest\0{first.id}")
            upload.write(memoryview(b"half"))
            write_manifests(second)
            assert not (archive / PATH).exists(), "the first is at it, and alive"
            elsewhere(ledger, first.id, silent_s=61)
            write_manifests(second)
            assert len(lines(archive)) == 3
            assert staged(archive) == [], "what the first had staged is gone, so that it cannot commit it"
            upload.abort()
            write_manifests(first)
            write_manifests(second)
            assert len(lines(archive)) == 3
            assert (first.problems, second.problems) == ([], [])


def test_left_by_one_who_died_before_it_could_clear_up(job: TransferJob, tmp_path: Path) -> None:
    """Two dead writers in a row, the second before it had begun."""
    archive = tmp_path / "archive"
    with Ledger.open() as ledger:
        delivered(ledger, job, 3)
        place = job.destinations[0].place()
        dead = [ledger.begin_run(job.name, flight=None, device=None) for _ in range(2)]
        for run_id in dead:
            assert ledger.claim_manifest(place, run_id) is not None
            elsewhere(ledger, run_id, silent_s=61)
    (archive / temporary(PATH, f"manifest\0{dead[0]}")).write_bytes(b"half")
    assert len(staged(archive)) == 1
    assert run_here(job)["problems"] == []
    assert staged(archive) == []
    assert len(lines(archive)) == 3
