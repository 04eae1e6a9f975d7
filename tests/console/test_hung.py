"""What hangs holds nobody up: a share whose server is gone, a ledger that is locked, a dry run that comes to no end."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from blocks.errors import Cancelled, ConfigError, UnknownError
from deployments.console.access import Role
from deployments.console.dry_runs import MOST, DryRuns
from flows.ledger import Ledger
from tests.console.conftest import Site, serving
from tests.deployments.conftest import until
from tests.servers.rclone import BINARY
from tests.storage.children import MOUNTS, REPOSITORY

pytestmark = pytest.mark.timeout(600)
PAGES = ("/", "/transfers", "/api/v1/stats/summary", "/api/v1/transfers", "/metrics")


def test_a_share_that_hangs_holds_up_no_page_and_no_webhook(onblock_home: Path, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    with Ledger.open() as ledger:
        ledger.route("card", f"local:{share}")
        ledger.route("card", f"local:{tmp_path}")
    hung = [*MOUNTS, "env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-P", "-m", "tests.console.hung", str(share)]
    with serving(onblock_home, prefix=hung) as url:
        head = {"Authorization": f"Bearer {(onblock_home / 'console' / 'admin.token').read_text().strip()}"}

        def ask(path: str) -> int:
            return httpx.get(url + path, headers=head, timeout=180).status_code

        with ThreadPoolExecutor(60) as people:  # more than the console has threads
            assert set(people.map(ask, PAGES * 12)) == {200}
        assert httpx.post(f"{url}/hooks/flight-end", json={}, timeout=180).status_code == 401

        def silent() -> list[str]:
            return httpx.get(f"{url}/api/v1/stats/summary", headers=head, timeout=180).json()["silent"]

        until("a word about it", lambda: silent() == [str(share)])
        assert "does not answer" in httpx.get(url, headers=head, timeout=180).text
        told = httpx.get(f"{url}/metrics", headers=head, timeout=180).text
        assert f'onblock_disk_up{{path="{share}"}} 0.0' in told
        assert "onblock_disk_free_bytes{" in told  # of the others


def test_a_ledger_that_is_locked_leaves_the_figures_of_before(
    postgres_url: str, onblock_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody waits for new ones: they are asked for beside the requests."""
    monkeypatch.setenv("ONBLOCK_LEDGER_URL", postgres_url)
    with Ledger.open() as ledger:
        site = Site(ledger, onblock_home / "console")
        program = site.program(Role.VIEWER)
        before = program.get("/api/v1/stats/summary").json()
        with ledger.engine.connect() as c:
            c.execute(text("LOCK TABLE files IN ACCESS EXCLUSIVE MODE"))
            site.office.figures.cached.forget()
            for _ in range(3):  # while nobody can count anything
                assert program.get("/api/v1/stats/summary").json()["at"] == before["at"]
            assert [p for p in threading.enumerate() if p.name == "onblock-ask"]
            c.rollback()
        until("newer ones", lambda: program.get("/api/v1/stats/summary").json()["at"] > before["at"])


# -- dry runs -----------------------------------------------------------------------------------------------------


class Silence:
    """A server that takes connections and says nothing."""

    def __init__(self, listener: socket.socket):
        self.port, self._listener = listener.getsockname()[1], listener
        self.called = threading.Event()
        self._held: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                self._held.append(self._listener.accept()[0])
            except OSError:
                return
            self.called.set()

    def job(self) -> dict[str, Any]:
        """A job that lists it, by a program of others."""
        config = f"[far]\ntype = webdav\nurl = http://127.0.0.1:{self.port}\nvendor = other\n"
        source = {"type": "rclone-storage", "remote": "far", "config": config, "binary": BINARY}
        return {"name": "slow", "source": source, "destination": {"type": "local-storage", "root": "/tmp"}}


@pytest.fixture
def silence() -> Iterator[Silence]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Silence(listener)


def ours() -> list[psutil.Process]:
    """What a dry run has started."""
    return [p for p in psutil.Process().children(recursive=True) if _lives(p)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_dry_run_that_takes_too_long_ends_with_all_that_it_started(silence: Silence) -> None:
    before = set(ours())
    with pytest.raises(UnknownError, match="within 2 s"):
        DryRuns(patience_s=2.0).plan(silence.job(), None, 10)
    until("the end of all of them", lambda: not set(ours()) - before)


def test_the_console_does_not_wait_for_a_dry_run_when_it_ends(site: Site, silence: Silence) -> None:
    before, ended = set(ours()), []

    def plan() -> None:
        try:
            site.office.server.dry_runs.plan(silence.job(), None, 10)
        except Cancelled as error:
            ended.append(error)

    with TestClient(site.app):
        thread = threading.Thread(target=plan)
        thread.start()
        until("a program of others that waits", silence.called.is_set)
        started = set(ours()) - before
        assert any(p.name() == "rclone" for p in started)
    thread.join(180)
    assert ended
    until("the end of all of them", lambda: not [p for p in started if p.is_running()])


def test_a_few_at_a_time_and_what_is_wrong_is_told(site: Site, silence: Silence, tmp_path: Path) -> None:
    runs = DryRuns()
    threads = [threading.Thread(target=lambda: _cancelled(runs, silence.job())) for _ in range(MOST)]
    for thread in threads:
        thread.start()

    def full() -> bool:
        try:
            runs.plan({"name": "bad", "source": {"type": "nothing"}}, None, 10)
        except ConfigError as error:
            return "already" in error.what
        return False

    until("no more turns", full)
    runs.close()
    for thread in threads:
        thread.join(180)
    card = {"type": "local-storage", "root": str(tmp_path)}
    job = {"name": "gone", "source": card | {"root": str(tmp_path / "gone")}, "destination": card}
    with pytest.raises(ConfigError, match="cannot be planned"):
        DryRuns().plan(job, None, 10)
    (tmp_path / "card \N{CAMERA}").mkdir()
    (tmp_path / "card \N{CAMERA}" / "a").write_bytes(b"a")
    job["source"] = card | {"root": str(tmp_path / "card \N{CAMERA}")}
    job["min_age"] = 0
    assert DryRuns().plan(job, None, 10)["to_deliver"] == 1


def _cancelled(runs: DryRuns, job: dict[str, Any]) -> None:
    with pytest.raises(Cancelled):
        runs.plan(job, None, 10)
