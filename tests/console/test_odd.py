"""What is odd is told, and is no defect: servers that are no Prefect, devices that tell no numbers, recordings that cannot be
read, a ledger all of whose connections are in use.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployments.console.access import Role
from deployments.console.pages import NAV
from flows.capture.manifest import NAME, Manifest
from flows.ledger import Ledger, State
from tests.console.conftest import Site


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of something that answers everything so."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b'{"exception_message": "Unauthorized"}'), (403, b""), (422, b'{"detail": "another version"}'), (404, b"nothing here"),
        (200, b"<html>a router's login</html>"), (200, b'{"hello": "world"}'), (200, b"[{}]"), (200, b"[1]"), (200, b"null"),
    ],
)  # fmt: skip
def test_pages_work_where_the_prefect_server_is_none_or_refuses(onblock_home: Path, status: int, body: bytes) -> None:
    with answering(status, body) as url, Ledger.open() as ledger:
        site = Site(ledger, onblock_home / "console", url)
        site.rows(("a.mp4", State.QUEUED))
        browser = site.browser()
        for path, _ in NAV:
            page = browser.get(path, headers={"Accept": "text/html"})
            assert (path, page.status_code) == (path, 200), page.text
            assert "Prefect: " in page.text  # it says so
        program = site.program()
        for path in ("stats/summary", "transfers", "jobs", "devices", "recordings/here"):
            assert program.get(f"/api/v1/{path}").status_code == 200
        assert program.get("/metrics").status_code == 200
        assert not program.get("/api/v1/health").json()["ok"]
        for method, path in (("GET", "logs/recent"), ("POST", "jobs/card/run"), ("GET", "jobs/card/config")):
            answer = program.request(method, f"/api/v1/{path}", json={} if method == "POST" else None)
            assert answer.status_code in (502, 503), answer.text
            assert answer.headers["content-type"] == "application/problem+json"


def test_a_device_that_tells_no_numbers(site: Site, onblock_home: Path) -> None:
    status = """{"device": "cam-1", "at": "2026-01-01T00:00:00+00:00", "uptime_s": NaN, "battery": {"percent": -Infinity},
        "cpu": {"percent": 1e999, "temperature_c": NaN}, "memory": {"available": HUGE, "total": 1}, "storage": {"free": true},
        "recording": {"state": "recording", "seconds": NaN, "streams": {"v": {"dropped": {"a": NaN, "b": HUGE, "c": 2}}}},
        "deep": DEEP}"""
    status = status.replace("HUGE", "9" * 400).replace("DEEP", "[" * 500 + "NaN" + "]" * 500)
    (onblock_home / "agent").mkdir()
    (onblock_home / "agent" / "status.json").write_text(status)
    page = site.browser().get("/devices")
    assert page.status_code == 200
    assert "cam-1" in page.text and "nan" not in page.text
    program = site.program(Role.VIEWER)
    answer = program.get("/api/v1/devices")
    assert answer.status_code == 200
    (device,) = json.loads(answer.content, parse_constant=pytest.fail)
    assert device["status"]["uptime_s"] is None and device["status"]["recording"]["streams"]["v"]["dropped"]["c"] == 2
    told = program.get("/metrics")
    assert told.status_code == 200
    assert 'onblock_capture_dropped{device="cam-1"} 2.0' in told.text
    assert "onblock_device_battery_percent{" not in told.text


def test_a_manifest_is_read_when_it_is_new_and_one_that_cannot_be_read_says_so(site: Site, onblock_home: Path) -> None:
    below = onblock_home / "recordings"
    for n in range(3):
        (below / f"2026-0{n}").mkdir(parents=True)
        Manifest(id=f"2026-0{n}", device="cam-1", start_monotonic_ns=0, start_wall_ns=0).write(below / f"2026-0{n}")
    (below / "2026-03" / NAME).mkdir(parents=True)  # no file at all
    (below / "2026-04").mkdir()
    (below / "2026-05").mkdir()
    (below / "2026-05" / NAME).write_text("no manifest")
    (below / "a-file").write_text("")
    program = site.program(Role.VIEWER)

    def told() -> dict[str, str]:
        answer = program.get("/api/v1/recordings/here")
        assert answer.status_code == 200, answer.text
        return {one["id"]: one["state"] for one in answer.json()}

    whole = {f"2026-0{n}": "recording" for n in range(3)}
    assert told() == whole | dict.fromkeys(("2026-03", "2026-04", "2026-05"), "unreadable")
    assert "2026-03" in site.browser().get("/recordings").text

    file = below / "2026-00" / NAME
    st, text = file.stat(), file.read_text()
    file.write_text(text.replace('"state": "recording"', '"state": "recovered"'))
    os.utime(file, ns=(st.st_atime_ns, st.st_mtime_ns))
    assert file.stat().st_size == st.st_size
    assert told()["2026-00"] == "recording"  # the same file, as far as anybody can see: it is not read again
    Manifest(id="2026-00", device="cam-1", start_monotonic_ns=0, start_wall_ns=0, state="sealed").write(file.parent)
    assert told()["2026-00"] == "sealed"


def test_a_ledger_all_of_whose_connections_are_in_use_is_asked_later(site: Site) -> None:
    pool: Any = site.ledger.engine.pool
    pool._timeout = 0.1
    held = [site.ledger.engine.connect() for _ in range(pool.size() + pool._max_overflow)]
    program = site.program()
    answer = program.get("/api/v1/transfers")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "in use" in answer.json()["detail"]
    assert site.browser().get("/transfers", headers={"Accept": "text/html"}).status_code == 503
    for one in held:
        one.close()
    assert program.get("/api/v1/transfers").status_code == 200
