"""Room that is kept free for files on their way: on real small disks, between runs, and in the spool."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from blocks.errors import Kind
from blocks.storage import LocalStorage, RsyncStorage, SftpStorage
from flows.ledger import Ledger, State
from flows.ledger.models import Berth
from flows.transfer import senders
from flows.transfer.reservations import PROCESSING, Reservations, disk_of, free_at, needed, place_of
from flows.transfer.run import TransferRun
from flows.transfer.story import carry_out, deliver_shipment, here
from tests.faults.breaking import BreakingStorage, broken
from tests.ledger.crowd import at_once, killed
from tests.servers.sshd import Sshd
from tests.transfer.conftest import Bench

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "onblock-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def rows(job: str | None = None) -> dict[str, dict[str, Any]]:
    with Ledger.open() as ledger:
        return {r["path"]: r for r in ledger.files(job=job)}


def reserved(ledger: Ledger) -> list[int]:
    with ledger.engine.begin() as c:
        return list(c.execute(select(Berth.reserved)).scalars())


# -- how much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"size": 0}, 0), ({"size": 1}, 2), ({"size": 10}, 11), ({"size": 100 * MIB}, 110 * MIB),
        ({"size": 100, "there": 90}, 11), ({"size": 100, "there": 100}, 0), ({"size": 100, "there": 101}, 0),
        ({"size": 100, "factor": PROCESSING}, 200), ({"size": 3, "factor": Fraction(3, 2)}, 5),
        ({"size": -1}, 777), ({"size": -1, "factor": PROCESSING}, 777),
        ({"size": 0, "growing": True}, 777), ({"size": 10, "growing": True}, 11),
        ({"size": 1 << 60}, -(-(1 << 60) * 11 // 10)),
    ],
)  # fmt: skip
def test_needed(given: dict[str, Any], expected: int) -> None:
    assert needed(given.pop("size"), unknown=777, **given) == expected


def test_folders_of_one_disk_share_their_room(tmp_path: Path, small_disk: Path, sshd: Sshd) -> None:
    (tmp_path / "a").mkdir()
    one, two, other = (
        LocalStorage(root=str(tmp_path)),
        LocalStorage(root=str(tmp_path / "a")),
        LocalStorage(root=str(small_disk)),
    )
    places = []
    for storage in (one, two, other):
        with storage.open() as session:
            places.append(place_of(storage, session))
    assert places[0] == places[1] != places[2]
    assert disk_of(tmp_path / "not" / "made" / "yet") == places[0]
    assert free_at(small_disk / "not" / "made") == 40 * MIB
    info = sshd.info
    far = SftpStorage(
        host=info["host"], port=info["port"], user=info["user"], key_file=info["key"], known_hosts=info["known_hosts"],
        root=str(sshd.new_folder()),
    )  # fmt: skip
    with far.open() as session:
        assert place_of(far, session) == f"room {far.place()}"


# -- one run ----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_fails_before_its_first_byte_and_the_rest_goes(bench: Bench, small_disk: Path) -> None:
    files = {f"s{n:02}": content(MIB, n) for n in range(30)}  # one shipment, of which 30 MiB and a tenth fit
    for path, data in (files | {"huge": bytes(41 * MIB), "z": b"z"}).items():
        bench.put(path, data)
    to = BreakingStorage.at(small_disk)
    summary = bench.run(destinations=[to], shipping={"at_once": 1}, manifest=None)
    assert (summary["delivered"], summary["failed"], summary["deferred"]) == (31, 1, 0)
    row = rows()["huge"]
    assert (row["state"], row["kind"], row["stage"]) == (State.FAILED, Kind.DISK_FULL, "write")
    assert "needs 47,290,778 bytes free" in row["message"] and row["next_attempt_at"] is None
    assert to.cable.written == 30 * MIB + 1
    assert bench.files(small_disk) == files | {"z": b"z"}


def test_a_shipment_of_which_some_fit(bench: Bench, small_disk: Path) -> None:
    for n in range(50):
        bench.put(f"s{n:02}", content(MIB, n))
    summary = bench.run(destinations=[LocalStorage(root=str(small_disk))], shipping={"at_once": 2})
    assert summary["delivered"] + summary["failed"] == 50
    assert 34 <= summary["delivered"] <= 36, "40 MiB, each file and a tenth"
    assert {r["kind"] for r in rows().values() if r["state"] == State.FAILED} == {Kind.DISK_FULL}
    assert len(bench.files(small_disk)) == summary["delivered"]
    # somebody made room
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    again = bench.run(destinations=[LocalStorage(root=str(small_disk))])
    assert (again["delivered"], again["failed"]) == (50 - summary["delivered"], 0)


def test_shipments_at_once_do_not_stand_in_each_others_way(bench: Bench, small_disk: Path) -> None:
    """What is written is no longer reserved: four shipments of 8 MiB, two at a time, fit into 40 MiB."""
    for n in range(32):
        bench.put(f"s{n:02}", content(MIB, n))
    summary = bench.run(destinations=[LocalStorage(root=str(small_disk))], shipping={"at_once": 2, "max_files": 8})
    assert (summary["delivered"], summary["failed"]) == (32, 0)


def test_the_other_destination_gets_what_does_not_fit_here(bench: Bench, small_disk: Path) -> None:
    bench.put("huge", bytes(41 * MIB))
    bench.put("a", b"a")
    summary = bench.run(destinations=[LocalStorage(root=str(small_disk)), LocalStorage(root=str(bench.archive))])
    assert (summary["delivered"], summary["failed"]) == (3, 1)
    assert bench.files().keys() == {"huge", "a"} and bench.files(small_disk).keys() == {"a"}


def test_a_file_that_goes_on_needs_only_what_is_missing(bench: Bench, small_disk: Path) -> None:
    data = content(34 * MIB)
    bench.put("large", data)
    to = BreakingStorage.at(small_disk)
    to.cable.at = {33 * MIB: broken}
    job = bench.job(destinations=[to])
    with Ledger.open() as ledger, TransferRun(job, ledger) as run, pytest.raises(senders.Unfinished):
        for shipment in _shipments(run):
            deliver_shipment(run, shipment)
    assert free_at(small_disk) < 34 * MIB
    with Ledger.open() as ledger, ledger.engine.begin() as c:
        c.exec_driver_sql("UPDATE files SET next_attempt_at = NULL")
    assert bench.run(destinations=[to])["delivered"] == 1
    assert bench.files(small_disk) == {"large": data}


def _shipments(run: TransferRun) -> Any:
    from flows.transfer.story import shipments

    return shipments(run)


def test_one_statement_a_shipment_and_nothing_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = Ledger.reserve

    def counted(self: Ledger, run_id: str, place: str, wanted: int, free: int) -> Any:
        calls.append(wanted)
        return real(self, run_id, place, wanted, free)

    monkeypatch.setattr(Ledger, "reserve", counted)
    for n in range(300):
        bench.put(f"s{n:03}", content(1000, n))
    with Ledger.open() as ledger, TransferRun(bench.job(shipping={"max_files": 100, "at_once": 1}), ledger) as run:
        assert carry_out(run, here(run))["delivered"] == 300
        assert calls == [110_000] * 3, "each is done with when the next one asks"
        run.room.tell()
        assert reserved(ledger) == [0]
    with Ledger.open() as ledger:
        assert reserved(ledger) == []


def test_where_nobody_can_say_how_much_is_free_nothing_is_checked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.faults.breaking import BreakingSession

    monkeypatch.setattr(BreakingSession, "free_bytes", lambda self: None)
    monkeypatch.setattr(Ledger, "reserve", lambda *a: pytest.fail("nothing to reserve"))
    bench.put("a", b"a")
    assert bench.run(destinations=[BreakingStorage.at(bench.archive)])["delivered"] == 1


# -- several runs -----------------------------------------------------------------------------------------------------


def test_two_that_fit_alone_but_not_together(bench: Bench, small_disk: Path, tmp_path: Path) -> None:
    """While one run writes, another comes: it fails before its first byte, and goes when the first has gone on."""
    bench.put("one", content(24 * MIB))
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "two").write_bytes(content(24 * MIB, 2))
    os.utime(tmp_path / "second" / "two", (1_700_000_000, 1_700_000_000))
    (small_disk / "a").mkdir()
    (small_disk / "b").mkdir()
    to_a, to_b = BreakingStorage.at(small_disk / "a"), BreakingStorage.at(small_disk / "b")
    second: dict[str, Any] = {
        "name": "second",
        "source": LocalStorage(root=str(tmp_path / "second")),
        "destinations": [to_b],
    }
    found: list[dict[str, Any]] = []
    to_a.cable.at = {4 * MIB: lambda: found.append(bench.run(**second))}
    assert bench.run(destinations=[to_a])["delivered"] == 1
    assert (found[0]["delivered"], found[0]["failed"]) == (0, 1)
    assert to_b.cable.written == 0
    row = rows("second")["two"]
    assert (row["state"], row["kind"]) == (State.FAILED, Kind.DISK_FULL)
    assert "reserved by other transfers" in row["message"]
    (small_disk / "a" / "one").unlink()
    assert bench.run(**second)["delivered"] == 1


def _fill(number: int, meet: Callable[[], object], home: str, card: str, disk: str) -> dict[str, Any]:
    os.environ["ONBLOCK_HOME"] = home
    from flows.transfer.job import TransferJob
    from flows.transfer.story import run_here

    source, to = Path(card) / str(number), Path(disk) / str(number)
    source.mkdir()
    to.mkdir()
    for n in range(6):
        (source / f"{n}").write_bytes(content(6 * MIB, n))
        os.utime(source / f"{n}", (1_700_000_000, 1_700_000_000))
    job = TransferJob(
        name=f"job{number}", source=LocalStorage(root=str(source)), destination=LocalStorage(root=str(to)),
        manifest=None, shipping={"max_files": 1},  # type: ignore[arg-type]
    )  # fmt: skip
    meet()
    return run_here(job)


def test_runs_at_once_never_fill_a_disk(bench: Bench, small_disk: Path, onblock_home: Path) -> None:
    """Three processes bring 108 MiB to a disk of 40 MiB: what arrives is whole, and nobody ever hears that it is full."""
    done = at_once(3, _fill, str(onblock_home), str(bench.card), str(small_disk))
    delivered = sum(d["delivered"] for d in done)
    assert sum(d["failed"] for d in done) == 18 - delivered
    assert 1 <= delivered <= 6, "room may seem smaller than it is, never larger"
    with Ledger.open() as ledger:
        failed = [r for r in ledger.files() if r["state"] == State.FAILED]
        assert {r["kind"] for r in failed} == {Kind.DISK_FULL}
        assert all("bytes free at" in r["message"] for r in failed), "refused before, not by the disk"
        assert reserved(ledger) == []
    assert sorted(p.stat().st_size for p in small_disk.rglob("*") if p.is_file()) == [6 * MIB] * delivered


def test_what_a_killed_run_had_reserved_is_free_at_once(bench: Bench, small_disk: Path) -> None:
    with Ledger.open() as ledger:
        dead = ledger.begin_run("other", flight=None, device=None)
        ledger.reserve(dead, disk_of(small_disk), 39 * MIB, 40 * MIB)
        job = bench.job(destinations=[LocalStorage(root=str(small_disk))])
        with TransferRun(job, ledger) as run:
            killed(ledger, dead)  # after the run has begun, which looks for the dead
            bench.put("a", content(20 * MIB))
            assert carry_out(run, here(run))["delivered"] == 1


def test_what_is_written_is_given_back_while_a_file_is_on_its_way(bench: Bench, small_disk: Path) -> None:
    bench.put("large", content(32 * MIB))
    to = BreakingStorage.at(small_disk)
    with Ledger.open() as ledger, TransferRun(bench.job(destinations=[to]), ledger) as run:
        seen: list[int] = []

        def look() -> None:
            run.room.tell()
            seen.extend(reserved(ledger))

        to.cable.at = {16 * MIB: look}
        assert carry_out(run, here(run))["delivered"] == 1
    assert len(seen) == 1 and 17 * MIB <= seen[0] <= 23 * MIB


def test_reservations_of_a_run_add_up(tmp_path: Path) -> None:
    with Ledger.open() as ledger:
        room = Reservations(ledger, ledger.begin_run("job", flight=None, device=None))
        one, fits = room.take("disk", [10, 20], lambda: 100)
        assert fits == [None, None] and reserved(ledger) == [30]
        two, fits = room.take("disk", [50, 30, 20, 1], lambda: 100)
        assert fits == [None, 20, None, 0] and reserved(ledger) == [100]
        one.wrote(10)
        _, fits = room.take("disk", [20], lambda: 90)
        assert fits == [1] and one.left == 19
        room.release("disk", two)
        assert room.take("disk", [20], lambda: 90)[1] == [None]
        assert reserved(ledger) == [39]
        room.tell()
        assert reserved(ledger) == [39]


def test_what_another_writes_while_we_look_at_the_disk_counts() -> None:
    """Free space is seen, then another run writes 60 of its 70 and gives them back: nothing of that may be ours as well."""
    with Ledger.open() as ledger:
        other = ledger.begin_run("other", flight=None, device=None)
        assert ledger.reserve(other, "disk", 70, 100).granted
        asked: list[int] = []

        def free() -> int:
            asked.append(100 if not asked else 40)
            if len(asked) == 1:
                ledger.reserved(other, {"disk": 10})
            return asked[-1]

        room = Reservations(ledger, ledger.begin_run("job", flight=None, device=None))
        assert room.take("disk", [20, 40, 10], free)[1] == [None, 10, None]
        assert sorted(reserved(ledger)) == [10, 30]


# -- the spool --------------------------------------------------------------------------------------------------------


def test_a_spool_without_room_is_not_used(
    bench: Bench, sshd: Sshd, small_disk: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    """Small files of a far place are then read one by one, as they are without a spool."""
    info = sshd.info
    source = RsyncStorage(
        host=info["host"], port=info["port"], user=info["user"], key_file=info["key"], known_hosts=info["known_hosts"],
        root=str(bench.card),
    )  # fmt: skip
    for n in range(20):
        bench.put(f"s{n:02}", content(2 * MIB, n))  # 40 MiB, and a tenth
    monkeypatch.setenv("ONBLOCK_LEDGER_URL", postgres_url)
    monkeypatch.setenv("ONBLOCK_HOME", str(small_disk))
    pulled: list[int] = []
    from blocks.storage.rsync import RsyncSession

    real = RsyncSession.pull
    monkeypatch.setattr(
        RsyncSession, "pull", lambda self, files, *a: (pulled.append(len(files)), real(self, files, *a))[1]
    )
    summary = bench.run(source=source, shipping={"at_once": 1, "max_files": 4096})
    assert (summary["delivered"], summary["failed"]) == (20, 0)
    assert sum(pulled) in (0, 10), "all of them, or one of the two strips that work side by side, has no room"
    bench.check_manifest()
