"""Runs that outlive an outage: what is deferred gets a successor, what is cut off is noticed and started again."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling

from deployments.bootstrap import bootstrap
from deployments.server import POOL, Report, create_automations
from flows.ledger import Ledger, State
from flows.ledger.wishes import Wish
from flows.transfer import successor
from tests.deployments.conftest import until
from tests.deployments.test_bootstrap import descendants
from tests.servers.faultproxy import FaultProxy

WriteJob = Callable[..., Path]


def started(client: SyncPrefectClient, job: str) -> FlowRun:
    deployment = client.read_deployment_by_name(f"transfer/{job}")
    return client.create_flow_run_from_deployment(deployment.id)


def ended(client: SyncPrefectClient, run: FlowRun, seconds: float = 90) -> FlowRun:
    return until("a run that has ended", lambda: (r := client.read_flow_run(run.id)).state.is_final() and r, seconds)


def successors(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    where = FlowRunFilter(tags=FlowRunFilterTags(all_=[successor.TAG]))
    return [r for r in client.read_flow_runs(flow_run_filter=where) if r.deployment_id == run.deployment_id]


def test_what_is_deferred_gets_one_successor_at_the_earliest_attempt(
    client: SyncPrefectClient, write_job: WriteJob, worker: Callable[[str], Path], tmp_path: Path
) -> None:
    """However many runs end meanwhile."""
    bootstrap([write_job("defers", settle={"quiet": "0s"})])
    (tmp_path / "card" / "clip.mp4").write_bytes(os.urandom(1000))
    run = started(client, "defers")
    worker(POOL)
    ended(client, run)
    with Ledger.open() as ledger:
        assert len(list(ledger.files())) == 1
        due = int(time.time() * 1000) + 3_600_000
        with ledger.engine.begin() as c:
            from sqlalchemy import text

            c.execute(text(f"UPDATE files SET state = 'QUEUED', kind = 'NETWORK', tries = 4, next_attempt_at = {due}"))
        route = [r["route_id"] for r in ledger.files()]
        assert ledger.next_attempt(route, "another", due - 1) == due
        assert ledger.next_attempt(route, "another", due) is None, "nobody may ever come to it again"
        assert ledger.next_attempt(route, "another", due - 3_600_001) is None, "no failure puts off for so long"
    for _ in range(3):
        again = ended(client, started(client, "defers"))
        assert (again.state.name, again.state.type) == ("Deferred", StateType.COMPLETED), again.state.message
        assert "1 deferred; the next try is at" in (again.state.message or "")
    (waiting,) = successors(client, run)
    assert waiting.state is not None and waiting.state.is_scheduled()
    when = waiting.next_scheduled_start_time
    assert when is not None and abs(when - datetime.fromtimestamp(due / 1000, UTC)) <= timedelta(seconds=2)
    assert waiting.parameters == again.parameters

    # reconnected: the wait is over
    with Ledger.open() as ledger:
        ledger.grant(Wish.RETRY, ledger.choose(job="defers", states=[State.QUEUED]), who="me")
    last = ended(client, started(client, "defers"))
    assert (last.state.name, last.state.message) == ("Completed", "0 delivered, 1 adopted")


def test_a_run_that_is_cut_off_is_noticed_and_started_again(
    client: SyncPrefectClient, write_job: WriteJob, worker: Any, tmp_path: Path
) -> None:
    """Worker and run are killed as by a power cut. No process is left to tell Prefect."""
    report = Report()
    for automation in client.read_automations():
        client.delete_automation(automation.id)
    create_automations(client, report, within=timedelta(seconds=12))
    assert len(report.made) == 2
    create_automations(client, report)
    assert len(report.kept) == 2
    bootstrap([write_job("cut-off", settle={"quiet": "25s"})])
    recording = os.urandom(100_000)
    (tmp_path / "card" / "clip.mp4").write_bytes(recording)  # so young that the run looks twice, 25 s apart
    worker(POOL)
    run = started(client, "cut-off")
    until("a run that settles", lambda: client.read_flow_run(run.id).state.is_running() and _begun(), 60)
    (process,) = worker.started
    pids = [process.pid, *(pid for pid, _ in descendants(process.pid))]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    until(
        "a run that is Crashed or waits",
        lambda: client.read_flow_run(run.id).state.name in ("Crashed", "AwaitingRetry"),
        90,
    )
    until("a run that waits", lambda: client.read_flow_run(run.id).state.name == "AwaitingRetry", 30)
    # 12 s without a heartbeat are no death where it is told of each 30 s: not for this run's second life, and not for
    # the runs of later tests
    for automation in client.read_automations():
        client.delete_automation(automation.id)
    create_automations(client, Report())
    worker(POOL)
    done = ended(client, run, 120)
    assert (done.state.name, done.run_count) == ("Completed", 2), done.state.message
    assert (tmp_path / "archive" / "clip.mp4").read_bytes() == recording


def test_a_run_that_is_cancelled_in_the_ui_ends_in_order(
    client: SyncPrefectClient, write_job: WriteJob, worker: Callable[[str], Path], tmp_path: Path
) -> None:
    """Prefect sends SIGTERM to the run's process. What arrived is kept, the row is free, the next run goes on with it."""
    bootstrap([write_job("cancelled", settle={"quiet": "0s"}, bandwidth={"up": "4 MiB"})])
    recording = os.urandom(48 << 20)
    (tmp_path / "card" / "clip.mp4").write_bytes(recording)
    worker(POOL)
    run = started(client, "cancelled")

    def part() -> int:
        return sum(p.stat().st_size for p in (tmp_path / "archive").glob(".onblock-*"))

    until("a part of the file", lambda: (tmp_path / "archive").exists() and part() >= 17 << 20, 90)
    client.set_flow_run_state(run.id, Cancelling())
    done = ended(client, run)
    assert done.state.is_cancelled(), done.state
    with Ledger.open() as ledger:
        until("a row that nobody holds", lambda: [r["state"] for r in ledger.files()] == ["QUEUED"], 30)
        (row,) = ledger.files()
        assert row["journal"] is not None
    assert part() >= 16 << 20 and not (tmp_path / "archive" / "clip.mp4").exists()
    bootstrap([write_job("cancelled", settle={"quiet": "0s"})])
    assert ended(client, started(client, "cancelled")).state.is_completed()
    assert (tmp_path / "archive" / "clip.mp4").read_bytes() == recording
    assert part() == 0


