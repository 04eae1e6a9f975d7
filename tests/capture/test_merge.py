"""One file of all streams: every packet at its time, gaps kept, read back; and a full disk costs nothing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import pytest

from blocks.errors import Conflict, Corrupt, DiskFull
from flows.capture.locks import HELD, LOCK, locked
from flows.capture.manifest import SegmentEntry, load, sha256_of
from flows.capture.merge import finish, read_sidecar
from flows.capture.recorder import Recorder
from flows.capture.recover import finished, recover_all
from flows.capture.sidecar import PacketRecord, SampleRecord, encode_header
from tests.capture.conftest import imu, lavfi, packets, record, samples, spec_of
from tests.storage.children import MOUNTS, in_child, mount

S = 1_000_000_000


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sealed")
    _, manifest = record(
        root, lavfi("a", frames=65), lavfi("b", frames=50, rate=25), imu(count=300), keep_segments=False
    )
    return root / manifest.id


@pytest.fixture
def folder(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / sealed.name))


def test_every_packet_is_there_at_its_time(folder: Path) -> None:
    before = load(folder)
    wanted = {n: [r.pts_ns // 1_000_000 for r in packets(folder, before, n)] for n in ("a", "b")}
    content = {}
    for name in ("a", "b"):
        content[name] = b"".join((folder / str(s.video)).read_bytes() for s in before.streams[name].segments)
    measured = samples(folder, before, "imu")
    manifest = finish(folder)
    assert manifest.final is not None
    path = folder / manifest.final.file
    assert manifest.final.sha256 == sha256_of(path)
    assert manifest.final.packets == {"a": 65, "b": 50, "imu": 300}
    with av.open(str(path)) as merged:
        assert [s.metadata["title"] for s in merged.streams] == ["a", "b", "imu"]
        found: dict[int, list[tuple[int, bytes]]] = {0: [], 1: [], 2: []}
        for packet in merged.demux():
            if packet.size and packet.pts is not None:
                found[packet.stream.index].append((packet.pts, bytes(packet)))
    for n, name in enumerate(("a", "b")):
        assert [at for at, _ in found[n]] == wanted[name]
        assert all(data in content[name] for _, data in found[n])
    told = [json.loads(data.split(b",", 8)[8]) for _, data in found[2]]
    assert [(t["n"], t["t_ns"], t["device_ns"]) for t in told] == [
        (s.sequence, s.arrived_ns, s.device_ns) for s in measured
    ]
    assert all(9 < t["az"] < 10.5 for t in told)
    assert sorted(p.name for p in folder.glob("*/*.mkv")) == []  # proven, and gone
    assert len([*folder.glob("*/*.idx")]) == len([s for e in before.streams.values() for s in e.segments])


def test_both_cameras_are_decoded_and_are_on_one_time(folder: Path) -> None:
    """Two cameras that began together are less than a frame apart in the file."""
    before = load(folder)
    apart = abs(packets(folder, before, "a")[0].arrived_ns - packets(folder, before, "b")[0].arrived_ns)
    manifest = finish(folder)
    assert manifest.final is not None
    with av.open(str(folder / manifest.final.file)) as merged:
        first = [next(f.time for f in _reopened(folder / manifest.final.file, n)) for n in (0, 1)]
        assert abs(abs(first[0] - first[1]) - apart / 1e9) <= 0.002
        assert sum(1 for _ in merged.decode(video=0)) == 65


def _reopened(path: Path, stream: int):
    with av.open(str(path)) as merged:
        yield from merged.decode(video=stream)


def test_it_can_be_sought_in(folder: Path) -> None:
    manifest = finish(folder)
    assert manifest.final is not None
    with av.open(str(folder / manifest.final.file)) as merged:
        stream = merged.streams.video[0]
        merged.seek(int(1.5 / stream.time_base), stream=stream)  # type: ignore[operator]
        assert 0.9 < next(merged.decode(stream)).time <= 1.5


def test_gaps_stay_gaps(folder: Path) -> None:
    """A segment that is missing leaves the others where they were in time."""
    manifest = load(folder)
    gone = manifest.streams["a"].segments.pop(1)
    for path in gone.sha256:
        (folder / path).unlink()
    manifest.write(folder)
    wanted = [r.pts_ns // 1_000_000 for r in packets(folder, manifest, "a")]
    final = finish(folder).final
    assert final is not None and final.packets["a"] == 65 - gone.count
    with av.open(str(folder / final.file)) as merged:
        assert [p.pts for p in merged.demux(video=0) if p.size] == wanted
    assert max(b - a for a, b in itertools.pairwise(wanted)) > 900


def test_a_camera_that_changes_its_picture_gets_a_track_for_each(tmp_path: Path) -> None:
    first = record(tmp_path / "1", lavfi("a", frames=20))[1]
    second = record(tmp_path / "2", lavfi("a", frames=20, size="320x240"))[1]
    folder, other = tmp_path / "1" / first.id, tmp_path / "2" / second.id
    for ending in ("mkv", "idx"):
        shutil.copy(other / f"a/000000.{ending}", folder / f"a/000009.{ending}")
    moved = (
        second.streams["a"]
        .segments[0]
        .model_copy(update={"number": 9, "video": "a/000009.mkv", "sidecar": "a/000009.idx"})
    )
    first.streams["a"].segments.append(moved)
    first.write(folder)
    final = finish(folder).final
    assert final is not None
    assert final.packets == {"a": 20, "a~2": moved.count}
    with av.open(str(folder / final.file)) as merged:
        assert [(s.width, s.height) for s in merged.streams.video] == [(160, 120), (320, 240)]


def test_a_damaged_packet_is_left_out_and_told(folder: Path) -> None:
    manifest = load(folder)
    bad = packets(folder, manifest, "a")[3]
    with (folder / str(manifest.streams["a"].segments[0].video)).open("rb+") as file:
        file.seek(bad.offset)
        file.write(b"\xff\xff\xff")
    manifest = finish(folder)
    assert manifest.final is not None and manifest.final.packets["a"] == 64
    assert manifest.problems == ["a: 1 of 65 packets are damaged, and not in the file; 000000.mkv is kept"]
    first, *others = manifest.streams["a"].segments
    assert (first.damaged, first.merged) == (1, False)
    assert [*folder.glob("*/*.mkv")] == [folder / "a/000000.mkv"]  # it is the only one that has the rest of that packet
    assert all(s.merged and not s.damaged for s in others)
    assert finish(folder) == manifest
    assert recover_all(folder.parent) == []
    assert (folder / "a/000000.mkv").exists()


def test_segments_that_a_kill_left_are_deleted_later(folder: Path) -> None:
    """Killed between the manifest and the deletion; but where the file is gone, they may be all there is."""
    videos = {p: p.read_bytes() for p in folder.glob("*/*.mkv")}
    manifest = finish(folder)
    final = folder / str(manifest.final and manifest.final.file)
    for path, data in videos.items():
        path.write_bytes(data)
    final.rename(folder.parent / "elsewhere.mkv")
    assert recover_all(folder.parent) == []
    assert all(path.exists() for path in videos)
    (folder.parent / "elsewhere.mkv").rename(final)
    assert recover_all(folder.parent) == [manifest]
    assert not any(path.exists() for path in videos)
    assert recover_all(folder.parent) == []


def test_a_file_of_that_name_is_not_overwritten(folder: Path) -> None:
    final = folder / f"{folder.name}.mkv"
    final.write_bytes(b"another")
    with pytest.raises(Corrupt, match="holds something else"):
        finish(folder)
    assert final.read_bytes() == b"another"
    assert load(folder).final is None and [*folder.glob("a/*.mkv")]


def test_a_file_that_a_kill_left_without_a_word_in_the_manifest_is_taken(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other" / folder.name)
    finish(other)
    final = folder / f"{folder.name}.mkv"
    shutil.copy(other / final.name, final)
    before = final.stat().st_ino
    manifest = finish(folder)
    assert manifest.final is not None and manifest.final.sha256 == sha256_of(final)
    assert (final.stat().st_ino, [*folder.glob("*/*.mkv")]) == (before, [])


def test_what_the_manifest_does_not_name_is_for_the_recovery(folder: Path) -> None:
    manifest = load(folder)
    gone = manifest.streams["a"].segments.pop()
    manifest.write(folder)
    with pytest.raises(Corrupt, match=f"a/{gone.number:06} is not in its manifest"):
        finish(folder)
    assert finished(folder).final.packets["a"] == 65  # type: ignore[union-attr]


def _retimed(folder: Path, segment: SegmentEntry, new: Callable[[int, PacketRecord], PacketRecord]) -> None:
    side = read_sidecar(folder, segment)
    assert side.header is not None
    changed = [new(n, r) if isinstance(r, PacketRecord) else r for n, r in enumerate(side.records)]
    (folder / segment.sidecar).write_bytes(encode_header(side.header) + b"".join(r.encode() for r in changed))


def test_a_camera_that_counts_anew_keeps_every_packet(folder: Path) -> None:
    manifest = load(folder)
    for segment in manifest.streams["a"].segments[1:]:
        _retimed(folder, segment, lambda n, r: replace(r, pts_ns=r.pts_ns - S, dts_ns=r.dts_ns - S))
    second = sum(s.count for s in manifest.streams["a"].segments[1:])
    final = finish(folder).final
    assert final is not None
    assert final.packets == {"a": 65 - second, "a~2": second, "b": 50, "imu": 300}
    with av.open(str(folder / final.file)) as merged:
        assert sum(1 for _ in merged.decode(video=1)) == second


def test_more_than_one_step_back_is_no_end(folder: Path) -> None:
    """The worst there is: each packet before the one before it."""
    manifest = load(folder)
    for k, segment in enumerate(manifest.streams["a"].segments):

        def earlier(n: int, r: PacketRecord, k: int = k) -> PacketRecord:
            at = (200 - 50 * k - n) * S
            return replace(r, pts_ns=at, dts_ns=at)

        _retimed(folder, segment, earlier)
    final = finish(folder).final
    assert final is not None and sum(n for name, n in final.packets.items() if name.startswith("a")) == 65


def test_times_that_no_file_can_hold_are_told_with_their_track(folder: Path) -> None:
    """Samples before those before them, which no clock of ours makes."""
    segment = load(folder).streams["imu"].segments[0]
    side = read_sidecar(folder, segment)
    assert side.header is not None
    records = [
        replace(r, arrived_ns=(9 - n) * S) for n, r in enumerate(side.records[:3]) if isinstance(r, SampleRecord)
    ]
    turned = b"".join(r.encode() for r in records)
    (folder / segment.sidecar).write_bytes(encode_header(side.header) + turned)
    with pytest.raises(Corrupt, match=r"does not take track imu at 8\.000 s"):
        finish(folder)
    assert [*folder.glob("a/*.mkv")] and load(folder).final is None


def test_twice_and_interrupted(folder: Path) -> None:
    calls = 0

    class Stop(Exception):
        pass

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Stop

    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(Stop):
        finish(folder, check=check)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    manifest = finish(folder)
    at = (folder / manifest.final.file).stat().st_mtime_ns  # type: ignore[union-attr]
    assert finish(folder) == manifest
    assert (folder / manifest.final.file).stat().st_mtime_ns == at  # type: ignore[union-attr]


def test_not_while_somebody_else_is_at_it(folder: Path) -> None:
    with locked(folder / LOCK, HELD), pytest.raises(Conflict, match="at this moment"):
        finish(folder)


def test_a_sidecar_that_is_not_whole_is_for_the_recovery(folder: Path) -> None:
    side = folder / "a/000000.idx"
    os.truncate(side, side.stat().st_size - 3)
    with pytest.raises(Corrupt, match="recording recover"):
        finish(folder)
    assert load(folder).final is None


# -- a full disk ----------------------------------------------------------------------------------------------------


def _full_disk(folder: Path) -> None:
    """In a child with a mount of its own: a disk of 3 MiB that fills up while it is recorded on."""
    mount(folder / "disk", "size=3m")
    recorder = Recorder(
        spec_of(lavfi("a", frames=None, size="640x480", crf=1), imu(count=None), segment="500 ms"), folder / "disk"
    )
    manifest = recorder.run(threading.Event())
    assert manifest.state == "sealed", manifest
    assert "the disk" in manifest.stopped_because, manifest.stopped_because
    assert load(recorder.folder) == manifest
    for name, entry in manifest.streams.items():
        assert entry.captured == entry.written + sum(entry.dropped.values()), (name, entry)
        for segment in entry.segments:
            for path, digest in segment.sha256.items():
                assert sha256_of(recorder.folder / path) == digest
    frames = packets(recorder.folder, manifest, "a")
    assert len(frames) == manifest.streams["a"].written > 5
    decoded = 0
    for segment in manifest.streams["a"].segments:
        with av.open(str(recorder.folder / str(segment.video))) as video:
            decoded += sum(1 for _ in video.decode(video=0))
    assert decoded == len(frames)
    before = sorted(p.name for p in recorder.folder.rglob("*"))
    with pytest.raises(DiskFull, match="merging needs"):
        finish(recorder.folder)
    assert sorted(p.name for p in recorder.folder.rglob("*")) == before
    shutil.move(recorder.folder, folder / "room")
    final = finish(folder / "room").final
    assert final is not None and final.packets["a"] == len(frames)


def test_a_full_disk_ends_in_a_sealed_recording(tmp_path: Path) -> None:
    in_child(MOUNTS, _full_disk, tmp_path)


def test_little_room_is_seen_before(tmp_path: Path) -> None:
    recorder = Recorder(spec_of(imu(count=None), limits={"disk_mib": 1 << 40}), tmp_path)
    manifest = recorder.run(threading.Event())
    assert manifest.stopped_because.endswith("MiB are to stay free")
    assert manifest.state in ("sealed", "failed")
