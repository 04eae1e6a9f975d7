"""The run that takes up what this one had to defer: scheduled in Prefect for the earliest next attempt, once. Nobody
sleeps meanwhile, and a restart of everything forgets nothing: the run is Prefect's, the files are the ledger's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Scheduled

from flows.ledger.store import now_ms
from flows.transfer.retry import MOST_TRIES, delay_s

TAG = "onblock-successor"
"""On runs that were scheduled here."""
LATER_MS = 1000
"""So much after the earliest attempt is due: clocks differ a little."""


def schedule(flow_run_id: UUID | str, at_ms: int | None = None) -> datetime | None:
    """Have the deployment of this flow run run again at `at_ms` (UTC), with the same parameters; when that will be.

    Without `at_ms`, because the run could not even begin: after a wait that grows with the runs in a row to which that
    happened, as for a file. A successor that is due before then serves as well. None for a run without a deployment
    (nobody could start it), and when it was tried often enough. Raises what Prefect's client raises.
    """
    with get_client(sync_client=True) as client:
        this = client.read_flow_run(UUID(str(flow_run_id)))
        if this.deployment_id is None:
            return None
        tags = [TAG]
        if at_ms is None:
            tries = 1 + max((int(t.rpartition(":")[2]) for t in this.tags if t.startswith(f"{TAG}:")), default=0)
            if tries >= MOST_TRIES:
                return None
            tags.append(f"{TAG}:{tries}")
            at_ms = now_ms() + int(1000 * delay_s(tries))
        at = datetime.fromtimestamp((max(at_ms, now_ms()) + LATER_MS) / 1000, UTC)
        waiting = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[this.deployment_id]),
                tags=FlowRunFilterTags(all_=[TAG]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            )
        )
        due = [r.next_scheduled_start_time for r in waiting if r.next_scheduled_start_time is not None]
        if due and min(due) <= at:
            return min(due)
        parameters: dict[str, Any] = this.parameters or {}
        made = client.create_flow_run_from_deployment(
            this.deployment_id, parameters=parameters, state=Scheduled(scheduled_time=at), tags=tags,
            idempotency_key=f"{TAG} {this.id} {this.run_count}",
        )  # fmt: skip
        return made.next_scheduled_start_time or at
