"""The console among those who mean it no good, over real sockets: who is slow, who sends too much, who guesses, who sends
what nobody would."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from fastapi import Request

from deployments.console import connections
from deployments.console.access import LOG_INS, MOST_OF_ONE, WRONG, People, Role, Sessions
from deployments.console.guard import MOST_OPEN_BYTES, SLOW_S
from flows.ledger import State
from tests.console.conftest import Site, raw
from tests.deployments.conftest import until

pytestmark = pytest.mark.timeout(600)


def place(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("/")[2].partition(":")
    return host, int(port)


def test_who_dribbles_a_body_is_not_waited_for(site: Site, url: str) -> None:
    """Without a token and with one; what arrives in time is taken however it is cut."""
    head = f"Authorization: Bearer {site.tokens[Role.OPERATOR]}\r\nContent-Type: application/json\r\n"
    slow: dict[str, socket.socket] = {}
    with ExitStack() as stack:
        for path, more in (("/login", ""), ("/api/v1/transfers/actions", head), ("/transfers/actions", head)):
            one = stack.enter_context(socket.create_connection(place(url), 180))
            one.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: 2000\r\n\r\n".encode())
            one.settimeout(0.2)
            slow[path] = one
        answers: dict[str, bytes] = dict.fromkeys(slow, b"")
        deadline = time.monotonic() + 180
        while slow and time.monotonic() < deadline:
            for path, one in list(slow.items()):
                try:
                    one.sendall(b"t")
                    got = one.recv(65536)
                except TimeoutError:
                    continue
                except (ConnectionResetError, BrokenPipeError):
                    got = b""
                answers[path] += got
                if not got:
                    del slow[path]
            assert httpx.get(f"{url}/health", timeout=180).status_code == 200
        assert not slow, f"still waited for: {list(slow)}"
    for path, answer in answers.items():
        assert b" 408 " in answer.partition(b"\r\n")[0], (path, answer)
        assert f"{SLOW_S:.0f} s".encode() in answer
    body = f"token={site.tokens[Role.VIEWER]}".encode()
    with socket.create_connection(place(url), 180) as cut:
        cut.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 7):
            cut.sendall(body[at : at + 7])
        assert cut.recv(65536).startswith(b"HTTP/1.1 303 ")


def test_what_strangers_send_is_short(site: Site, url: str) -> None:
    assert httpx.post(f"{url}/login", content=b"token=" + b"x" * MOST_OPEN_BYTES, timeout=180).status_code == 413
    assert httpx.post(f"{url}/login", content=b"token=" + b"x" * 100, timeout=180).status_code == 401


def test_who_takes_no_answer_loses_the_connection(site: Site, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all is answered, and only the connection's end waits for him."""
    monkeypatch.setattr(connections, "TAKEN_S", 1.0)
    with ExitStack() as stack:
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(place(url))
            one.settimeout(180)
            one.sendall(b"GET /static/htmx.min.js HTTP/1.1\r\nHost: x\r\n\r\n")
            assert one.recv(100).startswith(b"HTTP/1.1 200 ")
            one.setblocking(False)
            with suppress(BlockingIOError, ConnectionResetError, BrokenPipeError):
                one.send(b"GET /static/htmx.min.js HTTP/1.1\r\nHost: x\r\n\r\n" * 600)
        until("that none is left", lambda: not connections._of)


@pytest.mark.usefixtures("long_minute")
def test_one_who_guesses_keeps_out_nobody_who_knows(site: Site, url: str) -> None:
    with httpx.Client(base_url=url, timeout=180) as client:
        codes = [
            client.get("/metrics", headers={"Authorization": f"Bearer no-{i}"}).status_code for i in range(WRONG + 2)
        ]
        assert codes == [401] * WRONG + [429] * 2
        assert client.get("/api/v1/jobs", headers=site.head(Role.VIEWER)).status_code == 200
        assert client.post("/login", data={"token": site.tokens[Role.VIEWER]}).status_code == 303
        refused = client.post("/login", data={"token": "no"})
        assert refused.status_code == 429 and 0 < int(refused.headers["retry-after"]) <= 3601


