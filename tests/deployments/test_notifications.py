"""Notifications on a real server: each condition is told to a real receiver of webhooks, and nothing is where all is well."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from prefect.client.orchestration import SyncPrefectClient
from typer.testing import CliRunner

from blocks.errors import ConfigError
from deployments.bootstrap import bootstrap
from deployments.cli import app
from deployments.notifications import LEAST, TAG, What, When, condition, try_out, wire, wired
from deployments.server import POOL, Report
from deployments.simulators.osc import OscSimulator
from flows.transfer.job import job_of
from flows.transfer.report import DELIVERED
from tests.deployments.conftest import end, until
from tests.deployments.test_hooks import camera_job, events, start_console

SPAN = timedelta(seconds=45)
"""Prefect takes 10 s and more; but the server, and this test, may stand still for a while, and nobody is silent for that."""
BLOCK = "custom-webhook/ops"


class Receiver:
    """A place that takes webhooks, and what arrived: subjects and texts."""

    def __init__(self) -> None:
        self.messages: list[dict[str, str]] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.status == 200:
                    receiver.messages.append(json.loads(body))
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing on the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def about(self, text: str) -> list[dict[str, str]]:
        return [m for m in self.messages if text in str(m.get("subject")) + str(m.get("body"))]


@pytest.fixture
def receiver(client: SyncPrefectClient) -> Iterator[Receiver]:
    """A receiver, and the block that speaks to it; no notification is left behind."""
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.1})
    thread.start()
    CustomWebhookNotificationBlock(
        name="ops", url=made.url, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    ).save("ops", overwrite=True)  # fmt: skip
    yield made
    for one in wired(client):
        client.delete_automation(one.id)
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def tell(client: SyncPrefectClient, event: str, resource: str, **labels: str) -> None:
    client.request("POST", "/events", json=[{
        "id": str(uuid.uuid4()), "event": event, "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": resource, **labels}, "related": [], "payload": {},
    }])  # fmt: skip


def test_silence_is_told_and_only_of_those_who_are_silent(client: SyncPrefectClient, receiver: Receiver) -> None:
    conditions = [
        When(What.DEVICE_SILENT, SPAN), When(What.DEVICE_SILENT, SPAN, device="never"),
        When(What.NOTHING_DELIVERED, SPAN, "busy"), When(What.NOTHING_DELIVERED, SPAN, "idle"),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deployments.notifications._must_be_deployed", lambda *_: None)
        wire(client, BLOCK, conditions, Report())

    def all_told() -> bool:
        # whoever is well tells so all the time
        tell(client, "onblock.device.status", "onblock.device.here")
        tell(client, "onblock.transfer.deliver.retry_scheduled", "onblock.job.busy", **{DELIVERED: "yes"})
        tell(client, "onblock.transfer.completed", "onblock.job.idle")  # of nothing but duplicates, say
        time.sleep(0.5)
        return all(receiver.about(word) for word in ("device gone", "device never", "job idle"))

    tell(client, "onblock.device.seen", "onblock.device.gone")
    until("everybody who is silent is told of", all_told)
    assert receiver.about("device gone")[0] == {
        "subject": "onblock: device gone is silent",
        "body": "The device gone was not seen for 45 s.\nIs it switched on, and on the network?",
    }
    assert "45 s" in receiver.about("job idle")[0]["body"]
    assert not receiver.about("device here") and not receiver.about("job busy")

    # and when they fall silent, they are told of too
    until("the others", lambda: receiver.about("device here") and receiver.about("job busy"))


def test_a_job_that_failed_is_told_once_and_one_that_has_not_is_not(
    client: SyncPrefectClient, receiver: Receiver, write_job: Callable[..., Path], worker: Callable[[str], Path], tmp_path: Path
) -> None:  # fmt: skip
    good = write_job("notes-good")
    (tmp_path / "card" / "clip.mp4").write_bytes(b"clip")
    bad = write_job("notes-bad", source={"type": "local-storage", "root": str(tmp_path / "nowhere")})
    bootstrap([good, bad])
    made = CliRunner().invoke(app, ["notify", "add", "--block", BLOCK, "--when", "job-failed"])
    assert made.exit_code == 0, made.output
    worker(POOL)

    def run(name: str) -> str:
        deployment = client.read_deployment_by_name(f"transfer/{name}")
        number = client.create_flow_run_from_deployment(deployment.id).id

        def ended() -> str | None:
            state = client.read_flow_run(number).state
            return state.type if state is not None and state.is_final() else None

        return until(f"the end of {name}", ended)

    assert (run("notes-good"), run("notes-bad")) == ("COMPLETED", "FAILED")
    [message] = until("the message", lambda: receiver.about("notes-bad"))
    assert message["subject"] == "onblock: notes-bad failed"
    assert "nowhere" in message["body"] and "/runs/flow-run/" in message["body"]

    assert run("notes-bad") == "FAILED"
    try_out(client, BLOCK, 180)  # what came before it is done
    until("the test", lambda: receiver.about("a test"))
    assert len(receiver.about("notes-bad")) == 1 and not receiver.about("notes-good")


def notify(*argv: str, fails: bool = False) -> str:
    done = CliRunner().invoke(app, ["notify", *argv])
    if fails:
        assert isinstance(done.exception, ConfigError), done.output
        return str(done.exception)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_said_in_one_place_as_often_as_one_likes(
    client: SyncPrefectClient, receiver: Receiver, write_job: Callable[..., Path]
) -> None:
    bootstrap([write_job("notes")])
    what = ("--when", "job-failed", "--when", "device-silent=30m", "--when", "nothing-delivered=24h")
    assert notify("add", "--block", BLOCK, *what, "--job", "notes").count("made") == 3
    assert notify("add", "--block", BLOCK, *what, "--job", "notes").count("kept") == 3
    names = {a.name: a.id for a in client.read_automations() if TAG in a.tags}
    assert len(names) == 3

    silent = next(w for w in wired(client) if w.when.startswith("device-silent"))
    client.pause_automation(silent.id)  # as somebody does it in Prefect's UI
    assert "changed device-silent=1h is told" in notify("add", "--block", BLOCK, "--when", "device-silent=60 min")
    assert [(w.when, w.job, w.enabled) for w in wired(client)] == [
        ("device-silent=1h", None, False), ("job-failed", "notes", True), ("nothing-delivered=1d", "notes", True)
    ]  # fmt: skip
    listed = json.loads(notify("list", "--json"))["notifications"]
    assert listed[0] == {"when": "device-silent=1h", "block": BLOCK, "job": None, "device": None, "enabled": False}
    assert "nothing-delivered=1d of job notes  custom-webhook/ops" in notify("list")

    assert notify("remove", "--when", "job-failed", "--job", "notes").count("removed") == 1
    assert notify("remove", "--block", BLOCK).count("removed") == 2
    assert "no such notification" in notify("remove", "--all", fails=True)
    assert "nobody is told" in notify("list")


def test_a_test_goes_the_whole_way_and_says_what_went_wrong(client: SyncPrefectClient, receiver: Receiver) -> None:
    notify("test", "--block", BLOCK)
    assert len(receiver.about("Nothing has happened")) == 1
    receiver.status = 403
    assert "the answer is 403" in notify("test", "--block", BLOCK, fails=True)
    # a block that speaks through Apprise, which also knows mail, ntfy and many others by their URLs
    SlackWebhook(url=receiver.url.replace("http", "json")).save("notes-apprise", overwrite=True)  # type: ignore[arg-type]
    said = notify("test", "--block", "slack-webhook/notes-apprise", fails=True)
    assert "nothing can be sent through slack-webhook/notes-apprise" in said and "403" in said
    receiver.status = 200
    notify("test", "--block", "slack-webhook/notes-apprise")
    assert receiver.messages[-1]["title"] == "onblock: a test"
    assert not [a for a in client.read_automations() if f"{TAG}-test" in a.tags]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--block", "slack-webhook/nobody", "--when", "job-failed"], ["no block 'slack-webhook/nobody'", "Blocks"]),
        (["--block", "ops", "--when", "job-failed"], ["TYPE/NAME"]),
        (["--block", "local-storage/demo-card", "--when", "job-failed"], ["sends no notifications"]),
        (["--block", BLOCK, "--when", "job-fails"], ["no condition", "device-silent=30m"]),
        (["--block", BLOCK, "--when", "job-failed=5m"], ["takes no time"]),
        (["--block", BLOCK, "--when", "device-silent"], ["says no time"]),
        (["--block", BLOCK, "--when", "device-silent=5s"], ["between 1 min"]),
        (["--block", BLOCK, "--when", "nothing-delivered=24h", "--when", "nothing-delivered=2h"], ["given twice"]),
        (["--block", BLOCK, "--when", "job-failed", "--job", "no-such"], ["no job 'no-such'", "onblock up"]),
        (["--block", BLOCK, "--when", "device-silent=5m", "--job", "card"], ["--device"]),
        (["--block", BLOCK, "--when", "job-failed", "--device", "cam"], ["device-silent"]),
    ],
)
def test_refused_and_nothing_made(
    argv: list[str], words: list[str], client: SyncPrefectClient, receiver: Receiver
) -> None:
    bootstrap()
    said = notify("add", *argv, fails=True)
    assert all(word in said for word in words), said
    assert not wired(client)


@pytest.mark.parametrize("text", ["job-failed", "device-silent=90s", "nothing-delivered=1h 30min"])
def test_a_condition_as_it_is_listed_is_one_that_can_be_said(text: str) -> None:
    once = condition(text, "card", "cam")
    assert condition(str(once), "card", "cam") == once


def test_the_console_tells_of_devices_that_are_there(api: str, tmp_path: Path) -> None:
    """Again and again: a camera that stays connected is not silent."""
    (tmp_path / "dcim").mkdir()
    with OscSimulator(tmp_path / "dcim") as camera:
        bootstrap([job_of({"name": "notes-seen", **camera_job(tmp_path, camera, "cam-seen")})])
        process, _ = start_console()
        try:
            resource = "onblock.device.cam-seen"
            told = until("four signs", lambda: len(e := events(api, "onblock.device.seen", resource)) > 3 and e)
            at = sorted(datetime.fromisoformat(e["occurred"]) for e in told)
            least = min(later - one for one, later in pairwise(at))  # what a busy server loses makes others longer
            assert timedelta(seconds=10) < least < LEAST
        finally:
            end(process)
