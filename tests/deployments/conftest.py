"""One real Prefect server for these tests, in a process and a home of its own, and workers where a test asks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, PREFECT_HOME, temporary_settings

from deployments.up import environment

T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PATIENCE_S = 180.0
"""Seconds that anything may take here: where its SQLite is locked, Prefect's server stands still for a minute."""


def until(what: str, look: Callable[[], T], seconds: float = PATIENCE_S, *, told: Callable[[], str] = lambda: "") -> T:
    """The first true answer of `look`; fails the test when there is none in time, with what `told` says then."""
    seconds = max(seconds, PATIENCE_S)
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}\n{told()}")
        time.sleep(0.1)
    return answer


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def end(process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, prefect_database: str) -> Iterator[tuple[str, Path]]:
    """The address of a Prefect server, set up as `onblock up` does it, and its PREFECT_HOME. Its database is PostgreSQL:
    on SQLite, which `test_up` and `test_demo` use, it stands still for a minute now and then."""
    port, folder = free_port(), tmp_path_factory.mktemp("prefect")
    url = f"http://127.0.0.1:{port}"
    given = {**os.environ, "PREFECT_HOME": str(folder), "ONBLOCK_HOME": str(folder / "onblock")}
    settings = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect_database}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment(given, "127.0.0.1", port, url) | settings,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until("a Prefect server that answers", lambda: process.poll() is not None or answers(url), 120)
        assert process.poll() is None, (folder / "server.log").read_text()
        yield url, folder
    finally:
        end(process)


@pytest.fixture
def api(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """PREFECT_API_URL, set for this test and what it starts."""
    url, folder = f"{server[0]}/api", server[1]
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv("PREFECT_HOME", str(folder))
    monkeypatch.setenv("PREFECT_API_REQUEST_TIMEOUT", str(PATIENCE_S))
    with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: folder, PREFECT_API_REQUEST_TIMEOUT: PATIENCE_S}):
        yield url


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., Path]:
    """Writes a JOB.yaml from `card` to `archive` of the test's folder; keywords are further keys."""

    def write(name: str, **keys: object) -> Path:
        (tmp_path / "card").mkdir(exist_ok=True)
        job = {
            "name": name,
            "source": {"type": "local-storage", "root": str(tmp_path / "card")},
            "destination": {"type": "local-storage", "root": str(tmp_path / "archive"), "create_root": True},
            **keys,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    return write


def _forget_runs(before: datetime) -> None:
    """Runs that earlier tests left: a worker would start those that wait, all at once; those that were killed hold
    their place in the pool."""
    open_ = FlowRunFilterState(type=FlowRunFilterStateType(any_=[t for t in StateType if t not in TERMINAL_STATES]))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=open_)):
            if run.created is not None and run.created < before:
                client.delete_flow_run(run.id)


@pytest.fixture
def worker(api: str, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Starts workers as `onblock up` does, away from the repository's folder; returns where their log goes. The second
    argument is how many runs they have at a time; without it, all there are."""
    _forget_runs(datetime.now(UTC))
    with ExitStack() as stack:
        started: list[subprocess.Popen[bytes]] = []

        def start(pool: str, *limit: int) -> Path:
            log = tmp_path / f"worker-{pool}.log"
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "deployments.worker", pool, *map(str, limit)],
                    env={**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "0.5", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"},
                    cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                )  # fmt: skip
            stack.callback(end, process)
            started.append(process)
            return log

        start.started = started  # type: ignore[attr-defined]
        yield start
