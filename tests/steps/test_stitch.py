"""stitch: a card whose equirectangular form is known is made dual fisheye, stitched, and compared; all three layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest

from blocks.errors import Cancelled, ConfigError, Corrupt, NotFound
from flows.transfer.steps.hls import Hls
from flows.transfer.steps.stitch import Stitch
from tests.steps.conftest import MTIME_NS, Bench, look, luma, make, psnr

WIDE, HIGH = 512, 256
TO_FISHEYE = f"v360=e:dfisheye:h_fov=190:v_fov=190:w={WIDE}:h={HIGH}:interp=linear"
FAST: dict[str, Any] = {"preset": "ultrafast", "crf": 4}
LEFT, RIGHT = f"crop={HIGH}:{HIGH}:0:0", f"crop={HIGH}:{HIGH}:{HIGH}:0"
ONE, TWO = "VID_20260717_142530_00_012.insv", "VID_20260717_142530_10_012.insv"


def card(path: Path, after: str = "", size: tuple[int, int] = (WIDE, HIGH), seconds: float = 0.5, **given: Any) -> Path:
    """The test card, looked at through other filters; `size` is that of the result."""
    source = f"scale={WIDE}:{HIGH}" + (f",{after}" if after else "")
    return make(path, seconds, size, crf=4, graph=source, muxer="mp4", **given)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: the card, and as the three kinds of camera would have recorded it."""
    folder = tmp_path_factory.mktemp("cameras")
    full = (WIDE, HIGH)
    make(folder / "card.mp4", 0.5, full, crf=4)
    make(folder / "side.insv", 0.5, full, crf=4, graph=TO_FISHEYE, muxer="mp4")
    for name, crop, audio in ((ONE, LEFT, 1), (TWO, RIGHT, 0)):
        lens(folder / name, crop, audio)
    with (
        av.open(str(folder / ONE)) as a,
        av.open(str(folder / TWO)) as b,
        av.open(str(folder / "tracks.insv"), "w", format="mp4") as out,
    ):
        pairs = [(clip, stream, out.add_stream_from_template(stream)) for clip in (a, b) for stream in clip.streams]  # type: ignore[type-var]
        packets = [(p, to) for clip, stream, to in pairs for p in clip.demux(stream) if p.size or clip.seek(0)]
        for packet, to in sorted(packets, key=lambda x: float((x[0].dts or 0) * x[0].time_base)):
            packet.stream = to
            out.mux(packet)
    return folder


