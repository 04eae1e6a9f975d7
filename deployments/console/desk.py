"""The desk of the console: what arrives is kept in the ledger first, then told to Prefect, until it is told.

Who may send what is in `webhooks.py`; here everything is trusted. The watcher of devices hands in here, too.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from blocks.errors import NetworkError, OnblockError
from deployments.console.prefect_api import PrefectApi
from flows.ledger.hooks import Hooks, Message
from flows.starts import BY_CONSOLE, START

log = logging.getLogger("onblock.console")

OURS = uuid.UUID("6f6e626c-6f63-6b2e-686f-6f6b73000001")
"""The namespace of our ids: the same message has the same id, wherever it is handed in."""
MOST_OF_KEY = 255
"""The ledger has room for so much of a key; of a longer one its hash is the key."""
AGAIN_S = 5.0
"""Between two looks for what Prefect has not taken yet."""


class Desk:
    """Takes messages in. Shared by threads."""

    def __init__(self, hooks: Hooks, api: PrefectApi):
        self.hooks, self.api = hooks, api
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_telling, name="onblock-desk", daemon=True)

    def start(self) -> None:
        """From now on what could not be told is told again."""
        self._thread.start()

    def stop(self) -> None:
        """Not any more."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def hand_in(self, message: Message) -> tuple[Message, bool]:
        """Keep a message, and tell Prefect; the message as it is kept, and whether it is new. Raises NetworkError where
        Prefect or the ledger is away: what is kept is told later all the same."""
        kept, new = self.hooks.keep(message)
        if not kept.done:
            self._tell(kept)
        return kept, new

    def _tell(self, message: Message) -> None:
        runs = {event["id"]: self.api.tell(event) for event in message.events}
        self.hooks.taken(message, runs)

    def _keep_telling(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            wait = AGAIN_S
            try:
                self.api.refresh()
                for message in self.hooks.waiting(int(AGAIN_S * 1000)):
                    self._tell_late(message)
                self.hooks.forget()
            except OnblockError as error:
                log.warning("%s; tried again", error)
            except Exception:
                log.exception("a message could not be told")

    def _tell_late(self, message: Message) -> None:
        """One that is refused does not stand in the way of the others. Raises NetworkError."""
        try:
            self._tell(message)
            log.info("%s of %s is told to Prefect now", message.name, message.sender)
        except OnblockError:
            raise
        except Exception:
            log.exception("%s of %s could not be told; the others are", message.name, message.sender)


def message(
    sender: str, name: str, key: str, *, event: str, resources: Sequence[str], payload: dict[str, Any],
    signature: str | None = None, flight: str | None = None,
) -> Message:  # fmt: skip
    """A message, with an event for each resource. Its id, and the events', follow from sender and key. `flight` is one
    that was checked; what else the payload says is the sender's affair."""
    if len(key) > MOST_OF_KEY:
        key = f"sha256 {hashlib.sha256(key.encode()).hexdigest()}"
    number = uuid.uuid5(OURS, f"{sender}\0{key}")
    now = datetime.now(UTC).isoformat()
    events = []
    for resource in resources:
        own = {"device": resource.removeprefix("onblock.device.")} if resource.startswith("onblock.device.") else {}
        related = (
            [{"prefect.resource.id": f"onblock.flight.{flight}", "prefect.resource.role": "flight"}] if flight else []
        )
        events.append({
            "id": str(uuid.uuid5(number, resource)), "event": event, "occurred": now,
            "resource": {"prefect.resource.id": resource, "onblock.sender": sender, START: BY_CONSOLE},
            "related": related, "payload": payload | own | {"sender": sender},
            "tags": [f"onblock-{name}"],
        })  # fmt: skip
    answer = {"event_id": events[0]["id"], "events": [{"id": e["id"], "resource": e["resource"]["prefect.resource.id"]} for e in events]}  # fmt: skip
    return Message(str(number), sender, key, signature, name, flight, events, answer)


__all__ = ["Desk", "NetworkError", "message"]
