from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from blocks.errors import NotFound, OnblockError
from deployments.agent.preview import Preview
from tests.agent.test_recording import alive, until

LEFT = {"name": "left", "input": "testsrc2=size=160x120:rate=10,realtime", "format": "lavfi"}
NOBODY = {"name": "right", "input": "/dev/video-of-nobody", "format": "v4l2"}


@pytest.fixture
def preview(tmp_path: Path) -> Iterator[Callable[..., Preview]]:
    made: list[Preview] = []

    def make(*streams: dict[str, Any], ended: Callable[[], None] = lambda: None) -> Preview:
        spec = json.dumps(
            {"device": "cam-01", "streams": streams, "sensors": [{"name": "imu", "kind": "simulated-imu"}]}
        )
        made.append(Preview(spec, tmp_path / "preview", tmp_path / "log", ended))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_the_newest_picture_of_each_camera_that_is_there(preview: Callable[..., Preview], tmp_path: Path):
    one = preview(LEFT, NOBODY)
    one.start()
    file = tmp_path / "preview/left.jpg"
    first = file.read_bytes()
    with av.open(str(file)) as picture:
        frame = next(picture.decode(video=0))
        assert (frame.width, frame.height) == (160, 120)
    until("it is renewed", lambda: file.read_bytes() != first)
    process = one._process
    assert process is not None
    one.stop()
    assert not alive(process.pid) and [p.name for p in file.parent.glob("*.jpg")] == ["left.jpg"]


def test_without_a_camera_it_is_said_why(preview: Callable[..., Preview]):
    with pytest.raises(OnblockError, match="/dev/video-of-nobody"):
        preview(NOBODY).start()
    with pytest.raises(NotFound, match="no camera"):
        preview().start()


def test_one_that_ends_by_itself_is_told(preview: Callable[..., Preview]):
    ended: list[int] = []
    one = preview({**LEFT, "input": LEFT["input"] + ",trim=duration=1"}, ended=lambda: ended.append(1))
    one.start()
    until("it is told", lambda: ended)
    one.stop()
    assert ended == [1]
