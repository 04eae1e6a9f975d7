"""Many devices whose flights end within some minutes, against the real thing: `onblock up` with Prefect and the ledger on
PostgreSQL, the console that takes the webhooks, two workers, limits. What the server, the ledger and the queue do
meanwhile is looked at every two seconds; in the end everything must lie where it belongs, once.

    python -m tests.benchmarks.run --only fleet --devices 1000 --within 600

A device is a folder with a card's files and a job of its own; its flight ends at a moment that a seeded dice has chosen.
Processor seconds are of all processes of a part, with those that have ended.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from tests.benchmarks.latency import _free, _there, _until
from tests.benchmarks.measure import BenchError, end
from tests.benchmarks.scenarios import KIB, Bench
from tests.benchmarks.tools import REPOSITORY
from tests.servers.base import family

SMALL, LARGE = 20, 2
"""Files of a flight: of 64 KiB, and of 4 MiB."""
WORKERS, AT_ONCE = 2, 4
"""Workers, and the limit of their pool: so many runs at a time."""
SENDERS = 32
EVERY_S = 2.0
PATIENCE_S = 3600.0
"""So long after the last flight end all must be delivered."""
OPEN = ("Scheduled", "Late", "Pending", "Submitting", "Running", "AwaitingRetry")
PARTS = ("server", "PostgreSQL", "console", "workers", "runs")


class Fleet:
    """One simulation."""

    def __init__(self, bench: Bench, url: str):
        self.bench, self.tools = bench, bench.tools
        self.devices = [f"dev-{n:04}" for n in range(bench.devices)]
        self.cards, self.archive = self.tools.fresh("cards"), self.tools.fresh("archive")
        self.ports = [_free() for _ in range(2)]
        self.database = url
        for name in ("prefect", "ledger"):
            _sql(url, f"CREATE DATABASE {name}")
        self.prefect, self.ledger = (url.rpartition("/")[0] + f"/{name}" for name in ("prefect", "ledger"))
        self.env = {
            **self.tools.env, "ONBLOCK_HOME": str(self.tools.fresh("home")), "ONBLOCK_LEDGER_URL": self.ledger,
            "PREFECT_API_URL": f"http://127.0.0.1:{self.ports[0]}/api", "PYTHONPATH": str(REPOSITORY),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.prefect.replace("+psycopg", "+asyncpg"),
        }  # fmt: skip
        self.env.pop("PREFECT_HOME", None)
        self.sent: dict[str, float] = {}  # by device: when its flight ended
        self.latencies: list[float] = []
        self.errors: Counter[str] = Counter()
        self.seen: list[dict[str, Any]] = []

    def jobs(self) -> list[str]:
        """The devices' cards, and a job for each."""
        dice, old = random.Random(8), time.time() - 3600
        small, large = dice.randbytes(64 * KIB), dice.randbytes(4096 * KIB)
        files = []
        for number, device in enumerate(self.devices):
            card = self.cards / device / "DCIM"
            card.mkdir(parents=True)
            for n in range(SMALL + LARGE):
                path = card / (f"IMG_{n:04}.JPG" if n < SMALL else f"CLIP_{n:04}.MP4")
                path.write_bytes(number.to_bytes(4, "big") + (small if n < SMALL else large))
                os.utime(path, (old, old))
            job = self.cards / f"{device}.yaml"
            job.write_text(json.dumps({
                "name": f"job-{device}", "device": device, "path": "{flight}/{device}/{path}", "settle": {"quiet": "0s"},
                "source": {"type": "local-storage", "root": str(self.cards / device)},
                "destination": {"type": "local-storage", "root": str(self.archive), "create_root": True},
            }))  # fmt: skip
            files.append(str(job))
        return files

    # -- flights end ----------------------------------------------------------------------------------------------------

    def fly(self, secret: str) -> None:
        """Send the webhooks at their moments; each until it is taken."""
        dice = random.Random(1000)
        moments = sorted((dice.uniform(0, self.bench.within_s), device) for device in self.devices)
        began = time.monotonic()
        with ThreadPoolExecutor(SENDERS) as senders:
            for at, device in moments:
                time.sleep(max(0.0, began + at - time.monotonic()))
                senders.submit(self._tell, secret, device)

    def _tell(self, secret: str, device: str) -> None:
        from deployments.console.webhooks import sign

        self.sent[device] = time.time()
        body = json.dumps({"flight": f"F-{device}", "device": device}).encode()
        while True:
            stamp = str(int(time.time()))
            head = {"X-Onblock-Sender": "bench", "X-Onblock-Timestamp": stamp, "X-Onblock-Signature": sign(secret, stamp, body)}  # fmt: skip
            request = urllib.request.Request(f"http://127.0.0.1:{self.ports[1]}/hooks/flight-end", body, head)
            began = time.monotonic()
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    self.latencies.append(time.monotonic() - began)
                    if answer.status not in (200, 202):
                        self.errors[f"webhook {answer.status}"] += 1
                    return
            except urllib.error.HTTPError as error:
                self.errors[f"webhook {error.code}"] += 1
            except OSError as error:
                self.errors[f"webhook {type(error).__name__}"] += 1
            time.sleep(5)

    # -- what is seen ---------------------------------------------------------------------------------------------------

    def look(self, pids: dict[str, list[int]], began: float) -> dict[str, Any]:
        """Runs by state, rows by state, processor seconds and memory by part."""
        runs = dict(_sql(self.prefect, "SELECT state_name, count(*) FROM flow_run WHERE NOT auto_scheduled GROUP BY 1"))
        rows = dict(_sql(self.ledger, "SELECT state, count(*) FROM files GROUP BY 1"))
        flights = _sql(self.ledger, "SELECT count(DISTINCT flight) FROM files WHERE state = 'VERIFIED'")[0][0]
        held = _sql(self.database, "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle'")[0][0]
        cpu, rss = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0)
        for part, roots in pids.items():
            for root in roots:
                for pid, _ in family(root):
                    where, seconds, size = _process(pid, part)
                    cpu[where] += seconds
                    rss[where] += size
        return {
            "at": time.time() - began, "ended": len(self.sent), "runs": runs, "rows": rows, "flights": flights, "busy": held,
            "cpu": cpu, "rss": rss,
        }  # fmt: skip


