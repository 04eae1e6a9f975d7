"""`onblock support FILE.tar.gz`: what somebody who is to help must know of this installation, in one file, without secrets.

Looked at, not changed. What is away, or broken, is told in the bundle and is no failure. Everything in it passes `redaction.py`; here is only what is asked for.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

from blocks import names
from blocks.errors import ConfigError, OnblockError
from blocks.home import home
from blocks.storage import LocalStorage
from deployments.redaction import Redaction

END_OF_LOG = 256 << 10
"""Bytes of each log, from its end."""
LOGS = 20
"""So many logs at most, those that were written last."""
MOST = 100
"""Of runs, failures and lines of the server's log, the newest."""
PROGRAM_S = 15
"""So long a program of the system may take."""
SHOWN = frozenset({
    "PREFECT_LOGGING_LEVEL", "PREFECT_LOGGING_SERVER_LEVEL", "PREFECT_SERVER_ANALYTICS_ENABLED",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "PREFECT_MESSAGING_BROKER", "PREFECT_MESSAGING_CACHE",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING", "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL", "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL", "PREFECT_WORKER_QUERY_SECONDS",
    "PREFECT_WORKER_HEARTBEAT_SECONDS", "PREFECT_WORKER_PREFETCH_SECONDS", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
    "PREFECT_API_REQUEST_TIMEOUT", "PREFECT_SERVER_API_PORT", "PREFECT_SERVER_DATABASE_POOL_SIZE", "ONBLOCK_DEBUG",
})  # fmt: skip
"""Settings whose values are told. Of all others their names are."""
COUNTED = (
    "scanned",
    "delivered",
    "adopted",
    "duplicates",
    "deferred",
    "failed",
    "blocked",
    "settling",
    "bytes",
    "seconds",
)
"""What is told of a run's summary."""


class Packed(NamedTuple):
    """A bundle that was written: where, how large, what is in it, and what could not be had."""

    file: Path
    bytes: int
    parts: list[str]
    notes: list[str]


class Bundle:
    """What is collected. Parts are texts; `notes` say what is missing, and why."""

    def __init__(self, job_file: Path | None = None):
        self.redaction, self.job_file = Redaction(), job_file
        self.parts: dict[str, str] = {}
        self.notes: list[str] = []
        with contextlib.suppress(OSError):
            self.redaction.never((home() / "console" / "admin.token").read_text().strip())

    def collect(self) -> None:
        """All of it. What fails leaves a note."""
        for name, ask in SECTIONS.items():
            began = time.monotonic()
            try:
                found = ask(self)
            except Exception as error:  # noqa: BLE001 - it is asked for where things are broken, in ways unheard of
                self.note(name, error)
                continue
            if found is not None:
                self.parts[f"{name}.json"] = json.dumps(
                    {"seconds": round(time.monotonic() - began, 2), **found}, indent=1
                )
        # names are known by now: what was written earlier is written with them
        self.parts = {name: _redacted(self.redaction, name, text) for name, text in self.parts.items()}
        self.notes = [self.redaction.text(note) for note in self.notes]
        self.parts["README.txt"] = _ABOUT + "".join(f"- {note}\n" for note in self.notes or ["nothing is missing"])

    def note(self, part: str, error: Exception | str) -> None:
        """Something is not in it."""
        said = error.what if isinstance(error, OnblockError) else error
        if isinstance(said, Exception):
            said = f"{type(said).__name__}: {said}"
        self.notes.append(f"{part}: {' '.join(said.split())}")

    def pack(self, file: Path) -> int:
        """Write it, under its name only when it is whole, never over something; its size. Raises ConfigError, OnblockError."""
        if leaking := [n for n, text in self.parts.items() if self.redaction.leaks(text)]:
            raise ConfigError(f"{', '.join(leaking)}: a secret was left in it, so nothing is written; that is a defect")
        data, now = io.BytesIO(), int(time.time())
        top = file.name.partition(".")[0] or "support"
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            for name, text in sorted(self.parts.items()):
                content = text.encode("utf-8", "backslashreplace")
                member = tarfile.TarInfo(f"{top}/{name}")
                member.size, member.mtime, member.mode = len(content), now, 0o600
                tar.addfile(member, io.BytesIO(content))
        whole = data.getvalue()
        with LocalStorage(root=str(file.parent)).open() as session:
            upload = session.upload(file.name, len(whole), key="support")
            try:
                upload.write(memoryview(whole))
                upload.commit()
            except BaseException:
                upload.abort()
                raise
        return len(whole)


