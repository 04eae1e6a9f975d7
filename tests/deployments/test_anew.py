"""Runs that crashed before they began: they begin anew, and not without end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed, Pending

from deployments import anew
from deployments.bootstrap import bootstrap
from deployments.server import POOL
from tests.deployments.conftest import until
from tests.deployments.test_durable import ended, started

S = StateType


@pytest.mark.parametrize(
    ("types", "seconds"),
    [
        ([], None), ([S.SCHEDULED, S.PENDING], None), ([S.SCHEDULED, S.PENDING, S.CRASHED], 10),
        ([S.SCHEDULED, S.CRASHED, S.SCHEDULED, S.CRASHED], 20), ([S.CRASHED] * 5, 160), ([S.CRASHED] * 6, None),
    ],
)  # fmt: skip
def test_how_long_it_waits(types: list[StateType], seconds: int | None) -> None:
    assert anew.wait_of(types) == (None if seconds is None else timedelta(seconds=seconds))


def test_a_run_that_crashed_before_it_began(
    client: SyncPrefectClient, write_job: Callable[..., Path], worker: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(anew, "WAIT", timedelta(seconds=1))
    bootstrap([write_job("stillborn", settle={"quiet": "0s"})])
    (tmp_path / "card" / "clip.mp4").write_bytes(recording := os.urandom(1000))
    run = started(client, "stillborn")

    def crash() -> None:
        client.set_flow_run_state(run.id, Pending(), force=True)
        client.set_flow_run_state(run.id, Crashed(message="the server had no time"), force=True)

    async def look() -> int:
        async with get_client() as asked:
            return await anew.look(asked, POOL)

    for _ in range(5):
        crash()
        assert client.read_flow_run(run.id).run_count == 0
        assert asyncio.run(look()) >= 1
        waits = client.read_flow_run(run.id).state
        assert waits.name == "AwaitingRetry"
        asyncio.run(look())
        assert client.read_flow_run(run.id).state.id == waits.id, "it waits"
    worker(POOL)
    assert ended(client, run).state.name == "Completed"
    assert (tmp_path / "archive" / "clip.mp4").read_bytes() == recording

    never = started(client, "stillborn")
    client.set_flow_run_state(never.id, Crashed(), force=True)
    for _ in range(5):
        client.set_flow_run_state(never.id, Crashed(), force=True)
    until("all of its crashes", lambda: len([s for s in client.read_flow_run_states(never.id) if s.is_crashed()]) > 5)
    asyncio.run(look())
    assert client.read_flow_run(never.id).state.is_crashed()
