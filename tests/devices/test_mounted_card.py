"""A card that is really mounted, taken out, put back and swapped."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from blocks.devices import MountedCard, mounted_card
from blocks.devices.mounted_card import Card, mounts, unmount_failure
from blocks.errors import ConfigError, NetworkError, NotFound, OnblockError, UnknownError
from flows.ledger import Ledger
from tests.contract.data import fetch, listing, payload
from tests.contract.device_places import mounted
from tests.devices.conftest import MIB, Flight, TransferJob, put
from tests.faults.breaking import BreakingStorage

SIZE = 40 * MIB


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Path]:
    """A mount point with a card in it, which has a DCIM folder."""
    with mounted(tmp_path / "slot") as point:
        (point / "DCIM").mkdir()
        yield point


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """`disks("by-uuid/1A2B-3C4D", slot)` has udev know the file system that is mounted there."""
    folder = tmp_path / "disk"
    for name in ("by-uuid", "by-label"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setattr(mounted_card, "DISKS", folder)

    def know(name: str, point: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mknod(folder / name, stat.S_IFBLK | 0o600, point.stat().st_dev)

    return know


def take_out(point: Path) -> None:
    """As udisks does when a card is pulled: what is open stays open, the folder is empty."""
    subprocess.run(["umount", "-l", str(point)], check=True)


def put_in(point: Path) -> None:
    """Another card."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "card", str(point)], check=True)
    (point / "DCIM").mkdir()


def the_card(slot: Path, **keys: object) -> MountedCard:
    return MountedCard(**{"device": "card", "mount": str(slot), **keys})


# -- there, and which -----------------------------------------------------------------------------------------------


def test_an_empty_mount_point_is_no_empty_card(slot: Path, tmp_path: Path) -> None:
    device = the_card(slot)
    assert device.connected()
    take_out(slot)
    for leftovers in (False, True):  # what some program wrote where the card was not
        if leftovers:
            put(slot, "DCIM/stray.mp4", b"x")
        assert "nothing is mounted" in device.presence()
        with pytest.raises(NetworkError):
            device.open()
    assert not the_card(tmp_path / "none").connected()


def test_a_folder_of_a_disk_is_no_card(tmp_path: Path) -> None:
    put(tmp_path, "folder/DCIM/x", b"x")
    assert not the_card(tmp_path / "folder").connected()


def test_a_card_without_recordings(slot: Path) -> None:
    (slot / "DCIM").rmdir()
    assert the_card(slot).connected()
    with pytest.raises(NotFound, match="no folder 'DCIM'"):
        the_card(slot).open()
    with the_card(slot, folder="").open() as session:
        assert listing(session) == set()


@pytest.mark.parametrize("folder", ["DCIM", "DCIM/100"])
def test_a_link_that_a_card_brings_leads_nowhere(slot: Path, tmp_path: Path, folder: str) -> None:
    """`DCIM -> /home/somebody`: what lies there is no recording, and would be deleted by a cleanup."""
    put(tmp_path, "secrets/100/key", b"of this machine")
    (slot / "DCIM").rmdir()
    (slot / "DCIM").symlink_to(tmp_path / "secrets")
    with pytest.raises(ConfigError, match="is a link"):
        the_card(slot, folder=folder).open()


def test_odd_names_among_the_mounts_stop_no_card(tmp_path: Path) -> None:
    line = "36 35 8:1 / /media/{} rw - vfat /dev/sda1 rw\n"
    table = tmp_path / "mountinfo"
    names = ["a\u2028b", "c\rd", "e\x0bf", "plain"]
    table.write_text("".join(line.format(name) for name in names), "utf-8", newline="")
    assert [m.point for m in mounts(str(table))] == [f"/media/{name}" for name in names]


@pytest.mark.parametrize(("keys", "name"), [
    ({"uuid": "1A2B-3C4D"}, "by-uuid/1A2B-3C4D"), ({"label": "CAM ONE/2"}, "by-label/CAM\\x20ONE\\x2f2"),
    ({"label": "Übung"}, "by-label/Übung"),
])  # fmt: skip
def test_found_by_what_is_on_it(
    tmp_path: Path, disks: Callable[[str, Path], None], keys: dict[str, str], name: str
) -> None:
    device = MountedCard(device="card", **keys)
    assert "there is no disk" in device.presence()
    with mounted(tmp_path / "any where\n\\x") as point:  # as the table of mounts writes it: \040, \012, \134
        put(point, "DCIM/x.mp4", b"data")
        disks(name, point)
        assert device.connected()
        with device.open() as session:
            assert fetch(session, "x.mp4") == b"data"
        take_out(point)
        assert "not mounted" in device.presence()
        with pytest.raises(NetworkError):
            device.open()


