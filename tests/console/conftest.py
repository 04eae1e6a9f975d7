"""A console over a real ledger, without a Prefect server: it says that there is none, and works."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import insert

from blocks import names
from deployments.console.access import People, Role
from deployments.console.app import create_app, server_config
from deployments.console.audit import Audit
from deployments.console.desk import Desk
from deployments.console.office import Office
from deployments.console.outside import DIRECT, Outside
from deployments.console.prefect_api import PrefectApi
from deployments.console.server_view import ServerView
from flows.ledger import Ledger, State
from flows.ledger.hooks import Hooks
from flows.ledger.models import File
from flows.ledger.store import now_ms
from tests.deployments.conftest import PATIENCE_S, end, free_port, until

NOBODY = "http://127.0.0.1:9/api"
"""Where no Prefect server is."""
HERE = "http://testserver"


_times = itertools.count(1)


class Site:
    """A console, those who may use it, and its ledger."""

    def __init__(self, ledger: Ledger, folder: Path, prefect: str = NOBODY, outside: Outside = DIRECT):
        self.ledger, self.people, self.outside = ledger, People(folder), outside
        api = PrefectApi(prefect)
        self.audit = Audit(folder / "audit.jsonl")
        self.office = Office(ledger, ServerView(api), self.audit)
        self.app: FastAPI = create_app(Desk(Hooks(ledger.engine), api), self.office, self.people, outside=outside)
        self.tokens = {role: self.people.add(role.name.lower(), role) for role in Role}

    def program(self, role: Role | None = Role.OPERATOR) -> TestClient:
        """A program with a token of this role; without one."""
        head = {"Authorization": f"Bearer {self.tokens[role]}"} if role else {}
        return TestClient(self.app, headers=head, follow_redirects=False)

    def head(self, role: Role) -> dict[str, str]:
        """How a program says who it is."""
        return {"Authorization": f"Bearer {self.tokens[role]}"}

    @contextmanager
    def served(self) -> Iterator[str]:
        """Its address: served as `onblock up` does it, here in a thread. Once only."""
        server = uvicorn.Server(server_config(self.app, "127.0.0.1", 0, self.outside))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            until("a console", lambda: server.started or not thread.is_alive())
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    def browser(self, role: Role = Role.OPERATOR) -> TestClient:
        """A browser that has logged in; its requests say that they come from a page of the console."""
        client = TestClient(self.app, headers={"Origin": HERE, "Sec-Fetch-Site": "same-origin"}, follow_redirects=False)
        answer = client.post("/login", data={"token": self.tokens[role]})
        assert answer.status_code == 303, answer.text
        return client

    def rows(self, *files: tuple[str, State], **more: Any) -> list[int]:
        """Rows of these paths and states: see `enter`."""
        return enter(self.ledger, *files, **more)


def enter(
    ledger: Ledger, *files: tuple[str, State], job: str = "card", destination: str = "local:/archive", **more: Any
) -> list[int]:  # fmt: skip
    """Rows of these paths and states; their numbers. Keywords are columns."""
    route = ledger.route(job, destination)
    now, ids = now_ms(), []
    with ledger._write() as c:
        for path, state in files:
            values = {
                "route_id": route, "path": names.to_text(path), "size": 1000, "mtime_ns": next(_times), "etag": "", "state": state,
                "bytes_done": 0, "attempt": 0, "tries": 0, "priority": 0, "queued_at": now, "updated_at": now,
                "verify_passes": 0, "dest_path": names.to_text(path) if state is State.VERIFIED else None,
            }  # fmt: skip
            ids.append(c.execute(insert(File).values(values | more).returning(File.id)).scalar_one())
    return ids


@pytest.fixture
def site(onblock_home: Path) -> Iterator[Site]:
    with Ledger.open() as ledger:
        yield Site(ledger, onblock_home / "console")


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    """Where the site is served."""
    with site.served() as address:
        yield address


@pytest.fixture
def long_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted by the minute is counted by the hour: a slow machine takes a minute for a test."""
    for where in ("access", "audit"):
        monkeypatch.setattr(f"deployments.console.{where}.WITHIN_S", 3600.0)


@pytest.fixture
def state_of(site: Site) -> Callable[[int], State]:
    def look(number: int) -> State:
        return State(site.office.row(number)["state"])

    return look


@contextmanager
def serving(
    home: Path, *options: str, scheme: str = "http", verify: Any = True, prefix: Sequence[str] = ()
) -> Iterator[str]:
    """The address of a console in a process of its own, as `onblock up` starts it; `prefix` is a program that starts it."""
    port = free_port()
    home.mkdir(parents=True, exist_ok=True)
    said = home / "console.log"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-P", "-m", "deployments.console", "--port", str(port), *options], cwd="/", stdin=subprocess.DEVNULL,
            env={**os.environ, "PREFECT_API_URL": NOBODY}, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"{scheme}://127.0.0.1:{port}"

    def there() -> bool:
        assert process.poll() is None, said.read_text()
        try:
            return httpx.get(f"{url}/health", verify=verify).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        until("a console", there)
        yield url
    finally:
        end(process, PATIENCE_S)
    assert process.returncode in (0, -signal.SIGTERM), said.read_text()
    assert "Traceback" not in said.read_text()


@pytest.fixture
def running(onblock_home: Path) -> Iterator[str]:
    """A console; the admin's token is in ONBLOCK_HOME."""
    with serving(onblock_home) as url:
        yield url


@pytest.fixture
def token(running: str, onblock_home: Path) -> str:
    return (onblock_home / "console" / "admin.token").read_text().strip()


def raw(url: str, request: bytes, patience_s: float = 180) -> bytes:
    """All that is answered to these bytes, until the server closes the connection."""
    host, _, port = url.rpartition("/")[2].partition(":")
    got = b""
    with socket.create_connection((host, int(port)), patience_s) as connection:
        connection.sendall(request)
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                got += part
    return got
