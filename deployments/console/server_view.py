"""What people see, and start, of the Prefect server: jobs and their next runs, runs' logs, what devices tell. Asked once
for all who look; while the server is away, what was known last counts, and the pages say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from blocks import names
from blocks.errors import ConfigError, NotFound, OnblockError, UnknownError
from deployments.console.cached import FIRST_S, SOON_S, Cached
from deployments.console.dry_runs import DryRuns
from deployments.console.prefect_api import PrefectApi
from flows.starts import Refused

T = TypeVar("T")

FRESH_S = 5.0
STATUS_EVENT = "onblock.device.status"
"""What the agent of a device tells every ten seconds."""
WINDOW = timedelta(minutes=10)
"""So long what it told is taken for true."""
SWEEP_S = 60.0
"""So often all of that is asked for; in between what was told lately, by clocks that may differ by `OVERLAP`."""
OVERLAP = timedelta(seconds=60)
EVENTS, EVENT_PAGES = 50, 40
"""So many events come at a time, as the server has it; and so many times."""
RUNS = 200
"""So many runs come at a time."""
RUNS_OF_DEVICE = 50
"""So many runs of a device are those whose logs are looked at."""
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Deployment(NamedTuple):
    """A deployment of onblock's: a job, or what a device's agent offers."""

    id: str
    flow: str
    name: str
    description: str
    paused: bool
    schedules: tuple[str, ...]
    parameters: dict[str, Any]
    next_at: str | None  # ISO 8601


class ServerView:
    """The server, by the API. Shared by threads."""

    def __init__(self, api: PrefectApi, ui_url: str | None = None):
        self.api, self.ui_url = api, ui_url
        self.dry_runs = DryRuns()
        self._deployments: Cached[list[Deployment]] = Cached(_sure(self._ask_deployments), FRESH_S)
        self._devices: Cached[dict[str, dict[str, Any]]] = Cached(_sure(self._ask_devices), FRESH_S)
        self._told: dict[str, dict[str, Any]] = {}  # of `_ask_devices`, which one thread at a time does
        self._swept = float("-inf")

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def deployments(self, flow: str | None = None) -> list[Deployment]:
        """All, or those of one flow, by name. Raises NetworkError, AuthError, UnknownError where the server never answered."""
        return [d for d in self._deployments.get() if flow is None or d.flow == flow]

    def find(self, flow: str, name: str) -> Deployment:
        """One of them. Raises NotFound, NetworkError."""
        for wait_s in (SOON_S, FIRST_S):  # it may have been deployed a moment ago
            for one in self._deployments.get(wait_s):
                if (one.flow, one.name) == (flow, name):
                    return one
            self._deployments.forget()
        raise NotFound(
            f"there is no deployment {flow}/{names.display(name)}", remedy="deploy the job: `onblock up JOB.yaml`"
        )

    def forget(self) -> None:
        """Something was deployed: the next one asks."""
        self._deployments.forget()

    def start(self, flow: str, name: str, who: str, **parameters: Any) -> str:
        """Start a run of a deployment, now; its id. Raises NotFound, NetworkError, Refused."""
        found = self.find(flow, name)
        given = {k: v for k, v in parameters.items() if v}
        body = {"parameters": given, "state": {"type": "SCHEDULED"}, "tags": ["onblock", f"console:{who}"]}
        made = _understood(lambda: str(self.api.call(f"/deployments/{found.id}/create_flow_run", body)["id"]))
        self._deployments.forget()
        return made

    def plan(self, name: str, flight: str | None, limit: int = 200) -> dict[str, Any]:
        """What a run of a job would do, as `onblock plan JOB.yaml --json` tells it. Raises OnblockError."""
        return self.dry_runs.plan(self.job(name), flight, limit)

    def job(self, name: str) -> dict[str, Any]:
        """A job as a JOB.yaml has it, its storages by the names of their blocks: nothing in it is secret. Raises
        NotFound, NetworkError."""
        told = self.find("transfer", name).parameters.get("job")
        if not isinstance(told, dict):
            raise ConfigError(f"the deployment transfer/{name} has no parameter `job`")
        return _understood(lambda: self.named(told))

    def named(self, value: Any) -> Any:
        """Parameters of a deployment, with blocks by their names. Raises NotFound, NetworkError."""
        if isinstance(value, list):
            return [self.named(v) for v in value]
        if not isinstance(value, dict):
            return value
        if set(value) != {"$ref"}:
            return {k: self.named(v) for k, v in value.items()}
        ref = value["$ref"]
        if isinstance(ref, dict) and "block_document_slug" in ref:
            return ref["block_document_slug"]
        number = ref.get("block_document_id") if isinstance(ref, dict) else ref
        wanted = {"block_documents": {"id": {"any_": [str(number)]}, "is_anonymous": None}, "limit": 1}
        found = self.api.call("/block_documents/filter", wanted)
        if not found:
            raise NotFound(f"the block {number} is not there any more", remedy="correct the job's form in Prefect's UI")
        return f"{found[0]['block_type']['slug']}/{found[0]['name']}"

    def _ask_deployments(self) -> list[Deployment]:
        found: list[dict[str, Any]] = []
        while True:
            body = {"deployments": {"tags": {"all_": ["onblock"]}}, "limit": 200, "offset": len(found)}
            page = self.api.call("/deployments/filter", body)
            found += page
            if len(page) < 200:
                break
        if not found:
            return []
        flows = self.api.call("/flows/filter", {"flows": {"id": {"any_": sorted({d["flow_id"] for d in found})}}})
        flow_names = {f["id"]: f["name"] for f in flows}
        due = self._due({d["id"] for d in found})
        return sorted(
            (
                Deployment(
                    d["id"], flow_names.get(d["flow_id"], ""), d["name"], names.display(d.get("description") or ""),
                    bool(d.get("paused")), tuple(_schedule(s) for s in d.get("schedules") or () if s.get("active")),
                    d.get("parameters") or {}, due.get(d["id"]),
                )
                for d in found
            ),
            key=lambda d: (d.name, d.flow),
        )  # fmt: skip

    def _due(self, deployments: set[str]) -> dict[str, str]:
        """When the next run of each is due. A job that runs every minute has hundreds before it, which are passed over
        together."""
        due: dict[str, str] = {}
        while missing := sorted(deployments - due.keys()):
            runs = self.api.call("/flow_runs/filter", {
                "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"any_": missing}},
                "sort": "EXPECTED_START_TIME_ASC", "limit": RUNS,
            })  # fmt: skip
            for run in runs:
                due.setdefault(run["deployment_id"], run["expected_start_time"])
            if len(runs) < RUNS:
                break
        return due

    # -- devices ------------------------------------------------------------------------------------------------------

    def devices(self) -> dict[str, dict[str, Any]]:
        """What each device's agent told last, with `told_at`; {} of those that have told nothing lately. Raises
        NetworkError where the server never answered."""
        return self._devices.get()

    def _ask_devices(self) -> dict[str, dict[str, Any]]:
        known, now = self.api.known().devices, datetime.now(UTC)
        asked, told = time.monotonic(), self._told
        whole = asked - self._swept >= SWEEP_S
        since = now - (WINDOW if whole else OVERLAP)
        found: dict[str, dict[str, Any]] = {}
        expected = known | told.keys()
        for event in self._events(since, lambda: not whole and expected <= found.keys()):
            device = str(event["resource"]["prefect.resource.id"]).removeprefix("onblock.device.")
            found.setdefault(device, event["payload"] | {"told_at": event["occurred"]})
        for device, status in found.items():
            if device not in told or _moment(status["told_at"]) >= _moment(told[device]["told_at"]):
                told[device] = status
        self._told = {device: status for device, status in told.items() if _moment(status["told_at"]) > now - WINDOW}
        if whole:
            self._swept = asked
        return {name: self._told.get(name, {}) for name in sorted({*known, *self._told})}

    def _events(self, since: datetime, enough: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """What devices told since then, the newest first."""
        until = None
        for _ in range(EVENT_PAGES):
            occurred = {"since": since.isoformat()} | ({"until": until} if until else {})
            page = self.api.call("/events/filter", {
                "filter": {"occurred": occurred, "event": {"name": [STATUS_EVENT]}, "order": "DESC"}, "limit": EVENTS,
            })["events"]  # fmt: skip
            yield from page
            if len(page) < EVENTS or enough() or page[-1]["occurred"] == until:
                return
            until = page[-1]["occurred"]

    # -- logs ---------------------------------------------------------------------------------------------------------

    def runs_on(self, device: str, limit: int = RUNS_OF_DEVICE) -> list[str]:
        """The last flow runs on a device: of its pool. Raises NetworkError, Refused."""
        wanted = {"work_pools": {"name": {"any_": [f"device-{device}"]}}, "sort": "START_TIME_DESC", "limit": limit}
        return [str(run["id"]) for run in self.api.call("/flow_runs/filter", wanted)]

    def logs(self, *, level: str = "info", runs: Sequence[str] | None = None, limit: int = 200) -> list[dict[str, Any]]:
        """Lines that runs have logged, or that these have, the newest first. Raises NetworkError, Refused."""
        wanted: dict[str, Any] = {"level": {"ge_": LEVELS[level]}}
        if runs is not None:
            wanted["flow_run_id"] = {"any_": list(runs)}
        asked = {"logs": wanted, "sort": "TIMESTAMP_DESC", "limit": min(limit, 200)}
        by_level = {v: k for k, v in LEVELS.items()}
        return _understood(lambda: [
            {
                "at": one["timestamp"], "level": by_level.get(one["level"] // 10 * 10, "error"), "logger": one["name"],
                "message": "\n".join(map(names.display, one["message"].splitlines())), "flow_run_id": one.get("flow_run_id"),
            }
            for one in self.api.call("/logs/filter", asked)
        ])  # fmt: skip

    def tasks(self, flow_run: str) -> list[dict[str, Any]]:
        """The tasks of a run: id, name, state, when each began and ended. Raises NetworkError, Refused."""
        asked = {"flow_runs": {"id": {"any_": [flow_run]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        return _understood(lambda: [
            {
                "id": str(t["id"]), "name": str(t["name"]), "state": t.get("state_name"),
                "began": _moment(t["start_time"]) if t.get("start_time") else None,
                "ended": _moment(t["end_time"]) if t.get("end_time") else None,
            }
            for t in self.api.call("/task_runs/filter", asked)
        ])  # fmt: skip

    def trouble(self) -> str | None:
        """Why what is shown may be old; None if it is not."""
        try:
            self._deployments.get()
        except OnblockError as error:
            return error.what
        return self._deployments.stale() or self._devices.stale()


def _understood(ask: Callable[[], T]) -> T:
    """What is asked of a server and read; what is no answer of Prefect's is a failure of ours."""
    try:
        return ask()
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UnknownError(
            "the Prefect server's answer is not understood", remedy="see PREFECT_API_URL, and its version"
        ) from error


def _sure(ask: Callable[[], T]) -> Callable[[], T]:
    """The same, where a refusal is one, too."""

    def asked() -> T:
        try:
            return _understood(ask)
        except Refused as error:
            raise UnknownError("the Prefect server refuses to tell; the console's log says why", remedy="") from error

    return asked


def _moment(at: str) -> datetime:
    return datetime.fromisoformat(at)


def _schedule(entry: dict[str, Any]) -> str:
    """A schedule in words."""
    told = entry.get("schedule") or {}
    for kind in ("cron", "rrule"):
        if kind in told:
            return f"{told[kind]} {told.get('timezone') or 'UTC'}"
    return f"every {told['interval']:g} s" if "interval" in told else ""
