"""Webhooks through a real server, worker and console: what starts, what is refused, and what is never lost."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from pydantic import SecretStr
from sqlalchemy import select

from blocks.home import home
from blocks.sender import WebhookSender
from deployments.bootstrap import bootstrap
from deployments.console.connections import MOST_OF_ONE
from deployments.console.webhooks import MOST_BYTES, sign
from deployments.server import POOL
from deployments.simulators.osc import OscSimulator
from flows.ledger import Ledger
from flows.ledger.models import File
from tests.deployments.conftest import end, free_port, until
from tests.deployments.test_bootstrap import descendants
from tests.servers.faultproxy import FaultProxy

SECRET, BEFORE = "s3cret-of-the-flight-controller", "s3cret-before-that-one"
WriteJob = Callable[..., Path]


class Caller:
    """Sends webhooks to a console."""

    def __init__(self, url: str):
        self.url = url

    def send(
        self, name: str, content: Any, *, key: str | None = None, secret: str = SECRET, sender: str = "fc1",
        ago: int = 0, **head: str,
    ) -> httpx.Response:  # fmt: skip
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        stamp = str(int(time.time()) - ago)
        headers = {
            "X-Onblock-Sender": sender, "X-Onblock-Timestamp": stamp,
            "X-Onblock-Signature": f"sha256={sign(secret, stamp, body)}",
        } | ({"Idempotency-Key": key} if key else {}) | head  # fmt: skip
        return httpx.post(f"{self.url}/hooks/{name}", content=body, headers=headers, timeout=60)

    def told(self, name: str, content: Any) -> None:
        """Sent until it is taken, as senders do whom a busy server tells to come again, or nothing at all: Prefect's
        server can stand still for a minute where its SQLite is locked."""

        def taken() -> bool:
            try:
                answer = self.send(name, content)
            except httpx.TimeoutException:
                return False
            assert answer.status_code in (200, 202, 503), answer.text
            return answer.status_code != 503

        until(f"{name} is taken", taken, 240)


def start_console(*more: str, **env: str) -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "deployments.console", "--port", str(port), *more],
        env={**os.environ, **env}, cwd="/", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def there() -> bool:
        assert process.poll() is None, "the console ended"
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.HTTPError:
            return False

    until("a console", there, 60)
    return process, url


@pytest.fixture
def sender(api: str) -> None:
    bootstrap()
    WebhookSender(secret=SecretStr(SECRET), previous=SecretStr(BEFORE)).save("fc1", overwrite=True, _sync=True)  # type: ignore


@pytest.fixture
def console(sender: None) -> Iterator[Caller]:
    process, url = start_console()
    yield Caller(url)
    end(process)


@contextmanager
def watching(api: str, device: str) -> Iterator[Caller]:
    """A console that has seen the device already: what starts then is started by what the test sends."""
    process, url = start_console()
    try:
        until("a device that was seen", lambda: events(api, "onblock.device.connected", f"onblock.device.{device}"), 30)
        yield Caller(url)
    finally:
        end(process)


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[OscSimulator]:
    """A camera with one clip, an hour old."""
    folder = tmp_path / "dcim"
    folder.mkdir()
    put(folder, "VID_0001.insv", random.Random(1).randbytes(300_000) * 2)
    with OscSimulator(folder) as camera:
        yield camera


def put(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    os.utime(folder / name, (time.time() - 3600,) * 2)


def camera_job(tmp_path: Path, camera: OscSimulator, name: str, **keys: Any) -> dict[str, Any]:
    return {
        "source": {"type": "osc-camera", "device": name, "url": camera.url},
        "destination": {"type": "local-storage", "root": str(tmp_path / "archive"), "create_root": True},
        "steps": [{"kind": "compress", "format": "gzip"}], "path": "{flight}/{device}/{path}", **keys,
    }  # fmt: skip


def runs_of(client: SyncPrefectClient, job: str) -> list[FlowRun]:
    deployment = client.read_deployment_by_name(f"transfer/{job}")
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]))
    )


def ended(client: SyncPrefectClient, job: str, seconds: float = 90) -> FlowRun:
    """The one run of a job, when it is over."""

    def look() -> FlowRun | None:
        runs = runs_of(client, job)
        assert len(runs) <= 1, runs
        return runs[0] if runs and runs[0].state is not None and runs[0].state.is_final() else None

    return until(f"a run of {job} that has ended", look, seconds)  # type: ignore[return-value]


def events(api: str, prefix: str, resource: str) -> list[dict[str, Any]]:
    where = {"filter": {
        "event": {"prefix": [prefix]}, "resource": {"id": [resource]},
        "occurred": {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"},
    }}  # fmt: skip
    return httpx.post(f"{api}/events/filter", json=where, timeout=150).raise_for_status().json()["events"]


# -- in, and out --------------------------------------------------------------------------------------------------


def test_a_flight_ends_and_its_files_arrive_once(
    api: str, client: SyncPrefectClient, sender: None, worker: Callable[[str], Path], write_job: WriteJob,
    camera: OscSimulator, tmp_path: Path,
) -> None:  # fmt: skip
    """Fetched from the camera, processed, delivered, verified; told twice, it runs once."""
    bootstrap([write_job("flight-end", **camera_job(tmp_path, camera, "osc-1"))])
    worker(POOL)
    with watching(api, "osc-1") as console:
        told = console.send("flight-end", {"flight": "F042", "device": "osc-1", "ended_at": "2026-05-04T10:00:00Z"})
        assert told.status_code == 202, told.text
        again = console.send("flight-end", {"flight": "F042", "device": "osc-1"}, secret=BEFORE)
        assert (again.status_code, again.json()) == (200, told.json())
        run = ended(client, "flight-end")
        assert run.state is not None and run.state.name == "Completed", run.state
        assert (run.parameters["flight"], run.parameters["device"]) == ("F042", "osc-1")
        (made,) = (tmp_path / "archive" / "F042" / "osc-1").glob("*.gz")
        assert gzip.decompress(made.read_bytes()) == (tmp_path / "dcim" / "VID_0001.insv").read_bytes()
        (event,) = until("the event", lambda: events(api, "onblock.flight.ended", "onblock.device.osc-1"), 30)
        assert event["id"] == told.json()["event_id"]
        payload = event["payload"]
        assert (payload["flight"], payload["device"], payload["sender"]) == ("F042", "osc-1", "fc1")
        assert payload["runs"] == [str(run.id)]
        third = console.send("flight-end", {"flight": "F042", "device": "osc-1"})
        assert (third.status_code, third.json()) == (200, told.json())
        assert len(runs_of(client, "flight-end")) == 1
        # a key of its own makes it another message: a second run, which finds all of it known
        another = console.send("flight-end", {"flight": "F042", "device": "osc-1"}, key="second-landing")
        assert another.status_code == 202 and another.json() != told.json()
        sent = camera.sent.total()
        until(
            "a second run that has ended",
            lambda: (
                all(r.state.is_final() for r in runs_of(client, "flight-end"))
                and len(runs_of(client, "flight-end")) == 2
            ),
        )  # type: ignore
        assert {r.state.message for r in runs_of(client, "flight-end")} == {"1 delivered", "0 delivered, 1 duplicates"}  # type: ignore
        assert camera.sent.total() == sent


def test_a_flight_is_followed_by_the_api_alone(
    api: str, sender: None, worker: Callable[[str], Path], write_job: WriteJob, tmp_path: Path
) -> None:
    """From the webhook's answer to the file and its manifest, and back; what is asked is the console, and then Prefect."""
    device, ui = "followed-1", api.removesuffix("/api")
    job = write_job("followed", device=device, path="{flight}/{device}/{path}", settle={"quiet": "0s"})
    (tmp_path / "card" / "DCIM").mkdir(parents=True)
    put(tmp_path / "card" / "DCIM", "clip.mp4", b"moving pictures" * 1000)
    bootstrap([job])
    worker(POOL)
    process, url = start_console("--ui", ui)
    try:
        answer = Caller(url).send("flight-end", {"flight": "F077", "device": device})
        assert answer.status_code == 202, answer.text
        event_id = answer.json()["event_id"]
        token = (home() / "console" / "admin.token").read_text().strip()
        with httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=60) as v1:

            def told() -> dict[str, Any] | None:
                found = v1.get(f"/events/{event_id}").raise_for_status().json()
                return found if any(t["state"] == "VERIFIED" for t in found["transfers"]) else None

            found = until("the file of that event", told)
            assert (found["hook"], found["sender"], found["flight"], found["device"]) == (
                "flight-end",
                "fc1",
                "F077",
                device,
            )
            [run], [file] = found["runs"], found["transfers"]
            assert found["flow_runs"] == [run["flow_run_id"]]
            assert run["url"] == f"{ui}/runs/flow-run/{run['flow_run_id']}"

            def traced() -> dict[str, Any] | None:  # Prefect writes its tasks down a second later
                found = v1.get(f"/transfers/{file['id']}/trace").raise_for_status().json()
                return found if found["tasks"] else None

            back = until("the task that had it", traced)
            assert v1.get(f"/transfers/{file['id']}/history").json()["events"][0]["what"] == "webhook flight-end"
            assert v1.get("/events/00000000-0000-0000-0000-000000000000").status_code == 404
        assert back["event"]["event_id"] == event_id
        assert (back["run"]["id"], back["run"]["flow_run_id"]) == (run["id"], run["flow_run_id"])
        [task] = back["tasks"]
        assert task["url"] == f"{ui}/runs/task-run/{task['id']}"
        whose = httpx.get(f"{api}/task_runs/{task['id']}", timeout=150).raise_for_status().json()["flow_run_id"]
        assert whose == run["flow_run_id"]
        delivered = Path(back["transfer"]["destination"].partition(":")[2]) / back["transfer"]["dest_path"]
        assert hashlib.sha256(delivered.read_bytes()).hexdigest() == back["transfer"]["sha256"]
        manifest = Path(back["transfer"]["destination"].partition(":")[2]) / back["manifest"]
        assert back["transfer"]["sha256"] in manifest.read_text()
    finally:
        end(process)


