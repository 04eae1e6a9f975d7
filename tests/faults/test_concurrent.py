"""Several `onblock run` of one job at the same moment: each file is delivered once, and everybody says so."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from blocks.errors import OnblockError
from blocks.storage import LocalStorage
from flows.ledger import Ledger
from flows.ledger.worker import this_worker
from flows.transfer.shipment import discard_staged, staging_key
from tests.faults.card import MIB, Truth, make_card, temporary_files, until, write_job
from tests.faults.forker import Child, Forker


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_card(tmp_path_factory.mktemp("source") / "card", small=1500, large=(34 * MIB, 33 * MIB, 32 * MIB))


@pytest.fixture(scope="module")
def truth(card: Path) -> Truth:
    return Truth(card)


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_runs_at_once(
    forker: Forker, card: Path, truth: Truth, tmp_path: Path, onblock_home: Path, database: str, turn: int,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if database == "sqlite":
        count, env = 2, {"ONBLOCK_HOME": str(onblock_home)}
    else:
        url = request.getfixturevalue("postgres_url")
        count, env = 4, {"ONBLOCK_HOME": str(onblock_home), "ONBLOCK_LEDGER_URL": url}
    archive = tmp_path / "archive"
    # small shipments: many claims to quarrel over
    job = write_job(tmp_path / "job.yaml", card, archive, shipping={"max_files": (100, 40, 10)[turn]})
    children = [forker.start("run", job, "--json", **env) for _ in range(count)]
    runs = [child.wait(120) for child in children]
    for run in runs:
        # 1: some files were not its own and not done yet when it ended
        assert run.code == 0 or (run.code == 1 and run.summary["deferred"]), run
        assert run.summary["failed"] == run.summary["blocked"] == run.summary["adopted"] == 0, run
        assert run.summary["problems"] == [], run
        assert "Traceback" not in run.err
    assert sum(run.summary["delivered"] for run in runs) == len(truth)
    assert sum(run.summary["bytes"] for run in runs) == sum(
        os.stat(os.path.join(os.fsencode(card), p)).st_size for p in truth.digests
    )
    truth.check_complete(archive, env.get("ONBLOCK_LEDGER_URL"))
    with Ledger.open(env.get("ONBLOCK_LEDGER_URL")) as ledger, ledger.engine.connect() as c:
        assert c.execute(text("SELECT max(attempt), min(attempt) FROM files")).one() == (1, 1), "each claimed once"
        assert c.execute(text("SELECT count(*) FROM runs WHERE ended_at IS NULL")).scalar() == 0
    again = forker.start("run", job, "--json", **env).wait()
    assert (again.code, again.summary["delivered"], again.summary["duplicates"]) == (0, 0, len(truth))


def largest_part(archive: Path) -> int:
    """Bytes of the largest temporary file."""
    size = 0
    for path in temporary_files(archive) if archive.exists() else []:
        with contextlib.suppress(FileNotFoundError):  # it has its final name by now
            size = max(size, os.stat(os.path.join(os.fsencode(archive), path)).st_size)
    return size


def age(home: Path, sleeper: Child) -> None:
    """Two minutes pass, and the process is in a container, where nobody can see that it is only stopped.

    One that was stopped with the lock of SQLite in its hands is moved on a little first.
    """
    host, boot, _ = this_worker().split("/")
    while True:
        with sqlite3.connect(home / "ledger.db", timeout=0.2) as c:
            try:
                c.execute("UPDATE runs SET heartbeat_at = heartbeat_at - 120000, worker = ?", (f"{host}/{boot}/1:1:1",))
                return
            except sqlite3.OperationalError:
                sleeper.send(signal.SIGCONT)
                sleeper.send(signal.SIGSTOP)


def test_a_run_that_sleeps_through_its_lease_spoils_nothing(
    forker: Forker, tmp_path: Path, onblock_home: Path
) -> None:  # fmt: skip
    """A laptop is closed over a transfer; another run takes the files over and delivers them; then it wakes up.

    Its descriptors point to the files it was writing. Whatever it writes there, the final names stay whole.
    """
    card, archive = make_card(tmp_path / "card", small=20, large=(96 * MIB,)), tmp_path / "archive"
    truth = Truth(card)
    job = write_job(tmp_path / "job.yaml", card, archive)
    sleeper = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home)

    until("the large file is being written", lambda: largest_part(archive) > 4 * MIB)
    sleeper.send(signal.SIGSTOP)
    assert sleeper.running()
    age(onblock_home, sleeper)
    taker = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home).wait()
    assert taker.code == 0, taker
    assert truth.check_whole(archive) == len(truth)
    sleeper.send(signal.SIGCONT)
    late = sleeper.wait()
    assert late.code in (0, 1), late
    # what the sleeper had committed and not written down yet, the taker has found at its place
    assert sum(taker.summary[k] for k in ("delivered", "adopted", "duplicates")) == len(truth)
    truth.check_complete(archive)


@pytest.mark.parametrize("turn", range(4))
def test_a_run_that_wakes_up_while_another_writes_the_same_file(
    forker: Forker, tmp_path: Path, onblock_home: Path, turn: int
) -> None:  # fmt: skip
    """The same, but both are at it at the same time."""
    card, archive = make_card(tmp_path / "card", small=20, large=(160 * MIB,)), tmp_path / "archive"
    truth = Truth(card)
    job = write_job(tmp_path / "job.yaml", card, archive)
    sleeper = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home)

    until("the large file is half written", lambda: largest_part(archive) > (20 + 35 * turn) * MIB)
    sleeper.send(signal.SIGSTOP)
    age(onblock_home, sleeper)
    taker = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home)
    until("the row is taken over", lambda: _attempts() or not taker.running())
    sleeper.send(signal.SIGCONT)
    late, taken = sleeper.wait(), taker.wait()
    assert late.code in (0, 1), late
    assert taken.code in (0, 1), taken
    truth.check_whole(archive)
    again = forker.start("run", job, "--json", ONBLOCK_HOME=onblock_home).wait()
    assert again.code == 0, again
    truth.check_complete(archive)


def _attempts() -> bool:
    with Ledger.open() as ledger, ledger.engine.connect() as c:
        return c.execute(text("SELECT max(attempt) FROM files")).scalar() == 2


def test_the_sleeper_commits_what_it_staged_itself(tmp_path: Path) -> None:
    """It slept between the proof and the rename; meanwhile the other began to write the same version once more."""
    version = (8, 1, "")
    session = LocalStorage(root=str(tmp_path)).open()
    sleeper = session.upload("clip.mp4", 8, key=staging_key("clip.mp4", version, 1))
    sleeper.write(memoryview(b"12345678"))
    assert sleeper.digest() is not None
    sleeper.seal()
    taker = session.upload("clip.mp4", 8, key=staging_key("clip.mp4", version, 2))
    taker.write(memoryview(b"1234"))
    sleeper.commit()
    assert (tmp_path / "clip.mp4").read_bytes() == b"12345678"
    taker.abort()
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_taker_removes_what_the_sleeper_staged(tmp_path: Path) -> None:
    version = (8, 1, "")
    session = LocalStorage(root=str(tmp_path)).open()
    sleeper = session.upload("clip.mp4", 8, key=staging_key("clip.mp4", version, 1))
    sleeper.write(memoryview(b"12345678"))
    discard_staged(session, "clip.mp4", "clip.mp4", version, 2)
    with pytest.raises(OnblockError):
        sleeper.commit()
    assert not list(tmp_path.iterdir())
