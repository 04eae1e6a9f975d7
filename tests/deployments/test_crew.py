"""A job that several runs work off, by real workers of one pool: hired, limited, killed and sent home by Prefect."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from sqlalchemy import select

from deployments.bootstrap import bootstrap
from deployments.server import POOL
from flows.ledger import Ledger
from flows.ledger.models import File, Offer, Run
from flows.ledger.states import ACTIVE
from flows.transfer.hired import TAG
from tests.deployments.conftest import until
from tests.deployments.test_durable import ended, started

pytestmark = pytest.mark.timeout(600)


def hands(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    where = FlowRunFilter(tags=FlowRunFilterTags(all_=[TAG]))
    return [r for r in client.read_flow_runs(flow_run_filter=where) if r.deployment_id == run.deployment_id]


def ask(*what: Any) -> list[Any]:
    with Ledger.open() as ledger:
        return list(ledger.read_all(select(*what)))


def test_one_job_many_workers(
    client: SyncPrefectClient, write_job: Callable[..., Path], worker: Callable[[str], Path], tmp_path: Path,
    postgres_url: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two workers, a job for three runs. One that helps is killed in the middle: what it had goes to the others."""
    monkeypatch.setenv("ONBLOCK_LEDGER_URL", postgres_url)
    card = tmp_path / "card"
    card.mkdir()
    for n in range(60):
        (card / f"{n:03}.jpg").write_bytes(os.urandom(100_000))
    bootstrap([
        write_job("many", settle={"quiet": "0s"}, bandwidth={"up": "400 KiB"},
                  shipping={"max_files": 4, "at_once": 1, "workers": 3})
    ])  # fmt: skip
    for _ in range(2):
        worker(POOL)
    run = started(client, "many")

    def helping() -> str | None:
        held = {r for r, s in ask(File.run_id, File.state) if s in ACTIVE}
        return next(
            (worker for worker, i, leader in ask(Run.worker, Run.id, Run.leader_id) if leader and i in held), None
        )

    victim = until("one that helps, with files in hand", helping)
    os.kill(int(victim.rsplit(":", 2)[1]), signal.SIGKILL)
    done = ended(client, run, 300)
    assert (done.state.name, done.state.message) == ("Completed", "60 delivered"), done.state
    assert {p.name: p.read_bytes() for p in card.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "archive").iterdir() if p.name != "checksums.sha256"
    }
    assert {s for (s,) in ask(File.state)} == {"VERIFIED"} and ask(Offer.number) == []
    hired = hands(client, run)
    assert len(hired) == 2 and all(h.parent_task_run_id for h in hired), "in the UI they are its sub-runs"
    for one in hired:
        until("a hand that has gone home", lambda one=one: client.read_flow_run(one.id).state.is_final())
    assert len({r for (r,) in ask(File.run_id)}) > 1


@pytest.mark.parametrize("limited", ["worker", "pool"])
def test_hands_that_never_begin_are_sent_home(
    client: SyncPrefectClient, write_job: Callable[..., Path], worker: Callable[..., Path], tmp_path: Path, limited: str
) -> None:
    """The only worker takes one run at a time."""
    card = tmp_path / "card"
    card.mkdir()
    for n in range(20):
        (card / f"{n:03}.jpg").write_bytes(b"x")
    name = f"alone-{limited}"
    bootstrap([write_job(name, settle={"quiet": "0s"}, shipping={"max_files": 2, "at_once": 1, "workers": 3})])
    client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=1 if limited == "pool" else None))
    try:
        worker(POOL, *([1] if limited == "worker" else []))
        run = started(client, name)
        done = ended(client, run)
    finally:
        client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=None))
    assert (done.state.name, done.state.message) == ("Completed", "20 delivered"), done.state
    assert [h.state.name for h in hands(client, run) if h.state] == ["Cancelled"] * 2


def test_a_leader_that_died_comes_to_its_turn_again(
    client: SyncPrefectClient, write_job: Callable[..., Path], worker: Callable[..., Path], tmp_path: Path
) -> None:
    """All room of the only worker is taken by the hands of a leader that is killed: they do not wait for it."""
    card = tmp_path / "card"
    card.mkdir()
    for n in range(60):
        (card / f"{n:03}.jpg").write_bytes(os.urandom(100_000))
    bootstrap([
        write_job("orphans", settle={"quiet": "0s"}, bandwidth={"up": "400 KiB"},
                  shipping={"max_files": 4, "at_once": 1, "workers": 6})
    ])  # fmt: skip
    worker(POOL, 2)
    run = started(client, "orphans")

    def leading() -> str | None:
        there = [(worker, leader) for worker, leader, over in ask(Run.worker, Run.leader_id, Run.ended_at) if not over]
        return next((worker for worker, leader in there if not leader), None) if len(there) == 2 else None

    os.kill(int(until("a hand that has begun", leading).rsplit(":", 2)[1]), signal.SIGKILL)
    until("a run that was begun again", lambda: client.read_flow_run(run.id).state_name == "Completed", 300)
    assert client.read_flow_run(run.id).run_count == 2
    assert {s for (s,) in ask(File.state)} == {"VERIFIED"} and ask(Offer.number) == []
