"""Recordings that others make on this device, with the recorder itself."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployments.agent.record import _merge, announced, mend
from flows.capture import announce, at_work, manifest, merge
from flows.capture.locks import LOCK
from flows.capture.recorder import Recorder
from flows.capture.spec import CaptureSpec
from tests.agent.test_recording import until

AT_WORK = json.dumps({"state": "recording", "device": "cam-01"})
SPEC: dict[str, Any] = {"device": "cam-01", "sensors": [{"name": "imu", "kind": "simulated-imu"}]}


@contextmanager
def taken(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_recording_of_somebody_else_is_found_and_ended(tmp_path: Path):
    assert at_work.running(tmp_path / "nowhere", "cam-01") is None
    one, given_up = Recorder(CaptureSpec.model_validate(SPEC), tmp_path), threading.Event()
    made: list[manifest.Manifest] = []
    thread = threading.Thread(target=lambda: made.append(one.run(given_up)))
    thread.start()
    try:
        folder = until("it is found", lambda: at_work.running(tmp_path, "cam-01"))
        assert folder == one.folder
        assert at_work.running(tmp_path, "cam-02") is None
        assert at_work.running(tmp_path, "01") is None
        at_work.stop(folder)
        thread.join(60)
        assert not thread.is_alive() and made[0].stopped_because == "asked to stop"
    finally:
        given_up.set()
        thread.join()
    assert at_work.running(tmp_path, "cam-01") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "sealed", "device": "cam-01"}', '{"state": "recording"}'])
def test_what_is_no_recording_at_work(text: str, tmp_path: Path):
    folder = tmp_path / "20260101T000000Z-cam-01"
    folder.mkdir()
    (folder / manifest.NAME).write_text(text)
    with taken(tmp_path / ".cam-01.lock"), taken(folder / LOCK):
        assert at_work.running(tmp_path, "cam-01") is None
        (folder / manifest.NAME).write_text(AT_WORK)
        assert at_work.running(tmp_path, "cam-01") == folder
    assert at_work.running(tmp_path, "cam-01") is None  # whoever held it is gone: it was cut off


def test_a_recording_that_is_repaired_is_not_at_work(tmp_path: Path):
    """Also while another one is: who repairs it is not who records."""
    killed, running = tmp_path / "20260102T000000Z-cam-01", tmp_path / "20260101T000000Z-cam-01"
    for folder in (killed, running):
        folder.mkdir()
        (folder / manifest.NAME).write_text(AT_WORK)
    repairs = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); input()",
         str(killed / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert repairs.stdout is not None and repairs.stdout.readline()
        assert at_work.held(killed / LOCK) and at_work.running(tmp_path, "cam-01") is None
        assert at_work.request_stop(tmp_path) == [] and not (killed / at_work.STOP).exists()
        with taken(tmp_path / ".cam-01.lock"), taken(running / LOCK):
            assert at_work.running(tmp_path, "cam-01") == running
            assert at_work.request_stop(tmp_path, "cam-02") == []
            assert at_work.request_stop(tmp_path) == [running.name] and (running / at_work.STOP).exists()
    finally:
        repairs.communicate(b"\n", 60)


def test_a_recording_is_found_after_the_clock_was_set_back(tmp_path: Path):
    for day in range(2, 10):  # of the future, and sealed
        (tmp_path / f"2036010{day}T000000Z-cam-01").mkdir()
        (tmp_path / f"2036010{day}T000000Z-cam-01" / LOCK).touch()
    folder = tmp_path / "20000101T000000Z-of another name"
    folder.mkdir()
    (folder / manifest.NAME).write_text(AT_WORK)
    with taken(tmp_path / ".cam-01.lock"), taken(folder / LOCK):
        assert at_work.running(tmp_path, "cam-01") == folder


def test_to_look_is_not_to_lock(tmp_path: Path):
    folder = tmp_path / "20260101T000000Z-cam-01"
    folder.mkdir()
    (folder / manifest.NAME).write_text(AT_WORK)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        for _ in range(50):
            at_work.running(tmp_path, "cam-01")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def test_announced_again_it_is_the_same_event(tmp_path: Path, onblock_home: Path, capsys: pytest.CaptureFixture[str]):
    made = manifest.Manifest(
        id="R1", device="cam-01", flight="F1", state="sealed", start_monotonic_ns=0, start_wall_ns=0,
        final=manifest.FinalEntry(file="R1.mkv", bytes=7, sha256="ab", packets={}),
    )  # fmt: skip
    announce.owe(tmp_path)
    announced(tmp_path, made)
    announced(tmp_path, made)  # again, as after a kill at the wrong moment
    ours, again = (json.loads(p.read_text()) for p in sorted((onblock_home / "agent/outbox").iterdir()))
    assert ours["id"] == again["id"] and not announce.owed(tmp_path.parent)
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == {"state": "complete", "recorded": ours["payload"]}


def test_what_is_owed_is_announced_later(
    tmp_path: Path, onblock_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "nice", lambda n: n)
    spec = CaptureSpec.model_validate(SPEC | {"sensors": [{"name": "imu", "kind": "simulated-imu", "count": 5}]})
    one = Recorder(spec, tmp_path)
    one.run(threading.Event())
    assert mend(tmp_path) == 0  # it was sealed, and nobody merged it
    merge.finish(one.folder)
    announce.owe(one.folder)  # it was merged, and nobody told
    assert mend(tmp_path) == 0
    assert mend(tmp_path) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(s["state"], s["recorded"]["recording"]) for s in said] == [("complete", one.id)] * 2


def sealed(root: Path, **spec: Any) -> Recorder:
    """A recording that nobody has merged."""
    one = Recorder(CaptureSpec.model_validate(SPEC | {"sensors": [{"name": "imu", "kind": "simulated-imu", "count": 5}]} | spec), root)  # fmt: skip
    one.run(threading.Event())
    return one


def blocked(one: Recorder) -> bytes:
    """From now on, merging it waits for ever: a FIFO in place of its sidecar. What was in it."""
    (sidecar,) = one.folder.glob("imu/*.idx")
    whole = sidecar.read_bytes()
    sidecar.unlink()
    os.mkfifo(sidecar)
    return whole


def test_what_was_merged_is_announced_also_if_the_mending_ended_with_the_next(tmp_path: Path, onblock_home: Path):
    first, second = sealed(tmp_path), sealed(tmp_path)
    first, second = sorted((first, second), key=lambda one: one.id)
    whole = blocked(second)
    argv = [sys.executable, "-m", "deployments.agent.record", "--mend", str(tmp_path)]
    env = {**os.environ, "ONBLOCK_HOME": str(onblock_home)}
    mending = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL)
    try:
        until("the first one is merged", lambda: manifest.load(first.folder).final)
        until("the second one is begun", lambda: at_work.held(second.folder / LOCK))
    finally:
        mending.send_signal(signal.SIGKILL)
        mending.wait()
    assert not list(onblock_home.glob("agent/outbox/*.json"))  # it was killed before it could tell
    (sidecar,) = second.folder.glob("imu/*.idx")
    sidecar.unlink()
    sidecar.write_bytes(whole)
    subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, check=True, timeout=120)
    told = [json.loads(p.read_text())["payload"] for p in sorted(onblock_home.glob("agent/outbox/*.json"))]
    assert {t["recording"]: t["file"] for t in told} == {one.id: f"{one.id}.mkv" for one in (first, second)}


def test_what_the_disk_has_no_room_to_merge_is_announced_as_it_is_and_once(
    tmp_path: Path, onblock_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "nice", lambda n: n)
    one = sealed(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(merge, "SPARE", 1 << 62)  # no disk has that
        announce.owe(one.folder)  # as it is done after sealing
        assert _merge(one.folder) == 1
        assert mend(tmp_path) == mend(tmp_path) == 0
    events = [json.loads(p.read_text()) for p in sorted(onblock_home.glob("agent/outbox/*.json"))]
    assert [(e["event"], e["payload"]["recording"], e["payload"]["file"]) for e in events] == [
        ("onblock.recording.completed", one.id, None)
    ]
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(s["state"], s["id"]) for s in said} == {("unmerged", one.id)} and "the disk has" in said[0]["what"]
    # room was made: the file is announced too, as an event of its own
    assert mend(tmp_path) == mend(tmp_path) == 0
    with_file = [json.loads(p.read_text()) for p in sorted(onblock_home.glob("agent/outbox/*.json"))][1:]
    assert [e["payload"]["file"] for e in with_file] == [f"{one.id}.mkv"] and with_file[0]["id"] != events[0]["id"]
    assert not announce.owed(tmp_path)
