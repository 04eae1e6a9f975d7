"""Two phases from a camera: it disappears in each of them, its clips are no clips, disks are full; all of it comes whole."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from av.video.frame import PictureType

from blocks.errors import Kind
from blocks.storage import LocalStorage
from deployments.simulators.camera import Camera
from flows.ledger import Ledger
from flows.ledger.rows import MADE
from flows.transfer.steps.base import Step
from flows.transfer.steps.compress import Compress
from tests.devices.conftest import HOUR_AGO, MIB, Flight, put

pytestmark = pytest.mark.usefixtures("at_once")

GZIP: list[Any] = [{"kind": "compress", "format": "gzip"}]
SIZE = 80 * MIB + 321


def rows() -> dict[str, dict[str, Any]]:
    with Ledger.open() as ledger:
        return {r["path"]: r for r in ledger.files() if r["etag"] != MADE}


def clip(path: Path, source: str = "testsrc2=size=64x48:rate=10:duration=1", gop: int = 10) -> bytes:
    """A real clip of a camera."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(source, format="lavfi") as pictures, av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", gop  # type: ignore[attr-defined]
        for frame in pictures.decode(video=0):
            frame.pict_type = PictureType.NONE
            out.mux(stream.encode(frame))  # type: ignore[arg-type]
        out.mux(stream.encode())  # type: ignore[attr-defined]
    os.utime(path, (HOUR_AGO, HOUR_AGO))
    return path.read_bytes()


@pytest.fixture
def while_processing() -> Iterator[list[Any]]:
    """What happens while the first file is processed."""
    acts: list[Any] = []
    patch = pytest.MonkeyPatch()
    whole = Compress.run

    def run(self: Step, inputs: list[Path], work: Path, ask: Any) -> list[Path]:
        if acts:
            acts.pop()()
        return whole(self, inputs, work, ask)  # pyright: ignore[reportArgumentType]

    patch.setattr(Compress, "run", run)
    yield acts
    patch.undo()


def unpacked(flight: Flight) -> dict[str, bytes]:
    import gzip

    return {p.removesuffix(".gz"): gzip.decompress(c) for p, c in flight.arrived().items()}


def test_a_camera_that_disappears_while_it_is_fetched(flight: Flight, camera: Camera) -> None:
    content = {p: flight.put(p, SIZE, n) for n, p in enumerate(("100CAM/A.MP4", "100CAM/B.MP4"))}
    camera.faults.at[50 * MIB] = camera.off
    summary = flight.run(steps=GZIP, shipping={"at_once": 1})
    assert (summary["delivered"], summary["deferred"], summary["failed"]) == (0, 2, 0)
    camera.on()
    before = camera.sent.total()
    assert flight.run(steps=GZIP, shipping={"at_once": 1})["delivered"] == 2
    assert unpacked(flight) == content
    assert camera.sent.total() - before <= 2 * SIZE - 32 * MIB + 2 * MIB  # it went on where it was


def test_a_camera_that_disappears_while_its_files_are_processed(
    flight: Flight, camera: Camera, while_processing: list[Any]
) -> None:
    content = {"100CAM/A.MP4": flight.put("100CAM/A.MP4", 3 * MIB)}
    while_processing.append(camera.off)
    assert flight.run(steps=GZIP)["delivered"] == 1  # it is not needed any more
    assert unpacked(flight) == content


def test_a_camera_that_stays_away_after_the_fetch(flight: Flight, camera: Camera, tmp_path: Path) -> None:
    """The archive is away, then the camera: the next run delivers from the spool, and says that the camera is away."""
    content = {"100CAM/A.MP4": flight.put("100CAM/A.MP4", 3 * MIB)}
    (flight.archive / "100CAM").write_text("a file where a folder should be")
    assert flight.run(steps=GZIP)["failed"] == 1
    camera.off()
    (flight.archive / "100CAM").unlink()
    summary = flight.run(steps=GZIP)
    assert (summary["delivered"], summary["failed"]) == (1, 0)
    assert any("what was fetched before is delivered" in p for p in summary["problems"])
    assert unpacked(flight) == content