def test_an_event_from_elsewhere_is_for_the_automation(
    api: str, client: SyncPrefectClient, console: Caller, write_job: WriteJob
) -> None:
    bootstrap([write_job("by-automation", device="elsewhere-1")])
    event = {
        "id": str(uuid.uuid4()), "event": "onblock.flight.ended", "occurred": "2026-05-04T10:00:00Z", "payload": {"flight": "F1", "device": "elsewhere-1"},
        "resource": {"prefect.resource.id": "onblock.device.elsewhere-1", "onblock.start": "by-automation"},
    }  # fmt: skip
    httpx.post(f"{api}/events", json=[event], timeout=150).raise_for_status()
    (run,) = until("a run", lambda: runs_of(client, "by-automation"), 30)
    assert (run.parameters["flight"], run.parameters["device"]) == ("F1", "elsewhere-1")


def test_any_other_hook_is_an_event(api: str, client: SyncPrefectClient, console: Caller, tmp_path: Path) -> None:
    """It exists once something waits for it."""
    refused = console.send("landed", {"gear": "down"})
    assert refused.status_code == 404 and "device-connected, flight-end" in refused.text
    spec = tmp_path / "prefect.yaml"
    spec.write_text(json.dumps({"deployments": [{
        "name": "by-hook", "entrypoint": "flows.transfer.flow.transfer", "tags": ["onblock"],
        "parameters": {"job": {
            "name": "by-hook", "source": {"$ref": {"block_document_slug": "local-storage/demo-card"}},
            "destination": {"$ref": {"block_document_slug": "local-storage/demo-archive"}},
        }},
        "triggers": [{"type": "event", "expect": ["onblock.hook.landed"], "parameters": {"flight": "{{ event.payload.flight }}"}}],
    }]}))  # fmt: skip
    bootstrap([], spec)
    told = until(
        "a hook that is known", lambda: (r := console.send("landed", {"flight": "F9"})).status_code == 202 and r, 15
    )
    assert told.json()["event_id"]  # type: ignore[union-attr]
    (run,) = until("a run", lambda: runs_of(client, "by-hook"), 30)
    assert run.parameters["flight"] == "F9"
    for holds_nul in (b'{"note": "a\\u0000"}', b'{"note": ["\\\\\\u0000"]}', b'{"a": {"\\u0000": 1}}'):
        answer = console.send("landed", holds_nul)
        assert answer.status_code == 400 and "NUL" in answer.text, (holds_nul, answer.text)
    assert console.send("landed", b'{"note": "a backslash before \\\\u0000"}').status_code == 202


