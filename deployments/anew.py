"""Runs that crashed before they began, as when the server had no time for them: the worker of their pool has them begin anew.

The automation that starts a run again (`server.py`) stops when the run has begun often enough. Of one that never began that
count stays 0, so that it would have no end; here the crashes in the run's history are counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Scheduled

from deployments.server import ALL_TAG, MOST_RESTARTS

log = logging.getLogger("onblock.worker")

EVERY_S = 30.0
LOOK_BACK = timedelta(days=1)
"""Older ones are history: a successor has done their work, or somebody has looked at them."""
WAIT = timedelta(seconds=10)
"""After the first crash; twice as long after each further one."""


def wait_of(types: Iterable[StateType]) -> timedelta | None:
    """How long a run waits that has never begun, by the types of its states; None for one that is not tried again."""
    crashes = sum(t == StateType.CRASHED for t in types)
    return WAIT * 2 ** (crashes - 1) if 1 <= crashes <= MOST_RESTARTS else None


async def look(client: PrefectClient, pool: str) -> int:
    """Have those of a pool begin anew that are due for it; how many."""
    now, found = datetime.now(UTC), 0
    crashed = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])),
        tags=FlowRunFilterTags(all_=[ALL_TAG]),
        expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"after_": now - LOOK_BACK}),
    )
    where = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    for run in await client.read_flow_runs(flow_run_filter=crashed, work_pool_filter=where):
        if run.run_count:
            continue
        states = await client.read_flow_run_states(run.id)
        if (wait := wait_of(s.type for s in states)) is None:
            continue
        again = Scheduled(scheduled_time=now + wait, name="AwaitingRetry", message="it had crashed before it began")
        await client.set_flow_run_state(run.id, again)
        log.warning("%s crashed before it began: it begins anew in %d s", run.name, wait.total_seconds())
        found += 1
    return found


async def watch(pool: str) -> None:
    """Look now and then, until this is cancelled."""
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            async with get_client() as client:
                await look(client, pool)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look may go well
            log.warning("nobody looks after runs that crashed before they began: %s", error)
