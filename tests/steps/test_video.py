"""transcode, remux, hls and thumbnail: what comes out is decoded and compared; what is no video is told so."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import av
import pytest

from blocks.errors import Cancelled, ConfigError, Corrupt, DiskFull, ToolMissing
from flows.transfer.steps import Ask, Step, encoding
from flows.transfer.steps.compress import Compress
from flows.transfer.steps.hls import Hls
from flows.transfer.steps.rename import Rename, Timestamp
from flows.transfer.steps.stitch import Stitch
from flows.transfer.steps.thumbnail import Thumbnail
from flows.transfer.steps.transcode import Remux, Transcode
from tests.steps.conftest import MTIME_NS, Bench, look, luma, make, psnr
from tests.storage.children import MOUNTS, in_child, mount

FAST: dict[str, Any] = {"preset": "ultrafast"}
VIDEO_STEPS: list[Step] = [Transcode(**FAST), Remux(container="mkv"), Hls(), Thumbnail(), Stitch(only=["*"], **FAST)]


# -- transcode ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "preset", "least"), [("h264", "veryfast", 38), ("hevc", "ultrafast", 36), ("av1", "12", 32)]
)
def test_the_picture_stays_the_same(bench: Bench, clips: Path, codec: Any, preset: str, least: float) -> None:
    source = clips / "clip.mp4"
    out = bench.one(Transcode(codec=codec, crf=18, preset=preset), source)
    was, seen = look(source), look(out)
    assert (seen.codec, seen.frames, seen.size, seen.pixels) == (codec, 30, (320, 180), "yuv420p")
    assert seen.times == pytest.approx(was.times, abs=1e-4)
    assert seen.duration == pytest.approx(was.duration, abs=0.05)
    assert seen.audio == was.audio
    assert seen.metadata["comment"] == "flight 7"
    assert seen.metadata["creation_time"].startswith("2026-07-17T14:25:30")
    assert out.stat().st_mtime_ns == MTIME_NS
    assert psnr(luma(source), luma(out)) > least
    assert bench.told == sorted(bench.told)


@pytest.mark.parametrize("size", ["160x90", "160x", "x90"])
def test_another_size(bench: Bench, clips: Path, size: str) -> None:
    out = bench.one(Transcode(size=size, crf=12, **FAST), clips / "clip.mp4")
    assert look(out).size == (160, 90)
    assert psnr(luma(clips / "clip.mp4", (160, 90)), luma(out)) > 36


def test_odd_sizes_grow_by_a_pixel(bench: Bench, tmp_path: Path) -> None:
    source = make(tmp_path / "odd.mkv", 0.3, (639, 359), codec="ffv1", audio=0)
    out = bench.one(Transcode(crf=12, **FAST), source)
    assert look(out).size == (640, 360)
    was, made = luma(source), luma(out)
    assert psnr(was, [m[:359, :639] for m in made]) > 38, "no pixel is moved"
    assert psnr([w[:, -1:] for w in was], [m[:359, 639:] for m in made]) > 25, "the new ones are like their neighbours"
    assert look(bench.one(Transcode(size="x179", **FAST), source)).size == (318, 180)


def test_the_time_of_each_frame_stays(bench: Bench, tmp_path: Path) -> None:
    source = make(
        tmp_path / "vfr.mkv", 1, times=lambda n: 500 + n * 20 + (n * n * 7) % 17 + (400 if n > 20 else 0), audio=0
    )
    was = look(source)
    assert len({round(b - a, 3) for a, b in zip(was.times, was.times[1:], strict=False)}) > 5
    for container in ("mkv", "mp4"):
        seen = look(bench.one(Transcode(container=container, **FAST), source))  # type: ignore[arg-type]
        start = 0 if container == "mkv" else seen.times[0] - was.times[0]
        assert [t - start for t in seen.times] == pytest.approx(was.times, abs=1e-3)


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_rotation_stays(bench: Bench, tmp_path: Path, turn: int) -> None:
    source = make(tmp_path / "turned.mp4", 0.2, audio=0, turn=turn)
    assert look(source).turn in (turn, -turn, 180)
    for step in (Transcode(**FAST), Remux(container="mov"), Transcode(codec="hevc", container="mov", **FAST)):
        seen = look(bench.one(step, source))
        assert (seen.turn, seen.size) == (look(source).turn, (320, 180))


def test_sound_tracks_are_copied_all_or_none(bench: Bench, tmp_path: Path) -> None:
    for audio in (0, 2):
        source = make(tmp_path / f"sound{audio}.mp4", 0.5, audio=audio)
        for step in (Transcode(**FAST), Remux(container="mkv"), Transcode(container="mov", **FAST)):
            seen = look(bench.one(step, source))
            assert len(seen.audio) == audio
            assert seen.audio == look(source).audio
            assert seen.frames == 15


def test_ten_bits_stay_where_the_codec_plays_them(bench: Bench, tmp_path: Path) -> None:
    source = make(tmp_path / "ten.mp4", 0.2, pixels="yuv420p10le", codec="libx265", audio=0)
    formats = {codec: look(bench.one(Transcode(codec=codec, preset=preset), source)).pixels for codec, preset in (("h264", "ultrafast"), ("hevc", "ultrafast"), ("av1", "12"))}  # fmt: skip # type: ignore[arg-type]
    assert formats == {"h264": "yuv420p", "hevc": "yuv420p10le", "av1": "yuv420p10le"}


def test_no_encoder_takes_the_machine_for_itself(bench: Bench, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SVT-AV1, of root, has all its threads and the one that opens it go before everything else there is."""
    take, seen = encoding.Encoder.take, set[int]()

    def look_on(self: encoding.Encoder, frame: Any) -> None:
        take(self, frame)
        seen.update(os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task"))

    monkeypatch.setattr(encoding.Encoder, "take", look_on)
    bench.one(Transcode(codec="av1", preset="12"), clips / "clip.mp4")
    assert seen == {os.SCHED_OTHER} and os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_container_that_cannot_hold_a_track_is_told(bench: Bench, tmp_path: Path) -> None:
    source = make(tmp_path / "lossless.mkv", 0.2, codec="rawvideo", audio=1)
    with pytest.raises(ConfigError, match="cannot hold its video track"):
        bench.go(Remux(container="mp4"), source)
    assert bench.nothing_left()
    assert look(bench.one(Transcode(**FAST), source)).frames == 6


def test_a_missing_encoder_is_told(bench: Bench, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoding.ENCODERS, "av1", "librav1e")  # real, and not in PyAV's wheel
    with pytest.raises(ToolMissing, match="librav1e"):
        bench.go(Transcode(codec="av1"), clips / "clip.mp4")
    with pytest.raises(ToolMissing, match="librav1e"):
        bench.go(Stitch(codec="av1", only=["*"]), clips / "clip.mp4")


# -- bad input ----------------------------------------------------------------------------------------------------------


def bad(folder: Path) -> dict[str, Path]:
    """Files that are no videos, or not whole."""
    good = make(folder / "good.mp4", 2.0).read_bytes()
    mkv = make(folder / "good.mkv", 4.0, crf=10).read_bytes()
    front = folder / "front.mp4"
    with av.open(str(folder / "good.mp4")) as clip, av.open(str(front), "w", options={"movflags": "+faststart"}) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in clip.streams}  # type: ignore[type-var]
        for packet in clip.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    sound = folder / "sound.mp4"
    with av.open(str(folder / "good.mp4")) as clip, av.open(str(sound), "w") as out:
        track = out.add_stream_from_template(clip.streams.audio[0])
        for packet in clip.demux(audio=0):
            if packet.size:
                packet.stream = track
                out.mux(packet)
    empty = folder / "noframes.mkv"
    with av.open(str(folder / "good.mkv")) as clip, av.open(str(empty), "w") as out:
        out.add_stream_from_template(clip.streams.video[0])
        out.start_encoding()
    damaged = bytearray(good)
    for at in range(2000, len(good) // 2, 50):
        damaged[at] ^= 0xFF
    contents = {
        "zero.mp4": b"", "text.mp4": b"this is no video\n" * 1000, "noise.mp4": os.urandom(200_000),
        "cut.mp4": good[: len(good) // 2], "cut-front.mp4": front.read_bytes()[: len(good) // 2],
        "cut.mkv": mkv[: len(mkv) // 2], "header.mp4": good[:40],
        "playlist.mp4": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nfile:///etc/hostname\n",
        "concat.mp4": b"ffconcat version 1.0\nfile /etc/hostname\n",
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in [*contents, "sound.mp4", "noframes.mkv"]}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bad(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("step", VIDEO_STEPS, ids=lambda s: s.kind)
def test_bad_input_is_corrupt(tmp_path: Path, bad_files: dict[str, Path], step: Step) -> None:
    for name, path in bad_files.items():
        if step.kind == "thumbnail" and name.startswith("cut"):  # type: ignore[attr-defined]
            continue  # its frame may be there
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name)
        with pytest.raises(Corrupt) as caught:
            bench.go(step, path)
        assert caught.value.path == name
        assert bench.nothing_left(), name


def test_what_is_damaged_inside_is_never_taken_for_whole(bench: Bench, tmp_path: Path) -> None:
    """Some damage is beyond detection; but nothing of it may crash, or lose frames and say nothing."""
    whole = make(tmp_path / "whole.mp4", 1.0, audio=0).read_bytes()
    for seed in range(12):
        damaged = bytearray(whole)
        for n in range(20):
            damaged[(seed * 7919 + n * 104729) % len(whole)] ^= 1 << (seed % 8)
        path = tmp_path / "damaged.mp4"
        path.write_bytes(damaged)
        for step in (Transcode(**FAST), Remux(container="mkv"), Thumbnail()):
            try:
                out = bench.go(step, path)
            except (Corrupt, ConfigError, ToolMissing):
                assert bench.nothing_left()
            else:
                assert all(p.stat().st_size for p in out.values())


# -- remux and hls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov", "ts"])
def test_remux_changes_no_picture(bench: Bench, clips: Path, container: Any) -> None:
    source = clips / "clip.mp4"
    out = bench.one(Remux(container=container), source)
    assert out.name == f"clip.{container}"
    was, seen = look(source), look(out)
    assert (seen.frames, seen.codec) == (30, "h264")
    if container in ("mp4", "mov"):
        assert seen.audio == was.audio
        assert seen.metadata["comment"] == "flight 7"
    assert psnr(luma(source), luma(out)) > 90


def test_hls_of_two_clips_lie_beside_each_other(bench: Bench, clips: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "clip.mkv", 3.0, gop=15, graph="negate")
    made = bench.go(
        [Transcode(only=["*.mp4"], keyframe_every="500ms", **FAST), Hls(segment="1s")], clips / "clip.mp4", other
    )  # type: ignore[arg-type]
    folders = {name.split("/")[0] for name in made}
    assert folders == {"clip-mp4", "clip-mkv"}
    for folder, source, count in (("clip-mp4", clips / "clip.mp4", 1), ("clip-mkv", other, 3)):
        playlist = made[f"{folder}/playlist.m3u8"]
        text = playlist.read_text()
        assert "/" not in re.sub("https?://", "", text), "names are relative"
        named = re.findall(r"^[^#].*$", text, re.M)
        assert len(named) == count
        assert {f"{folder}/{n}" for n in [*named, "init.mp4", "playlist.m3u8"]} == {
            n for n in made if n.startswith(folder)
        }
        assert sum(map(float, re.findall(r"#EXTINF:([\d.]+)", text))) == pytest.approx(look(source).duration, abs=0.1)
        with av.open(str(playlist)) as clip:
            assert sum(1 for _ in clip.decode(video=0)) == look(source).frames


def test_each_segment_begins_with_a_key_frame(bench: Bench, tmp_path: Path) -> None:
    source = make(tmp_path / "50%d clip.mp4", 3.0, gop=300)
    steps = [Transcode(keyframe_every="1s", **FAST), Hls(segment="1s")]  # type: ignore[arg-type]
    made = bench.go(steps, source)
    (folder,) = {name.split("/")[0] for name in made}
    assert folder == "50%d clip-mp4"
    segments = sorted(n for n in made if n.endswith(".m4s"))
    assert len(segments) == 3
    for name in segments:
        whole = tmp_path / "whole.mp4"
        whole.write_bytes(made[f"{folder}/init.mp4"].read_bytes() + made[name].read_bytes())
        with av.open(str(whole)) as clip:
            assert next(clip.demux(video=0)).is_keyframe


# -- thumbnail ------------------------------------------------------------------------------------------------------------


def test_thumbnail_is_the_frame_that_was_asked_for(bench: Bench, clips: Path) -> None:
    source = clips / "clip.mp4"
    frames = luma(source)
    for at, wanted in ((0.0, 0), (0.5, 15), (1.0, 29)):
        made = bench.go(Thumbnail(at=at, width=320, quality=98), source)
        assert made["clip.mp4"] == source
        with av.open(str(made["clip.mp4.jpg"])) as picture:
            frame = next(picture.decode(video=0))
        assert (frame.width, frame.height) == (320, 180)
        grey = frame.reformat(format="yuv420p", dst_color_range="MPEG").to_ndarray(format="gray").astype(float)
        scores = [psnr([grey], [f]) for f in frames]
        assert scores.index(max(scores)) in range(wanted - 1, wanted + 2)
        assert max(scores) > 28
    small = bench.go(Thumbnail(width=64, quality=10), source)["clip.mp4.jpg"]
    assert small.stat().st_size < 3000
    assert small.read_bytes()[:3] == b"\xff\xd8\xff"


def test_thumbnail_stands_upright(bench: Bench, tmp_path: Path) -> None:
    upright = make(tmp_path / "upright.mp4", 0.2, audio=0)
    turned = make(tmp_path / "turned.mp4", 0.2, audio=0, turn=90)
    with av.open(str(bench.go(Thumbnail(quality=98), turned)["turned.mp4.jpg"])) as picture:
        frame = next(picture.decode(video=0)).to_ndarray(format="gray").astype(float)
    with av.open(str(bench.go(Thumbnail(quality=98), upright)["upright.mp4.jpg"])) as picture:
        whole = next(picture.decode(video=0)).to_ndarray(format="gray").astype(float)
    import numpy as np

    # `rotation` counts counter-clockwise, as FFmpeg's own players turn it
    assert look(turned).turn == 90
    assert psnr([np.rot90(whole, 1)], [frame]) > 30


# -- stopping, and no room --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", VIDEO_STEPS[:3], ids=lambda s: s.kind)
def test_cancel_in_the_middle(bench: Bench, clips: Path, step: Step) -> None:
    bench.go(step, clips / "clip.mp4")
    bench.stop_after, bench.checks = bench.checks // 2, 0
    with pytest.raises(Cancelled):
        bench.go(step, clips / "clip.mp4")
    assert bench.nothing_left()


def no_room(folder: Path) -> None:
    source = make(folder.parent / "clip.mp4", 1.0, (640, 360), crf=1)
    mount(folder, "size=300k")
    assert source.stat().st_size > 600_000
    for step in (
        Transcode(crf=0, **FAST),
        Remux(container="mp4"),
        Remux(container="mkv"),
        Remux(container="ts"),
        Hls(segment="1s"),
    ):  # type: ignore[arg-type]
        work = folder / "w"
        work.mkdir()
        with pytest.raises(DiskFull):
            step.run([source], work, Ask(folder, 0))
        subprocess.run(["rm", "-r", str(work)], check=True)


def test_a_full_disk(tmp_path: Path) -> None:
    in_child(MOUNTS, no_room, tmp_path / "disk")


def test_steps_after_hls_leave_its_parts_their_names(bench: Bench, clips: Path) -> None:
    """A playlist names its segments: renamed or packed one by one, nobody could play them."""
    after: list[Step] = [Timestamp(), Rename(prefix="cam1_"), Compress()]
    made = bench.go([Hls(segment="1s"), Thumbnail(), *after], clips / "clip.mp4")  # type: ignore[arg-type]
    assert {name.split("/")[0] for name in made} == {"clip-mp4"}
    with av.open(str(made["clip-mp4/playlist.m3u8"])) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == look(clips / "clip.mp4").frames