def test_a_long_name_and_a_long_key(
    api: str, client: SyncPrefectClient, sender: None, tmp_path: Path, postgres_url: str
) -> None:
    """PostgreSQL holds the ledger to its widths. What is too long for it is still one message, however often it comes."""
    name, longest = "landed-" + "x" * 93, "k" * 200
    spec = tmp_path / "prefect.yaml"
    spec.write_text(json.dumps({"deployments": [{
        "name": "by-long-hook", "entrypoint": "flows.transfer.flow.transfer", "tags": ["onblock"],
        "parameters": {"job": {
            "name": "by-long-hook", "source": {"$ref": {"block_document_slug": "local-storage/demo-card"}},
            "destination": {"$ref": {"block_document_slug": "local-storage/demo-archive"}},
        }},
        "triggers": [{"type": "event", "expect": [f"onblock.hook.{name}", f"onblock.hook.{name}y"]}],
    }]}))  # fmt: skip
    bootstrap([], spec)
    process, url = start_console(ONBLOCK_LEDGER_URL=postgres_url)
    try:
        caller = Caller(url)
        answer = caller.send(name, {"n": 1}, key=longest)
        assert answer.status_code == 202, answer.text
        again = caller.send(name, {"n": 2}, key=longest)
        assert (again.status_code, again.json()) == (200, answer.json())
        other = caller.send(name, {"n": 3}, key=longest[1:] + "l")
        assert other.status_code == 202 and other.json()["event_id"] != answer.json()["event_id"]
        assert caller.send(f"{name}y", {}).status_code == 404, "no ledger has room for that name"
    finally:
        end(process)


