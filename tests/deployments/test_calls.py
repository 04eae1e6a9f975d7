"""When a worker asks for runs: what it decides, and that a real server tells of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient

from deployments.bootstrap import bootstrap
from deployments.calls import AWAKE_S, QUIET_S, Calls
from tests.deployments.conftest import until


def test_when_it_asks() -> None:
    now = 100.0
    calls = Calls(lambda: now)
    assert calls.due() and calls.due(), "always, while nobody would tell"
    calls.listening = True
    assert not calls.due()
    now += QUIET_S
    assert calls.due() and not calls.due(), "now and then, whatever is told"
    calls.wake()
    assert calls.due() and calls.due(), "at once, when something was told, and a while longer"
    now += AWAKE_S - 0.1
    assert calls.due()
    now += 0.1
    assert not calls.due()
    calls.wake()
    assert not calls.due(full=True), "he could take none"
    now += QUIET_S
    assert calls.due(full=True) and not calls.due(full=True), "the server is to know that he is there"
    calls.wake()
    assert calls.due(), "there is room again"
    calls.listening = False
    assert calls.due(), "as before, when the server is not heard any more"


def test_a_run_is_told(client: SyncPrefectClient, write_job: Callable[..., Path]) -> None:
    bootstrap([write_job("told")])
    calls = Calls()

    async def hear() -> None:
        listener = asyncio.create_task(calls.listen())
        await asyncio.to_thread(until, "a server that is heard", lambda: calls.listening)
        calls._awake_until = float("-inf")
        assert calls.due() or not calls.due()
        assert not calls.due(), "nothing was told yet"
        deployment = client.read_deployment_by_name("transfer/told")
        client.create_flow_run_from_deployment(deployment.id)
        await asyncio.to_thread(until, "a call", lambda: calls._awake_until > 0)
        listener.cancel()

    asyncio.run(hear())
