from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import ConfigError, NetworkError
from deployments.agent.outbox import Outbox, Refused, Server, event
from tests.agent.test_recording import until


class Far:
    """The far side: away, or taking what it is sent."""

    def __init__(self) -> None:
        self.away, self.took, self.tried, self.now = False, [], 0, 0.0

    def send(self, sent: dict[str, Any]) -> None:
        self.tried += 1
        if self.away:
            raise NetworkError("the Prefect server does not answer")
        if sent["event"] == "bad":
            raise Refused("422")
        self.took.append(sent["payload"].get("n"))

    def clock(self) -> float:
        return self.now


def outbox(folder: Path, far: Far, **keys: Any) -> Outbox:
    return Outbox(folder / "outbox", far.send, clock=far.clock, **keys)


def put(box: Outbox, n: int, name: str = "onblock.recording.completed") -> None:
    box.put(event(name, "onblock.device.cam-01", {"n": n}))


def test_events_are_sent_once_in_their_order(tmp_path: Path):
    far = Far()
    box = outbox(tmp_path, far)
    for n in range(12):
        put(box, n)
    box.deliver()
    box.deliver()
    assert far.took == list(range(12)) and box.waiting == 0


def test_events_wait_for_a_server_that_is_away_and_survive_a_restart(tmp_path: Path):
    far = Far()
    far.away = True
    box = outbox(tmp_path, far)
    for n in range(3):
        put(box, n)
    with pytest.raises(NetworkError):
        box.deliver()
    assert box.waiting == 3
    box = outbox(tmp_path, far)
    put(box, 3)
    far.away = False
    box.deliver()
    assert far.took == [0, 1, 2, 3]


def test_the_newest_are_kept_where_too_many_wait(tmp_path: Path):
    far = Far()
    box = outbox(tmp_path, far, most=5)
    for n in range(12):
        put(box, n)
    assert box.waiting == 5
    box.deliver()
    assert far.took == [7, 8, 9, 10, 11]


def test_one_that_is_refused_or_broken_does_not_stop_the_others(tmp_path: Path):
    far = Far()
    box = outbox(tmp_path, far)
    put(box, 0, "bad")
    put(box, 1)
    put(box, 2)
    next(p for p in (tmp_path / "outbox").iterdir() if p.name.startswith("000000000002")).write_text("{")
    (tmp_path / "outbox" / ".000000000009-x.json.part").write_text("half")
    box.deliver()
    assert far.took == [2] and box.waiting == 0
    assert len(list((tmp_path / "outbox").glob("*.bad"))) == 1
    box.start()
    box.stop(30)
    assert not list((tmp_path / "outbox").glob(".*"))


def test_the_status_is_sent_every_ten_seconds_and_only_the_newest(tmp_path: Path):
    far = Far()
    box = outbox(tmp_path, far)
    for second in range(35):
        far.now = second
        box.report(event("onblock.device.status", "onblock.device.cam-01", {"n": second}))
        box.deliver()
    assert far.took == [0, 10, 20, 30] and box.waiting == 0


def test_a_status_of_the_past_is_not_sent_when_the_server_is_back(tmp_path: Path):
    far = Far()
    far.away = True
    box = outbox(tmp_path, far)
    for second in range(60):
        far.now = second
        box.report(event("onblock.device.status", "onblock.device.cam-01", {"n": second}))
        try:
            box.deliver()
        except NetworkError:
            continue
    far.away, far.now = False, 70
    box.report(event("onblock.device.status", "onblock.device.cam-01", {"n": 70}))
    box.deliver()
    assert far.took == [70] and far.tried == 7


def test_a_server_that_is_away_is_not_asked_for_each_event(tmp_path: Path):
    far = Far()
    far.away = True
    box = Outbox(tmp_path / "outbox", far.send, least_s=3600, most_s=3600)
    box.start()
    for n in range(50):
        put(box, n)
        box.report(event("onblock.device.status", "onblock.device.cam-01", {"n": n}))
    until("it is found away", lambda: box.trouble)
    assert far.tried <= 2
    far.away = False
    box.wake()
    until("they are sent", lambda: [n for n in range(50) if n in far.took] == list(range(50)))
    box.stop()
    assert box.trouble is None


def test_stopping_sends_what_is_there(tmp_path: Path):
    far = Far()
    box = Outbox(tmp_path / "outbox", far.send)
    box.start()
    put(box, 1)
    box.stop(30)
    assert far.took == [1]


# -- the server's side, on the wire -----------------------------------------------------------------------------------


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """An HTTP server that answers with this status, content type and body."""
    running: list[ThreadingHTTPServer] = []

    def start(status: int, kind: str = "", body: bytes = b"") -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.do_GET()

            def do_GET(self) -> None:
                self.send_response(status)
                if kind:
                    self.send_header("content-type", kind)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}/api"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "raises"), [(200, None), (201, None), (204, None), (400, Refused), (413, Refused), (422, Refused), (301, NetworkError),
                           (302, NetworkError), (307, NetworkError), (401, NetworkError), (403, NetworkError), (404, NetworkError),
                           (405, NetworkError), (408, NetworkError), (409, NetworkError), (429, NetworkError), (500, NetworkError),
                           (503, NetworkError)],
)  # fmt: skip
def test_answers_of_the_server(status: int, raises: type[Exception] | None, answering: Callable[..., str]):
    server = Server(answering(status), "user:secret")
    if raises is None:
        server.send(event("e", "onblock.device.cam-01", {}))
    else:
        with pytest.raises(raises) as caught:
            server.send(event("e", "onblock.device.cam-01", {}))
        assert "secret" not in str(caught.value)
    assert server.healthy() is (status == 200)
    server.close()


@pytest.mark.parametrize(
    ("kind", "body"), [("text/html; charset=utf-8", b"please log in"), ("", b"\n<!doctype html><title>Hotel</title>")]
)
def test_a_web_page_is_no_yes(kind: str, body: bytes, answering: Callable[..., str], tmp_path: Path):
    """A captive portal answers to everything."""
    server = Server(answering(200, kind, body))
    box = Outbox(tmp_path / "outbox", server.send)
    put(box, 1)
    with pytest.raises(NetworkError, match="a web page"):
        box.deliver()
    assert box.waiting == 1 and server.healthy() is False
    server.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "http://127.0.0.1:99999/api", f"http://{'x' * 70}.invalid/api", "api", "ftp://127.0.0.1/api"])  # fmt: skip
def test_a_server_that_is_not_there(url: str):
    server = Server(url)
    assert server.healthy() is False
    with pytest.raises(NetworkError, match="does not answer"):
        server.send(event("e", "onblock.device.cam-01", {}))


@pytest.mark.parametrize("url", ["http://[::", "http://host:port/api"])
def test_what_is_no_address(url: str):
    with pytest.raises(ConfigError, match="PREFECT_API_URL is no URL"):
        Server(url)