# -- what is refused ----------------------------------------------------------------------------------------------


def test_what_is_not_taken(api: str, client: SyncPrefectClient, console: Caller, write_job: WriteJob) -> None:
    """Each with its reason, and none of them starts anything."""
    bootstrap([write_job("refusals", device="osc-2")])
    good = {"flight": "F1", "device": "osc-2"}
    assert httpx.post(f"{console.url}/hooks/flight-end", json=good).status_code == 401
    for wrong in (
        console.send("flight-end", good, secret="another secret"),
        console.send("flight-end", good, sender="nobody"),
        console.send("flight-end", good, ago=301),
        console.send("flight-end", good, ago=-302),
        console.send("flight-end", good, **{"X-Onblock-Timestamp": str(int(time.time()) - 7)}),
        console.send("flight-end", good, **{"X-Onblock-Timestamp": "soon"}),
        console.send("flight-end", good, **{"X-Onblock-Signature": "sha256="}),
        console.send("unknown", good, secret="another secret"),
    ):
        assert wrong.status_code == 401, wrong.text
        assert SECRET not in wrong.text
    for body, word in (
        (b"not json", "no JSON"), (b"[1]", "no JSON object"), (b"\xff\xfe", "no JSON"), (b"[" * 5000, "no JSON"),
        ({"device": "osc-2"}, "flight"), ({"flight": "F1"}, "give `device` or `devices`"),
        ({**good, "devices": ["osc-2"]}, "give `device` or `devices`"), ({**good, "speed": 3}, "speed"),
        ({"flight": 7, "device": "osc-2"}, "flight"), ({"flight": "../x", "device": "osc-2"}, "flight"),
        ({"flight": "F1", "device": "a\nb"}, "device"), ({**good, "ended_at": "yesterday"}, "ended_at"),
    ):  # fmt: skip
        answer = console.send("flight-end", body)
        assert answer.status_code == 400 and word in answer.text, (body, answer.text)
    assert console.send("flight-end", good, key="with space").status_code == 400
    for poison in (b'{"battery": NaN}', b'{"battery": 1e999}', b'{"note": "\\ud800"}'):
        answer = console.send("flight-end", poison)
        assert answer.status_code == 400 and "no JSON" in answer.text, (poison, answer.text)
    answer = console.send("flight-end", b'{"flight": "F\\u00001", "device": "osc-2"}')
    assert answer.status_code == 400 and "NUL" in answer.text, answer.text
    unknown = console.send("flight-end", {"flight": "F1", "device": "osc-9"})
    assert unknown.status_code == 404 and "'osc-9'" in unknown.text and "osc-2" in unknown.text
    assert console.send("flight-start", good).status_code == 404
    large = console.send("flight-end", {**good, "x": "x" * MOST_BYTES})
    assert large.status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b"x" * 65536

    try:  # no length is told: it is not read to its end
        answer = httpx.post(f"{console.url}/hooks/flight-end", content=endless(), timeout=150)
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the connection is closed on it
    assert runs_of(client, "refusals") == []
    with Ledger.open() as ledger, ledger.engine.connect() as c:
        assert c.exec_driver_sql("SELECT count(*) FROM hooks").scalar() == 0


