"""What it costs to have several processes work off one job through Prefect: three engines, the same empty shipments.

    python -m tests.benchmarks.engines [SHIPMENTS] [HANDS]

    runs        sub-runs of a deployment on Prefect's process worker (onblock's choice, `flows/transfer/hired.py`)
    background  tasks that are sent with `delay()` to processes that serve them
    dask        prefect-dask, a cluster on this machine; measured where it is installed

Not part of `make bench`: it is no figure of onblock, it is why onblock is built so. `docs/many-workers.md` has the results.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName, TaskRunFilterState, TaskRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.task_runners import ThreadPoolTaskRunner

from deployments.up import environment
from tests.benchmarks.latency import _free
from tests.servers.postgres import Postgres

WORK_S = 0.05
"""How long an empty shipment takes: it waits for a far server."""


@task(name="shipment", tags=["onblock"], persist_result=False)
def shipment(number: int) -> int:
    """What the engines carry."""
    time.sleep(WORK_S)
    return number


@flow(name="hand", task_runner=ThreadPoolTaskRunner(max_workers=2), persist_result=False)  # pyright: ignore
def hand(first: int, last: int) -> None:
    """A run that works off its share, two at a time."""
    for future in [shipment.submit(n) for n in range(first, last)]:
        future.wait()


def _runs(count: int, hands: int) -> None:
    from prefect.deployments import run_deployment

    share = count // hands
    runs: list[Any] = [
        run_deployment(
            "hand/bench", parameters={"first": n * share, "last": (n + 1) * share}, timeout=0, as_subflow=False
        )
        for n in range(hands)
    ]
    with get_client(sync_client=True) as client:
        while not all((s := client.read_flow_run(r.id).state) and s.is_final() for r in runs):
            time.sleep(0.1)


def _background(count: int, hands: int) -> None:
    for n in range(count):
        shipment.delay(n)
    done = TaskRunFilter(
        name=TaskRunFilterName(like_="shipment"),
        state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.COMPLETED])),
    )
    with get_client(sync_client=True) as client:
        while True:
            found, offset = 0, 0
            while page := client.read_task_runs(task_run_filter=done, limit=200, offset=offset):
                found += sum(r.flow_run_id is None for r in page)
                offset += len(page)
            if found >= count:
                return
            time.sleep(0.3)


def _dask(count: int, hands: int) -> None:
    from prefect_dask import DaskTaskRunner  # pyright: ignore

    runner: Any = DaskTaskRunner(cluster_kwargs={"n_workers": hands, "threads_per_worker": 2})

    @flow(name="by-dask", task_runner=runner, persist_result=False)
    def by_dask() -> None:
        for future in [shipment.submit(n) for n in range(count)]:
            future.wait()

    by_dask()


ENGINES: dict[str, Callable[[int, int], None]] = {"runs": _runs, "background": _background, "dask": _dask}


def _cpu(pids: list[int]) -> float:
    """Processor seconds of processes and what they have waited for, and of their children."""
    ticks = 0
    todo = list(pids)
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    while todo:
        pid = todo.pop()
        todo += parents.get(pid, [])
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(f) for f in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> int:
    if sys.argv[1:2] == ["serve"]:
        shipment.serve()
        return 0
    if sys.argv[1:2] == ["engine"]:
        ENGINES[sys.argv[2]](int(sys.argv[3]), int(sys.argv[4]))
        return 0
    count, hands = int(sys.argv[1]) if len(sys.argv) > 1 else 400, int(sys.argv[2]) if len(sys.argv) > 2 else 4
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # PostgreSQL is another user
        _measure(folder, count, hands)
    return 0


def _measure(folder: str, count: int, hands: int) -> None:
    with Postgres(Path(folder) / "pg") as database:
        port = _free()
        url = f"http://127.0.0.1:{port}"
        env = environment({**os.environ, "PREFECT_HOME": f"{folder}/prefect", "ONBLOCK_HOME": f"{folder}/home"},
                          "127.0.0.1", port, url)  # fmt: skip
        env |= {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": str(database.info["url"]).replace("+psycopg", "+asyncpg"),
            "PREFECT_LOGGING_LEVEL": "ERROR",
        }
        python = [sys.executable, "-m"]
        me = [*python, "tests.benchmarks.engines"]
        quiet = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        server = subprocess.Popen([*python, "prefect", "server", "start", "--port", str(port)], **quiet)
        helpers: list[subprocess.Popen[bytes]] = []
        try:
            _wait(url)
            _prepare(env, hands)
            print("engine      seconds  CPU s of workers  CPU s of the server  CPU ms a shipment")
            for name in ENGINES:
                if name == "dask" and importlib.util.find_spec("prefect_dask") is None:
                    print("dask        not installed")
                    continue
                commands = {"runs": [[*python, "deployments.worker", "bench"]], "background": [[*me, "serve"]] * hands}
                helpers = [subprocess.Popen(c, **quiet) for c in commands.get(name, [])]
                time.sleep(10)  # until they have imported what they need
                pids = [p.pid for p in helpers]
                before, spent = (_cpu([server.pid]), _cpu(pids)), os.times()
                began = time.monotonic()
                done = subprocess.run(
                    [*me, "engine", name, str(count), str(hands)],
                    env=env,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                took = time.monotonic() - began
                after, now = (_cpu([server.pid]), _cpu(pids)), os.times()
                ours = after[1] - before[1] + now.children_user + now.children_system
                ours -= spent.children_user + spent.children_system
                theirs = after[0] - before[0]
                print(f"{name:<10}  {took:7.1f}  {ours:16.1f}  {theirs:19.1f}  {1000 * (ours + theirs) / count:17.1f}"
                      + ("" if done.returncode == 0 else "   failed"), flush=True)  # fmt: skip
                for process in helpers:
                    process.terminate()
                    process.wait()
        finally:
            for process in [*helpers, server]:
                process.terminate()
                process.wait()


def _wait(url: str) -> None:
    import urllib.request

    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{url}/api/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)


def _prepare(env: dict[str, str], hands: int) -> None:
    """A pool with a deployment, and a limit that is no hindrance."""
    code = f"""
from prefect.client.orchestration import get_client
from deployments.server import Report, create_pool
from tests.benchmarks.engines import hand
with get_client(sync_client=True) as client:
    create_pool(client, Report(), "bench")
    client.create_concurrency_limit(tag="onblock", concurrency_limit={4 * hands})
    flow_id = client.create_flow_from_name("hand")
    client.create_deployment(flow_id=flow_id, name="bench", work_pool_name="bench",
        entrypoint="tests.benchmarks.engines.hand", parameter_openapi_schema={{}}, enforce_parameter_schema=False)
"""
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


if __name__ == "__main__":
    sys.exit(main())