def test_a_storage_that_is_away_when_the_run_begins(
    client: SyncPrefectClient, write_job: WriteJob, worker: Callable[[str], Path], tmp_path: Path
) -> None:
    """The run cannot even open it: its successor tries again, and again later."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    bootstrap([write_job("away", settle={"quiet": "0s"}, destination={
        "type": "sftp-storage", "host": "127.0.0.1", "port": port, "user": "u", "password": "p", "root": "/x",
        "host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE0rbQ5ZsWmFqBWKZz6Y1oS7ZyqVtVZ1E8eX1oQmYb9y",
    })])  # fmt: skip
    (tmp_path / "card" / "clip.mp4").write_bytes(b"x")
    run = started(client, "away")
    worker(POOL)
    first = ended(client, run)
    assert first.state.is_failed() and "the next try is at" in (first.state.message or ""), first.state
    until("a second successor", lambda: len(successors(client, run)) >= 2, 60)
    assert {t for r in successors(client, run) for t in r.tags} >= {f"{successor.TAG}:1", f"{successor.TAG}:2"}

    with Ledger.open() as ledger:
        leader = ledger.begin_run("away", flight=None, device=None)
    assert run.deployment_id is not None
    hand = client.create_flow_run_from_deployment(run.deployment_id, parameters={**run.parameters, "leader": leader})
    lent = ended(client, hand)
    assert lent.state.is_failed() and "the next try" not in (lent.state.message or ""), lent.state
    assert not [r for r in successors(client, run) if r.parameters.get("leader")], "a leader has one of its own"


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_a_prefect_server_that_is_gone_for_a_while(
    client: SyncPrefectClient, write_job: WriteJob, worker: Callable[[str], Path], tmp_path: Path,
    fault_proxy: Callable[[int], FaultProxy], server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, how: str,
) -> None:  # fmt: skip
    """The files do not need it: what was on its way arrives, and the ledger is true."""
    bootstrap([write_job(f"gone-{how}", settle={"quiet": "0s"}, bandwidth={"up": "2 MiB"})])
    recording = os.urandom(40 << 20)
    (tmp_path / "card" / "clip.mp4").write_bytes(recording)
    proxy = fault_proxy(int(server[0].rpartition(":")[2]))
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{proxy.port}/api")
    monkeypatch.setenv("PREFECT_API_REQUEST_TIMEOUT", "60")  # as it is by default: what hung is asked again then
    log = worker(POOL)
    run = started(client, f"gone-{how}")

    def part() -> int:
        return sum(p.stat().st_size for p in (tmp_path / "archive").glob(".onblock-*"))

    until("a part of the file", lambda: (tmp_path / "archive").exists() and part() > 0, 90)
    if how == "refuses":
        proxy.down()
    else:
        proxy.freeze = True
    until("most of the file", lambda: part() >= 36 << 20 or (tmp_path / "archive" / "clip.mp4").exists(), 60)
    proxy.up()
    proxy.freeze = False
    until("the file", (tmp_path / "archive" / "clip.mp4").exists, 60)
    assert (tmp_path / "archive" / "clip.mp4").read_bytes() == recording
    done = ended(client, run, 300)
    # one that was taken for dead meanwhile is started beside itself, and leaves the file to the first
    assert done.state.is_completed() or done.run_count > 1, f"{done.state}\n{log.read_text()[-3000:]}"
    with Ledger.open() as ledger:
        until("a true ledger", lambda: [r["state"] for r in ledger.files()] == ["VERIFIED"])
        assert [r["attempt"] for r in ledger.files()] == [1], "moved once"


def _begun() -> bool:
    """Whether a run is in the ledger: its first heartbeat was sent before."""
    from sqlalchemy import func, select

    from flows.ledger.models import Run

    with Ledger.open() as ledger, ledger.engine.connect() as c:
        return bool(c.execute(select(func.count()).select_from(Run)).scalar())