def test_a_sender_may_be_held_to_its_hooks_and_devices(
    api: str, client: SyncPrefectClient, console: Caller, write_job: WriteJob
) -> None:
    bootstrap([write_job("held-a", device="held-1"), write_job("held-b", device="held-2")])
    secret = "a secret of sixteen"
    WebhookSender(secret=SecretStr(secret), hooks=["flight-end"], devices=["held-1"]).save("fc2", _sync=True)  # type: ignore

    def send(name: str, device: str) -> int:
        flight = {"flight": "F1"} if name == "flight-end" else {}
        return console.send(name, {**flight, "devices": [device]}, secret=secret, sender="fc2").status_code

    # who was asked about a moment ago, and was not there, is asked about again a second later
    first = until("a sender that is known", lambda: (code := send("flight-end", "held-1")) != 401 and code)
    assert (first, send("flight-end", "held-2")) == (202, 403)
    assert send("device-connected", "held-1") == 403
    assert len(runs_of(client, "held-a")) == 1 and runs_of(client, "held-b") == []


def test_a_message_that_was_heard_cannot_be_used_again(
    client: SyncPrefectClient, console: Caller, write_job: WriteJob
) -> None:
    """The same signature is the same message, whatever key or hook it is sent with."""
    bootstrap([write_job("heard", device="heard-1")])
    body, stamp = b'{"device": "heard-1"}', str(int(time.time()))
    head = {
        "X-Onblock-Sender": "fc1", "X-Onblock-Timestamp": stamp, "X-Onblock-Signature": sign(SECRET, stamp, body)
    }  # fmt: skip
    answers = [
        httpx.post(f"{console.url}/hooks/{name}", content=body, headers=head | more)
        for name, more in (("device-connected", {}), ("device-connected", {"Idempotency-Key": "k"}), ("flight-end", {}))
    ]
    assert [a.status_code for a in answers] == [202, 200, 200]
    assert len({a.text for a in answers}) == 1
    assert len(runs_of(client, "heard")) == 1


