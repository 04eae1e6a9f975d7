"""Notifications: automations on the Prefect server that send a message through one of its notification blocks.

    job-failed            a run of a job failed, or died more often than it is started again; told once in ten minutes a job
    device-silent=30m     a device was seen, and is not any more; of a device that is named, also one that never was
    nothing-delivered=24h no job, or not the job that is named, has delivered anything

The blocks are people's own (Slack, Teams, mail, a webhook ...); here only what makes them speak. The message is sent by the
server, so that it comes while every worker and console is down. The command is in `notify.py`.

The last two are proactive triggers of Prefect's: the same events are in `after` and in `expect`, so that each begins the
time anew (`prefect/server/events/triggers.py`, `evaluate`). One without `for_each` has a bucket from the beginning, also
after the server was away, and another one after it has told: it tells again every second time that the span is over. One
with `for_each` begins when a device is seen, and tells once. Prefect looks every 5 s; no span is under 10 s.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from blocks import names
from blocks.errors import ConfigError, NetworkError
from deployments.server import ALL_TAG, MOST_RESTARTS, Report

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation, AutomationCore

TAG = "onblock-notify"
"""The tag of our automations; beside it stands what they are, each as `key:value`."""
ENDS = frozenset(
    f"onblock.transfer.{phase}{how}" for phase in ("", "deliver.") for how in ("completed", "failed", "retry_scheduled")
)
"""How a shipment ends; those that brought something are labelled `DELIVERED`."""
SEEN = frozenset({"onblock.device.status", "onblock.device.seen", "onblock.device.connected"})
"""Told of a device that is there: by its agent, by the console that sees it, by whoever has connected it."""
QUIET = timedelta(minutes=10)
"""Failures of one job within it are one message."""
LEAST = timedelta(minutes=1)
"""The shortest span: agents tell every 10 s, the console every 20 s."""
TEST_EVENT = "onblock.notify.test"
TEST_S = 30.0
TEST = ("onblock: a test", "This is a test of `onblock notify test`. Nothing has happened.")


class What(StrEnum):
    """What is told."""

    JOB_FAILED = "job-failed"
    DEVICE_SILENT = "device-silent"
    NOTHING_DELIVERED = "nothing-delivered"


class When(NamedTuple):
    """A condition: `within` what time, of which job or device if not of all."""

    what: What
    within: timedelta | None = None
    job: str | None = None
    device: str | None = None

    def __str__(self) -> str:
        return f"{self.what}={_span(self.within).replace(' ', '')}" if self.within else str(self.what)

    @property
    def of(self) -> str:
        """Of what, in words."""
        return f" of job {self.job}" if self.job else f" of device {self.device}" if self.device else ""


class Wired(NamedTuple):
    """A notification that is there."""

    name: str
    when: str
    block: str
    job: str | None
    device: str | None
    enabled: bool
    id: uuid.UUID


def condition(text: str, job: str | None = None, device: str | None = None) -> When:
    """A condition from `job-failed`, `device-silent=30m`, `nothing-delivered=24h`. Raises ConfigError."""
    from pydantic import TypeAdapter, ValidationError

    from flows.transfer.form import Duration

    kind, equals, given = text.strip().partition("=")
    forms = "`job-failed`, `device-silent=30m` or `nothing-delivered=24h`"
    if kind not in list(What):
        raise ConfigError(f"{names.display(text)!r} is no condition; write {forms}")
    what = What(kind)
    if what is What.JOB_FAILED:
        if equals:
            raise ConfigError("`job-failed` takes no time: it is told at once")
        return When(what, None, job)
    try:
        within = TypeAdapter(Duration).validate_python(given.strip())
    except ValidationError:
        raise ConfigError(f"{names.display(text)!r} says no time; write {forms}") from None
    if not LEAST <= within <= timedelta(days=366):
        raise ConfigError(f"{names.display(text)!r}: the time is between 1 min and 366 d")
    return When(what, within, None, device) if what is What.DEVICE_SILENT else When(what, within, job)


# -- what is wired ----------------------------------------------------------------------------------------------------


def wire(client: SyncPrefectClient, block: str, conditions: Iterable[When], report: Report) -> None:
    """Have each condition told through a block (`slack-webhook/ops`). What is there already stays, and stays switched off
    if somebody has switched it off; another span replaces the one before. Raises ConfigError, before anything is made."""
    conditions = list(conditions)
    block_id = _block(client, block)
    for when in conditions:
        if when.job is not None:
            _must_be_deployed(client, when.job)
    there = list(_ours(client))
    for when in conditions:
        wanted = automation(when, block, block_id)
        before = [a for a in there if a.name == wanted.name]
        label = f"{when}{when.of} is told by {block}"
        if before and set(before[0].tags) == set(wanted.tags):
            report.kept.append(label + ("" if before[0].enabled else " (switched off)"))
        else:
            enabled = all(a.enabled for a in before)
            client.create_automation(wanted.model_copy(update={"enabled": enabled}))
            (report.changed if before else report.made).append(label + ("" if enabled else " (switched off)"))
            before.insert(0, wanted)  # pyright: ignore[reportArgumentType]
        for old in before[1:]:
            client.delete_automation(old.id)


def unwire(
    client: SyncPrefectClient, what: Iterable[What], block: str | None, job: str | None, device: str | None
) -> list[Wired]:
    """Take away those that fit; which. Raises ConfigError where none does."""
    kinds = {str(w) for w in what}
    gone = [
        w for w in wired(client)
        if (not kinds or w.when.partition("=")[0] in kinds) and block in (None, w.block) and job in (None, w.job)
        and device in (None, w.device)
    ]  # fmt: skip
    if not gone:
        raise ConfigError("there is no such notification", remedy="`onblock notify list` shows those there are")
    for one in gone:
        client.delete_automation(one.id)
    return gone


def wired(client: SyncPrefectClient) -> list[Wired]:
    """All that there are, by name."""
    found = []
    for a in _ours(client):
        told = {key: value for key, _, value in (t.partition(":") for t in a.tags)}
        found.append(Wired(
            a.name, told.get("when", ""), told.get("block", ""), told.get("job"), told.get("device"), a.enabled, a.id,
        ))  # fmt: skip
    return sorted(found)


def automation(when: When, block: str, block_id: uuid.UUID) -> AutomationCore:
    """The automation for a condition."""
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore

    tags = [TAG, f"when:{when}", f"block:{block}", f"through:{_digest(str(block_id))}"]
    tags += [f"job:{when.job}"] if when.job else []
    tags += [f"device:{when.device}"] if when.device else []
    subject, body = _text(when)
    return AutomationCore(
        name=f"onblock: {when.what}{when.of} is told by {block}",
        description="Made by `onblock notify add`, which makes it anew where it is asked for something else.",
        tags=tags, trigger=_trigger(when),
        actions=[SendNotification(block_document_id=block_id, subject=subject, body=body)],
    )  # fmt: skip


def _trigger(when: When) -> Any:
    from prefect.events.schemas.automations import CompoundTrigger, EventTrigger, Posture

    if when.what is What.JOB_FAILED:
        related: list[Any] = [{"prefect.resource.id": f"prefect.tag.{ALL_TAG}"}]
        if when.job:
            related.append({"prefect.resource.role": "deployment", "prefect.resource.name": when.job})

        def runs(state: str, **labels: Any) -> EventTrigger:
            return EventTrigger(
                expect={f"prefect.flow-run.{state}"}, match_related=related,  # pyright: ignore[reportArgumentType]
                match={"prefect.resource.id": "prefect.flow-run.*", **labels},  # pyright: ignore[reportArgumentType]
                for_each={"related:deployment:prefect.resource.id"}, posture=Posture.Reactive, threshold=1, within=QUIET,
            )  # fmt: skip

        # one that crashed and is started again is none that failed
        last = {"prefect.run-count": ["0", str(MOST_RESTARTS + 1)]}
        return CompoundTrigger(triggers=[runs("Failed"), runs("Crashed", **last)], require="any", within=None)
    assert when.within is not None
    from flows.transfer.report import DELIVERED

    if when.what is What.DEVICE_SILENT:
        events, resource = SEEN, f"onblock.device.{when.device or '*'}"
        each = set() if when.device else {"prefect.resource.id"}
        match = {"prefect.resource.id": resource}
    else:
        events, each = ENDS, set()
        match = {"prefect.resource.id": f"onblock.job.{when.job or '*'}", DELIVERED: "yes"}
    return EventTrigger(
        after=set(events), expect=set(events), match=match, for_each=each,  # pyright: ignore
        posture=Posture.Proactive, threshold=1, within=when.within,
    )  # fmt: skip


def _text(when: When) -> tuple[str, str]:
    """Subject and text, as templates of Prefect's."""
    if when.what is What.JOB_FAILED:
        return (
            "onblock: {{ (deployment or flow_run).name }} failed",
            "The run {{ flow_run.name }} of {{ (deployment or flow).name }} failed: {{ flow_run.state.message }}\n"
            "What and why: onblock transfers list --state FAILED\n{{ flow_run|ui_url }}",
        )
    if when.what is What.NOTHING_DELIVERED:
        by = f"job {when.job}" if when.job else "any job"
        text = f"For {_span(when.within)} nothing was delivered by {by}."
        return f"onblock: nothing delivered{when.of}", f"{text}\nDoes it run, is its device there? onblock transfers"
    name = when.device or "{{ event.resource.id|replace('onblock.device.', '') }}"
    return (
        f"onblock: device {name} is silent",
        f"The device {name} was not seen for {_span(when.within)}.\nIs it switched on, and on the network?",
    )


