"""Kills and damage: what was written is kept, nothing else passes, and it may be done twice."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from blocks.errors import Corrupt
from flows.capture import accounts, matroska
from flows.capture.manifest import NAME, Manifest, load
from flows.capture.merge import finish, read_sidecar
from flows.capture.recover import QUARANTINE, recover, recover_all
from flows.capture.scan import SECTOR, Scan
from flows.capture.sidecar import DropRecord, PacketRecord, salvage
from tests.capture.conftest import imu, lavfi, packets, record, samples, spec_of

CHILD = """
import sys, threading
from pathlib import Path
from flows.capture.recorder import Recorder
from flows.capture.spec import CaptureSpec
Recorder(CaptureSpec.model_validate_json(sys.argv[1]), Path(sys.argv[2])).run(threading.Event())
"""
REPOSITORY = Path(__file__).parents[2]


def decoded(path: Path, stream: int) -> int:
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=stream))


def killed(root: Path, seed: int) -> Path:
    """Record in another process, and kill it at a random moment; its folder."""
    spec = spec_of(
        lavfi("a", frames=None, rate=10), lavfi("b", frames=None, rate=10), imu(count=None, rate=50), segment="500 ms"
    )
    with subprocess.Popen([sys.executable, "-c", CHILD, spec.model_dump_json(), str(root)], cwd=REPOSITORY) as child:
        deadline = time.monotonic() + 90
        try:
            while not all(len([*root.glob(f"*/{name}/*.idx")]) >= 2 for name in ("a", "b", "imu")):
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(random.Random(seed).uniform(0, 0.5))
        finally:
            child.kill()
    (folder,) = root.glob("*/")
    return folder


def test_sigkill(tmp_path: Path) -> None:
    """What was written when it was killed is in the file, and what is lost was on its way. How much that is, is for
    the benchmark: it depends on the machine."""
    for seed in range(3):
        folder = killed(tmp_path / str(seed), seed)
        left = {name: accounts.read(folder / name) for name in ("a", "b", "imu")}
        assert load(folder).state == "recording"
        (manifest,) = recover_all(folder.parent)
        assert isinstance(manifest, Manifest), manifest
        assert (manifest.state, manifest.problems) == ("recovered", [])
        for begun in manifest.quarantined:  # killed when a sidecar was there, and nothing in it yet
            assert begun.endswith(".idx") and salvage((folder / begun).read_bytes()).records == [], begun
        assert manifest.final is not None
        for name, balance in left.items():
            entry = manifest.streams[name]
            assert balance is not None
            assert entry.captured == entry.written + sum(entry.dropped.values()) + entry.in_flight
            assert entry.in_flight >= 0 and entry.captured >= balance.captured
            assert entry.written >= balance.written
            assert manifest.final.packets[name] == entry.written
        for n, name in enumerate(("a", "b")):
            assert decoded(folder / manifest.final.file, n) == manifest.streams[name].written
        assert recover_all(folder.parent) == []


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sealed")
    _, manifest = record(root, lavfi("a", frames=45), imu(count=300), segment="60 s")
    return root / manifest.id


def as_killed(sealed: Path, to: Path) -> Path:
    """The recording as a kill would have left it: no segment in the manifest."""
    folder = to / sealed.name
    shutil.copytree(sealed, folder)
    manifest = load(folder)
    manifest.state, manifest.ended_ns = "recording", None
    for entry in manifest.streams.values():
        entry.segments = []
    manifest.write(folder)
    return folder


def payloads(path: Path, wanted: list[PacketRecord]) -> list[bytes]:
    data = path.read_bytes()
    return [data[r.offset : r.offset + r.size] for r in wanted]


@pytest.mark.parametrize("fill", [False, True], ids=["truncated", "zero-filled"])
@pytest.mark.parametrize("both", [False, True], ids=["segment", "segment and sidecar"])
def test_tails(sealed: Path, tmp_path: Path, fill: bool, both: bool) -> None:
    """60 random cuts: all packets before the cut are kept, with their times, and no corrupt one passes."""
    whole = load(sealed)
    video, side = sealed / "a/000000.mkv", sealed / "a/000000.idx"
    records = packets(sealed, whole, "a")
    content = dict(zip([r.sequence for r in records], payloads(video, records), strict=True))
    size = video.stat().st_size
    for seed in range(60):
        folder = as_killed(sealed, tmp_path / str(seed))
        cut = random.Random(seed).randint(records[0].offset + records[0].size, size - 1)
        damage(folder / "a/000000.mkv", cut, size, fill)
        if both:
            cut_side = random.Random(seed).randint(600, side.stat().st_size)
            damage(folder / "a/000000.idx", cut_side, side.stat().st_size, fill)
        manifest = recover(folder)
        assert manifest is not None and manifest.state == "recovered"
        found = packets(folder, manifest, "a")
        kept = [r for r in records if r.offset + r.size <= cut]
        assert len(found) >= len(kept)
        for r, data in zip(found, payloads(folder / "a/000000.mkv", found), strict=True):
            assert data == content[r.sequence]
            if not r.rebuilt:
                assert r == records[r.sequence]
            else:  # its time is still known to the millisecond
                assert abs(r.pts_ns - records[r.sequence].pts_ns) < 1_000_000
        entry = manifest.streams["a"]
        assert entry.captured == 45 == entry.written + sum(entry.dropped.values()) + entry.in_flight
        assert manifest.streams["imu"].written == 300
        assert recover(folder) is None
        shutil.rmtree(tmp_path / str(seed))


def damage(path: Path, cut: int, size: int, fill: bool) -> None:
    os.truncate(path, cut)
    if fill:
        os.truncate(path, size)


def test_sensor_tails(sealed: Path, tmp_path: Path) -> None:
    wanted = samples(sealed, load(sealed), "imu")
    size = (sealed / "imu/000000.idx").stat().st_size
    for seed in range(60):
        folder = as_killed(sealed, tmp_path / str(seed))
        cut = random.Random(seed).randint(600, size - 1)
        damage(folder / "imu/000000.idx", cut, size, seed % 2 == 0)
        manifest = recover(folder)
        assert manifest is not None
        found = samples(folder, manifest, "imu")
        assert found == wanted[: len(found)]
        each = len(wanted[0].encode())
        assert len(found) >= len(wanted) - (size - cut) // each - 1
        shutil.rmtree(tmp_path / str(seed))


def test_a_hole_is_passed_over_and_kept_aside(sealed: Path, tmp_path: Path) -> None:
    records = packets(sealed, load(sealed), "a")
    folder = as_killed(sealed, tmp_path)
    with (folder / "a/000000.mkv").open("rb+") as file:
        file.seek(records[10].offset + 5)
        file.write(b"\0" * 40)
    manifest = recover(folder)
    assert manifest is not None
    (segment,) = manifest.streams["a"].segments
    found = read_sidecar(folder, segment).records
    assert [r.sequence for r in found if isinstance(r, PacketRecord)] == [n for n in range(45) if n != 10]
    assert [r.sequence for r in found if isinstance(r, DropRecord)] == [10]
    assert "a-000000.mkv" in {p.name for p in (folder / QUARANTINE).iterdir()}
    assert manifest.quarantined == ["quarantine/a-000000.mkv"]
    final = finish(folder).final
    assert final is not None and final.packets == {"a": 44, "imu": 300}


def test_without_a_sidecar_the_packets_are_kept(sealed: Path, tmp_path: Path) -> None:
    folder = as_killed(sealed, tmp_path)
    (folder / "a/000000.idx").unlink()
    manifest = recover(folder)
    assert manifest is not None
    found = packets(folder, manifest, "a")
    assert len(found) == 45 and all(r.rebuilt for r in found)
    final = finish(folder).final
    assert final is not None and final.packets["a"] == 45
    assert decoded(folder / final.file, 0) == 45


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 10_000, random.Random(1).randbytes(10_000)], ids=["empty", "zeros", "noise"]
)
def test_what_cannot_be_read_is_put_aside(sealed: Path, tmp_path: Path, content: bytes) -> None:
    folder = as_killed(sealed, tmp_path)
    for name in ("000001.mkv", "000001.idx"):
        (folder / "a" / name).write_bytes(content)
    manifest = recover(folder)
    assert manifest is not None
    assert len(manifest.streams["a"].segments) == 1
    assert set(manifest.quarantined) == {"quarantine/a-000001.mkv", "quarantine/a-000001.idx"}
    assert manifest.streams["a"].written == 45


@pytest.mark.parametrize("content", [None, b"", b"{", b"\0" * 500])
def test_without_a_manifest(sealed: Path, tmp_path: Path, content: bytes | None) -> None:
    folder = as_killed(sealed, tmp_path)
    if content is None:
        (folder / NAME).unlink()
    else:
        (folder / NAME).write_bytes(content)
    manifest = recover(folder)
    assert manifest is not None
    assert (manifest.state, manifest.device) == ("recovered", "cam-test")
    assert {n: e.written for n, e in manifest.streams.items()} == {"a": 45, "imu": 300}
    assert "made anew" in manifest.problems[0]


def test_one_that_cannot_be_helped_does_not_stop_the_others(sealed: Path, tmp_path: Path) -> None:
    good = as_killed(sealed, tmp_path)
    bad = tmp_path / "20200101T000000Z-cam-test"
    shutil.copytree(good, bad)
    for path in bad.glob("*/0*"):
        path.write_bytes(b"")
    manifests = recover_all(tmp_path)
    assert [m.state for m in manifests if isinstance(m, Manifest)] == ["failed", "recovered"]
    assert recover_all(tmp_path) == []
    assert load(good).final is not None


def test_a_recovery_that_is_killed_itself_is_done_again(sealed: Path, tmp_path: Path) -> None:
    """Packets already moved, sidecar not yet: the times are found by content."""
    records = packets(sealed, load(sealed), "a")
    folder = as_killed(sealed, tmp_path)
    with (folder / "a/000000.mkv").open("rb+") as file:
        file.seek(records[10].offset)
        file.write(b"\0" * 10)
    before = (folder / "a/000000.idx").read_bytes()
    assert recover(folder) is not None
    manifest = load(folder)
    manifest.state = "recording"
    manifest.streams["a"].segments = []
    manifest.write(folder)
    (folder / "a/000000.idx").write_bytes(before)
    again = recover(folder)
    assert again is not None
    found = packets(folder, again, "a")
    assert [(r.sequence, r.pts_ns) for r in found] == [(r.sequence, r.pts_ns) for r in records if r.sequence != 10]
    assert not any(r.rebuilt for r in found)


def test_what_was_sealed_and_damaged_since_is_put_in_order(sealed: Path, tmp_path: Path) -> None:
    folder = tmp_path / sealed.name
    shutil.copytree(sealed, folder)
    os.truncate(folder / "a/000000.idx", (folder / "a/000000.idx").stat().st_size - 10)
    (manifest,) = recover_all(tmp_path)
    assert isinstance(manifest, Manifest), manifest
    assert manifest.final is not None and manifest.final.packets == {"a": 45, "imu": 300}
    assert (manifest.state, manifest.stopped_because) == ("recovered", "all inputs have ended")
    assert recover_all(tmp_path) == []


def test_what_is_not_to_be_merged_is_not_announced_again(tmp_path: Path) -> None:
    record(tmp_path, imu(count=5), merge=False)
    assert recover_all(tmp_path) == []


# -- merged already -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"{", b"\0" * 500])
def test_a_merged_recording_without_its_manifest_is_left_alone(
    sealed: Path, tmp_path: Path, content: bytes | None
) -> None:
    """Its segments are gone; what could be made of the rest would take the place of the file."""
    folder = Path(shutil.copytree(sealed, tmp_path / sealed.name))
    finish(folder)
    if content is None:
        (folder / NAME).unlink()
    else:
        (folder / NAME).write_bytes(content)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(Corrupt, match="is merged, but its manifest is gone"):
        recover(folder)
    (told,) = recover_all(tmp_path)
    assert isinstance(told, Corrupt)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_lane_is_what_its_sidecars_say(sealed: Path, tmp_path: Path) -> None:
    folder = as_killed(sealed, tmp_path)
    (folder / NAME).unlink()
    (folder / "a/000000.mkv").unlink()
    (folder / "imu/000000.mkv").write_bytes(b"stray")
    manifest = recover(folder)
    assert manifest is not None
    assert {n: (e.kind, e.written) for n, e in manifest.streams.items()} == {"a": ("video", 0), "imu": ("sensor", 300)}
    assert set(manifest.quarantined) == {"quarantine/a-000000.idx", "quarantine/imu-000000.mkv"}


def test_without_a_sidecar_pictures_that_are_not_in_their_order_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "in.mkv"
    with (
        av.open(str(path), "w") as out,
        av.open("testsrc2=size=128x96:rate=30,trim=end_frame=60", format="lavfi") as src,
    ):
        stream = out.add_stream("libx264", rate=30, options={"g": "15", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for frame in src.decode(video=0):
            frame.pict_type = 0  # type: ignore[assignment]
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    camera = {"name": "a", "input": str(path), "codec": "copy", "timestamps": "device"}
    root, sealed = record(tmp_path / "recordings", camera, segment="500 ms")
    assert any(r.pts_ns > r.dts_ns for r in packets(root / sealed.id, sealed, "a"))
    assert len(sealed.streams["a"].segments) > 2
    folder = as_killed(root / sealed.id, tmp_path)
    (folder / "a/000001.idx").unlink()
    (manifest,) = recover_all(tmp_path)
    assert isinstance(manifest, Manifest), manifest
    assert manifest.final is not None and manifest.final.packets == {"a": 60}
    assert decoded(folder / manifest.final.file, 0) == 60


# -- disks that fail ------------------------------------------------------------------------------------------------


def test_a_bad_sector_is_zeros() -> None:
    """A page of our own memory that is not mapped, read through /proc, fails as a bad sector does."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    at = libc.mmap(None, 3 * SECTOR, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.memset(at, ord("x"), 3 * SECTOR)
    assert libc.munmap(at + SECTOR, SECTOR) == 0
    with Scan(Path("/proc/self/mem"), size=at + 3 * SECTOR) as data:
        assert data[at : at + 3 * SECTOR] == b"x" * SECTOR + bytes(SECTOR) + b"x" * SECTOR
        assert data.unread == SECTOR
        assert data.find(b"\0x", at) == at + 2 * SECTOR - 1
    libc.munmap(at, SECTOR)
    libc.munmap(at + 2 * SECTOR, SECTOR)


def test_a_file_that_becomes_shorter_kills_nobody(sealed: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(sealed / "a/000000.mkv", tmp_path))
    records = packets(sealed, load(sealed), "a")
    with Scan(path) as data:
        os.truncate(path, records[3].offset)
        assert [b.offset for b in matroska.blocks(data)] == [r.offset for r in records[:3]]


def test_packets_are_found_wherever_a_read_ends(sealed: Path) -> None:
    path = sealed / "a/000000.mkv"
    content = path.read_bytes()
    with Scan(path) as data:
        assert [*matroska.blocks(data)] == [*matroska.blocks(content)]
        assert bytes(data) == content
        assert data.find(content[-9:], 0) == content.find(content[-9:])
        assert data.find(b"there is no such thing", 0) == -1
