"""A fleet as `docs/fleet.md` sets it up: PostgreSQL, Redis, and the units of `deployments/systemd`, without systemd."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from cryptography.fernet import Fernet
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    PREFECT_HOME,
    temporary_settings,
)

from tests.deployments.conftest import answers, until
from tests.fleet import units
from tests.servers import postgres, redis
from tests.servers.base import Server, free_port

WORKERS = ("onblock-worker@1", "onblock-worker@2")
LOGIN = "onblock:let-me-in"


class Fleet:
    """Its servers, and its parts by the name of their unit: `UNIT`, or `HOST/UNIT` where hosts differ."""

    apis = ("onblock-api",)
    workers = WORKERS
    ca: Path | None = None
    """Who signed the certificate of the API, if that is not public."""

    def __init__(self, folder: Path, database: postgres.Postgres, redis_server: redis.Redis):
        self.folder, self.postgres, self.redis = folder, database, redis_server
        self.api_port, self.console_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.api_port}"
        self.parts: dict[str, Unit] = {}
        self.hosts: dict[str, dict[str, str]] = {}
        """What the environment files of a host say otherwise."""
        self.key = Fernet.generate_key().decode()

    def database(self, name: str) -> str:
        return self.postgres.info["url"].removesuffix("postgres").replace("+psycopg", "") + name

    @property
    def own(self) -> dict[str, str]:
        """What whoever installs it writes into the environment files."""
        addresses = (
            "PREFECT_REDIS_MESSAGING_URL",
            "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL",
            "PREFECT_SERVER_DOCKET_URL",
        )
        return {
            "ONBLOCK_LEDGER_URL": self.database("ledger"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database("prefect").replace("://", "+asyncpg://"),
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_ENABLED": "false",
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_CA_FILE": "",
            **dict.fromkeys(addresses, self.redis.info["url"]),
            "PREFECT_SERVER_API_AUTH_STRING": LOGIN, "PREFECT_API_AUTH_STRING": LOGIN,
            "PREFECT_SERVER_ENCRYPTION_KEY": self.key, "PREFECT_SERVER_API_PORT": str(self.api_port),
            "PREFECT_API_URL": f"{self.url}/api", "PREFECT_SERVER_UI_API_URL": f"{self.url}/api",
            "PREFECT_API_SSL_CERT_FILE": "", "CONSOLE_PORT": str(self.console_port),
        }  # fmt: skip

    def environment(self, file: str, host: str = "") -> dict[str, str]:
        """Of an environment file, with what is ours in it, and nothing of whoever runs the tests."""
        given = units.settings(file)
        here = {key: os.environ[key] for key in ("PATH", "HOME", "PYTHONPATH", "LANG") if key in os.environ}
        home = {"ONBLOCK_HOME": str(self.folder / "home"), "PREFECT_HOME": str(self.folder / "home" / "prefect")}
        own = {key: value for key, value in (self.own | self.hosts.get(host, {})).items() if key in given}
        return {key: value for key, value in {**here, **home, **given, **own}.items() if value}

    def start(self, *names: str) -> None:
        for name in names:
            self.parts[name] = Unit(self, name)
            self.parts[name].start()

    def stop(self, *names: str) -> None:
        for name in names:
            self.parts.pop(name).stop()

    def run(self, *arguments: str, file: str = "server.env") -> str:
        """A command of onblock; its output."""
        code, said = self.tried(*arguments, file=file)
        assert code == 0, said
        return said

    def tried(self, *arguments: str, file: str = "server.env", **env: str) -> tuple[int, str]:
        """A command of onblock; its exit code and its output."""
        done = subprocess.run(
            [*units.PROGRAMS["/opt/onblock/.venv/bin/onblock"], *arguments], env=self.environment(file) | env, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout

    def up(self) -> None:
        """Start what is not running, and wait until it works."""
        parts = (*self.apis, "onblock-services", *self.workers, "onblock-console")
        self.start(*(name for name in parts if name not in self.parts))
        self.answers()
        until("a console", lambda: listens(self.console_port), told=self.told)

    def answers(self) -> None:
        until("an API server", lambda: answers(self.url), told=self.told)

    def told(self) -> str:
        return "\n".join(f"-- {name}\n{part.log()}" for name, part in self.parts.items())

    def where(self) -> dict[str, Any]:
        return {key: self.postgres.info[key] for key in ("host", "port", "user", "password")}


class Unit(Server):
    """A part of the fleet, in a session of its own: what systemd would run."""

    def __init__(self, fleet: Fleet, name: str):
        super().__init__(fleet.folder / "parts" / name)
        self.fleet, self.name = fleet, name
        self.host, _, unit = name.rpartition("/")
        self.unit = unit.partition("@")[0] + ("@.service" if "@" in unit else ".service")

    def launch(self) -> dict[str, Any]:
        env = self.fleet.environment(units.environment_file(self.unit), self.host)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                units.command(self.unit, env), env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return {}


def listens(port: int) -> bool:
    import urllib.request

    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return answer.status == 200
    return False


@pytest.fixture(scope="module")
def servers() -> Iterator[Fleet]:
    """PostgreSQL with both databases, and Redis, for all tests of a module; no part of the fleet is up."""
    for installed, what in ((postgres.installed(), "PostgreSQL"), (redis.installed(), "Redis")):
        if not installed:
            pytest.skip(f"{what} is not installed: python -m tests.servers.install")
    with tempfile.TemporaryDirectory(prefix="onblock-fleet-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' users must reach it
        with postgres.Postgres(folder / "postgres") as database, redis.Redis(folder / "redis") as redis_server:
            fleet = Fleet(folder, database, redis_server)
            (folder / "home").mkdir()
            create(fleet, "ledger", "prefect")
            yield fleet


@pytest.fixture(scope="module")
def fleet(servers: Fleet) -> Iterator[Fleet]:
    """One for all tests of a module; it is up."""
    try:
        servers.run("migrate")
        servers.start(*servers.apis)
        servers.answers()
        servers.start("onblock-services")
        servers.run("deploy")
        servers.up()
        yield servers
    finally:
        servers.stop(*reversed(list(servers.parts)))


def create(fleet: Fleet, *databases: str, drop: bool = False) -> None:
    with psycopg.connect(**fleet.where(), dbname="postgres", autocommit=True) as admin:
        for name in databases:
            if drop:
                admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]
            admin.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]


@pytest.fixture
def client(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """A client of its API; the ledger is that of the fleet."""
    monkeypatch.setenv("ONBLOCK_LEDGER_URL", fleet.database("ledger"))
    monkeypatch.setenv("PREFECT_API_URL", f"{fleet.url}/api")
    settings = {
        PREFECT_API_URL: f"{fleet.url}/api", PREFECT_API_AUTH_STRING: LOGIN, PREFECT_HOME: fleet.folder / "home" / "prefect",
        PREFECT_API_SSL_CERT_FILE: fleet.ca and str(fleet.ca),
    }  # fmt: skip
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


class Job:
    """A job of `count` files of `size` bytes each, from a card to an archive, and who saw which file there."""

    def __init__(self, fleet: Fleet, folder: Path, name: str, count: int, size: int, **keys: Any):
        self.fleet, self.name = fleet, name
        self.card, self.archive = folder / "card", folder / "archive"
        self.card.mkdir()
        self.archive.mkdir()
        self.contents = {f"{n:03}.bin": os.urandom(size) for n in range(count)}
        for path, content in self.contents.items():
            (self.card / path).write_bytes(content)
        self.file = folder / f"{name}.yaml"
        self.file.write_text(yaml.safe_dump({
            "name": name, "source": {"type": "local-storage", "root": str(self.card)},
            "destination": {"type": "local-storage", "root": str(self.archive)}, "settle": {"quiet": "0s"},
            **keys,
        }))  # fmt: skip
        self.seen: dict[str, set[int]] = {}

    def deploy(self) -> None:
        self.fleet.run("deploy", str(self.file))

    def begin(self, client: SyncPrefectClient) -> FlowRun:
        deployment = client.read_deployment_by_name(f"transfer/{self.name}")
        return client.create_flow_run_from_deployment(deployment.id)

    def look(self) -> int:
        """How many files are at the destination; which inode each has is kept: a second delivery has another."""
        there = 0
        with os.scandir(self.archive) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name != "checksums.sha256":
                    self.seen.setdefault(entry.name, set()).add(entry.inode())
                    there += 1
        return there

    def finished(self, client: SyncPrefectClient, run: FlowRun) -> FlowRun:
        """The run, when it has ended; until then it is looked at what arrives."""

        def look() -> FlowRun | None:
            self.look()
            now = client.read_flow_run(run.id)
            return now if now.state is not None and now.state.is_final() else None

        done = until("a run that has ended", look, told=self.fleet.told)
        assert done is not None and done.state is not None
        return done

    def check(self, attempts: set[int] | None = frozenset({1})) -> None:  # type: ignore[assignment]
        """Everything is there as it was, once, and the ledger says so; `attempts` that each took, if that matters."""
        from flows.ledger import Ledger

        self.look()
        there = {path.name: path.read_bytes() for path in self.archive.iterdir() if path.name != "checksums.sha256"}
        assert there == self.contents, (sorted(there), "is at the destination")
        assert all(len(inodes) == 1 for inodes in self.seen.values()), "a file was put there twice"
        with Ledger.open(self.fleet.database("ledger")) as ledger:
            rows = [row for row in ledger.files() if row["job"] == self.name]
            assert sorted(row["path"] for row in rows) == sorted(self.contents)
            assert {row["state"] for row in rows} == {"VERIFIED"}
            assert attempts is None or {row["attempt"] for row in rows} == attempts, "a file was begun twice"


@pytest.fixture
def make_job(fleet: Fleet, tmp_path: Path) -> Callable[..., Job]:
    return lambda name, count, size, **keys: Job(fleet, tmp_path, name, count, size, **keys)
