"""The console over a ledger of 1,000,000 rows on SQLite: how long a page and a page turn take, what the API takes under load,
and what 50 open pages cost while 4 transfers run. Times are from the request to the whole answer, over the loopback.
"""

from __future__ import annotations

import http.client
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.benchmarks.measure import BenchError, end
from tests.benchmarks.scenarios import Bench
from tests.benchmarks.tools import REPOSITORY

ROWS, JOBS = 1_000_000, 5
TURNS, OPEN, MOVING, WATCHED_S = 40, 50, 4, 30.0
PAGE_EVERY_S = 15.0
"""So often a page that is open loads its list anew (`data-every` in `transfers.html`)."""
RATE, ASKED_S = 20, 15
FIRST_LIMIT, TURN_LIMIT, API_LIMIT, CORE_LIMIT = 1.0, 0.3, 0.1, 10.0


def console(bench: Bench) -> None:
    """All of it."""
    home = bench.tools.fresh("console-home")
    home.mkdir()
    bench.tell(f"(console) a ledger of {ROWS:,} rows")
    fill(home / "ledger.db")
    with _served(bench, home) as (url, process, token):
        first = _ask(url, token, "/transfers")
        bench.at_most("(console) first Transfers page of 1,000,000 rows, console just started", first, FIRST_LIMIT, "s")
        for what, path in (
            ("the newest", "/transfers"), ("those that failed", "/transfers?state=FAILED"), ("those of a job", "/transfers?job=job-3"),
            ("a search that finds nothing", "/transfers?q=nothing-of-that-name"), ("a flight", "/transfers?flight=F0007"),
        ):  # fmt: skip
            times = sorted(_turns(url, token, path))
            bench.tell(
                f"(console) {what}: {len(times)} turns, median {statistics.median(times):.3f} s, worst {times[-1]:.3f} s"
            )
            bench.at_most(f"(console) worst page turn, {what}", times[-1], TURN_LIMIT, "s")
        times = sorted(_load(url, token))
        bench.tell(
            f"(console) API: {len(times)} lists, median {statistics.median(times):.3f} s, worst {times[-1]:.3f} s"
        )
        bench.at_most(
            f"(console) API list, 95th percentile at {RATE} requests/s", times[int(len(times) * 0.95)], API_LIMIT, "s"
        )
        percent = _watched(home / "ledger.db", url, token, process.pid)
        bench.at_most(
            f"(console) processor of {OPEN} open pages while {MOVING} transfers run", percent, CORE_LIMIT, "% of a core"
        )


def fill(file: Path) -> None:
    """A ledger as onblock makes it, with many rows of five jobs: most verified, one in a thousand failed."""
    from sqlalchemy import insert

    from flows.ledger import Ledger
    from flows.ledger.models import File
    from flows.ledger.store import now_ms

    now = now_ms()
    with Ledger.open(f"sqlite:///{file}") as ledger:
        routes = [ledger.route(f"job-{n}", "local:/archive") for n in range(JOBS)]
        for start in range(0, ROWS, 20_000):
            with ledger._write() as c:
                c.execute(insert(File), [
                    {
                        "route_id": routes[n % JOBS], "path": f"DCIM/{n // 1000:04}/GX{n:08}.MP4", "size": 5_000_000 + n, "mtime_ns": n,
                        "etag": "", "state": "FAILED" if n % 1000 == 7 else "VERIFIED", "kind": "NETWORK" if n % 1000 == 7 else None,
                        "message": None, "dest_path": f"F{n // 10_000:04}/DCIM/GX{n:08}.MP4", "sha256": f"{n:064x}", "verified_by": "checksum",
                        "bytes_done": 5_000_000 + n, "attempt": 1, "tries": 0, "priority": 0, "flight": f"F{n // 10_000:04}",
                        "device": f"cam-{n % 7}", "queued_at": now - ROWS + n, "done_at": now - ROWS + n, "updated_at": now - ROWS + n, "verify_passes": 1,
                    }
                    for n in range(start, start + 20_000)
                ])  # fmt: skip