def fleet(bench: Bench) -> None:
    """A server, workers, a console; then the flights."""
    from tests.servers.postgres import Postgres, installed

    if not installed():
        raise BenchError("PostgreSQL is not installed: python -m tests.servers.install")
    state = bench.tools.fresh("postgres")
    state.parent.chmod(0o755)
    with Postgres(state, durable="yes") as database:
        simulated = Fleet(bench, database.info["url"])
        jobs = simulated.jobs()
        onblock, env = [sys.executable, "-P", "-m", "deployments.cli"], simulated.env
        started: list[subprocess.Popen[bytes]] = []
        log = bench.tools.log("up").with_suffix(".out")
        try:
            began = time.monotonic()
            with log.open("wb") as out:
                ports = ["--port", str(simulated.ports[0]), "--console-port", str(simulated.ports[1])]
                started.append(_start([*onblock, "up", *jobs, *ports], env, out))
                health = f"http://127.0.0.1:{simulated.ports[1]}/health"
                _until("onblock up", lambda: _there(health), started[0], 180 + 10 * len(jobs))
                bench.tell(f"fleet: {len(jobs)} jobs are deployed, after {time.monotonic() - began:.0f} s")
                bench.claim(f"(fleet) seconds until `onblock up` has deployed {len(jobs)} jobs", f"{time.monotonic() - began:.0f} s", None, True)  # fmt: skip
                _limit_pool(simulated.env["PREFECT_API_URL"])
                for _ in range(WORKERS - 1):
                    started.append(_start([sys.executable, "-P", "-m", "deployments.worker", "onblock"], env, out))
                made = subprocess.run([*onblock, "hook", "sender", "bench"], env=env, cwd=REPOSITORY, capture_output=True, text=True, check=True)  # fmt: skip
                time.sleep(10)  # imports of the workers
                _watched(simulated, started, database.process.pid, made.stdout.strip())  # type: ignore[union-attr]
        finally:
            for process in reversed(started):
                end(process, 60)
            said = log.read_bytes()
            bench.pictures.append(lambda out: (out / "fleet-up.log").write_bytes(said) and None)
        _tell(bench, simulated)


