"""Deployments: a JOB.yaml or an entry of prefect.yaml, checked and brought to a Prefect server if it has changed.

The blocks, limits and pool they name are in `server.py`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.errors import ConfigError
from deployments.server import POOL, QUEUES, Report, create_limits, save_inline
from flows.transfer.form import read_yaml

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient

    from blocks.storage.base import Storage
    from flows.transfer.job import TransferJob

ENTRYPOINT = "flows.transfer.flow.transfer"
UNFINISHED = "unfinished"
"""The version of a deployment whose triggers are not all there yet: deployed anew by the next bootstrap."""
TRIGGER = "onblock-trigger"
"""The tag of automations that are ours to replace; others that start the same deployment are somebody's own."""
KEYS = {
    "name", "entrypoint", "description", "tags", "work_pool", "schedules", "parameters", "triggers",
    "concurrency_limit", "paused", "pull",
}  # fmt: skip
"""Keys of a deployment in prefect.yaml that are understood here; another one is refused, not skipped."""


def deploy_job(
    client: SyncPrefectClient, job: TransferJob, report: Report, pool: str = POOL, *, by_hand: bool = False
) -> None:
    """Deploy a job as `transfer/<job.name>`, to be run by the workers of `pool`. Its inline storages become blocks: a
    parameter holds no secret. `by_hand`: no file says so, but somebody; see `deploy`."""
    check_schedule(job)
    for storage, role in [
        (job.source, "source"),
        *((d, f"destination-{i}") for i, d in enumerate(job.destinations, 1)),
    ]:
        if storage._block_document_id is None:
            save_inline(storage, block_name(job.name, role), report, beside=by_hand)
    plain = job.model_dump(mode="json", exclude_unset=True, exclude={"source", "destination", "more_destinations"})
    entry = {
        "name": job.name,
        "entrypoint": ENTRYPOINT,
        "description": f"{job.source.place()} to {', '.join(d.place() for d in job.destinations)}",
        "tags": ["onblock"],
        "parameters": {"job": {
            **plain, "source": _ref(job.source), "destination": _ref(job.destination),
            "more_destinations": [_ref(d) for d in job.more_destinations],
        }},
        "schedules": [job.schedule.model_dump()] if job.schedule else [],
        "work_pool": {"name": pool, "work_queue_name": None if job.priority == "normal" else QUEUES[job.priority]},
    }  # fmt: skip

    def upkeep() -> None:
        _deploy_upkeep(client, job, entry["parameters"], report, pool, by_hand)

    deploy(client, entry, report, by_hand=by_hand, then=upkeep)


def check_schedule(job: TransferJob) -> None:
    """Raises ConfigError for a job whose schedule starts runs that it cannot carry out."""
    if job.schedule and "flight" in job.needs():
        raise ConfigError(
            f"the schedule of job {job.name!r} starts runs without a flight, and its path template needs {{flight}}",
            remedy="take {flight} out of `path` ({date} may serve), or take out the schedule and give a flight with each run",
        )


def _deploy_upkeep(
    client: SyncPrefectClient, job: TransferJob, parameters: dict[str, Any], report: Report, pool: str, by_hand: bool
) -> None:
    """What the job says about its files after delivery, as `clean/<job>`, `retention/<job>` and `scrub/<job>`. What it
    no longer says is not left to run on its old schedule."""
    from prefect.exceptions import ObjectNotFound

    from flows.transfer.aftercare import Action

    for name, wanted, schedule in (
        ("clean", job.cleanup.action is not Action.OFF, job.cleanup.schedule),
        ("retention", job.retention is not None, job.retention and job.retention.schedule),
        ("scrub", job.scrub.schedule is not None, job.scrub.schedule),
    ):
        if wanted:
            deploy(client, {
                "name": job.name, "entrypoint": f"flows.upkeep.flow.{name}", "tags": ["onblock"], "parameters": parameters,
                "schedules": [schedule.model_dump()] if schedule else [], "work_pool": {"name": pool},
            }, report, by_hand=by_hand)  # fmt: skip
            continue
        try:
            found = client.read_deployment_by_name(f"{name}/{job.name}")
        except ObjectNotFound:
            continue
        if str(found.version).startswith("onblock-"):
            client.delete_deployment(found.id)
            report.changed.append(f"deployment {name}/{job.name}, which the job no longer asks for, is removed")


