"""Cables between hosts are cut, slowed and put back, and a host loses its power, while a job is at work."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from pathlib import Path

from prefect.client.schemas.objects import FlowRun

from tests.deployments.conftest import until
from tests.hosts.conftest import Fleet, named, told

MIB = 1 << 20
RATE = 12 * MIB
"""Bytes a second by the devices' cable."""
TWICE = 40 * MIB
"""So many bytes of a file may travel twice: from the last checkpoint (16 MiB apart), what was under way, and the protocol."""


class Job:
    """Files of a device on their way to the storage."""

    def __init__(self, fleet: Fleet, name: str, files: dict[str, int], **keys: object):
        self.fleet, self.name = fleet, name
        self.card, self.archive = fleet.devices.new_folder(), fleet.storage.new_folder()
        self.sums: dict[str, str] = {}
        for path, size in files.items():
            content = os.urandom(size)
            (self.card / path).write_bytes(content)
            self.sums[path] = hashlib.sha256(content).hexdigest()
        fleet.deploy({
            "name": name, "source": fleet.place(fleet.devices, self.card), "device": f"cam-{name}",
            "destination": fleet.place(fleet.storage, self.archive), **keys,
        })  # fmt: skip

    def part(self) -> int:
        """Bytes of what is on its way, at the storage."""
        return sum(p.stat().st_size for p in self.archive.glob(".onblock-*"))

    def under_way(self, bytes_: int) -> None:
        until(f"{bytes_} bytes of a file", lambda: self.part() >= bytes_, told=self.fleet.said)

    def all_arrived_once(self) -> None:
        """As the storage and its sshd have it, and the ledger."""
        found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in self.archive.iterdir()}
        found.pop("checksums.sha256")
        assert found == self.sums
        names = Counter(named(self.fleet.storage.trail(), self.archive))
        names.pop("checksums.sha256", None)
        assert names == dict.fromkeys(self.sums, 1), told(names)
        rows = self.fleet.rows(self.name)
        assert {r["path"]: r["state"] for r in rows} == dict.fromkeys(self.sums, "VERIFIED"), told(rows)

    def completed(self, run: FlowRun) -> FlowRun:
        done = self.fleet.ended(run)
        assert done.state is not None
        assert done.state.is_completed(), f"{done.state}\n{self.fleet.said()}"
        return done


def waits_to_try_again(fleet: Fleet, run: FlowRun) -> bool:
    return any(task.state_name == "AwaitingRetry" for task in fleet.tasks(run.id))


def test_the_cable_to_the_device_is_cut_in_mid_file(fleet: Fleet) -> None:
    job = Job(fleet, "device-cut", {"clip.mp4": 96 * MIB})
    fleet.worker(fleet.a)
    device = fleet.hosts["device"]
    device.slow(RATE)
    sent = device.sent()
    run = fleet.begin(job.name)
    job.under_way(48 * MIB)
    device.cut()
    until("a task that waits to try again", lambda: waits_to_try_again(fleet, run), told=fleet.said)
    device.mend()
    job.completed(run)
    job.all_arrived_once()
    sent = device.sent() - sent
    assert 96 * MIB < sent < 96 * MIB + TWICE, f"{sent / MIB:.0f} MiB left the device"


def test_the_cable_to_the_storage_is_slow_for_a_while(fleet: Fleet) -> None:
    job = Job(fleet, "storage-slow", {"clip.mp4": 48 * MIB})
    fleet.worker(fleet.a)
    device, storage = fleet.hosts["device"], fleet.hosts["storage"]
    device.slow(RATE)
    sent = device.sent()
    run = fleet.begin(job.name)
    job.under_way(16 * MIB)
    storage.slow(MIB // 4)
    there = job.part()
    job.under_way(there + 2 * MIB)
    assert job.part() < 48 * MIB and not fleet.client.read_flow_run(run.id).state.is_final()  # type: ignore[union-attr]
    storage.slow(None)
    job.completed(run)
    job.all_arrived_once()
    assert [r["attempt"] for r in fleet.rows(job.name)] == [1], f"something was broken off\n{fleet.said()}"
    sent = device.sent() - sent
    assert sent < 48 * MIB * 1.2, f"{sent / MIB:.0f} MiB left the device"


def test_the_cable_to_the_server_is_cut_for_20_s(fleet: Fleet) -> None:
    """Prefect and the ledger are away, the files and their storage are not."""
    small = {f"{n:03}.jpg": 10_000 for n in range(200)}
    job = Job(fleet, "server-cut", {"clip.mp4": 64 * MIB, **small}, shipping={"max_files": 50})
    fleet.worker(fleet.a)
    fleet.hosts["device"].slow(4 * MIB)
    run = fleet.begin(job.name)
    job.under_way(16 * MIB)
    fleet.server.cut()
    there, cut = job.part(), time.monotonic()
    job.under_way(there + 8 * MIB)  # nobody needs the server for that
    until("the end of the 20 s", lambda: time.monotonic() - cut >= 20)
    fleet.hosts["device"].slow(None)
    fleet.server.mend()
    done = job.completed(run)
    assert done.run_count == 1
    job.all_arrived_once()
    assert {r["attempt"] for r in fleet.rows(job.name)} == {1}


def test_a_worker_loses_its_power_and_another_goes_on(fleet: Fleet) -> None:
    """Nobody is left to tell Prefect or the ledger: the run is taken for dead after its heartbeats have stopped, its
    files are free when its lease has ended, and the other host goes on in mid-file."""
    small = {f"{n:03}.jpg": 10_000 for n in range(50)}
    job = Job(fleet, "power-cut", {"clip.mp4": 96 * MIB, **small})
    fleet.worker(fleet.a)
    device = fleet.hosts["device"]
    device.slow(8 * MIB)
    sent = device.sent()
    run = fleet.begin(job.name)
    job.under_way(48 * MIB)
    fleet.a.power_cut()
    device.slow(RATE)
    fleet.worker(fleet.b)
    done = job.completed(run)
    assert done.run_count == 2
    runs = [
        r["worker"].partition("/")[0]
        for r in fleet.ask("SELECT worker FROM runs WHERE job = %s ORDER BY started_at", job.name)
    ]
    assert runs == ["worker-a", "worker-b"]
    job.all_arrived_once()
    sent = device.sent() - sent
    assert sent < 96 * MIB + TWICE, f"{sent / MIB:.0f} MiB left the device"


def test_a_device_that_stays_dark(fleet: Fleet) -> None:
    """The run says so and ends, nothing is taken for delivered, and somebody will look again."""
    job = Job(fleet, "dark", {"clip.mp4": 96 * MIB})
    fleet.worker(fleet.a)
    device = fleet.hosts["device"]
    device.slow(RATE)
    run = fleet.begin(job.name)
    job.under_way(20 * MIB)
    device.cut()
    done = fleet.ended(run)
    assert done.state is not None
    assert done.state.name in ("Deferred", "Failed"), done.state
    assert "1 deferred; the next try is at" in (done.state.message or ""), done.state
    (row,) = fleet.rows(job.name)
    assert (row["state"], row["kind"]) == ("QUEUED", "NETWORK") and row["next_attempt_at"], told(row)
    assert not Path(job.archive, "clip.mp4").exists() and not named(fleet.storage.trail(), job.archive)
