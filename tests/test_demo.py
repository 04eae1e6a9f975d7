"""The demo as a user runs it, once; what it claims is looked at again by other means. And that it can fail.

Only that one run has a Prefect server; where the demo is to fail, a stand-in takes its place.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import demo, demo_capture, demo_stage, flight, up

pytestmark = pytest.mark.timeout(600)  # its server is on SQLite, where it may stand still for a minute

RECORDED = 10
"""Files of the recording: the merged one, its manifest, log and picture; a sidecar and accounts for each of three."""
COUNT = len(flight.CLIPS) + flight.PHOTOS + 1 + RECORDED
SOMEBODY_ELSES = {
    "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_PROFILE": "work", "PREFECT_API_KEY": "pnu_none",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://nobody@127.0.0.1:9/none",
    "PREFECT_SERVER_API_AUTH_STRING": "admin:secret", "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9",
}  # fmt: skip
"""What a user may have set, none of which is the demo's business."""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    root: Path

    @property
    def card(self) -> Path:
        return self.root / "card"

    @property
    def delivered(self) -> Path:
        return self.root / "archive" / demo_stage.FLIGHT


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    home = tmp_path_factory.mktemp("home")
    child = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "demo"],
        env={**os.environ, **SOMEBODY_ELSES, "ONBLOCK_HOME": str(home), "HOME": str(home), "COLUMNS": "200"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=500,
        check=False,
    )
    if child.returncode:
        pytest.fail((child.stdout + child.stderr)[-2000:], pytrace=False)
    (root,) = (home / "demo").iterdir()
    yield Ran(child.returncode, child.stdout, child.stderr, root)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def below(folder: Path) -> dict[str, Path]:
    """Without what the recorder keeps for itself."""
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(folder).as_posix(): p for p in found}


def test_it_ends_well(ran: Ran) -> None:
    assert ran.code == 0


@pytest.mark.parametrize(
    "line",
    [
        "onblock recording start ",
        f"recorded, for {demo_capture.SECONDS} s",
        " frames captured, ",
        " fps\n",
        "    imu |",
        " Hz\n",
        "timeline.png",
        f"{COUNT} files, ",
        f"{COUNT} delivered of {COUNT} found, 0 failed",
        f"{COUNT} by checksum: ",
        f"... sha256sum: {COUNT} of {COUNT} OK",
        f"0 delivered, all {COUNT} known (duplicates)",
        f"1 delivered, {COUNT - 1} known: just the changed file was sent",
        "on_conflict: rename",
        f"... sha256sum: {COUNT + 1} of {COUNT + 1} OK",
        "All as it must be.",
        "onblock run ",
        "checksums.sha256",
        "limits   onblock: 4 at a time, cpu: ",
        f": Completed, {COUNT} delivered\n",
        f"task run  {demo.MAX_FILES} files from ",
        ": Completed, tags device:card, onblock\n",
        f": Completed, 0 delivered, {COUNT} duplicates\n",
        "no task runs: there was nothing to do",
        "`onblock up` keeps such a server running",
        ": Completed, 4 delivered",
        "the same answer, and no second run",
        "the camera sent nothing",
    ],
)
def test_it_says(ran: Ran, line: str) -> None:
    assert line in ran.out


def test_prefect_ran_it(ran: Ran) -> None:
    """Its database, looked at without Prefect."""
    alone = sum(p.stat().st_size >= demo.LARGE for p in below(ran.card).values())
    wanted = alone + math.ceil((COUNT - alone) / demo.MAX_FILES)
    with sqlite3.connect(ran.root / "prefect-home" / "prefect.db") as database:
        flows = database.execute(
            "SELECT state_type, count(*) FROM flow_run WHERE start_time IS NOT NULL GROUP BY 1"
        ).fetchall()
        tasks = database.execute("SELECT state_type, count(*) FROM task_run GROUP BY 1").fetchall()
    database.close()
    assert flows == [("COMPLETED", 5)]  # and two of the camera
    assert tasks == [("COMPLETED", wanted + 1 + 6)]  # the one of the changed file, and three phases of two clips
    assert ran.out.count("task run  ") == wanted


def test_the_server_is_gone_and_nobody_elses_was_touched(ran: Ran) -> None:
    ports = set(re.findall(r"http://127\.0\.0\.1:(\d+)", ran.out))
    assert len(ports) == 3  # of the server, the console and the camera
    for port in ports:
        assert up.port_trouble("127.0.0.1", int(port)) is None
    assert {p.name for p in ran.root.parents[1].iterdir()} == {"demo"}  # no ~/.prefect


def test_only_the_story_is_told(ran: Ran) -> None:
    assert re.search(r"\d \| |INFO|WARNING", ran.out) is None, "a line of a log"
    assert ran.err == ""


