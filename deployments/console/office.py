"""What the console works with, and what it does for people: everything through the same functions as the command line.
Who may ask for it is in `guard.py`, how it is asked in `api.py` and `pages.py`. Nothing here is for the event loop.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blocks import names
from blocks.errors import NotFound, OnblockError
from blocks.home import home
from deployments import wanted
from deployments.console import shown
from deployments.console.access import Person, Role
from deployments.console.audit import Audit
from deployments.console.figures import Figures, Snapshot
from deployments.console.here import Here
from deployments.console.server_view import LEVELS, RUNS_OF_DEVICE, ServerView
from deployments.console.shown import iso, row_as_json
from flows.ledger import Ledger
from flows.ledger.hooks import Hooks, Told
from flows.ledger.listing import LARGEST_ID, Listing, Page, Wanted
from flows.ledger.looking import DELIVERED
from flows.ledger.overrides import Override
from flows.ledger.store import now_ms
from flows.ledger.tallies import Tallies
from flows.starts import Refused
from flows.transfer.gate import override

log = logging.getLogger("onblock.console")

PATIENCE_S = 2.0
"""So long a ledger that is away is waited for: people see that it is."""
MOST_OF_EVENT = 100
"""Files of an event that are told."""
DEEPEST = 50
"""What devices tell is looked into so deep."""
_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")


class Office:
    """Shared by threads."""

    def __init__(self, ledger: Ledger, server: ServerView, audit: Audit):
        ledger.patience_s = PATIENCE_S
        self.ledger, self.server, self.audit = ledger, server, audit
        self.listing = Listing(ledger.engine)
        self.listing.patience_s = PATIENCE_S
        tallies = Tallies(ledger.engine)
        tallies.patience_s = PATIENCE_S
        self.figures = Figures(self.listing, tallies)
        self.hooks = Hooks(ledger.engine)
        self.hooks.patience_s = PATIENCE_S
        self._here = Here()

    # -- transfers ----------------------------------------------------------------------------------------------------

    def row(self, number: int) -> dict[str, Any]:
        """One row. Raises NotFound."""
        found = self.listing.rows([number]) if 0 < number <= LARGEST_ID else []
        if not found:
            raise NotFound(f"there is no transfer {number}", remedy="")
        return found[0]

    def history(self, number: int, who: Person) -> dict[str, Any]:
        """A row, what happened to it when as far as the ledger knows, the run that had it last, and its lineage. Who has
        asked for something, an admin is told."""
        row = self.row(number)
        told, origins, products = self.listing.lineage(number)
        run = self.listing.run(row["run_id"]) if row["run_id"] else None
        cause = self._cause(row, run)
        events = (
            []
            if cause is None
            else [(cause.received_at, f"webhook {cause.message.name}", f"of {cause.message.sender}")]
        )
        events += [(row["queued_at"], "queued", f"attempt {row['attempt']}" if row["attempt"] else "")]
        if run is not None:
            events.append((run["started_at"], "run begins", f"run {run['id']} on {run['worker'].partition(':')[0]}"))
            if run["ended_at"] is not None:
                events.append((run["ended_at"], "run ended", ""))
        if row["done_at"] is not None:
            how = f"verified by {row['verified_by']}" if row["verified_by"] else ""
            events.append((row["done_at"], "delivered", how))
        if row["proven_at"] is not None:
            events.append((row["proven_at"], "proven again", f"{row['verify_passes']} passes"))
        events.append((row["updated_at"], row["state"].lower(), row["message"] or ""))
        if row["next_attempt_at"] is not None:
            events.append((row["next_attempt_at"], "next attempt", ""))
        for line in self.audit.about(number):
            if line.get("status", 0) < 400:
                by = f"by {line['who']}" if who.role >= Role.ADMIN else ""
                events.append((_ms(line["at"]), line.get("action", "asked"), by))
        return {
            "transfer": row_as_json(row),
            "events": [{"at": iso(at), "what": what, "detail": names.display(text)} for at, what, text in sorted(events)],
            "run": None if run is None else self._run(run), "event": None if cause is None else _event_as_json(cause, row["device"]),
            "manifest": self._manifest(number), "lineage": {"made_of": origins, "made_into": products, "told": _shown(json.loads(told)) if told else None},
        }  # fmt: skip

    def trace(self, number: int) -> dict[str, Any]:
        """From a file back to what began it: its place and manifest, the tasks that were at work on it, the run, and the
        webhook. What Prefect knows is left out while it is away. Raises NotFound."""
        row = self.row(number)
        run = self.listing.run(row["run_id"]) if row["run_id"] else None
        cause = self._cause(row, run)
        flow_run = None if run is None else run["flow_run_id"]
        return {
            "transfer": row_as_json(row), "manifest": self._manifest(number),
            "tasks": [] if flow_run is None else self._tasks(flow_run, row["done_at"]),
            "run": None if run is None else self._run(run),
            "event": None if cause is None else _event_as_json(cause, row["device"]),
        }  # fmt: skip

    def event(self, event_id: str) -> dict[str, Any]:
        """From a webhook's answer to what became of it: its runs, and the files that they had last, the newest hundred.
        Raises NotFound."""
        told = self.hooks.of_event(event_id)
        if told is None:
            raise NotFound(f"there is no event {names.display(event_id)}", remedy="it is kept for 90 days")
        [event] = [e for e in told.message.events if e["id"] == event_id]
        device = event["payload"].get("device")
        runs = self.listing.runs_of(event.get("runs") or [])
        ours = {r["id"] for r in runs}
        wanted = Wanted(flight=told.message.flight, device=device)
        rows = self.listing.page(wanted, limit=MOST_OF_EVENT).rows if ours else []
        return {
            **_event_as_json(told, device), "answer": told.message.answer, "runs": [self._run(r) for r in runs],
            "waiting_runs": [self._link(r) for r in sorted(set(event.get("runs") or []) - {r["flow_run_id"] for r in runs})],
            "transfers": [row_as_json(r) for r in rows if r["run_id"] in ours],
        }  # fmt: skip

    def _cause(self, row: dict[str, Any], run: dict[str, Any] | None) -> Told | None:
        """The message that began what happened to a row."""
        return self.hooks.of_run(None if run is None else run["flow_run_id"], row["flight"], row["device"])

    def _manifest(self, number: int) -> str | None:
        found = self.listing.manifest_of(number)
        return None if found is None else names.display(names.from_text(found))

    def _run(self, run: dict[str, Any]) -> dict[str, Any]:
        return _run_as_json(run) | {"url": self._link(run["flow_run_id"])["url"] if run["flow_run_id"] else None}

    def _link(self, flow_run: str, task: str | None = None) -> dict[str, Any]:
        """Where Prefect shows it."""
        ui, where = self.server.ui_url, f"runs/flow-run/{flow_run}" if task is None else f"runs/task-run/{task}"
        return {"id": task or flow_run, "url": f"{ui}/{where}" if ui else None}

    def _tasks(self, flow_run: str, done_at: int | None) -> list[dict[str, Any]]:
        """The tasks of a run that were at work when a file was done; all of them where it is not. Shipments, not files, are
        Prefect's tasks: of several at a time, one had it."""
        try:
            found = self.server.tasks(flow_run)
        except (OnblockError, Refused) as error:
            log.warning("the tasks of a run are not told: %s", error)
            return []
        if done_at is not None:
            at = datetime.fromtimestamp(done_at / 1000, UTC)
            found = [t for t in found if t["began"] is not None and t["began"] <= at <= (t["ended"] or at)] or found
        return [{"name": names.display(t["name"]), "state": t["state"], **self._link(flow_run, t["id"])} for t in found]

    def want(self, what: str, meant: wanted.Meant, who: str) -> wanted.Done:
        """Pause, resume, cancel, retry. Raises ConfigError, NotFound."""
        self._there(meant.ids)
        done = wanted.want(self.ledger, what, meant, who=who)
        self.figures.cached.forget()
        return done

    def prioritise(self, level: str, meant: wanted.Meant) -> int:
        """Another priority; of how many. Raises ConfigError, NotFound."""
        self._there(meant.ids)
        return wanted.prioritise(self.ledger, level, meant)

    def _there(self, ids: Any) -> None:
        there = {r["id"] for r in self.listing.rows(ids)} if ids else set()
        if missing := sorted(set(ids) - there):
            raise NotFound(f"there is no transfer {missing[0]}", remedy="")

    # -- overrides ----------------------------------------------------------------------------------------------------

    def overrides(self, job: str | None = None) -> list[dict[str, Any]]:
        """All there ever were, the newest first."""
        return [override_as_json(o) for o in reversed(self.ledger.overrides(job))]

    def override(self, job: str, rule: str, path: str, why: str, expires_at: int | None, who: str) -> dict[str, Any]:
        """Let files pass in spite of a finding. Raises ConfigError."""
        return override_as_json(override(self.ledger, job, rule, path, who=who, why=why, expires_at=expires_at))

    def revoke(self, number: int, why: str, who: str) -> dict[str, Any]:
        """Take an override back. Raises ConfigError."""
        return override_as_json(self.ledger.revoke(number, who=who, why=why))

    # -- jobs, recordings, devices --------------------------------------------------------------------------------------

    def jobs(self) -> list[dict[str, Any]]:
        """What is deployed, and what has run without being."""
        now = self.figures.now()
        try:
            deployed = {d.name: d for d in self.server.deployments("transfer")}
        except OnblockError:
            deployed = {}
        last: dict[str, tuple[int | None, int | None]] = {}
        for one in now.last:
            before = last.get(one.job, (None, None))
            last[one.job] = _later(before[0], one.succeeded_at), _later(before[1], one.ended_at)
        found = []
        for name in sorted({*deployed, *(job for job, _ in now.counts), *self.ledger.jobs()}):
            d = deployed.get(name)
            found.append({
                "name": name, "held_by": self.ledger.held(name), "deployed": d is not None, "description": d.description if d else "",
                "schedules": list(d.schedules) if d else [], "paused": d.paused if d else False,
                "next_run_at": d.next_at if d else None, "last_success_at": iso(last.get(name, (None, None))[0]),
                "last_run_at": iso(last.get(name, (None, None))[1]), "url": self._url(d.id) if d else None,
                "states": {s.value: n for (job, s), n in sorted(now.counts.items()) if job == name},
            })  # fmt: skip
        return found

    def job_names(self, now: Snapshot) -> list[str]:
        """Jobs that are deployed, and those that have files; nobody is asked for it anew."""
        try:
            deployed = {d.name for d in self.server.deployments("transfer")}
        except OnblockError:
            deployed = set()
        return sorted({*deployed, *(job for job, _ in now.counts)})

    def _url(self, deployment: str) -> str | None:
        return f"{self.server.ui_url}/deployments/deployment/{deployment}" if self.server.ui_url else None

    def recordings(
        self, *, flight: str | None, device: str | None, job: str | None, text: str | None = None,
        before: int | None, limit: int,
    ) -> Page:  # fmt: skip
        """What lies at destinations, the newest first."""
        wanted = Wanted(job, frozenset(DELIVERED), flight, device, text, delivered_only=True)
        return self.listing.page(wanted, before=before, limit=limit)

    def devices(self) -> list[dict[str, Any]]:
        """Devices that are known, with what their agents told, and what waits of each."""
        try:
            told = self.server.devices()
            offered = {(d.flow, d.name) for d in self.server.deployments()}
        except OnblockError:
            told, offered = {}, set()
        own = self._own_status()
        if own is not None and own.get("device"):
            told = {**told, own["device"]: own}
        last: dict[str, int | None] = {}
        try:
            ended = self.figures.now().last
        except OnblockError:
            ended = []
        for one in ended:
            last[one.device] = _later(last.get(one.device), one.succeeded_at)
        return [
            {
                "name": name, "status": _shown(told.get(name)) or None, "last_success_at": iso(last.get(name)),
                "can_record": ("capture", name) in offered,
            }
            for name in sorted({*told, *(d for d in last if d)})
        ]  # fmt: skip

    def _own_status(self) -> dict[str, Any] | None:
        """What the agent of this machine tells, if there is one."""
        try:
            told = json.loads((home() / "agent" / "status.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return told if isinstance(told, dict) else None

    def here(self) -> list[dict[str, Any]]:
        """What was recorded on this machine, the newest first."""
        return self._here.recordings()

    # -- logs -----------------------------------------------------------------------------------------------------------

    def logs(self, source: str, level: str, run: str | None, device: str | None, limit: int) -> list[dict[str, Any]]:
        """Lines, the newest first: of `runs` (of one, of those on or of a device), or of this machine's `console` or
        `server`. Raises NetworkError."""
        if source == "runs":
            runs = [run] if run is not None else None
            if runs is None and device is not None:
                runs = [
                    *dict.fromkeys([*self.server.runs_on(device), *self.listing.flow_runs_of(device, RUNS_OF_DEVICE)])
                ]
            return self.server.logs(level=level, runs=runs, limit=limit)
        return _tail(home() / "logs" / f"{source}.log", level, limit)


def override_as_json(o: Override) -> dict[str, Any]:
    """An override, for programs."""
    state = "revoked" if o.revoked else "active" if o.is_active(now_ms()) else "expired"
    revoked = o.revoked and {"who": o.revoked.who, "why": names.display(o.revoked.why), "at": iso(o.revoked.at)}
    return {
        "id": o.id, "job": o.job, "rule": o.rule, "path": names.display(o.path), "who": o.who, "why": names.display(o.why),
        "made_at": iso(o.made_at), "expires_at": iso(o.expires_at), "state": state, "revoked": revoked,
    }  # fmt: skip


def _tail(file: Path, level: str, limit: int) -> list[dict[str, Any]]:
    """The last lines of a log, the newest first; of the last mebibyte."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - (1 << 20)))
            lines = log.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = []
    for line in reversed(lines):
        match = _LINE.match(line)
        of = match[1].lower().replace("critical", "error") if match else "info"
        if LEVELS[of] >= LEVELS[level]:
            told = {"at": None, "level": of, "logger": file.stem, "message": names.display(line), "flow_run_id": None}
            found.append(told)
        if len(found) == limit:
            break
    return found


def _run_as_json(run: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": run["id"], "job": run["job"], "flight": run["flight"], "device": run["device"], "worker": run["worker"],
        "flow_run_id": run["flow_run_id"], "started_at": iso(run["started_at"]), "ended_at": iso(run["ended_at"]),
        "heartbeat_at": iso(run["heartbeat_at"]),
    }  # fmt: skip


def _event_as_json(told: Told, device: str | None) -> dict[str, Any]:
    message = told.message
    about = [e for e in message.events if e["payload"].get("device") == device] or message.events
    return {
        "event_id": about[0]["id"], "hook": message.name, "sender": message.sender, "flight": message.flight,
        "device": device, "received_at": iso(told.received_at), "told": message.done, "flow_runs": about[0].get("runs") or [],
    }  # fmt: skip


def _shown(value: Any, deep: int = 0) -> Any:
    """JSON from elsewhere, every text in it as `names.display` shows it, and no number in it that is none."""
    if deep > DEEPEST:
        return None
    if isinstance(value, dict):
        return {names.display(str(k)): _shown(v, deep + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_shown(v, deep + 1) for v in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return shown.number(value)
    return names.display(value) if isinstance(value, str) else value


def _later(a: int | None, b: int | None) -> int | None:
    return max((v for v in (a, b) if v is not None), default=None)


def _ms(at: str) -> int:
    from datetime import datetime

    return int(datetime.fromisoformat(at).timestamp() * 1000)