def test_a_login_of_a_proxy_is_no_token(site: Site, url: str) -> None:
    """A proxy that asks for a password of its own sends it on to us with every request."""
    with httpx.Client(base_url=url, headers={"Sec-Fetch-Site": "same-origin"}, auth=("a", "b"), timeout=180) as client:
        assert client.post("/login", data={"token": site.tokens[Role.VIEWER]}).status_code == 303
        assert [client.get("/transfers").status_code for _ in range(WRONG + 2)] == [200] * (WRONG + 2)


def test_a_defect_is_answered_dressed_and_written_down(site: Site) -> None:
    @site.app.api_route("/api/v1/defect/{path:path}", methods=["GET", "POST"])
    def defect(request: Request) -> None:
        raise RuntimeError("a defect")

    with site.served() as url, httpx.Client(base_url=url, headers=site.head(Role.OPERATOR), timeout=180) as client:
        for _ in range(2):  # the connection is still good
            answer = client.post("/api/v1/defect/x", json={})
            assert answer.status_code == 500
            assert answer.headers["content-type"] == "application/problem+json"
        for told in (answer, client.get("/api/v1/defect/x")):
            assert "default-src 'none'" in told.headers["content-security-policy"]
            assert told.headers["cache-control"] == "no-store" and told.headers["x-content-type-options"] == "nosniff"
            assert "RuntimeError" not in told.text
    line = site.audit.recent()[0]
    assert (line["who"], line["what"], line["status"]) == ("operator", "POST /api/v1/defect/x", 500)