# -- a test -----------------------------------------------------------------------------------------------------------


def try_out(client: SyncPrefectClient, block: str, seconds: float = TEST_S) -> None:
    """Have the server send a message through a block, by an automation that is there for so long. Raises ConfigError with
    what went wrong, NetworkError where only the server cannot do it."""
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    resource = f"{TEST_EVENT}.{uuid.uuid4()}"
    made = client.create_automation(AutomationCore(
        name=f"onblock: a test of {block}", tags=[f"{TAG}-test"],
        trigger=EventTrigger(
            expect={TEST_EVENT}, match={"prefect.resource.id": resource}, posture=Posture.Reactive, threshold=1, within=QUIET,  # pyright: ignore
        ),
        actions=[SendNotification(
            block_document_id=_block(client, block), subject=TEST[0], body=TEST[1],
        )],
    ))  # fmt: skip
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            # told again and again: the first ones may come before the server knows of the automation, which acts once
            client.request("POST", "/events", json=[{
                "id": str(uuid.uuid4()), "event": TEST_EVENT, "occurred": datetime.now(UTC).isoformat(),
                "resource": {"prefect.resource.id": resource}, "related": [], "payload": {},
            }])  # fmt: skip
            time.sleep(1)
            if (done := _outcome(client, made)) is None:
                continue
            if done["event"].endswith("executed"):
                return
            told = done["payload"]
            raise _cannot_send(block, told.get("notification_log") or told.get("reason") or "no reason is given")
    finally:
        client.delete_automation(made)
    _send_from_here(block)
    raise NetworkError(
        f"the server has not sent anything through {block} within {seconds:.0f} s, while from this machine it works",
        remedy="see whether the server may reach that address: its log says more (`onblock up` keeps it in logs/server.log)",
    )