def lens(path: Path, crop: str, audio: int, seconds: float = 0.5, turn: str = "") -> None:
    """One lens of the card's camera."""
    big = path.with_suffix(".big.mkv")
    make(big, seconds, (WIDE, HIGH), crf=0, graph=TO_FISHEYE, audio=0)
    with av.open(str(big)) as clip, av.open(str(path), "w", format="mp4") as out:
        stream: Any = out.add_stream("libx264", rate=30, options={"crf": "4", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = HIGH, HIGH, "yuv420p"
        sound: Any = out.add_stream("aac", rate=48000, layout="mono") if audio else None
        graph = av.filter.Graph()
        name, _, args = crop.partition("=")
        graph.link_nodes(
            graph.add_buffer(template=clip.streams.video[0]), graph.add(name, args), graph.add("buffersink")
        ).configure()
        for frame in clip.decode(video=0):
            graph.vpush(frame)
            made = graph.vpull()
            made.pict_type = 0  # type: ignore[assignment]
            out.mux(stream.encode(made))
        out.mux(stream.encode(None))
        if sound:
            import numpy as np

            for n in range(int(seconds * 48000) // 1024):
                wave: Any = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                wave.sample_rate, wave.pts = 48000, n * 1024
                out.mux(sound.encode(wave))
            out.mux(sound.encode(None))
    big.unlink()


def middle(frames: list[Any]) -> list[Any]:
    """Without the poles and the seam."""
    return [f[HIGH // 4 : -HIGH // 4, WIDE // 4 : -WIDE // 4] for f in frames]


@pytest.mark.parametrize(
    ("names", "out"), [(["side.insv"], "side.mp4"), ([ONE, TWO], ONE[:-5] + ".mp4"), (["tracks.insv"], "tracks.mp4")]
)
def test_the_card_comes_back(bench: Bench, known: Path, names: list[str], out: str) -> None:
    made = bench.go(Stitch(**FAST), *(known / n for n in reversed(names)))
    assert set(made) == {out}
    seen = look(made[out])
    assert (seen.size, seen.frames, seen.codec) == ((WIDE, HIGH), 15, "h264")
    assert len(seen.audio) == 1
    assert made[out].stat().st_mtime_ns == MTIME_NS
    was = luma(known / "card.mp4")
    assert psnr(middle(was), middle(luma(made[out]))) > 26
    assert psnr(was, luma(made[out])) > 22, "also where the lenses meet"
    assert bench.told == sorted(bench.told)


def test_turned_and_swapped(bench: Bench, known: Path) -> None:
    import numpy as np

    was = luma(known / "card.mp4")
    half_a_turn = [np.roll(f, WIDE // 2, axis=1) for f in was]
    for step, names in (
        (Stitch(yaw=180, **FAST), ["side.insv"]), (Stitch(swap=True, **FAST), ["side.insv"]),
        (Stitch(swap=True, **FAST), [ONE, TWO]), (Stitch(swap=True, **FAST), ["tracks.insv"]),
    ):  # fmt: skip
        made = luma(bench.one(step, *(known / n for n in names)))
        assert psnr(middle(half_a_turn), middle(made)) > 22
        assert psnr(middle(was), middle(made)) < 18


def test_a_size_of_its_own(bench: Bench, known: Path) -> None:
    assert look(bench.one(Stitch(size="320x160", codec="hevc", preset="ultrafast"), known / "side.insv")).size == (
        320,
        160,
    )


def test_which_files_are_one_clip() -> None:
    step = Stitch()
    assert step.group(ONE) == step.group(TWO) is not None
    assert step.group("VID_20260717_142530_00_013.insv") != step.group(ONE)
    assert step.group("VID_20260718_142530_10_012.insv") != step.group(ONE)
    assert step.group("clip.insv") is None
    assert Stitch(layout="side-by-side").group(ONE) is None
    assert step.applies(ONE)
    assert not step.applies("clip.mp4")
    assert not step.applies("notes.txt")


def test_pairs_of_a_flight_each_come_once(bench: Bench, known: Path, tmp_path: Path) -> None:
    more = []
    for name in (ONE, TWO):
        path = tmp_path / name.replace("_012", "_013")
        path.write_bytes((known / name).read_bytes())
        more.append(path)
    other = tmp_path / "notes.txt"
    other.write_bytes(b"x")
    made = bench.go([Stitch(**FAST), Hls()], known / ONE, more[0], other, known / TWO, more[1])
    assert {n.split("/")[0] for n in made} == {
        ONE[:-5] + "-mp4",
        ONE[:-5].replace("_012", "_013") + "-mp4",
        "notes.txt",
    }


def test_what_is_no_pair_is_told(bench: Bench, known: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=TWO):
        bench.go(Stitch(), known / ONE)
    single = tmp_path / "single.insv"
    single.write_bytes((known / ONE).read_bytes())
    with pytest.raises(Corrupt, match="does not look like two lenses"):
        bench.go(Stitch(), single)
    with pytest.raises(ConfigError, match="two-tracks"):
        bench.go(Stitch(layout="two-tracks"), single)
    lens(tmp_path / TWO, RIGHT, 0, seconds=0.2)
    with pytest.raises(Corrupt, match="no pair, or one breaks off"):
        bench.go(Stitch(**FAST), known / ONE, tmp_path / TWO)
    make(tmp_path / "small.mp4", 0.5, (128, 128), muxer="mp4").rename(tmp_path / TWO)
    with pytest.raises(Corrupt, match="different size"):
        bench.go(Stitch(**FAST), known / ONE, tmp_path / TWO)
    whole = (known / TWO).read_bytes()
    (tmp_path / TWO).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Corrupt):
        bench.go(Stitch(**FAST), known / ONE, tmp_path / TWO)
    assert bench.nothing_left()


def test_cancel_in_the_middle(bench: Bench, known: Path) -> None:
    bench.stop_after = 12
    with pytest.raises(Cancelled):
        bench.go(Stitch(**FAST), known / ONE, known / TWO)
    assert bench.nothing_left()