def test_a_list_of_people_that_is_damaged_is_told_dressed(site: Site, url: str) -> None:
    (site.people.folder / "people.json").write_text("{half")
    answer = httpx.get(f"{url}/api/v1/jobs", headers=site.head(Role.VIEWER), timeout=180)
    assert answer.status_code == 503 and "no list of people" in answer.json()["detail"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert httpx.post(f"{url}/login", data={"token": "x"}, timeout=180).status_code == 503


def test_an_origin_that_is_none_is_from_elsewhere(site: Site, url: str) -> None:
    for origin in ("http://[", "http://a:b", "null", "", "//127.0.0.1", "file://", "http://x@127.0.0.1"):
        answer = httpx.post(
            f"{url}/login", data={"token": site.tokens[Role.ADMIN]}, headers={"Origin": origin}, timeout=180
        )
        assert answer.status_code == 403, origin


# -- sessions ---------------------------------------------------------------------------------------------------------


def log_in(site: Site, client: httpx.Client, role: Role = Role.VIEWER) -> str:
    answer = client.post("/login", data={"token": site.tokens[role]})
    assert answer.status_code == 303
    return answer.cookies["onblock"]


@pytest.mark.parametrize("beside", ['a="b', 'theme={"dark":1}', "x=1, y", "=", ";;;", "k[0]=v; \xff=1".encode("latin-1"), "a b=c"])  # fmt: skip
def test_an_odd_cookie_of_somebody_else_ends_no_session(site: Site, url: str, beside: str | bytes) -> None:
    with httpx.Client(base_url=url, timeout=180) as client:
        ours = f"onblock={log_in(site, client)}".encode()
    odd = beside if isinstance(beside, bytes) else beside.encode()
    for cookie in (odd + b"; " + ours, ours + b"; " + odd, ours + b"\r\nCookie: " + odd):
        answer = raw(url, b"GET /transfers HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: " + cookie + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 "), cookie


def test_a_cookie_of_many_backslashes_stops_nobody(site: Site, url: str) -> None:
    """Python's parser takes half a second of the event loop for each of these, minutes for all."""
    head = b'GET / HTTP/1.1\r\nHost: x\r\nCookie: onblock="' + b'\\"' * 7700 + b'"\r\n'
    hostile = (head + b"\r\n") * 9 + head + b"Connection: close\r\n\r\n"
    with ThreadPoolExecutor(60) as pool:
        sent = [pool.submit(raw, url, hostile) for _ in range(60)]
        assert [s.result().count(b"HTTP/1.1 303 ") for s in sent] == [10] * 60


def test_a_new_login_ends_the_session_before_and_takes_over_none_that_was_planted(site: Site, url: str) -> None:
    with httpx.Client(base_url=url, headers={"Cookie": "onblock=planted"}, timeout=180) as client:
        assert log_in(site, client) != "planted"
    assert httpx.get(f"{url}/transfers", cookies={"onblock": "planted"}, timeout=180).status_code == 303
    with httpx.Client(base_url=url, timeout=180) as client:
        first = log_in(site, client)
        second = log_in(site, client)
    assert second != first
    codes = [httpx.get(f"{url}/transfers", cookies={"onblock": c}, timeout=180).status_code for c in (first, second)]
    assert codes == [303, 200]


@pytest.mark.parametrize("how", ["a stream", "a page that reloads itself"])
def test_a_page_left_open_keeps_no_session_alive(
    site: Site, url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("deployments.console.pulse.BEAT_S", 0.2)
    with httpx.Client(base_url=url, timeout=180) as client:
        log_in(site, client)
        deadline = time.monotonic() + 180
        if how == "a stream":
            with client.stream("GET", "/api/v1/stream") as stream:
                assert stream.status_code == 200
                monkeypatch.setattr("deployments.console.access.IDLE_S", 3.0)
                for _ in stream.iter_raw():
                    assert time.monotonic() < deadline, "it goes on for ever"
        else:
            monkeypatch.setattr("deployments.console.access.IDLE_S", 3.0)
            head = {"HX-Request": "true", "HX-Target": "live"}
            until("the end", lambda: client.get("/transfers", headers=head).headers.get("hx-redirect") == "/login")
        assert client.get("/transfers").status_code == 303


def test_many_sessions_of_one_end_none_of_another(onblock_home: Path) -> None:
    people = People(onblock_home)
    found = [people.by_token(people.add(name, Role.VIEWER)) for name in ("eve", "alex")]
    eve, alex = (p for p in found if p)
    sessions = Sessions(people)
    kept = sessions.open(alex)
    many = [sessions.open(eve) for _ in range(1200)]
    assert sessions.person(kept) == alex
    assert [s for s in many if sessions.person(s)] == many[-MOST_OF_ONE:]


@pytest.mark.usefixtures("long_minute")
def test_a_person_logs_in_only_so_often(site: Site, url: str) -> None:
    """Each is a line in the audit log: nobody washes out what is in it."""
    with httpx.Client(base_url=url, timeout=180) as client:
        codes = [
            client.post("/login", data={"token": site.tokens[Role.VIEWER]}).status_code for _ in range(LOG_INS + 2)
        ]
        assert codes == [303] * LOG_INS + [429] * 2
        assert client.post("/login", data={"token": site.tokens[Role.ADMIN]}).status_code == 303


# -- pages from elsewhere ---------------------------------------------------------------------------------------------

TYPES = (
    "application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain; application/json",
    "application/csp-report", "",
)  # fmt: skip


def test_no_content_type_is_a_way_round(site: Site, url: str) -> None:
    """A browser that is logged in, and a page from elsewhere that has it send all that a form or a beacon can."""
    (number,) = site.rows(("a", State.QUEUED))
    bodies = json.dumps({"action": "cancel", "ids": [number]}), f"one=cancel:{number}", f"action=cancel&id={number}"
    with httpx.Client(base_url=url, timeout=180) as client:
        log_in(site, client, Role.ADMIN)
        for kind in TYPES:
            for head in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {}):  # fmt: skip
                for path in ("/api/v1/transfers/actions", "/transfers/actions", "/logout"):
                    for body in bodies:
                        given = head | ({"Content-Type": kind} if kind else {})
                        assert client.post(path, content=body, headers=given).status_code == 403, (kind, head, path)
        assert site.office.row(number)["state"] == "QUEUED"
        ours = {"Origin": url, "Content-Type": "application/x-www-form-urlencoded"}
        assert client.post("/transfers/actions", content=bodies[1], headers=ours).status_code == 200
    assert site.office.row(number)["state"] == "CANCELLED"