def _send_from_here(block: str) -> None:
    """Send the test from this process. Some blocks fail in a way of which the server tells nothing: here it is seen. Raises
    ConfigError."""
    import httpx
    from prefect.blocks import notifications  # whose import makes the classes known  # noqa: F401
    from prefect.blocks.abstract import NotificationError
    from prefect.blocks.core import Block

    loaded: Any = Block.load(block, _sync=True)  # pyright: ignore[reportCallIssue]
    try:
        with loaded.raise_on_failure():
            loaded.notify(TEST[1], TEST[0], _sync=True)
    except NotificationError as error:
        raise _cannot_send(block, error.log) from None
    except httpx.HTTPStatusError as error:  # its text has the URL, which may be the secret
        raise _cannot_send(block, f"the answer is {error.response.status_code}") from None
    except httpx.HTTPError as error:
        raise _cannot_send(block, type(error).__name__) from None


def _cannot_send(block: str, why: object) -> ConfigError:
    text = " ".join(str(why).split())[:500]
    return ConfigError(f"nothing can be sent through {block}: {text}", remedy="correct the block in Prefect's UI")


def _outcome(client: SyncPrefectClient, automation: uuid.UUID) -> dict[str, Any] | None:
    wanted = {
        "event": {"name": ["prefect.automation.action.executed", "prefect.automation.action.failed"]},
        "resource": {"id": [f"prefect.automation.{automation}"]},
    }  # fmt: skip
    found = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1}).json()["events"]
    return found[0] if found else None


# -- the server -------------------------------------------------------------------------------------------------------


def _block(client: SyncPrefectClient, block: str) -> uuid.UUID:
    """The id of a notification block. Raises ConfigError."""
    from prefect.exceptions import ObjectNotFound

    kind, slash, name = block.partition("/")
    if not (kind and slash and name):
        raise ConfigError(f"{names.display(block)!r} names no block; write TYPE/NAME, such as slack-webhook/ops")
    try:
        found = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        raise ConfigError(
            f"the Prefect server has no block {names.display(block)!r}",
            remedy="make it in Prefect's UI, under Blocks: Slack Webhook, Microsoft Teams Webhook, Custom Webhook ...",
        ) from None
    if found.block_schema is None or "notify" not in found.block_schema.capabilities:
        raise ConfigError(f"the block {names.display(block)!r} sends no notifications; choose one that does")
    return found.id


def _must_be_deployed(client: SyncPrefectClient, job: str) -> None:
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_deployment_by_name(f"transfer/{job}")
    except (ObjectNotFound, ValueError):
        raise ConfigError(
            f"the Prefect server has no job {names.display(job)!r}", remedy="deploy it first: `onblock up JOB.yaml`"
        ) from None


def _ours(client: SyncPrefectClient) -> Iterator[Automation]:
    offset = 0
    while page := client.read_automations(limit=200, offset=offset):
        yield from (a for a in page if TAG in a.tags)
        offset += len(page)


def _span(within: timedelta | None) -> str:
    seconds = within.total_seconds() if within else 0.0
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
