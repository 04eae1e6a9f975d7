"""Whole jobs from a camera: what it does in the middle, and that each byte arrives once."""

from __future__ import annotations

import pytest

from blocks.errors import NetworkError
from deployments.simulators.camera import Camera
from flows.ledger import Ledger
from tests.contract.data import payload
from tests.devices.conftest import HOUR_AGO, MIB, Flight

SIZE = 80 * MIB + 321
TWICE = 32 * MIB
WIRE = 2 * MIB
"""What is read to open and to look at files."""

pytestmark = pytest.mark.usefixtures("at_once")


def whole(flight: Flight, content: dict[str, bytes]) -> None:
    """All of it arrived, once, and the ledger says so."""
    assert flight.arrived() == content
    with Ledger.open() as ledger:
        assert {r["path"]: r["state"] for r in ledger.files()} == dict.fromkeys(content, "VERIFIED")


def test_a_flight(flight: Flight, camera: Camera) -> None:
    """Two files of one name in two folders, an empty one, many small ones; then once more: nothing is sent."""
    content = {f"100CAM/IMG_{n:04}.JPG": flight.put(f"100CAM/IMG_{n:04}.JPG", 7000 + n, n) for n in range(300)}
    content |= {f"{d}CAM/VID.MP4": flight.put(f"{d}CAM/VID.MP4", 40 * MIB, d) for d in (100, 101)}
    content["101CAM/EMPTY.MP4"] = flight.put("101CAM/EMPTY.MP4", 0)
    summary = flight.run()
    assert (summary["delivered"], summary["failed"], summary["problems"]) == (303, 0, [])
    whole(flight, content)
    sent = camera.sent.total()
    assert sent <= sum(map(len, content.values())) + WIRE
    assert flight.run()["delivered"] == 0
    assert camera.sent.total() == sent


@pytest.mark.parametrize("cuts", [1, 2])
def test_a_connection_that_breaks(flight: Flight, camera: Camera, cuts: int) -> None:
    content = {"100CAM/VID.MP4": flight.put("100CAM/VID.MP4", SIZE)}
    camera.faults.cut_after, camera.faults.cuts = 36 * MIB, cuts
    summary = flight.run()
    assert (summary["delivered"], summary["deferred"], summary["failed"]) == (1, 0, 0)
    whole(flight, content)
    assert camera.faults.cuts == 0
    assert camera.sent["100CAM/VID.MP4"] <= SIZE + cuts * 8 * MIB + WIRE  # each time, what lay beyond the last mark


def test_a_camera_that_disappears_and_comes_back(flight: Flight, camera: Camera) -> None:
    """Switched off in the middle of a file, for longer than the run has patience; the next run goes on from there."""
    content = {p: flight.put(p, SIZE, n) for n, p in enumerate(("100CAM/A.MP4", "100CAM/B.MP4"))}
    camera.faults.at[50 * MIB] = camera.off
    summary = flight.run(shipping={"at_once": 1})
    assert (summary["delivered"], summary["failed"]) == (0, 0)
    assert summary["deferred"] == 2
    assert flight.arrived() == {}
    assert not flight.device.connected()
    camera.on()
    assert flight.device.connected()
    before = camera.sent.total()
    summary = flight.run(shipping={"at_once": 1})
    assert (summary["delivered"], summary["failed"], summary["deferred"]) == (2, 0, 0)
    whole(flight, content)
    assert camera.sent.total() - before <= 2 * SIZE - TWICE + WIRE
    assert camera.sent.total() <= 2 * SIZE + TWICE


def test_a_camera_that_is_away_for_a_moment(flight: Flight, camera: Camera) -> None:
    """Off and on again within the patience of one run."""
    content = {"100CAM/VID.MP4": flight.put("100CAM/VID.MP4", SIZE)}
    camera.faults.at[50 * MIB] = lambda: (camera.off(), camera.on())
    summary = flight.run()
    assert (summary["delivered"], summary["failed"], summary["deferred"]) == (1, 0, 0)
    whole(flight, content)
    assert camera.sent.total() <= SIZE + TWICE + WIRE


def test_ranges_that_are_ignored(flight: Flight, camera: Camera) -> None:
    """The whole file comes each time: what was there already is dropped, and what arrives is whole."""
    content = {"100CAM/VID.MP4": flight.put("100CAM/VID.MP4", SIZE)}
    camera.faults.ignore_range = True
    camera.faults.cut_after, camera.faults.cuts = 50 * MIB, 1
    assert flight.run()["delivered"] == 1
    whole(flight, content)


def test_a_camera_that_lies_about_lengths(flight: Flight, camera: Camera) -> None:
    """More announced than sent, or less: nothing gets its final name."""
    flight.put("100CAM/VID.MP4", 3 * MIB)
    for off in (5000, -5000):
        camera.faults.length_off = off
        summary = flight.run()
        assert (summary["delivered"], flight.arrived()) == (0, {})
    camera.faults.length_off = 0
    assert flight.run()["delivered"] == 1


@pytest.mark.parametrize(("later", "validators"), [(60.0, True), (60.0, False), (0.25, True)])
def test_a_file_that_changes_while_it_is_fetched(
    flight: Flight, camera: Camera, later: float, validators: bool
) -> None:
    """The same size and a later time; or within the same second, which no listing shows."""
    size = 36 * MIB
    flight.put("100CAM/VID.MP4", size)
    camera.faults.no_validators = not validators
    camera.faults.at[20 * MIB] = lambda: flight.put("100CAM/VID.MP4", size, 1, HOUR_AGO + later)
    summary = flight.run()
    assert (summary["delivered"], flight.arrived()) == (0, {})
    assert flight.run()["delivered"] == 1
    assert flight.arrived() == {"100CAM/VID.MP4": payload(size, 1)}
    with Ledger.open() as ledger:
        assert sorted({"CANCELLED"} | {r["state"] for r in ledger.files()}) == ["CANCELLED", "VERIFIED"]


def test_a_file_that_goes_while_it_is_fetched(flight: Flight, camera: Camera) -> None:
    flight.put("100CAM/VID.MP4", SIZE)
    kept = {"100CAM/KEPT.MP4": flight.put("100CAM/KEPT.MP4", 1000)}
    camera.faults.at[40 * MIB] = (flight.card / "100CAM/VID.MP4").unlink
    summary = flight.run()
    assert (summary["delivered"], summary["failed"]) == (1, 1)
    assert flight.arrived() == kept
    with Ledger.open() as ledger:
        (row,) = [r for r in ledger.files() if r["path"] == "100CAM/VID.MP4"]
        assert (row["state"], row["kind"]) == ("FAILED", "SOURCE_VANISHED")


def test_a_listing_that_breaks_off_loses_nothing(flight: Flight, camera: Camera) -> None:
    """Files that wait are not taken for gone because the camera went while it was listed."""
    content = {f"100CAM/{n}.JPG": flight.put(f"100CAM/{n}.JPG", 1000, n) for n in range(250)}
    camera.faults.at[100_000] = camera.off
    flight.run()
    camera.on()
    camera.faults.busy = 1 << 30
    with pytest.raises(NetworkError):
        flight.run()
    camera.faults.busy = 0
    flight.run()
    whole(flight, content)
