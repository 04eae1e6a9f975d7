"""SIGINT and SIGTERM: `onblock run` stops soon, says so, leaves nothing half done, and goes on the next time."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from blocks.names import temporary
from flows.ledger import Ledger
from flows.ledger.states import ACTIVE
from flows.transfer.resume import Journal
from flows.transfer.shipment import staging_key
from tests.faults.card import MIB, Truth, make_card, temporary_files, until, write_job
from tests.faults.forker import REPOSITORY, Child, Forker

SEED = int(os.environ.get("ONBLOCK_TEST_SEED") or random.SystemRandom().randrange(10**9))
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
SOON = 30.0  # seconds: well under what the run would take; the exact figure is for `make bench`


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_card(tmp_path_factory.mktemp("source") / "card", small=600, large=(64 * MIB, 65 * MIB, 66 * MIB))


@pytest.fixture(scope="module")
def truth(card: Path) -> Truth:
    return Truth(card)


def check_put_down(truth: Truth, archive: Path, err: str) -> None:
    """Nothing is half done, and the user is told what to do."""
    assert "run it again to go on" in err, err
    assert "Traceback" not in err, err
    with Ledger.open() as ledger:
        states = {s for _, _, s, _, _ in ledger.counts()}
        kept = {os.fsencode(part) for row in ledger.files() if (part := _kept(row)) is not None}
    if archive.exists():
        assert set(temporary_files(archive)) <= kept, "what is left is a large file that the next run goes on with"
        truth.check_whole(archive)
    assert not states & ACTIVE, states
    assert states <= {"QUEUED", "VERIFIED"}


def _kept(row: dict[str, Any]) -> str | None:
    """Where the part of a large file lies that its row speaks of."""
    journal = Journal.parse(row["journal"])
    if journal is None or row["state"] != "QUEUED":
        return None
    version = (row["size"], row["mtime_ns"], row["etag"])
    return temporary(row["dest_path"], staging_key(row["path"], version, journal.attempt))


def listens(child: Child) -> bool:
    """Whether its handler for SIGTERM is there: the second of the two that it sets, before anything else."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def writing(archive: Path) -> bool:
    return archive.exists() and bool(temporary_files(archive))


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_in_the_middle_of_a_real_program(
    forker: Forker, card: Path, truth: Truth, tmp_path: Path, onblock_home: Path, number: int, code: int
) -> None:
    archive = tmp_path / "archive"
    job = write_job(tmp_path / "job.yaml", card, archive)
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.cli", "run", str(job)], cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until("it writes", lambda: writing(archive) or process.poll() is not None, 60)
        process.send_signal(number)
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
        took = time.monotonic() - began
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, err
    assert took < SOON
    assert out == ""
    check_put_down(truth, archive, err)
    ended = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home).wait()
    assert ended.code == 0, ended
    truth.check_complete(archive)


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_at_a_random_moment(
    forker: Forker, card: Path, truth: Truth, tmp_path: Path, onblock_home: Path, number: int, code: int, turn: int
) -> None:  # fmt: skip
    print(f"ONBLOCK_TEST_SEED={SEED}")
    dice = random.Random(SEED + turn)
    archive = tmp_path / "archive"
    job = write_job(tmp_path / "job.yaml", card, archive)
    for _ in range(25):
        child = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home)
        until("it has begun", lambda child=child: listens(child) or not child.running())
        time.sleep(dice.choice((0.02, 0.15, 0.7)) * dice.random())
        child.send(number)
        began = time.monotonic()
        ended = child.wait()
        assert time.monotonic() - began < SOON
        if ended.out:
            break  # it had finished, and was only leaving
        assert ended.code == code, ended
        check_put_down(truth, archive, ended.err)
    else:
        assert forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home).wait().code == 0
    truth.check_complete(archive)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_while_it_waits_for_files_to_settle(
    forker: Forker, tmp_path: Path, onblock_home: Path, number: int, code: int
) -> None:
    card = tmp_path / "card"
    card.mkdir()
    (card / "young").write_bytes(b"just written")
    job = write_job(tmp_path / "job.yaml", card, tmp_path / "archive", settle={"quiet": "1h"})
    child = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home)
    until("it waits", lambda: (tmp_path / "archive").exists())
    time.sleep(0.3)
    child.send(number)
    began = time.monotonic()
    ended = child.wait()
    assert time.monotonic() - began < SOON
    assert ended.code == code, ended
    assert "run it again to go on" in ended.err


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_twice(
    forker: Forker, card: Path, truth: Truth, tmp_path: Path, onblock_home: Path, number: int, code: int
) -> None:
    """Somebody is impatient: it ends, and the next run goes on from whatever was left."""
    archive = tmp_path / "archive"
    job = write_job(tmp_path / "job.yaml", card, archive)
    child = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home)
    until("it writes", lambda: writing(archive) or not child.running())
    for _ in range(3):
        child.send(number)
        time.sleep(0.02)
    began = time.monotonic()
    ended = child.wait()
    assert time.monotonic() - began < SOON
    assert ended.code in (code, -number), ended  # Python itself no longer listens in its last moments
    assert "run it again to go on" in ended.err
    assert "Traceback" not in ended.err
    truth.check_whole(archive)
    ended = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home).wait()
    assert ended.code == 0, ended
    truth.check_complete(archive)


