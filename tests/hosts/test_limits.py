"""Limits hold and no device starves where eight workers are at work, as the devices' and the storage's own servers saw it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient

from tests.deployments.conftest import until
from tests.hosts.conftest import Fleet, most_at_once, named

MIB = 1 << 20
WORKERS = 8
IN_ALL = 4


def limit(client: SyncPrefectClient, tag: str, slots: int) -> None:
    """As somebody changes it in the UI."""
    client.create_concurrency_limit(tag=tag, concurrency_limit=slots)
    assert client.read_concurrency_limit_by_tag(tag).concurrency_limit == slots


def job(fleet: Fleet, name: str, device: str, source: Path, archive: Path, files: int, **keys: Any) -> dict[str, Any]:
    """A job whose every file is a shipment of its own."""
    source.mkdir(parents=True)
    for n in range(files):
        (source / f"{name}-{n:02}.bin").write_bytes(os.urandom(MIB))
    return {
        "name": name, "device": device, "source": fleet.place(fleet.devices, source), "shipping": {"large": 1000},
        "destination": fleet.place(fleet.storage, archive), "manifest": None, **keys,
    }  # fmt: skip


def workers(fleet: Fleet) -> None:
    for n in range(WORKERS):
        fleet.worker((fleet.a, fleet.b)[n % 2], 1 + n // 2)


def test_limits_of_devices_and_in_all(fleet: Fleet) -> None:
    """Six devices, two jobs each. Nothing can be seen of who waits: only of who is at work."""
    cards, archive = fleet.devices.new_folder(), fleet.storage.new_folder()
    slots = {f"cam-{d}": 1 + d % 2 for d in range(6)}
    jobs = [
        job(fleet, f"{device}-{part}", device, cards / device / part, archive, 3) for device in slots for part in ("a", "b")
    ]
    for device, n in slots.items():
        limit(fleet.client, f"device:{device}", n)
    limit(fleet.client, "onblock", IN_ALL)
    fleet.deploy(*jobs)
    workers(fleet)
    fleet.hosts["device"].slow(3 * MIB)
    before, began = len(fleet.devices.trail()), time.monotonic()
    runs = [fleet.begin(one["name"]) for one in jobs]
    until("all files", lambda: len(list(archive.glob("cam-*"))) == 3 * len(jobs), told=fleet.said)
    print("took", time.monotonic() - began)
    for run in runs:
        done = fleet.ended(run)
        assert done.state is not None and done.state.is_completed(), done.state
    trail = fleet.devices.trail()[before:]
    seen = {device: most_at_once(trail, cards / device, "READ") for device in slots}
    assert seen == slots, "each device was as busy as it may be, and no more"
    assert most_at_once(trail, cards, "READ") == IN_ALL
    assert sorted(named(fleet.storage.trail(), archive)) == sorted(p.name for p in archive.iterdir())


def test_a_small_device_that_comes_late_does_not_starve(fleet: Fleet) -> None:
    """Two with many files have all the slots there are. The third one's are delivered while most of theirs still wait."""
    cards, archive = fleet.devices.new_folder(), fleet.storage.new_folder()
    jobs = [job(fleet, f"greedy-{n}", f"greedy-{n}", cards / f"greedy-{n}", archive, 30) for n in range(2)]
    small = job(fleet, "small", "small", cards / "small", archive, 2)
    for one in (*jobs, small):
        limit(fleet.client, f"device:{one['device']}", 2)
    limit(fleet.client, "onblock", IN_ALL)
    fleet.deploy(*jobs, small)
    workers(fleet)
    fleet.hosts["device"].slow(2 * MIB)
    for one in jobs:
        fleet.begin(one["name"])
    until("greedy devices at work", lambda: len(named(fleet.storage.trail(), archive)) >= 8, told=fleet.said)
    began = time.monotonic(); print(len(named(fleet.storage.trail(), archive)))
    run = fleet.begin("small")
    fleet.ended(run)
    print("small took", time.monotonic() - began, [name.partition("-")[0] for name in named(fleet.storage.trail(), archive)])
    fleet.hosts["device"].slow(None)
    until("all files", lambda: len(list(archive.iterdir())) == 62, told=fleet.said)
    order = [name.rpartition("-")[0] for name in named(fleet.storage.trail(), archive)]
    last = max(n for n, name in enumerate(order) if name == "small")
    print(last, order)
    assert last < 40, order