def _watched(simulated: Fleet, started: list[subprocess.Popen[bytes]], postgres: int, secret: str) -> None:
    """From before the first flight to after the last delivery."""
    bench, wanted = simulated.bench, len(simulated.devices)
    pids = {"workers": [p.pid for p in started], "PostgreSQL": [postgres]}
    began = time.time()
    simulated.seen.append(simulated.look(pids, began))
    flying = threading.Thread(target=simulated.fly, args=(secret,), daemon=True)
    flying.start()
    told = 0.0
    while True:
        time.sleep(EVERY_S)
        seen = simulated.look(pids, began)
        simulated.seen.append(seen)
        still = sum(seen["runs"].get(name, 0) for name in OPEN)
        if time.time() - told > 30:
            told = time.time()
            bench.tell(
                f"fleet: {seen['at']:.0f} s: {seen['ended']} flights ended, {seen['flights']} delivered, {seen['runs']}"
            )
        if not flying.is_alive() and len(simulated.latencies) == wanted and not still:
            return
        if seen["at"] > bench.within_s + PATIENCE_S or any(p.poll() is not None for p in started):
            raise BenchError(
                f"fleet: {still} runs are open after {seen['at']:.0f} s, or something ended: {seen['runs']}"
            )


def _tell(bench: Bench, simulated: Fleet) -> None:
    devices, files, seen = len(simulated.devices), SMALL + LARGE, simulated.seen
    first, last = seen[0], seen[-1]
    name = f"(fleet) {devices} flights in {bench.within_s:.0f} s"
    took = simulated.latencies
    bench.claim(f"{name}: webhook answered, median, 99 of 100, longest", f"{median(took):.2f} s, {_part(took, 99):.2f} s, {max(took):.2f} s", None, True)  # fmt: skip
    bench.claim(f"{name}: webhooks refused or broken off", str(simulated.errors.total()) + "".join(f"; {n} x {e}" for e, n in simulated.errors.items()), "0", not simulated.errors)  # fmt: skip
    done = dict(_done_at(simulated))
    waits = [done[f"F-{d}"] / 1000 - simulated.sent[d] for d in simulated.devices if f"F-{d}" in done]
    bench.claim(f"{name}: flight end to its last file verified, median, 95 of 100, longest", f"{median(waits):.0f} s, {_part(waits, 95):.0f} s, {max(waits):.0f} s", None, True)  # fmt: skip
    delivered = [(s["at"], s["flights"]) for s in seen]
    low, high = (next(at for at, n in delivered if n >= devices * share) for share in (0.1, 0.9))
    bench.claim(f"{name}: flights delivered a minute, from the first tenth to the last", f"{60 * 0.8 * devices / max(high - low, EVERY_S):.1f}", None, True)  # fmt: skip
    backlog = max(sum(s["runs"].get(n, 0) for n in OPEN) for s in seen)
    late = max(s["runs"].get("Late", 0) for s in seen)
    bench.claim(f"{name}: most runs open, most of them late", f"{backlog}, {late}", None, True)
    runs = sum(last["runs"].values()) - sum(first["runs"].values())
    for part in PARTS:
        spent = last["cpu"][part] - first["cpu"][part]
        bench.claim(f"{name}: processor time of {part} for each run; most memory (RSS)", f"{spent / runs:.2f} s; {max(s['rss'][part] for s in seen) / 1e6:.0f} MB", None, True)  # fmt: skip
    bench.claim(f"{name}: runs, and how they ended", f"{runs}: {last['runs']}", None, True)
    bad = {k: v for k, v in last["runs"].items() if k in ("Failed", "Crashed", "Cancelled")}
    for state, count, said in _sql(simulated.prefect, _WHY):
        bench.claim(f"{name}: a run ended {state}, in its attempt {count}", str(said)[:200], None, True)
    bench.claim(f"{name}: runs that failed or crashed", str(sum(bad.values())), "0", not bad)
    there = sum(1 for d in simulated.devices for f in (simulated.archive / f"F-{d}" / d / "DCIM").glob("*") if f.suffix in (".JPG", ".MP4"))  # fmt: skip
    rows = last["rows"]
    whole = there == devices * files and rows == {"VERIFIED": devices * files}
    bench.claim(f"{name}: files at the destination; rows of the ledger", f"{there:,} of {devices * files:,}; {rows}", "all, once", whole)  # fmt: skip
    bench.pictures.append(lambda out: _picture(out, seen, name))
    if not whole:
        raise BenchError(f"{there} of {devices * files} files are there: {rows}")


