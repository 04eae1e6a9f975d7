"""What an event of a device starts: read from the automations on the server, and started by whoever tells the event.

Prefect's own starter takes 3 s, and on SQLite loses an event whose writing found the database locked four times. So an
automation that asks for the label `START: BY_AUTOMATION` leaves events without it to their teller: the console for flight
ends and connections, the agent and the flow `capture` for recordings. Each run has an idempotency key made of event and
deployment: however often an event is told, it starts a deployment once. One that is switched off in the UI starts nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

log = logging.getLogger("onblock.starts")

START = "onblock.start"
"""The label of events that says who starts what they start."""
BY_CONSOLE, BY_AUTOMATION = "by-console", "by-automation"
DEVICE = "onblock.device."
"""Before a device's name, in the ids of resources."""
NO = (400, 404, 409, 413, 422)
"""Answers of a server that has read it, and will not do it."""
PAGE = 200
_TEMPLATE = re.compile(r"\{\{ *event\.payload\.(\w+) *\}\}\Z")

Post = Callable[[str, Any], Any]
"""POST to a path of Prefect's API; the answer. Raises NetworkError where the server is away, and Refused for a no."""


class Refused(Exception):
    """The server will not do it, and would not if it was asked again."""


class Start(NamedTuple):
    """An automation that starts a deployment by an event of a device, with parameters from the event's payload."""

    event: str
    device: str
    deployment: str
    parameters: dict[str, str]

    def meant(self, event: dict[str, Any]) -> bool:
        """Whether it is to start by this event."""
        related = event.get("related") or ()
        about = {one["prefect.resource.id"] for one in (event["resource"], *related)}
        return self.event == event["event"] and DEVICE + self.device in about


def pages(post: Post, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """All that a filter finds."""
    found: list[dict[str, Any]] = []
    while True:
        page = post(path, body | {"limit": PAGE, "offset": len(found)})
        found += page
        if len(page) < PAGE:
            return found


def events_of(automation: dict[str, Any]) -> set[str]:
    """The events that an automation expects."""
    return {e for e in automation["trigger"].get("expect") or () if isinstance(e, str)}


def starts_of(automation: dict[str, Any]) -> list[Start]:
    """What an automation starts that leaves starting to the teller: its trigger asks for the label that says so."""
    trigger = automation["trigger"]
    match = trigger.get("match") or {}
    if not automation["enabled"] or match.get(START) not in (BY_AUTOMATION, [BY_AUTOMATION]):
        return []
    related = trigger.get("match_related") or []
    resources: list[Any] = []
    for labels in (match, *(related if isinstance(related, list) else [related])):
        one = labels.get("prefect.resource.id") or []
        resources += one if isinstance(one, list) else [one]
    return [
        Start(event, str(one).removeprefix(DEVICE), str(action["deployment_id"]), action.get("parameters") or {})
        for event in sorted(events_of(automation))
        for one in resources
        if str(one).startswith(DEVICE)
        for action in automation["actions"]
        if action.get("type") == "run-deployment" and action.get("deployment_id")
    ]


def start(post: Post, event: dict[str, Any], starts: Iterable[Start], tags: Iterable[str] = ()) -> list[str]:
    """Start what `event` starts; the ids of the runs. Raises NetworkError: then it is to be done again, all of it."""
    runs: list[str] = []
    for one in starts:
        if not one.meant(event):
            continue
        if (parameters := filled(one.parameters, event["payload"])) is None:
            log.info("%s does not start deployment %s: it says too little", event["event"], one.deployment)
            continue
        body = {
            "parameters": parameters, "state": {"type": "SCHEDULED"}, "tags": ["onblock", *tags],
            "idempotency_key": f"onblock {event['id']} {one.deployment}",
            # the flow looks at them; the server, which is one process, would take 0.4 s of it to look at the form first
            "enforce_parameter_schema": False,
        }  # fmt: skip
        try:
            runs.append(str(post(f"/deployments/{one.deployment}/create_flow_run", body)["id"]))
        except Refused as error:  # it was deleted meanwhile
            log.error("%s starts no run: %s", event["event"], error)
    return runs


def tell(post: Post, event: dict[str, Any]) -> list[str]:
    """Ask what `event` starts, start it, and tell the event with the runs in its payload; their ids. May be repeated.
    Raises NetworkError, Refused."""
    starts = [s for automation in pages(post, "/automations/filter", {}) for s in starts_of(automation)]
    runs = start(post, event, starts)
    post("/events", [event | {"payload": event["payload"] | {"runs": runs}}])
    return runs


def filled(parameters: dict[str, Any], payload: dict[str, Any]) -> dict[str, Any] | None:
    """Parameters with what the payload says; None where it does not say it."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, dict) and value.get("__prefect_kind") == "jinja":  # as the server keeps templates
            value = value.get("template")
        if isinstance(value, str) and (template := _TEMPLATE.match(value)):
            value = payload.get(template[1])
            if value is None:
                return None
        found[name] = value
    return found