@contextmanager
def _served(bench: Bench, home: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, **bench.tools.env, "ONBLOCK_HOME": str(home), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    env.pop("ONBLOCK_LEDGER_URL", None)
    with bench.tools.log("console").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "deployments.console", "--port", str(port)], env=env, cwd=REPOSITORY,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _there(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the console does not answer: see {log.name}")
            time.sleep(0.1)
        yield url, process, (home / "console" / "admin.token").read_text().strip()
    finally:
        end(process, 30)


def _there(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _ask(url: str, token: str, path: str) -> float:
    return _read(url, token, path)[0]


def _read(url: str, token: str, path: str) -> tuple[float, str]:
    """Seconds, and the page."""
    request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {token}"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    return time.perf_counter() - began, text


def _turns(url: str, token: str, path: str) -> Iterator[float]:
    """From a page to the older one, and on."""
    for _ in range(TURNS):
        seconds, text = _read(url, token, path)
        yield seconds
        _, found, rest = text.partition('id="older" href="')
        if not found:
            return
        path = rest.partition('"')[0].replace("&amp;", "&")


def _load(url: str, token: str) -> list[float]:
    """Seconds of requests that come at a rate, whether those before are answered or not."""
    times: list[float] = []
    threads: list[threading.Thread] = []
    began = time.monotonic()
    for n in range(RATE * ASKED_S):
        time.sleep(max(0.0, began + n / RATE - time.monotonic()))
        path = f"/api/v1/transfers?limit=50&cursor={ROWS - n * 997}" + ("&state=VERIFIED" if n % 2 else "")
        thread = threading.Thread(target=lambda p=path: times.append(_ask(url, token, p)))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    return times


def _watched(file: Path, url: str, token: str, pid: int) -> float:
    """Percent of a core that the console takes."""
    import psutil

    from blocks.storage.base import FileInfo
    from flows.ledger import Ledger
    from flows.ledger.store import NewFile

    stop = threading.Event()
    pages = [threading.Thread(target=_page, args=(url, token, n, stop), daemon=True) for n in range(OPEN)]
    with Ledger.open(f"sqlite:///{file}") as ledger:
        run, route = ledger.begin_run("job-0", flight=None, device=None), ledger.route("job-0", "local:/archive")
        files = [NewFile(route, FileInfo(f"now-{n}.mp4", 10**12, n, ""), f"now-{n}.mp4", None) for n in range(MOVING)]
        claims = ledger.claim(run, [e.id for e in ledger.enter(run, files, flight=None, device=None)])
        for page in pages:
            page.start()
        console, done = psutil.Process(pid), 0

        def move(seconds: float) -> None:
            nonlocal done
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                done += 1
                for claim in claims.values():
                    ledger.note(claim, done * 10_000_000, "{}")
                time.sleep(1)

        move(5)  # all pages are open then
        before, began = console.cpu_times(), time.monotonic()
        move(WATCHED_S)
        after, seconds = console.cpu_times(), time.monotonic() - began
        stop.set()
        ledger.end_run(run, {})  # which is told to all pages: those who listen hear that it is over
        for page in pages:
            page.join(PAGE_EVERY_S)
    return 100 * (after.user + after.system - before.user - before.system) / seconds


def _page(url: str, token: str, number: int, stop: threading.Event) -> None:
    """What an open page does: it listens, and loads its list anew now and then."""
    where = urlsplit(url)
    stream = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    stream.request("GET", "/api/v1/stream", headers={"Authorization": f"Bearer {token}"})
    answer = stream.getresponse()

    def listen() -> None:
        while not stop.is_set() and answer.read1(65536):
            pass
        stream.close()

    threading.Thread(target=listen, daemon=True).start()
    stop.wait(PAGE_EVERY_S * number / OPEN)
    while not stop.is_set():
        _ask(url, token, "/transfers")
        stop.wait(PAGE_EVERY_S)


SCENARIOS: dict[str, Callable[[Bench], None]] = {"console": console}