def block_name(job: str, role: str) -> str:
    """The name of a block made from a job: Prefect takes small letters, digits and dashes; the digest keeps two
    jobs apart whose names differ in what it does not take."""
    plain = re.sub(r"[^a-z0-9-]", "-", job.lower())
    if plain != job:
        plain += "-" + hashlib.sha256(job.encode()).hexdigest()[:6]
    return f"{plain}-{role}"


def deploy_file(client: SyncPrefectClient, path: Path, report: Report) -> None:
    """Deploy every deployment of a prefect.yaml. Raises ConfigError that names the file and the deployment."""
    if not path.exists():  # installed without the repository
        report.kept.append(f"no {path.name} in {path.parent}: no deployments from it")
        return
    data = read_yaml(path, "the deployments")
    entries = data.get("deployments") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "name" in e for e in entries):
        raise ConfigError("has no list `deployments:` of mappings with a `name:`", path=str(path))
    for entry in entries:
        try:
            if "{{" in json.dumps({k: v for k, v in entry.items() if k != "triggers"}, default=str):
                raise ConfigError("`{{ }}` is not filled in here; write the value, or use `prefect deploy`")
            deploy(client, entry, report)
        except ConfigError as error:
            error.path = error.path or f"{path}, {entry['name']}"
            raise


