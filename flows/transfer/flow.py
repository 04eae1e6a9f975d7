"""The story of a file as a Prefect flow, `transfer`: a deployment of it is a job."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from typing import Any

import httpx
from prefect import flow, task
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from blocks.errors import ConfigError, OnblockError
from flows.ledger import Ledger
from flows.ledger.store import LEASE_MS, now_ms
from flows.transfer.crew import Crew, lend_a_hand
from flows.transfer.hired import Hired
from flows.transfer.job import TransferJob
from flows.transfer.process import steps_key
from flows.transfer.retry import RETRIED, TASK_JITTER, TASK_RETRY_DELAYS_S
from flows.transfer.run import TransferRun
from flows.transfer.senders import CPU, Act, ByPrefect, Phase, Unfinished, destination_tags
from flows.transfer.story import ACTS, all_well, carry_out, parts, told
from flows.transfer.successor import schedule
from flows.transfer.turns import Turns

log = logging.getLogger("onblock.transfer")


class ShipmentVersions(CachePolicy):
    """A shipment's file versions, rows and destinations: the same work planned twice is done once."""

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str:
        """The key of the shipment in this ledger."""
        run: TransferRun = inputs["run"]
        steps = "" if not run.job.two_phases else f"\0{task_ctx.task.name}\0{steps_key(run.job)}"
        return "onblock-transfer-" + inputs["shipment"].key(f"{run.ledger.identity}\0{run.job.name}{steps}")


def worth_retrying(task: object, task_run: object, state: State) -> bool:
    """Only what may pass by waiting is tried again inside the task."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, Unfinished) and error.again


def _task(act: Act, phase: Phase) -> Any:
    """A phase as a task: cached by its file versions, retried where that may help."""
    return task(
        name=phase, task_run_name=f"{phase} {{shipment}}" if phase is not Phase.DELIVER else "{shipment}",
        cache_policy=ShipmentVersions() if phase is Phase.DELIVER else NO_CACHE, persist_result=phase is Phase.DELIVER,
        retries=len(TASK_RETRY_DELAYS_S), retry_delay_seconds=list(TASK_RETRY_DELAYS_S),
        retry_jitter_factor=TASK_JITTER, retry_condition_fn=worth_retrying,
    )(act)  # fmt: skip


TASKS = {phase: _task(act, phase) for phase, act in ACTS.items()}
"""The phases as tasks. What lies in the spool, and what is to be made of it, is known by its locker, not by the cache."""


@flow(name="transfer", task_runner=ThreadPoolTaskRunner(max_workers=16), persist_result=False)  # pyright: ignore
def transfer(
    job: TransferJob, flight: str | None = None, device: str | None = None, leader: str | None = None
) -> State:  # fmt: skip
    """Bring the files of a source, verified, to one or several destinations.

    Args:
        job: what to move, from where, to where.
        flight: the flight the files belong to, for `{flight}` in the job's path template.
        device: the device the files come from, if it is not the one named in the job.
        leader: leave it empty; runs give it to runs that help them.
    """
    from flows.transfer.report import PrefectWatcher

    limits = require_limits(job, device or job.device)
    watcher = PrefectWatcher(job.name, str(flow_run.name), flight=flight, device=device or job.device)
    try:
        with (
            Ledger.open() as ledger,
            TransferRun(
                job, ledger, flight=flight, device=device, watcher=watcher, flow_run_id=str(flow_run.id), leader=leader
            ) as run,
        ):
            turns = Turns(ledger, run.id, run.stop, limits, lambda: limits_now(limits))
            sender = ByPrefect(run, parts(run), TASKS, turns)
            if leader is not None:
                shipments = lend_a_hand(run, sender)
                watcher.finish(run.meter)
                return Completed(message=f"{shipments} shipments for the run {leader}, which tells what became of them")
            with Hired(run) as hired:
                summary = carry_out(run, Crew(run, sender, hired.another) if hired.may else sender)
            watcher.finish(run.meter)
            routes = [way.route_id for way in run.ways if way.route_id is not None]
            due = ledger.next_attempt(routes, run.id, now_ms())
            if due is None and run.held is None and ledger.untimed(routes, run.id):
                due = now_ms() + LEASE_MS  # if who has them is dead, its lease has ended by then
    except OnblockError as error:  # a storage that is away cannot even be opened, or listed
        if error.kind not in RETRIED:
            raise
        log.error("%s", error)
        # who lends a hand has no successor: its leader takes up what it left, and has one of its own
        return Failed(message=str(error) if leader is not None else f"{error}{_again(None)[0]}")
    watcher.summary(summary)
    text = told(summary)
    if run.source_away is not None:
        return Failed(message=f"{text}{_again(None)[0]}", data=summary)
    if summary["deferred"] and due is not None:
        words, scheduled = _again(due)
        text += words
        if scheduled and all_well(summary | {"deferred": 0}):
            return Completed(name="Deferred", message=text, data=summary)
    return Completed(message=text, data=summary) if all_well(summary) else Failed(message=text, data=summary)


def _again(due: int | None) -> tuple[str, bool]:
    """Schedule the successor of this run; what to say of it, and whether there is one."""
    try:
        at = schedule(str(flow_run.id), due)
    except (PrefectException, httpx.HTTPError) as error:
        return f"; nobody will take it up before the next run: {error}", False
    return (f"; the next try is at {at:%Y-%m-%d %H:%M:%S} UTC", True) if at is not None else ("", False)


def tags_needed(job: TransferJob, device: str | None) -> list[str]:
    """The tags that the tasks of a job carry."""
    tags = ["onblock"] + ([f"device:{device}"] if device else [])
    return [*tags, *destination_tags(job.destinations), *([CPU] if job.two_phases else [])]


def require_limits(job: TransferJob, device: str | None) -> dict[str, int]:
    """The limits of our tags. Raises ConfigError unless the server has them all: one that is missing is silently no limit."""
    with get_client(sync_client=True) as client:
        found: dict[str, int] = {}
        for tag in tags_needed(job, device):
            try:
                found[tag] = client.read_concurrency_limit_by_tag(tag).concurrency_limit
            except ObjectNotFound as error:
                raise ConfigError(
                    f"the Prefect server has no concurrency limit for the tag {tag!r}",
                    remedy="`onblock up JOB.yaml` makes it; so does "
                    f"`prefect concurrency-limit create {tag} {2 if tag.startswith('device:') else 4}`",
                ) from error
        return found


def limits_now(tags: Iterable[str]) -> dict[str, int]:
    """The same once more, for who does with those that can be read now."""
    found: dict[str, int] = {}
    with get_client(sync_client=True) as client, contextlib.suppress(PrefectException, httpx.HTTPError):
        for tag in tags:
            found[tag] = client.read_concurrency_limit_by_tag(tag).concurrency_limit
    return found