def support(file: Path, job_file: Path | None = None) -> Packed:
    """Collect, and write. Raises ConfigError where the file is there already, or cannot be written."""
    file = file.absolute()
    if os.path.lexists(file):
        raise ConfigError("is there already, and is not written over", path=str(file), remedy="give it another name")
    if not file.parent.is_dir():
        raise ConfigError("is no folder", path=str(file.parent), remedy="make it first")
    bundle = Bundle(job_file)
    bundle.collect()
    size = bundle.pack(file)
    return Packed(file, size, sorted(bundle.parts), bundle.notes)


def _redacted(redaction: Redaction, name: str, text: str) -> str:
    if not name.endswith(".json"):
        return redaction.text(text) + "\n"
    return json.dumps(redaction.value(json.loads(text)), indent=1, ensure_ascii=False) + "\n"


# -- what is asked ------------------------------------------------------------------------------------------------------


def _versions(bundle: Bundle) -> dict[str, Any]:
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    bundle.redaction.allow([*found, *found.values()])
    told = f"{platform.system()} {platform.release()}", platform.machine(), platform.python_version()
    bundle.redaction.allow(word for one in told for word in one.split())
    with contextlib.suppress(OSError):
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
        bundle.redaction.allow(system.split())
        told = (*told, system)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": told,
        "packages": dict(sorted(found.items())),
    }


def _settings(bundle: Bundle) -> dict[str, Any]:
    """Names of all that are set; values of those that are allowed."""
    from prefect.settings import get_current_settings

    found = {k: v for k, v in os.environ.items() if k.startswith(("PREFECT_", "ONBLOCK_"))}
    found |= get_current_settings().to_environment_variables(exclude_unset=True)  # those of profiles and files, too
    bundle.redaction.learn({k: v for k, v in found.items() if k not in SHOWN})
    return {name: value if name in SHOWN else "(set)" for name, value in sorted(found.items())}


def _machine(bundle: Bundle) -> dict[str, Any]:
    wanted = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    lines = (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
    disks = {}
    for what, folder in (("ONBLOCK_HOME", home()), ("temporary", Path("/tmp")), ("root", Path("/"))):
        there = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
        usage = shutil.disk_usage(there)
        st = os.statvfs(there)
        disks[what] = {"total": usage.total, "free": usage.free, "inodes": st.f_files, "inodes_free": st.f_ffree}
    return {
        "cpus": os.cpu_count(), "load": os.getloadavg(), "memory_kB": {k: int(v.split()[0]) for k, _, v in lines if k in wanted},
        "up_s": int(float(Path("/proc/uptime").read_text().split()[0])), "disks": disks, "root": os.geteuid() == 0,
        "descriptors": dict(zip(("soft", "hard"), _descriptors(), strict=True)),
        "clock": _said(["timedatectl", "show", "-p", "NTPSynchronized", "-p", "Timezone"]),
    }  # fmt: skip


def _descriptors() -> tuple[int, int]:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)


def _doctor(bundle: Bundle) -> dict[str, Any]:
    from deployments.doctor import examine

    return {"checks": [check._asdict() for check in examine(bundle.job_file)]}


def _job(bundle: Bundle) -> dict[str, Any] | None:
    """The job as it is understood, without what a storage keeps to itself."""
    if bundle.job_file is None:
        return None
    from flows.transfer.job import load_job

    job = load_job(bundle.job_file)
    bundle.redaction.allow([job.name, job.device])
    places = {"source": job.source, **{f"destinations.{n}": d for n, d in enumerate(job.destinations)}}
    storages = {}
    for where, storage in places.items():
        told = {k: v for k, v in storage.model_dump(mode="json").items() if isinstance(v, bool | int | float)}
        given = sorted(k for k in storage.model_fields_set if not k.startswith("_"))
        storages[where] = {"type": storage._block_type_slug, "keys": given, **told}
    rest = job.model_dump(mode="json", exclude={"source", "destination", "destinations", "more_destinations"})
    return {"job": rest, "storages": storages}