def test_silent_connections_keep_nobody_out(console: Caller) -> None:
    """From one address only so many are taken, and those that say nothing, or no whole head, are closed."""
    host, port = console.url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((host, int(port)), 30)) for _ in range(2 * MOST_OF_ONE)]
        for one in silent[::2]:
            one.sendall(b"POST /hooks/flight-end HTTP/1.1\r\nX-Slow: ")
        elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=elsewhere, timeout=150) as client:
            assert client.get(f"{console.url}/health").status_code == 200
        for one in silent:
            with suppress(ConnectionResetError, BrokenPipeError):
                assert one.recv(100) == b""
    for _ in range(2):
        with socket.create_connection((host, int(port)), 30) as torn:
            torn.sendall(b"POST /hooks/flight-end HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    until("a connection from here", lambda: httpx.get(f"{console.url}/health").status_code == 200)


# -- what is away, or dies ----------------------------------------------------------------------------------------


def test_a_server_that_is_away_loses_nothing(
    api: str, client: SyncPrefectClient, sender: None, write_job: WriteJob, server: tuple[str, Path],
    fault_proxy: Callable[[int], FaultProxy],
) -> None:  # fmt: skip
    """Told to come again; and the console tells it by itself as soon as it can, once, also after it was killed."""
    bootstrap([write_job("away-hook", device="away-1")])
    proxy = fault_proxy(int(server[0].rpartition(":")[2]))
    process, url = start_console(PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api")
    caller, body = Caller(url), {"flight": "F7", "device": "away-1"}
    try:
        assert caller.send("flight-end", body, secret="not this one!!!!").status_code == 401  # now it knows who is who
        proxy.down()
        answer = caller.send("flight-end", body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), answer.text
        assert runs_of(client, "away-hook") == []
        process.kill()
        process.wait()
        proxy.up()
        process, url = start_console(PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api")
        (run,) = until("a run", lambda: runs_of(client, "away-hook"), 30)
        assert run.parameters["flight"] == "F7"
        again = Caller(url).send("flight-end", body)
        assert again.status_code == 200
        (event,) = until("the event", lambda: events(api, "onblock.flight.ended", "onblock.device.away-1"), 30)
        assert event["id"] == again.json()["event_id"]
        assert len(runs_of(client, "away-hook")) == 1
    finally:
        end(process)


@pytest.mark.parametrize("phase", ["fetch", "process", "deliver"])
def test_a_run_that_is_killed_is_finished_by_the_next(
    api: str, client: SyncPrefectClient, sender: None, worker: Any, write_job: WriteJob, camera: OscSimulator, tmp_path: Path,
    onblock_home: Path, phase: str,
) -> None:  # fmt: skip
    """SIGKILL of the run's process; the automation starts it again, and what was fetched is not fetched twice."""
    (tmp_path / "dcim" / "VID_0001.insv").unlink()
    clip = random.Random(2).randbytes(12 << 20)
    put(tmp_path / "dcim", "VID_0002.insv", clip)
    name, steps = f"killed-{phase}", [{"kind": "compress", "format": "gzip"}]
    begun, go = tmp_path / "begun", tmp_path / "go"
    slow = {"bandwidth": {"up": "16 Mbit/s"}} if phase == "deliver" else {}
    if phase == "fetch":
        camera.faults.piece_delay_s = 0.05
    elif phase == "process":
        script = onblock_home / "scripts" / "wait"
        script.parent.mkdir(parents=True)
        script.write_text(f'#!/bin/sh\nset -e\n: > "{begun}"\nwhile [ ! -e "{go}" ]; do sleep 0.1; done\ncp "$1" .\n')
        script.chmod(0o755)
        steps.insert(0, {"kind": "script", "program": "wait"})
    bootstrap([write_job(name, **camera_job(tmp_path, camera, name, steps=steps, **slow))])
    worker(POOL)
    with watching(api, name) as console:
        console.told("flight-end", {"flight": "F1", "device": name})
    under_way = {
        "fetch": lambda: camera.sent.total() > 1 << 20,
        "process": begun.exists,
        "deliver": lambda: any(p.stat().st_size > 1 << 20 for p in (tmp_path / "archive").rglob(".onblock-*.part")),
    }
    until("the phase", under_way[phase], 180)
    before = camera.sent.total()
    (process,) = worker.started
    runs = [p for p, _ in descendants(process.pid) if os.getpgid(p) == p and os.getsid(p) == p]
    os.kill(runs[0], signal.SIGKILL)
    camera.faults.piece_delay_s = 0.0
    go.touch()
    run = ended_at_last(client, name, tmp_path / f"worker-{POOL}.log")
    assert run.run_count >= 2
    assert [s.name for s in client.read_flow_run_states(run.id)].count("Crashed") == 1, "it died once"
    (made,) = (tmp_path / "archive").rglob("*.gz")
    assert gzip.decompress(made.read_bytes()) == clip
    if phase != "fetch":
        assert camera.sent.total() == before, "what was fetched was fetched again"


def ended_at_last(client: SyncPrefectClient, job: str, worker_log: Path) -> FlowRun:
    """The run that was killed, when all is over: started again it delivers, or leaves it to one that comes later, since
    what the killed one had in its hands counts as its own for a while."""

    def look() -> FlowRun | None:
        runs = sorted(runs_of(client, job), key=lambda run: run.created or 0)  # type: ignore[arg-type,return-value]
        over = all(run.state is not None and run.state.is_final() for run in runs)
        delivered = [run for run in runs if run.state and "1 delivered" in (run.state.message or "")]
        return runs[0] if over and delivered else None

    def told() -> str:
        states = [
            f"{run.name} {s.timestamp} {s.name}: {s.message}"
            for run in runs_of(client, job)
            for s in client.read_flow_run_states(run.id)
        ]
        limits = [
            f"{one.name}: {one.active_slots} of {one.limit}" for one in client.read_global_concurrency_limits(limit=200)
        ]
        with Ledger.open() as ledger:
            rows = [str(row._asdict()) for row in ledger.read_all(select(File.__table__))]
        return "\n".join([*states, *limits, *rows, worker_log.read_text(errors="replace")[-5000:]])

    return until(f"{job} delivered", look, 240, told=told)  # type: ignore[return-value]


# -- devices that come and go -------------------------------------------------------------------------------------


def test_a_device_that_comes_back_starts_its_jobs(
    api: str, client: SyncPrefectClient, sender: None, worker: Callable[[str], Path], write_job: WriteJob,
    camera: OscSimulator, tmp_path: Path,
) -> None:  # fmt: skip
    """A camera that is off at flight end is served when it is on again, without waiting for its next attempt."""
    bootstrap([write_job("comes-back", **camera_job(tmp_path, camera, "osc-back"))])
    camera.off()
    worker(POOL)
    process, url = start_console()
    try:
        Caller(url).told("flight-end", {"flight": "F5", "device": "osc-back"})
        ended_runs = lambda: [r for r in runs_of(client, "comes-back") if r.state and r.state.is_final()]  # noqa: E731
        until("a run that found no camera", ended_runs, 90)
        camera.on()
        until("the file", lambda: list((tmp_path / "archive").rglob("*.gz")), 240)
        seen = until("the event", lambda: events(api, "onblock.device.connected", "onblock.device.osc-back"), 30)
        assert seen[0]["payload"]["flight"] == "F5"
        camera.off()
        until("it is gone", lambda: events(api, "onblock.device.disconnected", "onblock.device.osc-back"), 60)
    finally:
        end(process)


# -- the command and the example ------------------------------------------------------------------------------------


def test_the_command_and_the_example_with_curl(
    api: str, client: SyncPrefectClient, console: Caller, write_job: WriteJob, tmp_path: Path
) -> None:
    """As the docs have it."""
    bootstrap([write_job("scripted", device="cam-1")])

    def onblock(*args: str, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "deployments.cli", "hook", *args], env={**os.environ, **env}, cwd=tmp_path,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    first = onblock("sender", "ground-station")
    second = onblock("sender", "ground-station", "--rotate")
    assert first != second
    args = ("flight-end", "--flight", "F1", "--device", "cam-1", "--sender", "ground-station", "--url", console.url)
    for secret in (second, first):
        assert json.loads(onblock(*args, ONBLOCK_HOOK_SECRET=secret, PREFECT_API_URL=""))["event_id"]
    readme = (Path(__file__).parents[2] / "docs/flight-end.md").read_text("utf-8")
    (example,) = re.findall(r"```sh\n(# a webhook with curl\n.*?)```", readme, re.DOTALL)
    example = example.replace("http://127.0.0.1:4280", console.url).replace("F042", "F043")
    env = {**os.environ, "ONBLOCK_HOOK_SECRET": second}
    done = subprocess.run(["sh", "-ec", example], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert '"event_id"' in done.stdout, done.stdout + done.stderr
    assert {r.parameters["flight"] for r in runs_of(client, "scripted")} == {"F1", "F043"}
