"""`onblock up --profile fleet`: all of a fleet on one machine, from nothing but two empty databases and Redis."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.up import _living, descendants
from tests.deployments.conftest import until
from tests.fleet import units
from tests.fleet.conftest import Fleet, Job

pytestmark = pytest.mark.timeout(900)
GIVEN = (
    "ONBLOCK_LEDGER_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_REDIS_MESSAGING_URL"
)  # fmt: skip


def test_it_comes_up_delivers_and_ends(servers: Fleet, tmp_path: Path) -> None:
    job = Job(servers, tmp_path, "one-machine", 3, 1000)
    env = {**os.environ, "ONBLOCK_HOME": str(servers.folder / "home"), **{name: servers.own[name] for name in GIVEN}}
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        up = subprocess.Popen(
            [*units.PROGRAMS["/opt/onblock/.venv/bin/onblock"], "up", str(job.file), "--profile", "fleet",
             "--port", str(servers.api_port), "--console-port", str(servers.console_port)],
            env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        until("a fleet", lambda: up.poll() is not None or b"onblock is up" in log.read_bytes(), told=log.read_text)
        assert up.poll() is None, log.read_text()
        below = descendants(up.pid)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid, _ in below]
        for part, number in {
            "server start": 1, "services start": 1, "deployments.worker onblock": 2, "deployments.console": 1
        }.items():  # fmt: skip
            assert sum(part in command for command in commands) == number, (part, commands)
        assert "note:" not in log.read_text()
        with temporary_settings({PREFECT_API_URL: f"{servers.url}/api"}), get_client(sync_client=True) as client:
            run = job.begin(client)
            until("a run that has ended", lambda: client.read_flow_run(run.id).state.is_final(), told=log.read_text)  # type: ignore[union-attr]
            assert client.read_flow_run(run.id).state_name == "Completed"
        job.look()
        job.check()
        up.send_signal(signal.SIGTERM)
        assert up.wait(120) == 0
        until("nobody who is left", lambda: not _living(below))  # one that ended may not be reaped yet
    finally:
        if up.poll() is None:
            up.kill()
            for pid, _ in descendants(up.pid):
                os.kill(pid, signal.SIGKILL)
            up.wait()
