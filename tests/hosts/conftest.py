"""A fleet on one machine: a server (PostgreSQL with Prefect's database and the ledger, Prefect's server), two hosts for
workers, one with devices and one with storage (sshds). Each is a network namespace, and has homes of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.settings import PREFECT_API_KEY, PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, temporary_settings
from psycopg.rows import dict_row

from deployments.server import POOL, Report, create_automations
from deployments.up import environment
from flows.ledger import Ledger
from tests.deployments.conftest import PATIENCE_S, answers, until
from tests.servers import postgres
from tests.servers import sshd as openssh
from tests.servers.network import CannotBeMade, Host, Network
from tests.servers.sshd import Sshd

DEAD_AFTER = timedelta(seconds=62)
"""A run that was not heard of for so long is dead: two of its heartbeats. In earnest it is 90 s."""
PYTHON = [sys.executable, "-P", "-m"]


class Fleet:
    """See the module. The test itself is on the server's network."""

    def __init__(self, hosts: Network, folder: Path, stack: ExitStack):
        self.hosts, self.folder = hosts, folder
        self.server, self.a, self.b = hosts["server"], hosts["worker-a"], hosts["worker-b"]
        self.database = stack.enter_context(postgres.Postgres(folder / "pg", address=self.server.address))
        login = {k: self.database.info[k] for k in ("host", "port", "user", "password")}
        with psycopg.connect(**login, dbname="postgres", autocommit=True) as admin:
            admin.execute("CREATE DATABASE prefect")
            admin.execute("CREATE DATABASE ledger")
        self._ledger = stack.enter_context(psycopg.connect(**login, dbname="ledger", autocommit=True))
        self._ledger.row_factory = dict_row  # type: ignore[assignment]
        self.ledger_url = self.database.info["url"].removesuffix("postgres") + "ledger"
        Ledger.open(self.ledger_url).close()  # its tables
        self.url = f"http://{self.server.address}:4200"
        self.devices = self._sshd(stack, "device")
        self.storage = self._sshd(stack, "storage")
        self._prefect()
        settings = {PREFECT_API_URL: f"{self.url}/api", PREFECT_API_REQUEST_TIMEOUT: PATIENCE_S, PREFECT_API_KEY: None}
        stack.enter_context(temporary_settings(settings))
        self.client: SyncPrefectClient = stack.enter_context(get_client(sync_client=True))
        create_automations(self.client, Report(), within=DEAD_AFTER)

    def _sshd(self, stack: ExitStack, name: str) -> Sshd:
        host = self.hosts[name]
        with host.inside():
            return stack.enter_context(Sshd(self.folder / name, address=host.address, trail="yes"))

    def _prefect(self) -> None:
        address, log = self.server.address, self.folder / "prefect.log"
        database = self.ledger_url.removesuffix("ledger") + "prefect"
        env = environment(self.env("server"), address, 4200, self.url)
        env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database.replace("+psycopg:", "+asyncpg:")
        process = self.server.start(
            [*PYTHON, "prefect", "server", "start", "--host", address, "--port", "4200"], env, log
        )
        until("a Prefect server that answers", lambda: process.poll() is not None or answers(self.url))
        assert process.poll() is None, log.read_text()

    def env(self, home: str) -> dict[str, str]:
        """The environment of what runs on a host."""
        own = {"ONBLOCK_HOME": str(self.folder / home / "onblock"), "PREFECT_HOME": str(self.folder / home / "prefect")}
        (self.folder / home).mkdir(exist_ok=True)
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_API", "ONBLOCK_"))}, **own,
            "PREFECT_API_URL": f"{self.url}/api", "ONBLOCK_LEDGER_URL": self.ledger_url,
            "PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        }  # fmt: skip

    def worker(self, host: Host, number: int = 0, *limit: int) -> Path:
        """Starts a worker on a host, with homes of its own if it is not the first there; where its log is. `limit`: so many
        runs at a time."""
        name = f"{host.name}{number or ''}"
        log = self.folder / f"{name}.log"
        host.start([*PYTHON, "deployments.worker", POOL, *map(str, limit)], self.env(name), log)
        return log

    def place(self, server: Sshd, root: Path, **keys: Any) -> dict[str, Any]:
        """A folder of an sshd, as a JOB.yaml has it. Who is silent is given up soon."""
        info = server.info
        return {
            "type": "sftp-storage", "host": info["host"], "port": info["port"], "user": info["user"], "root": str(root),
            "key_file": info["key"], "host_key": info["host_key"], "connect_timeout": 2, "io_timeout": 4, **keys,
        }  # fmt: skip

    @contextmanager
    def well(self) -> Iterator[None]:
        """For a test, which is on the server's network. Afterwards all cables are well, and no run is left."""
        with self.server.inside():
            try:
                yield
            finally:
                for host in self.hosts.values():
                    host.slow(None)
                    host.mend()
                for run in self.client.read_flow_runs():
                    self.client.delete_flow_run(run.id)

    def python(self, *argv: str, given: object = None) -> None:
        """Runs our Python on the server, with `given` as JSON on its standard input."""
        command, data = [sys.executable, "-P", *argv], json.dumps(given)
        done = subprocess.run(command, env=self.env("server"), cwd="/", input=data, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def deploy(self, *jobs: Mapping[str, Any]) -> None:
        """Registers jobs, as somebody does from the server."""
        paths = [self.folder / f"{job['name']}.yaml" for job in jobs]
        for path, job in zip(paths, jobs, strict=True):
            path.write_text(yaml.safe_dump({"settle": {"quiet": "0s"}, **job}))
        self.python("-m", "deployments.bootstrap", *map(str, paths))

    def begin(self, job: str) -> FlowRun:
        """Asks for a run of a job."""
        return self.client.create_flow_run_from_deployment(self.client.read_deployment_by_name(f"transfer/{job}").id)

    def ended(self, run: FlowRun) -> FlowRun:
        """The run, when it is over; one that Crashed is not: it is started again."""

        def look() -> FlowRun | None:
            now = self.client.read_flow_run(run.id)
            return now if now.state is not None and now.state.is_final() and not now.state.is_crashed() else None

        return until(f"{run.name} that has ended", look, told=self.said) or run

    def tasks(self, *runs: UUID) -> list[TaskRun]:
        """The tasks of runs."""
        return self.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(runs))))

    def rows(self, job: str) -> list[dict[str, Any]]:
        """The files of a job in the ledger, by their paths; read by another hand than ours."""
        query = "SELECT f.* FROM files f JOIN routes r ON r.id = f.route_id WHERE r.job = %s ORDER BY path"
        return self.ask(query, job)

    def ask(self, query: LiteralString, *given: object) -> list[dict[str, Any]]:
        """The answer of the ledger's database."""
        return self._ledger.execute(query, given).fetchall()

    def said(self) -> str:
        """What workers said last."""
        logs = sorted(self.folder.glob("worker*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-3000:]}" for log in logs)


@pytest.fixture(scope="package")
def whole_fleet() -> Iterator[Fleet]:
    """One for all tests here; not on its network. Whoever comes later has another Prefect server, or none."""
    if not (postgres.installed() and openssh.installed()):
        pytest.skip("PostgreSQL or sshd is not installed: python -m tests.servers.install")
    with ExitStack() as stack:
        try:
            hosts = stack.enter_context(Network("server", "worker-a", "worker-b", "device", "storage"))
        except CannotBeMade as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onblock-hosts-")))
        folder.chmod(0o755)  # the servers' accounts must reach it
        with hosts["server"].inside():
            fleet = Fleet(hosts, folder, stack)
        yield fleet
        with hosts["server"].inside():
            stack.pop_all().close()


@pytest.fixture
def fleet(whole_fleet: Fleet) -> Iterator[Fleet]:
    """Without workers; what a test starts is gone when it has ended."""
    with whole_fleet.well():
        try:
            yield whole_fleet
        finally:
            for host in (whole_fleet.a, whole_fleet.b):
                host.power_cut()


# -- what an sshd saw ---------------------------------------------------------------------------------------------


_PUT = re.compile(r'open "([^"]*)" flags (?:\S*,)?WRITE')
_NAMED = re.compile(r'(?:posix-rename|rename|hardlink|link) old "([^"]*)" new "([^"]*)"')


def at_once(trail: Sequence[str], folder: Path, of: Callable[[str], str]) -> dict[str, int]:
    """How many files were being brought to a folder at a time, at most, from when each was opened until it got its final
    name: by what `of` says of that name."""
    begun: dict[str, int] = {}
    edges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, line in enumerate(trail):
        if put := _PUT.match(line):
            begun.setdefault(put[1], number)
        elif (got := _NAMED.match(line)) and got[2].startswith(f"{folder}/") and got[1] in begun:
            edges[of(Path(got[2]).name)] += [(begun.pop(got[1]), 1), (number, -1)]
    return {key: max(accumulate(step for _, step in sorted(found))) for key, found in edges.items()}


def named(trail: Sequence[str], folder: Path) -> list[str]:
    """The names that files got in a folder, in that order: each time that something was put there under a final name."""
    found = [got[2] for line in trail if (got := _NAMED.match(line))]
    return [
        name.removeprefix(f"{folder}/") for name in found if name.startswith(f"{folder}/") and "/.onblock" not in name
    ]


def told(value: object) -> str:
    """For a message of a failed test."""
    return json.dumps(value, indent=1, default=str)