def _ledger(bundle: Bundle) -> dict[str, Any]:
    """What is in which state, the last runs, and what is wrong. Its tables stay as they are."""
    from sqlalchemy import text
    from sqlalchemy.engine import make_url

    from flows.ledger.database import told
    from flows.ledger.listing import Listing, Wanted
    from flows.ledger.states import State
    from flows.ledger.store import default_url, engine_of

    bundle.redaction.never(make_url(default_url()).password)
    engine = engine_of(default_url(), create=False)
    try:
        listing = Listing(engine)
        listing.patience_s = 0.0
        with told(), engine.connect() as c:
            revision = c.execute(text("SELECT version_num FROM alembic_version")).scalar()
        bundle.redaction.allow([revision])
        routes = listing.routes()
        bundle.redaction.allow([*(job for job, _ in routes), *(d.partition(":")[0] for _, d in routes)])
        wrong = listing.page(
            Wanted(states=frozenset({State.FAILED, State.QUARANTINED, State.BLOCKED})), limit=MOST
        ).rows
        waits = listing.page(Wanted(states=frozenset({State.QUEUED})), limit=MOST).rows
        runs = listing.last_runs(MOST)
        bundle.redaction.allow(v for r in [*runs, *wrong, *waits] for v in (r["flight"], r["device"], r.get("job")))
        bundle.redaction.allow(v for r in runs for v in (r["id"], r["flow_run_id"]))
        return {
            "database": engine.dialect.name, "revision": revision,
            "counts": [{"job": j, "state": s.value, "files": n} for (j, s), n in sorted(listing.counts().items())],
            "waiting": [w._asdict() for w in listing.waiting()],
            "runs": [_run(r) for r in runs], "wrong": [_row(r) for r in wrong],
            "put_off": [_row(r) for r in waits if r["next_attempt_at"] is not None],
        }  # fmt: skip
    finally:
        engine.dispose()


def _run(run: dict[str, Any]) -> dict[str, Any]:
    summary = json.loads(run["summary"] or "{}")
    told = {k: summary[k] for k in COUNTED if isinstance(summary.get(k), int | float)}
    kept = ("id", "job", "flight", "device", "flow_run_id", "started_at", "heartbeat_at", "ended_at", "well")
    return {k: run[k] for k in kept} | told | {"problems": (summary.get("problems") or [])[:10]}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    kept = (
        "id", "job", "path", "size", "state", "kind", "stage", "message", "findings", "attempt", "tries", "bytes_done",
        "next_attempt_at", "flight", "device", "queued_at", "updated_at",
    )  # fmt: skip
    return {k: row[k] for k in kept} | {"path": names.display(row["path"])}


def _prefect(bundle: Bundle) -> dict[str, Any]:
    """What the server has and does; of blocks their types and names, never what is in them."""
    from prefect.settings import get_current_settings

    from deployments.console.prefect_api import PrefectApi
    from flows.starts import pages

    if not get_current_settings().api.url:
        raise ConfigError("PREFECT_API_URL is not set")
    api = PrefectApi.of_the_environment()
    try:
        pools = pages(api.call, "/work_pools/filter", {})
        deployments = pages(api.call, "/deployments/filter", {})
        flows = {f["id"]: f["name"] for f in pages(api.call, "/flows/filter", {})}
        blocks = sorted(
            {(b["block_type"]["slug"], b["name"]) for b in pages(api.call, "/block_documents/filter", {}) if b["name"]}
        )
        limits = pages(api.call, "/concurrency_limits/filter", {})
        automations = pages(api.call, "/automations/filter", {})
        since = (datetime.now(UTC) - timedelta(days=1)).isoformat()
        recent = {"flow_runs": {"expected_start_time": {"after_": since}}}
        states = {
            s: api.call("/flow_runs/count", {"flow_runs": {**recent["flow_runs"], "state": {"type": {"any_": [s]}}}})
            for s in _STATES
        }
        runs = api.call("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": MOST, **recent})
        logs = api.call("/logs/filter", {"logs": {"level": {"ge_": 30}}, "sort": "TIMESTAMP_DESC", "limit": MOST})
        workers = {p["name"]: api.call(f"/work_pools/{p['name']}/workers/filter", {"limit": 50}) for p in pools}
    finally:
        api.close()
    by_id = {d["id"]: f"{flows.get(d['flow_id'], '')}/{d['name']}" for d in deployments}
    bundle.redaction.allow([*flows.values(), *(d["name"] for d in deployments), *(p["name"] for p in pools)])
    bundle.redaction.allow(
        [*(x for b in blocks for x in b), *(t for one in limits for t in (one["tag"], *one["tag"].split(":")))]
    )
    bundle.redaction.allow(
        [*by_id, *(r["id"] for r in runs), *(t.rpartition("device:")[2] for t in (x["tag"] for x in limits))]
    )
    return {
        "pools": [{k: p.get(k) for k in ("name", "type", "is_paused", "concurrency_limit", "status")} for p in pools],
        "workers": {n: [{k: w.get(k) for k in ("status", "last_heartbeat_time")} for w in ws] for n, ws in workers.items()},
        "deployments": [{"name": by_id[d["id"]], "paused": d.get("paused"), "pool": d.get("work_pool_name")} for d in deployments],
        "limits": [{"tag": x["tag"], "limit": x["concurrency_limit"], "held": len(x.get("active_slots") or ())} for x in limits],
        "automations": [{"name": a["name"], "enabled": a["enabled"], "starts_by": a["trigger"].get("expect")} for a in automations],
        "blocks": [f"{kind}/{name}" for kind, name in blocks],
        "runs_by_state": states,
        "runs": [_flow_run(r, by_id) for r in runs],
        "log": [{"at": one["timestamp"], "level": one["level"], "logger": one["name"], "run": one.get("flow_run_id"), "said": one["message"]} for one in logs],
    }  # fmt: skip