BREAK_OFF = """
import os, signal, sqlite3, sys, time
from deployments import interrupt
from blocks.names import temporary
from flows.ledger import Ledger
from sqlalchemy import event

def now(*_):
    os.kill(os.getpid(), signal.SIGTERM)

class Careless:
    def __del__(self):
        now()
        time.sleep(0.05)

def work(where, ledger, run_id):
    match where:
        case "statement":
            event.listen(ledger.engine, "before_cursor_execute", now, once=True)
            ledger.heartbeat(run_id)
        case "commit":
            event.listen(ledger.engine, "commit", now)
            ledger.heartbeat(run_id)
        case "connect":
            ledger.engine.dispose()
            event.listen(ledger.engine, "connect", now)
            ledger.heartbeat(run_id)
        case "close":
            event.listen(ledger.engine, "close", now)
            ledger.close()
        case "destructor":
            Careless()
        case "swallowed":
            try:
                now()
            except SystemExit:
                pass

def child(where):
    interrupt.listen(grace_s=1.0 if where == "swallowed" else 25.0)
    ledger = Ledger.open()
    try:
        work(where, ledger, ledger.begin_run("job", flight=None, device=None))
        time.sleep(60)
        print(where, "never told", flush=True)
    except SystemExit as end:
        signal.setitimer(signal.ITIMER_REAL, 0)  # told: what is looked at here may wait for a slow disk
        with sqlite3.connect(os.environ["ONBLOCK_HOME"] + "/ledger.db", timeout=0) as c:
            c.execute("UPDATE runs SET ended_at = 1")  # nobody holds the lock
        print(where, "told", end.code, flush=True)
        os._exit(end.code)

for where in sys.argv[1:]:
    if not (pid := os.fork()):
        child(where)
    print(where, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_in_the_middle_of_what_should_not_be_broken_off(onblock_home: Path) -> None:
    """Each is a place where a SystemExit did harm: a lock that was held for 30 s, a traceback, a signal that was lost.

    One that is swallowed all the same ends the process when the grace is over.
    """
    places = ["statement", "commit", "connect", "close", "destructor"]
    done = subprocess.run(
        [sys.executable, "-c", BREAK_OFF, *places, "swallowed"], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    expected = [line for place in places for line in (f"{place} told 143", f"{place} 143")]
    assert done.stdout.splitlines() == [*expected, "swallowed 143"], done
    assert done.stderr == "onblock: stopped at once; run it again to go on\n"


HEARD = """
import os, signal, time
from deployments import interrupt

def now():
    os.kill(os.getpid(), signal.SIGTERM)

class Begin:
    def __enter__(self):
        now()
        print("not broken off", flush=True)

    def __exit__(self, *_):
        pass

interrupt.listen(grace_s=0.5)
with Begin():
    with interrupt.heard_by(lambda number, _: print("heard", number, flush=True)):
        time.sleep(1)
        now()
    print("goes on", flush=True)
now()
"""


def test_who_ends_when_asked_hears_what_came_before_it_listened() -> None:
    """An agent that was asked to end while it started became a failure of its unit."""
    done = subprocess.run(
        [sys.executable, "-c", HEARD], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["not broken off", "heard 15", "heard 15", "goes on"], done
    assert done.returncode == 143 and done.stderr == "onblock: stopped at once; run it again to go on\n"
