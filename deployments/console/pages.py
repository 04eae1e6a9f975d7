"""The console for people: pages from templates, which escape everything, and the forms in them. What is done is in
`office.py`; who may, in `guard.py`. All of it runs in threads: the event loop never waits for the ledger.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from blocks import names
from blocks.errors import OnblockError
from deployments.console import forms, plots, shown
from deployments.console.access import Person, Role
from deployments.console.api import Name, Number, done
from deployments.console.aside import Marks
from deployments.console.clips import Clip, clips
from deployments.console.fields import asked, number_in, one_of
from deployments.console.fields import form as _form
from deployments.console.fields import meant as meant_by
from deployments.console.guard import Guard, tell_audit, whoever
from deployments.console.office import Office
from deployments.console.prefect_api import Refused
from deployments.console.problems import Problem, status_of
from deployments.console.server_view import LEVELS
from deployments.overrides import moment
from deployments.wanted import Meant, fitting
from flows.ledger.listing import WAITING, Aside, Wanted
from flows.ledger.states import ACTIVE, DONE, State
from flows.ledger.store import now_ms
from flows.ledger.wishes import AT_REST, LEFT_FOR_THE_RUN, Wish

Who = Annotated[Person, Depends(whoever)]
PAGE = 50
TEMPLATES = Path(__file__).with_name("templates")
NAV = (
    ("/", "Overview"), ("/transfers", "Transfers"), ("/problems", "Blocked and failed"), ("/jobs", "Jobs"), ("/devices", "Devices"),
    ("/recordings", "Recordings"), ("/logs", "Logs"),
)  # fmt: skip
STOPPED = frozenset({State.BLOCKED, State.FAILED, State.QUARANTINED})
LOOK = {State.FAILED: "bad", State.QUARANTINED: "bad", State.BLOCKED: "warn", State.PAUSED: "warn"} | dict.fromkeys(DONE, "good")  # fmt: skip
"""The class that a state is shown in."""


def routes(office: Office, show: Shown, marks: Marks, connected: Callable[[], Mapping[str, bool]]) -> APIRouter:
    """The paths. `connected` tells which devices that are looked after are there."""
    pages = APIRouter()

    # -- log in -------------------------------------------------------------------------------------------------------

    @pages.get("/login")
    def login(request: Request) -> Response:
        """The form."""
        return show("login.html", request, None, next=_local(request.query_params.get("next", "/")), wrong="")

    @pages.post("/login")
    async def log_in(request: Request) -> Response:
        """A token, for a session."""
        guard: Guard = request.state.guard
        given = await _form(request)
        person = await run_in_threadpool(guard.log_in, request, given.one("token").strip())
        where = _local(given.one("next") or "/")
        if isinstance(person, Response):
            wrong = json.loads(bytes(person.body))["detail"]
            answer = show("login.html", request, None, next=where, wrong=wrong)
            answer.status_code = person.status_code
            if (wait := person.headers.get("retry-after")) is not None:
                answer.headers["retry-after"] = wait
            return answer
        answer = RedirectResponse(where, 303)
        guard.admit(request, person, answer)
        return answer

    @pages.post("/logout")
    def log_out(request: Request) -> Response:
        """No session any more."""
        guard: Guard = request.state.guard
        answer = RedirectResponse("/login", 303)
        guard.log_out(request, answer)
        return answer

    # -- look ---------------------------------------------------------------------------------------------------------

    @pages.get("/")
    def overview(request: Request, who: Who) -> Response:
        """How it goes."""
        now = office.figures.now()
        hours = [(f"{shown.iso(at)[5:13].replace('T', ' ')}h", files, n) for at, files, n in now.hours]  # pyright: ignore
        return show(
            "overview.html", request, who, now=now, stale=office.figures.stale(), totals=now.totals(), failures=now.failures(),
            plot=plots.bars(hours, "Bytes delivered by the hour, the last 48 hours, UTC"), jobs=office.jobs(),
            last_day=(sum(f for _, f, _ in now.hours[-24:]), sum(b for _, _, b in now.hours[-24:])),
        )  # fmt: skip

    @pages.get("/transfers")
    def transfers(request: Request, who: Who) -> Response:
        """Files, the newest first."""
        wanted, filters = _filters(request, marks.of(who.name))
        page = office.listing.page(wanted, before=_cursor(request), limit=PAGE)
        return show(
            "transfers.html", request, who, aside=wanted.aside, has_aside=marks.of(who.name) != Aside(), now=now_ms(), rows=[_row(r) for r in page.rows], filters=filters, totals=office.figures.now().totals(),
            next=_with(filters, cursor=page.next) if page.next is not None else None, first="cursor" not in request.query_params,
            again=_with(filters, cursor=_cursor(request)), again_filters=_with(filters), everything=_with(filters, all=1), first_page=_with(filters), jobs=office.ledger.jobs(), states=list(State),
        )  # fmt: skip

    @pages.get("/transfers/bulk")
    def bulk(request: Request, who: Who, action: str = "") -> Response:
        """How many files an action upon all that fit the filter would be asked of, and a button that asks for it."""

        if who.role < Role.OPERATOR:
            raise Problem(403, "this is for operators")

        def count() -> Markup:
            wish, meant = Wish(one_of(action, *Wish)), meant_by(request.query_params.getlist)
            files = len(fitting(office.ledger, wish, meant))
            return show.part("_bulk.html", action=action, files=files, meant=meant)

        return show.done(count, changes=False)

    @pages.get("/transfers/{number}")
    def transfer(request: Request, who: Who, number: int) -> Response:
        """One file, and what happened to it."""
        told = office.history(number, who)
        return show("transfer.html", request, who, t=_row(office.row(number)), told=told)

    @pages.get("/problems")
    def problems(request: Request, who: Who) -> Response:
        """What does not go on by itself."""
        wanted, filters = _filters(request, marks.of(who.name))
        page = office.listing.page(
            wanted._replace(states=wanted.states or STOPPED), before=_cursor(request), limit=PAGE
        )
        return show(
            "problems.html", request, who, aside=wanted.aside, has_aside=bool(marks.of(who.name).ids), rows=[_row(r) for r in page.rows], overrides=office.overrides(), filters=filters,
            next=_with(filters, cursor=page.next) if page.next is not None else None, failures=office.figures.now().failures(),
            blocked=office.figures.now().count(State.BLOCKED), jobs=office.ledger.jobs(), states=sorted(STOPPED),
        )  # fmt: skip

    @pages.get("/jobs")
    def jobs(request: Request, who: Who) -> Response:
        """What is configured, and how it goes."""
        return show("jobs.html", request, who, jobs=office.jobs())

    @pages.get("/devices")
    def devices(request: Request, who: Who) -> Response:
        """Cameras and instruments."""
        there = connected()
        return show("devices.html", request, who, devices=[
            d | {"facts": shown.device_facts(d["status"]), "there": there.get(d["name"]), "recording": shown.part(d["status"], "recording", "state") or "idle",
                 "told_at": _moment(shown.part(d["status"], "at"))}
            for d in office.devices()
        ])  # fmt: skip

    @pages.get("/recordings")
    def recordings(request: Request, who: Who) -> Response:
        """What lies at destinations, by flight; what was recorded here."""
        wanted, filters = _filters(request)
        page = office.recordings(
            flight=wanted.flight, device=wanted.device, job=wanted.job, text=wanted.text, before=_cursor(request), limit=PAGE
        )  # fmt: skip
        flights: dict[tuple[str, str], list[Clip]] = {}
        for clip in clips(office.listing, page.rows):
            key = clip.main["flight"] or "", clip.main["device"] or ""
            flights.setdefault(key, []).append(clip._replace(rows=[_row(r) for r in clip.rows]))
        return show(
            "recordings.html", request, who, flights=flights, filters=filters, here=office.here(), jobs=office.ledger.jobs(),
            next=_with(filters, cursor=page.next) if page.next is not None else None,
        )  # fmt: skip

    @pages.get("/logs")
    def logs(request: Request, who: Who) -> Response:
        """What is logged, and, for admins, who did what."""
        given = request.query_params
        sources = ["runs", "console", "server", *(["audit"] if who.role >= Role.ADMIN else [])]
        source = given.get("source") if given.get("source") in sources else "runs"
        level = given.get("level") if given.get("level") in LEVELS else "info"
        device = given.get("device", "").replace("\0", "")[:100]
        run = given.get("run", "") if re.fullmatch("[0-9a-fA-F-]{36}", given.get("run", "")) else ""
        lines, trouble = [], ""
        try:
            if source != "audit":
                lines = office.logs(str(source), str(level), run or None, device or None, 200)
        except (OnblockError, Refused) as error:
            trouble = getattr(error, "what", str(error))
        audit = office.audit.recent(200) if source == "audit" else []
        return show(
            "logs.html", request, who, device=device, run=run, devices=sorted({d["name"] for d in office.devices()} | ({device} if device else set())), source=source, level=level, sources=sources, levels=list(LEVELS), lines=lines,
            log_trouble=trouble, audit=[(a, json.dumps({k: v for k, v in a.items() if k not in ("at", "who", "what")})) for a in audit],
        )  # fmt: skip

    # -- act ----------------------------------------------------------------------------------------------------------

    @pages.post("/transfers/actions")
    async def act(request: Request, who: Who) -> Response:
        """What is wanted of files: of one, of those that are ticked, or of all that fit the filter."""
        given = await _form(request)
        action, _, one = given.one("one").partition(":")
        action = action or given.one("action")
        level = None
        if action.startswith("priority-"):
            level, action = action.removeprefix("priority-").upper(), "priority"

        def do() -> str:
            if action not in (*Wish, "priority", "dismiss"):
                raise Problem(422, "say what is wanted")
            if not one and given.one("scope") == "filter":
                meant = meant_by(given.all)
            elif numbers := [one] if one else given.all("id"):
                meant = Meant([number_in(i) for i in numbers])
            else:
                raise Problem(422, "tick the files that are meant")
            if action == "dismiss":
                if not meant.ids:
                    raise Problem(422, "tick the files that are to be dismissed")
                tell_audit(request, action="dismiss", ids=list(meant.ids))
                return f"{marks.dismiss(who.name, meant.ids)} dismissed; what happens to them is shown again"
            return done(office, action, level, meant, who, request).told

        return await show.told(do)

    @pages.post("/transfers/aside")
    async def put_aside(request: Request, who: Who) -> Response:
        """Put aside what was over when the page was made, or have all that was put aside on the lists again."""
        given = await _form(request)

        def do() -> str:
            if given.one("restore"):
                marks.restore(who.name)
                return "all is on your lists again"
            marks.clear(who.name, number_in(given.one("at")))
            return "what is over is cleared from your list; the ledger keeps it"

        return await show.told(do)

    @pages.post("/overrides")
    async def override(request: Request, who: Who) -> Response:
        """Let a file, or all of its job, pass in spite of a finding."""
        given = await _form(request)

        def do() -> str:
            row = office.row(number_in(given.one("id")))
            pattern = "**" if given.one("scope") == "job" else _exactly(row["path"])
            # the pattern is ours, and may be longer than one that somebody writes
            new = asked(forms.NewOverride, given, "rule", "why", "expires", job=row["job"], path="**")
            until = None if new.expires is None else moment(new.expires)
            made = office.override(new.job, new.rule, pattern, new.why, until, who.name)
            tell_audit(request, action="override", override=made)
            return f"override {made['id']}: passes {made['rule']}; the next run of {made['job']} takes it"

        return await show.told(do)

    @pages.post("/overrides/{number}/revoke")
    async def revoke(request: Request, who: Who, number: Number) -> Response:
        """Take an override back."""
        given = await _form(request)

        def do() -> str:
            taken = office.revoke(number, asked(forms.Reason, given, "why").why, who.name)
            tell_audit(request, action="revoke", override=taken)
            return f"override {taken['id']} is revoked"

        return await show.told(do)

    @pages.post("/jobs/{name}/run")
    async def run(request: Request, who: Who, name: Name) -> Response:
        """Run it now."""
        given = await _form(request)

        def do() -> str:
            number = office.server.start(
                "transfer", name, who.name, flight=asked(forms.StartRun, given, "flight").flight
            )
            tell_audit(request, action="run", job=name, flow_run_id=number)
            return f"a run of {name} is asked for"

        return await show.told(do)

    @pages.post("/jobs/{name}/plan")
    async def plan(request: Request, who: Who, name: Name) -> Response:
        """What a run would do."""
        given = await _form(request)

        def do() -> Markup:
            return show.part("_plan.html", plan=office.server.plan(name, asked(forms.StartRun, given, "flight").flight))

        return await show.told(do, changes=False)

    @pages.post("/jobs/{name}/{what}")
    async def hold(request: Request, who: Who, name: Name, what: str) -> Response:
        """Hold a job, or let it go on."""
        return await show.told(lambda: done(
            office, one_of(what, "pause", "resume"), None, Meant(job=name), who, request
        ).told)  # fmt: skip

    @pages.post("/devices/{name}/{what}")
    async def record(request: Request, who: Who, name: Name, what: str) -> Response:
        """Start or stop recording."""

        def do() -> str:
            flow = {"start": "capture", "stop": "stop-capture"}[one_of(what, "start", "stop")]
            number = office.server.start(flow, name, who.name)
            tell_audit(request, action=f"{what} recording", device=name, flow_run_id=number)
            return f"{name} is asked to {what} recording"

        return await show.told(do)

    return pages


class Shown:
    """Templates, with what all of them have."""

    def __init__(self, office: Office):
        self._office = office
        self._env = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )  # fmt: skip
        self._env.filters |= {
            "size": shown.size, "duration": shown.duration, "number": "{:,}".format, "when": _when, "row_actions": _row_actions,
            "iso": shown.iso, "zulu": _zulu, "safe_name": names.display,
        }  # fmt: skip

    def __call__(self, name: str, request: Request, who: Person | None, **more: Any) -> HTMLResponse:
        """A page."""
        trouble = self._office.server.trouble() if who else None
        body = self._env.get_template(name).render(
            who=who, role=who.role.name.lower() if who else "", nav=NAV, path=request.url.path, trouble=trouble, LOOK=LOOK, **more,
        )  # fmt: skip
        return HTMLResponse(body)

    def trouble(self, request: Request, status: int, detail: str) -> Response:
        """A page that says what went wrong. Asks nobody anything: it may be shown from the event loop."""
        who: Person | None = getattr(request.state, "person", None)
        body = self._env.get_template("trouble.html").render(
            who=who, role=who.role.name.lower() if who else "", nav=NAV, path=request.url.path, trouble=None,
            title=HTTPStatus(status).phrase, detail=names.display(detail),
        )  # fmt: skip
        return HTMLResponse(body, status)

    def part(self, name: str, **more: Any) -> Markup:
        """A part of one."""
        return Markup(self._env.get_template(name).render(**more))

    async def told(self, do: Callable[[], str], *, changes: bool = True) -> Response:
        """Do something in a thread, and tell how it went; the page then shows what has changed."""
        return await run_in_threadpool(self.done, do, changes=changes)

    def done(self, do: Callable[[], str], *, changes: bool = True) -> Response:
        """The same, in this thread."""
        try:
            text, status = do(), 200
        except OnblockError as error:
            text, status = error.what + (f" ({error.todo})" if error.todo else ""), status_of(error)
        except Problem as error:
            text, status = error.detail, error.status_code
        except Refused:
            text, status = "the Prefect server refused it; the console's log says why", 502
        head = {"HX-Trigger": "changed"} if status == 200 and changes else {}
        return HTMLResponse(Markup("{}").format(text), status, head)


def _local(path: str) -> str:
    """A path of ours to go to; the overview for anything else."""
    return path if re.fullmatch(r"/(?![/\\])[\x21-\x7e]*", path) and not path.startswith("/log") else "/"


def _filters(request: Request, aside: Aside = Aside()) -> tuple[Wanted, dict[str, Any]]:  # noqa: B008 - it is a value
    """What is wanted, and the same for links. What is put aside is seen by whoever asks for a state, searches, or says so."""
    given = request.query_params
    one = {k: given.get(k, "").replace("\0", "")[:500] for k in ("job", "flight", "device", "q")}
    states = [s for s in given.getlist("state") if s in State.__members__]
    everything = given.get("all") == "1"
    wanted = Wanted(
        one["job"] or None, frozenset(State(s) for s in states), one["flight"] or None, one["device"] or None, one["q"] or None,
        aside=aside if not (states or one["q"] or everything) else Aside(),
    )  # fmt: skip
    return wanted, one | {"state": states} | ({"all": "1"} if everything else {})


def _cursor(request: Request) -> int | None:
    given = request.query_params.get("cursor", "")
    return int(given) if re.fullmatch("[0-9]{1,18}", given) else None


def _with(filters: dict[str, Any], **more: Any) -> str:
    """A query with these filters and more."""
    return "?" + urlencode({k: v for k, v in (filters | more).items() if v}, doseq=True)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    told = shown.row_as_json(row)
    told["rules"] = sorted({f["rule"] for f in told["findings"] if "override" not in f or f["override"] is None})
    return told


def _row_actions(row: dict[str, Any], everything: bool = False) -> list[str]:
    """What can be wanted of a row, as it is; of one that is done with only where `everything` is to be offered."""
    state = State(row["state"])
    fits = [w for w in Wish if state in AT_REST[w][0] or (state in ACTIVE and w in LEFT_FOR_THE_RUN)]
    if state in ACTIVE:
        fits = [w for w in fits if (w is Wish.RESUME) == (row["wish"] == "pause") or w is Wish.CANCEL]
    if state is State.QUEUED and row["kind"] is None:
        fits.remove(Wish.RETRY)  # it has not failed
    acts = [w.value for w in fits] if everything or state in WAITING else []
    return acts + (["dismiss"] if not everything and state in STOPPED | {State.CANCELLED} else [])


def _exactly(path: str) -> str:
    """A pattern that fits this path and no other."""
    return "re:" + re.escape(path)


def _zulu(at: str) -> str:
    """A time of Python's or Prefect's as those of ours are written."""
    return at if at.endswith("Z") else at[:-6] + "Z" if at.endswith("+00:00") else at + "Z"


def _moment(told: Any) -> str | None:
    """A time that a device told; None of what is none."""
    try:
        at = datetime.fromisoformat(told)
        return shown.iso((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _when(at: str | None, none: str = "") -> Markup | str:
    if at is None:
        return none
    return Markup('<time datetime="{}">{} UTC</time>').format(at, at[:19].replace("T", " "))