def test_the_flight_is_real(ran: Ran) -> None:
    import av

    for name, (_, seconds) in flight.CLIPS.items():
        with av.open(str(ran.card / name)) as clip:
            assert clip.streams.video[0].codec_context.name == "h264"
            assert sum(1 for _ in clip.decode(video=0)) == round(seconds * flight.RATE)
    photos = sorted(ran.card.rglob("*.JPG"))
    assert len(photos) == flight.PHOTOS
    assert len({digest(p) for p in photos}) > flight.PHOTOS * 0.9
    for photo in photos[:: flight.PHOTOS // 10]:
        with av.open(str(photo)) as image:
            assert next(image.decode(video=0)).width == 320


def test_the_recording_is_real(ran: Ran) -> None:
    """Looked at where it was delivered."""
    import av

    (folder,) = (ran.delivered / demo_capture.FOLDER).iterdir()
    manifest = json.loads((folder / "recording.json").read_bytes())
    assert manifest["state"] == "sealed" and manifest["flight"] == demo_stage.FLIGHT
    assert manifest["ended_ns"] / 1e9 == pytest.approx(demo_capture.SECONDS, abs=3)
    for name, rate in (("left", demo_capture.FPS), ("right", demo_capture.FPS), ("imu", demo_capture.HZ)):
        entry = manifest["streams"][name]
        assert entry["captured"] == entry["written"] + sum(entry["dropped"].values())
        assert entry["captured"] >= rate * demo_capture.SECONDS * 0.5, entry  # a machine with a load may be late
    with av.open(str(folder / manifest["final"]["file"])) as video:
        counts = [0] * len(video.streams)
        for packet in video.demux():
            counts[packet.stream_index] += packet.size > 0
    assert counts == [manifest["streams"][name]["written"] for name in ("left", "right", "imu")]
    assert digest(folder / manifest["final"]["file"]) == manifest["final"]["sha256"]


def test_every_file_arrived_whole(ran: Ran) -> None:
    card, archive = below(ran.card), below(ran.delivered)
    assert len(card) == COUNT
    added = set(archive) - set(card) - {"checksums.sha256"}
    assert len(added) == 1  # the changed telemetry, beside the older one
    for name, path in card.items():
        if name != flight.TELEMETRY:
            assert digest(archive[name]) == digest(path), name
    assert digest(archive[added.pop()]) == digest(card[flight.TELEMETRY])
    assert digest(archive[flight.TELEMETRY]) != digest(card[flight.TELEMETRY])
    assert archive[flight.TELEMETRY].stat().st_size == card[flight.TELEMETRY].stat().st_size


def test_nothing_temporary_is_left(ran: Ran) -> None:
    assert not list(ran.root.rglob(".onblock-*"))


def test_the_manifest_is_true(ran: Ran) -> None:
    lines = (ran.delivered / "checksums.sha256").read_text("utf-8").splitlines()
    listed = dict(reversed(line.split("  ", 1)) for line in lines)
    assert len(listed) == len(lines) == COUNT + 1
    assert listed == {n: digest(p) for n, p in below(ran.delivered).items() if n != "checksums.sha256"}


# -- it fails where it should ---------------------------------------------------------------------------------------


def few_bytes(card: Path) -> None:
    """As many files as the flight has, but small ones."""
    (card / "a").mkdir(parents=True)
    for number in range(COUNT):
        (card / "a" / f"{number}").write_bytes(b"x")


@contextmanager
def no_server(at: Any) -> Iterator[Any]:
    yield SimpleNamespace(url="http://nowhere", env={}, started=0.0, wait=lambda: None, make_limits=dict)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"delivered": 1}, f"first run: delivered is 1, expected {COUNT}"),
        ({"failed": 1}, "first run: failed is 1, expected 0"),
        ({"bytes": 1}, "first run: 1 bytes reported"),
        ({"verified_by": {}}, "first run: 0 files verified"),
        ({}, "do not hold the same names"),  # a program that says all went well and did nothing
    ],
)
def test_a_deviation_ends_in_1(
    wrong: dict[str, Any],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = {
        "scanned": COUNT, "delivered": COUNT, "duplicates": 0, "failed": 0, "blocked": 0, "deferred": 0,
        "settling": 0, "bytes": COUNT, "seconds": 1.0, "verified_by": {"checksum": COUNT}, "destinations": [],
    }  # fmt: skip
    monkeypatch.setattr(demo, "record", lambda *_: "recordings/r.mkv")
    monkeypatch.setattr(demo, "make_card", few_bytes)
    monkeypatch.setattr(demo, "prefect_server", no_server)
    monkeypatch.setattr(demo, "_run", lambda console, at, prefect: summary | wrong)
    assert demo.demo(tmp_path) == 1
    assert line in capsys.readouterr().out


def test_a_wrong_manifest_ends_in_1(tmp_path: Path) -> None:
    at = demo.Places(tmp_path)
    at.delivered.mkdir(parents=True)
    (at.delivered / "a").write_bytes(b"x")
    console = demo.Console()
    with pytest.raises(demo.DemoFailed, match="no manifest"):
        demo._sha256sum(console, at, at.delivered, 1)
    at.manifest.write_text(f"{digest(at.delivered / 'a')}  a\n")
    demo._sha256sum(console, at, at.delivered, 1)
    with pytest.raises(demo.DemoFailed, match="lists 1 files, expected 2"):
        demo._sha256sum(console, at, at.delivered, 2)
    (at.delivered / "a").write_bytes(b"y")
    with pytest.raises(demo.DemoFailed, match="a: FAILED"):
        demo._sha256sum(console, at, at.delivered, 1)


def accounts(**wrong: Any) -> dict[str, Any]:
    entry = {"kind": "video", "captured": 300, "written": 299, "dropped": {"ENCODER_SLOW": 1}} | wrong.pop("left", {})
    told = {"state": "sealed", "problems": [], "streams": {"left": entry}, "final": {"packets": {"left": 299}}}
    return told | wrong


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"state": "recording"}, "is recording, and not merged"),
        ({"final": None}, "is sealed, and not merged"),
        ({"left": {"written": 298}}, "left: 300 captured, 298 written, 1 dropped"),
        ({"left": {"written": 0, "captured": 1}}, "left: 1 captured, 0 written"),
        ({"final": {"packets": {"left": 298}}}, "the merged file holds 298 of 299"),
    ],
)
def test_a_recording_that_lost_something_ends_in_1(wrong: dict[str, Any], says: str) -> None:
    assert demo_capture._judged(accounts()) == ["left   300 frames captured, 299 kept, 1 dropped, 1 ENCODER_SLOW"]
    with pytest.raises(demo.DemoFailed, match=says):
        demo_capture._judged(accounts(**wrong))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys; print('no room for a server'); sys.exit(3)", ["ended with exit code 3", "no room for a server"]),
        ("import time; time.sleep(600)", ["does not answer after "]),
    ],
)
def test_without_a_server_it_ends_in_1(
    code: str, says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[up.Child] = []

    def start_server(host: str, port: int, env: dict[str, str], log: Path, folder: Path) -> up.Child:
        with log.open("wb") as out:
            process = subprocess.Popen([sys.executable, "-c", code], stdout=out, start_new_session=True)
        started.append(up.Child("the Prefect server", process, log))
        return started[0]

    monkeypatch.setattr(demo, "record", lambda *_: "recordings/r.mkv")
    monkeypatch.setattr(demo, "make_card", few_bytes)
    monkeypatch.setattr(demo_stage, "SERVER_WITHIN", 0.0)
    monkeypatch.setattr(up, "start_server", start_server)
    before = signal.getsignal(signal.SIGTERM)
    assert demo.demo(tmp_path) == 1
    out = capsys.readouterr().out
    for text in ("The demo FAILED: the Prefect server (pid ", *says):
        assert text in out
    assert started[0].process.poll() is not None
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_server_ends_with_a_demo_that_is_interrupted(number: signal.Signals, code: int, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
         "from deployments.cli import main; main()", "demo"],
        env={**os.environ, "ONBLOCK_HOME": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert "is starting" in child.stdout.readline()
        started = up.descendants(child.pid)
        assert started
        child.send_signal(number)
        out, err = child.communicate(timeout=180)
        assert child.returncode == code, out + err
        assert not [pid for pid, _ in started if Path(f"/proc/{pid}").exists()]
    finally:
        child.kill()
        child.wait()


def answering(flows: list[Any], tasks: list[Any]) -> demo_stage.Prefect:
    class Told(demo_stage.Prefect):
        def _ask(self, path: str, body: dict[str, Any]) -> Any:
            return {"/flow_runs/filter": flows, "/task_runs/filter": tasks}[path]

    return Told("http://nowhere", {}, None, 0.0)  # type: ignore[arg-type]


def run_in(state: str) -> dict[str, Any]:
    return {
        "id": "1",
        "name": "odd-otter",
        "tags": ["onblock"],
        "state": {"type": state, "name": state, "message": "so"},
    }


@pytest.mark.parametrize(
    ("flows", "tasks", "says"),
    [
        ([], [], "knows of no flow run"),  # `onblock run` went past Prefect
        ([run_in("COMPLETED")], [], "knows of 0 tasks, 0 of them ended; 1 expected"),
        ([run_in("COMPLETED")], [run_in("RUNNING")], "knows of 1 tasks, 0 of them ended; 1 expected"),
        ([run_in("COMPLETED")], [run_in("COMPLETED")] * 2, "knows of 2 tasks, 2 of them ended; 1 expected"),
        ([run_in("COMPLETED")], [run_in("FAILED")], "did not end well"),
        ([run_in("FAILED")], [run_in("COMPLETED")], "'odd-otter' or a task of it did not end well: so"),
    ],
)
def test_what_prefect_saw_must_be_right(
    flows: list[Any], tasks: list[Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_stage, "ANSWER_WITHIN", 0.0)
    with pytest.raises(demo.DemoFailed, match=says):
        demo._seen(demo.Console(), answering(flows, tasks), 1)