@pytest.mark.parametrize("keys", [
    {}, {"mount": "/media/x", "uuid": "1"}, {"mount": "media/x"}, {"mount": "/"}, {"mount": "//"}, {"mount": "/a/.."},
    {"mount": "/x\0"}, {"mount": "/x", "folder": "../etc"}, {"mount": "/x", "folder": "a//b"},
])  # fmt: skip
def test_a_block_that_makes_no_sense(keys: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        MountedCard(device="card", **keys)


@pytest.mark.parametrize(("one", "other", "same"), [
    (Card(1, 2, 3, "A"), Card(9, 2, 3, "A"), True),  # put in again, it has another number
    (Card(1, 2, 3, "A"), Card(1, 2, 3, "B"), False),
    (Card(1, 2, 3, "A"), Card(1, 2, 4, "A"), False),  # a copy of it, on a larger card
    (Card(1, 2, 3, ""), Card(1, 2, 3, ""), True),
    (Card(1, 2, 3, ""), Card(9, 2, 3, ""), False),
])  # fmt: skip
def test_which_card_is_which(one: Card, other: Card, same: bool) -> None:
    assert one.is_again(other) is same


def test_the_table_of_mounts_of_this_machine() -> None:
    found = {one.point: one for one in mounts()}
    assert "/" in found
    assert found["/proc"].kind == "proc"
    with pytest.raises(OnblockError):
        mounts("/nowhere")


# -- in the middle --------------------------------------------------------------------------------------------------


def test_taken_out_while_it_is_listed(slot: Path) -> None:
    """A listing that ends because the card went is no listing: it would tell of files that are gone."""
    for n in range(100):
        put(slot, f"DCIM/{n % 5}/{n}.jpg", b"x")
    with the_card(slot).open() as session:
        scan = session.scan()
        next(scan)
        take_out(slot)
        with pytest.raises(NetworkError, match="gone"):
            list(scan)


@pytest.mark.parametrize("then", ["nothing", "another"])
def test_taken_out_while_it_is_read(slot: Path, then: str) -> None:
    put(slot, "DCIM/a.mp4", payload(MIB))
    with the_card(slot).open() as session, session.read("a.mp4") as reader:
        assert reader.readinto(bytearray(1000)) == 1000
        take_out(slot)
        if then == "another":
            put_in(slot)
            put(slot, "DCIM/a.mp4", payload(MIB, 2))
        for attempt in (
            reader.info, lambda: session.stat("a.mp4") and session.read("a.mp4"), lambda: session.read("b.mp4"),
            lambda: session.checksum("a.mp4"), lambda: session.local_path("a.mp4"), lambda: session.delete("a.mp4"),
            lambda: session.move("a.mp4", "b.mp4"), lambda: list(session.scan()),
        ):  # fmt: skip
            with pytest.raises(NetworkError):
                attempt()
        if then == "another":
            assert (slot / "DCIM/a.mp4").read_bytes() == payload(MIB, 2)


class CardFlight(Flight):
    """With a destination that counts what arrives, to do something in the middle."""

    def at(self, count: int, what: Callable[[], object]) -> TransferJob:
        to = BreakingStorage.at(self.archive)
        to.cable.at = {count: what}
        return self.job(destination=to)


@pytest.fixture
def card_flight(slot: Path, tmp_path: Path) -> CardFlight:
    return CardFlight(the_card(slot), slot / "DCIM", tmp_path / "archive")


def carried_out(job: TransferJob) -> dict[str, object]:
    from flows.transfer.story import run_here

    return run_here(job)


def states() -> dict[str, str]:
    with Ledger.open() as ledger:
        return {r["path"]: r["state"] for r in ledger.files()}


def test_two_files_of_one_name(card_flight: CardFlight) -> None:
    content = {f"{d}MEDIA/DJI_0001.MP4": card_flight.put(f"{d}MEDIA/DJI_0001.MP4", 500_000, d) for d in (100, 101)}
    assert card_flight.run()["delivered"] == 2
    assert card_flight.arrived() == content
    assert card_flight.run()["delivered"] == 0


@pytest.mark.usefixtures("at_once")
def test_taken_out_in_the_middle_of_a_run(card_flight: CardFlight, slot: Path, tmp_path: Path) -> None:
    """Nothing partial arrives, nothing counts as lost, and the next run brings the rest."""
    content = {f"100MEDIA/{n}.MP4": card_flight.put(f"100MEDIA/{n}.MP4", SIZE, n) for n in range(3)}
    kept = tmp_path / "kept"
    shutil.copytree(slot / "DCIM", kept)
    summary = carried_out(card_flight.at(50 * MIB, lambda: take_out(slot)))
    assert summary["failed"] == 0
    arrived = card_flight.arrived()
    assert len(arrived) < 3
    assert arrived.items() <= content.items()
    assert set(states().values()) <= {"VERIFIED", "QUEUED"}
    with pytest.raises(NetworkError):
        card_flight.run()
    assert set(states().values()) <= {"VERIFIED", "QUEUED"}
    put_in(slot)
    shutil.copytree(kept, slot / "DCIM", dirs_exist_ok=True)
    card_flight.run()
    assert card_flight.arrived() == content
    assert set(states().values()) == {"VERIFIED"}


@pytest.mark.usefixtures("at_once")
def test_swapped_in_the_middle_of_a_run(card_flight: CardFlight, slot: Path) -> None:
    """Another card with a file of that name, size and time: not taken for the first, and no mixture of the two."""
    card_flight.put("VID.MP4", SIZE, 1)

    def swap() -> None:
        take_out(slot)
        put_in(slot)
        card_flight.put("VID.MP4", SIZE, 2)

    summary = carried_out(card_flight.at(20 * MIB, swap))
    assert (summary["delivered"], summary["failed"], card_flight.arrived()) == (0, 0, {})
    assert card_flight.run()["delivered"] == 1
    assert card_flight.arrived() == {"VID.MP4": payload(SIZE, 2)}


@pytest.mark.usefixtures("at_once")
def test_put_back_in_the_middle_of_a_run(
    card_flight: CardFlight, slot: Path, disks: Callable[[str, Path], None]
) -> None:
    """The same card, by its UUID: the run goes on."""
    card_flight.put("VID.MP4", SIZE, 1)
    disks("by-uuid/1A2B-3C4D", slot)

    def again() -> None:
        take_out(slot)
        put_in(slot)
        card_flight.put("VID.MP4", SIZE, 1)
        disks("by-uuid/1A2B-3C4D", slot)

    summary = carried_out(card_flight.at(20 * MIB, again))
    assert (summary["delivered"], summary["failed"]) == (1, 0)
    assert card_flight.arrived() == {"VID.MP4": payload(SIZE, 1)}


def test_nothing_is_written_on_it(card_flight: CardFlight, slot: Path) -> None:
    """Also not a folder's time; and a card with its lock switch on is read like any other."""
    card_flight.put("100MEDIA/a.MP4", 300_000)

    def seen() -> dict[str, tuple[int, int, int]]:
        paths = [slot, *slot.rglob("*")]
        return {str(p): ((s := p.stat()).st_mtime_ns, s.st_ctime_ns, s.st_size) for p in paths}

    before = seen()
    assert card_flight.run()["delivered"] == 1
    assert seen() == before
    card_flight.put("100MEDIA/b.MP4", 300_000, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(slot)], check=True)
    assert card_flight.run()["delivered"] == 1
    with the_card(slot).open() as session, pytest.raises(OnblockError) as caught:
        session.delete("100MEDIA/a.MP4")
    assert caught.value.kind.value == "PERMISSION"


