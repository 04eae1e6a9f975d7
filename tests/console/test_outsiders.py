"""What nobody sends who means well, to a console in a process of its own: nothing gets out, nothing breaks, and its log holds
no trace of a defect (`serving` looks)."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from deployments.console.access import People, Role
from flows.ledger import State
from tests.console.conftest import Site, raw

pytestmark = pytest.mark.timeout(600)

OUTSIDE = [
    "/static/../access.py", "/static/..%2faccess.py", "/static/%2e%2e/access.py", "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2fpyproject.toml",
    "/static/....//access.py", "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/..%5caccess.py", "/static/app.css/../../access.py",
    "/static/..", "/static/", "/static", "/static/%00", "/static/app.css%00.py", "/static/%ff%fe", "/static/..%c0%afaccess.py",
    "/recordings/../../../etc/passwd", "/recordings/%2e%2e%2fpeople.json", "/api/v1/recordings/../../people.json",
    "/api/v1/recordings/here/..%2f..%2fpeople.json", "/transfers/..%2f1", "/hooks/../logs", "/static/../logs", "/login/../logs",
    "/health/../api/v1/audit", "//api/v1/audit", "/./api/v1/audit", "/api/v1/audit%00", "/API/v1/audit", "/api/v1/audit/", "/metrics/",
    "/%61pi/v1/audit", "/api/v1/audit;x", "/api/v1/audit?/static/", "/" + "a/" * 3000,
]  # fmt: skip


def request(path: str, *head: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *head]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def status_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert found, answer[:200]
    return int(found[1])


def test_no_path_leads_out_of_what_is_for_everybody(running: str) -> None:
    for path in OUTSIDE:
        for method in ("GET", "HEAD", "POST"):
            answer = raw(running, request(path, method=method))
            assert status_of(answer) in (303, 400, 401, 404, 405), (method, path, answer[:100])
            assert b"from __future__" not in answer and b"root:" not in answer and b"sha256" not in answer, path
    assert status_of(raw(running, request("/static/app.css"))) == 200


def test_who_is_in_gets_no_further_by_paths(running: str, token: str) -> None:
    viewer = f"Authorization: Bearer {People().add('v', Role.VIEWER)}"
    for path in OUTSIDE:
        answer = raw(running, request(path, viewer))
        assert b"from __future__" not in answer and b"root:" not in answer and b'"sha256"' not in answer, path
        code = status_of(answer)
        assert code in (303, 400, 403, 404, 405, 422) or path == "/transfers/..%2f1", (path, answer[:100])


BREAK = "%0d%0aSet-Cookie:%20planted=1%0d%0a%0d%0a<b>"


def test_nothing_that_is_sent_becomes_a_header(running: str, token: str) -> None:
    form = "Content-Type: application/x-www-form-urlencoded"
    sent = [
        request(f"/{BREAK}"), request(f"/login?next=/{BREAK}"), request(f"/jobs/{BREAK}/run", method="POST"),
        request("/login", form, method="POST", body=f"token={token}&next=/{BREAK}".encode()),
        request("/login", form, method="POST", body=f"token={BREAK}".encode()), request(f"/static/{BREAK}"), request(f"/hooks/{BREAK}", method="POST"),
        request(f"/transfers?cursor={BREAK}", f"Authorization: Bearer {token}"), request(f"/api/v1/jobs/{BREAK}/config", f"Authorization: Bearer {token}"),
        request("/jobs/", f"Authorization: Bearer {token}", "X-Forwarded-Host: evil.example"), request("/login/"),
    ]  # fmt: skip
    for one in sent:
        answer = raw(running, one)
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert b"planted" not in re.sub(rb"\r\nlocation: [!-~]*", b"", head), one
        where = re.search(rb"\r\nlocation: ([^\r]*)", head)
        assert where is None or re.fullmatch(rb"/(?![/\\])[!-~]*", where[1]), one
        assert b"<b>" not in answer.replace(b"\\u003cb", b"") or b"application/problem+json" in head, one


ODD = [
    b"GET http://evil.example/ HTTP/1.1\r\nHost: x\r\n", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n", b"TRACE / HTTP/1.1\r\nHost: x\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n", b"get / HTTP/1.1\r\nHost: x\r\n", b"PROPFIND /transfers HTTP/1.1\r\nHost: x\r\n",
    b"POST /login HTTP/1.1\r\nHost: x\r\n", b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n",
    b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n", b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n",
    b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n", b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 6\r\n",
    b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n",
    b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", b"GET / HTTP/1.0\r\n", b"GET /\r\n", b"\x00\x01\x02\r\n", b"\x16\x03\x01\x02\x00\x01\r\n",
    b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 2000, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n",
    b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"x" * 14_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nCookie: onblock=\xff\xfe\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"onblock=;" * 1500 + b"\r\n", b"GET /%ff%fe%00 HTTP/1.1\r\nHost: x\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n",
    b"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n",
    b"GET /static/app.js HTTP/1.1\r\nHost: x\r\nRange: bytes=" + b",".join(b"%d-" % i for i in range(2000)) + b"\r\n",
    b"GET /static/app.js HTTP/1.1\r\nHost: x\r\nRange: bytes=" + b"9" * 5000 + b"-\r\n", b"GET /static/app.js HTTP/1.1\r\nHost: x\r\nIf-Modified-Since: never\r\n",
    b"GET /login?" + b"next=/&" * 2000 + b" HTTP/1.1\r\nHost: x\r\n", b"POST /login HTTP/1.1\r\nHost: x\r\nOrigin: http://[\r\nContent-Length: 0\r\n",
    b"POST /hooks/x HTTP/1.1\r\nHost: x\r\nX-Onblock-Sender: \xff\r\nX-Onblock-Timestamp: 1\r\nX-Onblock-Signature: \xff\r\nContent-Length: 0\r\n",
]  # fmt: skip


def test_what_is_no_request_breaks_nothing(running: str) -> None:
    """Those that say nothing of the connection are let go after a while, as everybody is."""
    for one in ODD:
        answer = raw(running, one.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n", 1) + b"\r\n")
        if answer and b"/hooks/" not in one:  # without a Prefect server these cannot be taken
            codes = [int(c) for c in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
            assert codes and max(codes) < 500, (one[:120], answer[:200])
        assert httpx.get(f"{running}/health", timeout=180).status_code == 200


def test_two_requests_in_one_are_not_told_apart_otherwise_than_by_a_proxy(running: str) -> None:
    """The length and the pieces at once: whoever stands before us may have believed the other."""
    smuggled = b"GET /static/app.css HTTP/1.1\r\nHost: x\r\n\r\n"
    body = b"0\r\n\r\n" + smuggled
    for extra in (b"", b"Transfer-Encoding: x\r\n", b"Content-Length: 3\r\n"):
        answer = raw(running, b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(body) + extra + b"\r\n" + body)  # fmt: skip
        assert [status_of(answer), answer.count(b"HTTP/1.1 ")] == [400, 1]


DEEP = "[" * 100_000
BODIES = [
    DEEP, '{"ids":' + DEEP, '{"a":' * 50_000, '{"action":"pause","ids":[' + "9" * 5000 + "]}", '{"action":"pause","ids":[1e400]}',
    '{"action":"pause","ids":[NaN]}', '{"action":"pause","ids":[true]}', '{"action":"pause","job":"\\ud800"}', '{"action":"pause","job":"a\\u0000b"}',
    '{"action":"pause","states":["\\ud800"]}', '{"action":"priority","level":"\\ud800","ids":[1]}', '{"job":"x","rule":"r","path":"re:(","why":"w"}',
    '{"job":"card","rule":"prefix","path":"re:' + "(" * 4000 + '","why":"w"}', '{"job":"card","rule":"prefix","path":"' + "[" * 4000 + '","why":"w"}',
    '{"job":"card","rule":"prefix","path":"*","why":"w","expires":"0001-01-01"}', '{"job":"card","rule":"prefix","path":"*","why":"w","expires":"9999-12-31T23:59:59"}',
    '{"job":"card","rule":"prefix","path":"*","why":"w","expires":"' + "9" * 90 + 'd"}', '{"why":"\\ud800"}', '{"__proto__":{},"constructor":1}',
    '{"flight":"--help"}', '{"flight":"\\ud800"}', "\xff\xfe", "null", "0", '""', "{}", "", " " * 500_000,
]  # fmt: skip


def test_no_body_breaks_anything(site: Site, url: str) -> None:
    site.rows(("a", State.QUEUED))
    head = site.head(Role.ADMIN) | {"Content-Type": "application/json"}
    with httpx.Client(base_url=url, headers=head, timeout=180) as client:
        for path in ("/transfers/actions", "/overrides", "/overrides/1/revoke", "/jobs/card/run", "/jobs/card/plan"):
            for body in BODIES:
                answer = client.post(f"/api/v1{path}", content=body.encode("latin-1"))
                assert answer.status_code < 500 or "Prefect" in answer.json()["detail"], (path, body[:80], answer.text)
        forms = (b"one=pause:" + b"9" * 5000, b"id=%ED%A0%80", b"id=1&id=\xff", b"&" * 500_000, b"a=&" * 7000, b"one=pause%3A1%00", b"job=%00&action=pause", b"job=%ED%A0%80")  # fmt: skip
        for path in ("/transfers/actions", "/overrides", "/overrides/1/revoke", "/jobs/card/pause", "/devices/x/start"):
            for body in forms:
                answer = client.post(path, content=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
                assert answer.status_code < 500 or "Prefect" in answer.text, (path, body[:80], answer.text)


QUERIES = [
    "q=%ED%A0%80", "q=%00", "q=" + "%25" * 400, "q=" + "_" * 400, "cursor=" + "9" * 5000, "cursor=9223372036854775807", "cursor=-1", "cursor=0", "cursor=%D9%A3",
    "limit=" + "9" * 5000, "limit=-1", "state=X", "&".join(["state=QUEUED"] * 1500), "job=%00", "job=%ED%A0%80", "flight=%FF", "device=" + "x" * 5000,
    "level=%00", "source=../../people", "source=audit", "run=" + "a" * 36, "run=" + "-" * 36,
]  # fmt: skip


def test_no_query_breaks_anything(site: Site, url: str) -> None:
    site.rows(("a", State.QUEUED))
    paths = ("/transfers", "/problems", "/recordings", "/logs", "/api/v1/transfers", "/api/v1/recordings", "/api/v1/overrides", "/api/v1/logs/recent")  # fmt: skip
    with httpx.Client(base_url=url, headers=site.head(Role.VIEWER), timeout=180) as client:
        for path in paths:
            for query in QUERIES:
                answer = client.get(f"{path}?{query}")
                assert answer.status_code < 500 or "Prefect" in answer.text, (path, query[:80], answer.text[:300])
        for number in ("9" * 5000, "-1", "0", "%D9%A3", "1%00", "0x1", "9223372036854775808", "1e3"):
            for path in (f"/transfers/{number}", f"/api/v1/transfers/{number}", f"/api/v1/transfers/{number}/history"):
                answer = client.get(path)
                assert 400 <= answer.status_code < 500, (path[:60], answer.status_code)
                assert len(json.dumps(answer.text)) < 50_000
