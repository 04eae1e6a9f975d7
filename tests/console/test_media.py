"""Videos and pictures that the console sends: whole and in parts, of what the ledger or a manifest names and of nothing else;
and rows as clips, with what was made of each.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy import insert

from deployments.console import pictures
from deployments.console.access import Role
from deployments.console.clips import clips
from deployments.console.media import LATER, RANGE, part_of
from flows.capture.recover import finished
from flows.ledger import State
from flows.ledger.listing import Wanted
from flows.ledger.models import Product
from tests.capture.conftest import imu, lavfi, record
from tests.console.conftest import Site, until

BYTES = bytes(range(256)) * 4000


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (folder := tmp_path / "archive").mkdir()
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recording that is merged."""
    root, manifest = record(tmp_path_factory.mktemp("recorded"), lavfi("left", frames=60), imu(count=100), flight="F7")
    finished(root / manifest.id)
    return root / manifest.id


@pytest.fixture
def here(recorded: Path, onblock_home: Path) -> str:
    """The same among those of this machine; its id."""
    shutil.copytree(recorded, onblock_home / "recordings" / recorded.name)
    return recorded.name


@pytest.fixture
def viewer(site: Site) -> Iterator[TestClient]:
    with site.browser(Role.VIEWER) as client:
        yield client


def deliver(site: Site, archive: Path, path: str, content: bytes = BYTES, state: State = State.VERIFIED) -> int:
    """A row of a file that lies at its destination."""
    (archive / path).parent.mkdir(parents=True, exist_ok=True)
    (archive / path).write_bytes(content)
    (number,) = site.rows((path, state), destination=f"local:{archive}", dest_path=path, size=len(content))
    return number


def picture(client: TestClient, url: str) -> Response:
    """A picture, once it is made."""

    def made() -> Response | None:
        answer = client.get(url)
        return None if answer.headers.get("location") == LATER else answer

    return until("a picture", made)


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-99", (0, 99)), ("bytes=900-", (900, 999)), ("bytes=0-", (0, 999)), ("bytes=-1", (999, 999)), ("bytes=-5000", (0, 999)),
        ("bytes=999-5000", (999, 999)), ("bytes=1000-", None), ("bytes=5-4", None), ("bytes=-0", None),
    ],
)  # fmt: skip
def test_the_part_of_a_file_that_is_asked_for(asked: str, part: tuple[int, int] | None) -> None:
    match = RANGE.fullmatch(asked)
    assert match is not None and part_of(match[1], match[2], 1000) == part


@pytest.mark.parametrize(
    "asked", ["bytes=-", "bytes=0-1,5-9", "bytes= 0-1", "lines=0-1", "bytes=a-b", "bytes=0-" + "9" * 30]
)
def test_what_is_no_single_part_is_all_of_it(asked: str) -> None:
    assert RANGE.fullmatch(asked) is None


