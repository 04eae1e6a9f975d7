"""Priorities among deployed jobs: a work pool with a limit takes the runs of the most urgent one first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.sorting import FlowRunSort

from deployments.bootstrap import bootstrap
from deployments.server import POOL
from tests.deployments.conftest import until


def _everything(client: SyncPrefectClient, log: Path) -> str:
    """All runs there are, newest first, and what the worker said."""
    runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    return "\n".join([*(f"{r.name} {r.state} {r.work_queue_name} {r.tags}" for r in runs), log.read_text()])


@pytest.mark.timeout(900)
def test_the_most_urgent_job_first(
    client: SyncPrefectClient, write_job: Callable[..., Path], worker: Callable[[str], Path]
) -> None:
    given = ["low", "normal", "urgent", "high"]  # the order in which their runs are asked for
    bootstrap([write_job(f"first-{priority}", priority=priority) for priority in given])
    queues = {q.name: q.priority for q in client.read_work_queues(work_pool_name=POOL)}
    assert sorted(queues, key=queues.__getitem__) == ["urgent", "high", "default", "low"]
    runs = {}
    for priority in given:
        deployment = client.read_deployment_by_name(f"transfer/first-{priority}")
        runs[priority] = client.create_flow_run_from_deployment(deployment.id).id
    client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=1))
    try:
        log = worker(POOL)
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