def test_clips_that_are_none_do_not_stop_the_others(flight: Flight, camera: Camera) -> None:
    good = clip(flight.card / "100CAM/GOOD.MP4")
    put(flight.card, "100CAM/CUT.MP4", good[: len(good) // 2])
    put(flight.card, "100CAM/EMPTY.MP4", b"")
    put(flight.card, "100CAM/NOISE.MP4", os.urandom(50_000))
    summary = flight.run(steps=[{"kind": "remux", "container": "mkv"}, {"kind": "thumbnail"}])
    assert (summary["delivered"], summary["failed"]) == (2, 3)
    assert sorted(flight.arrived()) == ["100CAM/GOOD.mkv", "100CAM/GOOD.mkv.jpg"]
    found = rows()
    for name in ("CUT", "EMPTY", "NOISE"):
        row = found[f"100CAM/{name}.MP4"]
        assert (row["state"], row["kind"], row["stage"]) == ("FAILED", Kind.CORRUPT, "process")
        assert name in row["message"]
    before = camera.sent.total()
    assert flight.run(steps=[{"kind": "remux", "container": "mkv"}, {"kind": "thumbnail"}])["failed"] == 3
    assert camera.sent.total() == before  # nothing is fetched again to fail again


def test_two_clips_of_one_name_become_two_streams(flight: Flight) -> None:
    for folder in ("100CAM", "101CAM"):
        clip(flight.card / folder / "VID.MP4")
    assert flight.run(steps=[{"kind": "hls", "segment": "1s"}], lineage=True)["failed"] == 0
    # one sidecar beside each folder, which names all that is in it
    for folder in ("100CAM", "101CAM"):
        told = json.loads(flight.arrived()[f"{folder}/VID-MP4.onblock.json"])
        inside = {p.removeprefix(f"{folder}/") for p in flight.arrived() if p.startswith(f"{folder}/VID-MP4/")}
        assert {f["name"] for f in told["files"]} == inside
    playlists = [p for p in flight.arrived() if p.endswith(".m3u8")]
    assert len(playlists) == 2
    for playlist in playlists:
        with av.open(str(flight.archive / playlist)) as stream:
            assert sum(1 for _ in stream.decode(video=0)) == 10


def test_both_lenses_become_one_clip(flight: Flight) -> None:
    """The halves are listed on different pages, and one of them comes later."""
    first, second = "VID_20260717_142530_00_012.insv", "VID_20260717_142530_10_012.insv"
    lens = "testsrc2=size=64x64:rate=10:duration=0.5"
    steps = [{"kind": "stitch", "size": "128x64", "preset": "ultrafast"}]
    clip(flight.card / "Camera01" / first, lens)
    summary = flight.run(steps=steps)
    assert (summary["delivered"], summary["failed"]) == (0, 1)
    assert second in rows()[f"Camera01/{first}"]["message"]
    clip(flight.card / "Camera01" / second, lens)
    summary = flight.run(steps=steps, lineage=True)
    assert (summary["delivered"], summary["failed"], summary["problems"]) == (2, 0, [])
    assert {r["state"] for r in rows().values()} == {"VERIFIED"}
    made = sorted(flight.arrived())
    assert len(made) == 2
    with av.open(str(flight.archive / made[0])) as stitched:
        assert (stitched.streams.video[0].width, stitched.streams.video[0].height) == (128, 64)
    told = json.loads(flight.arrived()[made[1]])
    assert [s["path"].rpartition("/")[2] for s in told["sources"]] == [first, second]
    assert flight.run(steps=steps, lineage=True)["duplicates"] == 2


@pytest.mark.parametrize("phase", ["fetch", "process", "deliver"])
def test_a_full_disk(flight: Flight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    """A real one, of 24 MiB, for the spool or for the archive: told, nothing half-written, and it goes on with room."""
    content = {"100CAM/A.MP4": flight.put("100CAM/A.MP4", 10 * MIB if phase == "process" else 30 * MIB)}
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], check=True)
    try:
        archive = LocalStorage(root=str(flight.archive))
        if phase == "deliver":
            archive = LocalStorage(root=str(small))
        else:
            (Path(os.environ["ONBLOCK_HOME"])).mkdir(exist_ok=True)
            (Path(os.environ["ONBLOCK_HOME"]) / "spool").symlink_to(small)
        summary = flight.run(steps=GZIP, destination=archive)
        assert (summary["delivered"], summary["failed"]) == (0, 1)
        row = rows()["100CAM/A.MP4"]
        assert (row["state"], row["kind"]) == ("FAILED", Kind.DISK_FULL)
        assert "bytes free" in row["message"]
        assert list(small.rglob("*.gz")) == []
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        assert flight.run(steps=GZIP, destination=archive)["delivered"] == 1
        if phase != "deliver":
            assert unpacked(flight) == content
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