def test_a_video_is_sent_whole_and_in_parts(site: Site, viewer: TestClient, archive: Path) -> None:
    url = f"/media/{deliver(site, archive, 'F1/a.MP4')}"
    whole = viewer.get(url)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, BYTES, "video/mp4")
    assert whole.headers["accept-ranges"] == "bytes" and whole.headers["content-length"] == str(len(BYTES))
    part = viewer.get(url, headers={"Range": "bytes=300000-700000"})
    assert (part.status_code, part.content) == (206, BYTES[300000:700001])
    assert part.headers["content-range"] == f"bytes 300000-700000/{len(BYTES)}"
    assert viewer.get(url, headers={"Range": "bytes=-4"}).content == BYTES[-4:]
    beyond = viewer.get(url, headers={"Range": f"bytes={len(BYTES)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(BYTES)}")
    again = viewer.get(url, headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = viewer.get(url, headers={"Range": "bytes=0-1", "If-Range": '"another"'})
    assert (other.status_code, other.content) == (200, BYTES)
    for answer in (whole, part, beyond):
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_descriptor_is_left_open(site: Site, viewer: TestClient, archive: Path) -> None:
    url = f"/media/{deliver(site, archive, 'a.mp4')}"
    viewer.get(url)
    gc.collect()  # what other tests have left to be closed
    before = len(os.listdir("/proc/self/fd"))
    for head in (
        {},
        {"Range": "bytes=5-9"},
        {"Range": "bytes=5-4"},
        {"If-None-Match": viewer.get(url).headers["etag"]},
    ):
        viewer.get(url, headers=head)
        viewer.head(url, headers=head)
    assert len(os.listdir("/proc/self/fd")) <= before


# -- what is not sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a.html", "a.js", "a.svg", "a.txt", "a", "a.mp4.exe", "playlist.m3u8"])
def test_only_videos_and_pictures_are_sent(site: Site, viewer: TestClient, archive: Path, path: str) -> None:
    assert viewer.get(f"/media/{deliver(site, archive, path)}").status_code == 404


def test_what_leads_out_of_the_destination_is_not_sent(
    site: Site, viewer: TestClient, archive: Path, tmp_path: Path
) -> None:
    (outside := tmp_path / "outside").mkdir()
    (outside / "a.mp4").write_bytes(b"secret")
    (archive / "link.mp4").symlink_to(outside / "a.mp4")
    (archive / "folder").symlink_to(outside)
    (archive / "is-one.mp4").mkdir()
    os.mkfifo(archive / "pipe.mp4")
    paths = (
        "link.mp4",
        "folder/a.mp4",
        "../outside/a.mp4",
        str(outside / "a.mp4"),
        "is-one.mp4",
        "pipe.mp4",
        "gone.mp4",
        "folder/../a.mp4",
    )
    for path in paths:
        size = (
            (archive / path).stat().st_size if (archive / path).exists() else 1
        )  # it is not by its size that it is refused
        (number,) = site.rows((path, State.VERIFIED), destination=f"local:{archive}", dest_path=path, size=size)
        for url in (f"/media/{number}", f"/media/{number}/playlist.m3u8"):
            answer = viewer.get(url)
            assert answer.status_code in (404, 409, 422) and b"secret" not in answer.content, (path, answer.status_code)
        assert picture(viewer, f"/pictures/{number}").headers["location"] == "/static/no-picture.svg"


def test_what_is_not_delivered_or_lies_elsewhere_is_not_sent(site: Site, viewer: TestClient, archive: Path) -> None:
    assert viewer.get(f"/media/{deliver(site, archive, 'a.mp4', state=State.QUARANTINED)}").status_code == 404
    (far,) = site.rows(("a.mp4", State.VERIFIED), destination=f"sftp://nas{archive}", dest_path="a.mp4")
    assert viewer.get(f"/media/{far}").status_code == 404
    assert viewer.get("/media/77").status_code == 404
    assert viewer.get(f"/media/{-(10**19)}").status_code == 422


def test_what_a_later_version_took_the_name_of_is_not_sent_as_the_earlier(
    site: Site, viewer: TestClient, archive: Path
) -> None:
    number = deliver(site, archive, "a.mp4")
    assert viewer.get(f"/media/{number}").status_code == 200
    (archive / "a.mp4").write_bytes(BYTES + b"later")
    assert viewer.get(f"/media/{number}").status_code == 404


def test_of_a_playlist_only_its_pieces_are_sent(site: Site, viewer: TestClient, archive: Path) -> None:
    number = deliver(site, archive, "F1/a-mp4/playlist.m3u8", b"#EXTM3U\n")
    for name in ("init.mp4", "segment_00000.m4s", "other.mp4", "secret.m4s"):
        (archive / "F1/a-mp4" / name).write_bytes(BYTES[:99])
    answer = viewer.get(f"/media/{number}/playlist.m3u8")
    assert (answer.content, answer.headers["content-type"]) == (b"#EXTM3U\n", "application/vnd.apple.mpegurl")
    assert viewer.get(f"/media/{number}/segment_00000.m4s", headers={"Range": "bytes=0-9"}).content == BYTES[:10]
    assert viewer.get(f"/media/{number}/init.mp4").headers["content-type"] == "video/mp4"
    for name in (
        "other.mp4",
        "secret.m4s",
        "..%2Fplaylist.m3u8",
        "..",
        "%2e%2e",
        "segment_00000.m4s%0a",
        "segment_00001.m4s",
    ):
        assert viewer.get(f"/media/{number}/{name}").status_code in (404, 405), name
    assert viewer.get(f"/media/{deliver(site, archive, 'F1/a-mp4/b.mp4')}/init.mp4").status_code == 404


# -- pictures, and what was recorded here -----------------------------------------------------------------------------


def test_a_picture_is_made_once_of_each_video(
    site: Site, viewer: TestClient, archive: Path, recorded: Path, onblock_home: Path
) -> None:
    video = next(recorded.glob("*.mkv")).read_bytes()
    number = deliver(site, archive, "clip.mkv", video)
    first = picture(viewer, f"/pictures/{number}")
    assert (
        first.status_code == 200
        and first.headers["content-type"] == "image/jpeg"
        and first.content[:3] == b"\xff\xd8\xff"
    )
    (kept,) = (onblock_home / "console/pictures").iterdir()
    before = kept.stat()
    assert picture(viewer, f"/pictures/{number}").content == first.content
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_of_what_is_no_video_there_is_no_picture_and_it_is_not_tried_again(
    site: Site, viewer: TestClient, archive: Path, onblock_home: Path
) -> None:
    number = deliver(site, archive, "clip.mp4", b"#EXTM3U\nfile:///etc/passwd\n")
    for _ in range(2):
        answer = picture(viewer, f"/pictures/{number}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/static/no-picture.svg")
        assert viewer.get(answer.headers["location"]).headers["content-type"].startswith("image/svg")
        (kept,) = (onblock_home / "console/pictures").iterdir()
        assert kept.stat().st_size == 0


def test_a_picture_that_took_too_long_once_is_tried_again(
    site: Site, viewer: TestClient, archive: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may be busy, or a share slow."""
    (video,) = recorded.glob("*.mkv")
    number = deliver(site, archive, "a.mkv", video.read_bytes())
    with monkeypatch.context() as busy:
        busy.setattr(pictures, "WITHIN_S", 0.01)
        assert viewer.get(f"/pictures/{number}").headers["location"] == LATER
    assert picture(viewer, f"/pictures/{number}").headers["content-type"] == "image/jpeg"


def test_who_asks_does_not_wait_for_long_and_a_console_that_ends_leaves_nothing_behind(
    onblock_home: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "PATIENCE_S", 0.0)
    made = pictures.Pictures()
    for version in range(pictures.MOST_MAKING + 5):  # more than are made at a time, and than may wait
        assert made.timeline(recorded, version) == pictures.Picture(None, later=True)
    until("it is made for the next time", lambda: made.timeline(recorded, 0).path)
    made.close()
    until("nothing is under way", lambda: not made._making)
    left = [p for p in (onblock_home / "console/pictures").iterdir() if p.name.startswith(".")]
    assert left == [] and not made._processes
    assert made.timeline(recorded, 10**6).later


def test_the_oldest_pictures_go(onblock_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = onblock_home / "console/pictures"
    root.mkdir(parents=True)
    for i in range(5):
        (root / f"{i}.jpg").touch()
        os.utime(root / f"{i}.jpg", (i, i))
    monkeypatch.setattr(pictures, "MOST", 3)
    pictures._forget(root)
    assert sorted(p.name for p in root.iterdir()) == ["3.jpg", "4.jpg"]


def test_a_recording_of_this_machine_has_video_frame_and_timeline(
    viewer: TestClient, here: str, onblock_home: Path
) -> None:
    video = viewer.get(f"/here/{here}/video", headers={"Range": "bytes=0-3"})
    assert (video.status_code, video.content, video.headers["content-type"]) == (
        206,
        b"\x1aE\xdf\xa3",
        "video/x-matroska",
    )
    assert picture(viewer, f"/here/{here}/frame").content[:3] == b"\xff\xd8\xff"
    timeline = picture(viewer, f"/here/{here}/timeline")
    assert timeline.headers["content-type"] == "image/png" and timeline.content[:4] == b"\x89PNG"
    page = viewer.get("/recordings").text
    assert f'href="/here/{here}/video"' in page and "flight F7" in page

    manifest = onblock_home / "recordings" / here / "recording.json"
    told = json.loads(manifest.read_text()) | {"final": None}  # before it is merged
    manifest.write_text(json.dumps(told))
    assert viewer.get(f"/here/{here}/video").status_code == 404
    assert f'href="/here/{here}/video"' not in viewer.get("/recordings").text
    told["final"] = {"file": "../../../etc/passwd", "bytes": 1, "sha256": "", "packets": {}}
    manifest.write_text(json.dumps(told))
    assert viewer.get(f"/here/{here}/video").status_code in (404, 409)


@pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e", ".hidden", "a%2Fb", "a%00b", "x" * 300, "-rf"])
def test_what_is_no_recording_is_not_there(viewer: TestClient, name: str) -> None:
    for what in ("video", "timeline"):
        assert viewer.get(f"/here/{name}/{what}").status_code == 404
    assert viewer.get("/here/x/recording.json").status_code == 404


# -- clips ------------------------------------------------------------------------------------------------------------


def test_rows_are_clips_with_what_was_made_of_them(site: Site, viewer: TestClient, archive: Path) -> None:
    (origin,) = site.rows(("DCIM/a.mp4", State.VERIFIED), destination=f"local:{archive}", dest_path=None, flight="F1")
    made = [
        deliver(site, archive, p) for p in ("F1/a.mp4", "F1/a.mp4.jpg", "F1/a-mp4/playlist.m3u8", "F1/a-mp4/init.mp4")
    ]
    made += [deliver(site, archive, f"F1/a-mp4/segment_{i:05}.m4s") for i in range(30)]
    with site.ledger._write() as c:
        c.execute(insert(Product), [{"origin_id": origin, "product_id": i} for i in made])
    plain, table = deliver(site, archive, "b.mov"), deliver(site, archive, "imu.csv")
    far = site.rows(("c.mp4", State.VERIFIED), destination="s3://bucket", dest_path="c.mp4")[0]
    rows = site.office.recordings(flight=None, device=None, job=None, before=None, limit=50).rows
    assert len(rows) == 6, "pieces of a playlist are no recordings of their own"
    found = {c.name: c for c in clips(site.office.listing, rows)}
    assert set(found) == {"DCIM/a.mp4", "b.mov", "imu.csv", "c.mp4"}
    one = found["DCIM/a.mp4"]
    assert (one.play, one.is_playlist, one.picture) == (f"/media/{made[2]}/playlist.m3u8", True, f"/media/{made[1]}")
    assert [r["id"] for r in one.rows] == [made[2], made[1], made[0]] and one.made_of == [(origin, "DCIM/a.mp4")]
    assert (found["b.mov"].play, found["b.mov"].picture) == (f"/media/{plain}", f"/pictures/{plain}")
    assert not found["imu.csv"].seen and found["imu.csv"].main["id"] == table
    assert (found["c.mp4"].play, found["c.mp4"].main["id"]) == (None, far)

    (half,) = clips(site.office.listing, [r for r in rows if r["id"] == made[0]])
    assert [r["id"] for r in half.rows] == [made[2], made[1], made[0]], "a clip that a page cuts in two is whole"
    page = viewer.get("/recordings").text
    assert page.count("data-play=") == 2 and "made of" in page.lower()
    assert site.office.listing.page(Wanted(text="segment_")).rows, "transfers show them all"
