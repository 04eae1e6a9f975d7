"""What a Prefect server must have before anything runs on it: block types and blocks, limits, the work pool.

What is there already stays as people made it. Deployments are in `deploy.py`, the whole of it in `bootstrap.py`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from blocks.errors import ConfigError
from blocks.home import home

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from blocks.storage.base import Storage

POOL = "onblock"
"""The work pool of the server's own worker. A device's agent has its own, `device-<name>`."""
QUEUES = {"urgent": "urgent", "high": "high", "normal": "default", "low": "low"}
"""By the priority of a job: the work queue of its runs, the first one first."""
ALL_TAG, ALL_LIMIT = "onblock", 4
"""The tag that every shipment carries, and how many run at a time."""
RUNS_AT_ONCE = 8
"""So many runs a worker has at a time, unless it is told otherwise. Each is a process, with connections of its own to the
ledger; the others wait in the pool, where the most urgent one is the first."""
CPU = "cpu"
"""The tag of tasks that work on what was fetched; as many at a time as this machine has processors."""
DEVICE_LIMIT = 2
"""How many shipments read from one device at a time (tag `device:<name>`). To one destination (`destination:<block>`) go as
many as there may be in all, until somebody sets it lower."""
DEAD_AFTER = timedelta(seconds=90)
"""A run that has not told for so long that it is alive is dead; it tells every 30 s."""
MOST_RESTARTS = 5
"""So often is a run started again that was cut off."""
DEMO_BLOCKS = {"demo-card": "card", "demo-archive": "archive"}
"""Blocks of the demo deployment, and their folders below ONBLOCK_HOME/demo."""


@dataclass
class Report:
    """What was made, changed, and found as it should be, one line each."""

    made: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    limited: set[str] = field(default_factory=set)
    """Tags that are known to have a limit."""


def register_blocks(report: Report) -> None:
    """Register every storage as a block type, and make the demo's blocks if they are not there."""
    from blocks.devices import DEVICES
    from blocks.sender import WebhookSender
    from blocks.storage import STORAGES, LocalStorage

    for cls in [*STORAGES.values(), *DEVICES.values(), WebhookSender]:
        cls.register_type_and_schema(_sync=True)  # pyright: ignore[reportCallIssue]
    for name, folder in DEMO_BLOCKS.items():
        if load_block(LocalStorage, name):
            report.kept.append(f"block local-storage/{name}")
            continue
        root = home() / "demo" / folder
        root.mkdir(parents=True, exist_ok=True)
        if folder == "card" and not any(root.iterdir()):
            (root / "README.txt").write_text("A card of the demo. What you put here, transfer/demo-flight delivers.\n")
        block = LocalStorage(root=str(root), create_root=True)
        block.save(name, _sync=True)  # pyright: ignore[reportCallIssue]
        report.made.append(f"block local-storage/{name}: {root}")


def load_block(cls: type[Storage], name: str) -> Storage | None:
    """The block of this type and name, with its secrets; None if there is none."""
    from pydantic import ValidationError

    from flows.transfer.job import explain

    try:
        return cls.load(name, _sync=True)  # pyright: ignore[reportCallIssue]
    except (ValueError, RuntimeError) as error:
        if "Unable to find block document" in str(error):
            return None
        # what pydantic prints holds the values it refused, so maybe a secret
        trouble = explain(error) if isinstance(error, ValidationError) else type(error).__name__
        raise ConfigError(
            f"block {cls._block_type_slug}/{name} does not fit this version of onblock: {trouble}",
            remedy="correct it in the Prefect UI, or delete it there",
        ) from None


def save_inline(storage: Storage, name: str, report: Report, *, beside: bool = False) -> None:
    """Save a storage of a JOB.yaml as the block `name`, unless that block is the same already. `beside`: another one of that
    name stays as it is, and this becomes `name-2` or the next that is free, so that nothing changes before the job does."""
    numbers = itertools.count(2)
    wanted, there = name, load_block(type(storage), name)
    while beside and there is not None and not _same(there, storage):
        wanted = f"{name}-{next(numbers)}"
        there = load_block(type(storage), wanted)
    name = wanted
    label = f"block {storage._block_type_slug}/{name}"
    if there is not None and _same(there, storage):
        storage._block_document_id = there._block_document_id
        report.kept.append(label)
        return
    storage.save(name, overwrite=True, _sync=True)  # pyright: ignore[reportCallIssue]
    (report.made if there is None else report.changed).append(f"{label}: {storage.place()}")