# -- letting go -----------------------------------------------------------------------------------------------------


def test_unmounted_when_it_is_done(slot: Path) -> None:
    device = the_card(slot, eject=True)
    with device.open() as session:
        assert listing(session) == set()
        with pytest.raises(NetworkError, match="still uses it"):
            device.release()
    device.release()
    assert not device.connected()
    device.release()  # twice is once
    with suppress(FileNotFoundError):
        assert not any(slot.iterdir())


def test_left_alone_unless_asked(slot: Path) -> None:
    device = the_card(slot)
    device.open().close()
    device.release()
    assert device.connected()


def test_a_new_run_takes_a_new_card(slot: Path) -> None:
    device = the_card(slot)
    device.open().close()
    take_out(slot)
    put_in(slot)
    with pytest.raises(NetworkError, match="another card"):
        device.open()
    device.release()
    device.open().close()


@pytest.mark.parametrize(("said", "kind"), [
    ("umount: /x: target is busy.", NetworkError),
    ("Error unmounting /dev/sdb1: GDBus.Error:org.freedesktop.UDisks2.Error.DeviceBusy: Error: target is busy", NetworkError),
    ("umount: /x: must be superuser to unmount.", ConfigError),
    ("Error: GDBus.Error:org.freedesktop.UDisks2.Error.NotAuthorizedCanObtain: Not authorized to perform operation",
     ConfigError),
    ("umount: /x: not mounted.", NotFound), ("umount: /x: no mount point specified.", NotFound),
    ("umount: \x1b[31mEIO", UnknownError), ("", UnknownError),
])  # fmt: skip
def test_the_table_of_unmounting(said: str, kind: type[OnblockError]) -> None:
    failure = unmount_failure(said, "/x")
    assert type(failure) is kind
    assert str(failure).isprintable()


def test_the_stack_of_mounts(tmp_path: Path) -> None:
    """Two cards on one mount point: the upper one counts."""
    with ExitStack() as stack:
        point = stack.enter_context(mounted(tmp_path / "slot"))
        put(point, "DCIM/below", b"")
        stack.enter_context(mounted(tmp_path / "slot"))
        put(point, "DCIM/above", b"")
        with the_card(point).open() as session:
            assert listing(session) == {"above"}
