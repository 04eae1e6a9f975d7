"""Runs that help this one (`crew.py`): runs of the same deployment, started in Prefect as its sub-runs, so that the workers
that are there take them, with the limits, the heartbeats and the cancelling of any other run.
"""

from __future__ import annotations

import logging
from typing import Any, Self
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.transfer.run import TransferRun

log = logging.getLogger("onblock.transfer")

TAG = "onblock-hand"
"""On runs that were hired here."""


class Hired:
    """The runs that one run has hired. A context manager: who has not begun by its end is not needed any more."""

    def __init__(self, run: TransferRun):
        self._run = run
        self._ids: list[UUID] = []
        self._this = self._me() if run.job.shipping.workers > 1 else None
        self.may = self._this is not None and self._this.deployment_id is not None
        """Whether the job asks for help, and there is a deployment that can be run."""

    @staticmethod
    def _me() -> FlowRun | None:
        try:
            with get_client(sync_client=True) as client:
                return client.read_flow_run(UUID(str(flow_run.id)))
        except (PrefectException, httpx.HTTPError) as error:
            log.warning("nobody can be hired: %s", error)
            return None

    def another(self, number: int) -> None:
        """Hire one. Without an answer of the server the work goes on with one less."""
        assert self._this is not None and self._this.deployment_id is not None
        try:
            made: Any = run_deployment(
                self._this.deployment_id, parameters={**(self._this.parameters or {}), "leader": self._run.id},
                timeout=0, tags=["onblock", TAG], flow_run_name=f"{self._this.name}-hand-{number}",
                idempotency_key=f"{TAG} {self._run.id} {number}",
            )  # fmt: skip
            self._ids.append(made.id)
        except (PrefectException, httpx.HTTPError) as error:
            log.warning("nobody is hired: %s", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            with get_client(sync_client=True) as client:
                for one in self._ids:
                    state = client.read_flow_run(one).state
                    if state is not None and state.type in (StateType.SCHEDULED, StateType.PENDING):
                        client.set_flow_run_state(
                            one, Cancelled(message="the work was done before it began"), force=True
                        )
        except (PrefectException, httpx.HTTPError) as error:
            log.warning("a run that was hired, and is not needed, may still begin: %s", error)
