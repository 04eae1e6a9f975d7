"""`onblock recording`: the picture of a recording, and what the commands print."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import av
import pytest
from typer.testing import CliRunner

from blocks.errors import ConfigError
from deployments.cli import app
from deployments.timeline import told
from flows.capture.manifest import load
from flows.capture.recorder import EVENTS
from flows.capture.timeline import timeline
from tests.capture.conftest import imu, lavfi, record


def onblock(*argv: str) -> str:
    result = CliRunner().invoke(app, ["recording", *argv], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sealed")
    _, manifest = record(root, lavfi("left", frames=130), imu(count=500))
    return root / manifest.id


def test_a_timeline_shows_rates_gaps_segments_and_battery(sealed: Path, tmp_path: Path) -> None:
    folder = tmp_path / sealed.name
    shutil.copytree(sealed, folder)
    (folder / "left/000002.idx").unlink()  # a second is missing
    with (folder / EVENTS).open("a") as log:
        for at, percent in ((0, 80.0), (3, 78.5)):
            log.write(json.dumps({"at_ns": at * 10**9, "kind": "battery", "percent": percent}) + "\n")
        log.write('{"at_ns": 12, "kind": "batt')
    line = timeline(folder, load(folder))
    left = line.tracks["left"]
    assert (left.kind, left.count, left.usual) == ("video", 100, 30.0)
    ((begin, end),) = left.gaps
    assert 0.9 < end - begin < 1.1
    assert len(left.cuts) == 4
    assert line.tracks["imu"].count == 500
    assert line.battery == [(0.0, 80.0), (3.0, 78.5)]
    text = "\n".join(told(line))
    assert "30.0 fps" in text and "1 gaps" in text and "gap from" in text and "80 % to 78 %" in text


def test_the_picture_is_a_png(sealed: Path, tmp_path: Path) -> None:
    to = tmp_path / "out.png"
    printed = onblock("show", sealed.name[:12], "--in", str(sealed.parent), "--png", str(to))
    assert "130 kept, dropped: none" in printed
    with av.open(str(to)) as picture:
        frame = next(picture.decode(video=0)).to_ndarray(format="rgb24")
    assert frame.shape[1] == 1200
    assert (frame == (70, 120, 190)).all(axis=2).sum() > 10_000  # bars
    assert (frame == (40, 40, 40)).all(axis=2).sum() > 300  # letters


def test_show_as_json(sealed: Path, tmp_path: Path) -> None:
    found = json.loads(
        onblock("show", sealed.name, "--in", str(sealed.parent), "--png", str(tmp_path / "x.png"), "--json")
    )
    assert found["tracks"]["left"]["count"] == 130
    assert found["picture"] == str(tmp_path / "x.png")


def test_a_recording_that_is_not_there(sealed: Path) -> None:
    with pytest.raises(ConfigError, match="there is no recording 'nothing'"):
        onblock("show", "nothing", "--in", str(sealed.parent))


def test_start_list_and_recover(tmp_path: Path) -> None:
    spec = tmp_path / "capture.yaml"
    spec.write_text(json.dumps({"device": "cam-1", "streams": [lavfi("a", frames=20)], "limits": {"disk_mib": 0}}))
    root = str(tmp_path / "recordings")
    made = json.loads(onblock("start", str(spec), "--in", root, "--json"))
    assert (made["state"], made["final"]["packets"]) == ("sealed", {"a": 20})
    assert f"{made['id']}  sealed" in onblock("list", "--in", root)
    assert onblock("recover", "--in", root) == "nothing to recover\n"
    assert onblock("stop", "--in", root) == "nothing is being recorded\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("device: [", "is not YAML: line 1, column 10: "),
        ("- 1", "is a mapping of keys"),
        ("device: cam-1", "^capture: there is nothing to record: give `streams`"),
        ("device: ../x", "^device: device '../x' may hold only"),
        ("{device: a, streams: [{name: b, input: c, codec: vp17}]}", "^streams.0.codec: Input should be 'h264'"),
        ("{device: a, duration: long, sensors: [{name: b}]}", "duration: is no duration, such as 30s"),
        ("{device: a, stream: []}", "^stream: there is no such key; there are device, flight, streams"),
        (None, "cannot read what to record: No such file"),
    ],
)
def test_what_cannot_be_recorded_is_told_in_a_line(text: str | None, says: str, tmp_path: Path) -> None:
    spec = tmp_path / "capture.yaml"
    if text is not None:
        spec.write_text(text)
    with pytest.raises(ConfigError) as refused:
        onblock("start", str(spec), "--in", str(tmp_path / "recordings"))
    assert re.search(says, refused.value.what), refused.value.what
    assert (
        "\n" not in str(refused.value) and str(spec) in str(refused.value) and "Value error" not in str(refused.value)
    )
    assert not (tmp_path / "recordings").exists()
