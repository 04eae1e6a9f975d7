"""The fleet of `docs/fleet.md`, step by step as the page says, with its blocks and commands and the environment files as they
are: all hosts speak TLS, and with nobody whose certificate or name is not the right one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import ssl
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter
from redis import Redis as RedisClient
from redis.exceptions import ConnectionError as Refused

from tests.deployments.conftest import PATIENCE_S, answers, until
from tests.fleet import units
from tests.fleet.conftest import LOGIN, Fleet, Job, create
from tests.servers import nginx, postgres, redis
from tests.servers.base import free_port, run_as
from tests.servers.nginx import Nginx
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis

pytestmark = pytest.mark.timeout(900)

MakeJob = Callable[..., Job]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fleet.md").read_text("utf-8")
OTHER_HOST = "10.0.0.3"


def block(begins: str) -> str:
    """The block of the page that begins so."""
    found = re.search(rf"^```\w*\n({re.escape(begins)}.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found, begins
    return found[1]


def mine(text: str, places: dict[str, str]) -> str:
    """With places of ours for those of the page. Each of them is there."""
    for theirs, ours in places.items():
        assert theirs in text, theirs
        text = text.replace(theirs, ours)
    return text


def sh(commands: str, folder: Path, **env: str) -> str:
    done = subprocess.run(
        ["sh", "-exc", commands], cwd=folder, env={**os.environ, **env}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class TlsFleet(Fleet):
    """One with API servers on two hosts, and nginx before them. `etc` is what is /etc on all its hosts."""

    apis = ("onblock-api", f"{OTHER_HOST}/onblock-api")
    workers = ("onblock-worker@1",)

    def __init__(self, folder: Path, stack: ExitStack):
        self.etc = folder / "etc"
        self.stranger = certificates(folder / "stranger") / "ca.pem"
        """A CA of the same name; it signed none of ours."""
        self._install(certificates(folder / "certificates"))
        self.database_port, self.redis_port, self.https_port = free_port(), free_port(), free_port()
        super().__init__(folder, stack.enter_context(self._postgres()), stack.enter_context(self._redis()))
        self.url, self.ca = f"https://localhost:{self.https_port}", self.etc / "onblock" / "ca.pem"
        other_port = free_port()
        self.hosts[OTHER_HOST] = {"PREFECT_SERVER_API_PORT": str(other_port)}
        self.api_ports = (self.api_port, other_port)
        self.nginx = stack.enter_context(self._nginx())

    def _install(self, made: Path) -> None:
        """Each file where the page has it, and its owner."""
        commands = [line for line in block("sudo useradd").splitlines() if "/etc/onblock" in line]
        assert len(commands) == 3
        (made / "deployments").symlink_to(ROOT / "deployments")
        sh(mine("\n".join(commands), {"sudo ": "", "/etc/": f"{self.etc}/"}), made)
        for server, name, owner in (
            ("postgresql", "db", "postgres"),
            ("redis", "redis", "nobody"),
            ("nginx", "prefect", None),
        ):
            folder = self.etc / server
            folder.mkdir()
            for file in (f"{name}.crt", f"{name}.key", "ca.pem"):
                shutil.copy(made / file, folder)
            if owner and os.geteuid() == 0:
                shutil.chown(folder / f"{name}.key", owner)

    def _postgres(self) -> Postgres:
        config = mine(block("listen_addresses"), {"'10.0.0.4'": "'127.0.0.1'", "/etc/": f"{self.etc}/"})
        who = mine(block("hostssl"), {"10.0.0.0/24": "127.0.0.1/32"})
        admin = "hostssl postgres onblock 127.0.0.1/32 scram-sha-256\n"  # whoever makes databases
        return Postgres(self.etc.parent / "postgres", config=config, who=who + admin)

    def _redis(self) -> Redis:
        password = secrets.token_hex(8)
        config = mine(block("bind 10.0.0.5"), {
            "10.0.0.5": "127.0.0.1", "PASSWORD": password, "6379": str(self.redis_port), "/etc/": f"{self.etc}/",
        })  # fmt: skip
        ca = str(self.etc / "redis" / "ca.pem")
        return Redis(self.etc.parent / "redis", config=config, ca=ca, port=str(self.redis_port), password=password)

    def _nginx(self) -> Nginx:
        first, second = self.api_ports
        config = mine(block("upstream prefect"), {
            "10.0.0.2:4200": f"127.0.0.1:{first}", "10.0.0.3:4200": f"127.0.0.1:{second}",
            "listen 443": f"listen 127.0.0.1:{self.https_port}", "prefect.example.org": "localhost", "/etc/": f"{self.etc}/",
        })  # fmt: skip
        return Nginx(self.folder / "nginx", config=config, port=str(self.https_port))

    def given(self, file: str) -> dict[str, str]:
        """What an environment file says, with our places."""
        redis_at = f":{self.redis.info['password']}@localhost:{self.redis_port}"
        places = {
            "onblock:CHANGE-ME@db.example.org:5432": f"onblock:{self.postgres.info['password']}@localhost:{self.postgres.info['port']}",
            ":CHANGE-ME@redis.example.org:6379": redis_at, "prefect.example.org": f"localhost:{self.https_port}",
            "/etc/": f"{self.etc}/",
        }  # fmt: skip
        text = "\n".join(f"{key}={value}" for key, value in units.settings(file).items())
        for theirs, ours in places.items():
            text = text.replace(theirs, ours)
        return dict(line.split("=", 1) for line in text.splitlines())

    @property
    def own(self) -> dict[str, str]:
        return {
            **self.given("server.env"), **self.given("client.env"),
            "PREFECT_SERVER_API_AUTH_STRING": LOGIN, "PREFECT_API_AUTH_STRING": LOGIN,
            "PREFECT_SERVER_ENCRYPTION_KEY": self.key, "PREFECT_SERVER_API_PORT": str(self.api_port),
            "API_PROCESSES": "1", "CONSOLE_PORT": str(self.console_port),
        }  # fmt: skip

    def database(self, name: str) -> str:
        return self.own["ONBLOCK_LEDGER_URL"].replace("/ledger?", f"/{name}?")

    def where(self) -> dict[str, Any]:
        return super().where() | {"host": "localhost", "sslmode": "verify-full", "sslrootcert": str(self.ca)}

    def answers(self) -> None:
        for port in self.api_ports:
            until("an API server", lambda port=port: answers(f"http://127.0.0.1:{port}"), told=self.told)
        until("the proxy before them", self._health, told=self.told)

    def _health(self) -> bool:
        with suppress(OSError):
            believes = ssl.create_default_context(cafile=self.ca)
            with urllib.request.urlopen(f"{self.url}/api/health", timeout=5, context=believes) as reply:
                return reply.status == 200
        return False

    def secret(self) -> tuple[str, ...]:
        return (self.postgres.info["password"], self.redis.info["password"], self.key, LOGIN, LOGIN.partition(":")[2])


def certificates(folder: Path) -> Path:
    """Made as the page says; all three are for this host."""
    folder.mkdir()
    sh(mine(block("openssl req"), {"$name.example.org": "localhost"}), folder)
    return folder


@pytest.fixture(scope="module")
def servers() -> Iterator[TlsFleet]:
    """PostgreSQL with both databases, Redis, and nginx; no part of the fleet is up."""
    for installed, what in (
        (postgres.installed(), "PostgreSQL"),
        (redis.installed(), "Redis"),
        (nginx.installed(), "nginx"),
    ):
        if not installed:
            pytest.skip(f"{what} is not installed: python -m tests.servers.install")
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="onblock-tls-", ignore_cleanup_errors=True))
        )
        folder.chmod(0o755)  # the servers' users must reach it
        fleet = TlsFleet(folder, stack)
        (folder / "home").mkdir()
        create(fleet, "ledger", "prefect")
        yield fleet


# -- who is refused ---------------------------------------------------------------------------------------------------


def test_nobody_speaks_without_tls(servers: TlsFleet) -> None:
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        psycopg.connect(**servers.where() | {"dbname": "ledger", "sslmode": "disable"})
    with (
        RedisClient(port=servers.redis_port, password=servers.redis.info["password"]) as client,
        pytest.raises(Refused),
    ):
        client.ping()
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(servers.url.replace("https:", "http:"), timeout=5)


def test_the_service_reads_the_ca_and_nobody_else_the_secrets(servers: TlsFleet) -> None:
    if os.geteuid():
        pytest.skip("only root can become somebody else")

    def read(path: Path) -> int:
        return subprocess.run(["cat", str(path)], capture_output=True, **run_as("nobody")).returncode

    assert read(servers.etc / "onblock" / "ca.pem") == 0
    for secret in ("onblock/server.env", "onblock/client.env", "postgresql/db.key", "nginx/prefect.key"):
        assert read(servers.etc / secret) != 0, secret


LEDGER, DATABASE = "ONBLOCK_LEDGER_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL"
DATABASE_CA = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_CA_FILE"
MESSAGES, API, API_CA = "PREFECT_REDIS_MESSAGING_URL", "PREFECT_API_URL", "PREFECT_API_SSL_CERT_FILE"
ANOTHER = {"ca.pem": "stranger"}
NO_NAME = {"localhost": "127.0.0.1"}
"""The way there is right, and the name is not in the certificate."""
NO_FILE = {"ca.pem": "nowhere.pem"}


@pytest.mark.parametrize(
    ("variable", "change", "said"),
    [
        (LEDGER, ANOTHER, "certificate verify failed"),
        (LEDGER, NO_NAME, 'does not match host name "127.0.0.1"'),
        (LEDGER, NO_FILE, "nowhere.pem"),
        (DATABASE_CA, ANOTHER, "certificate verify failed"),
        (DATABASE, NO_NAME, "IP address mismatch"),
        (DATABASE_CA, NO_FILE, "nowhere.pem"),
        (MESSAGES, ANOTHER, "certificate verify failed"),
        (MESSAGES, NO_NAME, "IP address mismatch"),
        (MESSAGES, NO_FILE, "ssl_ca_certs"),
    ],
)  # fmt: skip
def test_a_database_that_is_somebody_else(servers: TlsFleet, variable: str, change: dict[str, str], said: str) -> None:
    _refused(servers, "migrate", variable, change, said)


@pytest.mark.parametrize(
    ("command", "variable", "change", "said"),
    [
        ("deploy", API_CA, ANOTHER, "certificate verify failed"),
        ("deploy", API, NO_NAME, "IP address mismatch"),
        ("deploy", API_CA, NO_FILE, "nowhere.pem"),
        ("worker", API_CA, ANOTHER, "certificate verify failed"),
        ("worker", API_CA, NO_FILE, "nowhere.pem"),
    ],
)
def test_an_api_that_is_somebody_else(
    fleet: TlsFleet, command: str, variable: str, change: dict[str, str], said: str
) -> None:
    _refused(fleet, command, variable, change, said)


def _refused(fleet: TlsFleet, command: str, variable: str, change: dict[str, str], said: str) -> None:
    """One line says so, and what to do, and nothing secret."""
    value = fleet.environment("server.env")[variable]
    for theirs, ours in change.items():
        assert theirs in value
        value = value.replace(str(fleet.ca), str(fleet.stranger)) if ours == "stranger" else value.replace(theirs, ours)
    code, output = fleet.tried(command, **{variable: value})
    assert code == 2, output
    (line,) = output.splitlines()
    assert said in line and variable in line, line
    assert not any(secret in line for secret in fleet.secret())


# -- what works -------------------------------------------------------------------------------------------------------


def _delivered(job: Job, client: SyncPrefectClient, run: FlowRun) -> None:
    state = job.finished(client, run).state
    assert state is not None and (state.name, state.message) == ("Completed", "3 delivered"), state
    job.check()


def test_a_job_is_delivered_and_told_of(fleet: TlsFleet, client: SyncPrefectClient, make_job: MakeJob) -> None:
    """Through the proxy: requests, and events over a web socket."""
    job = make_job("plain", 3, 1000)
    job.deploy()

    async def told() -> FlowRun:
        done = EventFilter(event=EventNameFilter(name=["prefect.flow-run.Completed"]))
        async with asyncio.timeout(PATIENCE_S), get_events_subscriber(done) as events:
            run = await asyncio.to_thread(job.begin, client)
            async for event in events:
                if event.resource.id == f"prefect.flow-run.{run.id}":
                    return run
        raise AssertionError("the events have ended")

    _delivered(job, client, asyncio.run(told()))
    fleet.stop("onblock-worker@1")  # its web socket is closed, and so in the log

    def heard() -> bool:
        sockets = [one for one in fleet.nginx.requests() if one.path == "/api/events/out"]
        return len(sockets) >= 2 and {one.status for one in sockets} == {101}

    try:
        until("the web sockets of the worker and of ours", heard, told=lambda: str(fleet.nginx.requests()[-20:]))
    finally:
        fleet.start("onblock-worker@1")


def test_the_end_of_a_flight_starts_its_job(fleet: TlsFleet, client: SyncPrefectClient, make_job: MakeJob) -> None:
    """By the console: it asks the API what to start."""
    job = make_job("flight", 3, 1000, device="cam-01")
    job.deploy()
    secret = fleet.run("hook", "sender", "pilot", file="client.env").split()[-1]
    told = [
        "--flight",
        "F1",
        "--device",
        "cam-01",
        "--url",
        f"http://127.0.0.1:{fleet.console_port}",
        "--sender",
        "pilot",
    ]
    code, said = fleet.tried("hook", "flight-end", *told, file="client.env", ONBLOCK_HOOK_SECRET=secret)
    assert code == 0, said
    its = DeploymentFilter(name=DeploymentFilterName(any_=["flight"]))
    (run,) = until("its run", lambda: client.read_flow_runs(deployment_filter=its), told=fleet.told)
    _delivered(job, client, run)


def test_it_sends_browsers_nowhere_without_tls(fleet: TlsFleet) -> None:
    believes = ssl.create_default_context(cafile=fleet.ca)
    with closing(HTTPSConnection("localhost", fleet.https_port, context=believes, timeout=30)) as browser:
        browser.request("GET", "/docs/")
        assert browser.getresponse().headers["Location"] == f"{fleet.url}/docs"
    with urllib.request.urlopen(f"{fleet.url}/ui-settings", timeout=30, context=believes) as answer:
        assert json.load(answer)["api_url"] == f"{fleet.url}/api"


def test_one_host_of_the_api_is_away(fleet: TlsFleet, client: SyncPrefectClient, make_job: MakeJob) -> None:
    ports = {f"127.0.0.1:{port}" for port in fleet.api_ports}
    assert {one.behind for one in fleet.nginx.requests() if one.status == 200} >= ports, "each had its share"
    job = make_job("away", 3, 1000)
    fleet.stop("onblock-api")
    try:
        job.deploy()
        _delivered(job, client, job.begin(client))
    finally:
        fleet.start("onblock-api")


def test_a_backup_is_taken(servers: TlsFleet, tmp_path: Path) -> None:
    """And Redis asked, with the commands of the page."""
    info = servers.postgres.info
    places = {"/etc/": f"{servers.etc}/", "db.example.org": f"localhost:{info['port']}"}
    sh(mine(block("export PGSSLMODE"), places), tmp_path, PGPASSWORD=info["password"])
    assert {path.name for path in tmp_path.iterdir()} == {"ledger.dump", "prefect.dump"}
    (line,) = re.findall(r"redis-cli .*FLUSHALL", PAGE)
    ours = {"/etc/": f"{servers.etc}/", "redis.example.org": f"localhost -p {servers.redis_port}", "FLUSHALL": "PING"}
    said = sh(f'echo "$PASSWORD" | {mine(line, ours)}', tmp_path, PASSWORD=servers.redis.info["password"])
    assert said.split()[-1] == "PONG"
