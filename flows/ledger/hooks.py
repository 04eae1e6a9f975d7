"""Messages from outside in the ledger: kept before anything is done about them, and until Prefect has taken all of it.

Checking and answering them is in `deployments/console`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, delete, or_, select, update

from flows.ledger.connections import Connections, now_ms
from flows.ledger.models import File, Hook
from flows.ledger.states import State

KEPT_MS = 90 * 86_400_000
"""So long a message is known again after it was dealt with."""


class Message(NamedTuple):
    """A message as it is kept. `events` are what to tell Prefect, each with its `id`; `answer` is what its sender gets."""

    id: str
    sender: str
    key: str
    signature: str | None
    name: str
    flight: str | None
    events: list[dict[str, Any]]
    answer: dict[str, Any]
    done: bool = False


class Told(NamedTuple):
    """A message, and when it came (ms since the epoch)."""

    message: Message
    received_at: int


NOTHING: Mapping[str, Sequence[str]] = {}

_COLUMNS = (
    Hook.id, Hook.sender, Hook.key, Hook.signature, Hook.name, Hook.flight, Hook.events, Hook.answer, Hook.done_at
)  # fmt: skip


def _message(row: Any) -> Message:
    return Message(
        row.id, row.sender, row.key, row.signature, row.name, row.flight, json.loads(row.events),
        json.loads(row.answer), row.done_at is not None,
    )  # fmt: skip


class Hooks(Connections):
    """The messages of a ledger: `Hooks(ledger.engine)`."""

    def keep(self, message: Message) -> tuple[Message, bool]:
        """Keep a message; as it is kept, and whether it is new. One with the same key, or the same signature, is the
        first of the two."""
        row = message._asdict() | {
            "events": json.dumps(message.events), "answer": json.dumps(message.answer), "received_at": now_ms(),
        }  # fmt: skip
        del row["done"]
        same = [Hook.key == message.key]
        if message.signature is not None:
            same.append(Hook.signature == message.signature)
        with self._write() as c:
            made = c.execute(self._insert(Hook).on_conflict_do_nothing().returning(Hook.id), [row]).first()
            found = c.execute(select(*_COLUMNS).where(Hook.sender == message.sender, or_(*same))).first()
        assert found is not None
        return _message(found), made is not None

    def seen(self, sender: str, signature: str) -> Message | None:
        """The message of this very signature."""
        with self._read() as c:
            found = c.execute(select(*_COLUMNS).where(Hook.sender == sender, Hook.signature == signature)).first()
        return _message(found) if found else None

    def taken(self, message: Message, runs: Mapping[str, Sequence[str]] = NOTHING) -> None:
        """Prefect has taken all of it; `runs` are the flow runs that each event has started, by its id."""
        told = json.dumps([event | {"runs": list(runs.get(event["id"], ()))} for event in message.events])
        with self._write() as c:
            c.execute(
                update(Hook).where(Hook.id == message.id, Hook.done_at.is_(None)).values(done_at=now_ms(), events=told)
            )

    def of_event(self, event_id: str) -> Told | None:
        """The message that told an event, as its sender was answered with."""
        return self._told(Hook.events.contains(f'"id": "{event_id}"', autoescape=True))

    def of_run(self, flow_run_id: str | None, flight: str | None, device: str | None) -> Told | None:
        """The message that started a flow run; of a run that another one has left its work to, that of its flight and
        device. The last one, where there are several."""
        found = None
        if flow_run_id is not None:
            found = self._told(Hook.events.contains(f'"{flow_run_id}"', autoescape=True))
        if found is None and flight is not None and device is not None:
            about = Hook.events.contains(f'"onblock.device.{device}"', autoescape=True)
            found = self._told(and_(Hook.flight == flight, about))
        return found

    def _told(self, which: ColumnElement[bool]) -> Told | None:
        query = select(*_COLUMNS, Hook.received_at).where(which).order_by(Hook.received_at.desc()).limit(1)
        with self._read() as c:
            row = c.execute(query).first()
        return None if row is None else Told(_message(row), row.received_at)

    def waiting(self, older_than_ms: int = 0) -> list[Message]:
        """Messages that Prefect has not taken, the oldest first; and those that were dealt with long ago are forgotten."""
        late = and_(Hook.done_at.is_(None), Hook.received_at <= now_ms() - older_than_ms)
        with self._read() as c:
            return [_message(r) for r in c.execute(select(*_COLUMNS).where(late).order_by(Hook.received_at).limit(100))]

    def forget(self) -> None:
        """Messages that were dealt with long ago."""
        with self._write() as c:
            c.execute(delete(Hook).where(Hook.done_at < now_ms() - KEPT_MS))

    def last_flight(self, device: str) -> str | None:
        """The flight of which files of the device still wait, or the last one that ended for it."""
        waiting = select(File.flight).where(
            File.device == device, File.flight.is_not(None), File.state == State.QUEUED
        ).order_by(File.id.desc()).limit(1)  # fmt: skip
        ended = select(Hook.flight).where(
            Hook.name == "flight-end", Hook.flight.is_not(None), Hook.events.contains(f'"onblock.device.{device}"', autoescape=True)
        ).order_by(Hook.received_at.desc()).limit(1)  # fmt: skip
        with self._read() as c:
            return c.execute(waiting).scalar() or c.execute(ended).scalar()

    def hasten(self, device: str) -> int:
        """A device is back: its files that were put off need not wait any longer. How many there were."""
        put_off = and_(File.device == device, File.state == State.QUEUED, File.next_attempt_at.is_not(None))
        with self._write() as c:
            self._lock(c, put_off)
            return c.execute(update(File).where(put_off).values(next_attempt_at=None, updated_at=now_ms())).rowcount
