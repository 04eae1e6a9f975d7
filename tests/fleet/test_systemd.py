"""The units of `deployments/systemd`, installed as docs/fleet.md says, under a real systemd: what is started, ended,
killed, and there again after a reboot."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient

from deployments.fleet import SETTINGS
from deployments.server import RUNS_AT_ONCE
from deployments.server_settings import SERVER
from tests.deployments.conftest import until
from tests.fleet import units
from tests.fleet.conftest import Fleet, Job, listens
from tests.servers.systemd import FIRST_UID, Systemd, cannot, python

pytestmark = pytest.mark.timeout(900)

REPOSITORY = Path(__file__).parents[2]
FILES = "/srv/files"
"""Where the host sees what it shares with the test."""
PARTS = ("onblock-api", "onblock-services", "onblock-worker@1", "onblock-console")


class Host(Fleet):
    """A fleet whose parts are units of a host's systemd."""

    systemd: Systemd

    def up(self) -> None:
        self.answers()
        until("a console", lambda: listens(self.console_port), told=self.told)

    def told(self) -> str:
        return self.systemd.journal()


@pytest.fixture(scope="module")
def fleet(servers: Fleet) -> Iterator[Host]:
    """The host, up, with nothing started."""
    if why := cannot():
        pytest.skip(why)
    fleet = Host(servers.folder, servers.postgres, servers.redis)
    (shared := fleet.folder / "shared").mkdir()
    os.chown(shared, FIRST_UID, FIRST_UID)
    # /opt/onblock is this checkout, and its programs those of the Python that runs this
    programs = Path(sys.prefix)
    seen = python(programs, *(REPOSITORY / name for name in ("blocks", "flows", "deployments")))
    host = fleet.systemd = Systemd(fleet.folder / "host", seen, {shared: FILES}, ["onblock"])
    (host.disk / "opt/onblock").mkdir(parents=True)
    (host.disk / "opt/onblock/.venv").symlink_to(programs)
    for file in ("server.env", "client.env"):
        said = units.settings(file) | {key: value for key, value in fleet.own.items() if key in units.settings(file)}
        host.write(f"etc/onblock/{file}", "".join(f"{key}={value}\n" for key, value in said.items() if value), 0o600)
    for unit in units.FOLDER.glob("onblock-*.service"):
        host.write(f"etc/systemd/system/{unit.name}", unit.read_text())
        if any(
            path.is_relative_to("/tmp") for path in seen
        ):  # a checkout there would be hidden by a /tmp of the unit's own
            host.write(f"etc/systemd/system/{unit.name}.d/seen.conf", "[Service]\nPrivateTmp=no\n")
    with host:
        yield fleet


def deliver(fleet: Host, client: SyncPrefectClient, name: str) -> None:
    """A job, by the host's worker."""
    (folder := fleet.folder / "shared" / name).mkdir()
    job = Job(fleet, folder, name, 3, 1000)
    job.file.write_text(job.file.read_text().replace(str(folder.parent), FILES))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, FIRST_UID, FIRST_UID)
    job.deploy()
    done = job.finished(client, job.begin(client))
    assert (done.state.name, done.state.message) == ("Completed", "3 delivered"), f"{done.state}\n{fleet.told()}"  # type: ignore[union-attr]
    job.check()
    assert {path.stat().st_uid for path in job.archive.iterdir()} == {FIRST_UID}, "another account's worker wrote it"


def test_a_fleet_is_installed_killed_and_rebooted(fleet: Host, client: SyncPrefectClient) -> None:
    host = fleet.systemd
    host.systemctl("start", "onblock-migrate")
    assert (host.show("onblock-migrate", "Result"), host.show("onblock-migrate", "ActiveState")) == (
        "success",
        "inactive",
    )
    host.systemctl("enable", "--now", *PARTS)
    fleet.up()
    fleet.run("deploy")
    deliver(fleet, client, "installed")
    accounts = {
        part: host.inside("ps", "-o", "user=", "-p", host.show(part, "MainPID")).stdout.strip() for part in PARTS
    }
    assert accounts == dict.fromkeys(PARTS, "onblock")
    given = host.inside("cat", f"/proc/{host.show('onblock-services', 'MainPID')}/environ").stdout.split("\0")
    assert {f"{name}={value}" for name, value in (SERVER | SETTINGS).items()} <= set(given), (
        "as it stands in server.env"
    )
    worker = host.inside("cat", f"/proc/{host.show('onblock-worker@1', 'MainPID')}/cmdline").stdout.split("\0")
    assert worker[-2] == str(RUNS_AT_ONCE), worker
    read = host.inside(
        "setpriv", "--reuid=onblock", "--regid=onblock", "--clear-groups", "cat", "/etc/onblock/server.env"
    )
    assert (read.returncode, read.stdout) == (1, "") and "Permission denied" in read.stderr

    before = {part: host.show(part, "MainPID") for part in PARTS}
    for part in PARTS:  # the process that systemd knows, and whatever it started
        host.systemctl("kill", "--signal=KILL", part)
    for part in PARTS:
        until(f"{part} anew", lambda part=part: host.show(part, "MainPID") not in ("0", before[part]), told=fleet.told)
    fleet.up()
    deliver(fleet, client, "killed")

    host.stop()
    host.start()
    fleet.up()
    deliver(fleet, client, "rebooted")

    host.systemctl("stop", *reversed(PARTS))
    left = {part: (host.show(part, "ActiveState"), host.show(part, "Result")) for part in PARTS}
    assert left == dict.fromkeys(PARTS, ("inactive", "success")), fleet.told()
    assert host.inside("ps", "-u", "onblock", "-o", "args=").stdout == "", "something was left running"


def test_an_agent_comes_back_and_ends_in_order(fleet: Host) -> None:
    """Without a server, as in the field."""
    host, unit = fleet.systemd, "onblock-agent@cam-01"
    host.systemctl("start", unit)
    until("an agent", (host.disk / "var/lib/onblock/agent/status.json").exists, told=fleet.told)
    first = host.show(unit, "MainPID")
    host.systemctl("kill", "--signal=KILL", unit)
    until("another agent", lambda: host.show(unit, "MainPID") not in ("0", first), told=fleet.told)
    assert host.show(unit, "NRestarts") == "1"
    host.systemctl("stop", unit)
    assert (host.show(unit, "ActiveState"), host.show(unit, "Result")) == ("inactive", "success"), fleet.told()

    for _ in range(4):  # whatever it is at: the first lines of Python, half its modules, its parts
        host.systemctl("start", unit)
        time.sleep(random.uniform(0, 4))
        host.systemctl("stop", unit)
        assert (host.show(unit, "ActiveState"), host.show(unit, "Result")) == ("inactive", "success"), fleet.told()
        assert host.inside("ps", "-u", "onblock", "-o", "args=").stdout == "", "something was left running"
