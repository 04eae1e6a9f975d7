"""Listings as cameras give them: in pages, shifting, long, hostile; and times, groups and deleting."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from blocks.devices import HttpCamera, OscCamera
from blocks.devices.osc_camera import moment
from blocks.errors import ConfigError, NetworkError, NotFound, OnblockError, PermissionRefused, UnknownError
from blocks.storage.base import Session
from deployments.simulators.camera import Camera
from deployments.simulators.osc import OscSimulator
from tests.contract.data import fetch, listing, payload
from tests.devices.conftest import HOUR_AGO, device_of, put
from tests.servers.gopro import GoProSimulator


def fill(folder: Path, count: int) -> set[str]:
    """Files, each a second younger than the one before."""
    names = {f"{100 + n // 500}CAM/IMG_{n:05}.JPG": n for n in range(count)}
    for name, n in names.items():
        put(folder, name, b"x" * (n % 50), HOUR_AGO + n)
    return set(names)


def open_osc(camera: OscSimulator, **keys: Any) -> Session:
    return OscCamera(device="camera", url=camera.url, **keys).open()


# -- pages ----------------------------------------------------------------------------------------------------------


def test_five_thousand_files(camera: Camera, tmp_path: Path) -> None:
    names = fill(tmp_path / "card", 5000)
    with device_of(camera).open() as session:
        assert listing(session) == names
        asked = camera.asked.total()
        assert asked <= 55
        assert session.stat("100CAM/IMG_00007.JPG").size == 7
        assert camera.asked.total() == asked + 1  # no second walk through the listing


@pytest.mark.parametrize("files", [0, 1, 9, 10, 11, 19, 20, 21, 100])
def test_any_number_of_files_in_pages(osc: OscSimulator, tmp_path: Path, files: int) -> None:
    names = fill(tmp_path / "card", files)
    for most, tokens in ((1000, False), (10, False), (3, False), (7, True)):
        osc.most, osc.tokens = most, tokens
        with open_osc(osc, page=10) as session:
            assert listing(session) == names


def test_a_listing_that_shifts_while_it_is_read(osc: OscSimulator, tmp_path: Path) -> None:
    """A recording is added, and one removed, between two pages: none of the others is left out, none told twice."""
    names = fill(tmp_path / "card", 60)
    done: list[int] = []

    def add(start: int) -> None:
        if start >= 9 and not done:
            done.append(start)
            put(tmp_path / "card", "100CAM/NEW.JPG", b"new", HOUR_AGO + 10_000)
            (tmp_path / "card/100CAM/IMG_00059.JPG").unlink()
            (tmp_path / "card/100CAM/IMG_00058.JPG").unlink()

    osc.after_page = add
    with open_osc(osc, page=10) as session:
        found = listing(session)  # asserts that each is told once
    assert done
    assert found - {"100CAM/NEW.JPG", "100CAM/IMG_00059.JPG", "100CAM/IMG_00058.JPG"} == {
        n for n in names if n not in ("100CAM/IMG_00059.JPG", "100CAM/IMG_00058.JPG")
    }


def test_a_camera_that_does_not_page(osc: OscSimulator, tmp_path: Path) -> None:
    """It gives its first page for ever: an error, never a part of the listing that passes for all of it."""
    fill(tmp_path / "card", 30)
    osc.ignore_start = True
    with open_osc(osc, page=10) as session, pytest.raises(NetworkError, match="repeats"):
        list(session.scan())
    with open_osc(osc, page=30) as session:
        assert len(listing(session)) == 30


def test_a_listing_that_breaks_off(osc: OscSimulator, tmp_path: Path) -> None:
    fill(tmp_path / "card", 60)
    osc.after_page = lambda start: osc.off() if start > 20 else None
    with open_osc(osc, page=10) as session, pytest.raises(NetworkError):
        list(session.scan())


# -- hostile --------------------------------------------------------------------------------------------------------

HOSTILE = [
    "http://192.0.2.1/DCIM/x.mp4", "http://127.0.0.1:1/x.mp4", "file:///etc/passwd", "//evil/x", "x.mp4", "",
    "{url}/../../etc/passwd", "{url}/%2e%2e/x", "{url}/a/..%2f..%2fb", "{url}//x", "{url}/", "{url}/a%00b",
    "http://user:pw@{host}/x", "http://[bad", "{url}@evil.example/x", "http://{host}.evil.example/x", 5, None, ["x"],
    "{url}/" + "x" * 300, "gopher://{host}/x",
]  # fmt: skip


def test_addresses_that_are_not_the_cameras(osc: OscSimulator, tmp_path: Path) -> None:
    """No other address is ever asked, no path leaves its root; each is told, and the good files are not held up."""
    names = fill(tmp_path / "card", 3)
    host = osc.url.removeprefix("http://")
    for url in HOSTILE:
        given = url.replace("{url}", osc.url).replace("{host}", host) if isinstance(url, str) else url
        osc.extra = [{"name": "bad", "fileUrl": given, "size": 3, "dateTimeZone": "2020:01:01 00:00:00+00:00"}]
        with open_osc(osc) as session:
            found = list(session.scan())
        bad = [f for f in found if f.problem is not None]
        assert len(bad) == 1, url
        assert isinstance(bad[0].problem, ConfigError)
        assert bad[0].path and "/" not in bad[0].path and bad[0].path != ".."
        assert {f.path for f in found if f.problem is None} == names


@pytest.mark.parametrize("entry", [None, 5, "x", [], {}, {"fileUrl": "{url}/x"}, {"fileUrl": "{url}/x", "size": -1},
                                   {"fileUrl": "{url}/x", "size": "1e9"}, {"fileUrl": "{url}/x", "size": 1e300}])  # fmt: skip
def test_entries_that_make_no_sense(osc: OscSimulator, entry: Any) -> None:
    if isinstance(entry, dict) and "fileUrl" in entry:
        entry = {**entry, "fileUrl": f"{osc.url}/x"}
    osc.extra = [entry]
    with open_osc(osc) as session:
        (found,) = session.scan()
        assert isinstance(found.problem, ConfigError)


def test_the_camera_under_another_name(osc: OscSimulator) -> None:
    """Behind a forwarded port, a camera lists its own address: it is asked at ours."""
    put(Path(osc.folder), "DCIM/x.mp4", b"data")
    osc.unlisted = {"DCIM/x.mp4"}
    osc.extra = [{"fileUrl": "http://192.168.42.1/DCIM/x.mp4", "size": 4, "dateTimeZone": "2020:01:01 00:00:00+00:00"}]
    with open_osc(osc, also_as=["192.168.42.1"]) as session:
        assert listing(session) == {"DCIM/x.mp4"}
        assert fetch(session, "DCIM/x.mp4") == b"data"


@pytest.mark.parametrize(
    "answer", [b"{}", b'{"results": {}}', b'{"results": {"entries": {}}}', b'{"results": []}', b'{"media": 5}']
)
def test_an_answer_that_is_no_listing(camera: Camera, answer: bytes) -> None:
    with device_of(camera).open() as session:
        camera.faults.answer = (200, answer)
        with pytest.raises(UnknownError):
            list(session.scan())


@pytest.mark.parametrize(
    ("folder", "good"),
    [
        ({"d": "100GOPRO", "fs": [{"n": "../../x", "mod": "1", "s": "1"}]}, False),
        ({"d": "..", "fs": [{"n": "x", "mod": "1", "s": "1"}]}, False),
        ({"d": "/etc", "fs": [{"n": "passwd", "mod": "1", "s": "1"}]}, False),
        ({"d": "100GOPRO", "fs": [{"n": "x", "mod": "1"}]}, False),
        ({"d": "100GOPRO", "fs": [{"n": 5, "mod": "1", "s": "1"}]}, False),
        ({"d": "100GOPRO", "fs": ["x"]}, False),
        ({"d": "100GOPRO", "fs": 5}, False),
        ("x", False),
        ({"d": "100GOPRO", "fs": [{"n": "G0010001.JPG", "g": "1", "b": "1", "l": "9999999", "mod": "1", "s": "1"}]}, False),
        ({"d": "100GOPRO", "fs": [{"n": "odd.JPG", "g": "1", "b": "1", "l": "2", "mod": "1", "s": "1"}]}, False),
        ({"d": "100GOPRO", "fs": [{"n": "x", "mod": "99999999999", "s": 1}]}, True),
    ],
)  # fmt: skip
def test_a_media_list_that_makes_no_sense(gopro: GoProSimulator, tmp_path: Path, folder: Any, good: bool) -> None:
    names = fill(tmp_path / "card", 3)
    gopro.extra = [folder]
    with device_of(gopro).open() as session:
        found = list(session.scan())
    assert len([f for f in found if f.problem]) == (0 if good else 1)
    assert {f.path for f in found if f.problem is None} >= names


# -- times ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamp", "zone", "seconds"),
    [
        ("2014:12:11 15:47:12+08:00", "UTC", 1418284032), ("2014:12:11 15:47:12-05:30", "UTC", 1418332632),
        ("2014:12:11 07:47:12", "UTC", 1418284032), ("2014:12:11 15:47:12", "Asia/Shanghai", 1418284032),
        ("1960:01:01 00:00:00+00:00", "UTC", 0), ("2014-12-11 15:47:12", "UTC", None), ("", "UTC", None),
        ("2014:13:11 15:47:12", "UTC", None), ("0001:01:01 00:00:00+14:00", "UTC", 0), ("x" * 10_000, "UTC", None),
    ],
)  # fmt: skip
def test_times(stamp: str, zone: str, seconds: int | None) -> None:
    assert moment(stamp, ZoneInfo(zone)) == (None if seconds is None else seconds * 10**9)


def test_a_time_that_is_none_still_tells_versions_apart(osc: OscSimulator) -> None:
    entry = {"fileUrl": f"{osc.url}/x", "size": 4}
    with open_osc(osc) as session:
        versions = set()
        for stamp in ("yesterday", "today", None):
            osc.extra = [{**entry, "dateTimeZone": stamp}]
            (found,) = session.scan()
            assert found.problem is None
            versions.add(found.version)
    assert len(versions) == 3


def test_what_the_camera_still_works_on_is_left(osc: OscSimulator) -> None:
    osc.extra = [{"fileUrl": f"{osc.url}/x", "size": 4, "isProcessed": False}]
    with open_osc(osc) as session:
        assert list(session.scan()) == []


# -- groups ---------------------------------------------------------------------------------------------------------


def test_the_pictures_of_a_burst(gopro: GoProSimulator, tmp_path: Path) -> None:
    """One item of the list, with a gap: each picture is a file, with its own size; which is asked for once."""
    sizes = {f"100GOPRO/G001{n:04}.JPG": 1000 + n for n in (7, 8, 10, 11)}
    for path, size in sizes.items():
        put(tmp_path / "card", path, payload(size, size))
    put(tmp_path / "card", "100GOPRO/GX010001.MP4", b"chapter 1")
    put(tmp_path / "card", "100GOPRO/GX020001.MP4", b"chapter 2")
    device = device_of(gopro)
    with device.open() as session:
        found = {f.path: f.size for f in session.scan()}
        assert found == sizes | {"100GOPRO/GX010001.MP4": 9, "100GOPRO/GX020001.MP4": 9}
        sent = gopro.sent.total()
        assert len(list(session.scan())) == 6
        assert gopro.sent.total() == sent
        for path, size in sizes.items():
            assert fetch(session, path) == payload(size, size)
            assert session.stat(path).size == size


def test_a_picture_of_a_burst_that_is_gone(gopro: GoProSimulator, tmp_path: Path) -> None:
    gopro.extra = [{"d": "100GOPRO", "fs": [{"n": "G0010001.JPG", "g": "1", "b": "1", "l": "2", "mod": "1", "s": "2"}]}]
    put(tmp_path / "card", "x/G0010001.JPG", b"x")
    with device_of(gopro).open() as session:
        found = {f.path: f.problem for f in session.scan("100GOPRO")}
    assert set(found) == {"100GOPRO/G0010001.JPG", "100GOPRO/G0010002.JPG"}
    assert all(isinstance(problem, OnblockError) for problem in found.values())


# -- deleting, and the rest -----------------------------------------------------------------------------------------


def test_delete(camera: Camera, tmp_path: Path) -> None:
    names = fill(tmp_path / "card", 3)
    with device_of(camera).open() as session:
        assert listing(session) == names
        session.delete("100CAM/IMG_00001.JPG")
        assert listing(session) == names - {"100CAM/IMG_00001.JPG"}
        with pytest.raises(NotFound):
            session.delete("100CAM/IMG_00001.JPG")
        assert sorted(p.name for p in (tmp_path / "card/100CAM").iterdir()) == ["IMG_00000.JPG", "IMG_00002.JPG"]


@pytest.mark.parametrize("slow", [False, True])
def test_what_an_osc_camera_keeps(osc: OscSimulator, tmp_path: Path, slow: bool) -> None:
    names = fill(tmp_path / "card", 3)
    osc.slow_commands, osc.protected = slow, {"100CAM/IMG_00001.JPG"}
    with open_osc(osc) as session:
        with pytest.raises(PermissionRefused):
            session.delete("100CAM/IMG_00001.JPG")
        session.delete("100CAM/IMG_00002.JPG")
        assert listing(session) == names - {"100CAM/IMG_00002.JPG"}


def test_what_a_gopro_keeps(gopro: GoProSimulator, tmp_path: Path) -> None:
    fill(tmp_path / "card", 2)
    gopro.keeps = True
    with device_of(gopro).open() as session, pytest.raises(UnknownError, match="lists it still"):
        session.delete("100CAM/IMG_00001.JPG")
    with device_of(gopro, delete_at="").open() as session, pytest.raises(ConfigError):
        session.delete("100CAM/IMG_00001.JPG")


def test_turbo_is_switched_off_again(gopro: GoProSimulator) -> None:
    device = HttpCamera(device="camera", url=gopro.url, turbo_at="/gopro/media/turbo_transfer")
    with device.open():
        assert gopro.turbo == ["1"]
    assert gopro.turbo == ["1", "0"]


def test_older_models_have_other_addresses(gopro: GoProSimulator, tmp_path: Path) -> None:
    names = fill(tmp_path / "card", 3)
    device = device_of(gopro, info_at="", list_at="/gopro/media/list/", files_at="/videos/DCIM/")
    assert device.connected()
    with device.open() as session:
        assert listing(session) == names
