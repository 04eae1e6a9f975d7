"""Limits hold and no device starves where eight workers are at work: as the storage's own server saw it, which writes down
when a file is opened, and when it gets its final name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployments.conftest import until
from tests.hosts.conftest import Fleet, at_once, named

SIZE = 1 << 19
SLOW = SIZE * 3 // 4
"""Bytes a second: a file takes longer than all that is done about it."""
WORKERS = 8
IN_ALL = 4
PATIENT = {"connect_timeout": 60, "io_timeout": 60}
"""Eight workers and slow cables: nobody is given up here."""


@pytest.fixture(scope="module")
def crowd(whole_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, with eight workers on two hosts. They take a while to start."""
    hosts = whole_fleet.a, whole_fleet.b
    for n in range(WORKERS):
        whole_fleet.worker(hosts[n % 2], 1 + n // 2)
    yield whole_fleet
    for host in hosts:
        host.power_cut()
        host.mend()


@pytest.fixture
def fleet(crowd: Fleet) -> Iterator[Fleet]:
    with crowd.well():
        yield crowd


def limit(fleet: Fleet, tag: str, slots: int) -> None:
    """As somebody changes it in the UI."""
    fleet.client.create_concurrency_limit(tag=tag, concurrency_limit=slots)
    assert fleet.client.read_concurrency_limit_by_tag(tag).concurrency_limit == slots


def job(fleet: Fleet, name: str, source: Path, destination: Any, files: int, **keys: Any) -> dict[str, Any]:
    """A job whose every file, of half a MiB, is a shipment of its own. Its device is its name up to the dot."""
    source.mkdir(parents=True)
    for n in range(files):
        (source / f"{name}-{n:02}.bin").write_bytes(os.urandom(SIZE))
    return {
        "name": name, "device": name.partition(".")[0], "source": fleet.place(fleet.devices, source, **PATIENT),
        "shipping": {"large": 1000}, "destination": destination, "manifest": None, **keys,
    }  # fmt: skip


def completed(fleet: Fleet, *names: str) -> None:
    """Jobs are begun, all at once, and complete."""
    for run in [fleet.begin(name) for name in names]:
        done = fleet.ended(run)
        assert done.state is not None and done.state.is_completed(), f"{done.state}\n{fleet.said()}"


def test_limits_of_devices_and_in_all(fleet: Fleet) -> None:
    """Six devices, two jobs each, as many as may for each device: one or two. All at once would be 24."""
    cards, archive = fleet.devices.new_folder(), fleet.storage.new_folder()
    slots = {f"cam-{d}": 1 + d % 2 for d in range(6)}
    place = fleet.place(fleet.storage, archive, **PATIENT)
    jobs = [job(fleet, f"{device}.{part}", cards / device / part, place, 2) for device in slots for part in "ab"]
    for device, n in slots.items():
        limit(fleet, f"device:{device}", n)
    limit(fleet, "onblock", IN_ALL)
    fleet.deploy(*jobs)
    fleet.hosts["storage"].slow(SLOW)
    completed(fleet, *(one["name"] for one in jobs))
    names = sorted(p.name for p in archive.iterdir())
    assert len(names) == 24 and sorted(named(fleet.storage.trail(), archive)) == names
    found = at_once(fleet.storage.trail(), archive, lambda name: name.partition(".")[0])
    assert {device: n for device, n in found.items() if n > slots[device]} == {}, "more at work than may be"
    in_all = at_once(fleet.storage.trail(), archive, lambda name: "all")["all"]
    assert 1 < in_all <= IN_ALL, "how many are at work depends on the machine, the limit does not"


@pytest.mark.parametrize("steps", [[], [{"kind": "rename", "prefix": "ready_"}]], ids=["direct", "processed"])
def test_the_limit_of_a_destination(fleet: Fleet, steps: list[dict[str, Any]]) -> None:
    """The files of three devices go to one block, one file at a time, as they are, or processed before."""
    cards, archive = fleet.devices.new_folder(), fleet.storage.new_folder()
    save = "import json, sys; from blocks.storage import SftpStorage as S; S(**json.load(sys.stdin)).save('nas', overwrite=True)"
    fields = {k: v for k, v in fleet.place(fleet.storage, archive, **PATIENT).items() if k != "type"}
    fleet.python("-c", save, given=fields)
    kind = "step" if steps else "direct"
    jobs = [job(fleet, f"{kind}-{n}.a", cards / f"{n}", "sftp-storage/nas", 3, steps=steps) for n in range(3)]
    limit(fleet, "destination:nas", 1)
    fleet.deploy(*jobs)
    fleet.hosts["storage"].slow(SLOW)
    completed(fleet, *(one["name"] for one in jobs))
    assert len(list(archive.iterdir())) == 9
    assert at_once(fleet.storage.trail(), archive, lambda name: "all") == {"all": 1}


def test_a_small_device_that_comes_late_does_not_starve(fleet: Fleet) -> None:
    """Two with many files have all the slots there are. The third one's are delivered while most of theirs still wait."""
    cards, archive = fleet.devices.new_folder(), fleet.storage.new_folder()
    place = fleet.place(fleet.storage, archive, **PATIENT)
    greedy = [job(fleet, name, cards / name, place, 40) for name in ("greedy-1.a", "greedy-2.a")]
    limit(fleet, "onblock", IN_ALL)
    fleet.deploy(*greedy, job(fleet, "small.a", cards / "small", place, 2))
    fleet.hosts["storage"].slow(2 * SLOW)

    def delivered() -> list[str]:
        return [name.partition(".")[0] for name in named(fleet.storage.trail(), archive)]

    for one in greedy:
        fleet.begin(one["name"])
    until("greedy devices at work", lambda: len(delivered()) >= 4, told=fleet.said)
    run = fleet.begin("small.a")
    came = f'opendir "{cards}/small'
    until("a third one", lambda: any(line.startswith(came) for line in fleet.devices.trail()), told=fleet.said)
    before = len(delivered())
    until("its files", lambda: delivered().count("small") == 2, told=fleet.said)
    assert len(delivered()) - before <= 16, delivered()
    assert fleet.ended(run).state_name == "Completed"