_STATES = ("SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED", "CANCELLING", "PAUSED")


def _flow_run(run: dict[str, Any], deployments: dict[str, str]) -> dict[str, Any]:
    kept = ("id", "expected_start_time", "start_time", "end_time", "run_count", "state_name", "work_pool_name")
    state = run.get("state") or {}
    told = {"deployment": deployments.get(run.get("deployment_id") or ""), "said": state.get("message")}
    return {k: run.get(k) for k in kept} | told


def _systemd(bundle: Bundle) -> dict[str, Any] | None:
    if not Path("/run/systemd/system").is_dir():
        bundle.note("systemd", "does not run here")
        return None
    kept = [
        "Id",
        "ActiveState",
        "SubState",
        "Result",
        "NRestarts",
        "MemoryCurrent",
        "ExecMainStatus",
        "ActiveEnterTimestamp",
    ]
    units = _said(["systemctl", "show", "onblock*", "--all", *(f"-p{k}" for k in kept)])
    journal = _said(["journalctl", "--no-pager", "-q", "-n", "1000", "-u", "onblock*"])
    if journal:
        bundle.parts["logs/journal.log"] = journal[-END_OF_LOG:]
    return {"units": units.split("\n\n") if units else []}


def _logs(bundle: Bundle) -> None:
    """The ends of what is written to `logs/`. Those named alike are numbered."""
    folder = home() / "logs"
    if not folder.is_dir():
        bundle.note("logs", "there are none in ONBLOCK_HOME/logs")
        return
    files = sorted((f for f in folder.iterdir() if f.is_file()), key=lambda f: f.stat().st_mtime, reverse=True)
    if len(files) > LOGS:
        bundle.note("logs", f"{len(files) - LOGS} older ones are left out")
    for number, file in enumerate(files[:LOGS]):
        try:
            with file.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - END_OF_LOG))
                end = log.read(END_OF_LOG).decode("utf-8", "backslashreplace")
        except OSError as error:
            bundle.note(f"logs/{file.name}", error)
            continue
        told = file.stem if file.stem in ("server", "console", "worker", "services", "agent") else f"{number}"
        whole = size <= END_OF_LOG
        bundle.parts[f"logs/{told}.log"] = end if whole else end.partition("\n")[2]  # the first line may be half of one


def _said(argv: list[str]) -> str:
    """What a program of the system prints; nothing where there is none."""
    if shutil.which(argv[0]) is None:
        return ""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="backslashreplace", timeout=PROGRAM_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


SECTIONS: dict[str, Callable[[Bundle], dict[str, Any] | None]] = {
    "versions": _versions, "settings": _settings, "machine": _machine, "job": _job, "ledger": _ledger, "prefect": _prefect,
    "doctor": _doctor, "systemd": _systemd, "logs": _logs,
}  # fmt: skip
"""What is asked, in this order: logs and findings are written with the names that the others bring."""

_ABOUT = """A support bundle of onblock, as `onblock support` makes it.

It holds versions, settings by name, what `onblock doctor` finds, counts, runs and failures of the ledger, what the Prefect
server has and does, the machine, and the ends of logs. Every word that is not in the source of onblock, of Prefect or of
what they stand on, and is no name of a job, device, flight, pool, block or run, is a mark such as [3f2a91]: the same mark
is the same word. Numbers and addresses are as they are. Look through it before you give it away.

Not in it, and why:
"""