def _same(a: Storage, b: Storage) -> bool:
    return _fields(a.model_dump()) == _fields(b.model_dump())


def _fields(value: Any) -> Any:
    """A dumped block without what Prefect adds once it is saved (`_block_document_id` ...), nested blocks too."""
    if isinstance(value, dict):
        return {k: _fields(v) for k, v in value.items() if not k.startswith("_")}
    return [_fields(v) for v in value] if isinstance(value, list) else value


def limits(tags: Iterable[str]) -> dict[str, int]:
    """How many tasks of each tag run at a time: of these, and of those that every job may ask for."""
    slots = {ALL_TAG: ALL_LIMIT, CPU: max(1, os.cpu_count() or 1)}
    return slots | {
        tag: DEVICE_LIMIT if tag.startswith("device:") else ALL_LIMIT for tag in sorted(set(tags) - set(slots))
    }


def create_limits(client: SyncPrefectClient, tags: Iterable[str], report: Report) -> None:
    """Create the limits of these tags where there are none; one that is there stays as it is."""
    from prefect.exceptions import ObjectNotFound

    for tag, slots in limits(tags).items():
        if tag in report.limited:  # by a job before this one
            continue
        try:
            limit = client.read_concurrency_limit_by_tag(tag)
            report.kept.append(f"limit {tag}: {limit.concurrency_limit}")
        except ObjectNotFound:
            client.create_concurrency_limit(tag=tag, concurrency_limit=slots)
            report.made.append(f"limit {tag}: {slots}")
        report.limited.add(tag)


def create_automations(client: SyncPrefectClient, report: Report, within: timedelta = DEAD_AFTER) -> None:
    """Two automations, unless people have made theirs of the same names: a run without a heartbeat for `within` is
    Crashed; a run of a deployment that Crashed is started again, `MOST_RESTARTS` times at most."""
    from prefect.client.schemas.objects import StateType
    from prefect.events import AutomationCore
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    ours = ResourceSpecification({"prefect.resource.id": [f"prefect.tag.{ALL_TAG}"]})
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Deferred", "Failed", "Cancelled", "Crashed")}
    dead = AutomationCore(
        name="onblock: a run that is dead is Crashed",
        description="Runs tell every 30 s that they are alive. One that stops telling was cut off.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"}, expect={"prefect.flow-run.heartbeat"} | ends,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}), match_related=ours,
            for_each={"prefect.resource.id"}, posture=Posture.Proactive, threshold=1, within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message="no heartbeat any more", force=False)],
    )  # fmt: skip
    again = AutomationCore(
        name="onblock: a run that Crashed is started again",
        description="The ledger knows what it had done. Files it had begun go on where they were.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"}, match_related=ours, for_each={"prefect.resource.id"},
            match=ResourceSpecification({
                "prefect.resource.id": ["prefect.flow-run.*"],
                "prefect.run-count": [str(n) for n in range(1, MOST_RESTARTS + 1)],
            }),
            posture=Posture.Reactive, threshold=1, within=timedelta(0),
        ),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="its worker had died", force=False)],
    )  # fmt: skip
    for automation in (dead, again):
        if client.read_automations_by_name(automation.name):
            report.kept.append(f"automation {automation.name}")
        else:
            client.create_automation(automation)
            report.made.append(f"automation {automation.name}")


def create_pool(client: SyncPrefectClient, report: Report, name: str = POOL) -> None:
    """Create the work pool, of type process, and its queues, if they are not there. Of runs that wait, a worker
    with a limit takes those of the first queue first."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    # the template is given here: without it the pool takes no environment or working directory
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        report.made.append(f"work pool {name}")
    except ObjectAlreadyExists:
        report.kept.append(f"work pool {name}")
    for number, queue in enumerate(QUEUES.values(), 1):
        try:
            client.create_work_queue(queue, work_pool_name=name, priority=number)
            report.made.append(f"work queue {name}/{queue}")
        except ObjectAlreadyExists:  # `default` comes with the pool
            pass