def deploy(
    client: SyncPrefectClient, entry: dict[str, Any], report: Report, *, by_hand: bool = False,
    then: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Deploy one entry, written as in prefect.yaml, unless the same was deployed before; and create its limits. What is
    written `by_hand` is like an edit in the UI: it stays until the file that was deployed before it changes. It counts as
    deployed once `then` is done, too."""
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.exceptions import ObjectNotFound

    if unknown := sorted(set(entry) - KEYS):
        raise ConfigError(f"there is no key {unknown[0]!r}; there are {', '.join(sorted(KEYS))}")
    flow = _load_flow(entry.get("entrypoint", ENTRYPOINT))
    parameters = ids_for_slugs(client, entry.get("parameters") or {})
    tags, starts = _check_parameters(flow, parameters)
    create_limits(client, tags, report)
    pool = entry.get("work_pool") or {}
    if not isinstance(pool, dict):
        raise ConfigError("`work_pool` is a mapping, such as `{name: onblock}`")
    content: dict[str, Any] = {
        "entrypoint": entry.get("entrypoint", ENTRYPOINT),
        "description": entry.get("description") or flow.description,
        "tags": entry.get("tags") or [],
        "work_pool_name": pool.get("name", POOL),
        "work_queue_name": pool.get("work_queue_name"),
        "job_variables": pool.get("job_variables") or {},
        "parameters": parameters,
        "parameter_openapi_schema": _form(entry.get("entrypoint", ENTRYPOINT)),
        "enforce_parameter_schema": True,
        "concurrency_limit": entry.get("concurrency_limit"),
        "paused": entry.get("paused"),
        "pull_steps": [],
    }
    schedules, triggers = entry.get("schedules") or [], [*(entry.get("triggers") or []), *starts]
    version = _fingerprint([content, schedules, triggers])
    label = f"deployment {flow.name}/{entry['name']}"
    try:
        there = client.read_deployment_by_name(f"{flow.name}/{entry['name']}")
        before = there.version
        if before == version and not by_hand and there.work_pool_name:  # it has none where its pool was deleted
            report.kept.append(label)
            return
        if by_hand and before and before != UNFINISHED:
            version = before
        done = report.changed
    except ObjectNotFound:
        done = report.made
    # both are checked before anything is written; the server replaces the schedules with these
    planned, hooks = [_schedule(s) for s in schedules], _triggers(entry["name"], triggers)
    # the form of a job is large: to look whether it is well-formed takes 0.4 s of a processor, which client and server would
    # do five times. The update below has the server do it once, and hold the parameters against it
    written: dict[str, Any] = {**content, "enforce_parameter_schema": False}
    deployment_id = client.create_deployment(
        flow_id=client.create_flow_from_name(flow.name), name=entry["name"], version=UNFINISHED, schedules=planned, **written
    )  # fmt: skip
    # triggers are automations that the deployment owns. The new ones are there before the old ones go, so that no event
    # finds none; an event that finds both starts one run, or a second one that has nothing to do
    related = client.read_resource_related_automations(f"prefect.deployment.{deployment_id}")
    old = [a.id for a in related if TRIGGER in a.tags]
    for hook in hooks:
        hook.set_deployment_id(deployment_id)
        client.create_automation(hook.as_automation().model_copy(update={"tags": [TRIGGER]}))
    for automation in old:
        client.delete_automation(automation)
    then()
    # last: it says that all of it is there
    client.update_deployment(deployment_id, DeploymentUpdate(version=version, enforce_parameter_schema=True))
    done.append(label + "".join(f", {s['cron']} {s.get('timezone', 'UTC')}" for s in schedules if s.get("cron")))


def ids_for_slugs(client: SyncPrefectClient, value: Any) -> Any:
    """`value` with every `$ref` by slug as a `$ref` by id: only with ids does the UI open its form filled in."""
    if isinstance(value, list):
        return [ids_for_slugs(client, v) for v in value]
    if not isinstance(value, dict):
        return value
    ref = value.get("$ref")
    slug = ref.get("block_document_slug") if isinstance(ref, dict) else None
    if slug is None:
        return {k: ids_for_slugs(client, v) for k, v in value.items()}
    from prefect.exceptions import ObjectNotFound

    kind, _, name = str(slug).partition("/")
    try:
        block = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound as error:
        raise ConfigError(
            f"the Prefect server knows no block {slug!r}", remedy="make it in the UI, or correct it"
        ) from error
    return {"$ref": {"block_document_id": str(block.id)}}


def _check_parameters(flow: Flow[..., Any], parameters: dict[str, Any]) -> tuple[set[str], list[dict[str, Any]]]:
    """Refuse parameters the flow would refuse, and storages written out in them; the tags that need a limit, and the
    triggers of the devices."""
    from prefect.exceptions import ParameterTypeError

    from flows.transfer.job import TransferJob
    from flows.transfer.senders import destination_tags

    job = parameters.get("job")
    if isinstance(job, dict):
        several = [*(job.get("more_destinations") or []), *(job.get("destinations") or [])]
        storages = [job.get("source"), job.get("destination"), *several]
        if not all(s is None or (isinstance(s, dict) and set(s) == {"$ref"}) for s in storages):
            raise ConfigError(
                "a storage is written out in the parameters, where anybody can read its secrets",
                remedy="make a block of it and name it: `$ref: {block_document_slug: TYPE/NAME}`, or deploy a JOB.yaml",
            )
    try:
        checked = flow.validate_parameters(parameters)
    except (ParameterTypeError, TypeError) as error:
        raise ConfigError(f"flow {flow.name!r} would not take these parameters: {error}") from error
    jobs = [v for v in checked.values() if isinstance(v, TransferJob)]
    devices = {job.device for job in jobs} | {parameters.get("device")}
    tags = {tag for job in jobs for tag in destination_tags(job.destinations)}
    starts = [
        start for job in jobs if flow.name == "transfer" and (device := parameters.get("device") or job.device)
        for start in device_triggers(job.name, device, needs_flight="flight" in job.needs())
    ]  # fmt: skip
    return tags | {f"device:{d}" for d in devices if d}, starts


def device_triggers(job: str, device: str, *, needs_flight: bool) -> list[dict[str, Any]]:
    """A job of a device runs when a flight of it has ended, when it is connected, and when a recording of it is complete.
    Who tells these events (`flows/starts.py`) starts the runs himself, by what is written here, and at once; those from
    elsewhere are for the automation."""
    from flows.capture.manifest import COMPLETED
    from flows.starts import BY_AUTOMATION, DEVICE, START

    flight, of = {"flight": "{{ event.payload.flight }}"}, {"device": "{{ event.payload.device }}"}
    known = flight | of if needs_flight else of
    itself = {"match": {"prefect.resource.id": f"{DEVICE}{device}", START: BY_AUTOMATION}}
    of_it = {
        "match": {"prefect.resource.id": "onblock.recording.*", START: BY_AUTOMATION},
        "match_related": {"prefect.resource.id": f"{DEVICE}{device}", "prefect.resource.role": "device"},
    }
    return [
        {"type": "event", "name": f"onblock: {what} {device} starts {job}", "expect": [event], **match, "parameters": parameters}
        for what, event, match, parameters in (
            ("flight end of", "onblock.flight.ended", itself, flight | of),
            ("connection of", "onblock.device.connected", itself, known),
            ("recording of", COMPLETED, of_it, known),
        )
    ]  # fmt: skip


def _load_flow(entrypoint: str) -> Flow[..., Any]:
    """The flow of a module entrypoint. ConfigError for a file: a worker elsewhere would look for it in its own folder."""
    from prefect.exceptions import MissingFlowError
    from prefect.flows import load_flow_from_entrypoint

    if ":" in entrypoint:
        raise ConfigError(f"entrypoint {entrypoint!r} is a file; write the module, such as {ENTRYPOINT}")
    try:
        return load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except (ImportError, AttributeError, ValueError, MissingFlowError) as error:
        raise ConfigError(f"entrypoint {entrypoint!r} cannot be loaded: {error}") from error


@functools.lru_cache(maxsize=8)
def _form(entrypoint: str) -> dict[str, Any]:
    """The form of a flow's parameters; not to be changed. It takes 0.2 s to make."""
    from prefect.utilities.callables import parameter_schema

    return parameter_schema(_load_flow(entrypoint)).model_dump(exclude_unset=True)


def _schedule(entry: Any) -> Any:
    """A schedule of prefect.yaml (`cron`, `interval` or `rrule`, with `timezone`) as the client wants it."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
    from pydantic import ValidationError

    classes = {"cron": CronSchedule, "interval": IntervalSchedule, "rrule": RRuleSchedule}
    kinds = [k for k in classes if isinstance(entry, dict) and k in entry]
    if len(kinds) != 1:
        raise ConfigError(f"a schedule has one of {', '.join(classes)}; this one is {entry!r}")
    outer = {k: entry[k] for k in ("active", "parameters", "slug") if k in entry}
    try:
        inner = classes[kinds[0]].model_validate({k: v for k, v in entry.items() if k not in outer})
        return DeploymentScheduleCreate(schedule=inner, **outer)
    except ValidationError as error:
        raise ConfigError(f"bad schedule {entry!r}: {error}") from error


def _triggers(name: str, entries: Sequence[dict[str, Any]]) -> list[Any]:
    """Triggers of prefect.yaml, named after their deployment where they have no name."""
    from prefect.events import DeploymentTriggerTypes
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(DeploymentTriggerTypes)
    try:
        named = [{"name": f"{name}: trigger {i}", **e} for i, e in enumerate(entries, 1)]
        return [adapter.validate_python(e) for e in named]
    except (ValidationError, TypeError) as error:
        raise ConfigError(f"bad trigger: {error}") from error


def _ref(storage: Storage) -> dict[str, Any]:
    return {"$ref": {"block_document_id": str(storage._block_document_id)}}


def _fingerprint(content: Any) -> str:
    return "onblock-" + hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]
