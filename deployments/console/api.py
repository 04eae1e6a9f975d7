"""`/api/v1`: the console for programs. What is done is in `office.py`; who may, in `guard.py`.

The OpenAPI document is `/api/v1/openapi.json`. Lists come in pages: `next` of one is the `cursor` of the next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import StreamingResponse

from blocks.errors import OnblockError
from deployments.console import forms
from deployments.console.access import Person
from deployments.console.figures import Snapshot
from deployments.console.guard import Guard, admin_only, tell_audit, whoever
from deployments.console.job_texts import masked
from deployments.console.office import PATIENCE_S, Office
from deployments.console.problems import Problem
from deployments.console.pulse import Pulse
from deployments.console.shown import iso, row_as_json
from deployments.overrides import moment
from deployments.wanted import Meant
from flows.ledger.listing import LARGEST_ID, Page, Wanted
from flows.ledger.states import State

Who = Annotated[Person, Depends(whoever)]
Number = Annotated[int, Path(ge=1, le=LARGEST_ID)]
Name = Annotated[str, Path(max_length=100), forms.Plain]
Cursor = Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$", description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=500)]
Some = Annotated[Annotated[str, forms.Plain] | None, Query(max_length=100)]

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": forms.Problem, "description": what}
    for status, what in (
        (400, "Not understood"), (401, "Nobody's token"), (403, "Not for this role, or sent by a page from elsewhere"), (404, "Not there"),
        (409, "It does not fit what is there"), (422, "Not well formed"), (429, "Too many wrong tokens"),
        (503, "The ledger or the Prefect server is away"),
    )
}  # fmt: skip


def routes(office: Office, pulse: Pulse) -> APIRouter:
    """The paths."""
    api = APIRouter(prefix="/api/v1", responses=PROBLEMS)

    # -- look ---------------------------------------------------------------------------------------------------------

    @api.get("/health", tags=["look"])
    def health(who: Who) -> forms.Health:
        """Whether the ledger and the Prefect server answer."""
        ledger = "ok"
        try:
            office.ledger.jobs()
        except OnblockError as error:
            ledger = error.what
        prefect = office.server.trouble() or "ok"
        return forms.Health(ok=(ledger, prefect) == ("ok", "ok"), ledger=ledger, prefect=prefect)

    @api.get("/stats/summary", tags=["look"])
    def summary(who: Who) -> forms.Summary:
        """Counts of files by what became of them, deliveries by the hour, last successes, room on disks."""
        return summarised(office.figures.now(PATIENCE_S), office.figures.stale())

    @api.get("/transfers", tags=["look"])
    def transfers(
        who: Who, job: Some = None, flight: Some = None, device: Some = None,
        state: Annotated[list[State] | None, Query(description="May be given again.")] = None,
        q: Annotated[Annotated[str, forms.Plain] | None, Query(max_length=500, description="A part of the source path, or a SHA-256.")] = None,
        cursor: Cursor = None, limit: Limit = 50,
    ) -> forms.Transfers:  # fmt: skip
        """Transfers, the newest first."""
        wanted = Wanted(job, frozenset(state or ()), flight, device, q or None)
        return paged(office.listing.page(wanted, before=_before(cursor), limit=limit))

    @api.get("/transfers/{number}", tags=["look"])
    def transfer(who: Who, number: Number) -> forms.Transfer:
        """One transfer."""
        return forms.Transfer(**row_as_json(office.row(number)))

    @api.get("/transfers/{number}/history", tags=["look"])
    def history(who: Who, number: Number) -> dict[str, Any]:
        """What happened to it, in order; the run that had it last; its lineage."""
        return office.history(number, who)

    @api.get("/transfers/{number}/trace", tags=["look"])
    def trace(who: Who, number: Number) -> dict[str, Any]:
        """From a file back to what began it: destination and manifest, tasks and flow run with their addresses in Prefect,
        and the webhook's event."""
        return office.trace(number)

    @api.get("/events/{event_id}", tags=["look"])
    def event(who: Who, event_id: Annotated[str, Path(pattern="^[0-9a-f-]{36}$")]) -> dict[str, Any]:
        """What became of a webhook, by the `event_id` of its answer: the runs it started, and their files."""
        return office.event(event_id)

    @api.get("/recordings", tags=["look"])
    def recordings(
        who: Who, flight: Some = None, device: Some = None, job: Some = None, cursor: Cursor = None, limit: Limit = 50
    ) -> forms.Transfers:
        """What lies at destinations, the newest first; with a flight, that of the flight."""
        return paged(office.recordings(flight=flight, device=device, job=job, before=_before(cursor), limit=limit))

    @api.get("/recordings/here", tags=["look"])
    def here(who: Who) -> list[dict[str, Any]]:
        """What was recorded on this machine."""
        return office.here()

    @api.get("/jobs", tags=["look"])
    def jobs(who: Who) -> list[dict[str, Any]]:
        """Jobs that are deployed or have run: files by state, last success, next run, who has put them on hold."""
        return office.jobs()

    @api.get("/jobs/{name}/config", tags=["look"])
    def job_config(who: Who, name: Name) -> dict[str, Any]:
        """A deployed job as a JOB.yaml has it, storages by the names of their blocks."""
        return masked(office.server.job(name))

    @api.get("/devices", tags=["look"])
    def devices(who: Who) -> list[dict[str, Any]]:
        """Devices, and what their agents told last."""
        return office.devices()

    @api.get("/overrides", tags=["look"])
    def overrides(who: Who, job: Some = None) -> list[dict[str, Any]]:
        """Overrides, the newest first, those that no longer hold too."""
        return office.overrides(job)

    @api.get("/logs/recent", tags=["look"])
    def logs(
        who: Who, source: Literal["runs", "console", "server"] = "runs",
        level: Literal["debug", "info", "warning", "error"] = "info",
        run: Annotated[str | None, Query(pattern="^[0-9a-fA-F-]{36}$", description="Of this flow run.")] = None,
        device: Some = None, limit: Annotated[int, Query(ge=1, le=200)] = 100,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Log lines, the newest first: of all runs, of one, or of the last ones on or of a device."""
        return office.logs(source, level, run, device, limit)

    @api.get("/audit", tags=["look"])
    def audit(who: Annotated[Person, Depends(admin_only)], limit: Limit = 100) -> list[dict[str, Any]]:
        """Who did what in the console, the newest first. For admins."""
        return office.audit.recent(limit)

    @api.get("/stream", tags=["look"], response_class=StreamingResponse)
    async def stream(who: Who, request: Request) -> StreamingResponse:
        """Server-sent events: `rows`, once a second while something moves: how many do (`moving`), and of what runs work on
        or have just finished the id, state, phase, size, bytes done, wish, speed (bytes/s) and seconds left; `trouble` where
        the ledger does not answer."""
        guard: Guard = request.state.guard
        told = pulse.watch(who.name)
        first = await anext(told)  # from here on it counts

        async def messages() -> AsyncIterator[str]:
            yield first
            async for message in told:
                if not guard.still(request):
                    return
                yield message

        return StreamingResponse(messages(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    # -- act ----------------------------------------------------------------------------------------------------------

    @api.post("/transfers/actions", tags=["act"])
    def act(who: Who, asked: forms.Action, request: Request) -> forms.ActionDone:
        """Pause, resume, cancel, retry, or give another priority. A job alone, paused or resumed, is held or released."""
        meant = Meant(asked.ids, asked.job, asked.flight, asked.device, asked.states)
        return done(office, asked.action, asked.level, meant, who, request)

    @api.post("/overrides", tags=["act"], status_code=201)
    def add_override(who: Who, asked: forms.NewOverride, request: Request) -> dict[str, Any]:
        """Let files pass in spite of a finding. The next run takes them."""
        made = office.override(
            asked.job, asked.rule, asked.path, asked.why, None if asked.expires is None else moment(asked.expires), who.name
        )  # fmt: skip
        tell_audit(request, action="override", override=made)
        return made

    @api.post("/overrides/{number}/revoke", tags=["act"])
    def revoke(who: Who, number: Number, asked: forms.Reason, request: Request) -> dict[str, Any]:
        """Take an override back."""
        taken = office.revoke(number, asked.why, who.name)
        tell_audit(request, action="revoke", override=taken)
        return taken

    @api.post("/jobs/{name}/run", tags=["act"], status_code=202)
    def run(who: Who, name: Name, asked: forms.StartRun, request: Request) -> dict[str, str]:
        """Start a run of a job now, in Prefect."""
        run_id = office.server.start("transfer", name, who.name, flight=asked.flight, device=asked.device)
        tell_audit(request, action="run", job=name, flow_run_id=run_id)
        return {"flow_run_id": run_id}

    @api.post("/jobs/{name}/plan", tags=["act"])
    def plan(who: Who, name: Name, asked: forms.StartRun) -> dict[str, Any]:
        """What a run would do; nothing is touched. Reads the source: it may take a while."""
        return office.server.plan(name, asked.flight)

    @api.post("/devices/{name}/recording/{what}", tags=["act"], status_code=202)
    def record(who: Who, name: Name, what: Literal["start", "stop"], request: Request) -> dict[str, str]:
        """Start or stop recording on a device, by its agent."""
        run_id = office.server.start({"start": "capture", "stop": "stop-capture"}[what], name, who.name)
        tell_audit(request, action=f"{what} recording", device=name, flow_run_id=run_id)
        return {"flow_run_id": run_id}

    return api


def done(
    office: Office, action: str, level: str | None, meant: Meant, who: Person, request: Request
) -> forms.ActionDone:  # fmt: skip
    """Do what is wanted of transfers, and have it written down. Raises Problem, OnblockError."""
    told = {"action": action, "level": level, **{k: v for k, v in meant._asdict().items() if v}}
    tell_audit(request, **told)
    if action == "priority":
        if level is None:
            raise Problem(422, "say which priority: `level` is LOW, NORMAL, HIGH or URGENT")
        n = office.prioritise(level, meant)
        return forms.ActionDone(moved=n, left=0, told=f"{n} now {level}")
    out = office.want(action, meant, who.name)
    return forms.ActionDone(moved=out.moved, left=out.left, told=str(out))


def summarised(now: Snapshot, stale: str | None) -> forms.Summary:
    """A snapshot, for programs."""
    return forms.Summary(
        at=iso(now.at), stale=stale, silent=now.silent, totals=now.totals(), failures=now.failures(),
        hours=[forms.Hour(at=iso(at), files=files, bytes=size) for at, files, size in now.hours],
        last=[forms.LastRun(job=o.job, device=o.device, succeeded_at=iso(o.succeeded_at), ended_at=iso(o.ended_at)) for o in now.last],
        disks=[forms.Disk(path=d.path, total=d.total, free=d.free, days_left=d.days_left) for d in now.disks],
    )  # fmt: skip


def paged(page: Page) -> forms.Transfers:
    """A page, for programs."""
    items = [forms.Transfer(**row_as_json(r)) for r in page.rows]
    return forms.Transfers(items=items, next=None if page.next is None else str(page.next))


def _before(cursor: str | None) -> int | None:
    return None if cursor is None else int(cursor)
