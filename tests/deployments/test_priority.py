"""Runs that wait, because a worker or its pool has a limit: how many do not, and who is the first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.sorting import FlowRunSort

from deployments.bootstrap import bootstrap
from deployments.server import POOL, RUNS_AT_ONCE
from tests.deployments.conftest import end, until


def _everything(client: SyncPrefectClient, log: Path) -> str:
    """All runs there are, newest first, and what the worker said."""
    runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    return "\n".join([*(f"{r.name} {r.state} {r.work_queue_name} {r.tags}" for r in runs), log.read_text()])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("limited", ["worker", "pool"])
def test_the_most_urgent_job_first(
    client: SyncPrefectClient, write_job: Callable[..., Path], worker: Callable[..., Path], limited: str
) -> None:
    given = ["low", "normal", "urgent", "high"]  # the order in which their runs are asked for
    bootstrap([write_job(f"first-{limited}-{priority}", priority=priority) for priority in given])
    queues = {q.name: q.priority for q in client.read_work_queues(work_pool_name=POOL)}
    assert sorted(queues, key=queues.__getitem__) == ["urgent", "high", "default", "low"]
    runs = {}
    for priority in given:
        deployment = client.read_deployment_by_name(f"transfer/first-{limited}-{priority}")
        runs[priority] = client.create_flow_run_from_deployment(deployment.id).id
    client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=1 if limited == "pool" else None))
    try:
        log = worker(POOL, *([1] if limited == "worker" else []))
        for n in range(len(runs)):  # one after the other

            def ended(n: int = n) -> bool:
                found = [client.read_flow_run(run) for run in runs.values()]
                return sum(run.state is not None and run.state.is_final() for run in found) > n

            until(f"{n + 1} runs that have ended", ended, told=lambda: _everything(client, log))
    finally:
        client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=None))
    began = {priority: client.read_flow_run(run).start_time for priority, run in runs.items()}
    assert all(began.values())
    assert sorted(began, key=lambda p: str(began[p])) == ["urgent", "high", "normal", "low"]


@pytest.mark.timeout(900)
def test_a_burst_waits_for_its_turn(
    client: SyncPrefectClient, write_job: Callable[..., Path], worker: Callable[..., Path], tmp_path: Path,
    onblock_home: Path,
) -> None:  # fmt: skip
    """More flights end at once than a worker, as it is installed, has runs at a time: each run is a process with
    connections of its own."""
    (card := tmp_path / "card").mkdir()
    (card / "1.jpg").write_bytes(b"1")
    names, go = [f"burst-{n}" for n in range(RUNS_AT_ONCE + 3)], tmp_path / "go"
    program = onblock_home / "scripts" / "wait"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nuntil test -e "{go}"; do sleep 0.2; done\ncp "$1" .\n')
    program.chmod(0o755)
    made = [
        write_job(name, steps=[{"kind": "script", "program": "wait"}], settle={"quiet": "0s"}, path="{job}/{path}")
        for name in names
    ]
    bootstrap(made)
    found = [client.read_deployment_by_name(f"transfer/{name}") for name in names]
    runs = [client.create_flow_run_from_deployment(one.id).id for one in found]

    def states() -> list[str]:
        return [str(client.read_flow_run(run).state_name) for run in runs]

    def begun() -> int:
        return sum(state not in ("Scheduled", "Late") for state in states())

    def asked_since(then: datetime) -> bool:
        queues = client.read_work_queues(work_pool_name=POOL)
        return any(q.last_polled is not None and q.last_polled > then for q in queues)

    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        argv = [sys.executable, "-P", "-m", "deployments.cli", "worker", POOL]
        process = subprocess.Popen(argv, env=os.environ, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        until("a worker with all hands full", lambda: states().count("Running") >= RUNS_AT_ONCE, told=log.read_text)
        for _ in range(2):
            full = datetime.now(UTC)
            until("a worker that asks again", lambda full=full: asked_since(full), told=log.read_text)
        assert begun() == RUNS_AT_ONCE
        go.touch()
        until("all of them", lambda: states().count("Completed") == len(runs), told=log.read_text)
    finally:
        go.touch()
        end(process)
    assert {p.parent.name for p in (tmp_path / "archive").rglob("1.jpg")} == set(names)
