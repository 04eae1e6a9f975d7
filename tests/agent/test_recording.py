"""The process that records, by a program that speaks as it does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from blocks.errors import Conflict, NetworkError, NotFound, UnknownError
from deployments.agent.recording import RecordingProcess

STAND_IN = (sys.executable, str(Path(__file__).with_name("recorder_stand_in.py")))


def until(what: str, look: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return answer


def alive(pid: int) -> bool:
    """Whether it runs; one that nobody has reaped yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Take:
    """A recording that was set up, and what was heard of it."""

    def __init__(self, folder: Path, **spec: object):
        self.folder, self.told = folder, []
        self.recording = RecordingProcess(
            json.dumps(spec, indent=1), folder / "recordings", folder / "log", self.told.append, STAND_IN,
            begins_within_s=2.0 if spec.get("silent") else 60, sealed_within_s=2.0 if spec.get("deaf") else 60,
        )  # fmt: skip

    def states(self) -> list[str]:
        return [t["state"] for t in self.told]

    @property
    def pid(self) -> int:
        return int((self.folder / "recordings/pid").read_text())


@pytest.fixture
def take(tmp_path: Path) -> Iterator[Callable[..., Take]]:
    takes: list[Take] = []

    def make(**spec: object) -> Take:
        takes.append(Take(tmp_path, **spec))
        return takes[-1]

    yield make
    for one in takes:
        (one.folder / "recordings").mkdir(exist_ok=True)
        (one.folder / "recordings/merge").touch()
        with contextlib.suppress(NetworkError, UnknownError):
            one.recording.close()


def test_a_recording_begins_tells_how_it_is_and_is_sealed(take: Callable[..., Take]):
    one = take()
    assert one.recording.state == "idle"
    one.recording.start()
    assert one.recording.state == "recording"
    assert until("its health", lambda: one.recording.health().get("seconds")) == 1.0
    one.recording.stop()
    assert one.recording.state == "idle"
    assert (one.folder / "recordings/heard").read_text() == "'stop\\n'"
    until("its end", lambda: one.states() == ["recording", "sealed", "complete"])
    assert [t["asked"] for t in one.told] == [False, True, False]


def test_another_begins_while_the_first_is_merged(take: Callable[..., Take]):
    one = take(merges=True)
    one.recording.start()
    one.recording.stop()
    assert one.recording.health()["merging"] == 1
    one.recording.start()
    assert one.recording.state == "recording" and one.recording.health()["merging"] == 1
    (one.folder / "recordings/merge").touch()
    one.recording.stop()
    until("both are merged", lambda: one.states().count("complete") == 2)


def test_two_at_once_are_refused(take: Callable[..., Take]):
    one = take()
    one.recording.start()
    with pytest.raises(Conflict, match="runs already"):
        one.recording.start()
    assert one.recording.state == "recording"


def test_one_that_cannot_begin_says_why(take: Callable[..., Take]):
    one = take(fails=True)
    with pytest.raises(NotFound, match=r"/dev/video7: there is no such camera \(plug it in\)"):
        one.recording.start()
    assert one.recording.state == "idle" and one.told[-1]["begun"] is False
    one.recording.stop()


def test_one_that_never_begins_is_killed(take: Callable[..., Take]):
    one = take(silent=True)
    with pytest.raises(NetworkError, match="did not begin within 2 s"):
        one.recording.start()
    assert one.recording.state == "idle" and not alive(one.pid)


def test_one_that_dies_is_told(take: Callable[..., Take]):
    one = take(dies=True)
    one.recording.start()
    until("it is told", lambda: one.states() == ["recording", "failed"])
    assert one.recording.state == "idle"
    assert one.told[-1]["begun"] and not one.told[-1]["asked"] and "died of signal 9" in one.told[-1]["what"]


def test_one_that_ends_by_itself_is_told(take: Callable[..., Take]):
    one = take(ends=True)
    one.recording.start()
    until("it is told", lambda: "complete" in one.states())
    assert one.recording.state == "idle" and one.told[1]["asked"] is False


def test_one_that_does_not_end_is_killed(take: Callable[..., Take]):
    one = take(deaf=True)
    one.recording.start()
    with pytest.raises(NetworkError, match="not sealed within 2 s and was killed"):
        one.recording.stop()
    assert one.recording.state == "idle" and not alive(one.pid)


def test_when_we_are_killed_it_seals_and_ends(tmp_path: Path):
    program = (
        "import sys, time; from pathlib import Path; from deployments.agent.recording import RecordingProcess\n"
        f"r = RecordingProcess('{{}}', Path({str(tmp_path)!r}), Path({str(tmp_path / 'log')!r}), argv={STAND_IN!r})\n"
        "r.start(); print('ready', flush=True); time.sleep(3600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as agent:
        assert agent.stdout is not None and agent.stdout.readline() == b"ready\n"
        pid = int((tmp_path / "pid").read_text())
        os.kill(agent.pid, signal.SIGKILL)
        until("it has ended", lambda: not alive(pid))
    assert (tmp_path / "heard").read_text() == "''"