_WHY = """SELECT r.state_name, r.run_count, s.message FROM flow_run r JOIN flow_run_state s ON s.id = r.state_id
    WHERE NOT r.auto_scheduled AND r.state_name <> 'Completed' LIMIT 20"""


def _done_at(simulated: Fleet) -> list[tuple[str, int]]:
    return _sql(simulated.ledger, "SELECT flight, max(done_at) FROM files GROUP BY 1")


def _part(values: list[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def _picture(out: Path, seen: list[dict[str, Any]], title: str) -> None:
    """Runs by state, flights ended and delivered, processors by part; over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    (out / "fleet.json").write_text(json.dumps(seen))
    at = [s["at"] for s in seen]
    figure, axes = plt.subplots(3, 1, figsize=(8, 8), sharex=True, layout="constrained")
    axes[0].plot(at, [s["ended"] for s in seen], label="flights ended", color="#9a9a9a")
    axes[0].plot(at, [s["flights"] for s in seen], label="flights with files delivered", color="#1f6fb4")
    for name, color in (("Scheduled", "#d98c2b"), ("Late", "#b4401f"), ("Running", "#5a9a57"), ("Pending", "#7fb2dc")):
        axes[1].plot(at, [s["runs"].get(name, 0) for s in seen], label=name, color=color)
    axes[1].set_ylabel("flow runs")
    for part, color in zip(PARTS, ("#1f6fb4", "#5a9a57", "#9a9a9a", "#d98c2b", "#b4401f"), strict=True):
        spent = [s["cpu"][part] for s in seen]
        width = 10  # samples
        rate = [
            (spent[i] - spent[max(0, i - width)]) / max(at[i] - at[max(0, i - width)], EVERY_S) for i in range(len(at))
        ]
        axes[2].plot(at, rate, label=part, color=color)
    axes[2].set_ylabel("processors in use")
    axes[2].set_xlabel("seconds since the first look")
    for axis in axes:
        axis.legend(fontsize=8, loc="upper right")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(out / "fleet.png", dpi=70)
    plt.close(figure)


def _start(argv: list[str], env: dict[str, str], out: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv, env=env, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
    )


def _limit_pool(api: str) -> None:
    body = json.dumps({"concurrency_limit": AT_ONCE}).encode()
    request = urllib.request.Request(
        f"{api}/work_pools/onblock", body, {"Content-Type": "application/json"}, method="PATCH"
    )
    urllib.request.urlopen(request, timeout=60).close()


def _process(pid: int, part: str) -> tuple[str, float, int]:
    """Which part a process is of, its processor seconds with those of its children that have ended, its memory."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return part, 0.0, 0
    if part != "PostgreSQL":
        if "forkserver" in argv:
            part = "runs"
        elif "deployments.console" in argv:
            part = "console"
        elif "prefect" in argv and "server" in argv:
            part = "server"
    return part, sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"), size


def _sql(url: str, statement: str) -> Any:
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as c:
        found = c.execute(statement)  # type: ignore[arg-type]
        return found.fetchall() if found.description else None


SCENARIOS: dict[str, Callable[[Bench], None]] = {"fleet": fleet}
